"""Whether the objects fit into an existing layer of QGIS, and the objects as that layer's features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qgis.core import (
    Qgis,
    QgsCoordinateReferenceSystem,
    QgsFeature,
    QgsFieldConstraints,
    QgsGeometry,
    QgsVectorDataProvider,
    QgsVectorLayer,
    QgsWkbTypes,
)

from ...inference.errors import OutputError
from ..feature_sink import Column
from ..text import to_plain
from .target_fields import INTEGER, JOB_COLUMN, NUMBER, TargetField, kind_of, match_columns

_ANY = (Qgis.WkbType.Unknown, Qgis.WkbType.GeometryCollection)


@dataclass(frozen=True)
class Fit:
    """How the objects fit into a layer.

    Attributes:
        places: Name of the layer's field by name of the column.
        geometry: The layer's geometry type.
        crs: The layer's coordinate reference system.
    """

    places: Mapping[str, str]
    geometry: Qgis.WkbType
    crs: QgsCoordinateReferenceSystem

    @property
    def job_field(self) -> str:
        """Give the field that holds the run's id."""
        return self.places[JOB_COLUMN]


def check_fit(
    layer: QgsVectorLayer,
    table: Sequence[Column],
    extra: Sequence[str],
    field_map: Mapping[str, str | None],
    lengths: Mapping[str, int],
) -> Fit:
    """Check what a layer allows, and its fields.

    Args:
        layer: The layer.
        table: The columns of the objects.
        extra: Names of those that only this model's objects have.
        field_map: What `read_field_map` gave.
        lengths: How long a column's texts get, by its name.

    Raises:
        OutputError: the layer cannot take the objects.
    """
    provider = layer.dataProvider()
    if not provider.capabilities() & QgsVectorDataProvider.Capability.AddFeatures:
        raise OutputError(
            f"Nothing can be added to the layer '{layer.name()}' (data provider '{layer.providerType()}'): it is "
            "read-only, or its format or the rights on it do not allow it.",
            hint="Choose a layer that can be edited. A feature service may also be given as OUTPUT_SERVICE.",
        )
    if layer.wkbType() == Qgis.WkbType.NoGeometry:
        raise OutputError(f"'{layer.name()}' is a table without geometry.", hint="Choose a layer of polygons.")
    places = match_columns(table, extra, target_fields(provider), field_map, lengths, layer.name())
    return Fit(places, layer.wkbType(), layer.crs())


def check_geometry(layer: QgsVectorLayer, wanted: Qgis.WkbType) -> None:
    """Check that a layer holds geometries of a kind: areas, points or lines, in parts or not.

    Raises:
        OutputError: it holds others.
    """
    if layer.wkbType() in _ANY or QgsWkbTypes.geometryType(wanted) == layer.geometryType():
        return
    is_points = layer.geometryType() == Qgis.GeometryType.Point
    raise OutputError(
        f"The layer '{layer.name()}' holds geometries of the type {QgsWkbTypes.displayString(layer.wkbType())}, and "
        f"the objects are of the type {QgsWkbTypes.displayString(wanted)}.",
        hint='Set the model argument shape to "point", or choose another layer.'
        if is_points
        else "Choose another layer.",
    )


def check_crs(name: str, held: QgsCoordinateReferenceSystem, crs: QgsCoordinateReferenceSystem) -> None:
    """Check that objects have a place in a layer.

    Args:
        name: The layer.
        held: Its coordinate reference system.
        crs: That of the objects.

    Raises:
        OutputError: only one of them has a coordinate reference system.
    """
    if held.isValid() and not crs.isValid():
        raise OutputError(
            f"The objects are in pixels of an image without georeference, and the layer '{name}' is on the map.",
            hint="Choose another output.",
        )
    if crs.isValid() and not held.isValid():
        raise OutputError(
            f"The layer '{name}' has no coordinate reference system.",
            hint="Set it in the layer's properties, or choose another layer.",
        )


def target_fields(provider: QgsVectorDataProvider) -> list[TargetField]:
    """Describe the fields of a layer; keys that fill themselves are left out."""
    fields, keys = provider.fields(), set(provider.pkAttributeIndexes())
    found = []
    for index in range(fields.count()):
        item, has_default = fields.at(index), bool(provider.defaultValueClause(index))
        if index in keys and has_default:
            continue
        kind = kind_of(item.type())
        if kind == NUMBER and item.precision() == 0 and item.length() > 0:
            kind = INTEGER  # what stands behind the point would be lost
        is_strict = bool(provider.fieldConstraints(index) & QgsFieldConstraints.Constraint.ConstraintNotNull)
        found.append(TargetField(item.name(), kind, max(item.length(), 0), is_strict and not has_default))
    return found


def fitted(source: Iterable[QgsFeature], layer: QgsVectorLayer, fit: Fit) -> Iterator[QgsFeature]:
    """Turn features of Kestrel's into features of a layer.

    Args:
        source: Features with Kestrel's columns, in the layer's coordinate reference system.
        layer: The layer.
        fit: What `check_fit` gave.

    Raises:
        OutputError: a value or geometry does not fit.
    """
    provider, fields = layer.dataProvider(), layer.dataProvider().fields()
    # A provider takes the text of its own default for that default.
    blank = [provider.defaultValueClause(index) or None for index in range(fields.count())]
    places = [(column, fields.indexOf(name), fields.field(name)) for column, name in fit.places.items()]
    for given in source:
        values = list(blank)
        for column, index, item in places:
            values[index] = _fitting(item, given[column], layer.name())
        feature = QgsFeature(fields)
        feature.setAttributes(values)
        feature.setGeometry(_coerced(given.geometry(), fit.geometry, layer.name()))
        yield feature


def _fitting(item: Any, value: Any, layer_name: str) -> Any:
    is_good, converted = _converted(item, value)
    if not is_good:
        raise OutputError(
            f"The field '{item.name()}' of the layer '{layer_name}' does not take the value {to_plain(value, 80)!r}.",
            hint="Leave the column out or give it another field in FIELD_MAP, then start the same run again: what was "
            "found is kept.",
        )
    return converted


def _converted(item: Any, value: Any) -> tuple[bool, Any]:
    answer = item.convertCompatible(value)
    # Newer versions of QGIS's Python give the value, and raise where it does not fit; older ones give both.
    return answer if isinstance(answer, tuple) else (True, answer)


def _coerced(geometry: QgsGeometry, wanted: Qgis.WkbType, layer_name: str) -> QgsGeometry:
    if wanted in _ANY:
        return geometry
    parts = geometry.coerceToType(wanted)
    if len(parts) != 1:
        raise OutputError(
            f"An object has {len(parts)} parts, and the layer '{layer_name}' holds geometries of one part only "
            f"({QgsWkbTypes.displayString(wanted)}).",
            hint='Choose a layer of multi-part geometries, or set the model argument shape to "box"; then start again.',
        )
    return parts[0]
