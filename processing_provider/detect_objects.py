"""DetectObjectsAlgorithm: declare -> check -> build the job -> run the worker -> fill the sink."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qgis.core import (
    QgsFeatureSink,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
)

from ..inference.errors import OutputError
from ..inference.events import WasCanceled
from ..inference.job import DetectionJob
from . import parameters as keys
from .algorithm import KestrelAlgorithm
from .destination import HalfOutput, sole_writer
from .feature_sink import RunFacts, check_written, extra_fields, fill_sink, output_fields, output_geometry
from .feedback import EventListener, cancelled_exception, foreseen, is_main_thread
from .help import algorithm_help
from .job_builder import (
    JSON_KEYS,
    DetectionPlan,
    ParameterReader,
    build_plan,
    complete_job,
    take_sources,
)
from .job_run import JobRun, start_run
from .layer_style import RunRecord, style_on_load
from .parameters import Output, Parameter, output_table, parameter_table
from .pixel_server import PixelServer, PixelSource
from .text import to_plain, tr


class DetectObjectsAlgorithm(KestrelAlgorithm):
    """Finds objects in a raster with a deep learning model."""

    json_keys = JSON_KEYS

    def tables(self) -> tuple[Sequence[Parameter], Sequence[Output]]:
        """Give the parameters and outputs."""
        return parameter_table(), output_table()

    def __init__(self) -> None:
        """Start without a plan; prepareAlgorithm makes it."""
        super().__init__()
        self._plan: DetectionPlan | None = None
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
                is_valid, reason = super().checkParameterValues(self.preprocessParameters(parameters), context)
                if is_valid:
                    build_plan(self, parameters, context)
        except QgsProcessingException as error:
            return False, str(error)
        return is_valid, reason

    def prepareAlgorithm(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> bool:
        """Take from the layers what is bound to this thread."""
        with foreseen():
            self._plan = plan = build_plan(self, parameters, context)
            self._sources = take_sources(self, parameters, context, plan)
        for remark in plan.remarks:
            feedback.pushInfo(to_plain(remark))
        for warning in plan.warnings:
            feedback.pushWarning(to_plain(warning))
        return True

    def processAlgorithm(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> dict[str, Any]:
        """Run the worker and write what it found."""
        plan, started = self._plan, time.monotonic()
        if plan is None:
            raise QgsProcessingException("prepareAlgorithm was not called.")
        run: JobRun | None = None
        try:
            with foreseen(lambda: run.log if run else None), sole_writer(plan.output):
                run = start_run(complete_job(plan))
                listener = EventListener(feedback)
                with PixelServer(self._sources, feedback) as pixels:
                    outcome = run.execute(plan.interpreter, listener, feedback, pixels)
                if isinstance(outcome, WasCanceled):
                    return _cancelled(feedback)
                request = ParameterReader(self, parameters, context)
                facts = _facts(plan, run.job, outcome.summary, listener.object_files)
                results = _write(request, plan, run.job, facts, listener.object_files, feedback)
        finally:
            if run is not None:
                run.release()
        if not feedback.isCanceled():
            run.remove()
        results[keys.TILE_COUNT] = outcome.summary.get("tiles", 0)
        results[keys.ELAPSED_SECONDS] = round(time.monotonic() - started, 2)
        return results


def _facts(plan: DetectionPlan, job: DetectionJob, summary: Mapping[str, Any], files: list[Path]) -> RunFacts:
    """Give what all objects have in common, now that the worker has told what they are."""
    return RunFacts(
        plan.package.definition,
        job.job_id,
        plan.fields,
        extra_fields(summary.get("fields"), plan.fields),
        output_geometry(summary.get("geometry"), files),
    )


def _write(
    request: ParameterReader,
    plan: DetectionPlan,
    job: DetectionJob,
    facts: RunFacts,
    files: list[Path],
    feedback: QgsProcessingFeedback,
) -> dict[str, Any]:
    """Fill the sink in one go: it is one open transaction, and hours of work must not hang on it."""
    algorithm, definition = request.algorithm, plan.package.definition
    feedback.setProgressText(tr("Writing the objects"))
    half, is_whole = HalfOutput(plan.output), False
    try:
        sink, destination = _open_sink(request, plan, facts)
        half.note_created()
        counts = fill_sink(sink, destination, files, facts)
        # The file is complete only when nobody holds the sink any more.
        del sink
        check_written(destination, sum(counts.values()))
        is_whole = True
    finally:
        if not is_whole:
            half.remove()
    record = RunRecord(job, definition, plan.raster, plan.fields, counts, facts.extra)
    style_on_load(request.context, destination, record, algorithm.parameterDefinition(keys.OUTPUT).description())
    feedback.pushInfo(_summary(counts))
    return {
        keys.OUTPUT: destination,
        keys.OBJECT_COUNT: sum(counts.values()),
        keys.CLASS_COUNTS: json.dumps(counts, ensure_ascii=False),
        keys.JOB_ID: job.job_id,
    }


def _open_sink(request: ParameterReader, plan: DetectionPlan, facts: RunFacts) -> tuple[QgsFeatureSink, str]:
    algorithm, reason = request.algorithm, ""
    try:
        sink, destination = algorithm.parameterAsSink(
            request.parameters,
            keys.OUTPUT,
            request.context,
            output_fields(facts.fields, facts.extra),
            facts.geometry,
            plan.raster.crs,
        )
    except QgsProcessingException as error:
        sink, destination, reason = None, "", str(error).strip()
    if sink is None:
        raise OutputError(
            reason or algorithm.invalidSinkError(request.parameters, keys.OUTPUT),
            hint="Start the same run again, with this output or another: what was found is kept.",
        )
    return sink, destination


def _summary(counts: Counter[str]) -> str:
    found = ", ".join(f"{to_plain(name)}: {count}" for name, count in counts.most_common())
    return tr("Found {count} objects.").format(count=sum(counts.values())) + (f" {found}." if found else "")


def _cancelled(feedback: QgsProcessingFeedback) -> dict[str, Any]:
    """End a cancelled run.

    A dialog runs the algorithm in a thread and sees for itself that the run was cancelled. A script or qgis_process
    runs it in the main thread and would take a normal return for success.
    """
    if is_main_thread():
        raise cancelled_exception()
    feedback.pushInfo(tr("Canceled. The same run, started again, goes on from here."))
    return {}
