"""What all tests share: the plugin is importable as `kestrel`; where fixtures and shared sample data lie."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"

# build/plugins/kestrel links to the repository: the same name as in QGIS, whatever the checkout's folder is called.
sys.path.insert(0, str(ROOT / "build" / "plugins"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if SHARED_DATA.is_dir():
        return
    for item in items:
        if item.get_closest_marker("shared_data"):
            item.add_marker(pytest.mark.skip(reason="the shared sample data is not there"))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of small files that tests read."""
    return ROOT / "tests" / "fixtures"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the shared sample data; a test that asks for it carries the marker `shared_data`."""
    return SHARED_DATA


@pytest.fixture(scope="session")
def inference_python() -> str:
    """The interpreter of the inference environment that `make setup` made."""
    interpreter = ROOT / "build" / "env" / "inference" / "bin" / "python"
    if not interpreter.exists():
        pytest.fail("build/env/inference is missing: run `make setup`")
    return str(interpreter)
