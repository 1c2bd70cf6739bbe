"""Feature sets, as raster functions give them: JSON text with geometries in pixels of a block -> Detections.

The text comes from a program that is not Kestrel's: whatever it holds, it becomes detections or one error.

    score       Confidence, a number or a text. What is above 1 is a percentage, as ArcGIS's own functions write it; so
                a tile's scores do not depend on other tiles.
    label       the class that an attribute names (Class, Classname, Label), or whose value it holds (Classvalue,
                Value), else 0; the function's own text goes along as CLASS_TEXT, so that no class is lost.
    geometry    rings in any orientation, closed or not; what lies in two rings is a hole
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from ..detections import Detections, make_detections, no_detections, of_dimension
from ..errors import TileError
from ..models.definition import ModelClass
from ..object_file import CLASS_TEXT

MAX_BYTES = 2**28
MAX_FEATURES = 200_000
MAX_FIELDS = 100
MAX_TEXT = 2000

_CLASS_NAMES = ("class", "classname", "label", "classvalue", "value")
_TAKEN = frozenset({"oid", "fid", "objectid", "shape", "class", "confidence", CLASS_TEXT.lower()})
"""Attributes that the output has anyway."""
_TYPES = {
    "esrifieldtypestring": "text", "esrifieldtypeguid": "text", "esrifieldtypedate": "text",
    "esrifieldtypeinteger": "integer", "esrifieldtypesmallinteger": "integer", "esrifieldtypebiginteger": "integer",
    "esrifieldtypedouble": "number", "esrifieldtypesingle": "number",
}  # fmt: skip
_WHOLE = range(-(2**63), 2**63)


def fields_from_esri(told: Any) -> tuple[dict[str, str], ...]:
    """Give the fields of the output that a function's own fields become.

    Args:
        told: A list of {"name", "type", "alias"} with Esri's types.

    Returns:
        Dicts with `name`, `type` (text, integer, number) and `alias`; identifiers, geometry, class and confidence are
        left out.
    """
    fields: dict[str, dict[str, str]] = {}
    for item in told if isinstance(told, list) else []:
        if not isinstance(item, Mapping):
            continue
        name, kind = plain_text(item.get("name"), MAX_TEXT), _TYPES.get(plain_text(item.get("type"), MAX_TEXT).lower())
        if name and kind and name.lower() not in _TAKEN and name.lower() not in fields and len(fields) < MAX_FIELDS:
            fields[name.lower()] = {
                "name": name[:60],
                "type": kind,
                "alias": plain_text(item.get("alias"), 100) or name[:100],
            }
    return tuple(fields.values())


def plain_text(told: Any, most: int) -> str:
    """Give a text in one line, and without halves of characters; empty where it is no text."""
    return " ".join(_whole(told).split())[:most].strip() if isinstance(told, str) else ""


def _whole(text: str) -> str:
    """Replace halves of characters, which JSON can hold and no file."""
    return text.encode("utf-8", "replace").decode()


@dataclass(frozen=True)
class FeatureReader:
    """Reads the feature sets of one model.

    Args:
        classes: The definition's classes.
        fields: What `fields_from_esri` gave.
        padding: Pixels between the origins of tile and block.
    """

    classes: Sequence[ModelClass]
    fields: Sequence[Mapping[str, str]]
    padding: int

    def read(self, text: bytes) -> Detections:
        """Read the features of one block.

        Raises:
            TileError: the text is no feature set.
        """
        try:
            found = [item for feature in _features(text) for item in self._objects(feature)]
        except RecursionError as error:
            raise TileError("The model gave features with attributes that are nested too deeply.") from error
        if not found:
            return no_detections()
        shapes, scores, labels, attributes = zip(*found)
        boxes = shapely.bounds(np.array(shapes, dtype=object))
        return make_detections(boxes, np.array(scores), np.array(labels), None, shapes, attributes)

    def _objects(self, feature: Any) -> Iterator[tuple[BaseGeometry, float, int, dict[str, Any]]]:
        """Give the objects of a feature: one, or of a multipoint one a point."""
        if not isinstance(feature, Mapping) or not isinstance(feature.get("geometry"), Mapping):
            return
        told = feature.get("attributes")
        told = {str(name).lower(): value for name, value in told.items()} if isinstance(told, Mapping) else {}
        label, class_text = self._class(told)
        attributes = {field["name"]: _value(told.get(field["name"].lower()), field["type"]) for field in self.fields}
        attributes[CLASS_TEXT] = class_text
        score = _score(told.get("confidence"))
        for shape in _shapes(feature["geometry"]):
            yield shapely.transform(shape, lambda points: points + self.padding), score, label, attributes

    def _class(self, told: Mapping[str, Any]) -> tuple[int, str | None]:
        """Give the label, and the class as the function calls it."""
        texts = [_whole(str(told[name])).strip() for name in _CLASS_NAMES if told.get(name) not in (None, "")]
        for text in texts:
            label = self._label(text)
            if label is not None:
                return label, texts[0][:MAX_TEXT]
        return 0, texts[0][:MAX_TEXT] if texts else None

    def _label(self, text: str) -> int | None:
        names = [item.name for item in self.classes]
        folded = [name.casefold() for name in names]
        values = [item.value for item in self.classes]
        for known, wanted in ((names, text), (folded, text.casefold()), (values, _number(text))):
            if wanted in known:
                return known.index(wanted)  # type: ignore[arg-type]
        return None


def _features(text: bytes) -> list[Any]:
    if len(text) > MAX_BYTES:
        raise TileError("The model gave more than 256 MB of features for one tile.")
    if not text.strip():
        return []
    try:
        content = json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise TileError(f"The model gave features that cannot be read: {_short(error)}.") from error
    features = content.get("features") if isinstance(content, dict) else None
    if not isinstance(features, list):
        raise TileError("The model gave something that is no set of features.")
    if len(features) > MAX_FEATURES:
        raise TileError(f"The model gave {len(features)} objects for one tile; more than {MAX_FEATURES} are not read.")
    return features


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


# -- Attributes --------------------------------------------------------------------------------------------------------


def _score(value: Any) -> float:
    """Give a confidence as 0 to 1; what has none is certain."""
    number = _number(value)
    if number is None:
        return 1.0
    return min(max(number / 100 if number > 1 else number, 0.0), 1.0)


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        value = value.strip().rstrip("%")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _value(value: Any, kind: str) -> Any:
    """Give an attribute in its field's type, None where it is none."""
    if value is None:
        return None
    if kind == "text":
        return (_whole(value) if isinstance(value, str) else json.dumps(value))[:MAX_TEXT]
    number = _number(value)
    if number is None or kind == "number":
        return number
    whole = value if isinstance(value, int) else round(number)
    return int(whole) if whole in _WHOLE else None


# -- Geometry ----------------------------------------------------------------------------------------------------------


def _shapes(geometry: Mapping[str, Any]) -> list[BaseGeometry]:
    """Give the shapes of an Esri geometry; none where it is empty or damaged."""
    try:
        if "rings" in geometry:
            return [shape for shape in [_polygon(geometry["rings"])] if not shape.is_empty]
        if "paths" in geometry:
            lines = [shapely.LineString(points) for path in geometry["paths"] if len(points := _points(path)) > 1]
            return [lines[0] if len(lines) == 1 else shapely.MultiLineString(lines)] if lines else []
        if "points" in geometry:
            return [shapely.Point(point) for point in _points(geometry["points"])]
        if "x" in geometry and "y" in geometry:
            return [shapely.Point(point) for point in _points([[geometry["x"], geometry["y"]]])]
    except (TypeError, ValueError, IndexError, KeyError, OverflowError, shapely.errors.ShapelyError):
        return []  # an object that is nowhere
    return []


def _points(told: Iterable[Any]) -> list[tuple[float, float]]:
    """Give points, x to the right and y down; one that is not finite spoils them all."""
    points = [(float(point[0]), float(point[1])) for point in told]
    return points if all(math.isfinite(x) and math.isfinite(y) for x, y in points) else []


def _polygon(rings: Iterable[Any]) -> BaseGeometry:
    """Give what lies in an odd number of rings, whatever their orientation and order."""
    parts = [shapely.Polygon(points) for ring in rings if len(set(points := _points(ring))) > 2]
    if len(parts) == 1 and parts[0].is_valid:
        return parts[0]
    area: BaseGeometry = shapely.Polygon()
    for part in parts:
        area = area.symmetric_difference(part if part.is_valid else shapely.make_valid(part))
    return of_dimension(area, 2)
