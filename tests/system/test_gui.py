"""The plugin in a real QGIS window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.gui]


def test_the_plugin_starts_and_is_unloaded_without_an_error(run_in_qgis: Callable[..., Any]) -> None:
    script = """
import qgis.utils
from qgis.core import QgsApplication
registry = QgsApplication.processingRegistry()
before = registry.algorithmById("kestrel:detectobjects") is not None
unloaded = qgis.utils.unloadPlugin("kestrel")
answer([before, unloaded, registry.algorithmById("kestrel:detectobjects") is None])
"""
    assert run_in_qgis(script) == [True, True, True]


def test_an_error_in_a_script_ends_qgis_and_fails_the_test(run_in_qgis: Callable[..., Any]) -> None:
    with pytest.raises(pytest.fail.Exception, match="ZeroDivisionError"):
        run_in_qgis("1 / 0")
