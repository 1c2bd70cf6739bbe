"""torchvision's networks, exported to ONNX by torch and opened bare: the same objects as torchvision's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.features
import torch

from kestrel.inference.detectors import load_detector
from kestrel.inference.detectors.protocol import DetectorSettings
from kestrel.inference.models.arguments import resolve_arguments
from kestrel.inference.models.overrides import overruled
from kestrel.inference.models.package import open_package
from kestrel.tests.fixtures.framework_exports import SIDE, export_torchvision, tensor, torchvision_network

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def image(repository: Path) -> np.ndarray:
    with rasterio.open(repository / "resources" / "demo" / "OSBS_029.tif") as dataset:
        return dataset.read((1, 2, 3), window=((100, 100 + SIDE), (120, 120 + SIDE)))


@pytest.mark.parametrize("kind", ["fasterrcnn", "maskrcnn", "retinanet", "fcos"])
def test_an_export_opened_bare_gives_torchvisions_own_objects(tmp_path: Path, image: np.ndarray, kind: str) -> None:
    network = torchvision_network(kind, image)
    with torch.inference_mode():
        (expected,) = network([tensor(image)[0]])
    threshold = float(expected["scores"].min()) - 1e-3
    (tmp_path / "model.txt").write_text("background\nTree\nCar\nHouse\n")
    package = open_package(str(export_torchvision(network, tmp_path / "model.onnx")))
    values = resolve_arguments(package.definition, {"threshold": threshold, "scale": "0-1"}).values
    package = replace(package, definition=overruled(package.definition, values))
    (tmp_path / "unpacked").mkdir()
    settings = DetectorSettings("cpu", 1, sample=lambda size, place: image)
    detector = load_detector(package, values, settings, tmp_path / "unpacked")
    (found,) = detector.predict(image[None])
    assert ["background", "Tree", "Car", "House"] == [item.name for item in package.definition.classes]
    assert len(expected["boxes"]) == len(found) > 10
    order = np.argsort(-found.scores, kind="stable")
    assert np.allclose(expected["scores"].numpy(), found.scores[order], atol=1e-3)
    for box, label, score in zip(*(expected[key].numpy() for key in ("boxes", "labels", "scores"))):
        alike = (found.labels == label) & (np.abs(found.scores - score) < 1e-3)
        assert np.abs(found.boxes[alike] - box).max(axis=1).min() < 0.5
    if kind == "maskrcnn":
        assert "polygon" == detector.traits.geometry
        _compare_masks(expected, found)


def _compare_masks(expected: dict[str, torch.Tensor], found: Any) -> None:
    overlaps = []
    for mask, score in zip(expected["masks"][:, 0].numpy() > 0.5, expected["scores"].numpy()):
        alike = np.flatnonzero(np.abs(found.scores - score) < 1e-4)
        own = [rasterio.features.rasterize([found.shapes[index]], mask.shape).astype(bool) for index in alike]
        overlaps.append(max((mask & other).sum() / max((mask | other).sum(), 1) for other in own))
    # Where a box ends on a whole number, the two libraries may round it to neighbouring pixels.
    assert np.median(overlaps) > 0.99
    assert min(overlaps) > 0.95


def test_the_same_graph_takes_several_images_one_by_one(tmp_path: Path, image: np.ndarray) -> None:
    path = export_torchvision(torchvision_network("retinanet", image), tmp_path / "model.onnx")
    package = open_package(str(path))
    values = resolve_arguments(package.definition, {"threshold": 0.0}).values
    (tmp_path / "unpacked").mkdir()
    detector = load_detector(package, values, DetectorSettings("cpu", 1), tmp_path / "unpacked")
    single = [detector.predict(part[None])[0] for part in (image, image[:, ::-1].copy())]
    both = detector.predict(np.stack([image, image[:, ::-1]]))
    assert 1 == detector.traits.max_batch
    assert [part.boxes.tolist() for part in single] == [part.boxes.tolist() for part in both]
