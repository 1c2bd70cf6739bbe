from __future__ import annotations

import copy
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kestrel.inference.errors import InferenceError, ModelHashError, ModelPackageError, ModelUnsupportedError
from kestrel.inference.models.carriers.stac_mlm import _looked_into, translate
from kestrel.inference.models.definition import CellSizeRange, ModelClass, ModelDefinition
from kestrel.inference.models.package import locate_definition, open_package
from kestrel.inference.models.packaging import PackageParts, weights_beside, write_package
from kestrel.inference.models.stretch import Stretch
from kestrel.tests.fixtures.packages import definition
from kestrel.tests.fixtures.runs import run
from kestrel.tests.fixtures.stac_items import later_item, multihash, older_item, structure, write_item


def opened(folder: Path, item: dict[str, Any], **file: Any) -> ModelDefinition:
    return open_package(str(write_item(folder, item, **file))).definition


def scaled(folder: Path, **given: Any) -> ModelDefinition:
    return opened(folder, later_item(given=given))


# -- The whole ---------------------------------------------------------------------------------------------------------


def test_an_item_says_what_a_definition_says(tmp_path: Path) -> None:
    found = opened(tmp_path, later_item())
    assert ("Crowns", "3", "Tree crowns.", "CC-BY-4.0", "onnx", "tree_crowns.onnx") == (
        found.name, found.version, found.description, found.license, found.kind, found.weights
    )  # fmt: skip
    assert (("red", "green", "blue"), True, CellSizeRange(0.1, 0.1)) == (
        found.input.bands, found.tile.is_variable, found.cell_size
    )  # fmt: skip
    assert (ModelClass(1, "Tree", (0x22, 0xAA, 0x8B)),) == found.classes
    assert {"threshold": 0.27, "nms_overlap": 0.3} == found.arguments
    assert () == found.notes


def test_the_older_spelling_says_the_same(tmp_path: Path) -> None:
    later, older = opened(tmp_path / "a", later_item()), opened(tmp_path / "b", older_item())
    assert CellSizeRange(0.1, 0.2) == older.cell_size
    assert (later.input, later.classes, later.tile, later.arguments) == (
        older.input, older.classes, older.tile, older.arguments
    )  # fmt: skip


def test_an_item_around_the_demo_network_finds_the_demos_trees(tmp_path: Path, repository: Path) -> None:
    package = repository / "resources" / "models" / "tree_crowns.dlpk"
    with zipfile.ZipFile(package) as archive:
        weights = archive.read("tree_crowns.onnx")
    demo = repository / "resources" / "demo" / "OSBS_029.tif"
    clip = {"value_scaling": [{"type": "clip", "minimum": 0, "maximum": 255}]}
    wanted = run(tmp_path / "dlpk", demo, package)
    assert 66 == len(wanted)
    for name, spec in (("clipped", clip), ("8 bits", {"input": structure(data_type="uint8")})):
        item = later_item({"file:checksum": multihash(weights)}, spec)
        found = run(tmp_path / name, demo, write_item(tmp_path / f"{name} model", item, content=weights))
        assert wanted.bounds.tolist() == found.bounds.tolist(), name


def test_a_folder_with_an_item_is_a_model(tmp_path: Path) -> None:
    write_item(tmp_path, later_item())
    (tmp_path / "notes.json").write_text("{}")
    assert "Crowns" == open_package(str(tmp_path)).definition.name


def test_the_same_item_gives_the_same_definition_and_another_one_another_hash(tmp_path: Path) -> None:
    path = write_item(tmp_path, later_item())
    before = open_package(str(path))
    assert locate_definition(str(path)).data == before.definition_bytes
    hashes = {
        open_package(str(write_item(tmp_path, item))).sha256() for item in (later_item(), later_item(version="4"))
    }
    assert before.sha256() in hashes and len(hashes) == 2


def test_an_item_is_packed_with_its_weights(tmp_path: Path) -> None:
    item = later_item({"file:checksum": multihash(b"weights")})
    path = str(write_item(tmp_path, item))
    written = write_package(PackageParts(weights_beside(path), path), tmp_path / "crowns.dlpk")
    packed, loose = written.package.definition, open_package(path).definition
    assert replace(packed, facts={}, notes=()) == replace(loose, weights_sha256="", notes=())
    (tmp_path / "other.onnx").write_bytes(b"others")
    with pytest.raises(ModelHashError, match=r"'other\.onnx' are not those"):
        write_package(PackageParts(tmp_path / "other.onnx", path), tmp_path / "crowns.dlpk")


@pytest.mark.parametrize("content", [{}, {"type": "Feature", "properties": {}}, definition(), [1], {"type": "Catalog"}])
def test_json_that_is_no_item_is_left_to_others(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content))
    assert translate(path) is None


# -- Values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"value_scaling": None}, ((1,), (0,), (1,))),
        ({"value_scaling": [{"type": None}]}, ((1,), (0,), (1,))),
        ({"value_scaling": [{"type": "min-max", "minimum": 50, "maximum": 250}]}, ((0.005,), (0.25,), (1,))),
        ({"value_scaling": [{"type": "z-score", "mean": 120, "stddev": 60}]}, ((1,), (120,), (60,))),
        ({"value_scaling": [{"type": "offset", "value": 1000}]}, ((1,), (1000,), (1,))),
        ({"value_scaling": {"type": "scale", "value": 255}}, ((1,), (0,), (255,))),
        (
            {"value_scaling": [{"type": "z-score", "mean": 1, "stddev": 2}, {"type": None},
                               {"type": "scale", "value": 4}]},
            ((1, 1, 1), (1, 0, 0), (2, 1, 4)),
        ),
        ({"norm_type": "min-max", "statistics": [{"minimum": 0, "maximum": 4}]}, ((0.25,), (0,), (1,))),
        (
            {"norm_type": "z-score", "norm_by_channel": True,
             "statistics": [{"mean": i, "stddev": i + 1} for i in (10, 20, 30)]},
            ((1, 1, 1), (10, 20, 30), (11, 21, 31)),
        ),
        ({"norm_type": None, "statistics": [{"mean": 10, "stddev": 3}]}, ((1,), (0,), (1,))),
    ],
)  # fmt: skip
def test_scaling_of_both_spellings_is_folded_into_three_factors(
    tmp_path: Path, given: dict[str, Any], expected: Any
) -> None:
    found = scaled(tmp_path, **given).input
    assert expected == (found.scale, found.mean, found.std)


def test_statistics_of_fractions_are_those_of_8_bits_unless_the_bands_say_otherwise(tmp_path: Path) -> None:
    step = {"value_scaling": [{"type": "z-score", "mean": 0.485, "stddev": 0.229}]}
    found = scaled(tmp_path, **step)
    assert ((1 / 255,), (0.485,), (0.229,)) == (found.input.scale, found.input.mean, found.input.std)
    assert any("divided by 255 first" in note for note in found.notes)
    item = later_item(given=step)
    item["assets"]["model"]["bands"][0]["data_type"] = "float32"
    assert (1.0,) == opened(tmp_path, item).input.scale


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"value_scaling": [{"type": "clip", "minimum": 0, "maximum": 3000}]},
            Stretch("range", minimum=(0,), maximum=(3000,), to=(0, 3000)),
        ),
        (
            {"norm_type": "clip", "norm_clip": [3000, 4000, 5000]},
            Stretch("range", minimum=(0,), maximum=(3000, 4000, 5000), to=(0, 1)),
        ),
    ],
)
def test_values_that_are_cut_off_are_a_stretch(tmp_path: Path, given: dict[str, Any], expected: Stretch) -> None:
    assert expected == scaled(tmp_path, **given).input.stretch


# -- Bands, tiles, classes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bands", "channels", "expected", "n_notes"),
    [
        (["nir08", "B03"], 2, ("nir08", "green"), 0),
        (["left", "right"], 2, (0, 1), 1),
        ([], 4, (0, 1, 2, 3), 1),
        (None, -1, (0, 1, 2), 1),
    ],
)
def test_bands_go_by_what_they_show_and_else_by_their_places(
    tmp_path: Path, bands: Any, channels: int, expected: tuple[Any, ...], n_notes: int
) -> None:
    found = opened(tmp_path, older_item({"bands": bands, "input": structure((-1, channels, 64, 64))}))
    assert (expected, n_notes) == (found.input.bands, len(found.notes))
    assert (64, False) == (found.tile.size, found.tile.is_variable)


def test_the_class_of_the_background_shifts_the_labels(tmp_path: Path) -> None:
    classes = [{"value": 0, "name": "background"}, {"value": 5, "name": "Palm"}, {"value": 6, "description": "Oak"}]
    output = [{"tasks": ["object-detection"], "classification:classes": classes}]
    found = opened(tmp_path, later_item(mlm_output=output))
    assert ([(5, "Palm"), (6, "Oak")], 1) == (
        [(item.value, item.name) for item in found.classes], found.options["label_offset"]
    )  # fmt: skip


def test_functions_around_the_network_are_told_and_not_run(tmp_path: Path) -> None:
    function = {"format": "python", "expression": "evil.module:run"}
    found = scaled(tmp_path, pre_processing_function=function)
    assert any("does not run: 'evil.module:run'" in note for note in found.notes)


# -- The artifact ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asset", "architecture", "expected"),
    [
        ({"href": "m.onnx", "mlm:artifact_type": "ONNX"}, "x", ("onnx", {})),
        ({"href": "m.pt2", "mlm:artifact_type": "torch.export.save"}, "x", ("torch_export", {})),
        ({"href": "m.pt", "mlm:artifact_type": "torch.jit.save"}, "x", ("torchscript", {})),
        ({"href": "m.safetensors", "mlm:artifact_type": "safetensors.torch.save_file"}, "FCOS_ResNet50_FPN",
         ("torchvision", {"architecture": "fcos_resnet50_fpn"})),
        ({"href": "m.pth", "mlm:artifact_type": "torch.save"}, "Faster R-CNN ResNet-50 FPN",
         ("torchvision", {"architecture": "fasterrcnn_resnet50_fpn"})),
    ],
)  # fmt: skip
def test_the_artifact_tells_the_detector(
    tmp_path: Path, asset: dict[str, Any], architecture: str, expected: tuple[str, dict[str, Any]]
) -> None:
    found = opened(tmp_path, later_item(asset, mlm_architecture=architecture), weights=asset["href"])
    assert expected == (found.kind, dict(found.options))


def test_of_several_models_the_one_that_is_data_and_at_hand_is_taken(tmp_path: Path) -> None:
    item = later_item()
    item["assets"]["script"] = {"href": "m.pt", "roles": ["mlm:model"], "mlm:artifact_type": "torch.jit.save"}
    assert "onnx" == opened(tmp_path, item).kind
    (tmp_path / "tree_crowns.onnx").unlink()
    assert "torchscript" == opened(tmp_path, item, weights="m.pt").kind


HREFS = ["https://example.org/models/tree_crowns.onnx?download=1", "s3://bucket/a/tree_crowns.onnx",
         "/somewhere/else/tree_crowns.onnx", "C:\\models\\tree_crowns.onnx", "../tree_crowns.onnx"]  # fmt: skip


@pytest.mark.parametrize("href", HREFS)
def test_a_model_elsewhere_is_taken_from_beside_the_item_and_else_refused_with_the_way_out(
    tmp_path: Path, href: str
) -> None:
    item = later_item({"href": href})
    found = opened(tmp_path / "a", item)
    assert "tree_crowns.onnx" == found.weights
    assert any("beside the item was taken" in note for note in found.notes)
    with pytest.raises(ModelPackageError, match=r"folder of the item") as caught:
        opened(tmp_path / "b", item, weights="")
    assert "tree_crowns.onnx" in str(caught.value)


@pytest.mark.parametrize("href", ["sub/tree%20crowns.onnx", "./sub/tree crowns.onnx",
                                  "file://{folder}/sub/tree%20crowns.onnx",
                                  "{folder}/sub/tree crowns.onnx"])  # fmt: skip
def test_a_path_below_the_items_folder_is_found_however_it_is_written(tmp_path: Path, href: str) -> None:
    (tmp_path / "sub").mkdir()
    found = opened(tmp_path, later_item({"href": href.format(folder=tmp_path)}), weights="sub/tree crowns.onnx")
    assert ("sub/tree crowns.onnx", ()) == (found.weights, found.notes)


def test_another_file_than_the_stated_one_is_refused(tmp_path: Path) -> None:
    item = later_item({"file:checksum": multihash(b"weights").upper()})
    assert open_package(str(write_item(tmp_path, item))).sha256()
    with pytest.raises(ModelHashError, match="is not the one that the model's definition was written for"):
        open_package(str(write_item(tmp_path, item, content=b"others"))).sha256()


def test_a_checksum_of_another_kind_is_told(tmp_path: Path) -> None:
    found = opened(tmp_path, later_item({"file:checksum": "1114" + "0" * 40}))
    assert any("no SHA-256" in note for note in found.notes)


# -- What is refused ---------------------------------------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], str]] = [
    (later_item(mlm_tasks=["semantic-segmentation"]), "for semantic-segmentation; Kestrel finds objects"),
    (later_item(mlm_tasks=None), "a task that it does not name"),
    (later_item(mlm_input=[]), "takes 0 inputs"),
    (later_item(given={"input": structure((-1, 3, 2, 64, 64), "batch channel time height width")}), "channel, time"),
    (later_item(given={"input": structure((-1, 64, 64, 3), "batch height width channel")}), "order of axes"),
    (later_item(given={"input": structure((-1, 3, 64, 32))}), "32 x 64 pixels"),
    (later_item(given={"input": structure((-1, 4, 64, 64))}), "4 channels, and 'mlm:input' names 3 bands"),
    (later_item(given={"input": {"shape": "large"}}), r"mlm:input\[0\].input.shape' is 'large'"),
    (later_item(given={"bands": [{"name": "NDVI", "format": "gdal-calc", "expression": "A-B"}]}), "'NDVI'.*computed"),
    (later_item(given={"bands": [5]}), "a list of names"),
    (later_item(given={"value_scaling": [{"type": "processing", "format": "x"}]}), "'processing'"),
    (later_item(given={"value_scaling": [{"type": "z-score", "mean": 1}]}), r"value_scaling\[0\].stddev' is missing"),
    (later_item(given={"value_scaling": [{"type": "min-max", "minimum": 1, "maximum": 1}]}), "below 'maximum'"),
    (later_item(given={"value_scaling": [{"type": "scale", "value": 2}] * 2}), "2 steps, and the model takes 3 bands"),
    (later_item(given={"value_scaling": [{"type": "clip-min", "minimum": 0}]}), "cuts values off"),
    (later_item(given={"norm_type": "l2", "statistics": [{"mean": 1}]}), "'l2', which Kestrel does not compute"),
    (later_item(given={"norm_type": "z-score"}), "statistics' is missing"),
    (later_item(mlm_output=[]), "names no classes"),
    (later_item(mlm_output=[{"classification:classes": [{"value": "a"}]}]), "value' is 'a'"),
    (later_item({"roles": ["data"], "mlm:artifact_type": None}), "names no model"),
    (later_item({"href": None}), "has no 'href'"),
    (later_item({"href": "m.keras", "mlm:artifact_type": "tf.keras.Model.save"}), "pytorch tf.keras.Model.save .keras"),
    (later_item({"href": "m.pt2", "mlm:artifact_type": "torch.export.save", "mlm:compile_method": "aot"}), "compiled"),
    (later_item({"href": "m.pth", "mlm:artifact_type": "torch.save"}), "'YOLO' is none of torchvision's.*as ONNX"),
]


@pytest.mark.parametrize(("item", "reason"), BAD, ids=[reason for _, reason in BAD])
def test_what_cannot_be_run_is_refused_by_name(tmp_path: Path, item: dict[str, Any], reason: str) -> None:
    with pytest.raises((ModelPackageError, ModelUnsupportedError), match=reason):
        opened(tmp_path, item)


def test_items_of_something_else_are_refused_as_what_they_are(tmp_path: Path) -> None:
    image = {"type": "Feature", "stac_version": "1.0.0", "properties": {"datetime": None}, "assets": {}}
    for content, reason in (
        (image, "but no model"),
        ({**image, "properties": {"ml-model:type": "ml-model"}}, "older ML Model extension"),
        ({"type": "Collection", "stac_version": "1.0.0", "id": "x"}, "a STAC collection"),
    ):
        with pytest.raises(ModelPackageError, match=reason):
            opened(tmp_path, content)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 3000) | st.floats(-10, 10) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=4,
)  # fmt: skip


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_item_is_read_or_refused_and_breaks_nothing(tmp_path: Path, data: st.DataObject) -> None:
    item = copy.deepcopy(later_item() if data.draw(st.booleans()) else older_item())
    place: Any = item
    for _ in range(data.draw(st.integers(1, 6))):
        keys = list(place) if isinstance(place, dict) else list(range(len(place))) if isinstance(place, list) else []
        inner = [key for key in keys if isinstance(place[key], (dict, list)) and place[key]]
        if not inner:
            break
        parent, key = place, data.draw(st.sampled_from(inner))
        place = parent[key]
    keys = list(place) if isinstance(place, dict) else list(range(len(place)))
    place[data.draw(st.sampled_from(keys))] = data.draw(JSON)
    try:
        assert opened(tmp_path, item).classes
    except InferenceError as error:
        assert error.message


def test_many_functions_are_told_in_few_notes(tmp_path: Path) -> None:
    item = later_item()
    item["properties"]["mlm:input"][0]["pre_processing_function"] = [{"expression": f"f{n}"} for n in range(5000)]
    notes = [note for note in opened(tmp_path, item).notes if "pre_processing_function" in note]
    assert 4 == len(notes) and "4997 more" in notes[-1]


def test_of_a_folder_only_so_many_bytes_are_read(tmp_path: Path) -> None:
    write_item(tmp_path, later_item())
    for number in range(3):
        (tmp_path / f"a{number}.json").write_bytes(b'{"stac_version": "1.0", "x": "' + b" " * 2**21 + b'"}')
    assert 2 == len(_looked_into(tmp_path))
    found = translate(tmp_path)
    assert found is not None and "Crowns" == found[0]["name"]
