"""Kestrel's own definition of every model that Kestrel opens."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given

from kestrel.inference.errors import ModelPackageError
from kestrel.inference.models.definition import ModelDefinition, definition_from_json
from kestrel.inference.models.definition_json import definition_to_json
from kestrel.inference.models.description import describe_package
from kestrel.inference.models.esri import definition_from_emd
from kestrel.inference.models.package import open_package
from kestrel.inference.models.packaging import PackageParts, weights_beside
from kestrel.inference.models.packaging import write_package as write_packed
from kestrel.tests.fixtures import esri_dense
from kestrel.tests.fixtures.esri_models import tensorflow_emd
from kestrel.tests.fixtures.esri_packages import arcgis_emd, file_of, statistics, write_package
from kestrel.tests.fixtures.packages import definition, emd
from kestrel.tests.fixtures.raster_functions import write_finder
from kestrel.tests.fixtures.runs import run
from kestrel.tests.inference.models.test_packaging import definitions

MEMBERS = ("m.pth", "m.onnx", "m-cpu.pt", "m.pb", "Finder.py")


def plain(found: ModelDefinition) -> ModelDefinition:
    return replace(found, notes=(), facts={})


def read_again(found: ModelDefinition) -> ModelDefinition:
    return definition_from_json(json.loads(json.dumps(definition_to_json(found))))


def of_emd(content: dict[str, Any], program: bytes = b"") -> ModelDefinition:
    return definition_from_emd(content, MEMBERS, lambda name, n: program[:n], "m")


SENTINEL = {"Preprocessing": "SentinelService", "NormalizationStats": statistics(3)}
ARCGIS = {
    "a family of RCNN networks": arcgis_emd("FasterRCNN"),
    "an old version": arcgis_emd("FasterRCNN", ArcGISLearnVersion="1.7.0"),
    "arguments of the network": arcgis_emd("FasterRCNN", Kwargs={"box_detections_per_img": 300, "rpn_nms_thresh": 0.6}),
    "outlines": arcgis_emd("MaskRCNN"),
    "grids": arcgis_emd("SingleShotDetector"),
    "anchors by scale": arcgis_emd("RetinaNet"),
    "anchors": arcgis_emd("YOLOv3"),
    "queries": arcgis_emd("RTDetrV2"),
    "defaults of its own": arcgis_emd("RetinaNet", tta_scales=[0.9, 1.1], Padding=32, SupportsVariableTileSize=True),
    "an image service": arcgis_emd("FasterRCNN", **SENTINEL),
    "oblique photographs": arcgis_emd("FasterRCNN", ImageSpaceUsed="PIXEL_SPACE"),
    "many bands": arcgis_emd("FasterRCNN", n_bands=5, IsMultispectral=True, NormalizationStats=statistics(5)),
}
OTHERS = {
    "a graph": emd(ModelFile="m.onnx"),
    "a graph of Esri's": arcgis_emd("MMDetection", ModelFile="m.pth", ONNX="m.onnx"),
    "a copy in TorchScript": arcgis_emd("MaskRCNN", backbone="x", ModelParameters={"backbone": "swin"}),
    "tensorflow": {**tensorflow_emd(), "ModelFile": "m.pb"},
    "tensorflow with outlines": {**tensorflow_emd(), "ModelFile": "m.pb", "ModelType": "InstanceDetection"},
}


@pytest.mark.parametrize("content", [*ARCGIS.values(), *OTHERS.values()], ids=[*ARCGIS, *OTHERS])
def test_a_package_of_esris_comes_back_from_its_definition_as_it_was(content: dict[str, Any]) -> None:
    found = of_emd({"ModelFile": "m.pth", **content} if "ModelFile" not in content else content)
    assert plain(found) == read_again(found)


@given(definitions())
def test_a_definition_comes_back_as_it_was(data: dict[str, Any]) -> None:
    found = definition_from_json(data)
    assert found == read_again(found)


DETECTORS: list[dict[str, Any]] = [
    {"kind": "onnx", "weights": "w", "head": "detr", "scores": "softmax", "background": "last", "masks": True},
    {"kind": "torchvision", "weights": "w", "architecture": "maskrcnn_resnet50_fpn", "label_offset": 1},
    {"kind": "torchscript", "weights": "w", "head": "yolov8"},
    {"kind": "torch_export", "weights": "w"},
    {"kind": "transformers", "weights": "w", "architecture": "owlvit", "files": ["config.json", "x.json"]},
    {"kind": "arcgis", "weights": "w", "family": "DeepForest"},
    {"kind": "python", "program": "Finder.py", "emd": {"ModelName": "x"}},
]


@pytest.mark.parametrize("detector", DETECTORS, ids=[detector["kind"] for detector in DETECTORS])
def test_a_model_of_each_kind_comes_back_as_it_was(detector: dict[str, Any]) -> None:
    members = {"geometry": "any", "own_arguments": ["stretch", {"name": "a", "kind": "text", "help": "b"}]}
    spec = {"pad_value": 114, "resize": "stretch", "assumed": True, "service": "sentinel"}
    for more in ({}, members, {"input": spec, "common_arguments": ["threshold"], "map_space": False}):
        found = definition_from_json(definition(detector=detector, **more))
        assert found == read_again(found)


def test_what_goes_without_saying_is_not_said() -> None:
    found = definition_to_json(definition_from_json(definition()))
    assert {"geometry", "map_space", "common_arguments", "own_arguments", "cell_size", "version"} & set(found) == set()
    assert {"kind": "onnx", "weights": "model.onnx", "head": "yolov8"} == found["detector"]


def test_a_program_is_described_with_what_it_is_given_and_needs_consent_as_before(tmp_path: Path) -> None:
    package = open_package(str(write_finder(tmp_path)))
    content = describe_package(package)["definition"]
    assert "Finder.py" == content["detector"]["program"]
    assert package.definition.name == (content["detector"]["emd"].get("ModelName") or package.definition.name)
    found = definition_from_json(content)
    assert plain(package.definition) == replace(found, options={})
    assert "Finder.py" == found.program


def test_the_demo_package_comes_back_as_it_was(repository: Path) -> None:
    found = open_package(str(repository / "resources" / "models" / "tree_crowns.dlpk")).definition
    assert plain(found) == read_again(found)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"detector": {"kind": "arcgis", "weights": "m"}}, "'detector.family' is missing; expected one of FasterRCNN"),
    ({"detector": {"kind": "arcgis", "weights": "m", "family": "SAM"}}, "'detector.family' is 'SAM'"),
    ({"detector": {"kind": "arcgis", "weights": "m", "family": "YOLOv3", "grids": [4]}}, "Unknown member.*grids"),
    ({"detector": {"kind": "arcgis", "weights": "m", "family": "YOLOv3", "backbone": "vgg"}}, "one of darknet53"),
    ({"detector": {"kind": "arcgis", "weights": "m", "family": "YOLOv3", "anchors": [[1, 2]]}}, "nine pairs"),
    ({"detector": {"kind": "arcgis", "weights": "m", "family": "SingleShotDetector"}}, "'detector.grids' is missing"),
    ({"detector": {"kind": "arcgis", "weights": "m", "family": "SingleShotDetector", "grids": [1.5]}}, "whole numbers"),
    ({"detector": {"kind": "arcgis", "weights": "m", "family": "MaskRCNN", "kwargs": {"box_nms_thresh": 1}}}, "kwargs"),
    ({"detector": {"kind": "python", "weights": "m"}}, "'detector.program' is missing"),
    *(
        ({"detector": {"kind": "python", "program": name}}, "'detector.program' is")
        for name in ("", "./", "../x.py", "a/../x.py", "/a/../x.py", "/a/", "C:x.py", "x.py\n", "NUL")
    ),
    ({"detector": {"kind": "python", "program": "x.py", "emd": 5}}, "'detector.emd' is 5; expected an object"),
    ({"detector": {"kind": "tensorflow"}}, "'detector.weights' is missing"),
    ({"geometry": "circle"}, "'geometry' is 'circle'; expected one of box, polygon"),
    ({"map_space": "yes"}, "'map_space' is 'yes'"),
    ({"common_arguments": ["treshold"]}, "'common_arguments'.*some of threshold"),
    ({"own_arguments": ["sharpness"]}, "'own_arguments.0.' is 'sharpness'"),
    ({"own_arguments": [{"name": "a", "kind": "colour"}]}, "kind' is 'colour'; expected one of integer"),
    ({"weights_sha256": "12"}, "64 digits"),
    ({"input": {"service": "esa"}}, "'input.service' is 'esa'; expected one of sentinel, landsat"),
]


@pytest.mark.parametrize(("members", "reason"), BAD)
def test_a_bad_member_is_refused_by_its_name_and_what_is_expected(members: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelPackageError, match=reason):
        definition_from_json(definition(**members))


# -- A written definition runs as the model that it was written from ---------------------------------------------------


def write_again(model: str, folder: Path, weights: bytes) -> Path:
    """Write the definition of a package beside a copy of its weights."""
    folder.mkdir()
    content = describe_package(open_package(model))["definition"]
    (folder / content["detector"]["weights"]).write_bytes(weights)
    path = folder / "mine.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_an_onnx_model_gives_the_same_objects_from_its_written_definition(tmp_path: Path, repository: Path) -> None:
    package = repository / "resources" / "models" / "tree_crowns.dlpk"
    with zipfile.ZipFile(package) as archive:
        weights = archive.read("tree_crowns.onnx")
    mine = write_again(str(package), tmp_path / "mine", weights)
    demo = repository / "resources" / "demo" / "OSBS_029.tif"
    wanted, found = run(tmp_path / "a", demo, package), run(tmp_path / "b", demo, mine)
    assert 66 == len(wanted)
    assert wanted.content() == found.content()


@pytest.mark.slow
def test_a_family_of_esris_gives_the_same_objects_from_its_written_definition(tmp_path: Path, repository: Path) -> None:
    torch.set_num_threads(1)
    demo = repository / "resources" / "demo" / "OSBS_029.tif"
    content = esri_dense.emd("SingleShotDetector", 128, Threshold=0.3)
    weights = file_of(esri_dense.single_shot_detector(chip=128))
    package = write_package(tmp_path / "ssd.dlpk", content, weights)
    mine = write_again(str(package), tmp_path / "mine", weights)
    wanted, found = run(tmp_path / "a", demo, package), run(tmp_path / "b", demo, mine)
    assert len(wanted) > 5
    assert wanted.content() == found.content()
    packed = write_packed(PackageParts(weights_beside(str(mine)), str(mine)), tmp_path / "mine.dlpk")
    assert wanted.content() == run(tmp_path / "packed", demo, packed.path).content()
    edited = json.loads(mine.read_text())
    edited["arguments"]["threshold"] = 0.99
    mine.write_text(json.dumps(edited))
    assert len(run(tmp_path / "c", demo, mine)) < len(wanted)
