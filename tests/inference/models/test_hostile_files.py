"""Files that are made to hurt whoever merely chooses them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from onnx import helper

from kestrel.inference.errors import ModelError, ModelPackageError
from kestrel.inference.models import onnx_file
from kestrel.inference.models.definition import definition_from_json
from kestrel.inference.models.onnx_file import read_onnx
from kestrel.inference.models.package import open_package


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_that_zipfile_would_unpack_at_once_is_refused(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "m.dlpk", "w") as archive:
        archive.writestr("m.emd", b" " * 10_000, method)
    with pytest.raises(ModelPackageError, match="packed in a way"):
        open_package(str(tmp_path / "m.dlpk"))


def graph(path: Path, shape: list[Any], *outputs: tuple[str, list[Any]]) -> Path:
    made = helper.make_graph([], "g", [helper.make_tensor_value_info("image", 1, shape)],
                             [helper.make_tensor_value_info(name, 1, sides) for name, sides in outputs])  # fmt: skip
    path.write_bytes(helper.make_model(made).SerializeToString())
    return path


@pytest.mark.parametrize(("shape", "logits"), [([1, 10**9, 64, 64], [1, 300, 3]), ([1, 3, 64, 64], [1, 300, 10**9])])
def test_numbers_in_a_graph_are_not_turned_into_lists_of_that_length(
    tmp_path: Path, shape: list[Any], logits: list[Any]
) -> None:
    path = graph(tmp_path / "m.onnx", shape, ("logits", logits), ("pred_boxes", [1, 300, 4]))
    with pytest.raises(ModelError, match="at most"):
        open_package(str(path))


def test_a_file_of_nothing_but_fields_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "_MAX_FIELDS", 1000)
    (tmp_path / "m.onnx").write_bytes(b"\x08\x01" * 5000)
    with (tmp_path / "m.onnx").open("rb") as stream, pytest.raises(ModelPackageError):
        read_onnx(stream, "m.onnx")
    (tmp_path / "zeros.onnx").write_bytes(bytes(100))
    with (tmp_path / "zeros.onnx").open("rb") as stream, pytest.raises(ModelPackageError):
        read_onnx(stream, "zeros.onnx")


@pytest.mark.parametrize("names", [["../../secret"], ["/etc/passwd"], ["a"] * 2000 + ["b"], ["C:\\x"], [""]])
def test_files_of_a_folder_stay_in_it(names: list[str]) -> None:
    names = [f"{name}{number}" if len(names) > 1 else name for number, name in enumerate(names)]
    data = {
        "kestrel_definition": 1, "name": "m", "classes": [{"name": "a"}],
        "detector": {"kind": "transformers", "weights": "model.safetensors", "architecture": "detr", "files": names},
    }  # fmt: skip
    with pytest.raises(ModelPackageError, match=r"detector\.files"):
        definition_from_json(data)


@pytest.mark.parametrize("resolution", ["1" + "0" * 400, "[[]]", "nan"])
def test_odd_metadata_are_passed_over_or_refused(tmp_path: Path, resolution: str) -> None:
    path = graph(tmp_path / "m.onnx", [1, 3, 64, 64], ("output", [1, 84, 6]))
    import onnx

    model = onnx.load(str(path))
    helper.set_model_props(model, {
        "model_type": json.dumps("Detector"), "class_names": json.dumps({"0": "tree"}), "resolution": resolution,
    })  # fmt: skip
    onnx.save(model, str(path))
    assert ["tree"] == [item.name for item in open_package(str(path)).definition.classes]
