"""What QGIS and worker processes import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from qgis.core import QgsApplication

from kestrel import classFactory
from kestrel.processing_provider.provider import KestrelProvider


def test_a_process_without_qgis_can_import_the_package(repository: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(repository / 'build' / 'plugins')!r}); import kestrel; "
    code += "print(sorted(name for name in sys.modules if name.startswith(('qgis', 'PyQt', 'kestrel'))))"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "['kestrel']"


def test_processing_alone_loads_no_window_of_ours_and_no_heavy_library(repository: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(repository / 'build' / 'plugins')!r}); import kestrel.plugin; "
    code += "heavy = ('torch', 'rasterio', 'kestrel.ui'); print([n for n in heavy if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]"


KEPT: list[KestrelProvider] = []
"""QGIS owns a provider's C++ side only: the Python side lives as long as somebody holds it."""


def test_the_plugin_registers_its_provider_and_takes_it_away(qgis_app: QgsApplication) -> None:
    registry = qgis_app.processingRegistry()
    registry.removeProvider("kestrel")
    try:
        plugin = classFactory(None)
        plugin.initProcessing()
        there = registry.createAlgorithmById("kestrel:detectobjects") is not None
        plugin.unload()
        assert [there, registry.providerById("kestrel") is None] == [True, True]
    finally:
        KEPT.append(KestrelProvider())
        registry.addProvider(KEPT[0])
