"""Picture: the objects found in the demo image, styled as the plugin loads them; runs the dialog as a person does."""

# Runs inside QGIS; tests/system/gui_prelude.py gives it `iface`, `arguments`, `wait_until`, `save_picture`, `answer`.
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import processing
from qgis.core import QgsProject, QgsRasterLayer, QgsVectorLayer
from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtWidgets import QDialogButtonBox, QDockWidget

if TYPE_CHECKING:
    from kestrel.tests.system.gui_prelude import answer, save_picture, wait_until

    iface: Any = None
    arguments: dict[str, str] = {}

window, canvas = iface.mainWindow(), iface.mapCanvas()
layer = QgsRasterLayer(arguments["raster"], "OSBS_029")
QgsProject.instance().addMapLayer(layer)
dialog = processing.createAlgorithmDialog("kestrel:detectobjects", {"INPUT": layer.id(), "MODEL": arguments["model"]})
dialog.show()
ends: list[Any] = []
dialog.algorithmFinished.connect(lambda is_good, results: ends.append(is_good))
dialog.buttonBox().button(QDialogButtonBox.StandardButton.Ok).click()
wait_until(lambda: ends, 120)
found = wait_until(
    lambda: [item for item in QgsProject.instance().mapLayers().values() if isinstance(item, QgsVectorLayer)]
)
dialog.close()

for dock in window.findChildren(QDockWidget):
    dock.setVisible(dock.objectName() == "Layers")
window.setGeometry(0, 0, 1600, 1000)
window.resizeDocks([window.findChild(QDockWidget, "Layers")], [340], Qt.Orientation.Horizontal)
iface.messageBar().clearWidgets()
iface.layerTreeView().setCurrentLayer(found[0])
extent = layer.extent()
extent.scale(1.05)
canvas.setExtent(extent)
painted: list[int] = []
canvas.mapCanvasRefreshed.connect(lambda: painted.append(1))
canvas.refreshAllLayers()
wait_until(lambda: painted and not canvas.isDrawing())
save_picture(window, arguments["picture"])
answer({"succeeded": ends[0], "objects": found[0].featureCount()})
