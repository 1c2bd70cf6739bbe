"""Picture: what the dialog tells of a MaskRCNN package: the panel below its name, what does not suit, its arguments."""

# Runs inside QGIS; tests/system/gui_prelude.py gives it `iface`, `arguments`, `wait_until`, `save_picture`, `answer`.
from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import processing
from qgis.core import QgsProcessingContext, QgsProject, QgsRasterLayer
from qgis.PyQt.QtWidgets import QTableWidget

from kestrel.tests.qgis.examples import write_mask_rcnn
from kestrel.ui.arguments_widget import ArgumentsTable

if TYPE_CHECKING:
    from kestrel.tests.system.gui_prelude import save_picture, wait_until

    iface: Any = None
    arguments: dict[str, str] = {}

layer = QgsRasterLayer(str(Path(arguments["raster"]).absolute()), "OSBS_029")
QgsProject.instance().addMapLayer(layer)
reference = {"spatialReference": {"wkid": 26917, "latestWkid": 26917}}
with tempfile.TemporaryDirectory() as folder:
    # Where QGIS runs: no picture shows where someone keeps a file.
    os.chdir(folder)
    write_mask_rcnn(
        Path("roofs_and_pools.dlpk"),
        MinCellSize={"x": 0.25, "y": 0.25, **reference},
        MaxCellSize={"x": 0.35, "y": 0.35, **reference},
    )
    dialog = processing.createAlgorithmDialog("kestrel:detectobjects", {"INPUT": layer.id()})
    dialog.mainWidget().wrappers["MODEL"].setParameterValue("roofs_and_pools.dlpk", QgsProcessingContext())
    table = dialog.findChild(ArgumentsTable)
    table.editor("threshold").enter(0.8)
    table.findChild(QTableWidget).setCurrentCell(table.names().index("merge_policy"), 0)
    dialog.show()
    wait_until(dialog.isVisible)
    dialog.resize(1240, 980)
    wait_until(lambda: dialog.width() == 1240 and dialog.height() == 980)
    save_picture(dialog, arguments["picture"])
