"""A whole run of the worker on pixels that QGIS hands over: what fails is told, and nothing is a silent hole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kestrel.inference.detect import detect
from kestrel.inference.errors import RasterFetchError
from kestrel.inference.events import Message, Objects
from kestrel.inference.job import DetectionJob
from kestrel.inference.object_file import read_objects
from kestrel.inference.rasters import picture as picture_module
from kestrel.inference.rasters.access import RasterAccess
from kestrel.tests.fixtures.onnx_graphs import cell_network
from kestrel.tests.fixtures.picture_host import LEFT, SIDE, Host, without
from kestrel.tests.fixtures.rasters import cells
from kestrel.tests.fixtures.runs import never, write_definition

LIT = [(0, 1, 2), (1, 3, 7), (2, 9, 9), (0, 9, 0), (1, 0, 9), (2, 5, 5)]
"""Band, row, column of the bright cells: the band is the class."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_module, "_FIRST_PAUSE", 0.0)
    monkeypatch.setattr(picture_module, "PATIENCE", 0.2)


def run(host: Host, folder: Path) -> int:
    """Run, and give the number of objects."""
    cell_network(folder / "cells.onnx", 3)
    model = write_definition(folder, "cells.onnx", 3, input={"scale": 1 / 255})
    (folder / "job").mkdir()
    job = DetectionJob("test", (host.item(block=16),), str(model), processor="cpu", parallel_processing_factor="2",
                       arguments={"tile_size": 32, "padding": 8})  # fmt: skip
    access = RasterAccess(never, ask=host.ask, report=host.events.append)
    detect(job, folder / "job", host.events.append, never, access)
    return sum(len(read_objects(Path(event.path))) for event in host.events if isinstance(event, Objects))


def told(host: Host, name: str) -> list[str]:
    return [event.text for event in host.events if isinstance(event, Message) and event.id == name]


def test_pixels_that_come_late_give_all_objects(tmp_path: Path) -> None:
    host = Host(cells(3, 10, 10, LIT), fault=lambda p, extent, n: without(p, slice(4 * n, None)) if n < 3 else p)
    assert run(host, tmp_path) == len(LIT)
    assert told(host, "quarantined") == told(host, "coverage") == []


def test_pixels_that_never_come_put_their_tiles_aside_and_the_user_is_told_which(tmp_path: Path) -> None:
    last = LEFT + 64 * SIDE
    host = Host(cells(3, 10, 10, LIT), fault=lambda p, extent, n: without(p, slice(None)) if extent[0] == last else p)
    assert 0 < run(host, tmp_path) < len(LIT)
    (text,) = told(host, "quarantined")
    assert "tiles did not come from their server and are missing from the result: columns" in text
    assert told(host, "coverage") == []


def test_a_server_that_gives_nothing_ends_the_run_with_an_error(tmp_path: Path) -> None:
    host = Host(cells(3, 10, 10, LIT), fault=lambda p, extent, n: without(p, slice(None)))
    with pytest.raises(RasterFetchError, match="tiles"):
        run(host, tmp_path)


def test_a_place_without_a_picture_has_no_objects_and_is_told_as_a_share(tmp_path: Path) -> None:
    cover = np.ones((80, 80), np.bool_)
    cover[:, 40:] = False
    host = Host(cells(3, 10, 10, LIT), cover)
    assert run(host, tmp_path) == sum(column < 5 for _, _, column in LIT)
    assert told(host, "coverage") == ["50 % of the searched area had no picture in 'tiles': nothing is found there."]
