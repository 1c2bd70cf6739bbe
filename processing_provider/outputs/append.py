"""APPEND_TO: objects into an existing layer, checked before the run and again at the commit, each run exactly once.

The layer of the project is only looked at. What is written goes through a connection of its own, so that a reader, an
iterator or an edit session of the user is not touched; the project's layers are told afterwards to look again.

Exactly once: every object carries the run's id. A run that is started again after it broke off finds its objects there
and leaves them, or finds a part of them and replaces it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qgis.core import (
    Qgis,
    QgsCoordinateReferenceSystem,
    QgsDataProvider,
    QgsFeature,
    QgsNetworkAccessManager,
    QgsProject,
    QgsProviderRegistry,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QUrl

from ...inference.errors import OutputError
from ...inference.models.definition import ModelDefinition
from ...inference.object_file import read_objects
from ..feature_sink import FieldNames, RunFacts, columns, features
from .layer_fit import check_fit, check_geometry, fitted
from .target_fields import JOB_COLUMN, JOB_ID_LENGTH
from .writers import KEPT, count_of_run, write

FEATURE_SERVICE = "arcgisfeatureserver"
"""QGIS's data provider of feature services."""

_TYPES = {
    "box": Qgis.WkbType.Polygon,
    "polygon": Qgis.WkbType.MultiPolygon,
    "point": Qgis.WkbType.Point,
    "line": Qgis.WkbType.LineString,
}


@dataclass(frozen=True, repr=False)
class AppendPlan:
    """A layer that takes the objects, as plain values that any thread may use.

    Attributes:
        name: What people call it.
        provider: Its data provider in QGIS.
        source: Its source as the provider knows it; it may hold a password and is never shown.
        field_map: What `read_field_map` gave.
        is_edited: Whether the user was editing it when the run began.
        crs: Its coordinate reference system.
    """

    name: str
    provider: str
    source: str
    field_map: Mapping[str, str | None]
    is_edited: bool
    crs: QgsCoordinateReferenceSystem


@dataclass(frozen=True)
class Appended:
    """What became of the objects: how many of the run are in the layer, and which columns it had no field for."""

    count: int
    was_there: bool
    left_out: tuple[str, ...]


def text_lengths(names: FieldNames, definition: ModelDefinition, job_id_length: int = JOB_ID_LENGTH) -> dict[str, int]:
    """Give how long the texts of the columns get."""
    longest = max((len(item.name) for item in definition.classes), default=0)
    return {names.class_name: longest, "ModelName": len(definition.name), JOB_COLUMN: job_id_length}


def plan_append(
    layer: QgsVectorLayer,
    names: FieldNames,
    definition: ModelDefinition,
    field_map: Mapping[str, str | None],
    geometry: str,
) -> AppendPlan:
    """Check a layer before the run.

    Args:
        layer: The layer, in the thread that it belongs to.
        names: The names that the user chose for the columns.
        definition: The model.
        field_map: What `read_field_map` gave.
        geometry: What the objects are going to be: "box", "polygon", "point", "line", or anything else where only the
            loaded model knows.

    Raises:
        OutputError: it cannot take the objects.
    """
    if layer.providerType() == "memory":
        raise OutputError(
            f"The layer '{layer.name()}' is a temporary one, which lives in QGIS's memory only.",
            hint="Make it permanent first: layer menu > Make Permanent.",
        )
    if layer.readOnly():
        raise OutputError(
            f"The layer '{layer.name()}' is read-only in this project.",
            hint="Change that in Project > Properties > Data Sources, or choose another layer.",
        )
    check_fit(layer, columns(names), (), field_map, text_lengths(names, definition))
    if geometry in _TYPES:
        check_geometry(layer, _TYPES[geometry])
    return AppendPlan(layer.name(), layer.providerType(), layer.source(), field_map, layer.isEditable(), layer.crs())


def append(
    plan: AppendPlan, files: Sequence[Path], facts: RunFacts, count: int, is_cancelled: Callable[[], bool]
) -> Appended:
    """Write the objects of a run into a layer, unless they are all there already.

    Args:
        plan: The layer.
        files: Files of objects.
        facts: What the objects have in common.
        count: How many they are.
        is_cancelled: Asked between batches.

    Raises:
        OutputError: the layer has changed since the run began, or does not take them.
        Canceled: the user wants it to stop.
    """
    layer, table = _open(plan), columns(facts.fields, facts.extra)
    lengths = text_lengths(facts.fields, facts.definition, len(facts.job_id))
    fit = check_fit(layer, table, [item.name for item in facts.extra], plan.field_map, lengths)
    check_geometry(layer, facts.geometry)
    left_out = tuple(column.name for column in table if column.name not in fit.places)
    there = count_of_run(layer, fit.job_field, facts.job_id)
    if there == count:
        return Appended(count, count > 0, left_out)
    if there and plan.is_edited:
        raise OutputError(
            f"The layer '{plan.name}' holds {there} of the {count} objects of the run {facts.job_id}, which broke off, "
            "and it is being edited.",
            hint=f"Save or discard its edits. {KEPT}",
        )
    placed = replace(facts, placement=replace(facts.placement, target=fit.crs))
    rows = lambda: fitted(_features(files, placed), layer, fit)  # noqa: E731
    write(layer, fit.job_field, facts.job_id, rows, is_cancelled)
    _check_count(plan, fit.job_field, facts.job_id, count)
    return Appended(count, False, left_out)


def _check_count(plan: AppendPlan, job_field: str, job_id: str, count: int) -> None:
    written = count_of_run(_open(plan), job_field, job_id)
    if written != count:
        raise OutputError(f"Of {count} objects {written} can be read back from the layer '{plan.name}'.", hint=KEPT)


def _features(files: Sequence[Path], facts: RunFacts) -> Iterator[QgsFeature]:
    for path in files:
        yield from features(read_objects(path), facts)


def _open(plan: AppendPlan) -> QgsVectorLayer:
    options = QgsVectorLayer.LayerOptions()
    options.loadDefaultStyle = False
    layer = QgsVectorLayer(plan.source, plan.name, plan.provider, options)
    if not layer.isValid():
        raise OutputError(
            f"The layer '{plan.name}' cannot be opened any more: its file, table or service is gone, or it cannot be "
            "reached.",
            hint=KEPT,
        )
    # Rows that the layer's filter hides count, too.
    layer.setSubsetString("")
    return layer


def show_appended(project: QgsProject | None, provider: str, source: str) -> None:
    """Have the project's layers look again at what they show; edits that were not saved stay.

    In the main thread only.

    Args:
        project: The project, if there is one.
        provider: The data provider of what was written to.
        source: Its source.
    """
    table = _table(provider, source)
    for layer in project.mapLayers().values() if project else ():
        if isinstance(layer, QgsVectorLayer) and _table(layer.providerType(), layer.source()) == table:
            show_again(layer)


def show_again(layer: QgsVectorLayer) -> None:
    """Have a layer of the project look again at its data; in the main thread only."""
    if layer.providerType() == FEATURE_SERVICE and not layer.isEditable():
        # This provider lists its rows once, when it is made, and takes an answer of yesterday if QGIS has kept one.
        url = QgsProviderRegistry.instance().decodeUri(FEATURE_SERVICE, layer.source()).get("url")
        cache = QgsNetworkAccessManager.instance().cache()
        if cache is not None:
            cache.remove(QUrl(f"{url}/query?f=json&where=1%3D1&returnIdsOnly=true"))
        layer.setDataSource(layer.source(), layer.name(), FEATURE_SERVICE, QgsDataProvider.ProviderOptions())
    layer.reload()
    layer.updateExtents()
    layer.triggerRepaint()


def _table(provider: str, source: str) -> tuple[str, dict[str, Any]]:
    """Give what a layer shows, whatever its filter."""
    parts = QgsProviderRegistry.instance().decodeUri(provider, source)
    return provider, {key: value for key, value in parts.items() if key not in ("subset", "sql")}
