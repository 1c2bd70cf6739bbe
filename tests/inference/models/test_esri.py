from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kestrel.inference.errors import InferenceError, ModelPackageError, ModelUnsupportedError
from kestrel.inference.models.definition import CellSizeRange, InputSpec, ModelClass, ModelDefinition, TileSpec
from kestrel.inference.models.esri import definition_from_emd
from kestrel.tests.fixtures.packages import emd


def read(**members: Any) -> ModelDefinition:
    """Translate an .emd with these members; None leaves one out."""
    return definition_from_emd(emd(**members), [])


def test_an_emd_says_the_same_as_a_definition() -> None:
    result = read(
        ModelVersion="3", Description="d", DataRange=[0, 255], ExtractBands=[2, 1, 0], ImageHeight=640, ImageWidth=640,
        SupportsVariableTileSize=True,
        MinCellSize={"x": 0.1, "y": 0.1, "spatialReference": {"wkid": 102100, "latestWkid": 3857}},
        MaxCellSize={"x": 0.3, "y": 0.3, "spatialReference": {"wkid": 102100, "latestWkid": 3857}},
        Kestrel={"input": {"scale": 0.5, "mean": [1, 2, 3], "std": 2}, "stride": 32, "receptive_field_radius": 90,
                 "arguments": {"threshold": 0.2}},
    )  # fmt: skip
    assert ("Cells", "3", "d", "onnx", "model.onnx") == (
        result.name, result.version, result.description, result.kind, result.weights
    )  # fmt: skip
    assert InputSpec((2, 1, 0), (0.5,), (1, 2, 3), (2,), (0, 255)) == result.input
    assert TileSpec(640, True, None, 32, 90) == result.tile
    assert CellSizeRange(0.1, 0.3, 3857) == result.cell_size
    assert (ModelClass(7, "Tree", (1, 2, 3)), ModelClass(9, "Shrub", (4, 5, 6))) == result.classes
    assert ({"head": "yolov8"}, {"threshold": 0.2}) == (result.options, result.arguments)


def test_the_order_of_channels_can_be_turned() -> None:
    assert (2, 1, 0) == read(Kestrel={"input": {"order": "BGR"}}).input.bands
    assert (0, 1, 2) == read(Kestrel={"input": {"order": "RGB"}}).input.bands


@pytest.mark.parametrize(
    ("members", "options"),
    [
        ({"ModelConfiguration": "YOLOv5"}, {"head": "yolov5"}),
        ({"ModelConfiguration": None}, {}),
        (
            {"ModelConfiguration": None, "Kestrel": {"head": "boxes", "label_offset": 1}},
            {"head": "boxes", "label_offset": 1},
        ),
        (
            {"Framework": "torchvision", "ModelConfiguration": "fcos_resnet50_fpn"},
            {"architecture": "fcos_resnet50_fpn"},
        ),
        ({"ModelConfiguration": "YOLOv8", "Kestrel": {"head": "yolov5"}}, {"head": "yolov5"}),
    ],
)
def test_head_and_architecture_come_from_the_configuration_or_from_our_own_member(
    members: dict[str, Any], options: dict[str, Any]
) -> None:
    assert options == read(**members).options


def test_null_in_our_own_member_means_the_same_as_absence() -> None:
    nulls = dict.fromkeys(["schema", "head", "label_offset", "input", "stride"])
    assert read() == read(Kestrel={**nulls, "arguments": {"tile_size": None}})


@pytest.mark.parametrize("framework", ["ONNX", "onnx", " Onnx "])
def test_the_framework_is_known_in_any_spelling(framework: str) -> None:
    assert "onnx" == read(Framework=framework).kind


@pytest.mark.parametrize(
    "cell_sizes",
    [
        {},
        {"MinCellSize": {"x": 1}},
        {"MinCellSize": 1, "MaxCellSize": 2},
        {"MinCellSize": {"x": 0}, "MaxCellSize": {"x": 2}},
        {"MinCellSize": {"x": "a"}, "MaxCellSize": {"x": 2}},
        {"MinCellSize": {}, "MaxCellSize": {}},
    ],
)
def test_cell_sizes_that_say_nothing_are_none(cell_sizes: dict[str, Any]) -> None:
    assert read(**cell_sizes).cell_size is None


def test_cell_sizes_are_put_in_order() -> None:
    assert CellSizeRange(0.1, 0.6, None) == read(MinCellSize={"x": 0.6}, MaxCellSize={"x": 0.1}).cell_size


@pytest.mark.parametrize(
    ("members", "expected", "reason"),
    [
        ({"Framework": "e.g. TensorFlow"}, ModelPackageError, "template.*Train a model first"),
        (
            {"Framework": "arcgis.learn.models._inferencing", "ModelName": "RetinaFace"},
            ModelUnsupportedError,
            "RetinaFace.*ONNX",
        ),
        (
            {"Framework": "PyTorch", "InferenceFunction": "Detector.py"},
            ModelPackageError,
            r"Detector\.py.*does not hold it",
        ),
        ({"Framework": None, "ModelFile": None}, ModelPackageError, "no model definition"),
        ({"Framework": "Keras"}, ModelUnsupportedError, "'Keras'.*ONNX, torchvision"),
        ({"Framework": 5}, ModelUnsupportedError, "'5'"),
        ({"ModelType": "ImageClassification"}, ModelUnsupportedError, r"pixel classifier \(ImageClassification\)"),
        ({"ModelFile": None}, ModelPackageError, "'ModelFile' is missing"),
        ({"ModelFile": ["a"]}, ModelPackageError, "'ModelFile'"),
        ({"ImageWidth": 256}, ModelUnsupportedError, "256 x 512"),
        ({"ImageHeight": -5}, ModelPackageError, "'ImageHeight'"),
        ({"ExtractBands": 3}, ModelPackageError, "'ExtractBands'"),
        ({"ExtractBands": []}, ModelPackageError, "'ExtractBands'"),
        ({"ExtractBands": ["red", -1]}, ModelPackageError, "'ExtractBands'"),
        ({"DataRange": [0]}, ModelPackageError, "'DataRange'"),
        ({"DataRange": 255}, ModelPackageError, "'DataRange'"),
        ({"DataRange": [255, 0]}, ModelPackageError, "'DataRange'"),
        ({"Classes": None}, ModelPackageError, "no classes"),
        ({"Kestrel": 1}, ModelPackageError, "'Kestrel'"),
        ({"Classes": [{"Value": 2**31, "Name": "Oak"}]}, ModelPackageError, "class 'Oak' has the value 2147483648"),
        ({"Kestrel": {"schema": 0}}, ModelPackageError, "'Kestrel.schema' is 0"),
        ({"Kestrel": {"schema": "1"}}, ModelPackageError, "'Kestrel.schema' is '1'"),
        ({"Kestrel": {"schema": 2}}, ModelUnsupportedError, "Update the plugin"),
        ({"Kestrel": {"head": 5}}, ModelPackageError, "'Kestrel.head' is 5"),
        ({"Kestrel": {"head": "detr"}}, ModelUnsupportedError, "head 'detr'"),
        ({"Kestrel": {"arguments": {"treshold": 1}}}, ModelPackageError, "'Kestrel.arguments': treshold"),
        ({"Kestrel": {"input": {"order": "GBR"}}}, ModelPackageError, "'Kestrel.input.order' is 'GBR'"),
        ({"Kestrel": {"haed": "boxes"}}, ModelPackageError, "Unknown member in 'Kestrel': haed"),
        ({"Kestrel": {"label_offset": "a"}}, ModelPackageError, "'Kestrel.label_offset'"),
        ({"Kestrel": {"stride": 10**9}}, ModelPackageError, "'Kestrel.stride'"),
        ({"Kestrel": {"input": {"std": 0}}}, ModelPackageError, "'Kestrel.input.std'"),
        ({"Kestrel": {"input": {"scale": [1, 2]}}}, ModelPackageError, "'Kestrel.input.scale'"),
        ({"Kestrel": {"input": {"gamma": 2}}}, ModelPackageError, "gamma"),
    ],
)
def test_an_emd_that_is_not_run_is_refused_by_name(
    members: dict[str, Any], expected: type[InferenceError], reason: str
) -> None:
    with pytest.raises(expected, match=reason):
        read(**members)


NAMES = ["x", "y", "spatialReference", "wkid", "Value", "Name", "Color", "input", "scale", "std", "order"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**19), 10**19) | st.floats(-1e300, 1e300) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*emd(), "DataRange", "MinCellSize", "MaxCellSize", "Kestrel", "InferenceFunction"]),
        json_values,
    )
)
def test_any_emd_is_translated_or_refused(members: dict[str, Any]) -> None:
    try:
        result = definition_from_emd(emd(**members), [])
    except InferenceError as error:
        assert error.message  # both outcomes are right
        return
    assert result.classes
    assert result.kind in ("onnx", "torchvision")
