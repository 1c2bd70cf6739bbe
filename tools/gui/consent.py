"""Picture: a raster function that waits for consent, and the window that shows what would run."""

# Runs inside QGIS; tests/system/gui_prelude.py gives it `iface`, `arguments`, `wait_until`, `save_picture`, `answer`.
from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import processing
from qgis.core import QgsProcessingContext, QgsProject, QgsRasterLayer
from qgis.PyQt.QtGui import QPainter, QPen
from qgis.PyQt.QtWidgets import QApplication

from kestrel.tests.qgis.examples import write_program
from kestrel.ui.model_widget import ModelChooser

if TYPE_CHECKING:
    from kestrel.tests.system.gui_prelude import wait_until

    iface: Any = None
    arguments: dict[str, str] = {}

SOURCE = '''"""Counts palms by their crowns."""

import json

import torch
from helpers.geometry import centre_of


class Finder:
    def __init__(self):
        self.name = "Palm finder"

    def initialize(self, **kwargs):
        definition = json.loads(kwargs["model"])
        self.network = torch.jit.load(definition["ModelFile"])

    def getParameterInfo(self):
        return [
            {"name": "raster", "dataType": "raster", "value": None, "required": True},
            {"name": "score_threshold", "dataType": "numeric", "value": 0.4, "required": False,
             "displayName": "Confidence Score Threshold",
             "description": "Lowest score that a palm needs."},
            {"name": "mode", "dataType": "string", "value": "fast", "required": False,
             "domain": ("fast", "exact"), "displayName": "Search mode",
             "description": "Whether each block is looked at once or four times."},
        ]

    def vectorize(self, **pixelBlocks):
        crowns = self.network(torch.as_tensor(pixelBlocks["raster_pixels"]))
        return {"output_vectors": json.dumps(centre_of(crowns))}
'''
CLASSES = [{"Value": 1, "Name": "Palm", "Color": [34, 139, 34]}]

layer = QgsRasterLayer(str(Path(arguments["raster"]).absolute()), "OSBS_029")
QgsProject.instance().addMapLayer(layer)
with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)
    write_program(Path("palm_finder.dlpk"), SOURCE, ModelName="Palm finder", Classes=CLASSES)
    dialog = processing.createAlgorithmDialog("kestrel:detectobjects", {"INPUT": layer.id()})
    dialog.mainWidget().wrappers["MODEL"].setParameterValue("palm_finder.dlpk", QgsProcessingContext())
    dialog.show()
    wait_until(dialog.isVisible)
    dialog.resize(1240, 940)
    wait_until(lambda: dialog.width() == 1240 and dialog.height() == 940)
    question = dialog.findChild(ModelChooser).consent.make_dialog()
    question.show()
    wait_until(question.isVisible)
    QApplication.processEvents()
    picture, above = dialog.grab(), question.grab()
    painter = QPainter(picture)
    x, y = picture.width() - above.width() - 24, picture.height() - above.height() - 60
    painter.drawPixmap(x, y, above)
    painter.setPen(QPen(painter.background().color().darker(200), 1))
    painter.drawRect(x, y, above.width(), above.height())
    painter.end()
    if not picture.save(arguments["picture"]):
        raise OSError(arguments["picture"])
