"""SingleShotDetector, RetinaNet and YOLOv3 from the package's file to boxes, normalisation included."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kestrel.inference.detectors import load_detector
from kestrel.inference.detectors.protocol import DetectorSettings
from kestrel.inference.models.arguments import resolve_arguments
from kestrel.inference.models.package import open_package
from kestrel.tests.fixtures import dense_reference as reference
from kestrel.tests.fixtures import esri_dense as esri
from kestrel.tests.fixtures.esri_packages import write_package

pytestmark = pytest.mark.slow

CHIP = 96
IMAGENET = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def normalise(batch: np.ndarray, emd: Mapping[str, Any]) -> torch.Tensor:
    """Give the network's input as the contract says, in numpy's double precision."""
    pixels = batch.astype(np.float64).transpose(0, 2, 3, 1)
    if "NormalizationStats" in emd:
        stats = {name: np.array(values) for name, values in emd["NormalizationStats"].items()}
        low, high = stats["band_min_values"], stats["band_max_values"]
        pixels = ((pixels - low) / (high - low) - stats["scaled_mean_values"]) / stats["scaled_std_values"]
    elif emd["ModelName"] == "YOLOv3":
        pixels = pixels / 255
    else:
        pixels = (pixels / 255 - IMAGENET[0]) / IMAGENET[1]
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2)).float()


def weights(family: str, n_bands: int) -> esri.State:
    if family == "SingleShotDetector":
        return esri.single_shot_detector("resnet18", CHIP, [3], n_bands=n_bands)
    return esri.retinanet(n_bands=n_bands) if family == "RetinaNet" else esri.yolov3(n_bands=n_bands)


def expect(family: str, state: esri.State, images: torch.Tensor) -> list[reference.Found]:
    """Give what the formulae find in one image with each family's own defaults."""
    with torch.inference_mode():
        if family == "SingleShotDetector":
            scores, boxes = reference.ssd_forward(state, "resnet18", [3], 2, 2, images)
            return reference.ssd_decode(scores[0], boxes[0], [3], [1.0], [[1.0, 1.0]], CHIP, 0.5, 0.1)
        if family == "RetinaNet":
            scores, boxes, sides = reference.retinanet_forward(state, "resnet18", 2, images)
            shapes = esri.RETINANET_SCALES, esri.RETINANET_RATIOS
            return reference.retinanet_decode(scores[0], boxes[0], sides, *shapes, CHIP, 0.5, 0.1, "arcgis")
        maps = {number: values[0] for number, values in reference.yolov3_forward(state, images).items()}
        return reference.yolov3_decode(maps, esri.COCO_ANCHORS, 2, CHIP, 0.1, 0.1)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that is gone after the test: YOLOv3's weights take a quarter of a gigabyte, and lie there twice."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("n_bands", [3, 5])
@pytest.mark.parametrize("family", ["SingleShotDetector", "RetinaNet", "YOLOv3"])
def test_a_package_gives_the_objects_of_the_formulae(folder: Path, family: str, n_bands: int) -> None:
    members = {"Grids": [3]} if family == "SingleShotDetector" else {}
    emd, state = esri.emd(family, CHIP, n_bands, **members), weights(family, n_bands)
    package = open_package(str(write_package(folder / "model", emd, state)))
    arguments = resolve_arguments(package.definition, {}).values
    detector = load_detector(package, arguments, DetectorSettings("cpu", 1), folder)
    batch = np.random.default_rng(n_bands).integers(0, 256, (1, n_bands, CHIP, CHIP), dtype=np.uint8)
    wanted = expect(family, state, normalise(batch, emd))
    assert len(wanted) > 0
    assert detector.traits.network_size == CHIP
    reference.assert_same(detector.predict(batch)[0], wanted)
