"""Picture: the algorithm's dialog with an image and a model chosen and the table of arguments filled."""

# Runs inside QGIS; tests/system/gui_prelude.py gives it `iface`, `arguments`, `wait_until`, `save_picture`, `answer`.
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import processing
from qgis.core import QgsProcessingContext, QgsProject, QgsRasterLayer
from qgis.PyQt.QtWidgets import QTableWidget

from kestrel.ui.arguments_widget import ArgumentsTable
from kestrel.ui.plan_panel import PlanPanel

if TYPE_CHECKING:
    from kestrel.tests.system.gui_prelude import save_picture, wait_until

    iface: Any = None
    arguments: dict[str, str] = {}

layer = QgsRasterLayer(arguments["raster"], "OSBS_029")
QgsProject.instance().addMapLayer(layer)
dialog = processing.createAlgorithmDialog("kestrel:detectobjects", {"INPUT": layer.id()})
dialog.mainWidget().wrappers["MODEL"].setParameterValue(arguments["model"], QgsProcessingContext())
table = dialog.findChild(ArgumentsTable)
table.editor("threshold").enter(0.4)
table.findChild(QTableWidget).setCurrentCell(0, 0)
dialog.show()
wait_until(dialog.isVisible)
# Only now: a dialog takes its last size again when it is shown.
dialog.resize(1240, 940)
wait_until(lambda: dialog.width() == 1240 and dialog.height() == 940)
wait_until(dialog.findChild(PlanPanel).isVisible)
save_picture(dialog, arguments["picture"])
