"""RTDetrV2: the published network, rebuilt from its weights; compared with a slow computation of the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kestrel.inference.detectors.arcgis.rtdetr import build, decode, read_layout
from kestrel.inference.detectors.arcgis.rtdetr_network import RtDetr, sample
from kestrel.inference.detectors.protocol import Detector, DetectorSettings
from kestrel.inference.errors import ModelError, ModelIncompatibleError, ModelUnsupportedError
from kestrel.tests.fixtures.esri_rtdetr import (
    R18,
    R34,
    R50,
    R101,
    SMALL,
    Kind,
    Reference,
    State,
    look_at,
    rtdetr_definition,
    rtdetr_shapes,
    rtdetr_state,
)

SIDE = 64
NOT_BUILT = ("anchors", "valid_mask", "denoising_class_embed.weight", "num_points_scale")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def state() -> State:
    return rtdetr_state(SMALL)


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(4).integers(0, 256, (2, 3, SIDE, SIDE), np.uint8)


def detector(state: State, kind: Kind = SMALL, side: int = SIDE, options: Any = None, **arguments: Any) -> Detector:
    values = {"threshold": 0.5, "nms_overlap": 0.1, **arguments}
    return build(rtdetr_definition(kind, side, **(options or {})), state, values, DetectorSettings())


def normalised(images: NDArray[Any]) -> torch.Tensor:
    return (torch.from_numpy(images).double() / 255 - 0.45) / 0.22


# -- The network


@pytest.mark.parametrize("kind", [R18, R34, R50, R101], ids=["r18", "r34", "r50", "r101"])
def test_names_and_shapes_are_the_published_ones(kind: Kind) -> None:
    expected = rtdetr_shapes(kind)
    state = {name: torch.empty(shape, device="meta") for name, shape in expected.items()}
    for name in expected:
        if name.endswith("num_points_scale"):
            state[name] = torch.full((12,), 0.25)
    with torch.device("meta"):
        network = RtDetr(read_layout(rtdetr_definition(kind), state))
    built = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert {name: shape for name, shape in expected.items() if not name.endswith(NOT_BUILT)} == built


@pytest.mark.slow
@pytest.mark.parametrize("is_discrete", [False, True])
def test_the_network_equals_a_slow_computation(state: State, images: NDArray[Any], is_discrete: bool) -> None:
    definition = rtdetr_definition(SMALL, SIDE, **({"cross_attn_method": "discrete"} if is_discrete else {}))
    network = RtDetr(read_layout(definition, state)).double().eval()
    network.load_state_dict({k: v for k, v in state.items() if not k.endswith(NOT_BUILT)})
    pixels = normalised(images)
    with torch.inference_mode():
        logits, boxes = network(pixels)
        slow_logits, slow_boxes = Reference(SMALL, state, is_discrete=is_discrete)(pixels)
    assert logits.shape == (2, 84, 3)  # all cells at strides 8, 16 and 32 of 64 pixels
    assert (logits - slow_logits).abs().max() < 1e-6
    assert (boxes - slow_boxes).abs().max() < 1e-6


@pytest.mark.slow
def test_a_network_of_bottlenecks_equals_a_slow_computation(images: NDArray[Any]) -> None:
    kind = Kind(
        blocks=(3, 4, 6, 3), is_bottleneck=True, width=16, inner=20, expansion=1.0, n_layers=1, decoder_width=16,
        decoder_inner=12, n_heads=2, points=(1, 1, 1),
    )  # fmt: skip
    state = rtdetr_state(kind, seed=2)
    network = RtDetr(read_layout(rtdetr_definition(kind), state)).double().eval()
    network.load_state_dict({k: v for k, v in state.items() if not k.endswith(NOT_BUILT)})
    with torch.inference_mode():
        logits, boxes = network(normalised(images[:1]))
        slow_logits, slow_boxes = Reference(kind, state)(normalised(images[:1]))
    assert (logits - slow_logits).abs().max() < 1e-6
    assert (boxes - slow_boxes).abs().max() < 1e-6


@pytest.mark.parametrize("is_discrete", [False, True])
def test_attention_looks_where_a_loop_looks(is_discrete: bool) -> None:
    random = torch.Generator().manual_seed(1)
    shapes, points = [(5, 7), (3, 3)], (2, 3)
    values = torch.rand(2, 44, 3, 4, generator=random, dtype=torch.float64)
    # Some places lie outside; the rounding of the discrete kind is only published for square maps, and clamped there.
    places = torch.rand(2, 6, 3, 5, 2, generator=random, dtype=torch.float64) * 1.4 - 0.2
    weights = torch.rand(2, 6, 3, 5, generator=random, dtype=torch.float64)
    seen = sample(values, shapes, places, weights, points, is_discrete=is_discrete)
    maps = [values[:, :35].reshape(2, 5, 7, 3, 4), values[:, 35:].reshape(2, 3, 3, 3, 4)]
    for n, query, head in np.ndindex(2, 6, 3):
        expected = torch.zeros(4, dtype=torch.float64)
        for point, level in enumerate((0, 0, 1, 1, 1)):
            x, y = places[n, query, head, point].tolist()
            image = maps[level][n, :, :, head].permute(2, 0, 1)
            expected += weights[n, query, head, point] * look_at(image, x, y, is_discrete=is_discrete)
        assert torch.allclose(expected, seen[n, query, head * 4 : head * 4 + 4])


# -- What is made of its output


def test_boxes_scores_and_labels_are_the_slow_computations(state: State, images: NDArray[Any]) -> None:
    found = detector(state, threshold=0.05, nms_overlap=1.0).predict(images)
    logits, boxes = Reference(SMALL, state)(normalised(images))
    for one, scores, centres in zip(found, torch.sigmoid(logits).numpy(), boxes.numpy()):
        least = np.sort(scores.ravel())[-len(scores)]
        query, label = np.nonzero((scores > 0.05) & (scores >= least))
        query, label = query[label > 0], label[label > 0]
        expected = sorted((lab - 1, scores[q, lab], *_corners(centres[q] * SIDE)) for q, lab in zip(query, label))
        got = sorted((lab, score, *box) for lab, score, box in zip(one.labels, one.scores, one.boxes))
        assert len(expected) > 5
        assert np.abs(np.array(expected) - np.array(got)).max() < 1e-3


def _corners(box: NDArray[Any]) -> tuple[float, float, float, float]:
    x, y, w, h = box
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def test_label_0_is_no_class_and_takes_the_place_of_weaker_ones() -> None:
    logits = torch.tensor([[[9.0, 2.0, -9.0], [8.0, 1.0, 3.0]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.25, 0.75, 0.5, 0.5]]])
    corners, scores = decode((logits, boxes), 100)
    assert torch.allclose(corners, torch.tensor([[[40.0, 30.0, 60.0, 70.0], [0.0, 50.0, 50.0, 100.0]]]))
    assert (scores == -1.0).all()  # the two best pairs of query and label are both background
    logits[0, 0, 0] = 0.0
    _, scores = decode((logits, boxes), 100)
    assert scores.tolist() == [[[-1.0, -1.0], [-1.0, pytest.approx(0.95257, abs=1e-4)]]]


def test_a_score_must_be_above_the_threshold_and_overlaps_are_suppressed(state: State, images: NDArray[Any]) -> None:
    last = "decoder.dec_bbox_head.1.layers.2.bias"
    state = {**state, last: state[last] + torch.tensor([0.0, 0.0, 2.0, 2.0])}  # large boxes
    (every,) = detector(state, threshold=0.0, nms_overlap=1.0).predict(images[:1])
    limit = float(np.sort(every.scores)[len(every) // 2])
    (above,) = detector(state, threshold=limit, nms_overlap=1.0).predict(images[:1])
    assert len(above) == (every.scores > np.float32(limit)).sum() < len(every)
    (apart,) = detector(state, threshold=0.0, nms_overlap=0.1).predict(images[:1])
    assert 0 < len(apart) < len(every)
    for label in set(apart.labels.tolist()):
        assert _largest_overlap(apart.boxes[apart.labels == label]) <= 0.1 + 1e-6


def _largest_overlap(boxes: NDArray[Any]) -> float:
    worst = 0.0
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
            common = max(w, 0) * max(h, 0)
            areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
            worst = max(worst, common / (areas - common))
    return worst


def test_the_result_does_not_depend_on_the_batch(state: State, images: NDArray[Any]) -> None:
    network = detector(state, threshold=0.3)
    together = network.predict(images)
    for index, found in enumerate(together):
        (alone,) = network.predict(images[index : index + 1])
        assert np.array_equal(alone.labels, found.labels)
        assert np.abs(alone.boxes - found.boxes).max() < 1e-3
        assert np.abs(alone.scores - found.scores).max() < 1e-5


def test_there_are_no_more_queries_than_stated(state: State, images: NDArray[Any]) -> None:
    network = detector(state, options={"n_queries": 5}, threshold=0.0, nms_overlap=1.0)
    assert (5, SIDE) == (network.traits.max_detections, network.traits.network_size)
    assert all(0 < len(found) <= 5 for found in network.predict(images))


def test_weights_without_the_number_of_points_are_taken_for_as_many_on_each_level(images: NDArray[Any]) -> None:
    kind = Kind(width=32, inner=8, n_layers=1, decoder_width=32, decoder_inner=8, points=(2, 2, 2), anchors_for=64)
    state = rtdetr_state(kind)
    bare = {name: tensor for name, tensor in state.items() if not name.endswith(NOT_BUILT)}
    bare = {name: tensor for name, tensor in bare.items() if not name.endswith("num_batches_tracked")}
    (full,), (less,) = (detector(weights, kind, threshold=0.2).predict(images[:1]) for weights in (state, bare))
    assert 0 < len(full)
    assert np.array_equal(full.boxes, less.boxes)


def test_a_model_of_other_bands_runs() -> None:
    kind = Kind(width=32, inner=8, n_layers=1, decoder_width=32, decoder_inner=8, n_bands=5, anchors_for=None)
    (found,) = detector(rtdetr_state(kind), kind, threshold=0.2).predict(np.ones((1, 5, SIDE, SIDE), np.float32))
    assert 0 < len(found)


# -- What does not fit


def without(state: State, *names: str) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith(names)}


def test_weights_of_other_networks_are_refused(state: State) -> None:
    norm = "encoder.lateral_convs.0.norm.weight"
    cases: list[tuple[State, type[ModelError], str]] = [
        ({}, ModelUnsupportedError, "RTDetrV2 with the backbone 'resnet18vd'"),
        (without(state, "backbone.conv1.conv1_3"), ModelUnsupportedError, "backbone"),
        (without(state, "backbone.res_layers.3.blocks.1"), ModelUnsupportedError, "backbone"),
        (without(state, norm), ModelIncompatibleError, rf"RTDetrV2 with resnet18vd: '{norm}' \[32\] is missing"),
        ({**state, norm: torch.ones(31)}, ModelIncompatibleError, rf"'{norm}' is \[31\], expected \[32\]"),
        ({**state, "decoder.more.weight": torch.ones(2)}, ModelIncompatibleError, r"'decoder\.more\.weight' \[2\]"),
        (without(state, "decoder.decoder."), ModelIncompatibleError, "is missing"),
        (without(state, "decoder.input_proj.2"), ModelIncompatibleError, "levels"),
        ({**state, "decoder.decoder.layers.0.cross_attn.num_points_scale": torch.zeros(6)}, ModelIncompatibleError,
         "num_points_scale"),
        ({**state, "encoder.input_proj.0.conv.weight": torch.ones(30, 128, 1, 1)}, ModelIncompatibleError,
         "30 channels for 4 heads"),
        ({**state, "encoder.input_proj.0.conv.weight": torch.ones(3)}, ModelIncompatibleError,
         "has 1 axes, expected 4"),
    ]  # fmt: skip
    for weights, error, message in cases:
        with pytest.raises(error, match=message):
            detector(weights)


def test_other_classes_bands_and_tiles_than_the_weights_are_refused(state: State) -> None:
    with pytest.raises(ModelIncompatibleError, match=r"for 2 classes .*dec_score_head.* definition has 3"):
        detector(state, Kind(n_labels=4))
    with pytest.raises(ModelIncompatibleError, match=r"take 3 bands .* names 4"):
        detector(state, Kind(n_bands=4))
    with pytest.raises(ModelIncompatibleError, match=r"400 pixels wide; .* multiples of 32"):
        detector(state, side=400)
