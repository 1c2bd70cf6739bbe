"""After the new layer: the objects into an existing layer and into a feature service, in this order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qgis.core import QgsProcessingFeedback

from ..feature_sink import RunFacts
from ..text import to_plain, tr, without_secrets
from .append import AppendPlan, append
from .publish import Publisher
from .summary import Written
from .targets import Targets


def deliver(
    targets: Targets,
    publisher: Publisher | None,
    files: Sequence[Path],
    facts: RunFacts,
    count: int,
    feedback: QgsProcessingFeedback,
) -> list[Written]:
    """Bring the objects of a run to where they go besides a new layer.

    Args:
        targets: Where they go.
        publisher: Brings them to the feature service, if there is one.
        files: Files of objects.
        facts: What they have in common.
        count: How many they are.
        feedback: Told what is done; asked whether to stop.

    Raises:
        InferenceError: one of the targets does not take them; those before it have them.
        Canceled: the user wants it to stop.
    """
    written = []
    if targets.append is not None:
        written.append(_append(targets.append, files, facts, count, feedback))
    if publisher is not None:
        written.append(publisher.publish(files, facts, count, feedback))
    return written


def _append(
    plan: AppendPlan, files: Sequence[Path], facts: RunFacts, count: int, feedback: QgsProcessingFeedback
) -> Written:
    name = to_plain(plan.name)
    feedback.setProgressText(tr("Appending to the layer {name}").format(name=name))
    done = append(plan, files, facts, count, feedback.isCanceled)
    if done.was_there:
        feedback.pushInfo(tr("The objects of this run were in the layer {name} already.").format(name=name))
    else:
        feedback.pushInfo(tr("{count} objects were appended to the layer {name}.").format(count=count, name=name))
    if done.left_out:
        fields = to_plain(", ".join(done.left_out))
        feedback.pushWarning(tr("The layer {name} got no values of: {fields}.").format(name=name, fields=fields))
    return Written("append", without_secrets(plan.source), done.count, {"layer": plan.name})
