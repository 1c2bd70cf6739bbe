from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kestrel.inference.errors import InferenceError, ModelPackageError, ModelUnsupportedError
from kestrel.inference.models.definition import (
    CellSizeRange,
    InputSpec,
    ModelClass,
    TileSpec,
    definition_from_json,
)
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
        ({"input": {"bands": None}}, "'input.bands'"),
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
        ({"classes": []}, "no classes"),
        ({"classes": None}, "no classes"),
        ({"classes": "Tree"}, "no classes"),
        ({"classes": ["Tree"]}, "Class 1 .* is 'Tree'"),
        ({"classes": [{"value": 1}]}, "Class 1 .*no name"),
        ({"classes": [{"name": "a"}, {"name": "b", "value": "2"}]}, "Class 2"),
        ({"arguments": [1]}, "'arguments'"),
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
    with pytest.raises(ModelUnsupportedError, match=r"'tensorflow'.*onnx, torchvision"):
        definition_from_json(definition(detector={"kind": "tensorflow", "weights": "w"}))


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
