from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kestrel.inference.errors import InferenceError, ModelPackageError, ModelUnsupportedError
from kestrel.inference.models.definition import CellSizeRange, InputSpec, ModelClass, ModelDefinition, TileSpec
from kestrel.inference.models.esri import definition_from_emd
from kestrel.tests.fixtures.esri_packages import arcgis_emd
from kestrel.tests.fixtures.packages import emd

DETECTOR_KINDS = ("onnx", "torchvision", "arcgis", "tensorflow", "python", "torchscript")


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


# -- What selects the detector -----------------------------------------------------------------------------------------

LEARN = "arcgis.learn.models._inferencing"
CODE = b"raise RuntimeError('a package ran')\n"
SOURCE = b"""
class Own:
    def getParameterInfo(self):
        return [
            {"name": "raster", "dataType": "raster", "value": None, "required": True},
            {"name": "model", "dataType": "string", "value": None, "required": True},
            {"name": "text_prompt", "dataType": "string", "value": "car", "required": False},
        ]
"""


def found(members: dict[str, Any], files: list[str], base: dict[str, Any] | None = None) -> ModelDefinition:
    """Translate an .emd with these files beside it."""
    data = {**(arcgis_emd("FasterRCNN") if base is None else base), **members}
    data = {key: value for key, value in data.items() if value is not None}
    return definition_from_emd(data, ["model.emd", *files], lambda name, n: SOURCE[:n], "model")


SELECTED: dict[str, tuple[dict[str, Any], list[str], tuple[str, str, str]]] = {
    # name: members of a FasterRCNN's .emd, files beside it, (kind, weights, program)
    "a family": ({}, ["model.pth", "ArcGISObjectDetector.py"], ("arcgis", "model.pth", "")),
    "a family whose function is built in": (
        {"InferenceFunction": "[Functions]System\\DeepLearning\\ArcGISLearn\\ArcGISObjectDetector.py"},
        ["model.pth"], ("arcgis", "model.pth", ""),
    ),
    "a family whose function is somewhere else": (
        {"InferenceFunction": "Missing.py"}, ["model.pth"], ("arcgis", "model.pth", ""),
    ),
    "a family by its configuration alone": (
        {"ModelName": None, "ModelConfiguration": "_RetinaNet_Inference"}, ["model.pth"], ("arcgis", "model.pth", ""),
    ),
    "a family by its class alone": (
        {"ModelName": "ModelExtension", "ModelFileConfigurationClass": "MyFasterRCNN"}, ["model.pth"],
        ("arcgis", "model.pth", ""),
    ),
    "a family without a framework": ({"Framework": None}, ["model.pth"], ("arcgis", "model.pth", "")),
    "a family in another framework's spelling": (
        {"Framework": "arcgis.learn.models._inferencing "}, ["model.pth"], ("arcgis", "model.pth", ""),
    ),
    "a function of its own": (
        {"InferenceFunction": "Own.py"}, ["model.pth", "Own.py"], ("python", "model.pth", "Own.py"),
    ),
    "a function of its own in a folder": (
        {"InferenceFunction": ".\\code\\own.py", "Framework": "PyTorch"}, ["model.pth", "code/Own.py"],
        ("python", "model.pth", "code/Own.py"),
    ),
    "a function of its own without weights or framework": (
        {"InferenceFunction": "Own.py", "Framework": None, "ModelFile": None, "ModelName": "Any title", "Classes": None,
         "ModelType": None, "ModelConfiguration": None},
        ["Own.py"], ("python", "", "Own.py"),
    ),
    "DeepForest": (
        {"Framework": "PyTorch", "InferenceFunction": "TreeDetector.py", "ModelFile": "NEON.pt", "ModelName": "Trees"},
        ["NEON.pt", "TreeDetector.py"], ("arcgis", "NEON.pt", ""),
    ),
    "another tree detector": (
        {"Framework": "Keras", "InferenceFunction": "TreeDetector.py", "ModelFile": "trees.h5"},
        ["trees.h5", "TreeDetector.py"], ("python", "trees.h5", "TreeDetector.py"),
    ),
    "a frozen graph": (
        {"Framework": "TensorFlow", "ModelConfiguration": "ObjectDetectionAPI", "ModelFile": ".\\graph.pb"},
        ["graph.pb"], ("tensorflow", "graph.pb", ""),
    ),
    "a frozen graph with the generic function": (
        {"Framework": "tensorflow", "ModelConfiguration": {"Name": "ObjectDetectionAPI"}, "ModelFile": "graph.pb",
         "InferenceFunction": "ObjectDetector.py"},
        ["graph.pb", "ObjectDetector.py"], ("tensorflow", "graph.pb", ""),
    ),
    "a SavedModel": (
        {"Framework": "TensorFlow", "ModelConfiguration": "ObjectDetectionAPI", "ModelFile": "saved"},
        ["saved/saved_model.pb", "saved/variables/variables.index"], ("tensorflow", "saved/saved_model.pb", ""),
    ),
    "ONNX": (
        {"Framework": "ONNX", "ModelConfiguration": "YOLOv8", "ModelFile": "model.onnx", "InferenceFunction": "Own.py"},
        ["model.onnx", "Own.py"], ("onnx", "model.onnx", ""),
    ),
    "ONNX of Kestrel's own": (
        {"Framework": "ONNX", "ModelFile": "model.onnx", "InferenceFunction": "Own.py", "Kestrel": {"head": "boxes"}},
        ["model.onnx", "Own.py"], ("onnx", "model.onnx", ""),
    ),
    "ONNX with a function that knows more": (
        {"Framework": "ONNX", "ModelConfiguration": None, "ModelFile": "model.onnx", "InferenceFunction": "Own.py"},
        ["model.onnx", "Own.py"], ("python", "model.onnx", "Own.py"),
    ),
    "ONNX without a framework": (
        {"Framework": None, "ModelConfiguration": None, "ModelName": "Any title", "ModelFile": "model.onnx",
         "InferenceFunction": None},
        ["model.onnx"], ("onnx", "model.onnx", ""),
    ),
    "torchvision": (
        {"Framework": "torchvision", "ModelConfiguration": "fcos_resnet50_fpn", "InferenceFunction": "Own.py"},
        ["model.pth", "Own.py"], ("torchvision", "model.pth", ""),
    ),
    "a copy in ONNX form": (
        {"ModelName": "MMDetection", "ONNX": {"INFER": "copy.onnx"}}, ["model.pth", "copy.onnx"],
        ("onnx", "copy.onnx", ""),
    ),
    "a copy in ONNX form beside": (
        {"ModelParameters": {"backbone": "timm:x"}}, ["model.pth", "model.onnx", "model-cpu.pt"],
        ("onnx", "model.onnx", ""),
    ),
    "a traced copy": (
        {"ModelParameters": {"backbone": "timm:x"}, "TorchScript": {"GPU": "g.pt", "CPU": "c.pt"}},
        ["model.pth", "g.pt", "c.pt"], ("torchscript", "c.pt", "c.pt"),
    ),
    "a traced copy beside": (
        {"ModelName": "DETReg"}, ["model.pth", "model-cpu.pt"], ("torchscript", "model-cpu.pt", "model-cpu.pt"),
    ),
    "a family with a copy that is not needed": (
        {"ONNX": {"INFER": "copy.onnx"}}, ["model.pth", "copy.onnx"], ("arcgis", "model.pth", ""),
    ),
    "a family in ONNX form only": ({"ModelFile": "model.onnx"}, ["model.onnx"], ("onnx", "model.onnx", "")),
}  # fmt: skip


@pytest.mark.parametrize("name", SELECTED)
def test_the_definition_and_the_files_beside_it_select_the_detector(name: str) -> None:
    members, files, expected = SELECTED[name]
    result = found(members, files)
    assert expected == (result.kind, result.weights, result.program)
    assert result.kind in DETECTOR_KINDS


def test_a_copy_is_told_with_the_reason() -> None:
    graph = found({"ModelName": "MMDetection", "ModelParameters": {"model": "atss"}}, ["model.pth", "model.onnx"])
    assert "MMDetection model (atss) is built by" in graph.notes[0]
    assert "'model.onnx', is used instead" in graph.notes[0]
    assert ("box", (), {"label_offset": 0}) == (graph.geometry, graph.own_arguments, graph.options)
    traced = found({"ModelParameters": {"backbone": "vit_b"}}, ["model.pth", "model-cpu.pt"])
    assert "backbone 'vit_b'" in traced.notes[0]
    assert "TorchScript form, 'model-cpu.pt', is used instead" in traced.notes[0]
    assert ("FasterRCNN", 1) == (traced.facts["family"], traced.options["label_offset"])


def test_a_function_of_its_own_tells_its_arguments_without_being_run() -> None:
    result = found({"InferenceFunction": "Own.py", "Classes": None}, ["model.pth", "Own.py"])
    assert ((), "any") == (result.common_arguments, result.geometry)
    assert [("text_prompt", "car")] == [(spec.name, spec.default) for spec in result.own_arguments]
    assert ["Object"] == [item.name for item in result.classes]
    assert any("lists no classes; all objects are of the class 'Object'" in note for note in result.notes)


def test_deep_forest_has_the_settings_of_its_authors() -> None:
    members = {
        "Framework": "PyTorch", "InferenceFunction": "TreeDetector.py", "ModelFile": "NEON.pt", "ModelName": "Trees",
        "ImageHeight": None, "ImageWidth": None, "Classes": None,
    }  # fmt: skip
    result = found(members, ["NEON.pt", "TreeDetector.py"])
    assert ({"family": "DeepForest", "backbone": "resnet50"}, "box") == (result.options, result.geometry)
    assert TileSpec(400, False, 20) == result.tile
    assert {"threshold": 0.1, "nms_overlap": 0.05} == result.arguments
    assert InputSpec((0, 1, 2), (1 / 255,), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) == result.input
    assert ["Tree"] == [item.name for item in result.classes]
    assert any("TreeDetector.py is not run" in note for note in result.notes)


def test_a_tensorflow_graph_has_the_defaults_of_esris_template() -> None:
    members = {"Framework": "TensorFlow", "ModelConfiguration": "ObjectDetectionAPI", "ModelFile": "graph.pb"}
    result = found(members, ["graph.pb"])
    assert ({"threshold": 0.6, "nms_overlap": 0.1, "exclude_pad_detections": False}, 0, "box") == (
        result.arguments, result.tile.padding, result.geometry
    )  # fmt: skip
    assert InputSpec((0, 1, 2)) == result.input
    assert "polygon" == found({**members, "ModelType": "InstanceDetection"}, ["graph.pb"]).geometry


def test_a_definition_given_as_text_names_its_program_by_an_absolute_path() -> None:
    data = {**arcgis_emd("FasterRCNN"), "InferenceFunction": "/models/Own.py", "Framework": "PyTorch"}
    result = definition_from_emd(data, [], lambda name, n: SOURCE)
    assert ("python", "/models/Own.py") == (result.kind, result.program)


# -- Refusals: what is opened, and what is said ------------------------------------------------------------------------

TEMPLATE_TEXT = "template that an export of training data writes; it describes no trained model. Train a model first"


def other(name: str, configuration: str, model_type: str) -> dict[str, Any]:
    """Give the members of an arcgis.learn model that does not detect."""
    return {
        "Framework": LEARN, "ModelName": name, "ModelConfiguration": configuration or None, "ModelType": model_type,
    }  # fmt: skip


REFUSALS: dict[str, tuple[dict[str, Any], type[InferenceError], str]] = {
    # what it is: (members of an .emd, class of the error, part of its text)
    "template (Framework)": ({"Framework": "e.g. TensorFlow"}, ModelPackageError, TEMPLATE_TEXT),
    "template (ModelFile)": ({"ModelFile": "e.g. .\\model.pb"}, ModelPackageError, TEMPLATE_TEXT),
    "template (ModelType)": ({"ModelType": "e.g. ObjectDetection"}, ModelPackageError, TEMPLATE_TEXT),
    "template (ModelConfiguration)": (
        {"ModelConfiguration": "e.g. ObjectDetectionAPI"}, ModelPackageError, TEMPLATE_TEXT,
    ),
    "UnetClassifier": (
        other("UnetClassifier", "_unet", "ImageClassification"), ModelUnsupportedError,
        "This is a pixel classifier (UnetClassifier); Kestrel detects objects. "
        "Choose a model of the type ObjectDetection or InstanceDetection.",
    ),
    "PSPNetClassifier": (
        other("PSPNetClassifier", "_psp", "ImageClassification"), ModelUnsupportedError,
        "a pixel classifier (PSPNetClassifier)",
    ),
    "DeepLab": (
        other("DeepLab", "_deeplab_infrencing", "ImageClassification"), ModelUnsupportedError,
        "a pixel classifier (DeepLab)",
    ),
    "MMSegmentation": (
        other("MMSegmentation", "_model_extension_inferencing", "ImageClassification"), ModelUnsupportedError,
        "a pixel classifier (MMSegmentation)",
    ),
    "SamLoRA": (
        other("SamLoRA", "_model_extension_inferencing", "ImageClassification"), ModelUnsupportedError,
        "a pixel classifier (SamLoRA)",
    ),
    "pixel classifier without a name": (
        other("", "_unet", "ImageClassification"), ModelUnsupportedError, "a pixel classifier (_unet)",
    ),
    "MultiTaskRoadExtractor": (
        other("MultiTaskRoadExtractor", "_road_infrencing", "ImageClassification"), ModelUnsupportedError,
        "a road extractor for pixels (MultiTaskRoadExtractor)",
    ),
    "ConnectNet": (
        other("ConnectNet", "_road_infrencing", "ImageClassification"), ModelUnsupportedError,
        "a road extractor for pixels (ConnectNet)",
    ),
    "ChangeDetector": (
        other("ChangeDetector", "change_detection", "ImageClassification"), ModelUnsupportedError,
        "a change detector (ChangeDetector)",
    ),
    "HEDEdgeDetector": (
        other("HEDEdgeDetector", "_model_extension_inferencing", "ImageClassification"), ModelUnsupportedError,
        "an edge detector for pixels (HEDEdgeDetector)",
    ),
    "BDCNEdgeDetector": (
        other("BDCNEdgeDetector", "_model_extension_inferencing", "ImageClassification"), ModelUnsupportedError,
        "an edge detector for pixels (BDCNEdgeDetector)",
    ),
    "FeatureClassifier": (
        other("FeatureClassifier", "_FeatureClassifier", "ObjectClassification"), ModelUnsupportedError,
        "an object classifier (FeatureClassifier)",
    ),
    "MaXDeepLab": (
        other("MaXDeepLab", "_panoptic_inferencing", "PanopticSegmenter"), ModelUnsupportedError,
        "a panoptic segmenter (MaXDeepLab)",
    ),
    "SuperResolution": (
        other("SuperResolution", "_superres", "SuperResolution"), ModelUnsupportedError,
        "a super-resolution model (SuperResolution)",
    ),
    "CycleGAN": (
        other("CycleGAN", "_cyclegan", "CycleGAN"), ModelUnsupportedError, "an image translator (CycleGAN)",
    ),
    "Pix2Pix": (other("Pix2Pix", "_pix2pix", "Pix2Pix"), ModelUnsupportedError, "an image translator (Pix2Pix)"),
    "Pix2PixHD": (
        other("Pix2PixHD", "_pix2pix_hd", "Pix2PixHD"), ModelUnsupportedError, "an image translator (Pix2PixHD)",
    ),
    "ImageCaptioner": (
        other("ImageCaptioner", "_image_captioner_inference", "ImageCaptioner"), ModelUnsupportedError,
        "an image captioner (ImageCaptioner)",
    ),
    "SiamMask": (
        other("SiamMask", "_siammask_inferencing", "ObjectTracking"), ModelUnsupportedError,
        "an object tracker for videos (SiamMask)",
    ),
    "AutoML": (other("AutoML", "_auto_ml", "x"), ModelUnsupportedError, "a model of tables (AutoML)"),
    "PSETAE": (
        other("PSETAE", "_psetae_inferencing", "ImageClassification"), ModelUnsupportedError,
        "a pixel classifier (PSETAE)",
    ),
    "ClimaX": (other("ClimaX", "_climax", "ImageClassification"), ModelUnsupportedError, "a weather model (ClimaX)"),
    "point cloud": (
        other("PointCNN", "", "PointCloudClassification"), ModelUnsupportedError, "a point cloud model (PointCNN)",
    ),
    "point cloud detection": (
        {"Framework": "PyTorch", "ModelName": "Any title", "ModelType": "PointCloudDetection"}, ModelUnsupportedError,
        "a point cloud model (PointCloudDetection)",
    ),
    "tables": (
        other("FullyConnectedNetwork", "", "FullyConnectedNetwork"), ModelUnsupportedError,
        "a model of tables (FullyConnectedNetwork)",
    ),
    "time series": (
        other("TimeSeriesModel", "", "TimeSeriesModel"), ModelUnsupportedError, "a time series model (TimeSeriesModel)",
    ),
    "language model": (
        {"Framework": "PyTorch", "ModelType": "llm"}, ModelUnsupportedError, "a language model (llm)",
    ),
    "a type nobody knows": (
        {"ModelType": "Sorcery"}, ModelUnsupportedError,
        "This is a model of type 'Sorcery'; Kestrel runs object detection models.",
    ),
    "a pixel classifier in ONNX form": (
        {"ModelType": "ImageClassification"}, ModelUnsupportedError, "a pixel classifier (ImageClassification)",
    ),
    "MMDetection": (
        {"Framework": LEARN, "ModelName": "MMDetection", "ModelFile": "m.pth", "ModelParameters": {"model": "atss"}},
        ModelUnsupportedError,
        "This MMDetection model (atss) is built by the MMDetection library with compiled operations of its own. "
        "Export the model to ONNX where it was trained",
    ),
    "DETReg": (
        {"Framework": LEARN, "ModelName": "DETReg", "ModelFile": "m.pth", "ModelParameters": {"backbone": "resnet50"}},
        ModelUnsupportedError, "This DETReg model (resnet50) is a deformable transformer, which Kestrel does not",
    ),
    "GroundingDINO without its program": (
        {"Framework": LEARN, "ModelName": "GroundingDINO", "ModelFile": "m.pth"}, ModelUnsupportedError,
        "This GroundingDINO model is a network that needs the program it was packed with",
    ),
    "a network of the user's own": (
        {"Framework": LEARN, "ModelName": "ModelExtension", "ModelFile": "m.pth",
         "ModelConfiguration": "_model_extension_inferencing", "ModelFileConfigurationClass": "MyDetector"},
        ModelUnsupportedError,
        "This ModelExtension model (MyDetector) is built by a program of its own that needs arcgis.learn.",
    ),
    "a family of tomorrow": (
        {"Framework": LEARN, "ModelName": "YOLOv99", "ModelFile": "m.pth"}, ModelUnsupportedError,
        "This is an arcgis.learn model of the family 'YOLOv99', which this version of Kestrel does not run.",
    ),
    "no family": (
        {"Framework": LEARN, "ModelName": None, "ModelConfiguration": None, "ModelFile": "m.pth"},
        ModelUnsupportedError, "an arcgis.learn model that names no family (ModelName)",
    ),
    "Keras": (
        {"Framework": "Keras", "ModelConfiguration": {"Name": "MaskRCNN"}}, ModelUnsupportedError,
        "The framework 'Keras' with the configuration 'MaskRCNN' is not one that Kestrel runs. "
        "Kestrel runs: ONNX, torchvision, TensorFlow with ObjectDetectionAPI, arcgis.learn.",
    ),
    "CNTK": (
        {"Framework": "CNTK", "ModelConfiguration": "FasterRCNN"}, ModelUnsupportedError, "The framework 'CNTK' with",
    ),
    "PyTorch with the generic function": (
        {"Framework": "PyTorch", "ModelConfiguration": "FastaiSSD", "InferenceFunction": "ObjectDetector.py"},
        ModelUnsupportedError, "The framework 'PyTorch' with the configuration 'FastaiSSD'",
    ),
    "another TensorFlow": (
        {"Framework": "TensorFlow", "ModelConfiguration": "Own"}, ModelUnsupportedError, "'TensorFlow' with the",
    ),
    "templates": ({"Framework": "Templates"}, ModelUnsupportedError, "The framework 'Templates'"),
    "a program that is not there": (
        {"Framework": "PyTorch", "InferenceFunction": "Detector.py"}, ModelPackageError,
        "names the program 'Detector.py', but the package does not hold it. Put the file beside the .emd.",
    ),
    "no definition": (
        {"Framework": None, "ModelFile": None}, ModelPackageError,
        "This JSON is no model definition: it has neither 'Framework' nor 'kestrel_definition'.",
    ),
    "a framework that is a number": ({"Framework": 5}, ModelUnsupportedError, "The framework '5'"),
    "no ModelFile": (
        {"ModelFile": None}, ModelPackageError,
        "member 'ModelFile' is missing; expected the name of the file with the weights. Put the weights",
    ),
    "a list as ModelFile": ({"ModelFile": ["a"]}, ModelPackageError, "'ModelFile'"),
    "tiles that are not square": (
        {"ImageWidth": 256}, ModelUnsupportedError, "256 x 512 pixels; Kestrel cuts square tiles.",
    ),
    "tiles of no size": ({"ImageHeight": -5}, ModelPackageError, "'ImageHeight'"),
    "tiles of a country": ({"ImageHeight": 10**6, "ImageWidth": 10**6}, ModelPackageError, "'ImageHeight'"),
    "a number as ExtractBands": ({"ExtractBands": 3}, ModelPackageError, "'ExtractBands'"),
    "no ExtractBands": ({"ExtractBands": []}, ModelPackageError, "'ExtractBands'"),
    "a band below 0": ({"ExtractBands": ["red", -1]}, ModelPackageError, "'ExtractBands'"),
    "half a DataRange": ({"DataRange": [0]}, ModelPackageError, "'DataRange'"),
    "a number as DataRange": ({"DataRange": 255}, ModelPackageError, "'DataRange'"),
    "a DataRange upside down": ({"DataRange": [255, 0]}, ModelPackageError, "'DataRange'"),
    "no Classes": ({"Classes": None}, ModelPackageError, "has no classes"),
    "a number as Classes": ({"Classes": 2}, ModelPackageError, "has no classes"),
    "a class that is a number": ({"Classes": [5]}, ModelPackageError, "Class 1 of the model definition is 5"),
    "a class of nothing": ({"Classes": [{"Color": [1, 2, 3]}]}, ModelPackageError, "Class 1 of the model definition"),
    "a value of 33 bits": (
        {"Classes": [{"Value": 2**31, "Name": "Oak"}]}, ModelPackageError, "class 'Oak' has the value 2147483648",
    ),
    "too many classes": ({"Classes": ["a"] * 10_001}, ModelPackageError, "has 10001 classes"),
    "Kestrel is a number": ({"Kestrel": 1}, ModelPackageError, "'Kestrel'"),
    "Kestrel.schema is 0": ({"Kestrel": {"schema": 0}}, ModelPackageError, "'Kestrel.schema' is 0"),
    "Kestrel.schema is a text": ({"Kestrel": {"schema": "1"}}, ModelPackageError, "'Kestrel.schema' is '1'"),
    "Kestrel.schema of tomorrow": ({"Kestrel": {"schema": 2}}, ModelUnsupportedError, "Update the plugin"),
    "Kestrel.head is a number": ({"Kestrel": {"head": 5}}, ModelPackageError, "'Kestrel.head' is 5"),
    "Kestrel.head unknown": ({"Kestrel": {"head": "centernet"}}, ModelUnsupportedError, "head 'centernet'"),
    "Kestrel.arguments misspelt": (
        {"Kestrel": {"arguments": {"treshold": 1}}}, ModelPackageError, "'Kestrel.arguments': treshold",
    ),
    "Kestrel.input.order": (
        {"Kestrel": {"input": {"order": "GBR"}}}, ModelPackageError, "'Kestrel.input.order' is 'GBR'",
    ),
    "Kestrel misspelt": ({"Kestrel": {"haed": "boxes"}}, ModelPackageError, "Unknown member in 'Kestrel': haed"),
    "Kestrel.label_offset": ({"Kestrel": {"label_offset": "a"}}, ModelPackageError, "'Kestrel.label_offset'"),
    "Kestrel.stride": ({"Kestrel": {"stride": 10**9}}, ModelPackageError, "'Kestrel.stride'"),
    "Kestrel.input.std": ({"Kestrel": {"input": {"std": 0}}}, ModelPackageError, "'Kestrel.input.std'"),
    "Kestrel.input.scale": ({"Kestrel": {"input": {"scale": [1, 2]}}}, ModelPackageError, "'Kestrel.input.scale'"),
    "Kestrel.input misspelt": ({"Kestrel": {"input": {"gamma": 2}}}, ModelPackageError, "gamma"),
    "Kestrel.input of a family": (
        {"Framework": LEARN, "ModelName": "RetinaNet", "ModelFile": "m.pth", "Kestrel": {"input": {"scale": 2}}},
        ModelPackageError, "Unknown member in 'Kestrel': input",
    ),
}  # fmt: skip
"""Every refusal of a definition that can be read; docs/model_packages.md is made from it."""


@pytest.mark.parametrize("name", REFUSALS)
def test_a_definition_that_is_not_run_is_refused_by_name(name: str) -> None:
    members, expected, text = REFUSALS[name]
    with pytest.raises(expected, match=re.escape(text)) as caught:
        read(**members)
    assert type(caught.value) is expected
    assert caught.value.message.endswith(".")


@pytest.mark.parametrize("name", [name for name, (_, kind, _) in REFUSALS.items() if kind is ModelUnsupportedError])
def test_a_model_that_is_not_run_is_told_with_a_way_out(name: str) -> None:
    with pytest.raises(ModelUnsupportedError) as caught:
        read(**REFUSALS[name][0])
    assert caught.value.hint.endswith(".")


# -- Files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stated", "files", "member", "told"),
    [
        ("model.pth", ["model.pth"], "model.pth", ""),
        (".\\model.pth", ["model.pth"], "model.pth", ""),
        ("./sub/model.pth", ["sub/model.pth"], "sub/model.pth", ""),
        ("sub\\deep\\model.pth", ["sub/deep/model.pth"], "sub/deep/model.pth", ""),
        (".\new.pth", ["new.pth"], "new.pth", ""),  # a backslash that was not doubled became a line break
        ("sub\resnet.pth", ["sub/resnet.pth"], "sub/resnet.pth", ""),
        ("Model.PTH", ["model.pth"], "model.pth", "is called 'model.pth'"),
        ("C:\\me\\model.pth", ["model.pth"], "model.pth", "'model.pth' was taken for it"),
        ("C:/me/model.pth", ["sub/model.pth"], "sub/model.pth", "'sub/model.pth' was taken for it"),
        ("\\\\host\\share\\model.pth", ["model.pth"], "model.pth", "was taken for it"),
        ("/home/me/model.pth", ["model.pth"], "model.pth", "was taken for it"),
        ("model", ["model.pth"], "model.pth", "'model.pth' was taken for it"),
        ("model", ["model.pth", "model.pt"], "model", ""),
        ("other.pth", ["model.pth"], "other.pth", ""),
        ("../model.pth", ["model.pth"], "../model.pth", ""),
        ("C:\\me\\other.pth", ["model.pth"], "C:\\me\\other.pth", ""),
        ("C:\\me\\model.pth", ["a/model.pth", "b/model.pth"], "C:\\me\\model.pth", ""),
        (None, ["model.pth"], "model.pth", "names no ModelFile; the only one in the package, 'model.pth', was taken"),
        ("", ["weights.safetensors"], "weights.safetensors", "was taken"),
    ],
)
def test_weights_are_found_however_they_are_written(
    stated: str | None, files: list[str], member: str, told: str
) -> None:
    result = found({"ModelFile": stated}, files)
    assert member == result.weights
    assert told in " ".join(result.notes)
    assert bool(told) == bool(result.notes)


def test_the_only_one_of_several_model_files_is_taken() -> None:
    assert "model.pth" == found({"ModelFile": None, "ModelFiles": ["model.pth"]}, ["model.pth", "b.pth"]).weights


def test_weights_that_are_not_named_must_be_the_only_ones() -> None:
    with pytest.raises(ModelPackageError, match=r"'ModelFile' is missing.*several models: a\.pth, b\.pt\. Name one"):
        found({"ModelFile": None}, ["b.pt", "a.pth", "c.onnx", "sub/d.pth"])


# -- Classes, cell sizes, facts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "expected", "told"),
    [
        ([{"ClassValue": 3, "ClassName": "Car", "Color": [1, 2, 3]}], [(3, "Car")], ""),
        ([{"Value": 1, "Name": 7}], [(1, "7")], ""),
        ([{"Value": "2", "Name": "Car"}], [(2, "Car")], ""),
        ([{"Value": 2.0, "Name": "Car", "Color": -1}], [(2, "Car")], ""),
        ([{"Value": 4, "Name": None}], [(4, "4")], "Class 1 has no name; it is called '4' after its value."),
        (["Car", "Bus"], [(1, "Car"), (2, "Bus")], ""),
        ({"1": "Car", "2": "Bus"}, [(1, "Car"), (2, "Bus")], ""),
        (
            [{"Value": 1, "Name": "Car"}, {"Value": 2, "Name": "Car"}, {"Value": 3, "Name": "Car"}],
            [(1, "Car"), (2, "Car (2)"), (3, "Car (3)")],
            "Several classes have the name 'Car'; they are numbered to tell them apart.",
        ),
        (["Car", "Car (2)", "Car"], [(1, "Car"), (2, "Car (2)"), (3, "Car (3)")], "numbered"),
    ],
)
def test_classes_are_read_in_all_their_forms(classes: Any, expected: list[tuple[int, str]], told: str) -> None:
    result = read(Classes=classes)
    assert expected == [(item.value, item.name) for item in result.classes]
    assert told in " ".join(result.notes)
    assert bool(told) == bool(result.notes)


@pytest.mark.parametrize("color", [-1, None, [1, 2], [1, 2, 300], "red", [1.5, 2, 3], [True, 1, 1]])
def test_a_class_without_a_colour_gets_one(color: Any) -> None:
    (item,) = read(Classes=[{"Value": 1, "Name": "Car", "Color": color}]).classes
    assert all(0 <= part <= 255 for part in item.color)


def test_a_colour_with_transparency_is_taken_without_it() -> None:
    assert (1, 2, 3) == read(Classes=[{"Value": 1, "Name": "Car", "Color": [1, 2, 3, 255]}]).classes[0].color


@pytest.mark.parametrize(
    ("reference", "wkid"),
    [
        ({"wkid": 102100, "latestWkid": 3857}, 3857),
        ({"wkid": 4326}, 4326),
        ({"wkid": 2263}, 2263),
        (None, None),
        ({}, None),
        ({"wkt": 'GEOGCS["GCS_WGS_1984",UNIT["Degree",0.0174532925199433]]'}, 4326),
        ({"wkt": 'PROJCS["x",GEOGCS["y",UNIT["Degree",0.017]],UNIT["Meter",1.0]]'}, None),
    ],
)
def test_cell_sizes_have_the_unit_of_their_reference(reference: Any, wkid: int | None) -> None:
    sizes = {key: {"x": 0.5, "y": 0.5, "spatialReference": reference} for key in ("MinCellSize", "MaxCellSize")}
    assert CellSizeRange(0.5, 0.5, wkid) == read(**sizes).cell_size


def test_a_cell_size_in_feet_of_an_unknown_reference_says_nothing() -> None:
    reference = {"wkt": 'PROJCS["x",GEOGCS["y",UNIT["Degree",0.017]],UNIT["Foot_US",0.3048]]'}
    sizes = {key: {"x": 0.5, "y": 0.5, "spatialReference": reference} for key in ("MinCellSize", "MaxCellSize")}
    assert read(**sizes).cell_size is None


def test_facts_describe_the_model() -> None:
    result = found(
        {
            "accuracy": "0.87", "per_class_metrics": '{"precision": {"Car": 0.5}}', "monitored_valid_loss": 0.25,
            "average_precision_score": {"Car": 0.75}, "ImageryType": "naip", "Bands": ["R", "G", "B"],
        },
        ["model.pth"],
    )  # fmt: skip
    assert {
        "framework": LEARN, "model_type": "ObjectDetection", "family": "FasterRCNN", "backbone": "resnet18",
        "arcgis_learn_version": "2.4.4", "era": "2.4.4", "imagery": "naip", "image_space": "MAP_SPACE",
        "band_names": ["R", "G", "B"],
        "metrics": {
            "average_precision_score": {"Car": 0.75}, "accuracy": 0.87, "monitored_valid_loss": 0.25,
            "per_class_metrics": {"precision": {"Car": 0.5}},
        },
    }.items() <= result.facts.items()  # fmt: skip
    assert json.loads(json.dumps(result.facts)) == result.facts
    assert {"x": 0.1, "y": 0.1, "spatialReference": {"wkid": 102100, "latestWkid": 3857}} == (
        result.facts["min_cell_size"]
    )


def test_metrics_that_are_no_figures_are_no_harm() -> None:
    result = read(accuracy="1e999", per_class_metrics="{" * 100, monitored_x="NaN")
    assert {"accuracy": "1e999", "monitored_x": "NaN"} == result.facts["metrics"]


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"ModelType": "ObjectionDetection"}, "ModelType 'ObjectionDetection' was read as 'ObjectDetection'."),
        ({"ModelType": None}, "The definition names no ModelType; it is taken for an object detector."),
        ({"resize_to": 224}, "trained on images resized to 224 pixels: it may want a coarser cell size"),
        ({"Framework": None}, "names no Framework; its file is an ONNX graph"),
    ],
)
def test_what_is_assumed_is_told(members: dict[str, Any], told: str) -> None:
    result = read(**{"ModelConfiguration": None, **members})
    assert "onnx" == result.kind
    assert told in " ".join(result.notes)


def test_unknown_members_are_passed_over() -> None:
    assert read() == read(PerProcessGPUMemoryFraction=0.5, ModelFormat="NCHW", Whatever={"a": [1]}, LearningRate=None)


def test_a_family_is_called_by_the_name_of_its_file() -> None:
    assert "Palms" == definition_from_emd(arcgis_emd("FasterRCNN"), ["Palms.emd"], None, "Palms").name
    assert "FasterRCNN" == definition_from_emd(arcgis_emd("FasterRCNN"), []).name
    assert "Cells" == definition_from_emd(emd(), ["Palms.emd"], None, "Palms").name


# -- Fuzzing -----------------------------------------------------------------------------------------------------------

NAMES = [
    "x", "y", "spatialReference", "wkid", "Value", "Name", "Color", "input", "scale", "std", "order", "backbone",
    "scales", "band_min_values", "band_max_values", "CPU", "INFER", "box_nms_thresh",
]  # fmt: skip
arcgis_families = ("FasterRCNN", "MaskRCNN", "SingleShotDetector", "RetinaNet", "YOLOv3", "RTDetrV2")
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**19), 10**19) | st.floats(-1e300, 1e300) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=8,
)


KEYS = [
    *emd(), *arcgis_emd("SingleShotDetector"), "DataRange", "MinCellSize", "MaxCellSize", "Kestrel",
    "InferenceFunction", "NormalizationStats", "Kwargs", "MaskRCNNkwargs", "Bands", "Preprocessing", "TorchScript",
    "ONNX", "ModelFiles", "Padding", "Threshold", "tta_scales", "test_time_augmentation", "accuracy",
    "per_class_metrics",
]  # fmt: skip


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([emd(), *(arcgis_emd(name, n_bands=n) for name in arcgis_families for n in (3, 4))]),
    st.dictionaries(st.sampled_from(KEYS), json_values, max_size=4),
    st.sampled_from([[], ["model.pth", "Own.py", "model.onnx"]]),
)
def test_any_emd_is_translated_or_refused(base: dict[str, Any], members: dict[str, Any], files: list[str]) -> None:
    try:
        result = definition_from_emd({**base, **members}, files, lambda name, n: CODE)
    except InferenceError as error:
        assert error.message  # both outcomes are right
        return
    assert result.classes
    assert result.kind in DETECTOR_KINDS
    json.dumps(result.facts)
    json.dumps(result.options)
    assert len(result.input.mean) in (1, len(result.input.bands))
