"""What Kestrel adds to QGIS's window, and takes away again."""

from __future__ import annotations

from typing import Any

from qgis.core import Qgis, QgsMapLayer
from qgis.gui import QgsGui
from qgis.PyQt.QtGui import QIcon
from qgis.PyQt.QtWidgets import QAction

from ..processing_provider.icon import ICON_PATH
from ..processing_provider.parameters import INPUT
from ..processing_provider.text import tr
from .factories import widget_factories
from .options_page import KestrelOptionsFactory

ALGORITHM = "kestrel:detectobjects"
MENU = "Kestrel"


class WindowParts:
    """Menu entry, toolbar button, layer menu entry, options page and widget factories.

    Args:
        iface: QGIS's window.
    """

    def __init__(self, iface: Any) -> None:
        self._iface = iface
        self._factories = widget_factories()
        self._options = KestrelOptionsFactory(iface)
        self._action = self._make_action()
        self._layer_action = self._make_action()

    def _make_action(self) -> QAction:
        action = QAction(QIcon(ICON_PATH), tr("Detect Objects Using Deep Learning\u2026"), self._iface.mainWindow())
        action.triggered.connect(lambda *_: self.open_dialog())
        return action

    def add(self) -> None:
        """Add everything."""
        for factory in self._factories:
            QgsGui.processingGuiRegistry().addParameterWidgetFactory(factory)
        self._iface.registerOptionsWidgetFactory(self._options)
        self._iface.addPluginToRasterMenu(MENU, self._action)
        self._iface.addToolBarIcon(self._action)
        self._iface.addCustomActionForLayerType(self._layer_action, "", Qgis.LayerType.Raster, True)

    def remove(self) -> None:
        """Take everything away, in reverse order."""
        self._iface.removeCustomActionForLayerType(self._layer_action)
        self._iface.removeToolBarIcon(self._action)
        self._iface.removePluginRasterMenu(MENU, self._action)
        self._iface.unregisterOptionsWidgetFactory(self._options)
        for factory in self._factories:
            QgsGui.processingGuiRegistry().removeParameterWidgetFactory(factory)
        self._layer_action.deleteLater()
        self._action.deleteLater()

    def open_dialog(self) -> Any:
        """Open the algorithm's dialog, with the current layer as input where it is a raster."""
        import processing

        layer = self._iface.activeLayer()
        is_raster = isinstance(layer, QgsMapLayer) and layer.type() == Qgis.LayerType.Raster
        dialog = processing.createAlgorithmDialog(ALGORITHM, {INPUT: layer.id()} if is_raster else {})
        if dialog is not None:
            dialog.show()
        return dialog
