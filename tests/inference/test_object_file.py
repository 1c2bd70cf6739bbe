from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kestrel.inference.object_file import MapObjects, read_objects, write_objects


@pytest.mark.parametrize("attributes", [None, [{"Label": "\u00e9"}, {"Label": None, "height": 2.5}]])
def test_what_is_written_is_read_again(tmp_path: Path, attributes: list[dict[str, Any]] | None) -> None:
    objects = MapObjects(
        [b"one", b"second"], np.array([0.5, 1], np.float32), np.array([0, 3], np.int32), np.array([7, 2**40]),
        np.array([True, False]), attributes,
    )  # fmt: skip
    write_objects(tmp_path / "objects-1.npz", objects)
    again = read_objects(tmp_path / "objects-1.npz")
    assert (objects.wkb, attributes) == (again.wkb, again.attributes)
    for name in ("scores", "labels", "tiles", "is_cut"):
        assert getattr(objects, name).tolist() == getattr(again, name).tolist()


@pytest.mark.parametrize(
    ("text", "expected"), [(None, None), ("tree", None), ("7", None), ("Shrub", "Shrub"), (3, None)]
)
def test_a_class_in_the_programs_own_words_is_told_where_it_is_another_one(text: Any, expected: str | None) -> None:
    objects = MapObjects(
        [b""], np.ones(1, np.float32), np.zeros(1, np.int32), np.zeros(1, np.int64), np.zeros(1, bool),
        [{"ClassText": text}],
    )  # fmt: skip
    assert expected == objects.foreign_class(0, "Tree", 7)
