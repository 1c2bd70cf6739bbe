"""Detected objects -> features: the only place where the core's values become QGIS's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qgis.core import QgsFeature, QgsFeatureSink, QgsField, QgsFields, QgsGeometry, QgsVectorLayer
from qgis.PyQt.QtCore import QMetaType

from ..inference.errors import JobError, OutputError
from ..inference.models.definition import ModelClass, ModelDefinition
from ..inference.object_file import MapObjects, read_objects

_BATCH = 1000
_FORBIDDEN = ("fid", "ogc_fid", "geom", "geometry")


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
class RunFacts:
    """What every object of a run has in common."""

    definition: ModelDefinition
    job_id: str
    fields: FieldNames


Value = Callable[[MapObjects, int, RunFacts], Any]


@dataclass(frozen=True)
class Column:
    """One field of the output, and how an object fills it."""

    name: str
    type: QMetaType.Type
    value: Value


def _class(objects: MapObjects, index: int, run: RunFacts) -> ModelClass:
    return run.definition.classes[objects.labels[index]]


_FIXED_COLUMNS = (
    Column("ClassValue", QMetaType.Type.Int, lambda objects, i, run: _class(objects, i, run).value),
    Column("ModelName", QMetaType.Type.QString, lambda objects, i, run: run.definition.name),
    Column("Tile", QMetaType.Type.LongLong, lambda objects, i, run: int(objects.tiles[i])),
    Column("CutByEdge", QMetaType.Type.Bool, lambda objects, i, run: bool(objects.is_cut[i])),
    Column("JobId", QMetaType.Type.QString, lambda objects, i, run: run.job_id),
)


def columns(names: FieldNames) -> tuple[Column, ...]:
    """Give the fields of the output in order."""
    return (
        Column(names.class_name, QMetaType.Type.QString, lambda objects, i, run: _class(objects, i, run).name),
        Column(names.confidence, QMetaType.Type.Double, lambda objects, i, run: percent(objects.scores[i])),
        *_FIXED_COLUMNS,
    )


def percent(score: float) -> float:
    """Give a score of 0..1 as 0..100, with the digits that a 32-bit score has."""
    return round(float(score) * 100, 4)


def output_fields(names: FieldNames) -> QgsFields:
    """Give the fields of the output layer."""
    fields = QgsFields()
    for column in columns(names):
        fields.append(QgsField(column.name, column.type))
    return fields


def features(objects: MapObjects, run: RunFacts) -> Iterator[QgsFeature]:
    """Turn objects into features, in their order."""
    table, fields = columns(run.fields), output_fields(run.fields)
    for index, wkb in enumerate(objects.wkb):
        feature = QgsFeature(fields)
        geometry = QgsGeometry()
        geometry.fromWkb(wkb)
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
        counts.update(run.definition.classes[label].name for label in objects.labels.tolist())
    # QGIS 3.44 and later can say that the last write failed.
    if hasattr(sink, "finalize"):
        sink.finalize()
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
