"""Finished objects -> features in Esri's JSON, and what a feature layer says of itself -> QGIS's values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qgis.core import (
    Qgis,
    QgsArcGisRestContext,
    QgsArcGisRestUtils,
    QgsCoordinateReferenceSystem,
    QgsGeometry,
    QgsWkbTypes,
)
from qgis.PyQt.QtCore import QMetaType

from ...inference.errors import OutputError
from ...inference.models.definition import ModelDefinition
from ...inference.net.feature_service import ServiceField, ServiceLayer
from ...inference.object_file import read_objects
from ..feature_sink import Column, RunFacts, columns, features
from .target_fields import BOOLEAN, INTEGER, JOB_COLUMN, NUMBER, OTHER, TEXT, TargetField, kind_of

_KINDS = {
    "esriFieldTypeString": TEXT,
    "esriFieldTypeSmallInteger": INTEGER,
    "esriFieldTypeInteger": INTEGER,
    "esriFieldTypeBigInteger": INTEGER,
    "esriFieldTypeDouble": NUMBER,
    "esriFieldTypeSingle": NUMBER,
}
_FAMILIES = {
    "esriGeometryPolygon": Qgis.GeometryType.Polygon,
    "esriGeometryPolyline": Qgis.GeometryType.Line,
    "esriGeometryPoint": Qgis.GeometryType.Point,
    "esriGeometryMultipoint": Qgis.GeometryType.Point,
}
_NEW_TYPES = {TEXT: "esriFieldTypeString", INTEGER: "esriFieldTypeInteger", NUMBER: "esriFieldTypeDouble",
              BOOLEAN: "esriFieldTypeSmallInteger"}  # fmt: skip
_TEXT_LENGTH = 255
_JOB_LENGTH = 80
_LARGEST = 2**31 - 1


def target_fields(layer: ServiceLayer) -> list[TargetField]:
    """Describe the fields of a feature layer."""
    return [_target(item) for item in layer.fields]


def _target(item: ServiceField) -> TargetField:
    return TargetField(item.name, _KINDS.get(item.type, OTHER), item.length, item.is_required)


def check_service_geometry(layer: ServiceLayer, wanted: Qgis.WkbType) -> None:
    """Check that a feature layer holds geometries of a kind.

    Raises:
        OutputError: it holds others.
    """
    if _FAMILIES.get(layer.geometry_type) == QgsWkbTypes.geometryType(wanted):
        return
    raise OutputError(
        f"The feature layer '{layer.name}' holds geometries of the type {layer.geometry_type}, and the objects are of "
        f"the type {QgsWkbTypes.displayString(wanted)}.",
        hint="Choose another layer. Points come from the model argument shape, as point.",
    )


def crs_of(layer: ServiceLayer) -> QgsCoordinateReferenceSystem:
    """Give the coordinate reference system of a feature layer.

    Raises:
        OutputError: QGIS does not know it.
    """
    reference = layer.spatial_reference
    for code in (reference.get("latestWkid"), reference.get("wkid")):
        for authority in ("EPSG", "ESRI"):
            crs = QgsCoordinateReferenceSystem(f"{authority}:{code}") if code else QgsCoordinateReferenceSystem()
            if crs.isValid():
                return crs
    crs = QgsCoordinateReferenceSystem.fromWkt(str(reference.get("wkt") or reference.get("wkt2") or ""))
    if crs.isValid():
        return crs
    raise OutputError(
        f"The coordinate reference system {dict(reference)} of the feature layer '{layer.name}' is not known here.",
        hint="Choose another layer.",
    )


def as_spatial_reference(crs: QgsCoordinateReferenceSystem) -> dict[str, Any]:
    """Give a coordinate reference system in Esri's form."""
    authority, _, code = crs.authid().partition(":")
    if authority in ("EPSG", "ESRI") and code.isdigit():
        return {"wkid": int(code)}
    return {"wkt": crs.toWkt(QgsCoordinateReferenceSystem.WktVariant.WKT1_ESRI)}


def esri_features(
    files: Sequence[Path], facts: RunFacts, places: Mapping[str, str], layer: ServiceLayer
) -> Iterator[dict[str, Any]]:
    """Give the objects as features of a feature layer, in their order.

    Args:
        files: Files of objects.
        facts: What they have in common; their placement leads to the layer's coordinate reference system.
        places: Name of the layer's field by name of the column.
        layer: The layer.

    Raises:
        OutputError: an object cannot be transformed.
    """
    context, reference = QgsArcGisRestContext(), as_spatial_reference(facts.placement.crs)
    is_multipoint = layer.geometry_type == "esriGeometryMultipoint"
    for path in files:
        for feature in features(read_objects(path), facts):
            # The ring around an area runs clockwise, a hole's the other way.
            geometry = feature.geometry().forcePolygonClockwise() if _is_area(facts) else feature.geometry()
            shape = QgsArcGisRestUtils.geometryToJson(geometry, context, facts.placement.crs)
            if is_multipoint and "points" not in shape:
                shape = {"points": [[shape.pop("x"), shape.pop("y")]]}
            shape["spatialReference"] = reference
            attributes = {name: _plain(feature[column]) for column, name in places.items()}
            yield {"geometry": shape, "attributes": attributes}


def _is_area(facts: RunFacts) -> bool:
    return QgsWkbTypes.geometryType(facts.geometry) == Qgis.GeometryType.Polygon


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    return value if isinstance(value, (int, float, str)) else None


def layer_definition(
    name: str, definition: ModelDefinition, facts: RunFacts, extent: Mapping[str, Any]
) -> dict[str, Any]:
    """Describe the layer of a new hosted service, as addToDefinition takes it.

    Args:
        name: Of the layer.
        definition: The model: its classes have colours.
        facts: The objects' columns and geometry type.
        extent: In Esri's form.
    """
    family = QgsWkbTypes.geometryType(facts.geometry)
    kind = next(key for key, value in _FAMILIES.items() if value == family)
    fields = [
        {"name": "OBJECTID", "type": "esriFieldTypeOID", "alias": "OBJECTID", "nullable": False, "editable": False},
        {
            "name": "GlobalID", "type": "esriFieldTypeGlobalID", "alias": "GlobalID", "nullable": False,
            "editable": False, "length": 38, "defaultValue": "NEWID() WITH VALUES",
        },
        *(new_field(column) for column in columns(facts.fields, facts.extra)),
    ]  # fmt: skip
    return {
        "name": name,
        "type": "Feature Layer",
        "displayField": esri_name(facts.fields.class_name),
        "description": "",
        "geometryType": kind,
        "hasM": False,
        "hasZ": False,
        "objectIdField": "OBJECTID",
        "globalIdField": "GlobalID",
        "fields": fields,
        "indexes": [{"name": "JobIdIndex", "fields": JOB_COLUMN, "isAscending": True, "isUnique": False}],
        "types": [],
        "templates": [],
        "extent": dict(extent),
        "drawingInfo": {"renderer": _renderer(definition, facts, family)},
        "capabilities": "Create,Delete,Query,Update,Editing,Sync",
        "maxRecordCount": 2000,
        "supportedQueryFormats": "JSON",
        "allowGeometryUpdates": True,
    }


def new_field(column: Column) -> dict[str, Any]:
    """Describe the field for a column in a new feature layer."""
    kind = kind_of(column.type)
    # Numbers of tiles and whole numbers of models may be larger than Esri's integers.
    is_long = column.type == QMetaType.Type.LongLong
    esri_type = "esriFieldTypeDouble" if is_long else _NEW_TYPES[kind]
    length = {"length": _JOB_LENGTH if column.name == JOB_COLUMN else _TEXT_LENGTH} if kind == TEXT else {}
    name = esri_name(column.name)
    return {"name": name, "type": esri_type, "alias": column.name, "nullable": True, "editable": True, **length}


def esri_name(name: str) -> str:
    """Give a field name that ArcGIS takes: letters, digits and underscores, a letter first, at most 31."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in name)[:30]
    return plain if plain[:1].isalpha() else f"f{plain}"


def _renderer(definition: ModelDefinition, facts: RunFacts, family: Qgis.GeometryType) -> dict[str, Any]:
    classes: Iterable[Any] = definition.classes
    return {
        "type": "uniqueValue",
        "field1": esri_name(facts.fields.class_name),
        "defaultSymbol": _symbol((120, 120, 120), family),
        "defaultLabel": "other",
        "uniqueValueInfos": [
            {"value": item.name, "label": item.name, "symbol": _symbol(item.color, family)} for item in classes
        ],
    }


def _symbol(color: Sequence[int], family: Qgis.GeometryType) -> dict[str, Any]:
    line = {"type": "esriSLS", "style": "esriSLSSolid", "color": [*color, 255], "width": 1.5}
    if family == Qgis.GeometryType.Line:
        return line
    if family == Qgis.GeometryType.Point:
        return {"type": "esriSMS", "style": "esriSMSCircle", "color": [*color, 255], "size": 6}
    return {"type": "esriSFS", "style": "esriSFSSolid", "color": [*color, 30], "outline": line}


def as_extent(crs: QgsCoordinateReferenceSystem, shape: QgsGeometry) -> dict[str, Any]:
    """Give the extent of a geometry in Esri's form."""
    box = shape.boundingBox()
    corners = {"xmin": box.xMinimum(), "ymin": box.yMinimum(), "xmax": box.xMaximum(), "ymax": box.yMaximum()}
    return {**corners, "spatialReference": as_spatial_reference(crs)}
