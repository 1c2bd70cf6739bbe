"""The same objects through a server as from the file, and what the server's faults do to a run."""

from __future__ import annotations

import json
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from kestrel.inference.detect import detect
from kestrel.inference.errors import CredentialError, JobError, NetworkError
from kestrel.inference.events import Canceled, Objects, WorkerEvent
from kestrel.inference.job import DetectionJob, RasterItem
from kestrel.inference.net.limits import HttpLimits
from kestrel.inference.object_file import read_objects
from kestrel.inference.rasters import image_export
from kestrel.inference.rasters.access import RasterAccess
from kestrel.inference.secrets import Secrets
from kestrel.tests.fixtures.onnx_graphs import cell_network
from kestrel.tests.fixtures.rasters import NORTH_UP, cells, items, write_raster
from kestrel.tests.fixtures.runs import write_definition
from kestrel.tests.fixtures.servers.base import Request
from kestrel.tests.fixtures.servers.image_server import ArcGis, image_server
from kestrel.tests.fixtures.servers.pixels import open_image

LIT = [(0, 1, 2), (1, 3, 7), (2, 9, 9), (0, 13, 0), (1, 0, 14), (2, 12, 10)]
TOKEN = "canary-token"


@pytest.fixture
def raster(tmp_path: Path) -> Path:
    return write_raster(tmp_path / "r.tif", cells(3, 16, 16, LIT), NORTH_UP)


@pytest.fixture
def model(tmp_path: Path) -> str:
    cell_network(tmp_path / "cells.onnx", 3)
    given = {"bands": [0, 1, 2], "scale": 1 / 255}
    path = write_definition(tmp_path, str(tmp_path / "cells.onnx"), 3, input=given)
    return json.dumps(json.loads(path.read_text(encoding="utf-8")))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_export, "_BLOCK", 32)


def run(folder: Path, rasters: tuple[RasterItem, ...], model: str, access: RasterAccess, **members: Any) -> Any:
    folder.mkdir(exist_ok=True)
    events: list[WorkerEvent] = []
    arguments = {"tile_size": 32, "padding": 8, "batch_size": 1}
    job = DetectionJob("test", rasters, model, arguments=arguments, processor="cpu", **members)
    detect(job, folder, events.append, access.is_cancelled, access)
    parts = [read_objects(Path(event.path)) for event in events if isinstance(event, Objects)]
    return [(wkb, float(score), int(label)) for part in parts
            for wkb, score, label in zip(part.wkb, part.scores, part.labels)]  # fmt: skip


def service(arcgis: ArcGis, kind: str = "image") -> tuple[RasterItem, ...]:
    return (RasterItem("image_service", getattr(arcgis, kind)),)


def signed(arcgis: ArcGis) -> RasterAccess:
    return RasterAccess(
        secrets=Secrets(({"origin": arcgis.server.url, "headers": {"Authorization": f"Bearer {TOKEN}"}},))
    )


def test_a_service_gives_the_objects_of_the_file(tmp_path: Path, raster: Path, model: str) -> None:
    local = run(tmp_path / "local", items(raster), model, RasterAccess())
    assert len(LIT) == len(local)
    with image_server(open_image(raster), token=TOKEN, max_size=(40, 30)) as arcgis:
        assert local == run(tmp_path / "image", service(arcgis), model, signed(arcgis))
        assert local == run(tmp_path / "map", service(arcgis, "map"), model, signed(arcgis), cell_size=0.5)
    kept = b"".join(path.read_bytes() for path in (tmp_path / "image").rglob("*") if path.is_file())
    assert TOKEN.encode() not in kept


@pytest.mark.slow
def test_bad_replies_and_an_outage_change_nothing(tmp_path: Path, raster: Path, model: str) -> None:
    local = run(tmp_path / "local", items(raster), model, RasterAccess())
    with image_server(open_image(raster)) as arcgis:
        random_one, outage = random.Random(4), [0.0]

        def chance(_request: Request) -> str | None:
            if len(arcgis.exports()) == 9 and not outage[0]:
                outage[0] = time.monotonic() + 1.0
            if time.monotonic() < outage[0]:
                return "reset"
            return random_one.choice(["503", "html", "short", "json-error"]) if random_one.random() < 0.1 else None

        arcgis.server.chance = chance
        waits: list[str] = []
        limits = HttpLimits(2, 0.5, 5, 20, 0.02, 0.2)
        access = RasterAccess(limits=limits, on_wait=lambda reason, _seconds: waits.append(reason))
        assert local == run(tmp_path / "image", service(arcgis), model, access)
    assert len(waits) > 3


@pytest.mark.slow
def test_a_run_that_lost_its_server_goes_on_where_it_was(tmp_path: Path, raster: Path, model: str) -> None:
    impatient = RasterAccess(limits=HttpLimits(2, 0.5, 5, 0.3, 0.02, 0.2))
    local = run(tmp_path / "local", items(raster), model, RasterAccess())
    with image_server(open_image(raster)) as arcgis:
        arcgis.server.chance = lambda _request: "reset" if len(arcgis.exports()) > 18 else None
        with pytest.raises(NetworkError):
            run(tmp_path / "image", service(arcgis), model, impatient)
        arcgis.server.chance = lambda _request: None
        arcgis.server.asked.clear()
        assert local == run(tmp_path / "image", service(arcgis), model, RasterAccess())
        again = len(arcgis.exports())
        assert local == run(tmp_path / "anew", service(arcgis), model, RasterAccess())
        assert again < len(arcgis.exports()) - again


def test_a_token_that_expires_ends_the_run_with_that_reason(tmp_path: Path, raster: Path, model: str) -> None:
    with image_server(open_image(raster), token=TOKEN) as arcgis:
        handle = arcgis.handle

        def expiring(request: Request) -> Any:
            if len(arcgis.exports()) > 8:
                arcgis.settings = type(arcgis.settings)(token="new", expired=(TOKEN,))
            return handle(request)

        arcgis.server.handle = expiring
        with pytest.raises(CredentialError, match="expired"):
            run(tmp_path / "image", service(arcgis), model, signed(arcgis))


def test_a_run_is_cancelled_while_its_server_stalls(tmp_path: Path, raster: Path, model: str) -> None:
    stop = threading.Event()
    with image_server(open_image(raster)) as arcgis:

        def chance(_request: Request) -> str | None:
            if len(arcgis.exports()) <= 8:
                return None
            threading.Timer(0.3, stop.set).start()
            return "stall"

        arcgis.server.chance = chance
        with pytest.raises(Canceled):
            run(tmp_path / "image", service(arcgis), model, RasterAccess(stop.is_set))


def test_a_changed_service_is_not_gone_on_with(tmp_path: Path, raster: Path, model: str) -> None:
    with image_server(open_image(raster)) as arcgis:
        run(tmp_path / "image", service(arcgis), model, RasterAccess())
        other = write_raster(tmp_path / "other.tif", cells(3, 16, 16, LIT[:2]), NORTH_UP)
        arcgis.image_now = open_image(other)
        with pytest.raises(JobError, match="started with other input"):
            run(tmp_path / "image", service(arcgis), model, RasterAccess())
