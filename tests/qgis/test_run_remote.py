"""Whole runs on rasters that lie elsewhere: the objects are those of the file, and nothing secret is left behind."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from osgeo import gdal
from qgis.core import QgsApplication, QgsAuthMethodConfig, QgsRasterLayer, QgsVectorLayer

from kestrel.inference.jobs import cache_folder
from kestrel.tests.fixtures.servers.range_server import serving_apart
from kestrel.tests.qgis.examples import ROOT, Listener, algorithm, context

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc"),
]

IMAGE = ROOT / "resources" / "demo" / "OSBS_029.tif"
MODEL = ROOT / "resources" / "models" / "tree_crowns.dlpk"
CANARY = "canary-of-the-store"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KESTREL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo image in blocks."""
    path = tmp_path_factory.mktemp("image") / "trees.tif"
    gdal.Translate(str(path), str(IMAGE), format="COG", creationOptions=["BLOCKSIZE=128", "COMPRESS=DEFLATE"])
    return path


class Spy(Listener):
    """Looks at all processes that this one has started, each time it is asked whether to stop."""

    def __init__(self) -> None:
        super().__init__()
        self.n_seen = 0
        self.seen = b""

    def isCanceled(self) -> bool:
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and _parent(entry) == os.getpid():
                command = _content(entry / "cmdline")
                if b"inference/worker/__main__.py" in command:
                    self.n_seen += 1
                    self.seen += command + _content(entry / "environ")
        return False


def _parent(entry: Path) -> int:
    fields = _content(entry / "stat").rpartition(b")")[2].split()
    return int(fields[1]) if fields else 0


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def detect(source: Any, output: Path, feedback: Listener | None = None, **more: Any) -> list[tuple[str, float]]:
    parameters = {
        "INPUT": source, "MODEL": str(MODEL), "OUTPUT": str(output), "PARALLEL_PROCESSING_FACTOR": "1", **more,
    }  # fmt: skip
    _, is_good = algorithm().run(parameters, context(), feedback or Listener(), catchExceptions=False)
    assert is_good
    layer = QgsVectorLayer(str(output), "out", "ogr")
    return sorted((feature.geometry().asWkt(6), feature["Confidence"]) for feature in layer.getFeatures())


def assert_no_canary(folder: Path, feedback: Spy) -> None:
    assert feedback.n_seen
    assert CANARY.encode() not in feedback.seen
    assert CANARY not in repr(feedback.said)
    left = [path for path in [*folder.rglob("*"), *cache_folder().rglob("*")] if path.is_file()]
    assert left
    assert not [path for path in left if CANARY.encode() in path.read_bytes()]


class Kept(Spy):
    """Keeps the job folder's content until the end of the run, when it is removed."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, bytes] = {}

    def isCanceled(self) -> bool:
        for path in cache_folder().rglob("*"):
            if path.is_file():
                self.files[path.name] = _content(path) or self.files.get(path.name, b"")
        return super().isCanceled()


@pytest.fixture
def basic(qgis_app: QgsApplication) -> Iterator[str]:
    """An authentication configuration with a password."""
    manager = qgis_app.authManager()
    manager.setMasterPassword("of the tests", True)
    config = QgsAuthMethodConfig()
    config.setName("basic")
    config.setMethod("Basic")
    config.setConfig("username", "me")
    config.setConfig("password", CANARY)
    assert manager.storeAuthenticationConfig(config)
    yield config.id()
    manager.removeAuthenticationConfig(config.id())


def test_a_raster_behind_a_sign_in_gives_the_objects_of_the_file(image: Path, tmp_path: Path, basic: str) -> None:
    local = detect(str(image), tmp_path / "local.gpkg")
    wanted = ("authorization", "Basic bWU6Y2FuYXJ5LW9mLXRoZS1zdG9yZQ==")
    with serving_apart({"/trees.tif": image.read_bytes()}, wanted) as server:
        layer = QgsRasterLayer(f"/vsicurl/{server.url}/trees.tif authcfg='{basic}'", "trees", "gdal")
        assert layer.isValid()
        feedback = Kept()
        remote = detect(layer, tmp_path / "remote.gpkg", feedback)
    assert len(local) > 20
    assert remote == local
    assert_no_canary(tmp_path, feedback)
    assert {"job.json", "worker.log"} <= set(feedback.files)
    assert not [name for name, content in feedback.files.items() if CANARY.encode() in content]
    assert b"Authorization" not in b"".join(feedback.files.values())


def test_a_raster_in_an_object_store_gives_the_objects_of_the_file(image: Path, tmp_path: Path) -> None:
    local = detect(str(image), tmp_path / "local.gpkg")
    with serving_apart({"/bucket/trees.tif": image.read_bytes()}, signed_by="the-key") as server:
        options = {
            "AWS_ACCESS_KEY_ID": "the-key", "AWS_SECRET_ACCESS_KEY": CANARY, "AWS_REGION": "us-east-1",
            "AWS_S3_ENDPOINT": server.url.removeprefix("http://"), "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE",
        }  # fmt: skip
        source = "/vsis3/bucket/trees.tif" + "".join(f"|credential:{key}={value}" for key, value in options.items())
        layer = QgsRasterLayer(source, "trees", "gdal")
        assert layer.isValid()
        feedback = Kept()
        remote = detect(layer, tmp_path / "remote.gpkg", feedback)
    assert remote == local
    assert_no_canary(tmp_path, feedback)
    assert not [name for name, content in feedback.files.items() if CANARY.encode() in content]


@pytest.mark.parametrize("is_layer", [True, False])
def test_an_address_that_is_signed_for_a_time_is_read_and_its_signature_kept_nowhere(
    image: Path, tmp_path: Path, *, is_layer: bool
) -> None:
    local = detect(str(image), tmp_path / "local.gpkg")
    with serving_apart({"/trees.tif": image.read_bytes()}, query=CANARY) as server:
        source = f"/vsicurl/{server.url}/trees.tif?se=2027&sig={CANARY}"
        feedback = Kept()
        if is_layer:
            layer = QgsRasterLayer(source, "trees", "gdal")
            assert layer.isValid()
            remote = detect(layer, tmp_path / "remote.gpkg", feedback)
        else:
            remote = detect(None, tmp_path / "remote.gpkg", feedback, INPUT_SOURCE=source)
    assert remote == local
    assert_no_canary(tmp_path, feedback)
    assert {"job.json", "worker.log"} <= set(feedback.files)
    assert not [name for name, content in feedback.files.items() if CANARY.encode() in content]
