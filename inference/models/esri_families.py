"""The families of arcgis.learn that Kestrel builds itself: what each needs to know, its arguments and their defaults.

What an .emd leaves open has the value that today's ArcGIS gives it, whatever version trained the model: a model gives
what ArcGIS gives. Only where a version is named that never upsampled (below 1.8) nothing is upsampled.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import ModelIncompatibleError, ModelPackageError
from .arguments import FAMILY_ARGUMENTS, ArgumentSpec
from .definition import Reader
from .esri_files import EmdReader
from .esri_refusals import unbuildable, unknown_family

_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
_BODIES = (
    *_RESNETS, "vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn",
    "densenet121", "densenet161", "densenet169", "densenet201", "mobilenet_v2",
)  # fmt: skip
_VD = ("resnet18vd", "resnet34vd", "resnet50vd", "resnet101vd")


@dataclass(frozen=True)
class Family:
    """One family of networks."""

    name: str
    backbones: tuple[str, ...]
    backbone: str
    """The one that is meant where none is named."""
    threshold: float = 0.5
    nms_overlap: float = 0.1
    geometry: str = "box"
    own_arguments: tuple[str, ...] = ()


FAMILIES: Mapping[str, Family] = {
    family.name.lower(): family
    for family in (
        Family("FasterRCNN", _RESNETS, "resnet50", own_arguments=("tta_scales",)),
        Family("MaskRCNN", _RESNETS, "resnet50", 0.9, 0.5, "polygon", ("merge_policy", "return_bboxes")),
        Family("SingleShotDetector", _BODIES, "resnet34", own_arguments=("tta_scales",)),
        Family("RetinaNet", _RESNETS, "resnet50", own_arguments=("tta_scales", "box_decoding")),
        Family("YOLOv3", ("darknet53",), "darknet53", 0.1),
        Family("RTDetrV2", _VD, "resnet18vd", own_arguments=("tta_scales",)),
    )
}
"""By their names in lower case."""

DEEP_FOREST = Family("DeepForest", ("resnet50",), "resnet50", 0.1, 0.05)

_BY_CONFIGURATION = {
    "_dynamicssd": "SingleShotDetector", "_retinanet_inference": "RetinaNet", "_yolov3_inference": "YOLOv3",
    "_maskrcnn_inferencing": "MaskRCNN",
}  # fmt: skip
_EXTENSION = "_model_extension_inferencing"
_BY_CLASS = {
    "myfasterrcnn": "FasterRCNN", "mydetreg": "DETReg", "myrtdetrv2": "RTDetrV2", "mymmdetection": "MMDetection",
    "mymmdet": "MMDetection",
}  # fmt: skip
_OTHERS = {
    name.lower(): name for name in ("MMDetection", "DETReg", "GroundingDINO", "SAM", "ModelExtension")
}  # fmt: skip


def is_arcgis_name(name: str) -> bool:
    """Tell whether a ModelName or ModelConfiguration is one of arcgis.learn's detectors."""
    lower = name.lower()
    return lower in FAMILIES or lower in _OTHERS or lower in _BY_CONFIGURATION or lower == _EXTENSION


def family_name(emd: EmdReader, configuration: str) -> str:
    """Give the name of the model's class: from ModelName, else from the class of its program or its configuration."""
    name = emd.word("ModelName")
    by_class = _BY_CLASS.get(emd.word("ModelFileConfigurationClass").lower(), "")
    if name.lower() in FAMILIES:
        return FAMILIES[name.lower()].name
    if by_class and name.lower() in ("", "modelextension"):
        return by_class
    if name.lower() in _OTHERS:
        return _OTHERS[name.lower()]
    if configuration.lower() == _EXTENSION:
        return name or "ModelExtension"
    return _BY_CONFIGURATION.get(configuration.lower(), name)


def family_of(emd: EmdReader, name: str) -> Family:
    """Give the family that Kestrel builds.

    Raises:
        ModelUnsupportedError: it builds none of that name, or none with such a backbone; names both.
    """
    family = FAMILIES.get(name.lower())
    if family is None:
        known = name in _OTHERS.values() or name.lower().startswith("mm")
        raise unbuildable(name, _detail(emd, name)) if known else unknown_family(name)
    if family.name == "MaskRCNN" and emd.child("ModelParameters").data.get("pointrend") is True:
        raise unbuildable("MaskRCNN", "", "has a PointRend head for its outlines, which Kestrel does not build")
    if backbone_of(emd, family) not in family.backbones:
        raise unbuildable(family.name, stated_backbone(emd))
    return family


def _detail(emd: EmdReader, name: str) -> str:
    """Say what a family that cannot be built is built on."""
    parameters, arguments = emd.child("ModelParameters").data, _arguments_of_constructor(emd)
    said = [str(source.get(key, "")) for source in (parameters, arguments) for key in ("model_name", "model")]
    word = next((text for text in said if text), "")
    if name == "ModelExtension":
        return emd.word("ModelFileConfigurationClass") or word
    return word or stated_backbone(emd)


def stated_backbone(emd: EmdReader) -> str:
    """Give the backbone as the package writes it; empty where it names none."""
    parameters, arguments = emd.child("ModelParameters").data, _arguments_of_constructor(emd)
    places = (parameters.get("backbone"), emd.data.get("backbone"), arguments.get("backbone"))
    return next((place.strip() for place in places if isinstance(place, str) and place.strip()), "")


def backbone_of(emd: EmdReader, family: Family) -> str:
    """Give the backbone by Kestrel's name for it."""
    stated = stated_backbone(emd).lower()
    if ":" in stated:
        return stated
    plain = stated.rpartition(".")[2]
    if family.name == "RTDetrV2":
        found = re.fullmatch(r"(?:presnet|resnet|r)_?(18|34|50|101)[-_]?(?:vd)?", plain)
        return f"resnet{found.group(1)}vd" if found else plain or family.backbone
    if family.name == "YOLOv3":
        return plain.replace("-", "").replace("_", "") or family.backbone
    return plain or family.backbone


def _arguments_of_constructor(emd: EmdReader) -> Mapping[str, Any]:
    kwargs = emd.data.get("Kwargs")
    return kwargs if isinstance(kwargs, Mapping) else {}


# -- What a network is built from --------------------------------------------------------------------------------------


def network_options(emd: EmdReader, family: Family, chip: int) -> dict[str, Any]:
    """Give what the detector of a family needs to know.

    Raises:
        ModelPackageError: a member is not what it should be.
        ModelIncompatibleError: the tile does not suit the network.
    """
    # Where the package names no backbone, the weights tell it, or the detector's own default holds.
    named = {"backbone": backbone_of(emd, family)} if stated_backbone(emd) else {}
    return {"family": family.name, **named, **_READERS[family.name](emd, chip)}


_COUNTS = (
    "rpn_pre_nms_top_n_train", "rpn_pre_nms_top_n_test", "rpn_post_nms_top_n_train", "rpn_post_nms_top_n_test",
    "rpn_batch_size_per_image", "box_detections_per_img", "box_batch_size_per_image",
)  # fmt: skip
_SHARES = (
    "rpn_nms_thresh", "rpn_fg_iou_thresh", "rpn_bg_iou_thresh", "rpn_positive_fraction", "rpn_score_thresh",
    "box_fg_iou_thresh", "box_bg_iou_thresh", "box_positive_fraction",
)  # fmt: skip
_BY_ARGUMENTS = ("box_score_thresh", "box_nms_thresh")  # threshold and nms_overlap stand for them
_MOST = 10_000


def _rcnn(emd: EmdReader, chip: int) -> dict[str, Any]:
    is_plain = _version(emd) < (1, 8)
    return {
        "kwargs": _torchvision_arguments(emd),
        "resize": 1.0 if is_plain else 1.5,
        "max_size": 1333 if is_plain else 2 * chip,
        "is_plain": is_plain,
    }


def _torchvision_arguments(emd: EmdReader) -> dict[str, float]:
    given = {**_arguments_of_constructor(emd), **emd.child("MaskRCNNkwargs").data}
    taken: dict[str, float] = {}
    for name, value in given.items():
        if name in _BY_ARGUMENTS or not name.startswith(("rpn_", "box_")) or value is None:
            continue
        if is_network_argument(name, value):
            taken[name] = int(value) if name in _COUNTS else float(value)
        else:
            emd.note(f"The package's argument '{name}' of its network was left out: {str(value)[:60]} is not usable.")
    return taken


def is_network_argument(name: str, value: Any) -> bool:
    """Tell whether torchvision's builders of RCNN networks take an argument of that name and value."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return (name in _COUNTS and value == int(value) and 1 <= value <= _MOST) or (name in _SHARES and 0 <= value <= 1)


def _version(emd: EmdReader) -> tuple[int, ...]:
    """Give the version of arcgis.learn, very high where it is not told."""
    found = re.match(r"(\d{1,3})\.(\d{1,3})", emd.word("ArcGISLearnVersion"))
    return tuple(int(part) for part in found.groups()) if found else (999,)


def _ssd(emd: EmdReader, chip: int) -> dict[str, Any]:
    grids = _numbers(emd, "Grids", None, 1, chip)
    zooms = _numbers(emd, "Zooms", [1.0], 0, 100)
    version = emd.integer("SSDVersion", 1, minimum=1, maximum=2)
    ratios = _pairs(emd, "Ratios", [[1.0, 1.0]], 100)
    if any(grid != int(grid) for grid in grids) or sum(grid * grid for grid in grids) * len(zooms) * len(ratios) > 1e6:
        raise emd.refuse("Grids", "a short list of whole numbers: cells along a side")
    return {"grids": [int(grid) for grid in grids], "zooms": zooms, "ratios": ratios, "version": version}


def _retinanet(emd: EmdReader, chip: int) -> dict[str, Any]:
    parameters = emd.child("ModelParameters")
    scales = _numbers(parameters, "scales", [1.0, 2 ** (-1 / 3), 2 ** (-2 / 3)], 0, 100)
    return {"scales": scales, "ratios": _numbers(parameters, "ratios", [0.5, 1.0, 2.0], 0, 100)}


_COCO_ANCHORS: list[list[float]] = [
    [10, 13], [16, 30], [33, 23], [30, 61], [62, 45], [59, 119], [116, 90], [156, 198], [373, 326],
]  # fmt: skip
_YOLO_STRIDE = 32


def _yolov3(emd: EmdReader, chip: int) -> dict[str, Any]:
    if chip % _YOLO_STRIDE:
        raise ModelIncompatibleError(
            f"The model's tiles are {chip} pixels wide; a YOLOv3 takes multiples of {_YOLO_STRIDE} only.",
            hint="Set ImageHeight and ImageWidth in the .emd to the size of the training chips.",
        )
    parameters = emd.child("ModelParameters")
    flat = parameters.data.get("anchors")
    if isinstance(flat, list) and len(flat) == 18 and not any(isinstance(number, list) for number in flat):
        parameters.data["anchors"] = [flat[index : index + 2] for index in range(0, 18, 2)]
    anchors = _pairs(parameters, "anchors", _COCO_ANCHORS, 1e5)
    if len(anchors) != len(_COCO_ANCHORS):
        raise parameters.refuse("anchors", "nine pairs [width, height] in pixels")
    return {"anchors": anchors}


def _rtdetr(emd: EmdReader, chip: int) -> dict[str, Any]:
    parameters = Reader({**_arguments_of_constructor(emd), **emd.child("ModelParameters").data}, "ModelParameters")
    options: dict[str, Any] = {}
    for key in ("n_queries", "num_queries"):
        if key in parameters.data:
            options["n_queries"] = parameters.integer(key, None, minimum=1, maximum=_MOST)
    if parameters.data.get("cross_attn_method") in ("default", "discrete"):
        options["cross_attn_method"] = parameters.data["cross_attn_method"]
    return options


_READERS = {
    "FasterRCNN": _rcnn, "MaskRCNN": _rcnn, "SingleShotDetector": _ssd, "RetinaNet": _retinanet,
    "YOLOv3": _yolov3, "RTDetrV2": _rtdetr,
}  # fmt: skip


def _numbers(reader: Reader, key: str, default: list[float] | None, lowest: float, highest: float) -> list[float]:
    """Give a list of numbers above 0, from `lowest` to `highest`; the default where there is none."""
    if default is not None and not reader.data.get(key):
        return default
    return numbers_above_zero(reader, key, highest, lowest)


def numbers_above_zero(reader: Reader, key: str, highest: float, lowest: float = 0) -> list[float]:
    """Give a list of numbers above 0, from `lowest` to `highest`.

    Raises:
        ModelPackageError: not such a list.
    """
    values = list(reader.numbers(key, ()))
    if not all(value > 0 and lowest <= value <= highest and math.isfinite(1 / value) for value in values):
        raise reader.refuse(key, f"numbers above 0, up to {highest:g}")
    return values


def _pairs(reader: Reader, key: str, default: list[list[float]], highest: float) -> list[list[float]]:
    """Give a list of pairs of numbers above 0; the default where there is none."""
    return pairs_above_zero(reader, key, highest) if reader.data.get(key) else default


def pairs_above_zero(reader: Reader, key: str, highest: float) -> list[list[float]]:
    """Give a list of pairs of numbers above 0, up to `highest`.

    Raises:
        ModelPackageError: not such a list.
    """
    value = reader.data.get(key)
    pairs = value if isinstance(value, list) else []
    is_good = all(
        isinstance(pair, list)
        and len(pair) == 2
        and all(isinstance(n, (int, float)) and not isinstance(n, bool) and 0 < n <= highest for n in pair)
        for pair in pairs
    )
    if not pairs or not is_good:
        raise reader.refuse(key, f"a list of pairs of numbers above 0, up to {highest:g}")
    return [[float(first), float(second)] for first, second in pairs]


# -- Arguments ---------------------------------------------------------------------------------------------------------


def own_arguments(emd: EmdReader, names: tuple[str, ...]) -> tuple[ArgumentSpec, ...]:
    """Give the arguments beyond the common ones, with the package's own defaults."""
    specs = [FAMILY_ARGUMENTS[name] for name in names]
    return tuple(replace(spec, default=_own_default(emd, spec)) for spec in specs)


def _own_default(emd: EmdReader, spec: ArgumentSpec) -> Any:
    if spec.name != "tta_scales" or "tta_scales" not in emd.data:
        return spec.default
    stated = emd.data["tta_scales"]
    text = ",".join(str(part) for part in stated) if isinstance(stated, list) else str(stated)
    try:
        factors = [float(part) for part in text.split(",")]
    except ValueError:
        factors = []
    if factors and all(0 < factor <= 10 for factor in factors):
        return text.replace(" ", "")
    emd.note(f"The package's tta_scales '{text[:60]}' are no factors; 1 is taken.")
    return spec.default


def label_offset(family: str) -> int:
    """Give the label of the first class in what a copy of the network gives: 1 where label 0 is the background."""
    return 0 if family in ("RetinaNet", "YOLOv3", "MMDetection") else 1


def default_arguments_of(emd: EmdReader, threshold: float, nms_overlap: float, tile_size: int) -> dict[str, Any]:
    """Give a model's own defaults of the common arguments, the package's before its family's."""
    found: dict[str, Any] = {"threshold": threshold, "nms_overlap": nms_overlap}
    overlap = emd.child("MaskRCNNkwargs").data.get("box_nms_thresh")
    stated = {
        "threshold": _share(emd, "Threshold", emd.data.get("Threshold", emd.data.get("threshold"))),
        "nms_overlap": _share(emd, "MaskRCNNkwargs.box_nms_thresh", overlap),
        "padding": _whole(emd, ("Padding", "ModelPadding"), 0, (tile_size - 1) // 2),
        "batch_size": _whole(emd, ("BatchSize",), 1, 4096),
    }
    found.update({name: value for name, value in stated.items() if value is not None})
    if "test_time_augmentation" in emd.data:
        found["test_time_augmentation"] = str(emd.data["test_time_augmentation"]).lower() in ("true", "1", "yes")
    return found


def _share(emd: EmdReader, key: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1:
        return float(value)
    emd.note(f"The package's {key} is {str(value)[:60]}, which is not from 0 to 1; it was left out.")
    return None


def _whole(emd: EmdReader, keys: tuple[str, ...], lowest: int, highest: int) -> int | None:
    for key in keys:
        value = emd.data.get(key)
        if value is None:
            continue
        number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else -1
        if lowest <= number <= highest and number == int(number):
            return int(number)
        emd.note(f"The package's {key} is {str(value)[:60]}, which is not usable; it was left out.")
    return None


def checked_classes(emd: EmdReader, where: str) -> None:
    """Refuse an arcgis.learn model without classes: its network's outputs could not be told apart.

    Raises:
        ModelPackageError: there are none.
    """
    if not emd.data.get("Classes"):
        raise ModelPackageError(
            f"The model definition has no classes, and {where} needs them to be built.",
            hint='Add them in the order of the training: "Classes": [{"Value": 1, "Name": "Tree"}].',
        )
