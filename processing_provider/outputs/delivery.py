"""After the new layer: the objects into an existing layer and into a feature service, in this order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qgis.core import QgsProcessingContext, QgsProcessingFeedback, QgsProcessingUtils, QgsRectangle

from ...inference.errors import InferenceError
from ..feature_sink import RunFacts, check_written, fill_sink, output_fields
from ..text import to_plain, tr, without_secrets
from .append import AppendPlan, append
from .publish import ServiceTarget, publish
from .summary import Written
from .targets import Targets

COPY_FILE = "objects.gpkg"


@dataclass(frozen=True)
class Delivery:
    """The objects of a run on their way.

    Attributes:
        folder: The job's folder.
        files: Files of objects.
        facts: What the objects have in common.
        extent: Of the raster, in its coordinate reference system.
        count: How many objects there are.
    """

    folder: Path
    files: Sequence[Path]
    facts: RunFacts
    extent: QgsRectangle
    count: int


def deliver(
    targets: Targets, service: ServiceTarget | None, delivery: Delivery, feedback: QgsProcessingFeedback
) -> list[Written]:
    """Bring the objects of a run to where they go besides a new layer.

    Args:
        targets: Where they go.
        service: The feature service, if there is one.
        delivery: The objects.
        feedback: Told what is done; asked whether to stop.

    Raises:
        InferenceError: one of the targets does not take them; those before it have them.
        Canceled: the user wants it to stop.
    """
    written = []
    if targets.append is not None:
        written.append(_append(targets.append, delivery, feedback))
    if service is not None:
        is_only = targets.layer is None and targets.append is None
        written.append(_publish(service, delivery, feedback, keeps_copy=is_only))
    return written


def _publish(
    service: ServiceTarget, delivery: Delivery, feedback: QgsProcessingFeedback, *, keeps_copy: bool
) -> Written:
    """Publish; where nothing else is written, a GeoPackage in the job's folder keeps the objects until that is done."""
    copy = _keep_copy(delivery) if keeps_copy else None
    feedback.setProgressText(tr("Publishing the objects"))
    try:
        return publish(
            service, delivery.folder, delivery.files, delivery.facts, delivery.extent, delivery.count, feedback
        )
    except InferenceError as error:
        if copy is not None:
            error.hint = f"{error.hint} Until then the objects are in {copy}.".strip()
        raise


def _keep_copy(delivery: Delivery) -> Path:
    path, facts = delivery.folder / COPY_FILE, delivery.facts
    path.unlink(missing_ok=True)
    sink, written = QgsProcessingUtils.createFeatureSink(
        str(path), QgsProcessingContext(), output_fields(facts.fields, facts.extra), facts.geometry, facts.placement.crs
    )
    counts = fill_sink(sink, written, delivery.files, facts)
    # The file is complete only when nobody holds the sink any more.
    del sink
    check_written(written, sum(counts.values()))
    return path


def _append(plan: AppendPlan, delivery: Delivery, feedback: QgsProcessingFeedback) -> Written:
    name = to_plain(plan.name)
    feedback.setProgressText(tr("Appending to the layer {name}").format(name=name))
    done = append(plan, delivery.files, delivery.facts, delivery.count, feedback.isCanceled)
    if done.was_there:
        feedback.pushInfo(tr("The objects of this run were in the layer {name} already.").format(name=name))
    else:
        feedback.pushInfo(tr("{count} objects were appended to the layer {name}.").format(count=done.count, name=name))
    if done.left_out:
        fields = to_plain(", ".join(done.left_out))
        feedback.pushWarning(tr("The layer {name} got no values of: {fields}.").format(name=name, fields=fields))
    return Written("append", without_secrets(plan.source), done.count, {"layer": plan.name})
