"""DetectObjectsAlgorithm: declare -> check -> build the job -> run the worker -> fill the sink."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from qgis.core import (
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingParameterEnum,
)

from ..inference.events import Canceled, WasCanceled
from ..inference.net.portal import Reference
from ..inference.secrets import Secrets
from . import parameters as keys
from .algorithm import KestrelAlgorithm
from .destination import sole_writer
from .feedback import EventListener, cancelled_exception, foreseen, is_main_thread
from .help import algorithm_help
from .inputs import input_list, take_sources
from .job_builder import (
    DetectionPlan,
    PlanDraft,
    check_mask,
    check_without_model,
    complete_job,
    make_draft,
    remote_model,
    with_rasters,
)
from .job_run import JobRun, start_run
from .model_source import fetched_model
from .outputs.append import show_appended
from .outputs.publish import ServiceTarget, check_service
from .outputs.targets import service_only, service_target
from .outputs.writing import FinishedRun, facts_of, write_results
from .parameter_reader import JSON_KEYS, ParameterReader
from .parameters import Output, Parameter, output_table, parameter_table
from .pixel_server import PixelServer, PixelSource
from .run_secrets import signed_in
from .text import size_text, to_plain, tr

_WORD_SECONDS = 1.0
"""Between two words on a download: each is a line of the log."""


class DetectObjectsAlgorithm(KestrelAlgorithm):
    """Finds objects in a raster with a deep learning model."""

    json_keys = JSON_KEYS

    def tables(self) -> tuple[Sequence[Parameter], Sequence[Output]]:
        """Give the parameters and outputs."""
        return parameter_table(), output_table()

    def __init__(self) -> None:
        """Start without a plan; prepareAlgorithm makes it, where looking at the rasters takes no time."""
        super().__init__()
        self._draft: PlanDraft | None = None
        self._secrets = Secrets()
        self._model: Reference | None = None
        self._plan: DetectionPlan | None = None
        self._service: ServiceTarget | None = None
        self._sources: dict[str, PixelSource] = {}

    def name(self) -> str:
        """Give the second part of the id `kestrel:detectobjects`."""
        return "detectobjects"

    def displayName(self) -> str:
        """Give the name in the toolbox."""
        return tr("Detect Objects Using Deep Learning")

    def shortDescription(self) -> str:
        """Give the tooltip."""
        return tr("Finds objects in an image with a trained deep learning model and writes them as vector features.")

    def shortHelpString(self) -> str:
        """Give the help beside the dialog."""
        return algorithm_help()

    def tags(self) -> list[str]:
        """Give the words that a search should find the algorithm by."""
        words = "object detection,deep learning,AI,neural network,ONNX,torchvision,YOLO,dlpk,emd,trees,imagery"
        return [*words.split(","), tr("find objects"), tr("count objects"), tr("machine learning")]

    def checkParameterValues(self, parameters: dict[str, Any], context: QgsProcessingContext) -> tuple[bool, str]:
        """Refuse what cannot work, before anything is started."""
        try:
            with foreseen():
                reader = ParameterReader(self, parameters, context)
                check_mask(reader)
                is_valid, reason = super().checkParameterValues(self.preprocessParameters(parameters), context)
                if is_valid:
                    self._check(reader)
                elif keys.MORE_INPUTS in reason:
                    input_list(ParameterReader(self, parameters, context))  # says which one, and why
                else:
                    reason += self._what_is_taken(reason)
        except QgsProcessingException as error:
            return False, str(error)
        return is_valid, reason

    def _what_is_taken(self, reason: str) -> str:
        """Give the values of the parameter that QGIS refuses by name alone; '' of any other."""
        for definition in self.parameterDefinitions():
            if isinstance(definition, QgsProcessingParameterEnum) and definition.name() in reason.split():
                return f": {tr('it takes one of')} {', '.join(definition.options())}."
        return ""

    def _check(self, reader: ParameterReader) -> None:
        if remote_model(reader) is not None:
            check_without_model(reader)
            return
        draft = make_draft(reader)
        if draft.inputs.is_quick:
            with_rasters(draft, reader)

    def prepareAlgorithm(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> bool:
        """Take from the layers what is bound to this thread."""
        with foreseen():
            reader = ParameterReader(self, parameters, context)
            self._model = remote_model(reader)
            if self._model is not None:
                inputs = input_list(reader)
                self._secrets = signed_in(inputs, self._model, reader)
                self._sources = take_sources(reader, inputs)
                self._service = service_target(reader, service_only(reader))
                return True
            self._draft = make_draft(reader)
            self._secrets = signed_in(self._draft.inputs, None, reader)
            self._service = service_target(reader, self._draft.targets)
            self._sources = take_sources(reader, self._draft.inputs)
            if self._draft.inputs.is_quick:
                self._plan = _planned(self._draft, reader, feedback, self._secrets)
        return True

    def processAlgorithm(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> dict[str, Any]:
        """Run the worker and write what it found."""
        if self._draft is None and self._model is None:
            raise QgsProcessingException("prepareAlgorithm was not called.")
        started, begun = time.monotonic(), datetime.now(timezone.utc)
        request = ParameterReader(self, parameters, context)
        with foreseen():
            self._plan = plan = self._plan or self._late_plan(request, feedback)
        if plan is None:
            return _cancelled(feedback)
        run: JobRun | None = None
        try:
            with foreseen(lambda: run.log if run else None), sole_writer(plan.output):
                try:
                    if self._service is not None:
                        check_service(self._service, facts_of(plan, plan.job.job_id, {}, []), feedback)
                    run = start_run(complete_job(plan))
                    listener = EventListener(feedback)
                    with PixelServer(self._sources, feedback) as pixels:
                        outcome = run.execute(plan.interpreter, listener, feedback, pixels, plan.secrets)
                    if isinstance(outcome, WasCanceled):
                        return _cancelled(feedback)
                    if run.job.plan_only:
                        run.remove()
                        return _only_planned(outcome.summary, started)
                    story = FinishedRun(plan, run, self._service, outcome.summary, listener, begun)
                    results = write_results(request, story, feedback)
                except Canceled:
                    return _cancelled(feedback)
        finally:
            if run is not None:
                run.release()
        if not feedback.isCanceled():
            run.remove()
        results[keys.PLAN] = _plan_text(outcome.summary)
        results[keys.TILE_COUNT] = outcome.summary.get("tiles", 0)
        results[keys.ELAPSED_SECONDS] = round(time.monotonic() - started, 2)
        return results

    def _late_plan(self, request: ParameterReader, feedback: QgsProcessingFeedback) -> DetectionPlan | None:
        """Do in the run's own thread what takes time: download the model, look at rasters; None: cancelled."""
        draft = self._draft
        if self._model is not None:
            model = _downloaded(self._model, self._secrets, feedback)
            if model is None:
                return None
            request = replace(request, parameters={**request.parameters, keys.MODEL: str(model)})
        return _planned(draft or make_draft(request), request, feedback, self._secrets)

    def postProcessAlgorithm(self, context: QgsProcessingContext, feedback: QgsProcessingFeedback) -> dict[str, Any]:
        """Show in the project what was appended; QGIS calls this in the main thread."""
        plan = self._plan
        if plan is not None and plan.targets.shown:
            show_appended(context.project(), *plan.targets.shown)
        return {}


def _only_planned(summary: Mapping[str, Any], started: float) -> dict[str, Any]:
    """Give the results of a run that was only planned: no layer, and nothing about objects."""
    return {
        keys.PLAN: _plan_text(summary),
        keys.TILE_COUNT: summary.get("tiles", 0),
        keys.ELAPSED_SECONDS: round(time.monotonic() - started, 2),
    }


def _plan_text(summary: Mapping[str, Any]) -> str:
    return json.dumps(summary.get("plan") or {}, ensure_ascii=False)


def _downloaded(model: Reference, secrets: Secrets, feedback: QgsProcessingFeedback) -> Path | None:
    """Fetch the model, tell what came, and give its file; None where the user has had enough."""
    try:
        file = fetched_model(model, secrets, feedback.isCanceled, _download_teller(feedback))
    except Canceled:
        return None
    size = size_text(file.path.stat().st_size)
    text = tr("Model of the portal's item {item}: {size}, SHA-256 {hash}.")
    feedback.pushInfo(to_plain(text.format(item=file.item.shown, size=size, hash=file.sha256)))
    return file.path


def _download_teller(feedback: QgsProcessingFeedback) -> Callable[[int, int | None], None]:
    next_word = 0.0

    def told(done: int, total: int | None) -> None:
        nonlocal next_word
        if time.monotonic() < next_word and done != total:
            return
        next_word = time.monotonic() + _WORD_SECONDS
        parts = [size_text(done), *([size_text(total)] if total else [])]
        feedback.setProgressText(tr("Downloading: {amount}").format(amount=" / ".join(parts)))
        if total:
            feedback.setProgress(100.0 * done / total)

    return told


def _planned(
    draft: PlanDraft, reader: ParameterReader, feedback: QgsProcessingFeedback, secrets: Secrets
) -> DetectionPlan | None:
    """Look at the rasters; None where the user has had enough."""

    def told(done: int, total: int) -> bool:
        if total > 1 and done % 10 == 0:
            feedback.setProgressText(tr("Looking at raster {number} of {total}").format(number=done + 1, total=total))
        return not feedback.isCanceled()

    try:
        plan = with_rasters(draft, reader, told, secrets, _download_teller(feedback))
    except Canceled:
        return None
    for remark in plan.remarks:
        feedback.pushInfo(to_plain(remark))
    for warning in plan.warnings:
        feedback.pushWarning(to_plain(warning))
    return plan


def _cancelled(feedback: QgsProcessingFeedback) -> dict[str, Any]:
    """End a cancelled run.

    A dialog runs the algorithm in a thread and sees for itself that the run was cancelled. A script or qgis_process
    runs it in the main thread and would take a normal return for success.
    """
    if is_main_thread():
        raise cancelled_exception()
    feedback.pushInfo(tr("Canceled. The same run, started again, goes on from here."))
    return {}
