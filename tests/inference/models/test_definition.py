from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kestrel.inference.errors import InferenceError, ModelPackageError, ModelUnsupportedError
from kestrel.inference.models.arguments import ARGUMENT_NAMES, FAMILY_ARGUMENTS
from kestrel.inference.models.definition import (
    GEOMETRIES,
    HEADS,
    MEMBERS,
    CellSizeRange,
    InputSpec,
    ModelClass,
    TileSpec,
    definition_from_json,
)
from kestrel.inference.models.esri_families import DEEP_FOREST, FAMILIES
from kestrel.inference.preprocess import make_normalisation
from kestrel.tests.fixtures.packages import definition

FULL = {
    "version": "2",
    "description": "d",
    "license": "CC0",
    "detector": {"kind": "onnx", "weights": "m.onnx", "head": "yolov5", "label_offset": 1},
    "input": {"bands": [3, "red", 0], "scale": [1, 2, 3], "mean": 0.5, "std": [1, 1, 2], "data_range": [0, 10000]},
    "tile": {"size": 640, "variable": False, "padding": 64, "stride": 32, "receptive_field_radius": 200},
    "cell_size": {"min": 0.1, "max": 0.3, "wkid": 3857},
    "classes": [{"value": 4, "name": "Tree", "color": [1, 2, 3]}, {"name": "Shrub"}],
    "arguments": {"threshold": 0.3},
}


def test_every_member_arrives_where_it_belongs() -> None:
    result = definition_from_json(definition(**FULL))
    assert ("Cells", "2", "d", "CC0", "onnx", "m.onnx") == (
        result.name, result.version, result.description, result.license, result.kind, result.weights
    )  # fmt: skip
    assert {"head": "yolov5", "label_offset": 1} == result.options
    assert InputSpec((3, "red", 0), (1, 2, 3), (0.5,), (1, 1, 2), (0, 10000)) == result.input
    assert TileSpec(640, False, 64, 32, 200) == result.tile
    assert CellSizeRange(0.1, 0.3, 3857) == result.cell_size
    assert ModelClass(4, "Tree", (1, 2, 3)) == result.classes[0] == result.class_named("Tree")
    assert (2, "Shrub") == (result.classes[1].value, result.classes[1].name)
    assert {"threshold": 0.3} == result.arguments


def test_what_is_left_out_has_its_default() -> None:
    result = definition_from_json(definition())
    assert (InputSpec(), TileSpec(), None, {}) == (result.input, result.tile, result.cell_size, result.arguments)
    assert result.class_named("Bush") is None


def test_colours_are_whole_numbers_however_they_are_written() -> None:
    (item,) = definition_from_json(definition(classes=[{"name": "a", "Color": [255.0, 2, 3]}])).classes
    assert "ff0203" == "".join(f"{value:02x}" for value in item.color)


def test_classes_without_colours_get_colours_that_differ() -> None:
    result = definition_from_json(definition(classes=[{"name": str(i)} for i in range(10)]))
    assert 10 == len({item.color for item in result.classes})


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"name": 5}, "'name' is 5; expected a text"),
        ({"nmae": "x"}, "Unknown member.*nmae"),
        ({"detector": 5}, "'detector'.*an object"),
        ({"detector": {"kind": "onnx"}}, "'detector.weights' is missing"),
        ({"detector": {"kind": "onnx", "weights": 3}}, "'detector.weights' is 3"),
        ({"detector": {"kind": "onnx", "weights": "w", "label_offset": "1"}}, "'detector.label_offset'"),
        ({"detector": {"kind": "onnx", "weights": "w", "label_offset": -1}}, "'detector.label_offset'"),
        ({"input": {"bands": 3}}, "'input.bands' is 3"),
        ({"input": {"bands": []}}, "'input.bands'"),
        ({"input": {"bands": "RGB"}}, "'input.bands'"),
        ({"input": {"bands": {"red": 1}}}, "'input.bands'"),
        ({"input": {"bands": [-1]}}, "'input.bands'"),
        ({"input": {"bands": [True]}}, "'input.bands'"),
        ({"input": {"bands": [0.5]}}, "'input.bands'"),
        ({"input": {"scale": [1, 2]}}, "'input.scale'.*each of the 3 bands"),
        ({"input": {"mean": "0"}}, "'input.mean'"),
        ({"input": {"mean": []}}, "'input.mean'"),
        ({"input": {"std": 0}}, "'input.std'.*other than zero"),
        ({"input": {"std": [1, 0, 1]}}, "'input.std'.*other than zero"),
        ({"input": {"data_range": [5, 5]}}, "'input.data_range'"),
        ({"input": {"data_range": [5]}}, "'input.data_range'"),
        ({"input": {"data_range": "wide"}}, "'input.data_range'"),
        ({"input": {"gamma": 2}}, "Unknown member in 'input': gamma"),
        ({"tile": {"size": 0}}, "'tile.size'"),
        ({"tile": {"size": "big"}}, "'tile.size'"),
        ({"tile": {"size": 100.5}}, "'tile.size'"),
        ({"tile": {"size": float("inf")}}, "'tile.size'"),
        ({"tile": {"padding": -1}}, "'tile.padding'"),
        ({"tile": {"stride": 0}}, "'tile.stride'"),
        ({"tile": {"stride": 10**9}}, "'tile.stride'.*from 1 to 1024"),
        ({"tile": []}, "'tile'"),
        ({"cell_size": {"min": 0.1}}, "'cell_size.max'"),
        ({"cell_size": {"min": 0.3, "max": 0.1}}, "'cell_size.min'"),
        ({"cell_size": {"min": 0, "max": 0.1}}, "'cell_size.min'"),
        ({"cell_size": {"min": 0.1, "max": 1, "wkid": "utm"}}, "'cell_size.wkid'"),
        ({"cell_size": {"read_at": -1}}, "'cell_size.read_at' is -1; expected metres"),
        ({"input": {"stretch": "percentiles"}}, "'input.stretch' is 'percentiles'; expected an object"),
        ({"input": {"stretch": {"from": "mean"}}}, "'input.stretch.from' is 'mean'.*percentiles, statistics, range"),
        ({"input": {"stretch": {"from": "percentiles", "low": 98, "high": 2}}}, "'input.stretch.low' is 98"),
        (
            {"input": {"stretch": {"from": "range", "minimum": [0, 0], "maximum": 9}}},
            "'input.stretch.minimum'.*3 bands",
        ),
        ({"input": {"stretch": {"from": "range", "minimum": 9, "maximum": [9, 10, 11]}}}, "numbers below 'maximum'"),
        ({"input": {"stretch": {"from": "statistics", "low": 2}}}, "Unknown member in 'input.stretch': low"),
        ({"classes": []}, "no classes"),
        ({"classes": None}, "no classes"),
        ({"classes": "Tree"}, "no classes"),
        ({"classes": ["Tree"]}, "Class 1 .* is 'Tree'"),
        ({"classes": [{"value": 1}]}, "Class 1 .*no name"),
        ({"classes": [{"name": "a"}, {"name": "b", "value": "2"}]}, "Class 2"),
        ({"classes": [{"name": "a"}, {"name": "Oak", "value": 2**31}]}, "class 'Oak' has the value 2147483648"),
        ({"classes": [{"name": "Oak", "value": -(2**31) - 1}]}, "class 'Oak' has the value -2147483649"),
        ({"classes": [{"name": "a", "colour": [1, 2, 3]}]}, r"Unknown member in 'classes\[0\]': colour.*name, color"),
        ({"classes": [{"name": "a", "color": "red"}]}, r"'classes\[0\].color' is 'red'"),
        ({"classes": [{"name": 5}]}, r"'classes\[0\].name' is 5"),
        ({"arguments": [1]}, "'arguments'"),
        ({"arguments": {"treshold": 0.4}}, "Unknown member in 'arguments': treshold.*threshold, nms_overlap"),
        ({"detector": {"kind": "onnx", "weights": "w", "haed": "boxes"}}, "Unknown member in 'detector': haed.*head"),
        ({"detector": {"kind": "onnx", "weights": "w", "architecture": "fcos"}}, "Unknown member.*architecture"),
        ({"detector": {"kind": "torchvision", "weights": "w"}}, "'detector.architecture' is missing"),
        ({"tile": {"variable": "false"}}, "'tile.variable' is 'false'; expected true or false"),
        ({"tile": {"variable": 0}}, "'tile.variable' is 0"),
        ({"kestrel_definition": 0}, "'kestrel_definition' is 0"),
        ({"kestrel_definition": -1}, "'kestrel_definition' is -1"),
        ({"kestrel_definition": True}, "'kestrel_definition' is True"),
    ],
)
def test_a_bad_member_is_refused_by_its_name(members: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelPackageError, match=reason):
        definition_from_json(definition(**members))


@pytest.mark.parametrize("schema", [2, 99, None])
def test_a_newer_schema_is_refused_with_the_way_out(schema: int | None) -> None:
    with pytest.raises(ModelUnsupportedError, match="Update the plugin"):
        definition_from_json(definition(kestrel_definition=schema))


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ModelUnsupportedError, match=r"'caffe'.*onnx, torchvision"):
        definition_from_json(definition(detector={"kind": "caffe", "weights": "w"}))


def test_null_means_the_same_as_absence() -> None:
    optional = {
        "detector": {**definition()["detector"], "label_offset": None},
        "classes": [{"name": "Tree", "value": None, "color": None}],
        "arguments": {"tile_size": None, "threshold": None},
        **dict.fromkeys(["version", "description", "license", "cell_size"]),
        "input": dict.fromkeys(["bands", "scale", "mean", "std", "data_range"]),
        "tile": dict.fromkeys(["size", "variable", "padding", "stride", "receptive_field_radius"]),
    }
    assert definition_from_json(definition(classes=[{"name": "Tree"}])) == definition_from_json(definition(**optional))


# -- The JSON schema ---------------------------------------------------------------------------------------------------

SCHEMA = json.loads((Path(__file__).parents[3] / "resources" / "schema" / "definition-1.json").read_text("utf-8"))

STRETCHES = [part for part in SCHEMA["properties"]["input"]["properties"]["stretch"]["anyOf"] if "properties" in part]
TYPES: dict[str, Any] = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}


def has_type(value: Any, name: str) -> bool:
    if name in ("number", "integer"):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return is_number and (name == "number" or value == int(value))
    return isinstance(value, TYPES[name])


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Tell whether a value fits a schema, as far as the schema's keywords are those that the definition's uses."""
    types = schema.get("type", [])
    types = [types] if isinstance(types, str) else types
    options = [schema["const"]] if "const" in schema else schema.get("enum", [])
    checks = [
        not types or any(has_type(value, name) for name in types),
        not options or any(value == option and type(value) is type(option) for option in options),
        all(any(fits(value, option) for option in schema[key]) for key in ("anyOf",) if key in schema),
        not isinstance(value, str) or "pattern" not in schema or bool(re.search(schema["pattern"], value)),
    ]
    if has_type(value, "number"):
        checks += [
            value >= schema.get("minimum", value),
            value <= schema.get("maximum", value),
            value > schema.get("exclusiveMinimum", value - 1),
        ]
    if isinstance(value, list):
        checks += [schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))]
        checks += [fits(item, schema.get("items", {})) for item in value]
    if isinstance(value, dict):
        known = schema.get("properties", {})
        checks += [set(schema.get("required", [])) <= set(value)]
        checks += [schema.get("additionalProperties", True) or set(value) <= set(known)]
        checks += [fits(item, known.get(name, {})) for name, item in value.items()]
    return all(checks)


def objects_of(schema: Any) -> dict[str, Any]:
    """Give the schema's objects by the names that the reader has for them."""
    top = schema["properties"]
    found = {"": schema, "class": top["classes"]["items"], "own_argument": top["own_arguments"]["items"]["anyOf"][1]}
    found.update({name: top[name] for name in ("input", "tile", "cell_size", "arguments")})
    found.update({part["properties"]["from"]["const"]: part for part in STRETCHES})
    for part in top["detector"]["anyOf"]:
        kind = part["properties"]["kind"]["const"]
        found[part["properties"]["family"]["const"] if kind == "arcgis" else kind] = part
    return found


def test_the_schema_names_what_the_reader_knows() -> None:
    objects = objects_of(SCHEMA)
    assert {name: set(names) for name, names in MEMBERS.items()} == {
        name: set(part["properties"]) for name, part in objects.items()
    }
    assert not any(part["additionalProperties"] for part in objects.values())


def test_the_schema_lists_the_words_that_the_reader_knows() -> None:
    top = SCHEMA["properties"]
    heads = {kind: part["properties"]["head"]["enum"] for kind, part in objects_of(SCHEMA).items()
             if "head" in part["properties"]}  # fmt: skip
    assert all({*HEADS, "", None} == set(words) for words in heads.values())
    assert {"onnx", "torchscript", "torch_export"} <= set(heads)
    assert {*GEOMETRIES, None} == set(top["geometry"]["enum"])
    assert list(ARGUMENT_NAMES) == top["common_arguments"]["items"]["enum"]
    assert list(FAMILY_ARGUMENTS) == top["own_arguments"]["items"]["anyOf"][0]["enum"]
    backbones = {name: part["properties"]["backbone"]["enum"] for name, part in objects_of(SCHEMA).items()
                 if "backbone" in part["properties"]}  # fmt: skip
    assert {family.name: [*family.backbones, "", None] for family in (*FAMILIES.values(), DEEP_FOREST)} == backbones


ONNX = {"kind": "onnx", "weights": "w"}
ARCGIS = {"kind": "arcgis", "weights": "w"}
SSD = {**ARCGIS, "family": "SingleShotDetector", "grids": [4, 2]}
TRANSFORMERS = {"kind": "transformers", "weights": "w", "architecture": "rt_detr", "files": ["config.json"]}
TORCHVISION = {"kind": "torchvision", "weights": "w", "architecture": "fcos_resnet50_fpn"}


@pytest.mark.parametrize(
    ("members", "is_accepted"),
    [
        ({}, True),
        (FULL, True),
        ({"detector": TORCHVISION}, True),
        ({"detector": {**ONNX, "head": None, "label_offset": None}}, True),
        ({"detector": {**TORCHVISION, "label_offset": 0}}, True),
        ({"detector": {"kind": "torchscript", "weights": "w.pt", "head": "yolov8"}}, True),
        ({"detector": {"kind": "torch_export", "weights": "w.pt2", "label_offset": 1}}, True),
        ({"detector": TRANSFORMERS}, True),
        ({"detector": {**TRANSFORMERS, "files": None}}, True),
        ({"detector": {**TRANSFORMERS, "files": "config.json"}}, False),
        ({"detector": {**TRANSFORMERS, "files": [1]}}, False),
        ({"detector": {**TRANSFORMERS, "head": "yolov8"}}, False),
        ({"detector": {"kind": "transformers", "weights": "w"}}, False),
        ({"version": None, "input": None, "tile": None, "cell_size": None, "arguments": None}, True),
        ({"input": {"bands": None, "scale": None, "data_range": None}}, True),
        ({"tile": {"size": 640.0, "variable": False}}, True),
        ({"tile": {"variable": None}}, True),
        ({"classes": [{"Value": 1, "Name": "a", "Color": [0, 0, 255]}]}, True),
        ({"classes": [{"name": "a", "value": -(2**31)}, {"name": "b", "value": 2**31 - 1}]}, True),
        ({"arguments": {"tile_size": None, "threshold": 0.4}}, True),
        ({"kestrel_definition": 0}, False),
        ({"kestrel_definition": 2}, False),
        ({"kestrel_definition": True}, False),
        ({"kestrel_definition": None}, False),
        ({"name": None}, False),
        ({"nmae": None}, False),
        ({"version": 2}, False),
        ({"detector": {"kind": "keras", "weights": "w"}}, False),
        ({"detector": {**ONNX, "architecture": "fcos_resnet50_fpn"}}, False),
        ({"detector": {**ONNX, "head": "cubes"}}, False),
        ({"detector": {**ONNX, "head": "detr", "scores": "softmax", "background": "last"}}, True),
        ({"detector": {**ONNX, "box_units": "", "masks": None}}, True),
        ({"detector": {**ONNX, "head": "centernet"}}, False),
        ({"detector": {**ONNX, "box_format": "xxyy"}}, False),
        ({"detector": {**ONNX, "masks": 1}}, False),
        ({"input": {"pad_value": "grey"}}, False),
        ({"input": {"pad_value": 114, "resize": "stretch", "assumed": True}}, True),
        ({"detector": {**ONNX, "haed": "boxes"}}, False),
        ({"detector": {**ONNX, "label_offset": -1}}, False),
        ({"detector": {**TORCHVISION, "head": "boxes"}}, False),
        ({"detector": {**TORCHVISION, "architecture": None}}, False),
        ({"input": {"bands": []}}, False),
        ({"input": {"bands": [True]}}, False),
        ({"input": {"scale": []}}, False),
        ({"input": {"scale": "1"}}, False),
        ({"input": {"data_range": []}}, False),
        ({"input": {"data_range": 0}}, False),
        ({"tile": {"size": 7}}, False),
        ({"tile": {"variable": "false"}}, False),
        ({"tile": {"variable": 1}}, False),
        ({"tile": {"stride": 1025}}, False),
        ({"cell_size": {}}, False),
        ({"cell_size": {"min": [0.1], "max": 0.2}}, False),
        ({"cell_size": {"min": 0.1, "max": 0.2, "wkid": -1}}, False),
        ({"classes": []}, False),
        ({"classes": [{"value": 1}]}, False),
        ({"classes": [{"name": 1}]}, False),
        ({"classes": [{"name": "a", "value": 2**31}]}, False),
        ({"classes": [{"name": "a", "value": True}]}, False),
        ({"classes": [{"name": "a", "color": [0, 0, 256]}]}, False),
        ({"classes": [{"name": "a", "color": [0, 0]}]}, False),
        ({"classes": [{"name": "a", "valeu": 1}]}, False),
        ({"arguments": {"treshold": 0.4}}, False),
        ({"detector": {"kind": "torchscript", "weights": "w", "head": "yolov8"}}, True),
        ({"detector": {"kind": "transformers", "weights": "w", "architecture": "detr", "files": ["a"]}}, True),
        ({"detector": SSD}, True),
        ({"detector": {**SSD, "backbone": "vgg16", "zooms": [1, 0.7], "ratios": [[1, 2]], "version": 2}}, True),
        ({"detector": {**ARCGIS, "family": "RetinaNet", "ratios": [0.5, 2], "scales": 1}}, True),
        ({"detector": {**ARCGIS, "family": "YOLOv3", "anchors": [[10, 20]] * 9}}, True),
        ({"detector": {**ARCGIS, "family": "MaskRCNN", "kwargs": {"rpn_nms_thresh": 0.6}, "resize": 1.5}}, True),
        ({"detector": {**ARCGIS, "family": "RTDetrV2", "n_queries": 100, "cross_attn_method": "discrete"}}, True),
        ({"detector": {"kind": "tensorflow", "weights": "w.pb"}}, True),
        ({"detector": {"kind": "python", "program": "Finder.py", "emd": {"ModelName": "x"}}}, True),
        ({"detector": ARCGIS}, False),
        ({"detector": {**SSD, "grids": []}}, False),
        ({"detector": {**SSD, "grids": [2.5]}}, False),
        ({"detector": {**SSD, "backbone": "resnet1000"}}, False),
        ({"detector": {**SSD, "anchors": [[10, 20]] * 9}}, False),
        ({"detector": {**SSD, "ratios": [1, 2]}}, False),
        ({"detector": {**ARCGIS, "family": "YOLOv3", "anchors": [[10, 20]] * 8}}, False),
        ({"detector": {**ARCGIS, "family": "MaskRCNN", "kwargs": {"rpn_nms_thresh": 6}}}, False),
        ({"detector": {**ARCGIS, "family": "MaskRCNN", "kwargs": {"box_nms_thresh": 0.5}}}, False),
        ({"detector": {"kind": "tensorflow"}}, False),
        ({"detector": {"kind": "python", "weights": "w"}}, False),
        ({"geometry": "polygon", "map_space": False, "common_arguments": ["threshold"]}, True),
        ({"own_arguments": ["tta_scales", {"name": "a", "kind": "choice", "choices": ["x"], "default": "x"}]}, True),
        ({"weights_sha256": "AB" * 32, "input": {"service": "landsat", "pad_value": 9, "assumed": True}}, True),
        ({"geometry": "circle"}, False),
        ({"map_space": "no"}, False),
        ({"common_arguments": ["tta_scales"]}, False),
        ({"own_arguments": ["unheard_of"]}, False),
        ({"own_arguments": [{"name": "a"}]}, False),
        ({"weights_sha256": "AB"}, False),
        ({"input": {"service": "esa"}}, False),
        ({"input": {"resize": "crop"}}, False),
        ({"input": {"stretch": None}}, True),
        ({"input": {"stretch": {"from": "percentiles"}}}, True),
        ({"input": {"stretch": {"from": "percentiles", "low": 0.5, "high": 99.5, "to": [0, 1]}}}, True),
        ({"input": {"stretch": {"from": "statistics", "deviations": 2.5, "to": None}}}, True),
        ({"input": {"stretch": {"from": "range", "minimum": 0, "maximum": [3000, 3000, 4000]}}}, True),
        ({"input": {"stretch": {}}}, False),
        ({"input": {"stretch": {"from": "minmax"}}}, False),
        ({"input": {"stretch": {"from": "percentiles", "low": -1}}}, False),
        ({"input": {"stretch": {"from": "percentiles", "deviations": 2}}}, False),
        ({"input": {"stretch": {"from": "statistics", "deviations": 0}}}, False),
        ({"input": {"stretch": {"from": "range", "minimum": 0}}}, False),
        ({"input": {"stretch": {"from": "range", "minimum": 0, "maximum": "all"}}}, False),
        ({"input": {"stretch": {"from": "range", "minimum": 0, "maximum": 1, "to": [0]}}}, False),
        ({"cell_size": {"read_at": 0.3}}, True),
        ({"cell_size": {"min": 0.1, "max": 0.2, "wkid": 3857, "read_at": 0.15}}, True),
        ({"cell_size": {"min": None, "read_at": 0.3}}, True),
        ({"cell_size": {"min": 0.1, "read_at": 0.3}}, False),
        ({"cell_size": {"wkid": 3857, "read_at": 0.3}}, False),
        ({"cell_size": {"read_at": 0}}, False),
        ({"cell_size": {"read_at": None}}, False),
    ],
)
def test_reader_and_schema_accept_and_refuse_the_same(members: dict[str, Any], is_accepted: bool) -> None:
    data = definition(**members)
    try:
        definition_from_json(data)
        is_read = True
    except InferenceError:
        is_read = False
    assert (is_accepted, is_accepted) == (is_read, fits(data, SCHEMA))


NAMES = ["kind", "weights", "bands", "scale", "mean", "std", "data_range", "size", "stride", "min", "max", "name"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**19), 10**19) | st.floats(-1e300, 1e300) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["name", "detector", "input", "tile", "cell_size", "classes", "arguments"]), json_values
    )
)
def test_any_definition_is_read_or_refused_and_what_is_read_can_be_used(members: dict[str, Any]) -> None:
    try:
        result = definition_from_json(definition(**members))
    except InferenceError as error:
        assert error.message  # both outcomes are right
        return
    normalisation = make_normalisation(result.input)
    assert (len(result.input.bands), 1, 1) == normalisation.gain.shape == normalisation.bias.shape
