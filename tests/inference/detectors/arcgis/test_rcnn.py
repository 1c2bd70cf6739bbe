from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rasterio.features import rasterize
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from kestrel.inference.detectors import load_detector
from kestrel.inference.detectors.arcgis import rcnn
from kestrel.inference.detectors.protocol import Detector, DetectorSettings
from kestrel.inference.detectors.torch_common import TileTransform
from kestrel.inference.errors import ModelIncompatibleError, ModelUnsupportedError
from kestrel.inference.models.arguments import resolve_arguments
from kestrel.inference.models.definition import ModelDefinition
from kestrel.inference.models.esri import definition_from_emd
from kestrel.inference.models.package import open_package
from kestrel.tests.fixtures import esri_rcnn as esri
from kestrel.tests.fixtures.esri_packages import write_package

pytestmark = pytest.mark.slow

SETTINGS = DetectorSettings("cpu", 1)
slow = pytest.mark.slow


def define(model: esri.Model) -> ModelDefinition:
    return definition_from_emd(model.emd, [str(model.emd["ModelFile"])])


def build(model: esri.Model, state: esri.State | None = None, **arguments: Any) -> Detector:
    definition = define(model)
    values = resolve_arguments(definition, arguments).values
    return rcnn.build(definition, model.state if state is None else state, values, SETTINGS)


@cache
def small(family: str = "FasterRCNN", n_bands: int = 3) -> esri.Model:
    """A network on a resnet18, which the tests share and leave as it is."""
    return esri.rcnn(family, "resnet18", n_bands=n_bands)


def pictures(model: esri.Model, n: int = 2, side: int = 0, seed: int = 5) -> np.ndarray:
    return esri.pictures(n, len(model.emd["ExtractBands"]), side or model.emd["ImageHeight"], seed)


def covered_by(shape: Any, side: int) -> np.ndarray:
    return rasterize([(shape, 1)], out_shape=(side, side)).astype(bool)


def assert_same_outlines(found: list[Any], wanted: list[esri.Found], side: int) -> None:
    """Compare outlines with torchvision's masks; what it gives without a pixel is no object of ours."""
    with_pixels = []
    for theirs in wanted:
        keep = (theirs["masks"] >= 0.5).any(axis=(1, 2, 3))
        with_pixels.append({name: values[keep] for name, values in theirs.items()})
    esri.assert_same(found, with_pixels)
    for ours, theirs in zip(found, with_pixels):
        masks = theirs["masks"][:, 0] >= 0.5
        for shape, box, label in zip(ours.shapes, ours.boxes, ours.labels):
            assert shape.is_valid
            places = np.abs(theirs["boxes"] - box).max(axis=1) + (theirs["labels"] - 1 != label) * 1000
            differing = (covered_by(shape, side) != masks[places.argmin()]).sum()
            assert differing <= 1  # a pixel of a probability of exactly 0.5


# -- The same objects as torchvision -----------------------------------------------------------------------------------

NETWORKS = [
    pytest.param("resnet18", False, 3, 1.5),
    pytest.param("resnet18", False, 3, 1.0),
    pytest.param("resnet18", False, 5, 1.5),
    pytest.param("resnet34", False, 3, 1.5),
    pytest.param("resnet34", False, 5, 1.0, marks=slow),
    pytest.param("resnet18", True, 3, 1.5),
    pytest.param("resnet34", True, 5, 1.5, marks=slow),
    pytest.param("resnet50", True, 3, 1.5, marks=slow),
    pytest.param("resnet50", True, 5, 1.5, marks=slow),
    pytest.param("resnet50", True, 3, 1.0, marks=slow),
    pytest.param("resnet101", True, 3, 1.5, marks=slow),
    pytest.param("resnet101", True, 5, 1.0, marks=slow),
    pytest.param("resnet152", True, 3, 1.5, marks=slow),
    pytest.param("resnet152", True, 5, 1.5, marks=slow),
    pytest.param("resnet50", False, 3, 1.5, marks=slow),
    pytest.param("resnet101", False, 5, 1.5, marks=slow),
    pytest.param("resnet152", False, 3, 1.0, marks=slow),
]


@pytest.mark.parametrize(("backbone", "is_pyramid", "n_bands", "zoom"), NETWORKS)
def test_faster_rcnn_finds_what_torchvision_finds(backbone: str, is_pyramid: bool, n_bands: int, zoom: float) -> None:
    model = esri.rcnn("FasterRCNN", backbone, is_pyramid=is_pyramid, n_bands=n_bands, zoom=zoom)
    batch = pictures(model)
    found = build(model, threshold=0.3, nms_overlap=0.3).predict(batch)
    esri.assert_same(found, model.run(batch, 0.3, 0.3))


# The trunks are FasterRCNN's, tested above: masks need one of each shape.
@pytest.mark.parametrize(("backbone", "is_pyramid", "n_bands", "zoom"), [
    ("resnet18", False, 3, 1.5), ("resnet18", False, 5, 1.0), pytest.param("resnet18", True, 3, 1.5, marks=slow),
    pytest.param("resnet50", True, 5, 1.5, marks=slow), pytest.param("resnet50", True, 3, 1.0, marks=slow),
])  # fmt: skip
def test_mask_rcnn_finds_what_torchvision_finds(backbone: str, is_pyramid: bool, n_bands: int, zoom: float) -> None:
    model = esri.rcnn("MaskRCNN", backbone, is_pyramid=is_pyramid, n_bands=n_bands, zoom=zoom)
    batch = pictures(model)
    found = build(model, threshold=0.5).predict(batch)
    assert_same_outlines(found, model.run(batch, 0.5, 0.5), 64)


def test_outlines_of_a_mask_rcnn_have_the_holes_of_its_masks() -> None:
    model = small("MaskRCNN")
    batch = pictures(model, n=4)
    found = build(model, threshold=0.6).predict(batch)
    assert_same_outlines(found, model.run(batch, 0.6, 0.5), 64)
    assert any(len(getattr(shape, "interiors", ())) for item in found for shape in item.shapes)


def test_the_statistics_of_three_bands_of_16_bit_are_used() -> None:
    statistics = esri.rcnn("MaskRCNN", n_bands=4).emd["NormalizationStats"]
    model = esri.rcnn(
        "MaskRCNN", n_bands=3, NormalizationStats=statistics, ExtractBands=[3, 0, 2], IsImageNetNormalization=False
    )
    batch = pictures(model).astype(np.uint16) * 5
    found = build(model, threshold=0.3).predict(batch)
    assert_same_outlines(found, model.run(batch, 0.3, 0.5), 64)


def test_all_sizes_of_anchors_on_a_single_level_are_read_from_the_weights() -> None:
    model = esri.rcnn("FasterRCNN", sizes=(32, 64, 128, 256, 512))
    batch = pictures(model)
    esri.assert_same(build(model, threshold=0.3).predict(batch), model.run(batch, 0.3, 0.1))


@pytest.mark.parametrize("side", [96, 65])
def test_tiles_of_another_side_become_one_and_a_half_times_as_large_too(side: int) -> None:
    model = small()
    batch = pictures(model, side=side)
    found = build(model, threshold=0.3).predict(batch)
    other = esri.rcnn("FasterRCNN", chip=side)
    other.network.load_state_dict(model.state)
    esri.assert_same(found, other.run(batch, 0.3, 0.1))


@pytest.mark.parametrize(("zoom", "most", "side", "seen"), [
    (1.5, None, 400, 600), (1.5, None, 333, 499), (1.0, 1333, 400, 400), (1.0, 1333, 1400, 1333), (2.0, None, 400, 800),
])  # fmt: skip
def test_the_network_sees_a_tile_in_the_size_that_torchvision_would_give_it(
    zoom: float, most: int | None, side: int, seen: int
) -> None:
    image = torch.rand(1, side, side, generator=torch.Generator().manual_seed(0))
    (ours,) = TileTransform(zoom, most)([image])[0].tensors
    (theirs,) = GeneralizedRCNNTransform(zoom * side, most or 2 * side, [0.0], [1.0])([image])[0].tensors
    assert torch.equal(ours, theirs)
    assert ours.shape[-1] == -(-seen // 32) * 32
    assert bool(ours[0, seen - 1].any()) and not ours[0, seen:].any()


def test_a_tile_is_seen_alike_alone_and_among_others() -> None:
    detector = build(small(), threshold=0.3)
    batch = pictures(small(), n=3)
    for index, found in enumerate(detector.predict(batch)):
        (alone,) = detector.predict(batch[index : index + 1])
        assert len(found) == len(alone) > 0
        assert np.allclose(found.boxes, alone.boxes, atol=0.01)


def test_a_batch_stays_as_it_is() -> None:
    detector = build(small(), threshold=0.3)
    batch = pictures(small()).astype(np.float32)
    first, second = detector.predict(batch), detector.predict(batch)
    assert np.array_equal(batch, pictures(small()))
    assert all(np.array_equal(one.boxes, other.boxes) for one, other in zip(first, second))


def test_no_objects_are_an_empty_result() -> None:
    for family in ("FasterRCNN", "MaskRCNN"):
        found = build(small(family), threshold=1.0).predict(pictures(small(family)))
        assert [len(item) for item in found] == [0, 0]


# -- Arguments and limits ----------------------------------------------------------------------------------------------


def test_with_return_bboxes_a_mask_rcnn_gives_its_boxes_alone() -> None:
    model = small("MaskRCNN")
    batch = pictures(model)
    detector = build(model, threshold=0.3, return_bboxes=True)
    found = detector.predict(batch)
    esri.assert_same(found, model.run(batch, 0.3, 0.5))
    assert all(item.shapes is None for item in found)
    assert ("box", "polygon") == (detector.traits.geometry, build(model).traits.geometry)


def test_the_overlap_of_a_mask_rcnn_is_its_package_s_and_the_user_s_goes_before() -> None:
    model = esri.rcnn("MaskRCNN", MaskRCNNkwargs={"box_nms_thresh": 0.2})
    batch = pictures(model)
    for given, overlap in (({}, 0.2), ({"nms_overlap": 0.7}, 0.7)):
        wanted = model.run(batch, 0.2, overlap)
        esri.assert_same(build(model, threshold=0.2, return_bboxes=True, **given).predict(batch), wanted)


def test_the_package_s_numbers_for_torchvision_are_used() -> None:
    kwargs = {"rpn_pre_nms_top_n_test": 20, "rpn_post_nms_top_n_test": 7, "rpn_nms_thresh": 0.4, "rpn_score_thresh": 0}
    model = esri.rcnn("FasterRCNN", Kwargs={**kwargs, "box_score_thresh": 0.99, "pretrained_backbone": True})
    batch = pictures(model)
    rpn = model.network.rpn
    rpn._pre_nms_top_n["testing"], rpn._post_nms_top_n["testing"], rpn.nms_thresh = 20, 7, 0.4
    esri.assert_same(build(model, threshold=0.1, nms_overlap=0.9).predict(batch), model.run(batch, 0.1, 0.9))


def test_the_limit_of_objects_is_the_package_s_else_a_thousand() -> None:
    limited = esri.rcnn("FasterRCNN", Kwargs={"box_detections_per_img": 5})
    batch = pictures(limited)
    found, detector = build(limited, threshold=0.05).predict(batch), build(small(), threshold=0.05)
    assert 5 == build(limited).traits.max_detections == len(found[0])
    esri.assert_same(found, limited.run(batch, 0.05, 0.1, most=5))
    assert detector.traits.max_detections == 1000


def test_the_first_hundred_objects_are_those_that_arcgis_would_have_given() -> None:
    model = esri.rcnn("FasterRCNN", chip=192)
    batch = pictures(model, n=1)
    (found,) = build(model, threshold=0.05, nms_overlap=0.6).predict(batch)
    wanted = model.run(batch, 0.05, 0.6, most=100)
    assert len(found) > 100 == len(wanted[0]["boxes"])
    esri.assert_same([found.take(np.arange(100))], wanted)


def test_networks_are_described_by_their_traits() -> None:
    traits = build(small()).traits
    assert (1, None, False, None) == (
        traits.stride, traits.receptive_field_radius, traits.is_dense, traits.network_size
    )  # fmt: skip


# -- Packages and names of all times -----------------------------------------------------------------------------------


@slow
@pytest.mark.parametrize("era", ["1.8", "2.4"])
@pytest.mark.parametrize("family", ["FasterRCNN", "MaskRCNN"])
def test_a_package_is_opened_and_run(tmp_path: Path, family: str, era: str) -> None:
    model = small(family)
    package = open_package(str(write_package(tmp_path / "p.dlpk", model.emd, model.state, era=era)))
    arguments = resolve_arguments(package.definition, {"threshold": 0.5}).values
    batch = pictures(model)
    found = load_detector(package, arguments, SETTINGS, tmp_path).predict(batch)
    if family == "MaskRCNN":
        assert_same_outlines(found, model.run(batch, 0.5, 0.5), 64)
    else:
        esri.assert_same(found, model.run(batch, 0.5, 0.1))


@pytest.mark.parametrize("change", [esri.with_old_names, esri.without_counters])
@pytest.mark.parametrize(("family", "backbone"), [
    ("FasterRCNN", "resnet18"), ("MaskRCNN", "resnet18"), pytest.param("MaskRCNN", "resnet50", marks=slow),
])  # fmt: skip
def test_weights_of_other_times_give_the_same(
    family: str, backbone: str, change: Callable[[esri.State], esri.State]
) -> None:
    model = small(family) if backbone == "resnet18" else esri.rcnn(family, backbone)
    state = change(model.state)
    assert set(state) != set(model.state)
    batch = pictures(model)
    for one, other in zip(build(model).predict(batch), build(model, state).predict(batch)):
        assert np.array_equal(one.boxes, other.boxes)


def test_counters_of_batches_may_be_left_over() -> None:
    model = esri.rcnn("FasterRCNN", is_pyramid=True)  # torchvision freezes its batch norms: they have no counters
    counters = {
        name.replace("running_mean", "num_batches_tracked"): torch.tensor(3)
        for name in model.state
        if name.endswith("running_mean")
    }
    assert not set(counters) & set(model.state)
    batch = pictures(model)
    esri.assert_same(
        build(model, {**model.state, **counters}, threshold=0.3).predict(batch), model.run(batch, 0.3, 0.1)
    )


# -- What is refused ---------------------------------------------------------------------------------------------------

CLASSIFIER = "roi_heads.box_predictor.cls_score.weight"


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (CLASSIFIER, (5, 1024), f"2 more classes than .*'{CLASSIFIER}' is .5, 1024., expected 3 rows"),
        (CLASSIFIER, (2, 1024), "1 fewer classes"),
        ("backbone.0.weight", (64, 4, 7, 7), "take 4 bands .*'backbone.0.weight' is .64, 4, 7, 7.*names 3"),
        ("backbone.7.1.conv2.weight", None, "'backbone.7.1.conv2.weight' .512, 512, 3, 3. is missing"),
        ("roi_heads.mask_head.0.0.weight", (256, 512, 3, 3), "'roi_heads.mask_head.0.0.weight' .* has no place"),
        ("rpn.head.bbox_pred.bias", (60,), "'rpn.head.bbox_pred.bias' is .60., expected .12."),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_the_tensor(
    name: str, shape: tuple[int, ...] | None, message: str
) -> None:
    state = {key: tensor for key, tensor in small().state.items() if key != name}
    if shape:
        state[name] = torch.zeros(shape)
    with pytest.raises(ModelIncompatibleError, match=message):
        build(small(), state)


def test_weights_of_another_backbone_are_refused_with_its_name() -> None:
    model = esri.rcnn("FasterRCNN", ModelParameters={"backbone": "resnet34"})
    with pytest.raises(ModelIncompatibleError, match=r"'backbone.4.2.conv1.weight' .* is missing") as caught:
        build(model)
    assert "resnet18" in caught.value.hint


def test_without_a_word_on_the_backbone_the_weights_tell_it() -> None:
    definition = define(small())
    options = {name: value for name, value in definition.options.items() if name != "backbone"}
    silent = ModelDefinition(**{**vars(definition), "options": options})
    values = resolve_arguments(silent, {"threshold": 0.3}).values
    batch = pictures(small())
    found = rcnn.build(silent, small().state, values, SETTINGS).predict(batch)
    esri.assert_same(found, small().run(batch, 0.3, 0.1))


def test_backbones_that_kestrel_does_not_build_are_refused_by_name() -> None:
    definition = define(small())
    foreign = ModelDefinition(**{**vars(definition), "options": {**definition.options, "backbone": "vgg16"}})
    with pytest.raises(ModelUnsupportedError, match="FasterRCNN with the backbone 'vgg16'"):
        rcnn.build(foreign, small().state, resolve_arguments(foreign, {}).values, SETTINGS)
