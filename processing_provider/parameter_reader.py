"""ParameterReader: the values of one run's parameters, whatever form a dialog, script or model gave them in."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

from qgis.core import QgsProcessingAlgorithm, QgsProcessingContext, QgsRasterLayer, QgsVariantUtils

from ..inference.errors import JobError
from ..inference.net.portal import is_at_home, portal_url
from . import parameters as keys

JSON_KEYS = (
    keys.INPUT_SOURCE, keys.MODEL, keys.ARGUMENTS, keys.OBJECTS_OF_INTEREST, keys.ALLOW_PACKAGE_CODE, keys.FIELD_MAP,
    keys.OUTPUT_SERVICE,
)  # fmt: skip
"""Text parameters that programs may also give as a JSON value."""


@dataclass(frozen=True)
class ParameterReader:
    """The parameters of one run, and what QGIS needs to read them."""

    algorithm: QgsProcessingAlgorithm
    parameters: dict[str, Any]
    context: QgsProcessingContext

    def is_given(self, key: str) -> bool:
        """Tell whether a parameter has a value."""
        value = self.parameters.get(key)
        return not (QgsVariantUtils.isNull(value) or value == "")

    def sign_in_at(self, url: str) -> str:
        """Give the authentication configuration with which a run signs in at a server; empty: with none.

        Who wrote a request must not decide who is shown the user's sign-in: see AT_PORTAL_ALONE.
        """
        own = self.text(keys.AUTHENTICATION)
        is_free = not self.parameters.get(keys.AT_PORTAL_ALONE)
        return own if own and (is_free or is_at_home(portal_url(self.text(keys.PORTAL)), url)) else ""

    def portal_sign_in(self) -> list[tuple[str, str]]:
        """Give configuration and address of a portal that may let the run in at servers of its own elsewhere.

        Only one that was named: the sign-in of somebody's own server is not shown to the one that is there by default.
        """
        if not self.parameters.get(keys.AT_PORTAL_ALONE) or not self.is_given(keys.PORTAL):
            return []
        return [(self.text(keys.AUTHENTICATION), portal_url(self.text(keys.PORTAL)))]

    def text(self, key: str) -> str:
        """Give a text; a JSON value, which parameterAsString would turn into '', becomes JSON text."""
        value = self.parameters.get(key)
        if is_json(value):
            return as_json_text(value)
        if isinstance(value, os.PathLike):
            return os.fsdecode(value)
        return self.algorithm.parameterAsString(self.parameters, key, self.context).strip()

    def number(self, key: str) -> float | None:
        """Give a number, or None where there is none."""
        if not self.is_given(key):
            return None
        return self.algorithm.parameterAsDouble(self.parameters, key, self.context)

    def choice(self, key: str) -> str:
        """Give the chosen text of a list."""
        return self.algorithm.parameterAsEnumString(self.parameters, key, self.context)

    def flag(self, key: str) -> bool:
        """Give yes or no."""
        return self.algorithm.parameterAsBoolean(self.parameters, key, self.context)

    def raster_layer(self, key: str) -> QgsRasterLayer:
        """Give a raster layer.

        Raises:
            JobError: there is none.
        """
        layer = self.algorithm.parameterAsRasterLayer(self.parameters, key, self.context)
        if layer is None or not layer.isValid():
            raise JobError(self.algorithm.invalidRasterError(self.parameters, key))
        return layer


def is_json(value: Any) -> bool:
    """Tell whether a parameter was given as a JSON object or list instead of a text."""
    return isinstance(value, (dict, list))


def as_json_text(value: Any) -> str:
    """Give a JSON value as text."""
    return json.dumps(value, ensure_ascii=False)
