"""What is no definition and brings a model all the same: read as data, and translated into a definition."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest

from kestrel.inference.errors import InferenceError, ModelPackageError, ModelUnsupportedError, UntrustedCodeError
from kestrel.inference.models.arguments import resolve_arguments
from kestrel.inference.models.carriers.class_names import as_names
from kestrel.inference.models.carriers.state_dict import tensor_shapes
from kestrel.inference.models.description import describe_package
from kestrel.inference.models.package import locate_definition, open_package
from kestrel.inference.models.packaging import PackageParts, write_package

RT_DETR = {
    "model_type": "rt_detr", "architectures": ["RTDetrForObjectDetection"],
    "id2label": {"0": "Tree", "1": "Car", "2": "Roof"},
}  # fmt: skip


def safetensors(path: Path, shapes: dict[str, list[int]]) -> Path:
    """Write weights that are nothing but zeros."""
    header, end = {}, 0
    for name, shape in shapes.items():
        n = 4
        for side in shape:
            n *= side
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + n]}
        end += n
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * end)
    return path


def model_folder(folder: Path, config: Any = RT_DETR, **files: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    safetensors(folder / "model.safetensors", {"a": [1]})
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(json.dumps(content), "utf-8")
    return folder


# -- Model folders of Hugging Face -------------------------------------------------------------------------------------


def test_a_model_folder_is_described_without_any_library(tmp_path: Path) -> None:
    prepared = {"do_normalize": False, "size": {"height": 320, "width": 320}, "rescale_factor": 0.5}
    folder = model_folder(tmp_path / "m", preprocessor_config__json=prepared)
    for reference in (folder, folder / "config.json", folder / "model.safetensors"):
        package = open_package(str(reference))
        definition = package.definition
        assert ("transformers", "m", "model.safetensors") == (definition.kind, definition.name, definition.weights)
        assert ["Tree", "Car", "Roof"] == [item.name for item in definition.classes]
        assert ((0.5,), (0.0,), 320, False) == (
            definition.input.scale, definition.input.mean, definition.tile.size, definition.tile.is_variable
        )  # fmt: skip
        told = describe_package(package)
        assert told["run_by"] == "Hugging Face Transformers (optional library)"
        assert {"config.json", "preprocessor_config.json", "model.safetensors"} <= {f["name"] for f in told["files"]}
        assert told["code"]["is_run"] is False


def test_the_hash_of_a_folder_counts_what_decides_the_result(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", preprocessor_config__json={})
    before = open_package(str(folder)).sha256()
    (folder / "notes.txt").write_text("n", "utf-8")
    assert open_package(str(folder)).sha256() == before
    for name in ("config.json", "preprocessor_config.json"):
        (folder / name).write_text((folder / name).read_text("utf-8") + "\n", "utf-8")
        assert open_package(str(folder)).sha256() != before
        before = open_package(str(folder)).sha256()


@pytest.mark.parametrize(
    ("prepared", "side", "is_fixed"),
    [
        ({"size": {"shortest_edge": 600, "longest_edge": 1000}}, 600, False), ({"size": 700}, 700, False),
        ({"do_resize": False}, 800, False), ({"size": {"height": 480, "width": 640}}, 640, True),
        ({"size": {"height": 10**9, "width": 1}}, 800, False), ({"size": [1]}, 800, False),
        ({"size": [768, 768]}, 768, True), ({}, 800, False),
    ],
)  # fmt: skip
def test_the_size_of_tiles_follows_how_pixels_are_prepared(
    tmp_path: Path, prepared: Any, side: int, is_fixed: bool
) -> None:
    folder = model_folder(tmp_path / "m", {"model_type": "detr"}, preprocessor_config__json=prepared)
    tile = open_package(str(folder)).definition.tile
    assert (tile.size, tile.is_variable) == (side, not is_fixed)


def test_the_preparation_may_stand_in_the_processors_file_or_nowhere(tmp_path: Path) -> None:
    inner = {"image_processor": {"do_normalize": True, "image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 2]}}
    one = open_package(str(model_folder(tmp_path / "a", processor_config__json=inner))).definition
    assert (one.input.mean, one.input.std) == ((0.1, 0.2, 0.3), (1, 1, 2))
    two = open_package(str(model_folder(tmp_path / "b"))).definition
    assert (two.tile.size, two.input.mean) == (640, (0.0,))
    assert "does not say how pixels are prepared" in two.notes[0]


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({**RT_DETR, "auto_map": {"AutoModel": "evil.Net"}}, "auto_map"),
        ({"model_type": "llama"}, "kind 'llama'"),
        ({"model_type": ["detr"]}, "which Kestrel does not run"),
        ({"model_type": "detr", "architectures": ["DetrForSegmentation"]}, "DetrForSegmentation"),
    ],
)
def test_what_kestrel_does_not_run_is_refused_by_name(tmp_path: Path, config: Any, text: str) -> None:
    with pytest.raises(ModelUnsupportedError, match=text):
        open_package(str(model_folder(tmp_path / "m", config)))


@pytest.mark.parametrize("place", ["../secret.safetensors", "/etc/passwd", "a\\b.safetensors", "..", "x.py", 5])
def test_weights_that_lead_out_of_the_folder_are_refused(tmp_path: Path, place: Any) -> None:
    folder = model_folder(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": place}}), "utf-8")
    with pytest.raises(ModelPackageError, match="no file of weights in its folder"):
        open_package(str(folder))


@pytest.mark.parametrize(
    "text",
    ["[" * 10**5, '{"model_type": "detr", "x": ' + "1" * 5000 + "}", '{"model_type": "detr", "model_type": "yolos"}',
     '{"model_type": "detr", "x": NaN}', "[]", "\x00", '{"model_type": "detr"' + " " * 5 * 2**20 + "}"],
    ids=["deep", "digits", "twice", "nan", "list", "zero", "huge"],
)  # fmt: skip
def test_a_hostile_config_is_refused(tmp_path: Path, text: str) -> None:
    folder = model_folder(tmp_path / "m")
    (folder / "config.json").write_text(text, "utf-8")
    with pytest.raises(InferenceError):
        open_package(str(folder))


def test_a_folder_without_weights_or_tokenizer_is_told(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", {"model_type": "owlv2"})
    with pytest.raises(ModelPackageError, match="holds no tokenizer"):
        open_package(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelPackageError, match="holds no weights"):
        open_package(str(folder))


def test_a_network_of_open_vocabulary_asks_for_a_text(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", {"model_type": "owlv2"}, tokenizer__json={})
    definition = open_package(str(folder)).definition
    assert [spec.name for spec in definition.own_arguments] == ["text_prompt", "stretch"]
    assert "test_time_augmentation" not in definition.common_arguments
    assert definition.arguments == {"threshold": 0.1}
    with pytest.raises(InferenceError, match="no text was given"):
        resolve_arguments(definition, {})
    assert resolve_arguments(definition, {"text_prompt": "tree"}).values["text_prompt"] == "tree"


def test_another_config_json_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"colour": "red"}), "utf-8")
    with pytest.raises(ModelPackageError):
        open_package(str(tmp_path / "config.json"))


def test_a_translated_definition_is_the_same_each_time(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    assert locate_definition(str(folder)).data == locate_definition(str(folder)).data


# -- Bare weights ------------------------------------------------------------------------------------------------------


def resnet(**more: list[int]) -> dict[str, list[int]]:
    blocks = {f"backbone.body.layer3.{number}.conv1.weight": [1] for number in range(6)}
    return {
        "backbone.body.conv1.weight": [1], "backbone.body.layer1.0.conv3.weight": [1],
        "backbone.fpn.layer_blocks.0.0.weight": [1], **blocks,
        **{name.replace("__", "."): shape for name, shape in more.items()},
    }  # fmt: skip


BOX = {"roi_heads__box_predictor__cls_score__weight": [4, 2], "roi_heads__box_head__fc6__weight": [1]}
DENSE = "head__classification_head__cls_logits__weight"
BARE = {
    "fasterrcnn_resnet50_fpn": (resnet(**BOX), 1, 3),
    "fasterrcnn_resnet50_fpn_v2": (
        resnet(roi_heads__box_predictor__cls_score__weight=[4, 2], roi_heads__box_head__0__0__weight=[1]), 1, 3),
    "maskrcnn_resnet50_fpn": (resnet(**BOX, roi_heads__mask_predictor__mask_fcn_logits__weight=[4, 1]), 1, 3),
    "retinanet_resnet50_fpn": (resnet(**{DENSE: [27, 1, 1, 1]}), 0, 3),
    "retinanet_resnet50_fpn_v2": (
        resnet(**{DENSE: [27, 1, 1, 1]}, head__classification_head__conv__0__1__weight=[2]), 0, 3),
    "fcos_resnet50_fpn": (
        resnet(**{DENSE: [3, 1, 1, 1]}, head__regression_head__bbox_ctrness__weight=[1, 1, 1, 1]), 0, 3),
    "ssd300_vgg16": (
        {"backbone.scale_weight": [2], "head.classification_head.module_list.0.weight": [16, 2, 1, 1]}, 1, 3),
    "ssdlite320_mobilenet_v3_large": (
        {"backbone.features.0.0.0.weight": [1], "head.classification_head.module_list.0.1.weight": [24, 1, 1, 1]}, 1,
        3),
}  # fmt: skip


@pytest.mark.parametrize("architecture", BARE)
def test_bare_weights_of_torchvision_are_known_by_their_tensors(tmp_path: Path, architecture: str) -> None:
    shapes, offset, n = BARE[architecture]
    definition = open_package(str(safetensors(tmp_path / "w.safetensors", shapes))).definition
    assert ("torchvision", architecture) == (definition.kind, definition.options["architecture"])
    assert definition.options["label_offset"] == offset
    assert [(item.value, item.name) for item in definition.classes] == [
        (number, f"Class {number}") for number in range(offset, offset + n)
    ]
    assert architecture in definition.notes[0]
    assert f"does not name its {n} classes" in definition.notes[1]
    assert definition.geometry == ("polygon" if architecture.startswith("mask") else "box")


@pytest.mark.parametrize(
    ("names", "found", "offset"),
    [
        (["a", "b", "c"], ["a", "b", "c"], 1), (["__background__", "a", "b", "c"], ["a", "b", "c"], 1),
        (["a", "b"], ["Class 1", "Class 2", "Class 3"], 1), (["a"] * 4, ["Class 1", "Class 2", "Class 3"], 1),
    ],
)  # fmt: skip
def test_a_list_of_names_is_taken_where_it_fits(
    tmp_path: Path, names: list[str], found: list[str], offset: int
) -> None:
    (tmp_path / "labels.txt").write_text("\n".join(names), "utf-8")
    definition = open_package(
        str(safetensors(tmp_path / "w.safetensors", BARE["fasterrcnn_resnet50_fpn"][0]))
    ).definition
    assert [item.name for item in definition.classes] == found
    assert definition.options["label_offset"] == offset


def test_other_weights_are_refused_with_a_definition_to_copy(tmp_path: Path) -> None:
    path = safetensors(tmp_path / "w.safetensors", {"some.weight": [2]})
    with pytest.raises(ModelPackageError, match="holds weights alone") as caught:
        open_package(str(path))
    example = json.loads(caught.value.hint[caught.value.hint.index('{"kestrel_definition"') :])
    (tmp_path / "w.json").write_text(json.dumps(example), "utf-8")
    assert open_package(str(tmp_path / "w.json")).definition.weights == "w.safetensors"


@pytest.mark.parametrize(
    "data", [b"", struct.pack("<Q", 2**60) + b"{}", struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 9) + b'{"a": 1 }',
             struct.pack("<Q", 20) + b'{"a":{"shape":["b"]}'],
)  # fmt: skip
def test_damaged_weights_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "w.safetensors").write_bytes(data)
    with pytest.raises(ModelPackageError):
        open_package(str(tmp_path / "w.safetensors"))


def pickled(path: Path, module: str, name: str) -> Path:
    """Write what torch.save makes of an object of that class, by hand: the class need not exist."""
    import zipfile

    data = b"\x80\x02c" + f"{module}\n{name}\n".encode() + b")\x81."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", data)
        archive.writestr("net/byteorder", b"little")
        archive.writestr("net/version", b"3\n")
    return path


@pytest.mark.parametrize(
    ("module", "name", "command"),
    [
        ("ultralytics.nn.tasks", "DetectionModel", "yolo export model=best.pt format=onnx"),
        ("models.yolo", "Model", "python export.py --weights best.pt --include onnx"),
        ("mine.net", "Net", "export the model to ONNX"),
    ],
)
def test_a_pickled_network_is_refused_with_the_command_that_exports_it(
    tmp_path: Path, module: str, name: str, command: str
) -> None:
    with pytest.raises(UntrustedCodeError, match=f"{module}.{name}") as caught:
        open_package(str(pickled(tmp_path / "best.pt", module, name)))
    assert command in caught.value.hint


# -- Packed ------------------------------------------------------------------------------------------------------------


def test_a_model_folder_is_packed_with_all_that_belongs_to_it(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", preprocessor_config__json={"size": {"height": 320, "width": 320}})
    parts = PackageParts(folder / "model.safetensors", str(folder))
    written = write_package(parts, tmp_path / "p.dlpk")
    one, two = written.package.definition, open_package(str(folder)).definition
    assert (one.kind, one.classes, one.tile, one.options) == (two.kind, two.classes, two.tile, two.options)
    assert {"config.json", "preprocessor_config.json", "model.safetensors"} <= set(written.package.members.names())


def test_bare_weights_are_packed_with_their_translated_definition(tmp_path: Path) -> None:
    path = safetensors(tmp_path / "w.safetensors", BARE["fasterrcnn_resnet50_fpn"][0])
    written = write_package(PackageParts(path, str(path)), tmp_path / "p.dlpk")
    assert written.package.definition.options["architecture"] == "fasterrcnn_resnet50_fpn"


# -- Claims without bounds ---------------------------------------------------------------------------------------------


def archive(path: Path, members: dict[str, str], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as target:
        for name, text in members.items():
            target.writestr(name, text)
    return path


def exported(path: Path, image: list[int], output: list[int], more: str = "") -> Path:
    """Write what torch.export writes of a graph with these shapes."""
    names = {"x": image, "y": output}
    graph = {
        "inputs": [{"as_tensor": {"name": "x"}}], "outputs": [{"as_tensor": {"name": "y"}}],
        "tensor_values": {name: {"sizes": [{"as_int": n} for n in sizes]} for name, sizes in names.items()},
    }  # fmt: skip
    text = json.dumps({"graph_module": {"graph": graph}})
    return archive(path, {"m/archive_format": "pt2", "m/models/model.json": text[:-1] + more + "}"})


def test_an_exported_program_with_absurd_shapes_is_refused(tmp_path: Path) -> None:
    fine = exported(tmp_path / "a.pt2", [1, 4, 64, 64], [1, 7, 84])
    assert 3 == len(open_package(str(fine)).definition.classes)
    for image, output in (([1, 3, 64, 64], [1, 1048575, 1048575]), ([1, 1001, 64, 64], [1, 7, 84])):
        with pytest.raises(ModelUnsupportedError, match="more than 1000"):
            open_package(str(exported(tmp_path / "b.pt2", image, output)))


def test_a_graph_of_nothing_but_brackets_is_not_read(tmp_path: Path) -> None:
    bomb = exported(tmp_path / "a.pt2", [1, 4, 64, 64], [1, 7, 84], ', "x": [' + "[]," * 300_000 + "[]]")
    assert len(open_package(str(bomb)).definition.classes) != 3


@pytest.mark.parametrize("shape", [5, {"a": 1}, "wide", [1]])
def test_a_shape_of_another_type_is_passed_over(tmp_path: Path, shape: Any) -> None:
    members = {"m/constants.pkl": "", "m/code/x.py": "", "m/extra/config.txt": json.dumps({"shape": shape})}
    assert "torchscript" == open_package(str(archive(tmp_path / "m.pt", members))).definition.kind


def test_members_that_unpack_without_a_bound_are_not_read(tmp_path: Path) -> None:
    note = {"m/constants.pkl": "", "m/code/x.py": "", "m/extra/config.txt": json.dumps({"names": ["Palm"]})}
    counts = [
        len(open_package(str(archive(tmp_path / "m.pt", note, method))).definition.classes)
        for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    ]
    assert [1, 100, 100] == counts


def header_only(path: Path, header: dict[str, Any], n_bytes: int = 0) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(n_bytes))
    return path


@pytest.mark.parametrize("shape", [[10**9, 1], [-1], [1] * 9, 5, None])
def test_a_tensor_that_the_file_has_no_room_for_is_damage(tmp_path: Path, shape: Any) -> None:
    path = header_only(tmp_path / "m.safetensors", {"a": {"dtype": "F32", "shape": shape}}, 100)
    with pytest.raises(ModelPackageError, match="are damaged"):
        tensor_shapes(path)


def test_weights_for_millions_of_classes_are_refused(tmp_path: Path) -> None:
    names = {"head.classification_head.module_list.0.weight": [10**9, 0], "backbone.scale_weight": [1]}
    with pytest.raises(ModelUnsupportedError, match="250000000 classes"):
        open_package(str(safetensors(tmp_path / "m.safetensors", names)))


def test_a_list_of_too_many_tensors_is_refused(tmp_path: Path) -> None:
    for n, name in ((10_001, "{}"), (1000, "x" * 2200 + "{}")):
        header = {name.format(number): {"shape": [0]} for number in range(n)}
        with pytest.raises(ModelUnsupportedError, match="more than 10000 tensors"):
            tensor_shapes(header_only(tmp_path / "m.safetensors", header))


def test_a_long_text_is_not_read_as_names() -> None:
    names = [f"class {number}" for number in range(5000)]
    assert tuple(names) == as_names(repr(names))
    assert () == as_names(repr(names) + " " * 2**17)
