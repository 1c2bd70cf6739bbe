"""KestrelProvider: the entry "Kestrel" of the Processing toolbox."""

from __future__ import annotations

from pathlib import Path

from qgis.core import QgsProcessingProvider
from qgis.PyQt.QtGui import QIcon

from .detect_objects import DetectObjectsAlgorithm

ICON_PATH = str(Path(__file__).parent.parent / "resources" / "icons" / "kestrel.svg")


class KestrelProvider(QgsProcessingProvider):
    """Kestrel's algorithms."""

    def id(self) -> str:
        """Give the first part of the algorithms' ids."""
        return "kestrel"

    def name(self) -> str:
        """Give the name in the toolbox."""
        return "Kestrel"

    def longName(self) -> str:
        """Give the name where there is room."""
        return self.name()

    def icon(self) -> QIcon:
        """Give the bird."""
        return QIcon(ICON_PATH)

    def svgIconPath(self) -> str:
        """Give the bird's file."""
        return ICON_PATH

    def loadAlgorithms(self) -> None:
        """Register the algorithms."""
        self.addAlgorithm(DetectObjectsAlgorithm())
