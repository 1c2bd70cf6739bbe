"""The plan before the run: in the dialog at once, measured on request, and for scripts."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from osgeo import gdal
from qgis.core import QgsApplication, QgsProject, QgsRasterLayer, QgsVectorLayer
from qgis.gui import QgsGui, QgsProcessingGui
from qgis.PyQt.QtCore import QCoreApplication, QEvent

from kestrel.inference.jobs import jobs_folder
from kestrel.inference.models.package import open_package
from kestrel.processing_provider.parameter_reader import ParameterReader
from kestrel.processing_provider.plan_estimate import PlanEstimate, estimate
from kestrel.processing_provider.raster_source import source_raster
from kestrel.tests.fixtures.servers.image_server import image_server
from kestrel.tests.fixtures.servers.pixels import open_image
from kestrel.tests.qgis.examples import (
    Listener,
    algorithm,
    context,
    polygon_layer,
    write_interpreter,
    write_model,
    write_raster,
)
from kestrel.ui.model_widget import ModelChooser
from kestrel.ui.plan_panel import PlanPanel

PLANNED = """
say("message", level="info", id="plan", text="The raster has 100 x 80 pixels.")
plan = {"tiles": 345, "outside": 20, "seconds": 130.0, "memory": 900000000}
say("done", summary={"tiles": 365, "device": "cpu", "plan": plan if job["plan_only"] else None})
"""
WAIT = """
sys.stdin.readline()
say("canceled")
"""
FAIL = """
say("failed", error={"code": "model", "message": "The network is broken.", "hint": "", "context": {}})
sys.exit(1)
"""
KEYS = (
    "INPUT", "INPUT_SOURCE", "MORE_INPUTS", "PROCESSING_MODE", "MODEL", "ARGUMENTS", "EXTENT", "MASK", "CELL_SIZE",
    "CELL_SIZE_UNIT", "CELL_SIZE_LAYER", "MAX_TILES",
)  # fmt: skip


pytestmark = pytest.mark.usefixtures("widgets")


@pytest.fixture
def good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Parameters that nothing is wrong with, and a cache of their own."""
    monkeypatch.setenv("KESTREL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KESTREL_PYTHON", write_interpreter(tmp_path, PLANNED))
    return {
        "INPUT": write_raster(tmp_path / "raster.tif"),
        "MODEL": write_model(tmp_path),
        "OUTPUT": str(tmp_path / "out.gpkg"),
    }


def estimated(parameters: dict[str, Any]) -> PlanEstimate:
    layer = QgsRasterLayer(parameters["INPUT"])
    reader = ParameterReader(algorithm(), parameters, context())
    return estimate(reader, source_raster(layer), open_package(parameters["MODEL"]))


# -- For scripts -------------------------------------------------------------------------------------------------------


def test_a_run_that_is_only_planned_gives_the_plan_and_writes_nothing(good: dict[str, Any]) -> None:
    listener = Listener()
    results, is_good = algorithm().run({**good, "PLAN_ONLY": True}, context(), listener, catchExceptions=False)
    assert is_good
    assert json.loads(results["PLAN"])["tiles"] == 345
    assert results["TILE_COUNT"] == 365
    assert "OUTPUT" not in results
    assert not Path(good["OUTPUT"]).exists()
    assert ("info", "The raster has 100 x 80 pixels.") in listener.said
    assert list(jobs_folder().glob("*")) == []


def test_an_output_that_is_there_stays_as_it_is_when_a_run_is_only_planned(good: dict[str, Any]) -> None:
    Path(good["OUTPUT"]).write_bytes(b"old")
    algorithm().run({**good, "PLAN_ONLY": True}, context(), Listener(), catchExceptions=False)
    assert Path(good["OUTPUT"]).read_bytes() == b"old"


def test_the_limit_is_in_the_job(good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = f"Path({str(tmp_path / 'job.json')!r}).write_text(json.dumps(job)); say('done', summary={{}})"
    monkeypatch.setenv("KESTREL_PYTHON", write_interpreter(tmp_path, body))
    algorithm().run({**good, "PLAN_ONLY": True, "MAX_TILES": 7}, context(), Listener(), catchExceptions=False)
    job = json.loads((tmp_path / "job.json").read_text())
    assert (job["max_tiles"], job["plan_only"]) == (7, True)


# -- At once -----------------------------------------------------------------------------------------------------------


def test_the_estimate_follows_tile_size_padding_and_cell_size(good: dict[str, Any]) -> None:
    whole = estimated(good)
    assert (whole.width, whole.height, whole.tiles, whole.tile_size) == (100, 80, 1, 256)
    assert whole.ground == pytest.approx(1, rel=1e-3)
    fine = estimated({**good, "CELL_SIZE": 0.01, "ARGUMENTS": "tile_size 512;padding 56"})
    # 10000 and 8000 pixels, of which each tile claims 400: 25 x 20 tiles, the last of a row hangs less over.
    assert (fine.width, fine.height, fine.tiles, fine.tile_size) == (10000, 8000, 25 * 20, 512)


def test_the_estimate_follows_extent_and_mask(good: dict[str, Any]) -> None:
    part = estimated({**good, "EXTENT": "500010,500020,5599930,5599950 [EPSG:32633]"})
    assert (part.width, part.height) == (10, 20)
    layer = polygon_layer("Polygon((500010 5599950,500030 5599950,500030 5599960,500010 5599960,500010 5599950))")
    masked = estimated({**good, "MASK": layer.id()})
    assert (masked.width, masked.height, masked.has_mask) == (20, 10, True)


def test_a_plan_over_the_limit_is_seen(good: dict[str, Any]) -> None:
    fine = {**good, "CELL_SIZE": 0.01}
    assert estimated({**fine, "MAX_TILES": 10}).is_too_large
    assert not estimated(fine).is_too_large


# -- In the dialog -----------------------------------------------------------------------------------------------------


class Dialog:
    """The widgets of a dialog."""

    def __init__(self, kind: Any = QgsProcessingGui.WidgetType.Standard) -> None:
        self._owner, self.context = algorithm(), context()
        registry = QgsGui.processingGuiRegistry()
        self.wrappers = {
            key: registry.createParameterWidgetWrapper(self._owner.parameterDefinition(key), kind) for key in KEYS
        }
        self.widgets = {key: wrapper.createWrappedWidget(self.context) for key, wrapper in self.wrappers.items()}
        for wrapper in self.wrappers.values():
            wrapper.postInitialize(list(self.wrappers.values()))

    @property
    def panel(self) -> PlanPanel:
        return self.widgets["MODEL"].findChild(ModelChooser).plan

    def set(self, key: str, value: Any) -> None:
        self.wrappers[key].setParameterValue(value, self.context)

    def told(self) -> str:
        """Give the line after the pause."""
        wait_for(lambda: not self.panel._pause.isActive())
        return self.panel.label.text() if not self.panel.isHidden() else ""

    def close(self) -> None:
        for widget in self.widgets.values():
            widget.deleteLater()
        QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)


def wait_for(condition: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "still not so"
        QgsApplication.processEvents()
        time.sleep(0.01)


@pytest.fixture
def dialog(good: dict[str, Any]) -> Iterator[Dialog]:
    """A dialog with raster and model."""
    layer = QgsRasterLayer(good["INPUT"], "photo")
    QgsProject.instance().addMapLayer(layer)
    window = Dialog()
    window.set("INPUT", layer.id())
    window.set("MODEL", good["MODEL"])
    yield window
    window.close()


def test_the_dialog_tells_the_plan_and_follows_what_is_changed(dialog: Dialog) -> None:
    assert "Plan: 100 x 80 pixels of 1 m on the ground, about 1 tile of 256 pixels" in dialog.told()
    dialog.set("CELL_SIZE", 0.1)
    assert "1000 x 800 pixels of 0.1 m" in dialog.told()
    dialog.set("EXTENT", "500010,500020,5599930,5599950 [EPSG:32633]")
    assert "100 x 200 pixels" in dialog.told()
    dialog.set("CELL_SIZE_UNIT", "Feet")
    assert "328 x 656 pixels of 0.0305 m" in dialog.told()
    dialog.set("MAX_TILES", 1)
    assert "more than the maximum number of tiles (1)" in dialog.told()


def test_what_cannot_work_is_told_in_place_of_the_plan(dialog: Dialog) -> None:
    dialog.set("EXTENT", "0,1,0,1 [EPSG:32633]")
    assert "The extent lies outside the raster" in dialog.told()
    assert dialog.panel.button.isHidden()


def test_the_plan_is_that_of_all_rasters(dialog: Dialog, tmp_path: Path) -> None:
    beside = write_raster(tmp_path / "beside.tif", transform=(500100, 1, 0, 5600000, 0, -1))
    dialog.set("MORE_INPUTS", [beside])
    assert "Plan: 200 x 80 pixels" in dialog.told()
    dialog.set("PROCESSING_MODE", "PROCESS_ITEMS_SEPARATELY")
    assert "2 rasters one by one, the first with 100 x 80 pixels of 1 m on the ground, about 2 tiles" in dialog.told()
    dialog.set("MAX_TILES", 1)  # each of them has one
    assert "more than the maximum number of tiles" not in dialog.told()


def test_the_plan_of_a_photo_has_pixels_and_no_ground(good: dict[str, Any], tmp_path: Path) -> None:
    photo = str(tmp_path / "photo.png")
    gdal.Translate(photo, write_raster(tmp_path / "r.tif", epsg=None, transform=None), format="PNG")
    window = Dialog()
    window.set("MODEL", good["MODEL"])
    window.set("INPUT", photo)
    assert "Plan: 100 x 80 pixels, about 1 tile of 256 pixels" in window.told()
    window.close()


def test_many_rasters_are_looked_at_in_the_background(dialog: Dialog, good: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(30):
        shutil.copy(good["INPUT"], folder / f"{number}.tif")
    dialog.set("INPUT_SOURCE", str(folder))
    assert "looking at the rasters" in dialog.told()
    wait_for(lambda: "Plan: 100 x 80 pixels" in dialog.told())
    dialog.panel.button.click()
    wait_for(lambda: not dialog.panel.is_trying)
    assert dialog.panel.trial.text().startswith("A trial on cpu: 345 tiles")


def test_without_a_raster_there_is_no_plan(good: dict[str, Any]) -> None:
    window = Dialog()
    window.set("MODEL", good["MODEL"])
    assert window.told() == ""
    window.close()


@pytest.mark.parametrize("kind", ["Batch", "Modeler"])
def test_there_is_no_plan_in_a_row_of_a_batch_or_in_the_designer(good: dict[str, Any], kind: str) -> None:
    window = Dialog(getattr(QgsProcessingGui.WidgetType, kind))
    window.set("MODEL", good["MODEL"])
    panels = window.widgets["MODEL"].findChildren(PlanPanel)
    assert all(panel.isHidden() for panel in panels)
    window.close()


def test_the_button_measures_the_time_with_the_worker(dialog: Dialog) -> None:
    dialog.told()
    dialog.panel.button.click()
    assert dialog.panel.is_trying
    wait_for(lambda: not dialog.panel.is_trying)
    text = dialog.panel.trial.text()
    assert text == "A trial on cpu: 345 tiles, 20 more outside the searched area, about 2 min, about 900 MB of memory."
    assert list(jobs_folder().glob("*")) == []
    dialog.set("CELL_SIZE", 0.5)
    dialog.told()
    assert dialog.panel.trial.isHidden()


def test_a_failure_of_the_trial_is_told(dialog: Dialog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KESTREL_PYTHON", write_interpreter(tmp_path, FAIL))
    dialog.told()
    dialog.panel.button.click()
    wait_for(lambda: not dialog.panel.is_trying)
    assert dialog.panel.trial.text() == "The network is broken."


def test_the_trial_can_be_cancelled(dialog: Dialog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KESTREL_PYTHON", write_interpreter(tmp_path, WAIT))
    dialog.told()
    dialog.panel.button.click()
    wait_for(lambda: list(jobs_folder().glob("*")))
    assert dialog.panel.button.text() == "Cancel"
    dialog.panel.button.click()
    wait_for(lambda: not dialog.panel.is_trying)
    assert dialog.panel.trial.isHidden()


def test_a_trial_ends_with_its_dialog(good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KESTREL_PYTHON", write_interpreter(tmp_path, WAIT))
    layer = QgsRasterLayer(good["INPUT"], "photo")
    QgsProject.instance().addMapLayer(layer)
    window = Dialog()
    window.set("INPUT", layer.id())
    window.set("MODEL", good["MODEL"])
    window.told()
    window.panel.button.click()
    wait_for(lambda: list(jobs_folder().glob("*")))
    window.close()
    wait_for(lambda: not QgsApplication.taskManager().activeTasks())
    assert list(jobs_folder().glob("*")) == []


def test_the_layer_is_written_in_the_crs_that_was_asked_for(
    good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kestrel.tests.qgis.test_run import FIND_THREE

    monkeypatch.setenv("KESTREL_PYTHON", write_interpreter(tmp_path, FIND_THREE))
    parameters = {**good, "OUTPUT_CRS": "EPSG:4326"}
    results, _ = algorithm().run(parameters, context(), Listener(), catchExceptions=False)
    layer = QgsVectorLayer(results["OUTPUT"])
    assert (layer.crs().authid(), layer.featureCount()) == ("EPSG:4326", 3)
    box = layer.extent()
    assert (box.xMinimum(), box.yMinimum()) == (pytest.approx(15.00014, abs=2e-5), pytest.approx(50.5515, abs=2e-4))


def test_an_image_service_is_asked_in_the_background_and_its_plan_is_told(good: dict[str, Any], tmp_path: Path) -> None:
    with image_server(open_image(write_raster(tmp_path / "service.tif"))) as service:
        layer = QgsRasterLayer(f"url='{service.image}' crs='EPSG:32633'", "service", "arcgismapserver")
        QgsProject.instance().addMapLayer(layer)
        window = Dialog()
        window.set("MODEL", good["MODEL"])
        window.set("INPUT", layer.id())
        wait_for(lambda: "Plan: 100 x 80 pixels of 1 m on the ground" in window.told())
        asked = len(service.server.asked)
        window.set("EXTENT", "500010,500020,5599930,5599950 [EPSG:32633]")
        assert "10 x 20 pixels" in window.told()
        assert len(service.server.asked) == asked
        window.close()
