"""Ultralytics' exports, opened bare: what Kestrel finds is what Ultralytics' own post-processing finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio.features
import shapely

from kestrel.inference.detections import Detections
from kestrel.inference.detectors import load_detector
from kestrel.inference.detectors.protocol import Detector, DetectorSettings
from kestrel.inference.errors import ModelUnsupportedError
from kestrel.inference.merge import suppress_once
from kestrel.inference.models.arguments import resolve_arguments
from kestrel.inference.models.package import open_package
from kestrel.tests.fixtures.ultralytics_exports import SIDE, Export, export, non_max_suppression

pytestmark = pytest.mark.slow
THRESHOLD, OVERLAP = 0.3, 0.6


@pytest.fixture(scope="module")
def image(repository: Path) -> np.ndarray:
    with rasterio.open(repository / "resources" / "demo" / "OSBS_029.tif") as dataset:
        return dataset.read((1, 2, 3), window=((100, 100 + SIDE), (120, 120 + SIDE)))


def load(path: Path, folder: Path, **arguments: Any) -> Detector:
    package = open_package(str(path))
    values = resolve_arguments(package.definition, {"threshold": THRESHOLD, "nms_overlap": OVERLAP, **arguments}).values
    target = folder / "unpacked"
    target.mkdir(exist_ok=True)
    return load_detector(package, values, DetectorSettings("cpu", 1), target)


def found_by_kestrel(path: Path, folder: Path, image: np.ndarray) -> tuple[Detector, Detections]:
    detector = load(path, folder)
    (found,) = detector.predict(image[None])
    return detector, suppress_once(found, OVERLAP) if detector.traits.is_dense else found


def expect_same(expected: np.ndarray, found: Detections, least: int = 5) -> np.ndarray:
    """Compare with rows of box, score and class; give the partner of each row."""
    assert len(expected) == len(found) >= least
    partners = []
    for row in expected:
        is_class = found.labels == row[5]
        distance = np.where(is_class, np.abs(found.boxes - row[:4]).max(axis=1), np.inf)
        distance += 1000 * np.abs(found.scores - row[4])  # of several boxes in one place the one with that score
        partner = int(distance.argmin())
        assert np.abs(found.boxes[partner] - row[:4]).max() < 0.5
        assert abs(found.scores[partner] - row[4]) < 1e-3
        partners.append(partner)
    assert len(set(partners)) == len(partners)
    return np.array(partners)


def first(output: Any) -> Any:
    while isinstance(output, (tuple, list)):
        output = output[0]
    return output


@pytest.mark.parametrize("name", ["yolov5n", "yolov6n", "yolov8n", "yolov9t", "yolo11n", "yolo12n"])
def test_a_dense_head_finds_what_the_framework_finds(tmp_path: Path, image: np.ndarray, name: str) -> None:
    exported = export(f"{name}.yaml", tmp_path, image)
    expected = non_max_suppression(first(exported.forward(image)), 80, THRESHOLD, OVERLAP, rotated=False)
    detector, found = found_by_kestrel(exported.path, tmp_path, image)
    assert (True, "box", ()) == (detector.traits.is_dense, detector.traits.geometry, detector.traits.notes)
    expect_same(expected, found)


@pytest.mark.parametrize(("name", "options"), [("yolov10n", {"nms": False}), ("yolo26n", {"nms": False})])
def test_an_end_to_end_head_gives_the_frameworks_rows(
    tmp_path: Path, image: np.ndarray, name: str, options: dict[str, Any]
) -> None:
    exported = export(f"{name}.yaml", tmp_path, image, **options)
    rows = first(exported.forward(image))[0].numpy()
    detector, found = found_by_kestrel(exported.path, tmp_path, image)
    assert (False, 300) == (detector.traits.is_dense, detector.traits.max_detections)
    expect_same(rows[rows[:, 4] > THRESHOLD], found)


def test_suppression_in_the_graph_is_left_as_it_is(tmp_path: Path, image: np.ndarray) -> None:
    exported = export("yolov8n.yaml", tmp_path, image, nms=True, conf=THRESHOLD, iou=OVERLAP)
    expected = non_max_suppression(first(exported.forward(image)), 80, THRESHOLD, OVERLAP, rotated=False)
    _, found = found_by_kestrel(exported.path, tmp_path, image)
    expect_same(expected, found)


def test_rtdetr_gives_the_frameworks_rows_in_pixels(tmp_path: Path, image: np.ndarray) -> None:
    exported = export("rtdetr-l.yaml", tmp_path, image)
    rows = first(exported.forward(image))[0].numpy()
    cx, cy, w, h = rows[:, :4].T * SIDE
    rows[:, :4] = np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], axis=1)
    threshold = float(np.sort(rows[:, 4])[-21:-19].mean())
    detector = load(exported.path, tmp_path, threshold=threshold)
    (found,) = detector.predict(image[None])
    expect_same(rows[rows[:, 4] > threshold], found)


def _masks_of_the_framework(exported: Export, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from ultralytics.utils.ops import process_mask_native

    output = exported.forward(image)
    table, prototypes = first(output), output[0][1]
    rows = non_max_suppression(table, 80, THRESHOLD, OVERLAP, rotated=False)
    import torch

    # The framework takes a pixel for inside a box if its corner is; Kestrel, if its centre is.
    boxes, weights = torch.from_numpy(rows[:, :4] - 0.5), torch.from_numpy(rows[:, 6:])
    return rows, process_mask_native(prototypes[0], weights, boxes, (SIDE, SIDE)).numpy().astype(bool)


@pytest.mark.parametrize("name", ["yolov8n-seg", "yolo11n-seg"])
def test_masks_of_prototypes_are_the_frameworks_masks(tmp_path: Path, image: np.ndarray, name: str) -> None:
    exported = export(f"{name}.yaml", tmp_path, image)
    rows, masks = _masks_of_the_framework(exported, image)
    detector, found = found_by_kestrel(exported.path, tmp_path, image)
    assert ("polygon", False) == (detector.traits.geometry, detector.traits.is_dense)
    is_there = masks.any(axis=(1, 2))
    assert is_there.sum() == len(found) >= 5
    assert found.shapes is not None
    for row, mask in zip(rows[is_there], masks[is_there]):
        same = np.flatnonzero((np.abs(found.scores - row[4]) < 1e-3) & (found.labels == row[5]))
        assert max(_overlap(mask, found.shapes[index]) for index in same) > 0.99
    assert all(shapely.is_valid(found.shapes))


def _overlap(mask: np.ndarray, shape: Any) -> float:
    own = rasterio.features.rasterize([shape], mask.shape).astype(bool)
    return float((mask & own).sum() / (mask | own).sum())


@pytest.mark.parametrize("name", ["yolov8n-obb", "yolo11n-obb"])
def test_rotated_boxes_are_the_frameworks(tmp_path: Path, image: np.ndarray, name: str) -> None:
    from ultralytics.utils.ops import xywhr2xyxyxyxy

    exported = export(f"{name}.yaml", tmp_path, image)
    table = first(exported.forward(image))[0].numpy()  # (4 + classes + 1, A)
    scores = table[4:-1]
    index = np.flatnonzero(scores.max(axis=0) > THRESHOLD)
    detector = load(exported.path, tmp_path)
    (found,) = detector.predict(image[None])
    assert (True, True, "box") == (detector.traits.is_dense, detector.traits.is_oriented, detector.traits.geometry)
    assert len(index) == len(found) >= 5
    corners = xywhr2xyxyxyxy(np.concatenate([table[:4, index], table[-1:, index]]).T)
    assert found.shapes is not None
    for shape, expected, score in zip(found.shapes, corners, scores.max(axis=0)[index]):
        assert shapely.hausdorff_distance(shapely.Polygon(expected), shape) < 0.5
        assert np.abs(found.scores - score).min() < 1e-3


def test_the_metadata_are_the_definition(tmp_path: Path, image: np.ndarray) -> None:
    definition = open_package(str(export("yolo11n-obb.yaml", tmp_path, image, dynamic=True).path)).definition
    assert ("yolov8-obb", "box", 80) == (
        definition.options["head"], definition.geometry, len(definition.classes)
    )  # fmt: skip
    assert ((1 / 255,), 114.0, 160) == (definition.input.scale, definition.input.pad_value, definition.tile.size)


def test_key_points_are_left_out_and_that_is_told(tmp_path: Path, image: np.ndarray) -> None:
    exported = export("yolov8n-pose.yaml", tmp_path, image)
    package = open_package(str(exported.path))
    assert any("key points" in note for note in package.definition.notes)
    table = first(exported.forward(image))[0].numpy()
    (found,) = load(exported.path, tmp_path).predict(image[None])
    assert int((table[4] > THRESHOLD).sum()) == len(found) >= 5


def test_a_model_for_another_task_is_refused_by_its_name(tmp_path: Path, image: np.ndarray) -> None:
    exported = export("yolov8n-cls.yaml", tmp_path, image)
    with pytest.raises(ModelUnsupportedError, match=r"for the task 'classify'.*detect, segment, obb, pose"):
        open_package(str(exported.path))


def test_end_to_end_masks_are_the_frameworks_masks(tmp_path: Path, image: np.ndarray) -> None:
    import torch
    from ultralytics.utils.ops import process_mask_native

    exported = export("yolo26n-seg.yaml", tmp_path, image, nms=False)
    output = exported.forward(image)
    rows, prototypes = first(output)[0].numpy(), output[0][1]
    rows = rows[rows[:, 4] > THRESHOLD]
    boxes, weights = torch.from_numpy(rows[:, :4] - 0.5), torch.from_numpy(rows[:, 6:])
    masks = process_mask_native(prototypes[0], weights, boxes, (SIDE, SIDE)).numpy().astype(bool)
    detector, found = found_by_kestrel(exported.path, tmp_path, image)
    assert ("polygon", False) == (detector.traits.geometry, detector.traits.is_dense)
    is_there = masks.any(axis=(1, 2))
    assert is_there.sum() == len(found) >= 3
    assert found.shapes is not None
    for row, mask in zip(rows[is_there], masks[is_there]):
        same = np.flatnonzero((np.abs(found.scores - row[4]) < 1e-3) & (found.labels == row[5]))
        assert max(_overlap(mask, found.shapes[index]) for index in same) > 0.99


def test_end_to_end_rotated_boxes_are_the_frameworks(tmp_path: Path, image: np.ndarray) -> None:
    from ultralytics.utils.ops import xywhr2xyxyxyxy

    exported = export("yolo26n-obb.yaml", tmp_path, image, nms=False)
    rows = first(exported.forward(image))[0].numpy()
    rows = rows[rows[:, 4] > THRESHOLD]
    detector = load(exported.path, tmp_path)
    (found,) = detector.predict(image[None])
    assert (False, True) == (detector.traits.is_dense, detector.traits.is_oriented)
    assert len(rows) == len(found) >= 3
    assert found.shapes is not None
    for row, corners in zip(rows, xywhr2xyxyxyxy(rows[:, [0, 1, 2, 3, 6]])):
        same = np.flatnonzero((np.abs(found.scores - row[4]) < 1e-3) & (found.labels == row[5]))
        assert min(shapely.hausdorff_distance(shapely.Polygon(corners), found.shapes[i]) for i in same) < 0.5
