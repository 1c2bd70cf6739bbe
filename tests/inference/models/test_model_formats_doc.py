"""docs/model_formats.md names every head and carrier, and only tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

from kestrel.inference.models import carriers
from kestrel.inference.models.definition import HEADS

_OF_CARRIERS = {
    "stac_mlm": "STAC", "onnx_graph": "ONNX", "huggingface": "Hugging Face", "torch_program": "TorchScript",
    "state_dict": "torchvision",
}  # fmt: skip


def text(repository: Path) -> str:
    return (repository / "docs" / "model_formats.md").read_text("utf-8")


def test_every_head_has_its_row(repository: Path) -> None:
    rows = re.findall(r"^\| `([\w-]+)` \|", text(repository), re.MULTILINE)
    assert list(HEADS) == rows


def test_every_carrier_has_its_row(repository: Path) -> None:
    names = [translator.__module__.rpartition(".")[2] for translator in carriers._TRANSLATORS]
    assert set(_OF_CARRIERS) == set(names)
    assert all(_OF_CARRIERS[name] in text(repository) for name in names)


def test_the_tests_that_are_named_are_there(repository: Path) -> None:
    named = set(re.findall(r"`(test_\w+\.py)::(test_\w+)`", text(repository)))
    files: dict[str, str] = {}
    for path in (repository / "tests").rglob("test_*.py"):
        files[path.name] = files.get(path.name, "") + path.read_text("utf-8")
    assert len(named) > 30
    assert [] == [(file, test) for file, test in sorted(named) if f"def {test}(" not in files.get(file, "")]
