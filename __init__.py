"""Kestrel: a QGIS plugin that detects objects in imagery with deep learning.

This folder is both the plugin and the Python package. QGIS calls `classFactory`; worker processes, which have no QGIS,
import this file on their way to `inference` and find nothing in it that they would have to load.
"""

from __future__ import annotations

from typing import Any


def classFactory(iface: Any) -> Any:
    """Give the plugin; `iface` is None in qgis_process."""
    from .plugin import KestrelPlugin

    return KestrelPlugin(iface)
