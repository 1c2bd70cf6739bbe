"""The main job as a user does it: the dialog in a real QGIS window, Run, Cancel, the layer in the map."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.gui]

RUN = """
import time
import processing
from qgis.core import Qgis, QgsApplication, QgsProcessingContext, QgsProject, QgsRasterLayer
from qgis.PyQt.QtCore import QTimer
from qgis.PyQt.QtWidgets import QDialogButtonBox

layer = QgsRasterLayer(arguments["raster"], "image")
QgsProject.instance().addMapLayer(layer)
iface.mapCanvas().setExtent(layer.extent())
dialog = processing.createAlgorithmDialog("kestrel:detectobjects", {"INPUT": layer.id()})
context = QgsProcessingContext()
dialog.mainWidget().wrappers["MODEL"].setParameterValue(arguments["model"], context)
dialog.mainWidget().wrappers["ARGUMENTS"].setParameterValue("tile_size 512;padding 128", context)
dialog.show()
ended = []
dialog.algorithmFinished.connect(lambda is_ok, results: ended.append([is_ok, dict(results)]))

beats = [time.monotonic()]
heart = QTimer()
heart.timeout.connect(lambda: beats.append(time.monotonic()))
heart.start(20)
dialog.buttonBox().button(QDialogButtonBox.StandardButton.Ok).click()

manager = QgsApplication.taskManager()
task = wait_until(lambda: next(iter(manager.tasks()), None), 30)
description, can_cancel = task.description(), task.canCancel()
wait_until(lambda: ended or task.progress() > 10, 60)
task_progress = 0 if ended else task.progress()
"""

CANCEL = (
    RUN
    + """
asked = time.monotonic()
dialog.cancelButton().click()
wait_until(lambda: ended, 10)
answer({
    "description": description, "can_cancel": can_cancel, "has_progress": task_progress > 10,
    "seconds_to_cancel": time.monotonic() - asked, "ended": ended[0][0],
    "vector_layers": [
        l.name() for l in QgsProject.instance().mapLayers().values() if l.type() == Qgis.LayerType.Vector
    ],
})
"""
)

FINISH = (
    RUN
    + """
wait_until(lambda: ended, 120)
heart.stop()
wait_until(lambda: any(l.type() == Qgis.LayerType.Vector for l in QgsProject.instance().mapLayers().values()), 10)
found = next(l for l in QgsProject.instance().mapLayers().values() if l.type() == Qgis.LayerType.Vector)
category = found.renderer().categories()[0]
answer({
    "ended": ended[0][0], "count": found.featureCount(), "told": ended[0][1]["OBJECT_COUNT"],
    "longest_pause": max(b - a for a, b in zip(beats, beats[1:])), "n_beats": len(beats),
    "class": category.value(), "color": category.symbol().symbolLayer(0).fillColor().name(),
    "labels": found.labelsEnabled(), "history": found.metadata().history(),
    "name": found.name(),
})
"""
)


@pytest.fixture
def inputs(mosaic: Path) -> dict[str, str]:
    """What the scripts need."""
    return {"raster": str(mosaic), "model": str(ROOT / "resources" / "models" / "tree_crowns.dlpk")}


def test_the_dialog_runs_a_task_the_window_stays_free_and_the_layer_is_styled(
    run_in_qgis: Callable[..., Any], inputs: dict[str, str]
) -> None:
    seen = run_in_qgis(FINISH, inputs, timeout=200)
    assert seen["ended"] is True
    assert seen["count"] == seen["told"] > 500
    assert seen["n_beats"] > 20
    assert (seen["class"], seen["color"], seen["labels"]) == ("Tree", "#228b22", True)
    assert any("model: Kestrel tree crowns" in line for line in seen["history"])
    assert any("tile_size" in line for line in seen["history"])


def test_the_task_shows_its_progress_and_cancel_ends_it_without_a_layer(
    run_in_qgis: Callable[..., Any], inputs: dict[str, str]
) -> None:
    seen = run_in_qgis(CANCEL, inputs, timeout=200)
    assert "Detect Objects" in seen["description"]
    assert (seen["can_cancel"], seen["has_progress"]) == (True, True)
    assert (seen["ended"], seen["vector_layers"]) == (False, [])
