"""Files of finished objects: how the worker hands features over to QGIS.

One .npz file a batch, written by numpy without pickling: geometry as WKB in map coordinates, the columns that every
object has, and as JSON the attributes that only some models' objects have. Objects are complete and final: nothing that
is written here is taken back later.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CLASS_TEXT = "ClassText"
"""The attribute in which a package's own program calls an object's class, in its own words."""


@dataclass(frozen=True, eq=False)
class MapObjects:
    """N finished objects.

    Shape:
        wkb: list of N bytes objects; scores (N,) float32 in 0..1; labels (N,) int32, indices into the model
        definition's classes; tiles (N,) int64, number of the tile that found the object; is_cut (N,) bool, the
        object reaches the edge of the raster, or of what its tile saw, and may go on there; attributes: list of N
        dicts of JSON values, or None where the objects have none of their own.

    Units/space:
        Geometries in map coordinates of the raster's coordinate reference system.
    """

    wkb: list[bytes]
    scores: NDArray[np.float32]
    labels: NDArray[np.int32]
    tiles: NDArray[np.int64]
    is_cut: NDArray[np.bool_]
    attributes: list[dict[str, Any]] | None = None

    def __len__(self) -> int:
        """Give the number of objects."""
        return len(self.wkb)

    def foreign_class(self, index: int, name: str, value: int) -> str | None:
        """Give what a package's program calls an object's class, where that is not the class that its label stands for.

        Args:
            index: The object.
            name: Name of the class of its label.
            value: Its value.
        """
        return foreign_class(self.attributes[index], name, value) if self.attributes is not None else None


def foreign_class(attributes: Mapping[str, Any], name: str, value: int) -> str | None:
    """Give the program's own word for an object's class, see `MapObjects.foreign_class`."""
    text = attributes.get(CLASS_TEXT)
    if not isinstance(text, str) or text.casefold() in (name.casefold(), str(value)):
        return None
    return text


def write_objects(path: Path, objects: MapObjects) -> None:
    """Write one batch of objects."""
    columns: dict[str, Any] = {
        "scores": objects.scores,
        "labels": objects.labels,
        "tiles": objects.tiles,
        "is_cut": objects.is_cut,
    }
    if objects.attributes is not None:
        columns["attributes"] = np.frombuffer(json.dumps(objects.attributes).encode(), dtype=np.uint8)
    with path.open("wb") as stream:
        np.savez(
            stream,
            wkb=np.frombuffer(b"".join(objects.wkb), dtype=np.uint8),
            ends=np.cumsum([len(geometry) for geometry in objects.wkb], dtype=np.int64),
            **columns,
        )


def read_objects(path: Path) -> MapObjects:
    """Read a batch that `write_objects` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        return MapObjects(
            list(_split(arrays["wkb"].tobytes(), arrays["ends"])),
            arrays["scores"],
            arrays["labels"],
            arrays["tiles"],
            arrays["is_cut"],
            json.loads(arrays["attributes"].tobytes()) if "attributes" in arrays else None,
        )


def _split(data: bytes, ends: NDArray[np.int64]) -> Iterator[bytes]:
    start = 0
    for end in ends.tolist():
        yield data[start:end]
        start = end
