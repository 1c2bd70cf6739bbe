from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kestrel.inference.detectors.arcgis import yolov3
from kestrel.inference.detectors.arcgis.dense import Rules
from kestrel.inference.detectors.protocol import Detector, DetectorSettings
from kestrel.inference.errors import ModelIncompatibleError
from kestrel.tests.fixtures import dense_reference as reference
from kestrel.tests.fixtures import esri_dense as esri

pytestmark = pytest.mark.slow

ARGUMENTS = {"threshold": 0.1, "nms_overlap": 0.1}
SMALL_ANCHORS = [[4, 7], [9, 5], [12, 12], [14, 9], [10, 17], [20, 20], [25, 31], [33, 28], [40, 45]]


def build(
    state: esri.State, chip: int, n_bands: int = 3, n_classes: int = 2, *, is_variable: bool = False, **options: Any
) -> Detector:
    arguments = {name: options.pop(name, value) for name, value in ARGUMENTS.items()}
    options = {"backbone": "darknet53", "anchors": SMALL_ANCHORS, **options}
    definition = esri.definition("YOLOv3", chip, n_bands, n_classes, is_variable=is_variable, **options)
    return yolov3.build(definition, state, arguments, DetectorSettings("cpu", 1))


def pictures(n: int, n_bands: int, side: int) -> np.ndarray:
    return np.random.default_rng(side).integers(0, 256, (n, n_bands, side, side), dtype=np.uint8)


def expect(
    state: esri.State, batch: np.ndarray, *, anchors: Any = SMALL_ANCHORS, n_classes: int = 2, threshold: float = 0.1,
    nms_overlap: float = 0.1,
) -> list[list[reference.Found]]:  # fmt: skip
    with torch.inference_mode():
        maps = reference.yolov3_forward(state, torch.from_numpy(batch).float() / 255)
    return [
        reference.yolov3_decode(
            {number: values[i] for number, values in maps.items()},
            anchors, n_classes, batch.shape[-1], threshold, nms_overlap,
        )
        for i in range(len(batch))
    ]  # fmt: skip


@pytest.fixture(scope="module")
def state() -> esri.State:
    return esri.yolov3()


@pytest.mark.parametrize("chip", [64, 96])
def test_objects_are_those_of_the_formulae(state: esri.State, chip: int) -> None:
    batch = pictures(1, 3, chip)
    wanted = expect(state, batch)[0]
    assert len(wanted) > 10
    assert {item.label for item in wanted} == {0, 1}
    reference.assert_same(build(state, chip).predict(batch)[0], wanted)


def test_without_anchors_those_of_coco_serve(state: esri.State) -> None:
    batch = pictures(1, 3, 96)
    found = build(state, 96, anchors=None).predict(batch)[0]
    reference.assert_same(found, expect(state, batch, anchors=esri.COCO_ANCHORS)[0])


def test_the_arguments_limit_score_and_overlap(state: esri.State) -> None:
    batch = pictures(1, 3, 96)
    limits = {"threshold": 0.3, "nms_overlap": 0.6}
    found = build(state, 96, **limits).predict(batch)[0]
    assert len(found) > 0
    reference.assert_same(found, expect(state, batch, **limits)[0])


def test_a_network_of_five_bands_takes_five() -> None:
    state = esri.yolov3(n_bands=5)
    batch = pictures(1, 5, 64)
    reference.assert_same(build(state, 64, 5).predict(batch)[0], expect(state, batch)[0])


def test_a_batch_of_two_gives_what_two_of_one_give(state: esri.State) -> None:
    detector = build(state, 96)
    batch = pictures(2, 3, 96)
    together, alone = detector.predict(batch), [detector.predict(batch[i : i + 1])[0] for i in range(2)]
    for first, second in zip(together, alone):
        assert len(first) == len(second) > 0
        assert np.allclose(first.boxes, second.boxes, rtol=0, atol=1e-3)


# Hand-made weights ------------------------------------------------------------------------------------------------

HEADS = {14: (32, (6, 7, 8)), 22: (16, (3, 4, 5)), 28: (8, (0, 1, 2))}


@pytest.fixture(scope="module")
def shapes() -> esri.Shapes:
    return esri.yolov3_shapes(3, 2)


def silent(shapes: esri.Shapes) -> esri.State:
    """Weights under which Darknet's maps are the image at the cells' first pixels, and the heads give nothing."""
    state = esri.silent_state(shapes)
    for number in (0, 1, 3, 5, 7, 9):
        esri.let_through(state, f"module_list.{number}.conv")
    for number in (14, 22, 28):
        state[f"module_list.{number}.conv.bias"][:] = -10
    return state


def open_way(state: esri.State, head: int) -> None:
    """Let Darknet's map of a head's stride through to its last convolution, past the joints with coarser maps."""
    sources = {14: {}, 22: {17: 256}, 28: {25: 128}}[head]  # the first channel after those of the enlarged map
    ways = {14: (11, 12, 13), 22: (17, 18, 19, 20, 21), 28: (25, 26, 27)}[head]
    for number in ways:
        n_blocks = {11: 2, 19: 1, 27: 2}.get(number, 0)
        names = [f"module_list.{number}.module_list.{block}.{part}" for block in range(n_blocks) for part in (0, 1)]
        for name in names or [f"module_list.{number}"]:
            esri.let_through(state, f"{name}.conv", source=sources.get(number, 0))


@pytest.mark.parametrize("head", [14, 22, 28])
def test_an_object_of_one_level_cell_anchor_and_class_is_found_there_alone(shapes: esri.Shapes, head: int) -> None:
    """Everything is silent but the way from one map of Darknet to one head, and one anchor and class that listen."""
    stride, mask = HEADS[head]
    position, label = 1, 1
    state = silent(shapes)
    open_way(state, head)
    last, first = f"module_list.{head}.conv", position * 7
    esri.let_through(state, last, channel=first + 4, gain=14)
    moves = np.array([0.8, -0.6, 0.4, -0.3])  # x, y, width, height
    state[f"{last}.bias"][first : first + 4] = torch.tensor(moves, dtype=torch.float32)
    state[f"{last}.bias"][first + 5 + label] = 3
    chip, row, column = 128, 2, 1
    batch = np.zeros((1, 3, chip, chip), dtype=np.uint8)
    batch[0, 0, stride * row, stride * column] = 255
    found = build(state, chip).predict(batch)[0]
    x, y = ((1 / (1 + np.exp(-moves[:2]))) + (column, row)) * stride
    w, h = np.exp(moves[2:]) * SMALL_ANCHORS[mask[position]]
    assert len(found) == 1
    assert np.allclose(
        found.boxes[0], np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2]) * 128 / 127, rtol=0, atol=1e-3
    )
    assert found.labels.tolist() == [label]
    assert np.isclose(found.scores[0], 1 / (1 + np.exp(-4)) / (1 + np.exp(-3)), atol=1e-4)


def test_coarser_maps_come_enlarged_before_darknets_own(shapes: esri.Shapes) -> None:
    """The way from stride 32 to the last head: a cell of 32 pixels fires as 16 cells of 8."""
    state = silent(shapes)
    for name in ("11.module_list.0.0", "11.module_list.0.1", "11.module_list.1.0", "11.module_list.1.1", "12", "15",
                 "17", "18", "19.module_list.0.0", "19.module_list.0.1", "20", "23", "25", "26", "27.module_list.0.0",
                 "27.module_list.0.1", "27.module_list.1.0", "27.module_list.1.1"):  # fmt: skip
        esri.let_through(state, f"module_list.{name}.conv")
    esri.let_through(state, "module_list.28.conv", channel=4, gain=14)
    state["module_list.28.conv.bias"][:4] = 0
    state["module_list.28.conv.bias"][5] = 3
    batch = np.zeros((1, 3, 96, 96), dtype=np.uint8)
    batch[0, 0, 32, 64] = 255
    found = build(state, 96).predict(batch)[0]
    centres = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2 * 95 / 96
    cells = {(x, y) for x in (68, 76, 84, 92) for y in (36, 44, 52, 60)}
    assert {tuple(np.round(centre, 2)) for centre in centres} == cells


def everywhere(shapes: esri.Shapes, raw: list[float]) -> esri.State:
    """Weights under which each cell of stride 8 gives these numbers for its first anchor."""
    state = silent(shapes)
    state["module_list.28.conv.bias"][:7] = torch.tensor(raw)
    return state


def test_a_candidate_gives_its_best_class_alone(shapes: esri.Shapes) -> None:
    found = build(everywhere(shapes, [0, 0, 0, 0, 2, 1, 3]), 64).predict(np.zeros((1, 3, 64, 64), np.uint8))[0]
    assert found.labels.tolist() == [1] * 64
    assert np.allclose(found.scores, 1 / (1 + np.exp(-2)) / (1 + np.exp(-3)))


def test_a_score_equal_to_the_threshold_is_enough(shapes: esri.Shapes) -> None:
    state, batch = everywhere(shapes, [0, 0, 0, 0, 0, -10, 0]), np.zeros((1, 3, 64, 64), np.uint8)
    assert len(build(state, 64, threshold=0.25).predict(batch)[0]) == 64
    assert len(build(state, 64, threshold=0.2501).predict(batch)[0]) == 0


def test_an_overlap_equal_to_the_limit_is_too_much() -> None:
    """One box lies in the other and has a quarter of its area: nothing is rounded."""
    boxes, scores = torch.tensor([[2.0, 2, 6, 6], [3, 3, 5, 5]]), torch.tensor([0.9, 0.8])
    assert Rules(0.1, 0.25, is_inclusive=True).suppress(boxes, scores).tolist() == [0]
    assert Rules(0.1, 0.26, is_inclusive=True).suppress(boxes, scores).tolist() == [0, 1]
    assert Rules(0.1, 0.25).suppress(boxes, scores).tolist() == [0, 1]


def test_objects_of_a_class_suppress_each_other(shapes: esri.Shapes) -> None:
    """Two anchors of one cell, one inside the other, with a quarter of its area."""
    state, batch = silent(shapes), np.zeros((1, 3, 64, 64), np.uint8)
    state["module_list.28.conv.bias"][:14] = torch.tensor([0, 0, 0, 0, 10, 9, -9, 0, 0, 0, 0, 10, 8, -9.0])
    anchors = [[4, 4], [2, 2], *SMALL_ANCHORS[2:]]
    assert len(build(state, 64, anchors=anchors, nms_overlap=0.26).predict(batch)[0]) == 128
    assert len(build(state, 64, anchors=anchors, nms_overlap=0.24).predict(batch)[0]) == 64


def test_objects_of_different_classes_do_not_suppress_each_other(shapes: esri.Shapes) -> None:
    state = silent(shapes)
    state["module_list.28.conv.bias"][:14] = torch.tensor([0, 0, 0, 0, 10, 9, -9, 0, 0, 0, 0, 10, -9, 8.0])
    found = build(state, 64, anchors=[[4, 4], [4, 4], *SMALL_ANCHORS[2:]]).predict(np.zeros((1, 3, 64, 64), np.uint8))
    assert np.bincount(found[0].labels).tolist() == [64, 64]


def test_one_class_has_at_most_two_hundred_objects_in_a_tile(shapes: esri.Shapes) -> None:
    detector = build(everywhere(shapes, [0, 0, 0, 0, 2, -9, 3]), 128)
    assert len(detector.predict(np.zeros((1, 3, 128, 128), np.uint8))[0]) == 200
    assert detector.traits.max_detections == 400


# Sizes and weights that do not fit --------------------------------------------------------------------------------


def test_a_tile_that_is_no_multiple_of_32_is_refused_with_the_size_to_set() -> None:
    with pytest.raises(ModelIncompatibleError, match=r"multiple of 32 pixels.*says 400\..*ImageWidth.* to 416\."):
        build({}, 400)


def test_the_tile_is_the_chip_unless_the_package_says_that_it_varies(state: esri.State) -> None:
    assert build(state, 64).traits.network_size == 64
    detector = build(state, 400, is_variable=True)
    assert (detector.traits.network_size, detector.traits.stride, detector.traits.is_dense) == (None, 32, False)
    batch = pictures(1, 3, 96)
    reference.assert_same(detector.predict(batch)[0], expect(state, batch)[0])


def test_wrong_shapes_and_names_are_told(state: esri.State) -> None:
    with pytest.raises(ModelIncompatibleError, match=r"'module_list\.14\.conv\.weight' is \[21, .*expected \[24, "):
        build(state, 64, n_classes=3)
    lame = {name: tensor for name, tensor in state.items() if name != "module_list.6.module_list.7.1.conv.weight"}
    with pytest.raises(ModelIncompatibleError, match=r"YOLOv3.*'module_list\.6\.module_list\.7\.1\.conv\.weight'"):
        build(lame, 64)
    with pytest.raises(ModelIncompatibleError, match=r"3 bands.*'module_list\.0\.conv\.weight'.*names 4\."):
        build(state, 64, 4)


def test_other_than_nine_anchors_are_refused(state: esri.State) -> None:
    with pytest.raises(ModelIncompatibleError, match=r"9 anchors.*names 6\..*ModelParameters\.anchors"):
        build(state, 64, anchors=SMALL_ANCHORS[:6])
