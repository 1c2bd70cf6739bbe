"""What is written when the worker has ended: the new layer, then everything else; and the results of the algorithm."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from qgis.core import QgsFeatureSink, QgsProcessingException, QgsProcessingFeedback

from ...inference.errors import OutputError
from .. import parameters as keys
from ..destination import HalfOutput
from ..feature_sink import (
    RunFacts,
    check_written,
    count_classes,
    extra_fields,
    fill_sink,
    output_fields,
    output_geometry,
)
from ..feedback import EventListener
from ..job_builder import DetectionPlan
from ..job_run import JobRun
from ..layer_style import RunRecord, style_on_load
from ..parameter_reader import ParameterReader
from ..text import to_plain, tr, without_secrets
from .delivery import Delivery, deliver
from .placement import Placement
from .publish import ServiceTarget
from .summary import RunStory, Written, as_text, result_of, summary, write_summary


@dataclass(frozen=True)
class FinishedRun:
    """What is known when the worker has ended."""

    plan: DetectionPlan
    run: JobRun
    service: ServiceTarget | None
    told: Mapping[str, Any]
    listener: EventListener
    begun: datetime


def facts_of(plan: DetectionPlan, job_id: str, told: Mapping[str, Any], files: Sequence[Path]) -> RunFacts:
    """Give what all objects have in common, as far as the worker has told what they are."""
    return RunFacts(
        plan.package.definition,
        job_id,
        plan.fields,
        extra_fields(told.get("fields"), plan.fields),
        output_geometry(told.get("geometry"), files),
        Placement(plan.raster.crs, plan.output_crs, plan.transforms),
    )


def write_results(request: ParameterReader, story: FinishedRun, feedback: QgsProcessingFeedback) -> dict[str, Any]:
    """Write the new layer, if there is one, then everything else; give the results."""
    plan, files = story.plan, story.listener.object_files
    facts = facts_of(plan, story.run.job.job_id, story.told, files)
    feedback.setProgressText(tr("Writing the objects"))
    results: dict[str, Any] = {}
    written: list[Written] = []
    if plan.targets.layer is None:
        counts = count_classes(files, facts)
    else:
        destination, counts = _write_layer(request, plan, facts, files)
        record = RunRecord(story.run.job, plan.package.definition, plan.raster, plan.fields, counts, facts.extra)
        name = request.algorithm.parameterDefinition(keys.OUTPUT).description()
        style_on_load(request.context, destination, record, name)
        results[keys.OUTPUT] = destination
        written.append(Written("layer", without_secrets(destination), sum(counts.values())))
    feedback.pushInfo(_summary(counts))
    delivery = Delivery(story.run.folder, files, facts, plan.raster.extent, sum(counts.values()))
    written += deliver(plan.targets, story.service, delivery, feedback)
    told = summary(
        RunStory(
            story.run.job, plan.package.definition, plan.raster.crs, plan.raster.extent, plan.raster.cell_size,
            facts.placement.crs, story.told, story.listener.items, story.listener.versions, story.begun, counts,
            written,
        )
    )  # fmt: skip
    if plan.targets.summary_file is not None:
        write_summary(plan.targets.summary_file, told)
        results[keys.SUMMARY_FILE] = str(plan.targets.summary_file)
    return {
        **results,
        keys.OBJECT_COUNT: sum(counts.values()),
        keys.CLASS_COUNTS: json.dumps(counts, ensure_ascii=False),
        keys.JOB_ID: story.run.job.job_id,
        keys.SUMMARY: as_text(told),
        keys.OUT_OBJECTS: json.dumps(result_of(written), ensure_ascii=False),
    }


def _write_layer(
    request: ParameterReader, plan: DetectionPlan, facts: RunFacts, files: list[Path]
) -> tuple[str, Counter[str]]:
    """Fill the sink in one go: it is one open transaction, and hours of work must not hang on it."""
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
    return destination, counts


def _open_sink(request: ParameterReader, plan: DetectionPlan, facts: RunFacts) -> tuple[QgsFeatureSink, str]:
    algorithm, reason = request.algorithm, ""
    try:
        sink, destination = algorithm.parameterAsSink(
            {**request.parameters, keys.OUTPUT: plan.targets.layer},
            keys.OUTPUT,
            request.context,
            output_fields(facts.fields, facts.extra),
            facts.geometry,
            facts.placement.crs,
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
