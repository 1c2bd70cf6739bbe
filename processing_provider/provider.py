"""KestrelProvider: the entry "Kestrel" of the Processing toolbox."""

from __future__ import annotations

from qgis.core import QgsProcessingProvider
from qgis.PyQt.QtGui import QIcon

from .describe_model import DescribeModelAlgorithm
from .detect_objects import DetectObjectsAlgorithm
from .detect_objects_request import DetectObjectsRequestAlgorithm
from .icon import ICON_PATH
from .package_model import PackageModelAlgorithm
from .undo_run import UndoRunAlgorithm


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
        for make in (
            DetectObjectsAlgorithm,
            DetectObjectsRequestAlgorithm,
            DescribeModelAlgorithm,
            PackageModelAlgorithm,
            UndoRunAlgorithm,
        ):
            self.addAlgorithm(make())
