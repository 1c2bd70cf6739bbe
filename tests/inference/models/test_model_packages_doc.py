from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

TOOL = Path(__file__).resolve().parents[3] / "tools" / "model_packages.py"


@pytest.fixture(scope="module")
def tool() -> Any:
    """The tool that writes the document's tables."""
    spec = importlib.util.spec_from_file_location("model_packages", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_tables_of_the_document_are_those_of_the_tests(tool: Any) -> None:
    text = tool.DOCUMENT.read_text("utf-8")
    assert tool.rendered(text) == text


def test_the_tests_that_the_document_names_exist(tool: Any) -> None:
    folder = TOOL.parents[1] / "tests" / "inference" / "detectors" / "arcgis"
    named = set(re.findall(r"`(test_\w+\.py)::(\w+)", tool.DOCUMENT.read_text("utf-8")))
    assert len(named) > 5
    assert [] == [name for file, name in named if f"def {name}(" not in (folder / file).read_text("utf-8")]
