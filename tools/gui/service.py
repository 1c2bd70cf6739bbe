"""Picture: the dialog with a layer of an ArcGIS image service, and the plan before the run with its trial tile."""

# Runs inside QGIS; tests/system/gui_prelude.py gives it `iface`, `arguments`, `wait_until`, `save_picture`, `answer`.
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import processing
from qgis.core import QgsProcessingContext, QgsProject, QgsRasterLayer

from kestrel.ui.plan_panel import PlanPanel

if TYPE_CHECKING:
    from kestrel.tests.system.gui_prelude import answer, save_picture, wait_until

    iface: Any = None
    arguments: dict[str, str] = {}

layer = QgsRasterLayer(
    f"url='{arguments['service']}' crs='EPSG:32617'", "Orthophoto (image service)", "arcgismapserver"
)
assert layer.isValid()
QgsProject.instance().addMapLayer(layer)
dialog = processing.createAlgorithmDialog("kestrel:detectobjects", {"INPUT": layer.id()})
dialog.mainWidget().wrappers["MODEL"].setParameterValue(arguments["model"], QgsProcessingContext())
dialog.show()
wait_until(dialog.isVisible)
# Only now: a dialog takes its last size again when it is shown.
dialog.resize(1240, 700)
panel = dialog.findChild(PlanPanel)
wait_until(panel.isVisible)
wait_until(panel.button.isVisible)
before = panel.label.text()
panel.button.click()
wait_until(lambda: not panel.is_trying)
save_picture(dialog, arguments["picture"])
answer([before, panel.label.text(), panel.trial.text()])
