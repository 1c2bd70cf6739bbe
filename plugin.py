"""KestrelPlugin: what QGIS loads. `initProcessing` is all that qgis_process needs; `initGui` adds the windows."""

from __future__ import annotations

from typing import Any

from qgis.core import QgsApplication

from .processing_provider.provider import KestrelProvider


class KestrelPlugin:
    """The plugin.

    Args:
        iface: QGIS's window, or None in qgis_process.
    """

    def __init__(self, iface: Any) -> None:
        self._iface = iface
        self._provider: KestrelProvider | None = None
        self._window: Any = None

    def initProcessing(self) -> None:
        """Register the algorithms; qgis_process calls only this."""
        self._provider = KestrelProvider()
        QgsApplication.processingRegistry().addProvider(self._provider)

    def initGui(self) -> None:
        """Register the algorithms, and add what the window shows."""
        # qgis_process has no windows: what draws them is not even imported there.
        from .ui.window import WindowParts

        self.initProcessing()
        self._window = WindowParts(self._iface)
        self._window.add()

    def unload(self) -> None:
        """Take everything away again, in reverse order."""
        if self._window is not None:
            self._window.remove()
            self._window = None
        if self._provider is not None:
            QgsApplication.processingRegistry().removeProvider(self._provider)
            self._provider = None
