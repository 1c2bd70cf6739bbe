from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import detection

from kestrel.inference.detectors import load_detector
from kestrel.inference.detectors.protocol import Detector, DetectorSettings
from kestrel.inference.errors import (
    InferenceError,
    ModelIncompatibleError,
    ModelPackageError,
    ModelUnsupportedError,
    UntrustedCodeError,
)
from kestrel.inference.models.arguments import resolve_arguments
from kestrel.inference.models.package import open_package
from kestrel.tests.fixtures.packages import write_zip
from kestrel.tests.fixtures.rasters import noise, write_raster
from kestrel.tests.fixtures.runs import run

SMALL = "ssdlite320_mobilenet_v3_large"
CLASSES = [{"value": 3, "name": "Tree"}, {"value": 5, "name": "Shrub"}]
LOW = {"threshold": 0.01}


def build(architecture: str = SMALL, n_classes: int = 3) -> torch.nn.Module:
    """Give a network with random weights, always the same ones."""
    torch.manual_seed(0)
    network = getattr(detection, architecture)(weights=None, weights_backbone=None, num_classes=n_classes)
    return network.eval()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one small network's weights in all forms."""
    folder = tmp_path_factory.mktemp("weights")
    network = build()
    state = network.state_dict()
    save_file(state, str(folder / "model.safetensors"))
    torch.save(state, folder / "model.pth")
    torch.save({"model": state, "epoch": 3}, folder / "checkpoint.pth")
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    return folder


def define(folder: Path, weights: Path | str, architecture: str = SMALL, **members: Any) -> Path:
    """Write a definition in Kestrel's own form."""
    data = {
        "kestrel_definition": 1, "name": "t", "classes": CLASSES, "input": {"scale": 1 / 255},
        "detector": {"kind": "torchvision", "architecture": architecture, "weights": str(weights)}, **members,
    }  # fmt: skip
    path = folder / "model.txt"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def load(folder: Path, reference: str, **arguments: Any) -> Detector:
    package = open_package(reference)
    target = folder / f"unpacked{len(list(folder.iterdir()))}"
    target.mkdir()
    values = resolve_arguments(package.definition, {**LOW, **arguments}).values
    return load_detector(package, values, DetectorSettings("cpu", 1), target)


def load_weights(folder: Path, weights: Path | str, architecture: str = SMALL, **members: Any) -> Detector:
    return load(folder, define(folder, weights, architecture, **members).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def batch() -> np.ndarray:
    return np.stack([noise(3, 320, 320, seed) for seed in (1, 2)])


@pytest.fixture(scope="module")
def direct(batch: np.ndarray) -> list[dict[str, np.ndarray]]:
    """What torchvision itself gives for the batch."""
    torch.manual_seed(0)
    network = getattr(detection, SMALL)(
        weights=None, weights_backbone=None, num_classes=3, score_thresh=0.01, nms_thresh=0.45, detections_per_img=1000,
        image_mean=[0.0] * 3, image_std=[1.0] * 3,
    ).eval()  # fmt: skip
    with torch.inference_mode():
        found = network(list(torch.from_numpy(batch).float() / 255))
    return [{name: value.numpy() for name, value in item.items()} for item in found]


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth", "checkpoint.pth", "old.pth"])
def test_boxes_are_those_of_torchvision(
    weights: Path, tmp_path: Path, batch: np.ndarray, direct: list[dict[str, np.ndarray]], name: str
) -> None:
    result = load_weights(tmp_path, weights / name).predict(batch)
    for expected, actual in zip(direct, result):
        keep = expected["labels"] >= 1
        assert 0 < keep.sum() == len(actual)
        assert np.allclose(expected["boxes"][keep], actual.boxes, rtol=0, atol=0.01)
        assert np.allclose(expected["scores"][keep], actual.scores, rtol=0, atol=1e-4)
        assert (expected["labels"][keep] - 1).tolist() == actual.labels.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("extension", ["safetensors", "pth"])
def test_an_emd_in_a_package_is_run_like_a_definition(
    weights: Path, tmp_path: Path, batch: np.ndarray, extension: str
) -> None:
    emd = {
        "Framework": "torchvision", "ModelConfiguration": SMALL, "ModelFile": f"model.{extension}",
        "ImageHeight": 320, "ImageWidth": 320, "ExtractBands": [0, 1, 2],
        "Classes": [{"Value": 3, "Name": "Tree"}, {"Value": 5, "Name": "Shrub"}],
        "Kestrel": {"input": {"scale": 1 / 255}},
    }  # fmt: skip
    content = (weights / f"model.{extension}").read_bytes()
    path = write_zip(tmp_path / "p.dlpk", [("m.emd", json.dumps(emd)), (f"model.{extension}", content)])
    expected = load_weights(tmp_path, weights / "model.pth").predict(batch)
    for first, second in zip(expected, load(tmp_path, str(path)).predict(batch)):
        assert first.boxes.tolist() == second.boxes.tolist()


def test_a_whole_run_with_a_torchvision_network_finds_objects_of_its_classes(weights: Path, tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "r.tif", noise(3, 350, 340))
    model = define(tmp_path, weights / "model.safetensors").read_text(encoding="utf-8")
    result = run(tmp_path / "job", raster, model, arguments={"threshold": 0.3, "nms_overlap": 0.1})
    assert (320, False) == (result.summary["tile_size"], result.summary["is_exact"])
    assert set(result.labels) <= {0, 1}
    assert len(result) == result.summary["objects"] > 0


def test_the_network_is_described_by_its_traits(weights: Path, tmp_path: Path) -> None:
    traits = load_weights(tmp_path, weights / "model.pth").traits
    assert (False, None, 320, 1000) == (
        traits.is_dense, traits.receptive_field_radius, traits.network_size, traits.max_detections
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["fasterrcnn_mobilenet_v3_large_320_fpn", "retinanet_resnet50_fpn"])
def test_a_tile_of_any_size_is_seen_as_it_is(tmp_path: Path, architecture: str) -> None:
    save_file(build(architecture).state_dict(), str(tmp_path / "w.safetensors"))
    detector = load_weights(tmp_path, tmp_path / "w.safetensors", architecture)
    network = build(architecture)
    network.transform.image_mean, network.transform.image_std = [0.0] * 3, [1.0] * 3
    for name in ("score_thresh", "nms_thresh", "detections_per_img"):
        holder = network.roi_heads if hasattr(network, "roi_heads") else network
        setattr(holder, name, {"score_thresh": 0.01, "nms_thresh": 0.45, "detections_per_img": 1000}[name])
    for size in (128, 256):
        network.transform.min_size, network.transform.max_size = (size,), size
        batch = noise(3, size, size)[None]
        with torch.inference_mode():
            expected = network(list(torch.from_numpy(batch).float() / 255))[0]
        (result,) = detector.predict(batch)
        keep = expected["labels"].numpy() >= 1
        # Random weights give many scores that are nearly the same: their order may differ.
        assert 0 < keep.sum() == len(result)
        apart = np.abs(expected["boxes"].numpy()[keep][:, None] - result.boxes[None]).max(axis=2)
        assert max(apart.min(axis=0).max(), apart.min(axis=1).max()) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "form"),
    [
        ("ssd300_vgg16", "pth"), ("fcos_resnet50_fpn", "safetensors"), ("retinanet_resnet50_fpn_v2", "pth"),
        ("maskrcnn_resnet50_fpn", "safetensors"), ("maskrcnn_resnet50_fpn_v2", "pth"),
    ],
)  # fmt: skip
def test_every_architecture_finds_what_torchvisions_own_pass_finds(
    tmp_path: Path, architecture: str, form: str
) -> None:
    network = lively(build(architecture))
    path = tmp_path / f"w.{form}"
    save_file(network.state_dict(), str(path)) if form == "safetensors" else torch.save(network.state_dict(), path)
    size = 300 if architecture.startswith("ssd") else 64
    expected, batch = own_pass(network, size)
    arguments = {"threshold": 0.05, "nms_overlap": 0.45}
    detector = load(tmp_path, define(tmp_path, path, architecture).read_text("utf-8"), **arguments)
    (found,) = detector.predict(batch)
    keep = expected["labels"] >= 1
    order = np.lexsort((*expected["boxes"][keep].T, -expected["scores"][keep].round(3)))
    mine = np.lexsort((*found.boxes.T, -found.scores.round(3)))
    assert 0 < keep.sum()
    if detector.traits.geometry == "polygon":  # what has a box and no pixel is left out
        assert found.shapes is not None
        nearest = np.abs(expected["boxes"][keep][:, None] - found.boxes[None]).max(axis=2)
        assert nearest.min(axis=0).max() < 0.5
        check_outlines(found, expected, nearest.argmin(axis=0), keep)
        return
    assert len(found) == keep.sum()
    assert np.allclose(np.sort(expected["scores"][keep]), np.sort(found.scores), rtol=0, atol=1e-3)
    nearest = np.abs(expected["boxes"][keep][order][:, None] - found.boxes[mine][None]).max(axis=2)
    assert max(nearest.min(axis=0).max(), nearest.min(axis=1).max()) < 0.5


def lively(network: torch.nn.Module) -> torch.nn.Module:
    """Let a network with random weights find something: dense heads start out sure that there is nothing."""
    for name, parameter in network.named_parameters():
        if name.endswith("cls_logits.bias"):
            torch.nn.init.constant_(parameter, -1.0)
        if name.endswith("mask_fcn_logits.weight"):
            torch.nn.init.normal_(parameter, std=0.5)
    return network


def own_pass(network: torch.nn.Module, size: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Give what torchvision itself finds in an image of that size, at its own resolution, and the image."""
    holder: Any = network.roi_heads if hasattr(network, "roi_heads") else network
    holder.score_thresh, holder.nms_thresh, holder.detections_per_img = 0.05, 0.45, 1000
    transform: Any = network.transform
    transform.image_mean, transform.image_std = [0.0] * 3, [1.0] * 3
    transform.min_size, transform.max_size = (size,), size
    batch = noise(3, size, size)[None]
    with torch.inference_mode():
        (found,) = network(list(torch.from_numpy(batch).float() / 255))
    return {name: value.numpy() for name, value in found.items()}, batch


def check_outlines(found: Any, expected: dict[str, np.ndarray], index: np.ndarray, keep: np.ndarray) -> None:
    """Hold outlines against torchvision's masks of the whole image: they cover what the masks cover by half."""
    masks = (expected["masks"][keep][:, 0] >= 0.5).sum(axis=(1, 2))
    areas = np.array([shape.area for shape in found.shapes])
    assert len(found) == int((masks > 0).sum())
    assert np.allclose(areas, masks[index], rtol=0, atol=2)


@pytest.mark.slow
def test_a_mask_network_gives_boxes_where_they_are_wanted(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(lively(build("maskrcnn_resnet50_fpn")).state_dict(), path)
    text = define(tmp_path, path, "maskrcnn_resnet50_fpn").read_text("utf-8")
    detector = load(tmp_path, text, threshold=0.05, return_bboxes=True)
    (found,) = detector.predict(noise(3, 64, 64)[None])
    assert (detector.traits.geometry, found.shapes) == ("box", None)
    assert len(found) > 0
    definition = open_package(text).definition
    assert (definition.geometry, [spec.name for spec in definition.own_arguments]) == (
        "polygon",
        ["return_bboxes", "stretch"],
    )


# -- What is refused ---------------------------------------------------------------------------------------------------


def test_weights_of_another_architecture_are_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelIncompatibleError, match="do not fit fasterrcnn_mobilenet"):
        load_weights(tmp_path, weights / "model.safetensors", "fasterrcnn_mobilenet_v3_large_320_fpn")


def test_weights_for_another_number_of_classes_are_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelIncompatibleError, match="classes are as many as in training"):
        load_weights(tmp_path, weights / "model.safetensors", classes=[*CLASSES, {"value": 9, "name": "Bush"}])


@pytest.mark.parametrize("architecture", ["keypointrcnn_resnet50_fpn", "", "__init__", "load"])
def test_what_is_no_detection_architecture_is_refused(weights: Path, tmp_path: Path, architecture: str) -> None:
    with pytest.raises(ModelUnsupportedError, match="Architectures: fasterrcnn_resnet50_fpn"):
        load_weights(tmp_path, weights / "model.safetensors", architecture)


def test_a_definition_of_four_bands_is_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelIncompatibleError, match="3 bands, and the definition names 4"):
        load_weights(tmp_path, weights / "model.pth", input={"bands": [0, 1, 2, 3]})


def test_torchscript_is_refused_as_a_program(tmp_path: Path) -> None:
    class Doubled(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    torch.jit.save(torch.jit.trace(Doubled(), torch.ones(1)), str(tmp_path / "script.pth"))
    with pytest.raises(UntrustedCodeError, match="TorchScript, which is a program"):
        load_weights(tmp_path, tmp_path / "script.pth")


class Canary:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return (open, (self.path, "w"))


@pytest.mark.parametrize("form", ["zip", "legacy", "plain pickle", "in a state dict"])
def test_a_pickle_that_runs_a_program_does_not_run_it(tmp_path: Path, form: str) -> None:
    canary, path = tmp_path / "canary", tmp_path / "evil.pth"
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(Canary(canary)))
    elif form == "in a state dict":
        torch.save({"weight": torch.ones(1), "bias": Canary(canary)}, path)
    else:
        torch.save(Canary(canary), path, _use_new_zipfile_serialization=form == "zip")
    is_alone = form in ("zip", "legacy")
    with pytest.raises(UntrustedCodeError if is_alone else ModelPackageError, match="ave the state dict"):
        load_weights(tmp_path, path)
    assert not canary.exists()


def test_a_pickled_network_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(UntrustedCodeError, match=r"whole Python object.*Save the state dict alone"):
        load_weights(tmp_path, tmp_path / "module.pth")


@pytest.mark.parametrize("content", [[1, 2, 3], {"a": 1}, {"model": 5}, torch.ones(3)])
def test_tensors_that_are_no_state_dict_are_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ModelPackageError, match="no state dict"):
        load_weights(tmp_path, tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.safetensors", "w.bin"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 40, b"\x80\x02", b"hello world", b"PK\x03\x04" + b"x" * 50])
def test_damaged_weights_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InferenceError) as caught:
        load_weights(tmp_path, tmp_path / name)
    assert isinstance(caught.value, ModelPackageError)


def test_weights_that_were_cut_off_are_refused(weights: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "model.pth", "old.pth"):
        whole = (weights / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ModelPackageError):
            load_weights(tmp_path, tmp_path / name)
