"""KestrelAlgorithm: what Kestrel's algorithms have in common: the bird, and declarations from tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from qgis.core import QgsProcessingAlgorithm
from qgis.PyQt.QtGui import QIcon

from .icon import ICON_PATH
from .parameter_reader import as_json_text, is_json
from .parameters import Output, Parameter


class KestrelAlgorithm(QgsProcessingAlgorithm):
    """An algorithm of Kestrel's; a subclass gives its tables, name and work."""

    json_keys: ClassVar[tuple[str, ...]] = ()
    """Text parameters that programs may also give as a JSON value."""

    def tables(self) -> tuple[Sequence[Parameter], Sequence[Output]]:
        """Give the parameters and the outputs besides the layer, in the user's language."""
        raise NotImplementedError

    def createInstance(self) -> KestrelAlgorithm:
        """Give a fresh algorithm."""
        return type(self)()

    def icon(self) -> QIcon:
        """Give the bird."""
        return QIcon(ICON_PATH)

    def svgIconPath(self) -> str:
        """Give the bird's file."""
        return ICON_PATH

    def initAlgorithm(self, configuration: dict[str, Any] | None = None) -> None:
        """Declare parameters and outputs from their tables."""
        parameters, outputs = self.tables()
        for parameter in parameters:
            self.addParameter(parameter.definition())
        for output in outputs:
            self.addOutput(output.make(output.key, output.label))

    def preprocessParameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Turn JSON values into text, so that history and "Copy as Python" can hold them."""
        given = {key: parameters.get(key) for key in self.json_keys}
        return {**parameters, **{key: as_json_text(value) for key, value in given.items() if is_json(value)}}
