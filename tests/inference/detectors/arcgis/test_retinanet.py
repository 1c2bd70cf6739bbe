from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kestrel.inference.detectors.arcgis import retinanet
from kestrel.inference.detectors.protocol import Detector, DetectorSettings
from kestrel.inference.errors import ModelIncompatibleError, ModelUnsupportedError
from kestrel.tests.fixtures import dense_reference as reference
from kestrel.tests.fixtures import esri_dense as esri

pytestmark = pytest.mark.slow

ARGUMENTS = {"threshold": 0.5, "nms_overlap": 0.1, "box_decoding": "arcgis"}


def build(
    state: esri.State, chip: int, n_bands: int = 3, n_classes: int = 2, *, is_variable: bool = False, **options: Any
) -> Detector:
    arguments = {name: options.pop(name, value) for name, value in ARGUMENTS.items()}
    options = {
        "backbone": "resnet18", "scales": esri.RETINANET_SCALES, "ratios": esri.RETINANET_RATIOS, **options,
    }  # fmt: skip
    definition = esri.definition("RetinaNet", chip, n_bands, n_classes, is_variable=is_variable, **options)
    return retinanet.build(definition, state, arguments, DetectorSettings("cpu", 1))


def pictures(n: int, n_bands: int, side: int) -> np.ndarray:
    return np.random.default_rng(side).integers(0, 256, (n, n_bands, side, side), dtype=np.uint8)


def expect(
    state: esri.State, batch: np.ndarray, *, backbone: str = "resnet18", scales: list[float] = esri.RETINANET_SCALES,
    ratios: list[float] = esri.RETINANET_RATIOS, n_classes: int = 2, threshold: float = 0.5, nms_overlap: float = 0.1,
    box_decoding: str = "arcgis",
) -> list[list[reference.Found]]:  # fmt: skip
    with torch.inference_mode():
        images = torch.from_numpy(batch).float() / 255
        scores, boxes, sides = reference.retinanet_forward(state, backbone, n_classes, images)
    return [
        reference.retinanet_decode(
            s, b, sides, scales, ratios, batch.shape[-1], threshold, nms_overlap, box_decoding
        )
        for s, b in zip(scores, boxes)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def state() -> esri.State:
    return esri.retinanet()


@pytest.mark.parametrize("box_decoding", ["arcgis", "textbook"])
@pytest.mark.parametrize("chip", [64, 96, 100, 128])
def test_objects_are_those_of_the_formulae(state: esri.State, chip: int, box_decoding: str) -> None:
    batch = pictures(1, 3, chip)
    found = build(state, chip, box_decoding=box_decoding).predict(batch)[0]
    wanted = expect(state, batch, box_decoding=box_decoding)[0]
    assert len(wanted) > 5
    reference.assert_same(found, wanted)


def test_every_candidate_of_every_level_is_that_of_the_formulae(state: esri.State) -> None:
    batch = pictures(1, 3, 64)
    found = build(state, 64, threshold=0.0, nms_overlap=1.0).predict(batch)[0]
    assert len(found) == 9 * (8 * 8 + 4 * 4 + 2 * 2 + 1 + 1)
    reference.assert_same(found, expect(state, batch, threshold=0.0, nms_overlap=1.0)[0])


def test_the_decodes_differ(state: esri.State) -> None:
    batch = pictures(1, 3, 96)
    arcgis, textbook = (build(state, 96, box_decoding=name).predict(batch)[0] for name in ("arcgis", "textbook"))
    sizes = [found.boxes[0, 2:] - found.boxes[0, :2] for found in (arcgis, textbook)]
    assert arcgis.scores[0] == textbook.scores[0]
    assert not np.allclose(*sizes, atol=0.1)


def test_scales_and_ratios_come_from_the_package() -> None:
    scales, ratios = [1.0, 0.6], [0.3, 1.0, 1.7, 2.5]
    state = esri.retinanet(n_shapes=8)
    batch = pictures(1, 3, 96)
    found = build(state, 96, scales=scales, ratios=ratios).predict(batch)[0]
    reference.assert_same(found, expect(state, batch, scales=scales, ratios=ratios)[0])


def test_without_scales_and_ratios_the_usual_ones_serve(state: esri.State) -> None:
    batch = pictures(1, 3, 96)
    found = build(state, 96, scales=None, ratios=None).predict(batch)[0]
    reference.assert_same(found, expect(state, batch)[0])


def test_the_overlap_limit_is_the_arguments(state: esri.State) -> None:
    batch = pictures(1, 3, 96)
    few, many = (build(state, 96, nms_overlap=limit).predict(batch)[0] for limit in (0.0, 0.8))
    assert len(few) < len(many)
    reference.assert_same(few, expect(state, batch, nms_overlap=0.0)[0])
    reference.assert_same(many, expect(state, batch, nms_overlap=0.8)[0])


def silent(n_shapes: int, n_classes: int) -> esri.State:
    """Weights under which a head hands on channel 0 of what it gets, and nothing gets there."""
    state = esri.silent_state(esri.retinanet_shapes("resnet18", n_shapes, 3, n_classes))
    esri.let_through_resnet(state, "encoder")
    for head in ("classifier", "box_regressor"):
        for number in range(4):
            esri.let_through(state, f"{head}.{number}.0")
    for number in range(3):
        esri.let_through(state, f"smoothers.{number}")
    state["classifier.4.bias"][:] = -10
    return state


def dot(side: int, row: int, column: int, stride: int) -> np.ndarray:
    """An image that is bright where a cell begins: the one pixel of it that the silent network sees."""
    batch = np.zeros((1, 3, side, side), dtype=np.uint8)
    batch[0, 0, stride * row : stride * row + 2, stride * column : stride * column + 2] = 255
    return batch


@pytest.mark.parametrize(
    ("route", "stride", "n_found"),
    [
        (("merges.1.conv_lat",), 8, 1),
        (("merges.0.conv_lat",), 16, 1 + 4),  # levels hand on what they have to the finer ones
        (("c5top5",), 32, 1 + 4 + 16),
        (("c5top6",), 64, 1),
        (("c5top6", "p6top7.1"), 128, 1 + 1),  # what reaches the last level is in the one before
    ],
)
@pytest.mark.parametrize("box_decoding", ["arcgis", "textbook"])
def test_an_object_of_one_level_cell_anchor_and_class_is_found_there(
    route: tuple[str, ...], stride: int, n_found: int, box_decoding: str
) -> None:
    """Everything is silent but one way through the pyramid, and one anchor and class that listen to it."""
    scales, ratios = [1.0, 0.5], [0.25, 1.0, 4.0]
    ratio, scale, label = 2, 1, 1
    anchor = ratio * 2 + scale
    state = silent(6, 3)
    for name in route:
        esri.let_through(state, name)
    esri.let_through(state, "classifier.4", channel=anchor * 3 + label, gain=12)
    moves = np.array([0.8, -0.6, 0.4, -1.0])  # y, x, height, width
    state["box_regressor.4.bias"][anchor * 4 : anchor * 4 + 4] = torch.tensor(moves)
    row, column, chip = 1, 0, 256
    batch = dot(chip, row, column, stride)
    found = build(
        state, chip, n_classes=3, scales=scales, ratios=ratios, box_decoding=box_decoding, nms_overlap=0.999
    ).predict(batch)[0]  # fmt: skip
    height, width = 4 * stride * 0.5 * np.sqrt(4.0), 4 * stride * 0.5 * np.sqrt(1 / 4.0)
    cy, cx = stride * (row + 0.5) + height * 0.1 * moves[0], stride * (column + 0.5) + width * 0.1 * moves[1]
    if box_decoding == "arcgis":
        height, width = height * np.exp(0.1 * moves[0]), width * np.exp(0.1 * moves[1])
    else:
        height, width = height * np.exp(0.2 * moves[2]), width * np.exp(0.2 * moves[3])
    box = np.clip([cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2], 0, chip)
    nearest = np.abs(found.boxes - box).max(axis=1)
    assert nearest.min() < 1e-3
    assert set(found.labels.tolist()) == {label}
    assert np.allclose(found.scores, 1 / (1 + np.exp(-2)), atol=1e-4)
    assert len(found) == n_found


def uniform(raw_scores: list[float]) -> esri.State:
    """Weights under which each anchor gives these raw scores, and its box as it is."""
    state = silent(1, len(raw_scores))
    state["classifier.4.bias"][:] = torch.tensor(raw_scores)
    return state


ONE_SHAPE = {"scales": [1.0], "ratios": [1.0]}
BLACK = np.zeros((1, 3, 64, 64), dtype=np.uint8)


def test_an_anchor_gives_its_best_class_alone_and_there_is_no_background() -> None:
    found = build(uniform([1, 2]), 64, **ONE_SHAPE, nms_overlap=1.0).predict(BLACK)[0]
    assert set(found.labels.tolist()) == {1}
    assert np.allclose(found.scores, 1 / (1 + np.exp(-2)))
    assert len(found) == 8 * 8 + 4 * 4 + 2 * 2 + 1 + 1


def test_a_score_equal_to_the_threshold_is_not_enough() -> None:
    assert len(build(uniform([0, 0]), 64, **ONE_SHAPE).predict(BLACK)[0]) == 0
    assert len(build(uniform([0, 0]), 64, **ONE_SHAPE, threshold=0.4999).predict(BLACK)[0]) > 0


def test_objects_of_different_classes_suppress_each_other() -> None:
    """Two anchors of nearly the same shape, one for each class."""
    state = silent(2, 2)
    state["classifier.4.bias"][:] = torch.tensor([3.0, -10.0, -10.0, 2.0])
    options: dict[str, Any] = {"scales": [1.0, 0.99], "ratios": [1.0]}
    found = build(state, 64, **options, nms_overlap=0.5).predict(BLACK)[0]
    assert set(found.labels.tolist()) == {0}
    assert set(build(state, 64, **options, nms_overlap=0.999).predict(BLACK)[0].labels.tolist()) == {0, 1}


def test_boxes_end_with_the_tile(state: esri.State) -> None:
    boxes = build(state, 96, threshold=0.05, nms_overlap=0.9).predict(pictures(1, 3, 96))[0].boxes
    assert boxes.min() == 0
    assert boxes.max() == 96


def test_a_network_of_five_bands_takes_five() -> None:
    state = esri.retinanet(n_bands=5)
    batch = pictures(1, 5, 96)
    reference.assert_same(build(state, 96, 5).predict(batch)[0], expect(state, batch)[0])


def test_a_batch_of_two_gives_what_two_of_one_give(state: esri.State) -> None:
    detector = build(state, 96)
    batch = pictures(2, 3, 96)
    together, alone = detector.predict(batch), [detector.predict(batch[i : i + 1])[0] for i in range(2)]
    for first, second in zip(together, alone):
        assert len(first) == len(second) > 0
        assert np.allclose(first.boxes, second.boxes, rtol=0, atol=1e-3)


def test_the_tile_is_the_chip_unless_the_package_says_that_it_varies(state: esri.State) -> None:
    assert build(state, 100).traits.network_size == 100
    traits = build(state, 100, is_variable=True).traits
    assert (traits.network_size, traits.stride, traits.is_dense, traits.max_detections) == (None, 32, False, None)
    batch = pictures(1, 3, 128)
    reference.assert_same(build(state, 100, is_variable=True).predict(batch)[0], expect(state, batch)[0])


@pytest.mark.parametrize(
    "backbone",
    ["resnet34", *(pytest.param(f"resnet{n}", marks=pytest.mark.slow) for n in (50, 101, 152))],
)
def test_backbones_give_the_objects_of_the_formulae(backbone: str) -> None:
    state = esri.retinanet(backbone)
    batch = pictures(1, 3, 96)
    wanted = expect(state, batch, backbone=backbone)[0]
    reference.assert_same(build(state, 96, backbone=backbone).predict(batch)[0], wanted)


def test_wrong_shapes_and_names_are_told(state: esri.State) -> None:
    with pytest.raises(ModelIncompatibleError, match=r"'classifier\.4\.weight' is \[18, .*expected \[27, "):
        build(state, 96, n_classes=3)
    lame = {name: tensor for name, tensor in state.items() if name != "merges.1.conv_lat.bias"}
    with pytest.raises(ModelIncompatibleError, match=r"RetinaNet with resnet18.*'merges\.1\.conv_lat\.bias'.*missing"):
        build(lame, 96)
    with pytest.raises(ModelIncompatibleError, match=r"3 bands.*'encoder\.0\.weight'.*names 4\."):
        build(state, 96, 4)


@pytest.mark.parametrize("backbone", ["timm:resnet50", "vgg16", "resnet18vd"])
def test_a_backbone_that_is_no_resnet_of_torchvision_is_refused_by_its_name(backbone: str) -> None:
    with pytest.raises(ModelUnsupportedError, match=f"RetinaNet with the backbone '{backbone}'"):
        build({}, 96, backbone=backbone)
