"""What each family of arcgis.learn is given: normalisation against numbers worked out by hand, options, arguments."""

from __future__ import annotations

from typing import Any

import pytest

from kestrel.inference.errors import InferenceError, ModelIncompatibleError, ModelPackageError, ModelUnsupportedError
from kestrel.inference.models.arguments import argument_specs, resolve_arguments
from kestrel.inference.models.definition import InputSpec, ModelDefinition
from kestrel.inference.models.esri import definition_from_emd
from kestrel.inference.models.esri_input import without_radiometric_offset
from kestrel.tests.fixtures.esri_packages import ERAS, arcgis_emd, of_era, statistics

FAMILIES = ("FasterRCNN", "MaskRCNN", "SingleShotDetector", "RetinaNet", "YOLOv3", "RTDetrV2")


def read(family: str, **members: Any) -> ModelDefinition:
    """Translate the .emd of a family with these members."""
    backbone = {"ModelParameters": {"backbone": "DarkNet53"}} if family == "YOLOv3" else {}
    return definition_from_emd(arcgis_emd(family, **{**backbone, **members}), [])


# -- Normalisation -----------------------------------------------------------------------------------------------------
#
# The statistics of these tests, by hand. Band 0: minimum 0, maximum 1000, scaled mean .4, scaled std .2.
# Band 1: 10, 1100, .41, .21. Band 2: 20, 1200, .42, .22. Band 3: 30, 1300, .43, .23.

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def network_input(spec: InputSpec, channel: int, pixel: float) -> float:
    """Give what the network sees, the way it is documented."""
    scale, mean, std = (
        values[channel] if len(values) > 1 else values[0] for values in (spec.scale, spec.mean, spec.std)
    )
    return (pixel * scale - mean) / std


@pytest.mark.parametrize("family", ["FasterRCNN", "MaskRCNN", "SingleShotDetector", "RetinaNet", "RTDetrV2"])
def test_photographs_are_scaled_to_one_and_normalised_as_imagenet(family: str) -> None:
    spec = read(family).input
    assert InputSpec((0, 1, 2), (1 / 255,), *IMAGENET) == spec
    # (128 / 255 - 0.456) / 0.224 = 0.2051820...
    assert 0.2051820728 == pytest.approx(network_input(spec, 1, 128), abs=1e-9)


def test_a_yolo_without_statistics_is_scaled_to_one_and_no_more() -> None:
    spec = read("YOLOv3").input
    assert InputSpec((0, 1, 2), (1 / 255,), (0.0,), (1.0,)) == spec
    assert 0.5 == network_input(spec, 0, 127.5)


@pytest.mark.parametrize("family", FAMILIES)
def test_multispectral_images_are_normalised_by_their_own_statistics(family: str) -> None:
    spec = read(family, n_bands=4).input
    assert (0, 1, 2, 3) == spec.bands
    # Band 0: (500 / 1000 - .4) / .2 = .5. Band 1: ((555 - 10) / 1090 - .41) / .21 = .09 / .21.
    # Band 3: ((1300 - 30) / 1270 - .43) / .23 = .57 / .23.
    assert 0.5 == pytest.approx(network_input(spec, 0, 500))
    assert 0.4285714286 == pytest.approx(network_input(spec, 1, 555))
    assert 2.4782608696 == pytest.approx(network_input(spec, 3, 1300))
    # Nothing is clipped: half a range below the minimum of band 2 is (-.5 - .42) / .22.
    assert -4.1818181818 == pytest.approx(network_input(spec, 2, 20 - 590))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_statistics_of_the_extracted_bands_are_taken_in_their_order(family: str) -> None:
    spec = read(family, n_bands=4, ExtractBands=[3, 1]).input
    assert (3, 1) == spec.bands
    assert 2.4782608696 == pytest.approx(network_input(spec, 0, 1300))
    assert 0.4285714286 == pytest.approx(network_input(spec, 1, 555))


@pytest.mark.parametrize(
    ("family", "members", "expected"),
    [
        # s = 555 - 10 of 1090 = .5; three bands of 16 bits with statistics.
        ("FasterRCNN", {}, (0.5 - 0.41) / 0.21),
        ("RetinaNet", {}, (0.5 - 0.41) / 0.21),
        ("YOLOv3", {}, (0.5 - 0.41) / 0.21),
        # MaskRCNN's own transform: ImageNet's numbers, unless the package says otherwise.
        ("MaskRCNN", {}, (0.5 - 0.456) / 0.224),
        ("MaskRCNN", {"IsImageNetNormalization": True}, (0.5 - 0.456) / 0.224),
        ("MaskRCNN", {"IsImageNetNormalization": False}, (0.5 - 0.41) / 0.21),
        ("MaskRCNN", {"IsMultispectral": True}, (0.5 - 0.41) / 0.21),
    ],
)
def test_three_bands_with_statistics(family: str, members: dict[str, Any], expected: float) -> None:
    stated = {"NormalizationStats": statistics(3), "IsImageNetNormalization": None, **members}
    assert expected == pytest.approx(network_input(read(family, **stated).input, 1, 555))


def test_null_as_statistics_means_none() -> None:
    for stats in (None, {}, {"band_min_values": None, "scaled_mean_values": None}):
        assert IMAGENET == (lambda spec: (spec.mean, spec.std))(read("FasterRCNN", NormalizationStats=stats).input)


def test_bands_by_name_find_their_statistics() -> None:
    named = {"Bands": ["Red", "Green", "Blue", "NearInfrared"], "ExtractBands": ["NearInfrared", "green"]}
    result = read("RetinaNet", n_bands=4, **named)
    assert ("NearInfrared", "green") == result.input.bands
    assert 2.4782608696 == pytest.approx(network_input(result.input, 0, 1300))
    assert 0.4285714286 == pytest.approx(network_input(result.input, 1, 555))
    assert ["NearInfrared", "green"] == result.facts["band_names"]


def test_statistics_of_the_extracted_bands_only_are_taken_in_that_order() -> None:
    result = read("RetinaNet", n_bands=4, NormalizationStats=statistics(2), ExtractBands=[7, 3])
    assert 0.5 == pytest.approx(network_input(result.input, 0, 500))
    assert "cover the extracted bands only" in result.notes[0]
    named = read("RetinaNet", n_bands=4, NormalizationStats=statistics(2), ExtractBands=["VV", "VH"])
    assert 0.5 == pytest.approx(network_input(named.input, 0, 500))


@pytest.mark.parametrize(
    ("bands", "members"),
    [
        ((0, 1, 2), {"ExtractBands": None}),
        ((0, 1, 2, 3, 4), {"ExtractBands": None, "n_bands": 5}),
        ((0, 1, 2, 3), {"ExtractBands": None, "n_bands": 4, "Bands": ["a", "b", "c", "d"]}),
        ((2, 1, 0), {"ExtractBands": ["2", 1.0, 0]}),
    ],
)
def test_bands_that_are_not_told_are_all_of_a_multispectral_model_else_three(
    bands: tuple[int, ...], members: dict[str, Any]
) -> None:
    assert bands == read("RetinaNet", **members).input.bands


def without(key: str, place: int) -> dict[str, Any]:
    """Give statistics with null in one place."""
    stats: dict[str, Any] = statistics(4)
    stats[key] = [None if index == place else value for index, value in enumerate(stats[key])]
    return stats


def test_null_for_a_band_that_is_not_extracted_does_no_harm() -> None:
    stats = without("band_max_values", 0)
    assert (1, 2) == read("RetinaNet", n_bands=4, NormalizationStats=stats, ExtractBands=[1, 2]).input.bands


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"NormalizationStats": without("band_max_values", 1)}, "no band_max_values for band 1"),
        ({"NormalizationStats": without("scaled_std_values", 3)}, "no scaled_std_values for band 3"),
        ({"NormalizationStats": {**statistics(4), "scaled_mean_values": None}}, "no scaled_mean_values for band 0"),
        ({"NormalizationStats": {**statistics(4), "band_max_values": [0, 10, 20, 30]}}, "of band 0 is not above"),
        ({"NormalizationStats": {**statistics(4), "scaled_std_values": [1, 0, 1, 1]}}, "of band 1 is zero"),
        ({"NormalizationStats": {**statistics(4), "band_min_values": ["a"] * 4}}, "no band_min_values for band 0"),
        ({"NormalizationStats": [1, 2]}, "'NormalizationStats' is .* expected an object"),
        ({"ExtractBands": [0, 9]}, "no band_min_values for band 9"),
        ({"ExtractBands": ["Red", "Green"]}, "extracts bands by name, and 'Bands' does not say"),
        ({"ExtractBands": [-1]}, "'ExtractBands'"),
    ],
)
def test_statistics_that_do_not_serve_are_refused_with_the_band(members: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelPackageError, match=reason):
        read("RetinaNet", **{"n_bands": 4, **members})


@pytest.mark.parametrize("family", ["FasterRCNN", "MaskRCNN", "RetinaNet"])
def test_four_bands_without_statistics_cannot_be_normalised(family: str) -> None:
    with pytest.raises(ModelIncompatibleError, match=r"takes 4 bands.*no NormalizationStats.*the training wrote"):
        read(family, n_bands=4, NormalizationStats=None)


# -- Networks ----------------------------------------------------------------------------------------------------------


def test_a_faster_rcnn_is_upsampled_and_takes_torchvisions_numbers() -> None:
    arguments = {
        "rpn_pre_nms_top_n_test": 500, "rpn_nms_thresh": 0.6, "box_detections_per_img": 50.0, "box_nms_thresh": 0.3,
        "pretrained_backbone": True, "rpn_fg_iou_thresh": None, "box_head": "evil", "rpn_post_nms_top_n_test": 10**9,
        "min_size": 3,
    }  # fmt: skip
    result = read("FasterRCNN", chip=256, Kwargs=arguments)
    assert {
        "family": "FasterRCNN", "backbone": "resnet18", "resize": 1.5, "max_size": 512, "is_plain": False,
        "kwargs": {"rpn_pre_nms_top_n_test": 500, "rpn_nms_thresh": 0.6, "box_detections_per_img": 50},
    } == result.options  # fmt: skip
    assert ["'box_head'", "'rpn_post_nms_top_n_test'"] == [note.split()[3] for note in result.notes]


def test_a_mask_rcnn_takes_its_overlap_from_its_own_arguments() -> None:
    result = read("MaskRCNN", MaskRCNNkwargs={"box_nms_thresh": 0.3, "rpn_post_nms_top_n_test": 200})
    assert ({"rpn_post_nms_top_n_test": 200}, "polygon") == (result.options["kwargs"], result.geometry)
    assert {"threshold": 0.9, "nms_overlap": 0.3, "exclude_pad_detections": False} == result.arguments
    assert "exclude_pad_detections" not in result.common_arguments


@pytest.mark.parametrize(
    ("version", "options"),
    [
        ("1.7.0", (1.0, 1333, True)),
        ("1.8.4", (1.5, 512, False)),
        (None, (1.5, 512, False)),
        ("2.4.4", (1.5, 512, False)),
        ("10.0", (1.5, 512, False)),
    ],
)
def test_only_a_version_that_says_so_is_not_upsampled(version: str | None, options: tuple[float, int, bool]) -> None:
    found = read("MaskRCNN", chip=256, ArcGISLearnVersion=version).options
    assert options == (found["resize"], found["max_size"], found["is_plain"])


def test_a_single_shot_detector_says_its_anchors() -> None:
    grids = {"Grids": [8, 4, 2], "Zooms": [0.7, 1, 1.3], "Ratios": [[1, 1], [1, 0.5]]}
    result = read("SingleShotDetector", **grids)
    assert {
        "family": "SingleShotDetector", "backbone": "resnet18", "grids": [8, 4, 2], "zooms": [0.7, 1.0, 1.3],
        "ratios": [[1.0, 1.0], [1.0, 0.5]], "version": 2,
    } == result.options  # fmt: skip
    old = read("SingleShotDetector", SSDVersion=None, Zooms=None, Ratios=None).options
    assert ([1.0], [[1.0, 1.0]], 1) == (old["zooms"], old["ratios"], old["version"])


def test_a_retina_net_has_scales_and_ratios() -> None:
    own = {"backbone": "resnet34", "scales": [1, 0.5], "ratios": [1]}
    found = read("RetinaNet", ModelParameters=own).options
    assert {"family": "RetinaNet", "backbone": "resnet34", "scales": [1.0, 0.5], "ratios": [1.0]} == found
    default = read("RetinaNet").options
    assert ([1.0, 2 ** (-1 / 3), 2 ** (-2 / 3)], [0.5, 1.0, 2.0]) == (default["scales"], default["ratios"])


@pytest.mark.parametrize("form", ["pairs", "flat"])
def test_a_yolo_has_nine_anchors(form: str) -> None:
    pairs = [[float(index), float(index + 1)] for index in range(1, 19, 2)]
    given = pairs if form == "pairs" else [side for pair in pairs for side in pair]
    found = read("YOLOv3", ModelParameters={"backbone": "DarkNet53", "anchors": given}).options
    assert {"family": "YOLOv3", "backbone": "darknet53", "anchors": pairs} == found
    assert [10.0, 13.0] == read("YOLOv3").options["anchors"][0]


def test_an_rt_detr_says_its_queries_only_where_the_package_does() -> None:
    assert {"family": "RTDetrV2", "backbone": "resnet18vd"} == read("RTDetrV2").options
    assert "discrete" == read("RTDetrV2", Kwargs={"cross_attn_method": "discrete"}).options["cross_attn_method"]
    assert 100 == read("RTDetrV2", Kwargs={"num_queries": 100}).options["n_queries"]


@pytest.mark.parametrize(
    ("family", "stated", "backbone"),
    [
        ("FasterRCNN", {"ModelParameters": {"backbone": "resnet101"}}, "resnet101"),
        ("FasterRCNN", {"ModelParameters": {"backbone": "ResNet50"}}, "resnet50"),
        ("SingleShotDetector", {"ModelParameters": None, "backbone": "vgg16"}, "vgg16"),
        ("RetinaNet", {"ModelParameters": {"backbone": "torchvision.models.resnet50"}}, "resnet50"),
        ("YOLOv3", {"ModelParameters": {"backbone": "Darknet-53"}}, "darknet53"),
        ("RTDetrV2", {"ModelParameters": {"backbone": "resnet50"}}, "resnet50vd"),
        ("RTDetrV2", {"ModelParameters": {"backbone": "r101vd"}}, "resnet101vd"),
        ("RTDetrV2", {"ModelParameters": {"backbone": "resnet34-vd"}}, "resnet34vd"),
    ],
)
def test_backbones_have_one_name_each(family: str, stated: dict[str, Any], backbone: str) -> None:
    result = read(family, **stated)
    assert (backbone, backbone) == (result.options["backbone"], result.facts["backbone"])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_backbone_that_is_not_named_is_left_to_the_weights(family: str) -> None:
    for stated in (None, {}, {"backbone": None}):
        result = read(family, ModelParameters=stated, backbone=None)
        assert "backbone" not in result.options
        assert "backbone" not in result.facts


@pytest.mark.parametrize(
    ("family", "members", "expected", "reason"),
    [
        ("FasterRCNN", {"ModelParameters": {"backbone": "timm:resnest50"}}, ModelUnsupportedError,
         "FasterRCNN model has the backbone 'timm:resnest50' of the timm library.*ONNX.*resnet50"),
        ("MaskRCNN", {"ModelParameters": {"backbone": "hf:facebook/x"}}, ModelUnsupportedError, "of Hugging Face"),
        ("FasterRCNN", {"ModelParameters": {"backbone": "vit_b"}}, ModelUnsupportedError, "a vision transformer"),
        ("RetinaNet", {"ModelParameters": {"backbone": "vgg16"}}, ModelUnsupportedError, "RetinaNet.*'vgg16'"),
        ("RTDetrV2", {"ModelParameters": {"backbone": "hgnetv2"}}, ModelUnsupportedError, "RTDetrV2.*'hgnetv2'"),
        ("MaskRCNN", {"ModelParameters": {"pointrend": True}}, ModelUnsupportedError, "PointRend head"),
        ("YOLOv3", {"chip": 250}, ModelIncompatibleError, "250 pixels.*multiples of 32"),
        ("YOLOv3", {"ModelParameters": {"anchors": [[1, 2]]}}, ModelPackageError, "nine pairs"),
        ("YOLOv3", {"ModelParameters": {"anchors": [[1, 0]] * 9}}, ModelPackageError, "ModelParameters.anchors"),
        ("SingleShotDetector", {"Grids": None}, ModelPackageError, "'Grids' is missing"),
        ("SingleShotDetector", {"Grids": [0]}, ModelPackageError, "'Grids'"),
        ("SingleShotDetector", {"Grids": [2.5]}, ModelPackageError, "'Grids'"),
        ("SingleShotDetector", {"Grids": [256] * 20}, ModelPackageError, "'Grids'"),
        ("SingleShotDetector", {"Zooms": [-1]}, ModelPackageError, "'Zooms'"),
        ("SingleShotDetector", {"Ratios": [1, 2]}, ModelPackageError, "'Ratios'"),
        ("SingleShotDetector", {"SSDVersion": 3}, ModelPackageError, "'SSDVersion'"),
        ("RetinaNet", {"ModelParameters": {"scales": [0]}}, ModelPackageError, "'ModelParameters.scales'"),
        ("RetinaNet", {"ModelParameters": "resnet50"}, ModelPackageError, "'ModelParameters'"),
        ("RetinaNet", {"Classes": None}, ModelPackageError, "no classes.*RetinaNet.*order of the training"),
        ("RetinaNet", {"ImageWidth": 128}, ModelUnsupportedError, "128 x 256 pixels.*square chips"),
    ],
)  # fmt: skip
def test_a_network_that_cannot_be_built_is_refused_with_the_reason(
    family: str, members: dict[str, Any], expected: type[InferenceError], reason: str
) -> None:
    with pytest.raises(expected, match=reason):
        read(family, **members)


# -- Arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "threshold", "overlap", "own"),
    [
        ("FasterRCNN", 0.5, 0.1, {"tta_scales": "1"}),
        ("MaskRCNN", 0.9, 0.5, {"merge_policy": "mean", "return_bboxes": False}),
        ("SingleShotDetector", 0.5, 0.1, {"tta_scales": "1"}),
        ("RetinaNet", 0.5, 0.1, {"tta_scales": "1", "box_decoding": "arcgis"}),
        ("YOLOv3", 0.1, 0.1, {}),
        ("RTDetrV2", 0.5, 0.1, {"tta_scales": "1"}),
    ],
)
def test_each_family_has_its_own_defaults(family: str, threshold: float, overlap: float, own: dict[str, Any]) -> None:
    result = read(family, chip=320)
    values = resolve_arguments(result, {}).values
    assert (threshold, overlap) == (values["threshold"], values["nms_overlap"])
    assert own == {spec.name: spec.default for spec in result.own_arguments}
    assert (320, 80) == (result.tile.size, result.tile.padding)
    assert (family == "MaskRCNN") == ("tile_size" in {spec.name for spec in argument_specs(result)})
    assert (family == "MaskRCNN") == result.tile.is_variable


def test_the_packages_defaults_come_before_the_familys() -> None:
    result = read(
        "SingleShotDetector", Threshold=0.3, Padding=20, BatchSize=4, test_time_augmentation=True, tta_scales="0.9, 1"
    )
    assert {
        "threshold": 0.3, "nms_overlap": 0.1, "padding": 20, "batch_size": 4, "test_time_augmentation": True,
    } == result.arguments  # fmt: skip
    assert "0.9,1" == result.own_arguments[0].default
    assert 15 == read("RetinaNet", ModelPadding=15).arguments["padding"]
    assert {"threshold": 0.4} == {
        name: value for name, value in read("YOLOv3", Kestrel={"arguments": {"threshold": 0.4}}).arguments.items()
        if name == "threshold"
    }  # fmt: skip


def test_defaults_that_are_not_usable_are_left_out_and_told() -> None:
    result = read("FasterRCNN", chip=256, Threshold=50, Padding=128, BatchSize="x", tta_scales="big")
    assert {"threshold": 0.5, "nms_overlap": 0.1} == result.arguments
    assert "1" == result.own_arguments[0].default
    assert ["Threshold", "Padding", "BatchSize", "tta_scales"] == [
        key for note in result.notes for key in ("Threshold", "Padding", "BatchSize", "tta_scales") if key in note
    ]


def test_sentinel_numbers_can_be_corrected_for_their_offset() -> None:
    result = read("RetinaNet", n_bands=4, Preprocessing="SentinelService")
    assert "radiometric_offset_correction" in {spec.name for spec in result.own_arguments}
    assert ("sentinel", ()) == (result.input.service, result.notes)
    corrected = without_radiometric_offset(result.input)
    assert network_input(result.input, 2, 500) == pytest.approx(network_input(corrected, 2, 1500))
    assert (0.5 - 0.0) == pytest.approx(network_input(without_radiometric_offset(InputSpec(scale=(0.001,))), 0, 1500))
    landsat = read("RetinaNet", n_bands=4, Preprocessing=["LandsatService", "Other"])
    (note,) = landsat.notes
    assert ("landsat", True) == (landsat.input.service, "'Other'" in note)
    assert "radiometric_offset_correction" not in {spec.name for spec in landsat.own_arguments}


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("family", FAMILIES)
def test_all_eras_of_a_family_say_the_same(family: str, era: str) -> None:
    parameters = {"ModelParameters": {"backbone": "DarkNet53"}} if family == "YOLOv3" else {}
    emd = arcgis_emd(family, **parameters)
    expected = definition_from_emd(emd, ["model.emd", "model.pth", "ArcGISObjectDetector.py"])
    found = definition_from_emd(of_era(emd, era), ["model.emd", "model.pth", "ArcGISObjectDetector.py"])
    assert ("arcgis", "model.pth", "") == (found.kind, found.weights, found.program)
    assert (expected.options, expected.input, expected.tile, expected.classes) == (
        found.options, found.input, found.tile, found.classes
    )  # fmt: skip
    assert expected.arguments == found.arguments
    assert () == found.notes
    assert {"1.7": "before 1.8.3", "1.8": "before 1.8.3", "2.0": "2.0.0", "2.4": "2.4.4"}[era] == found.facts["era"]


def test_a_copy_takes_what_its_own_transform_does_not_do() -> None:
    members = {"Framework": "arcgis.learn.models._inferencing", "ModelFile": "m.pth",
               "ModelParameters": {"backbone": "timm:tresnet_m"}, "TorchScript": {"CPU": "m-cpu.pt"}}  # fmt: skip
    copies = {
        family: definition_from_emd({**arcgis_emd(family), **members}, ["m.pth", "m-cpu.pt"])
        for family in ("MaskRCNN", "FasterRCNN", "RetinaNet")
    }
    assert {"torchscript"} == {copy.kind for copy in copies.values()}
    assert ((0.0,), (1.0,)) == (copies["MaskRCNN"].input.mean, copies["MaskRCNN"].input.std)
    assert ((0.0,), (1.0,)) == (copies["FasterRCNN"].input.mean, copies["FasterRCNN"].input.std)
    assert (0.485, 0.456, 0.406) == copies["RetinaNet"].input.mean
    assert ("polygon", "box") == (copies["MaskRCNN"].geometry, copies["RetinaNet"].geometry)
    assert ["return_bboxes"] == [spec.name for spec in copies["MaskRCNN"].own_arguments]
