from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kestrel.inference.detectors.arcgis import deepforest
from kestrel.inference.detectors.protocol import Detector, DetectorSettings
from kestrel.inference.errors import ModelIncompatibleError
from kestrel.inference.models.arguments import resolve_arguments
from kestrel.inference.models.esri import definition_from_emd
from kestrel.tests.fixtures import esri_rcnn as esri

pytestmark = pytest.mark.slow

CHIP = 64


def build(model: esri.Model, state: esri.State | None = None, **arguments: Any) -> Detector:
    members = [model.emd["ModelFile"], "TreeDetector.py"]
    definition = definition_from_emd(model.emd, members)
    values = resolve_arguments(definition, arguments).values
    return deepforest.build(definition, model.state if state is None else state, values, DetectorSettings("cpu", 1))


@pytest.fixture(scope="module")
def trees() -> esri.Model:
    return esri.deep_forest(CHIP)


@pytest.fixture(scope="module")
def batch() -> np.ndarray:
    return esri.pictures(2, 3, CHIP, seed=7)


def test_trees_are_those_of_torchvision(trees: esri.Model, batch: np.ndarray) -> None:
    found = build(trees, threshold=0.3, nms_overlap=0.2).predict(batch)
    esri.assert_same(found, trees.run(batch, 0.3, 0.2), first_label=0)


def test_threshold_and_overlap_are_those_of_deepforest_unless_the_user_gives_others(
    trees: esri.Model, batch: np.ndarray
) -> None:
    found = build(trees).predict(batch)
    esri.assert_same(found, trees.run(batch, 0.1, 0.05), first_label=0)


def test_labels_begin_with_the_first_class(batch: np.ndarray) -> None:
    model = esri.deep_forest(CHIP, n_classes=3)
    found = build(model, threshold=0.4).predict(batch)
    esri.assert_same(found, model.run(batch, 0.4, 0.05), first_label=0)
    assert set(np.concatenate([item.labels for item in found]).tolist()) == {0, 1, 2}


def test_old_names_and_names_with_the_program_s_prefix_are_understood(trees: esri.Model, batch: np.ndarray) -> None:
    expected = build(trees).predict(batch)
    old = esri.with_old_names(trees.state)
    assert set(old) != set(trees.state)
    wrapped = {f"model.{name}": tensor for name, tensor in trees.state.items()}
    wrapped["iou_metric.count"] = torch.zeros(1)
    for state in (old, wrapped):
        for one, other in zip(expected, build(trees, state).predict(batch)):
            assert np.array_equal(one.boxes, other.boxes)


def test_frozen_batch_norms_add_nothing_to_their_variances(batch: np.ndarray) -> None:
    model = esri.deep_forest(CHIP, is_frozen=True)
    for name, variance in model.state.items():  # so small that what torchvision else adds would matter
        if name.endswith("bn1.running_var"):
            variance.mul_(1e-3)
    wanted = model.run(batch, 0.3, 0.05)
    esri.assert_same(
        build(model, esri.without_counters(model.state), threshold=0.3).predict(batch), wanted, first_label=0
    )
    others = build(model, threshold=0.3).predict(batch)
    assert any(
        len(ours) != len(theirs["boxes"]) or np.abs(ours.boxes - theirs["boxes"]).max() > 0.01
        for ours, theirs in zip(others, wanted)
    )


def test_a_variance_of_zero_does_not_make_a_network_blind(trees: esri.Model, batch: np.ndarray) -> None:
    state = esri.without_counters(trees.state)
    state["backbone.body.bn1.running_var"] = state["backbone.body.bn1.running_var"].clone().zero_()
    assert all(len(found) for found in build(trees, state, threshold=0.01).predict(batch))


def test_tiles_become_twice_as_large_whatever_their_side(trees: esri.Model) -> None:
    batch = esri.pictures(1, 3, 96)
    found = build(trees, threshold=0.3).predict(batch)
    trees.network.transform.min_size = (2 * 96,)
    wanted = trees.run(batch, 0.3, 0.05)
    trees.network.transform.min_size = (2 * CHIP,)
    esri.assert_same(found, wanted, first_label=0)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("head.classification_head.cls_logits.weight", (18, 256, 3, 3), "1 more classes .*cls_logits.weight.*18"),
        ("backbone.body.conv1.weight", (64, 5, 7, 7), "take 5 bands .*'backbone.body.conv1.weight' is .64, 5, 7, 7"),
        ("head.regression_head.bbox_reg.bias", (12,), "'head.regression_head.bbox_reg.bias' is .12., expected .36."),
        ("backbone.fpn.extra_blocks.p7.weight", None, "'backbone.fpn.extra_blocks.p7.weight' .* is missing"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_the_tensor(
    trees: esri.Model, name: str, shape: tuple[int, ...] | None, message: str
) -> None:
    state = {key: tensor for key, tensor in trees.state.items() if key != name}
    if shape:
        state[name] = torch.zeros(shape)
    with pytest.raises(ModelIncompatibleError, match=message):
        build(trees, state)
