"""Detected objects -> features: the only place where the core's values become QGIS's."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qgis.core import Qgis, QgsFeature, QgsFeatureSink, QgsField, QgsFields, QgsGeometry, QgsVectorLayer, QgsWkbTypes
from qgis.PyQt.QtCore import QMetaType

from ..inference.errors import JobError, OutputError
from ..inference.models.definition import ModelClass, ModelDefinition
from ..inference.object_file import MapObjects, read_objects
from .outputs.placement import Placement
from .text import to_plain

_BATCH = 1000
_FORBIDDEN = ("fid", "ogc_fid", "geom", "geometry")
_MOST_EXTRA_FIELDS = 200
_LONGEST_NAME = 60
_LONGEST_TEXT = 2**16
_LARGEST_INTEGER = 2**63
_MULTI_BIT = 3
"""WKB's types of parts: MultiPoint is Point + 3, and so on. Source: OGC 06-103r4, table 7."""


@dataclass(frozen=True)
class FieldNames:
    """The names that the user may choose.

    Raises:
        JobError: a name is empty, or stands for two fields.
    """

    confidence: str = "Confidence"
    class_name: str = "Class"

    def __post_init__(self) -> None:
        """Check that all fields of the output have names of their own."""
        others = [column.name for column in _FIXED_COLUMNS]
        for label, name in (("confidence score", self.confidence), ("class", self.class_name)):
            if not name:
                raise JobError(
                    f"The name of the {label} field is empty.", hint="Write for example Confidence or Class."
                )
            if name.lower() in _FORBIDDEN:
                raise JobError(f"The {label} field cannot be named '{name}': the file format uses that name itself.")
        names = [self.confidence, self.class_name, *others]
        twice = [name for name, count in Counter(name.lower() for name in names).items() if count > 1]
        if twice:
            raise JobError(
                f"Two fields of the output would be named '{twice[0]}'.", hint=f"Other fields are: {', '.join(others)}."
            )


@dataclass(frozen=True)
class ExtraField:
    """A field that only the objects of some models have.

    Attributes:
        key: How the model calls it.
        name: Name of the field.
        kind: "text", "integer" or "number".
        alias: How people call it; empty: as the field.
    """

    key: str
    name: str
    kind: str
    alias: str = ""


@dataclass(frozen=True)
class RunFacts:
    """What every object of a run has in common."""

    definition: ModelDefinition
    job_id: str
    fields: FieldNames
    extra: tuple[ExtraField, ...] = ()
    geometry: Qgis.WkbType = Qgis.WkbType.Polygon
    placement: Placement = field(default_factory=Placement)
    """Where the objects come from and where the output has them."""


Value = Callable[[MapObjects, int, RunFacts], Any]


@dataclass(frozen=True)
class Column:
    """One field of the output, and how an object fills it."""

    name: str
    type: QMetaType.Type
    value: Value


def _class(objects: MapObjects, index: int, run: RunFacts) -> tuple[str, int | None]:
    """Give name and value of an object's class; one that only the model's program knows has no value."""
    known: ModelClass = run.definition.classes[objects.labels[index]]
    foreign = objects.foreign_class(index, known.name, known.value)
    return (known.name, known.value) if foreign is None else (foreign, None)


_FIXED_COLUMNS = (
    Column("ClassValue", QMetaType.Type.Int, lambda objects, i, run: _class(objects, i, run)[1]),
    Column("ModelName", QMetaType.Type.QString, lambda objects, i, run: run.definition.name),
    Column("Tile", QMetaType.Type.LongLong, lambda objects, i, run: int(objects.tiles[i])),
    Column("CutByEdge", QMetaType.Type.Bool, lambda objects, i, run: bool(objects.is_cut[i])),
    Column("JobId", QMetaType.Type.QString, lambda objects, i, run: run.job_id),
)


def columns(names: FieldNames, extra: Sequence[ExtraField] = ()) -> tuple[Column, ...]:
    """Give the fields of the output in order."""
    return (
        Column(names.class_name, QMetaType.Type.QString, lambda objects, i, run: _class(objects, i, run)[0]),
        Column(names.confidence, QMetaType.Type.Double, lambda objects, i, run: percent(objects.scores[i])),
        *_FIXED_COLUMNS,
        *(Column(item.name, _TYPES[item.kind], _attribute(item)) for item in extra),
    )


_TYPES = {
    "text": QMetaType.Type.QString,
    "integer": QMetaType.Type.LongLong,
    "number": QMetaType.Type.Double,
}


def _attribute(item: ExtraField) -> Value:
    def value(objects: MapObjects, index: int, run: RunFacts) -> Any:
        attributes = objects.attributes[index] if objects.attributes is not None else None
        return _of_kind(item.kind, (attributes or {}).get(item.key))

    return value


def _of_kind(kind: str, value: Any) -> Any:
    """Give what a model's program says about an object in the field's type; None where it is something else."""
    if value is None:
        return None
    if kind == "text":
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return text[:_LONGEST_TEXT]
    try:
        number = float(value)
        whole = int(value) if kind == "integer" else 0
    except (TypeError, ValueError, OverflowError):
        return None
    if number - number != 0:  # NaN, infinite
        return None
    return number if kind == "number" else whole if abs(whole) < _LARGEST_INTEGER else None


def extra_fields(announced: Any, names: FieldNames) -> tuple[ExtraField, ...]:
    """Read the fields that a model's objects have besides Kestrel's own.

    Args:
        announced: The worker's list of {"name", "type", "alias"}; what is no such entry is passed over.
        names: The names that are taken already.

    Returns:
        The fields, with names that are not taken and that file formats bear.
    """
    taken = {column.name.lower() for column in columns(names)} | set(_FORBIDDEN)
    fields: list[ExtraField] = []
    for entry in announced if isinstance(announced, (list, tuple)) else ():
        key = entry.get("name") if isinstance(entry, Mapping) else None
        if not isinstance(key, str) or len(fields) == _MOST_EXTRA_FIELDS:
            continue
        name = _free_name(key, taken)
        taken.add(name.lower())
        kind, alias = str(entry.get("type")), str(entry.get("alias") or "")
        fields.append(ExtraField(key, name, kind if kind in _TYPES else "text", to_plain(alias, 80)))
    return tuple(fields)


def _free_name(key: str, taken: set[str]) -> str:
    """Give a field name of letters, digits and underscores that is not taken."""
    safe = "".join(character if character.isalnum() else "_" for character in key)[:_LONGEST_NAME].strip("_")
    safe = safe or "field"
    candidates = [safe, *(f"{safe}_{number}" for number in range(2, _MOST_EXTRA_FIELDS + len(taken) + 2))]
    return next(name for name in candidates if name.lower() not in taken)


def percent(score: float) -> float:
    """Give a score of 0..1 as 0..100, with the digits that a 32-bit score has."""
    return round(float(score) * 100, 4)


def output_fields(names: FieldNames, extra: Sequence[ExtraField] = ()) -> QgsFields:
    """Give the fields of the output layer."""
    fields = QgsFields()
    aliases = {item.name: item.alias for item in extra if item.alias != item.name}
    for column in columns(names, extra):
        made = QgsField(column.name, column.type)
        made.setAlias(aliases.get(column.name, ""))
        fields.append(made)
    return fields


def output_geometry(kind: Any, files: Iterable[Path]) -> Qgis.WkbType:
    """Give the geometry type of the output layer.

    Outlines are always multipolygons: file formats keep the two types apart, and a seam may leave an object in parts.
    Points and lines have parts only where an object does.

    Args:
        kind: What the worker says of the objects: "box", "polygon", "point", "line".
        files: Files of objects.
    """
    if kind == "polygon":
        return Qgis.WkbType.MultiPolygon
    single = {"point": Qgis.WkbType.Point, "line": Qgis.WkbType.LineString}.get(str(kind), Qgis.WkbType.Polygon)
    if single == Qgis.WkbType.Polygon:
        return single
    has_parts = any(_wkb_type(wkb) > _MULTI_BIT for path in files for wkb in read_objects(path).wkb)
    return QgsWkbTypes.multiType(single) if has_parts else single


def _wkb_type(wkb: bytes) -> int:
    return int.from_bytes(wkb[1:5], "little" if wkb[:1] == b"\x01" else "big")


def features(objects: MapObjects, run: RunFacts) -> Iterator[QgsFeature]:
    """Turn objects into features, in their order."""
    table, fields = columns(run.fields, run.extra), output_fields(run.fields, run.extra)
    is_multi, move = QgsWkbTypes.isMultiType(run.geometry), run.placement.mover()
    for index, wkb in enumerate(objects.wkb):
        feature = QgsFeature(fields)
        geometry = QgsGeometry()
        geometry.fromWkb(wkb)
        if is_multi:
            geometry.convertToMultiType()
        move(geometry)
        feature.setGeometry(geometry)
        feature.setAttributes([column.value(objects, index, run) for column in table])
        yield feature


def fill_sink(sink: QgsFeatureSink, destination: str, files: Iterable[Path], run: RunFacts) -> Counter[str]:
    """Write all objects of a run and close the sink's transaction.

    Args:
        sink: Receives the features.
        destination: What parameterAsSink gave, for messages.
        files: Files of objects (object_file.py).
        run: What the objects have in common.

    Returns:
        Number of objects by class name.

    Raises:
        OutputError: the output does not take them.
    """
    counts: Counter[str] = Counter()
    for path in files:
        objects = read_objects(path)
        _add(sink, destination, list(features(objects, run)))
        counts.update(_class(objects, index, run)[0] for index in range(len(objects)))
    # QGIS 3.44 and later can say that the last write failed.
    if hasattr(sink, "finalize"):
        sink.finalize()
    return counts


def count_classes(files: Iterable[Path], run: RunFacts) -> Counter[str]:
    """Count the objects of a run by class name."""
    counts: Counter[str] = Counter()
    for path in files:
        objects = read_objects(path)
        counts.update(_class(objects, index, run)[0] for index in range(len(objects)))
    return counts


def _add(sink: QgsFeatureSink, destination: str, batch: list[QgsFeature]) -> None:
    for start in range(0, len(batch), _BATCH):
        part = batch[start : start + _BATCH]
        if not sink.addFeatures(part, QgsFeatureSink.Flag.FastInsert):
            raise output_error(destination, sink.lastError())


def check_written(destination: str, count: int) -> None:
    """Open a written file again and count: a full disk lets every single write succeed and loses the file at the end.

    Args:
        destination: What parameterAsSink gave; anything but a file is not checked.
        count: Number of objects that must be in it.

    Raises:
        OutputError: they are not.
    """
    if not Path(destination.split("|")[0]).exists():
        return
    layer = QgsVectorLayer(destination, "", "ogr")
    found = layer.featureCount() if layer.isValid() else -1
    if 0 <= found < count or not layer.isValid():
        raise output_error(destination, f"of {count} objects {max(found, 0)} can be read back")


def output_error(destination: str, reason: str) -> OutputError:
    """Give the error for an output that does not take the objects."""
    return OutputError(
        f"The objects could not be written to '{destination}': {reason or 'no reason was given'}.",
        hint="Check that the disk has room and that no other program has the file open; then start the same run again: "
        "what was found is kept.",
    )
