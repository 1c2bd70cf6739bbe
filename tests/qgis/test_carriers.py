"""Models without a definition in QGIS: described and shown with the standard library alone."""

from __future__ import annotations

import json
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from qgis.core import QgsApplication

from kestrel.inference.models.package import open_package
from kestrel.processing_provider.code_consent import sha256_of
from kestrel.tests.qgis.examples import Listener, context
from kestrel.ui.arguments_widget import ArgumentsTable
from kestrel.ui.consent_dialog import program_text
from kestrel.ui.model_widget import ModelChooser

CONFIG = {"task": "detect", "imgsz": [640, 640], "names": {"0": "Palm", "1": "Roof"}, "stride": 32}


def described(model: Path) -> dict[str, Any]:
    made = QgsApplication.processingRegistry().createAlgorithmById("kestrel:describemodel")
    results, is_good = made.run({"MODEL": str(model)}, context(), Listener(), catchExceptions=False)
    assert is_good
    return {**json.loads(results["DESCRIPTION"]), "NEEDS_CONSENT": results["NEEDS_CONSENT"]}


def torchscript(path: Path) -> Path:
    """What torch.jit.save writes, as far as its names go."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/constants.pkl", b"")
        archive.writestr("net/code/__torch__.py", b"def f(): pass")
        archive.writestr("net/extra/config.txt", json.dumps(CONFIG))
    return path


def exported(path: Path) -> Path:
    """What torch.export.save writes, as far as its names go."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/archive_format", b"pt2")
        archive.writestr("net/models/model.json", b"{}")
    return path


def weights(path: Path, **shapes: list[int]) -> Path:
    header = {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    return path


def folder(path: Path, model_type: str) -> Path:
    path.mkdir()
    config = {"model_type": model_type, "id2label": {"0": "Tree", "1": "Car"}}
    (path / "config.json").write_text(json.dumps(config), "utf-8")
    (path / "tokenizer.json").write_text("{}", "utf-8")
    return weights(path / "model.safetensors").parent


@pytest.mark.parametrize(
    ("make", "name", "kind"),
    [(torchscript, "n.torchscript", "TorchScript, a program"), (exported, "n.pt2", "PyTorch, an exported program")],
)
def test_a_bare_program_is_described_and_waits_for_consent(tmp_path: Path, make: Any, name: str, kind: str) -> None:
    path = make(tmp_path / name)
    told = described(path)
    assert (told["run_by"], told["NEEDS_CONSENT"], told["code"]["program"]) == (kind, 1, name)
    assert told["code"]["sha256"] == sha256_of(open_package(str(path)))
    chooser = ModelChooser()
    chooser.set_value(str(path))
    assert chooser.definition is not None
    assert "torch" not in sys.modules


def test_a_model_folder_is_described_and_shown(tmp_path: Path) -> None:
    path = folder(tmp_path / "deer", "rt_detr")
    told = described(path)
    assert (told["run_by"], told["NEEDS_CONSENT"]) == ("Hugging Face Transformers (optional library)", 0)
    assert [item["name"] for item in told["classes"]] == ["Tree", "Car"]
    assert any("does not say how pixels are prepared" in note for note in told["notes"])
    chooser = ModelChooser()
    chooser.set_value(str(path / "config.json"))
    assert chooser.info().startswith("deer")
    assert {"torch", "transformers"} & set(sys.modules) == set()


def test_what_to_look_for_is_a_row_of_the_table(tmp_path: Path) -> None:
    table = ArgumentsTable()
    table.set_model(open_package(str(folder(tmp_path / "owl", "owlv2"))).definition)
    assert "text_prompt" in table.names()
    table.set_value('{"text_prompt": "tree. car"}')
    assert json.loads(table.value()) == {"text_prompt": "tree. car"}


def test_weights_that_tell_nothing_are_refused_with_a_definition_to_copy(tmp_path: Path) -> None:
    chooser = ModelChooser()
    chooser.set_value(str(weights(tmp_path / "w.safetensors", a=[0])))
    assert chooser.definition is None
    assert "holds weights alone" in chooser.info()


def test_the_graph_of_an_exported_program_is_shown_before_it_is_allowed(tmp_path: Path) -> None:
    with zipfile.ZipFile(exported(tmp_path / "n.pt2"), "a") as archive:
        archive.writestr("net/data/weights/weight_0", b"0" * 100)
        archive.writestr("net/models/other.json", b'{"nodes": "aten.conv2d"}')
    text = program_text(tmp_path / "n.pt2")
    assert "torch exported" in text
    assert "aten.conv2d" in text
    assert "weight_0" not in text
