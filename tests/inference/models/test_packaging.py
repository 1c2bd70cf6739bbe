from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kestrel.inference.errors import InferenceError, ModelPackageError, UntrustedCodeError
from kestrel.inference.models.definition import ModelDefinition, definition_from_json
from kestrel.inference.models.packaging import PackageParts, WrittenPackage, file_stem, write_package
from kestrel.tests.fixtures.esri_packages import arcgis_emd, file_of
from kestrel.tests.fixtures.packages import definition, emd

PICTURE = b"\x89PNG\r\n\x1a\nrest of a picture"


def pack(
    folder: Path, text: Any, weights: str = "model.onnx", content: bytes = b"weights", **parts: Any
) -> WrittenPackage:
    """Write a package of a definition."""
    (folder / weights).write_bytes(content)
    given = text if isinstance(text, str) else json.dumps(text)
    return write_package(PackageParts(folder / weights, given, **parts), folder / "out.dlpk")


def without_facts(found: ModelDefinition) -> ModelDefinition:
    return replace(found, facts={}, notes=())


def names_in(written: WrittenPackage) -> list[str]:
    with zipfile.ZipFile(written.path) as archive:
        return sorted(archive.namelist())


NUMBERS = st.floats(-1e4, 1e4, allow_nan=False).filter(lambda value: abs(value) > 1e-6)
NAMES = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=20)
COLORS = st.lists(st.integers(0, 255), min_size=3, max_size=3)


@st.composite
def definitions(draw: st.DrawFn) -> dict[str, Any]:
    """Definitions of Kestrel's own with whatever a definition may say."""
    bands = draw(st.lists(st.integers(0, 11) | st.sampled_from(["Red", "NIR"]), min_size=1, max_size=5, unique=True))
    per_band = st.lists(NUMBERS, min_size=len(bands), max_size=len(bands)) | NUMBERS
    is_onnx = draw(st.booleans())
    head = {"head": draw(st.sampled_from(["yolov8", "yolov5", "boxes"]))} if draw(st.booleans()) else {}
    detector = {"kind": "onnx", "weights": "model.onnx", **head} if is_onnx else {
        "kind": "torchvision", "weights": "model.safetensors", "architecture": "fcos_resnet50_fpn"
    }  # fmt: skip
    if draw(st.booleans()):
        detector["label_offset"] = draw(st.integers(0, 3))
    low = draw(st.floats(1e-6, 10))
    data = {
        "kestrel_definition": 1,
        "name": draw(NAMES),
        "version": draw(NAMES),
        "description": draw(NAMES),
        "license": draw(NAMES),
        "detector": detector,
        "input": {"bands": bands, "scale": draw(per_band), "mean": draw(per_band), "std": draw(per_band)},
        "tile": {
            "size": 8 * draw(st.integers(4, 100)),
            "variable": draw(st.booleans()),
            "padding": draw(st.none() | st.integers(0, 15)),
            "stride": draw(st.none() | st.integers(1, 64)),
            "receptive_field_radius": draw(st.none() | st.integers(0, 500)),
        },
        "classes": [
            {"value": draw(st.integers(-9, 99)), "name": name, "color": draw(COLORS)}
            for name in draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
        ],
        "arguments": draw(st.fixed_dictionaries({}, optional={"threshold": st.floats(0, 1), "padding": st.just(4)})),
    }
    if draw(st.booleans()):
        data["cell_size"] = {"min": low, "max": low * 2, "wkid": draw(st.none() | st.sampled_from([3857, 4326, 32633]))}
    if draw(st.booleans()):
        data["input"]["data_range"] = [0, draw(st.integers(1, 65535))]
    return data


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=definitions())
def test_a_definition_comes_back_from_its_package_as_it_was(tmp_path: Path, data: dict[str, Any]) -> None:
    written = pack(tmp_path, data, data["detector"]["weights"])
    assert definition_from_json(data) == without_facts(written.package.definition)


@pytest.mark.parametrize("data", [definition(), definition(name="FasterRCNN"), definition(version="2")])
def test_the_definitions_of_the_other_tests_come_back_too(tmp_path: Path, data: dict[str, Any]) -> None:
    assert definition_from_json(data) == without_facts(pack(tmp_path, data).package.definition)


def test_the_layout_is_the_one_of_a_deep_learning_package(tmp_path: Path) -> None:
    (tmp_path / "card.md").write_text("# Cells\n")
    (tmp_path / "look.jpeg").write_bytes(PICTURE)
    written = pack(
        tmp_path, definition(), name="Cells of trees", card=tmp_path / "card.md", license="CC BY 4.0",
        thumbnail=tmp_path / "look.jpeg",
    )  # fmt: skip
    assert names_in(written) == [
        "Cells of trees.emd", "LICENSE.txt", "README.md", "esriinfo/iteminfo.xml", "esriinfo/thumbnail/thumbnail.png",
        "model.onnx",
    ]  # fmt: skip
    assert b"<title>Cells of trees</title>" in zipfile.ZipFile(written.path).read("esriinfo/iteminfo.xml")
    assert written.package.definition.license == "CC BY 4.0"


def test_an_emd_keeps_its_keys_and_names_the_weights_anew(tmp_path: Path) -> None:
    source = emd(ModelFile=".\\old\\place.onnx", Invented={"kept": [1, 2]}, ModelVersion="7")
    written = pack(tmp_path, source)
    with zipfile.ZipFile(written.path) as archive:
        assert json.loads(archive.read("Cells.emd")) == {**source, "ModelFile": "model.onnx"}


def test_a_damaged_emd_is_written_clean_and_the_repair_is_told(tmp_path: Path) -> None:
    text = json.dumps(emd(), indent=1).replace('"ModelType": "ObjectDetection",', '"ModelType": "ObjectDetection"')
    (tmp_path / "broken.emd").write_text(text)
    written = pack(tmp_path, str(tmp_path / "broken.emd"))
    with zipfile.ZipFile(written.path) as archive:
        assert json.loads(archive.read("Cells.emd"))["ModelType"] == "ObjectDetection"
    assert any("comma" in note for note in written.notes)


def test_equal_parts_give_equal_files(tmp_path: Path) -> None:
    first = pack(tmp_path, definition()).path.read_bytes()
    assert first == pack(tmp_path, definition()).path.read_bytes()


def test_a_checkpoint_is_looked_at_before_it_is_packed(tmp_path: Path) -> None:
    good = file_of({"conv.weight": torch.zeros(2, 2)})
    written = pack(tmp_path, arcgis_emd("RetinaNet"), "model.pth", good, name="trees")
    assert written.package.definition.facts["family"] == "RetinaNet"
    with pytest.raises(ModelPackageError):
        pack(tmp_path, arcgis_emd("RetinaNet"), "model.pth", good[:100])


def test_a_network_that_is_a_program_is_refused_as_weights(tmp_path: Path) -> None:
    path = tmp_path / "traced.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), path)
    with pytest.raises(UntrustedCodeError):
        write_package(PackageParts(path, json.dumps(arcgis_emd("RetinaNet"))), tmp_path / "out.dlpk")


def test_a_program_that_the_definition_names_is_packed_and_told(tmp_path: Path) -> None:
    (tmp_path / "Finder.py").write_text("class Finder: pass\n")
    source = emd(Framework="PyTorch", InferenceFunction="Finder.py", ModelConfiguration=None)
    (tmp_path / "Finder.emd").write_text(json.dumps(source))
    written = pack(tmp_path, str(tmp_path / "Finder.emd"))
    assert written.package.definition.program == "Finder.py"
    assert any("holds a program, 'Finder.py'" in note for note in written.notes)


def test_a_program_that_nobody_names_is_refused(tmp_path: Path) -> None:
    (tmp_path / "extra.py").write_text("")
    with pytest.raises(ModelPackageError, match=r"'extra\.py' is a program"):
        pack(tmp_path, definition(), extra_files=(tmp_path / "extra.py",))


def test_a_program_that_is_named_and_missing_is_told(tmp_path: Path) -> None:
    source = emd(Framework="PyTorch", InferenceFunction="Finder.py", ModelConfiguration=None)
    with pytest.raises(ModelPackageError, match=r"names the program 'Finder\.py'"):
        pack(tmp_path, source)


def test_esris_generic_function_is_named_and_not_packed(tmp_path: Path) -> None:
    written = pack(tmp_path, arcgis_emd("RetinaNet"), "model.pth", file_of({"a": torch.zeros(1)}))
    assert [name for name in names_in(written) if name.endswith(".py")] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "No definition"),
        ("/nowhere/x.emd", "cannot be read"),
        ('{"kestrel_definition": 1}', "'detector"),
        ('{"Framework": "e.g. keras"}', "template"),
    ],
)
def test_a_definition_that_cannot_be_used_is_refused_and_leaves_nothing(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InferenceError, match=words):
        pack(tmp_path, text)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_failure_leaves_the_package_that_was_there(tmp_path: Path) -> None:
    written = pack(tmp_path, definition())
    before = written.path.read_bytes()
    with pytest.raises(InferenceError):
        pack(tmp_path, emd(Framework="Keras"))
    assert (written.path.read_bytes(), (tmp_path / "out.dlpk.part").exists()) == (before, False)


def test_a_pointer_instead_of_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelPackageError, match="Git LFS"):
        pack(tmp_path, definition(), content=b"version https://git-lfs.github.com/spec/v1\n")


def test_data_of_a_graph_that_was_left_out_is_told(tmp_path: Path) -> None:
    entry = b"\x0a\x08location\x12\x09model.bin"
    (tmp_path / "model.bin").write_bytes(b"numbers")
    written = pack(tmp_path, definition(), content=b"graph" + entry)
    assert any("'model.bin'" in note for note in written.notes)
    written = pack(tmp_path, definition(), content=b"graph" + entry, extra_files=(tmp_path / "model.bin",))
    assert ("model.bin" in names_in(written), written.notes) == (True, ())


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "MODEL.onnx").write_bytes(b"x")
    with pytest.raises(ModelPackageError, match="its name is taken"):
        pack(tmp_path, definition(), extra_files=(tmp_path / "below" / "MODEL.onnx",))


@pytest.mark.parametrize(
    ("name", "stem"), [("Palms", "Palms"), ("a/b:c", "a_b_c"), ("..", "model"), ("CON", "model"), ("x. ", "x")]
)
def test_any_name_of_a_model_becomes_one_of_a_file(name: str, stem: str) -> None:
    assert file_stem(name) == stem


def arcgis_definition() -> dict[str, Any]:
    return arcgis_emd("FasterRCNN", ModelFile="model.pth")


def test_a_family_of_arcgis_names_the_function_that_arcgis_has_built_in(tmp_path: Path) -> None:
    weights = file_of({"a": torch.zeros(1)})
    written = pack(tmp_path, arcgis_definition(), "model.pth", weights)
    with zipfile.ZipFile(written.path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".emd")]
        content = json.loads(archive.read(name))
    assert "[Functions]System\\DeepLearning\\ArcGISLearn\\ArcGISObjectDetector.py" == content["InferenceFunction"]
    assert ("arcgis", "") == (written.package.definition.kind, written.package.definition.program)


def test_what_arcgis_runs_goes_along_where_it_lies_beside_the_definition_and_is_told(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("ArcGISObjectDetector.py", "ModelConfiguration.py", "other.py"):
        (source / name).write_text("raise RuntimeError\n", encoding="utf-8")
    (source / "model.emd").write_text(json.dumps(arcgis_definition()), encoding="utf-8")
    written = pack(tmp_path, str(source / "model.emd"), "model.pth", file_of({"a": torch.zeros(1)}))
    assert {"ArcGISObjectDetector.py", "ModelConfiguration.py"} <= set(names_in(written))
    assert "other.py" not in names_in(written)
    assert 2 == sum("Kestrel never runs it" in note for note in written.notes)
    assert "" == written.package.definition.program
