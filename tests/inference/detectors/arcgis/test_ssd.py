from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kestrel.inference.detectors.arcgis import ssd
from kestrel.inference.detectors.protocol import Detector, DetectorSettings
from kestrel.inference.errors import ModelIncompatibleError, ModelUnsupportedError
from kestrel.tests.fixtures import dense_reference as reference
from kestrel.tests.fixtures import esri_dense as esri

pytestmark = pytest.mark.slow

ARGUMENTS = {"threshold": 0.5, "nms_overlap": 0.1}


def build(state: esri.State, chip: int, n_bands: int = 3, n_classes: int = 2, **options: Any) -> Detector:
    arguments = {name: options.pop(name, value) for name, value in ARGUMENTS.items()}
    options = {"backbone": "resnet18", "zooms": [1.0], "ratios": [[1.0, 1.0]], "version": 2, **options}
    definition = esri.definition("SingleShotDetector", chip, n_bands, n_classes, **options)
    return ssd.build(definition, state, arguments, DetectorSettings("cpu", 1))


def pictures(n: int, n_bands: int, side: int) -> np.ndarray:
    return np.random.default_rng(side).integers(0, 256, (n, n_bands, side, side), dtype=np.uint8)


def expect(
    state: esri.State, batch: np.ndarray, grids: list[int], *, backbone: str = "resnet18", version: int = 2,
    zooms: tuple[float, ...] = (1.0,), ratios: tuple[tuple[float, float], ...] = ((1.0, 1.0),), n_classes: int = 2,
    threshold: float = 0.5, nms_overlap: float = 0.1,
) -> list[list[reference.Found]]:  # fmt: skip
    with torch.inference_mode():
        images = torch.from_numpy(batch).float() / 255
        scores, boxes = reference.ssd_forward(state, backbone, grids, version, n_classes, images)
    return [
        reference.ssd_decode(s, b, grids, zooms, ratios, batch.shape[-1], threshold, nms_overlap)
        for s, b in zip(scores, boxes)
    ]


def check(chip: int, grids: list[int], version: int, backbone: str = "resnet18", n_bands: int = 3) -> None:
    state = esri.single_shot_detector(backbone, chip, grids, version=version, n_bands=n_bands)
    batch = pictures(1, n_bands, chip)
    options: dict[str, Any] = {"backbone": backbone, "version": version, "threshold": 0.2}
    found = build(state, chip, n_bands, grids=grids, **options).predict(batch)
    wanted = expect(state, batch, grids, **options)
    assert len(wanted[0]) > 0
    reference.assert_same(found[0], wanted[0])


@pytest.mark.parametrize(
    ("chip", "grids", "version"),
    [
        (128, [4], 2), (128, [4], 1),
        (128, [4, 2, 1], 2), (128, [4, 2, 1], 1),
        (224, [4], 2), (224, [4], 1), (224, [7, 4, 2, 1], 2),
        (256, [8, 4], 2), (256, [8, 4], 1),
        (200, [4], 2),
    ],
)  # fmt: skip
def test_objects_are_those_of_the_formulae(chip: int, grids: list[int], version: int) -> None:
    check(chip, grids, version)


def test_a_map_that_no_step_brings_to_the_grid_is_resized() -> None:
    assert ssd.choose_step(2, 4, 2) == ssd.Step(3, 1, 1, resize_to=4)
    check(64, [4], 2)
    check(64, [5, 4], 2)


@pytest.mark.parametrize(("chip", "grids"), [(224, [14]), (320, [20, 10])])
def test_a_resnet_ends_a_layer_earlier_for_a_fine_grid(chip: int, grids: list[int]) -> None:
    assert esri.ssd_layers("resnet18", chip, grids) == 3
    check(chip, grids, version=2)


@pytest.mark.parametrize(("chip", "grids"), [(256, [12]), (288, [9])])
def test_a_resnet_keeps_its_last_layer_where_the_fine_grid_is_near(chip: int, grids: list[int]) -> None:
    assert esri.ssd_layers("resnet18", chip, grids) == 4
    check(chip, grids, version=2)


def test_the_weights_tell_where_a_resnet_ends() -> None:
    shapes = esri.ssd_shapes("resnet18", 224, [14], 1, 2, 3, 2)
    whole = {name: shape for name, shape in esri.ssd_shapes("resnet18", 224, [4], 1, 2, 3, 2).items() if "0." in name}
    whole |= {name: shape for name, shape in shapes.items() if name.startswith("1.") and name not in whole}
    shapes |= {name: shape for name, shape in whole.items() if name.startswith(("0.", "1.sconvs.0"))}
    state, batch = esri.random_state(shapes), pictures(1, 3, 224)
    wanted = expect(state, batch, [14])
    reference.assert_same(build(state, 224, grids=[14]).predict(batch)[0], wanted[0])


@pytest.mark.parametrize("backbone", ["resnet34", "mobilenet_v2", "densenet121"])
def test_backbones_give_the_objects_of_the_formulae(backbone: str) -> None:
    check(128, [4, 2], 2, backbone)


@pytest.mark.slow
@pytest.mark.parametrize(
    "backbone",
    ["resnet50", "resnet101", "resnet152", "vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn",
     "vgg19_bn", "densenet161", "densenet169", "densenet201"],
)  # fmt: skip
def test_larger_backbones_give_the_objects_of_the_formulae(backbone: str) -> None:
    check(128, [7] if backbone.startswith("vgg") else [4], 2, backbone)


@pytest.mark.slow
def test_a_resnet50_for_a_fine_grid_has_1024_channels() -> None:
    check(224, [14], 2, "resnet50")


def test_zooms_are_the_outer_and_ratios_the_inner_order_of_anchors() -> None:
    zooms, ratios = (0.7, 1.0, 1.3), ((1.0, 1.0), (1.0, 0.5))
    state = esri.single_shot_detector("resnet18", 128, [4, 2], n_shapes=6)
    batch = pictures(1, 3, 128)
    shapes = {"zooms": list(zooms), "ratios": [list(ratio) for ratio in ratios]}
    found = build(state, 128, grids=[4, 2], **shapes).predict(batch)
    reference.assert_same(found[0], expect(state, batch, [4, 2], zooms=zooms, ratios=ratios)[0])


def test_an_object_of_one_cell_anchor_and_class_is_found_there_alone() -> None:
    """Everything is silent but the upper left pixel of each cell, and one anchor and class that listen to it."""
    zooms, ratios = [0.5, 1.0], [[1.0, 0.5], [0.5, 1.0], [1.0, 1.0]]
    zoom, ratio, label = 1, 0, 2
    anchor = zoom * 3 + ratio
    state = esri.silent_state(esri.ssd_shapes("resnet18", 128, [4], 6, 2, 3, 3))
    esri.let_through_resnet(state, "0")
    esri.let_through(state, "1.sconvs.0.conv")
    esri.let_through(state, "1.sconvs.1.conv")
    state["1.oconvs.0.oconv1.bias"][:] = -10
    esri.let_through(state, "1.oconvs.0.oconv1", channel=anchor * 4 + label, gain=12)
    moves = (0.3, -0.5, 0.2, -0.4)  # y, x, height, width
    state["1.oconvs.0.oconv2.bias"][anchor * 4 : anchor * 4 + 4] = torch.tensor(moves)
    batch = np.zeros((1, 3, 128, 128), dtype=np.uint8)
    row, column = 1, 2
    batch[0, 0, 32 * row : 32 * row + 12, 32 * column : 32 * column + 12] = 255
    options = {"grids": [4], "zooms": zooms, "ratios": ratios}
    found = build(state, 128, n_classes=3, **options).predict(batch)[0]
    y, x, h, w = np.tanh(moves)
    cy, cx = 32 * (row + 0.5 + y / 2), 32 * (column + 0.5 + x / 2)
    height, width = 32 * (1 + h / 2) * 1.0 * 1.0, 32 * (1 + w / 2) * 1.0 * 0.5
    assert len(found) == 1
    assert np.allclose(found.boxes[0], [cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2], atol=1e-3)
    assert found.labels.tolist() == [label - 1]
    assert np.isclose(found.scores[0], 1 / (1 + np.exp(-2)), atol=1e-5)


def uniform(raw_scores: list[float], n_cells: int = 4) -> esri.State:
    """Weights under which each cell gives these raw scores, background first, and its anchor as it is."""
    state = esri.silent_state(esri.ssd_shapes("resnet18", 128, [n_cells], 1, 2, 3, len(raw_scores) - 1))
    state["1.oconvs.0.oconv1.bias"][:] = torch.tensor(raw_scores)
    return state


def test_the_background_is_no_object_and_each_class_above_the_threshold_is_one() -> None:
    batch = np.zeros((1, 3, 128, 128), dtype=np.uint8)
    found = build(uniform([9, 2, 1, -1]), 128, n_classes=3, grids=[4]).predict(batch)[0]
    assert found.labels.tolist() == [0] * 16 + [1] * 16
    assert np.allclose(found.scores, [1 / (1 + np.exp(-2))] * 16 + [1 / (1 + np.exp(-1))] * 16)


def test_a_score_equal_to_the_threshold_is_not_enough() -> None:
    batch = np.zeros((1, 3, 128, 128), dtype=np.uint8)
    assert len(build(uniform([0, 0, 0]), 128, grids=[4]).predict(batch)[0]) == 0
    assert len(build(uniform([0, 0, 0]), 128, grids=[4], threshold=0.4999).predict(batch)[0]) == 32


def test_one_class_has_at_most_fifty_objects_in_a_tile() -> None:
    batch = np.zeros((1, 3, 128, 128), dtype=np.uint8)
    detector = build(uniform([9, 2, 1], n_cells=8), 128, grids=[8])
    found = detector.predict(batch)[0]
    assert np.bincount(found.labels).tolist() == [50, 50]
    assert detector.traits.max_detections == 100


def test_the_overlap_limit_is_the_arguments() -> None:
    state = esri.single_shot_detector("resnet18", 128, [4, 2])
    batch = pictures(1, 3, 128)
    few, many = (build(state, 128, grids=[4, 2], nms_overlap=limit).predict(batch)[0] for limit in (0.0, 1.0))
    assert len(few) < len(many)
    for found, limit in ((few, 0.0), (many, 1.0)):
        reference.assert_same(found, expect(state, batch, [4, 2], nms_overlap=limit)[0])


def test_a_network_of_five_bands_takes_five() -> None:
    check(128, [4], 2, n_bands=5)


def test_a_batch_of_two_gives_what_two_of_one_give() -> None:
    detector = build(esri.single_shot_detector("resnet18", 128, [4, 2]), 128, grids=[4, 2])
    batch = pictures(2, 3, 128)
    together, alone = detector.predict(batch), [detector.predict(batch[i : i + 1])[0] for i in range(2)]
    for first, second in zip(together, alone):
        assert len(first) == len(second) > 0
        assert np.allclose(first.boxes, second.boxes, rtol=0, atol=1e-3)


def test_the_tile_is_the_chip_and_suppression_happens_inside() -> None:
    traits = build(esri.single_shot_detector("resnet18", 160, [5]), 160, grids=[5]).traits
    assert (traits.network_size, traits.stride, traits.is_dense, traits.is_exact) == (160, 1, False, False)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ((7, 4, 1), (3, 1, 2)), ((4, 2, 1), (3, 0, 1)), ((2, 1, 1), (2, 0, 1)), ((8, 4, 1), (3, 2, 3)),
        ((7, 4, 2), (3, 1, 2)), ((4, 2, 2), (3, 0, 1)), ((2, 1, 2), (2, 0, 1)), ((8, 4, 2), (3, 1, 2)),
        ((7, 1, 2), (7, 0, 1)), ((8, 3, 2), (3, 0, 2)), ((6, 6, 2), (3, 1, 1)),
    ],
)  # fmt: skip
def test_steps_between_grids_follow_the_version(step: tuple[int, int, int], expected: tuple[int, int, int]) -> None:
    assert ssd.choose_step(*step) == ssd.Step(*expected)


def test_every_step_gives_the_grid_that_it_was_chosen_for() -> None:
    for version in (1, 2):
        for side in range(1, 20):
            for grid in range(1, 20):
                try:
                    step = ssd.choose_step(side, grid, version)
                except ModelIncompatibleError:
                    continue
                start = step.resize_to or side
                assert (start - step.filter_size + 2 * step.padding) // step.stride + 1 == grid


def test_a_grid_that_version_1_cannot_reach_is_refused() -> None:
    with pytest.raises(ModelIncompatibleError, match=r"from 2 to 9 cells.*Grids"):
        build(esri.single_shot_detector("resnet18", 64, [2], version=1), 64, grids=[9], version=1)


def test_a_wrong_number_of_classes_names_the_tensor() -> None:
    state = esri.single_shot_detector("resnet18", 128, [4])
    with pytest.raises(ModelIncompatibleError, match=r"'1\.oconvs\.0\.oconv1\.weight' is \[3, .*expected \[4, "):
        build(state, 128, n_classes=3, grids=[4])


def test_a_grid_too_many_names_the_missing_tensor() -> None:
    state = esri.single_shot_detector("resnet18", 128, [4])
    with pytest.raises(ModelIncompatibleError, match=r"resnet18.*'1\.sconvs\.2\.conv\.weight'.* is missing"):
        build(state, 128, grids=[4, 2])


def test_other_bands_than_those_of_the_training_are_refused() -> None:
    state = esri.single_shot_detector("resnet18", 128, [4], n_bands=5)
    with pytest.raises(ModelIncompatibleError, match=r"5 bands.*'0\.0\.weight'.*names 3\..*ExtractBands"):
        build(state, 128, grids=[4])


@pytest.mark.parametrize("backbone", ["timm:efficientnet_b0", "hf:facebook/dinov2-small", "xception"])
def test_a_backbone_that_torchvision_does_not_own_is_refused_by_its_name(backbone: str) -> None:
    with pytest.raises(ModelUnsupportedError, match=f"SingleShotDetector with the backbone '{backbone}'"):
        build({}, 128, backbone=backbone, grids=[4])
