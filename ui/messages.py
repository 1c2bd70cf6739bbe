"""Messages in QGIS's message bar. It draws HTML, so every text passes `to_ui`."""

from __future__ import annotations

from typing import Any

from qgis.core import Qgis

from ..processing_provider.text import to_ui

_LONGEST = 600
_SECONDS = 8


def show_success(iface: Any, text: str) -> None:
    """Tell that something worked; the message goes by itself."""
    iface.messageBar().pushMessage("Kestrel", to_ui(text, _LONGEST), Qgis.MessageLevel.Success, _SECONDS)


def show_error(iface: Any, text: str) -> None:
    """Tell that something failed; the message stays until it is closed."""
    iface.messageBar().pushMessage("Kestrel", to_ui(text, _LONGEST), Qgis.MessageLevel.Critical, 0)
