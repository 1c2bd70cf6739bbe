"""Runs on rasters behind http: the objects are those of the local file, whatever happens on the way."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kestrel.inference.errors import JobError, NetworkError, RasterChangedError
from kestrel.inference.events import Canceled, Message, WorkerEvent
from kestrel.inference.net.limits import HttpLimits
from kestrel.inference.rasters.access import RasterAccess
from kestrel.tests.fixtures.onnx_graphs import cell_network
from kestrel.tests.fixtures.rasters import cells, write_raster
from kestrel.tests.fixtures.runs import CancelAfter, Result, run, write_definition
from kestrel.tests.fixtures.servers.faults import FaultPlan
from kestrel.tests.fixtures.servers.range_server import WebFiles, serving_files

LIMITS = HttpLimits(connect=2, read=1, total=30, patience=30, first_pause=0.05, longest_pause=0.5)
ACCESS = RasterAccess(limits=LIMITS)
SIDE = 60
"""Cells along each side of the raster."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    cell_network(folder / "cells.onnx", 3)
    return write_definition(folder, "cells.onnx")


@pytest.fixture(scope="module")
def raster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many bright cells, in a file of small parts."""
    random = np.random.default_rng(0)
    lit = [(int(band), int(row), int(column)) for band, row, column in random.integers(0, (3, SIDE, SIDE), (300, 3))]
    pixels = cells(3, SIDE, SIDE, lit)
    pixels += random.integers(0, 5, pixels.shape, np.uint8)  # so that it does not become a few bytes
    return write_raster(tmp_path_factory.mktemp("raster") / "r.tif", pixels, tiled=True, blockxsize=64, blockysize=64)


def detect(folder: Path, source: str | Path, model: Path, **options: Any) -> Result:
    return run(folder, source, model, arguments={"tile_size": 32, "padding": 8}, **{"access": ACCESS, **options})


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many requests for a small file."""
    monkeypatch.setattr("kestrel.inference.rasters.remote_bytes.BLOCK", 2048)
    monkeypatch.setattr("kestrel.inference.rasters.remote_bytes._RUN", 4)


@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks")
def test_bad_answers_and_an_outage_change_no_object(model: Path, raster: Path, tmp_path: Path) -> None:
    local = detect(tmp_path / "local", raster, model)
    with serving_files({"/r.tif": raster.read_bytes()}) as (server, _):
        server.plan = plan = FaultPlan(0.05, outage_after=60, outage=2.0)
        remote = detect(tmp_path / "remote", f"{server.url}/r.tif", model)
    assert len(local) > 200
    assert remote.content() == local.content()
    assert plan.count > 100 and "reset" in plan.given and {"html", "short", "503"} & set(plan.given)
    told = [message.text for message in remote.messages("info") if message.id == "waiting"]
    assert len(told) == 1 and "It is tried again in 1 s." in told[0]


@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks")
def test_a_run_whose_network_is_gone_stops_and_the_next_one_goes_on(model: Path, raster: Path, tmp_path: Path) -> None:
    local = detect(tmp_path / "local", raster, model)
    with serving_files({"/r.tif": raster.read_bytes()}) as (server, files):
        source, folder = f"{server.url}/r.tif", tmp_path / "remote"
        server.plan = FaultPlan(0, outage_after=60, outage=3600)
        with pytest.raises(NetworkError, match="what is done already is kept"):
            detect(folder, source, model, access=RasterAccess(limits=replace(LIMITS, patience=0.5)))
        n_done = CancelAfter(folder, 0).n_done()
        server.plan.clear()
        server.plan = FaultPlan(0)
        files.n_bytes = 0
        again = detect(folder, source, model)
        assert 0 < n_done < again.summary["tiles"]
        assert again.summary["tiles_by_state"]["quarantined"] == 0
        assert again.content() == local.content()
        assert files.n_bytes < len(files.content["/r.tif"])  # what was done is not read again


def test_a_raster_that_was_replaced_between_two_runs_is_searched_anew(
    model: Path, raster: Path, tmp_path: Path
) -> None:
    with serving_files({"/r.tif": raster.read_bytes()}) as (server, files):
        source, folder = f"{server.url}/r.tif", tmp_path / "remote"
        with pytest.raises(Canceled):
            detect(folder, source, model, is_cancelled=CancelAfter(folder, 20))
        files.etags["/r.tif"] = '"2"'
        with pytest.raises(JobError):
            detect(folder, source, model)


@pytest.mark.usefixtures("small_blocks")
def test_a_cancelled_run_ends_while_its_readers_wait_for_a_server(model: Path, raster: Path, tmp_path: Path) -> None:
    cancel = threading.Event()
    events: list[WorkerEvent] = []
    limits = replace(LIMITS, first_pause=60, longest_pause=60, patience=600)

    def is_cancelled() -> bool:
        if any(isinstance(event, Message) and event.id == "waiting" for event in events):
            cancel.set()
        return cancel.is_set()

    with serving_files({"/r.tif": raster.read_bytes()}) as (server, _):
        server.plan = FaultPlan(0, outage_after=60, outage=3600)
        access = RasterAccess(is_cancelled, limits=limits)
        with pytest.raises(Canceled):
            detect(
                tmp_path / "r", f"{server.url}/r.tif", model, is_cancelled=is_cancelled, events=events, access=access
            )


def test_a_file_that_changes_while_it_is_searched_is_told(model: Path, raster: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.tif"
    copy.write_bytes(raster.read_bytes())
    watch = CancelAfter(tmp_path / "run", 20)

    def touch() -> bool:
        if watch() and copy.stat().st_size == raster.stat().st_size:
            with copy.open("ab") as file:
                file.write(b"more")
        return False

    with pytest.raises(RasterChangedError, match="was changed while it was read"):
        detect(tmp_path / "run", copy, model, is_cancelled=touch)


@pytest.mark.usefixtures("small_blocks")
def test_a_remote_file_that_changes_while_it_is_searched_ends_the_run(
    model: Path, raster: Path, tmp_path: Path
) -> None:
    class Replaced(WebFiles):
        def __call__(self, request: Any) -> Any:
            if self.n_bytes > 100_000:
                self.etags["/r.tif"] = '"2"'
            return super().__call__(request)

    with serving_files({"/r.tif": raster.read_bytes()}) as (server, files):
        server.handle = Replaced(files.content)
        with pytest.raises(RasterChangedError):
            detect(tmp_path / "run", f"{server.url}/r.tif", model)
