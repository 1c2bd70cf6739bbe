"""Whole runs with the real worker and the demo model: the same objects whichever way the pixels come."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from qgis.core import (
    QgsApplication,
    QgsProcessingAlgRunnerTask,
    QgsProcessingFeedback,
    QgsProject,
    QgsRasterLayer,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QCoreApplication

from kestrel.tests.fixtures.servers.qgis_server import qgis_server, without_nodata
from kestrel.tests.fixtures.servers.scene import IMAGE, demo_tiles, inner_extent
from kestrel.tests.fixtures.servers.xyz_server import XyzServer, down_for, serving, well
from kestrel.tests.qgis.examples import Listener, algorithm, context

pytestmark = pytest.mark.slow

MODEL = Path(__file__).resolve().parents[2] / "resources" / "models" / "tree_crowns.dlpk"

Objects = list[tuple[str, float]]


@dataclass
class Outcome:
    """How a run ended."""

    is_good: bool
    objects: Objects
    said: list[tuple[str, str]]

    def texts(self, level: str) -> str:
        return "\n".join(text for told, text in self.said if told == level)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KESTREL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[XyzServer, Path]]:
    """The demo image as tiles, and the file with the same pixels."""
    truth = tmp_path_factory.mktemp("scene") / "truth.tif"
    with serving(demo_tiles(truth)) as tiles:
        yield tiles, truth


@pytest.fixture
def tiles(scene: tuple[XyzServer, Path]) -> Iterator[XyzServer]:
    """The tiles, at an address that QGIS has nothing of in its cache."""
    server = scene[0]
    server.query, server.fault = f"?test={time.monotonic_ns()}", well
    server.asked.clear()
    yield server
    server.fault = well


@pytest.fixture(scope="module")
def truth(scene: tuple[XyzServer, Path], tmp_path_factory: pytest.TempPathFactory) -> Objects:
    """What the file gives."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KESTREL_CACHE", str(tmp_path_factory.mktemp("cache")))
        outcome = run(INPUT=str(scene[1]), EXTENT=inner_extent(scene[0]))
    assert len(outcome.objects) > 30
    return outcome.objects


def run(feedback: QgsProcessingFeedback | None = None, **parameters: Any) -> Outcome:
    """Run as the dialog does: in a task, while the main thread goes on."""
    feedback, around = feedback or Listener(), context()
    inputs = {"MODEL": str(MODEL), "ARGUMENTS": {"threshold": 0.4}, "OUTPUT": "memory:objects", **parameters}
    task, ended = QgsProcessingAlgRunnerTask(algorithm(), inputs, around, feedback), []
    task.executed.connect(lambda is_good, results: ended.append((is_good, results)))
    QgsApplication.taskManager().addTask(task)
    while not ended:
        QCoreApplication.processEvents()
        time.sleep(0.005)
    is_good, results = ended[0]
    layer = around.getMapLayer(results.get("OUTPUT", ""))
    objects = _objects(layer) if isinstance(layer, QgsVectorLayer) else []
    return Outcome(is_good, objects, list(feedback.said))


def _objects(layer: QgsVectorLayer) -> Objects:
    return sorted((feature.geometry().asWkt(6), feature["Confidence"]) for feature in layer.getFeatures())


def layer(source: str, provider: str) -> QgsRasterLayer:
    made = QgsRasterLayer(source, "the layer", provider)
    assert made.isValid()
    QgsProject.instance().addMapLayer(made)
    return made


def test_tiles_give_the_objects_of_the_file_and_each_is_fetched_once(tiles: XyzServer, truth: Objects) -> None:
    outcome = run(INPUT=layer(tiles.uri, "wms"), EXTENT=inner_extent(tiles))
    assert outcome.objects == truth
    assert set(tiles.asked.values()) == {1}
    assert "at zoom 20" in outcome.texts("info")
    assert "64 % of the searched area had no picture" in outcome.texts("warning")


def test_half_of_the_tiles_failing_for_a_while_changes_nothing(tiles: XyzServer, truth: Objects) -> None:
    tiles.fault = lambda tile, n: "503" if sum(tile) % 2 and n < 6 else ""
    outcome = run(INPUT=layer(tiles.uri, "wms"), EXTENT=inner_extent(tiles))
    assert outcome.objects == truth
    assert "HTTP status 503" in outcome.texts("warning")


def test_an_outage_changes_nothing(tiles: XyzServer, truth: Objects) -> None:
    tiles.fault = down_for(1.0)
    outcome = run(INPUT=layer(tiles.uri, "wms"), EXTENT=inner_extent(tiles))
    assert outcome.objects == truth


def test_a_run_is_cancelled_within_two_seconds_while_the_server_stalls(tiles: XyzServer) -> None:
    tiles.fault = lambda tile, n: "stall"
    feedback, cancelled = Listener(), []

    def cancel() -> None:
        while not tiles.asked:
            time.sleep(0.01)
        cancelled.append(time.monotonic())
        feedback.cancel()

    threading.Thread(target=cancel).start()
    outcome = run(feedback, INPUT=layer(tiles.uri, "wms"), EXTENT=inner_extent(tiles))
    assert time.monotonic() - cancelled[0] < 2
    assert not outcome.is_good and outcome.objects == []


def test_services_and_drawings_give_the_objects_of_the_file(tmp_path: Path) -> None:
    image = without_nodata(IMAGE, tmp_path / "image.tif")
    found = {"file": run(INPUT=str(image)).objects}
    drawn = layer(str(image), "gdal")
    found["as displayed"] = run(INPUT=drawn, AS_DISPLAYED=True).objects
    found["layers"] = run(RENDER_LAYERS=[drawn], CELL_SIZE=0.1).objects
    with qgis_server(image, tmp_path) as server:
        found["WMS"] = run(INPUT=layer(server.wms(), "wms"), CELL_SIZE=0.1).objects
        found["WCS"] = run(INPUT=layer(server.wcs(), "wcs"), CELL_SIZE=0.1).objects
    print("\n" + "\n".join(f"{route:14}{len(objects)} objects" for route, objects in found.items()))
    assert len(found["file"]) > 30
    assert all(objects == found["file"] for objects in found.values())


def test_several_layers_of_tiles_are_searched_one_by_one(tiles: XyzServer, truth: Objects) -> None:
    source = layer(tiles.uri, "wms")
    outcome = run(INPUT=source, MORE_INPUTS=[layer(tiles.uri + "&referer=x", "wms")], EXTENT=inner_extent(tiles),
                  PROCESSING_MODE="PROCESS_ITEMS_SEPARATELY")  # fmt: skip
    assert outcome.is_good and len(outcome.objects) == 2 * len(truth)
