"""UndoRunAlgorithm: takes the objects of one run out of a layer again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from qgis.core import (
    Qgis,
    QgsFeatureRequest,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingOutputNumber,
    QgsProcessingOutputString,
    QgsProcessingParameterString,
    QgsProcessingParameterVectorLayer,
    QgsVariantUtils,
    QgsVectorLayer,
)

from ..inference.errors import JobError, OutputError
from .algorithm import KestrelAlgorithm
from .feedback import foreseen
from .help import table_help
from .outputs.append import FEATURE_SERVICE, show_again
from .outputs.target_fields import JOB_COLUMN
from .outputs.writers import delete_run
from .parameter_reader import ParameterReader
from .parameters import Output, Parameter
from .text import to_plain, tr

LAYER = "LAYER"
JOB_ID = "JOB_ID"
JOB_ID_FIELD = "JOB_ID_FIELD"
DELETED_COUNT = "DELETED_COUNT"
REMAINING_RUNS = "REMAINING_RUNS"

_MOST_TOLD = 50


def parameter_table() -> tuple[Parameter, ...]:
    """Give the parameters in the order of the dialog, in the user's language."""
    return (
        Parameter(
            LAYER, tr("Layer"), QgsProcessingParameterVectorLayer,
            tr("The layer that a run has appended to."),
            options={"types": [Qgis.ProcessingSourceType.VectorAnyGeometry]},
        ),
        Parameter(
            JOB_ID, tr("Job ID"), QgsProcessingParameterString,
            tr("Name of the run, as the field JobId of its objects says. Empty: nothing is deleted; the message lists "
               "the runs that are in the layer."),
            is_optional=True,
        ),
        Parameter(
            JOB_ID_FIELD, tr("Field of the job ID"), QgsProcessingParameterString,
            tr("The field that holds the name of the run, where a field map has given it another name."),
            default=JOB_COLUMN, is_advanced=True,
        ),
    )  # fmt: skip


def output_table() -> tuple[Output, ...]:
    """Give the outputs."""
    number, text = QgsProcessingOutputNumber, QgsProcessingOutputString
    return (
        Output(DELETED_COUNT, tr("Deleted objects"), number, tr("How many objects were deleted.")),
        Output(REMAINING_RUNS, tr("Other runs"), text, tr("Objects by run that are still there, as JSON.")),
    )


class UndoRunAlgorithm(KestrelAlgorithm):
    """Deletes the objects of one run."""

    def tables(self) -> tuple[Sequence[Parameter], Sequence[Output]]:
        """Give the parameters and outputs."""
        return parameter_table(), output_table()

    def name(self) -> str:
        """Give the second part of the id `kestrel:undorun`."""
        return "undorun"

    def displayName(self) -> str:
        """Give the name in the toolbox."""
        return tr("Undo a Detection Run")

    def shortDescription(self) -> str:
        """Give the tooltip."""
        return tr("Deletes the objects of one run from a layer that it was appended to.")

    def shortHelpString(self) -> str:
        """Give the help beside the dialog."""
        introduction = tr(
            "Deletes from a layer all objects that one run has appended, and nothing else. Objects that were edited "
            "since then go, too."
        )
        return table_help(introduction, parameter_table(), output_table())

    def tags(self) -> list[str]:
        """Give the words that a search should find the algorithm by."""
        return ["object detection", tr("delete"), tr("revert"), tr("append")]

    def flags(self) -> Qgis.ProcessingAlgorithmFlag:
        """Run in the main thread: the layer is the project's own."""
        return super().flags() | Qgis.ProcessingAlgorithmFlag.NoThreading

    def processAlgorithm(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> dict[str, Any]:
        """Delete, or tell which runs there are."""
        with foreseen():
            layer = self.parameterAsVectorLayer(parameters, LAYER, context)
            if layer is None:
                raise QgsProcessingException(self.invalidSourceError(parameters, LAYER))
            reader = ParameterReader(self, parameters, context)
            return _undo(layer, reader.text(JOB_ID_FIELD), reader.text(JOB_ID), feedback)


def _undo(layer: QgsVectorLayer, job_field: str, job_id: str, feedback: QgsProcessingFeedback) -> dict[str, Any]:
    index = layer.dataProvider().fields().lookupField(job_field)
    if index < 0:
        raise OutputError(
            f"The layer '{layer.name()}' has no field named '{job_field}'.",
            hint="Name the field that holds the name of the run.",
        )
    name = layer.dataProvider().fields().at(index).name()
    if layer.providerType() == FEATURE_SERVICE:
        show_again(layer)
    runs = runs_in(layer, name)
    if job_id not in runs:
        said = f"The layer '{layer.name()}' holds no objects of the run '{job_id}'." if job_id else "No run was named."
        raise JobError(said, hint=_told(runs))
    if layer.isEditable():
        raise OutputError(
            f"The layer '{layer.name()}' is being edited.", hint="Save or discard its edits first, then undo the run."
        )
    # A filter of the layer must not keep a part of the run alive.
    shown = layer.subsetString()
    layer.setSubsetString("")
    try:
        count = delete_run(layer, name, job_id)
    finally:
        layer.setSubsetString(shown)
    show_again(layer)
    text = tr("{count} objects of the run {job} were deleted from the layer {name}.")
    feedback.pushInfo(text.format(count=count, job=to_plain(job_id), name=to_plain(layer.name())))
    left = {job: number for job, number in runs.items() if job != job_id}
    return {DELETED_COUNT: count, REMAINING_RUNS: json.dumps(left, ensure_ascii=False)}


def runs_in(layer: QgsVectorLayer, job_field: str) -> Counter[str]:
    """Count the objects of each run in a layer, whatever its filter shows."""
    whole = layer.clone() if layer.subsetString() else layer
    if whole is not layer:
        whole.setSubsetString("")
    provider = whole.dataProvider()
    request = QgsFeatureRequest().setFlags(QgsFeatureRequest.Flag.NoGeometry)
    request.setSubsetOfAttributes([job_field], provider.fields())
    values = (feature[job_field] for feature in provider.getFeatures(request))
    return Counter(str(value) for value in values if not QgsVariantUtils.isNull(value) and value != "")


def _told(runs: Counter[str]) -> str:
    if not runs:
        return "The layer holds no run of Kestrel's."
    newest = sorted(runs, reverse=True)
    listed = ", ".join(f"{job} ({runs[job]} objects)" for job in newest[:_MOST_TOLD])
    return f"Its runs are: {listed}{', ...' if len(runs) > _MOST_TOLD else ''}."
