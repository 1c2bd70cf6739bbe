from __future__ import annotations

import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kestrel.inference.errors import InferenceError, ModelPackageError, OutputError, UntrustedCodeError
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
        source = st.sampled_from(["percentiles", "statistics", "range"])
        ends = {"minimum": list(range(len(bands))), "maximum": draw(st.integers(100, 10**6))}
        name = draw(source)
        data["input"]["stretch"] = {"from": name, "to": [0, draw(st.sampled_from([1, 255]))],
                                    **(ends if name == "range" else {})}  # fmt: skip
    if "cell_size" in data and draw(st.booleans()):
        data["cell_size"]["read_at"] = draw(st.floats(0.01, 30))
    if draw(st.booleans()):
        data["input"]["data_range"] = [0, draw(st.integers(1, 65535))]
    return data


@pytest.mark.slow
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


@pytest.mark.parametrize("output", ["model.onnx", "MODEL.ONNX", "d.json", "card.md", "look.png", "extra.bin", "link"])
def test_a_package_never_replaces_what_goes_into_it(tmp_path: Path, output: str) -> None:
    contents = {"model.onnx": b"weights", "d.json": json.dumps(definition()).encode(), "card.md": b"# Card\n",
                "look.png": PICTURE, "extra.bin": b"more"}  # fmt: skip
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "link").symlink_to(tmp_path / "model.onnx")
    parts = PackageParts(
        tmp_path / "model.onnx", str(tmp_path / "d.json"), card=tmp_path / "card.md",
        thumbnail=tmp_path / "look.png", extra_files=(tmp_path / "extra.bin",),
    )  # fmt: skip
    with pytest.raises(OutputError, match="which goes into it"):
        write_package(parts, tmp_path / output)
    assert contents == {name: (tmp_path / name).read_bytes() for name in contents}
    assert {*contents, "link"} == {path.name for path in tmp_path.iterdir()}


def test_a_file_or_link_of_the_users_beside_the_package_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "own").write_text("own")
    (tmp_path / "out.dlpk.part").symlink_to(tmp_path / "own")
    written = pack(tmp_path, definition())
    (tmp_path / "usual").touch()
    assert ("own", True) == ((tmp_path / "own").read_text(), (tmp_path / "out.dlpk.part").is_symlink())
    assert written.path.stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert {"own", "usual", "out.dlpk", "out.dlpk.part", "model.onnx"} == {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("name", ["{outside}/settings.py", "../private/settings.py", "code/settings.py"])
def test_a_program_that_lies_outside_of_the_definitions_folder_is_not_packed(tmp_path: Path, name: str) -> None:
    outside, source = tmp_path / "private", tmp_path / "source"
    outside.mkdir()
    source.mkdir()
    (outside / "settings.py").write_text("PASSWORD = 1\n")
    (source / "code").symlink_to(outside)
    text = emd(Framework="PyTorch", InferenceFunction=name.format(outside=outside), ModelConfiguration=None)
    (source / "model.emd").write_text(json.dumps(text))
    with pytest.raises(ModelPackageError, match=r"no place in the definition's own folder|a link out of its folder"):
        pack(tmp_path, str(source / "model.emd"))
    assert not (tmp_path / "out.dlpk").exists()


@pytest.mark.parametrize("part", ["extra_files", "card", "weights", "program"])
def test_a_link_that_leads_out_of_its_folder_is_refused_with_where_it_leads(tmp_path: Path, part: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_text("secret")
    link = folder / ("Finder.py" if part == "program" else "innocent.md")
    link.symlink_to(tmp_path / "secret")
    (folder / "model.onnx").write_bytes(b"weights")
    text = emd(Framework="PyTorch", InferenceFunction="Finder.py", ModelConfiguration=None)
    (folder / "model.emd").write_text(json.dumps(text if part == "program" else emd()))
    given: dict[str, Any] = {"extra_files": {"extra_files": (link,)}, "card": {"card": link}}.get(part, {})
    weights = link if part == "weights" else folder / "model.onnx"
    with pytest.raises(ModelPackageError, match=f"a link out of its folder, to '{tmp_path / 'secret'}'"):
        write_package(PackageParts(weights, str(folder / "model.emd"), **given), tmp_path / "out.dlpk")


def test_a_link_within_its_folder_is_packed_as_the_file_that_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "version-2.txt").write_text("two")
    (tmp_path / "latest.txt").symlink_to("version-2.txt")
    written = pack(tmp_path, definition(), extra_files=(tmp_path / "latest.txt",))
    assert b"two" == zipfile.ZipFile(written.path).read("latest.txt")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes in folders")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "x.emd"
    os.mkfifo(pipe)
    with pytest.raises(ModelPackageError, match="not a file"):
        pack(tmp_path, str(pipe))
    for part in ("card", "thumbnail"):
        with pytest.raises(ModelPackageError, match="not a file"):
            pack(tmp_path, definition(), **{part: pipe})
