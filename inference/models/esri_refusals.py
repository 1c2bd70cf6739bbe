"""Esri models that Kestrel does not run, each with its own name: what it is instead of a detector, or what it lacks."""

from __future__ import annotations

from ..errors import ModelError, ModelPackageError, ModelUnsupportedError
from .definition import Reader

_PIXELS = "a pixel classifier"
_OBJECTS = "an object classifier"
_TRANSLATOR = "an image translator"
_EDGES = "an edge detector for pixels"
_TRACKER = "an object tracker for videos"
_POINTS = "a point cloud model"
_TABLES = "a model of tables"
_TEXTS = "a language model"
_CHANGES = "a change detector"
_ROADS = "a road extractor for pixels"
_SHARPENER = "a super-resolution model"
_PANOPTIC = "a panoptic segmenter"
_CAPTIONS = "an image captioner"
_SERIES = "a time series model"

_BY_NAME = {
    "unetclassifier": _PIXELS, "pspnetclassifier": _PIXELS, "deeplab": _PIXELS, "mmsegmentation": _PIXELS,
    "samlora": _PIXELS, "psetae": _PIXELS, "hyperspectral3drcnet": _PIXELS, "pointrendclassifier": _PIXELS,
    "multitaskroadextractor": _ROADS, "connectnet": _ROADS, "changedetector": _CHANGES,
    "hededgedetector": _EDGES, "bdcnedgedetector": _EDGES, "maxdeeplab": _PANOPTIC,
    "featureclassifier": _OBJECTS, "efficientdetclassifier": _OBJECTS,
    "superresolution": _SHARPENER, "cyclegan": _TRANSLATOR, "pix2pix": _TRANSLATOR, "pix2pixhd": _TRANSLATOR,
    "wnet_cgan": _TRANSLATOR, "climax": "a weather model", "imagecaptioner": _CAPTIONS,
    "siammask": _TRACKER, "deepsort": _TRACKER, "objecttracker": _TRACKER,
    "pointcnn": _POINTS, "randlanet": _POINTS, "sqnseg": _POINTS, "ptv3": _POINTS, "mmdetection3d": _POINTS,
    "fullyconnectednetwork": _TABLES, "mlmodel": _TABLES, "automl": _TABLES, "autodl": _TABLES,
    "timeseriesmodel": _SERIES, "entityrecognizer": _TEXTS, "textclassifier": _TEXTS, "sequencetosequence": _TEXTS,
}  # fmt: skip
"""Classes of arcgis.learn that do not detect objects in images, in lower case."""

_BY_CONFIGURATION = {
    "_unet": _PIXELS, "_psp": _PIXELS, "_deeplab_infrencing": _PIXELS, "_tiny_unet": _PIXELS,
    "_linknet_inference": _PIXELS, "_psetae_inferencing": _PIXELS, "_hyperspectral3drcnet_inferencing": _PIXELS,
    "_road_infrencing": _ROADS, "change_detection": _CHANGES, "_panoptic_inferencing": _PANOPTIC,
    "_featureclassifier": _OBJECTS, "_wnet_cgan": _TRANSLATOR, "_cyclegan": _TRANSLATOR, "_pix2pix": _TRANSLATOR,
    "_pix2pix_hd": _TRANSLATOR, "_climax": "a weather model", "_superres": _SHARPENER,
    "_image_captioner_inference": _CAPTIONS, "_siammask_inferencing": _TRACKER, "_auto_ml": _TABLES,
    "deeplab": _PIXELS, "kerasclassifier": _PIXELS, "azurepixellevellandclassification": _PIXELS,
    "featureclassifier": _OBJECTS,
}  # fmt: skip

_BY_TYPE = {
    "imageclassification": _PIXELS, "pixelclassification": _PIXELS, "objectclassification": _OBJECTS,
    "panopticsegmenter": _PANOPTIC, "panopticsegmentation": _PANOPTIC, "superresolution": _SHARPENER,
    "cyclegan": _TRANSLATOR, "pix2pix": _TRANSLATOR, "pix2pixhd": _TRANSLATOR, "imagetranslation": _TRANSLATOR,
    "imagecaptioner": _CAPTIONS, "objecttracking": _TRACKER, "changedetection": _CHANGES,
    "pointcloudclassification": _POINTS, "pointclouddetection": _POINTS, "pointcloudsegmentation": _POINTS,
    "timeseriesmodel": _SERIES, "fullyconnectednetwork": _TABLES, "llm": _TEXTS,
}  # fmt: skip

DETECTION_TYPES = ("objectdetection", "objectiondetection", "instancedetection", "instancesegmentation")
"""Values of ModelType that Kestrel runs, in lower case; the second is a misprint of Esri's own pages."""

_TEMPLATE_KEYS = ("Framework", "ModelConfiguration", "ModelType", "ModelFile", "InferenceFunction")

_EXPORT = "Export the model to ONNX where it was trained, and put the .onnx file beside the .emd"


def refuse_template(reader: Reader) -> None:
    """Refuse what an export of training data writes for people to fill in: it looks like a definition.

    Raises:
        ModelPackageError: it is such a template.
    """
    values = [str(reader.data.get(key, "")).strip().lower() for key in _TEMPLATE_KEYS]
    if any(value.startswith("e.g.") for value in values):
        raise ModelPackageError(
            "This .emd is the template that an export of training data writes; it describes no trained model.",
            hint="Train a model first, and choose the definition that the training wrote.",
        )


def refuse_other_tasks(reader: Reader, *, is_named: bool) -> None:
    """Refuse a model that does something else than to detect objects, by its own name and type.

    Args:
        reader: The .emd.
        is_named: ModelName is a class of arcgis.learn, not a title.

    Raises:
        ModelUnsupportedError: it does something else.
    """
    name = text_of(reader, "ModelName") if is_named else ""
    configuration = configuration_of(reader)
    model_type = text_of(reader, "ModelType")
    task = (
        _BY_NAME.get(name.lower())
        or (_BY_CONFIGURATION.get(configuration.lower()) if name.lower() not in DETECTORS else None)
        or (_BY_TYPE.get(model_type.lower()) if name.lower() not in DETECTORS else None)
    )
    if task:
        said = name or (configuration if configuration.lower() in _BY_CONFIGURATION else "") or model_type
        raise ModelUnsupportedError(
            f"This is {task} ({said}); Kestrel detects objects.",
            hint="Choose a model of the type ObjectDetection or InstanceDetection.",
        )
    if model_type and model_type.lower() not in DETECTION_TYPES and name.lower() not in DETECTORS:
        raise ModelUnsupportedError(
            f"This is a model of type '{model_type}'; Kestrel runs object detection models.",
            hint="Choose a model of the type ObjectDetection or InstanceDetection.",
        )


DETECTORS = (
    "fasterrcnn", "maskrcnn", "singleshotdetector", "retinanet", "yolov3", "rtdetrv2", "mmdetection", "detreg",
)  # fmt: skip
"""Classes of arcgis.learn that detect objects, in lower case: what their definitions say of the type is not asked."""

_REASONS = {
    "MMDetection": "is built by the MMDetection library with compiled operations of its own",
    "DETReg": "is a deformable transformer, which Kestrel does not build",
    "GroundingDINO": "is a network that needs the program it was packed with, and the package does not hold it",
    "SAM": "is a network that needs the program it was packed with, and the package does not hold it",
    "ModelExtension": "is built by a program of its own that needs arcgis.learn",
}


def unbuildable(family: str, backbone: str, detail: str = "") -> ModelError:
    """Give the refusal of a detector whose network Kestrel cannot build.

    Args:
        family: The model's class, as the package writes it.
        backbone: Its backbone, as the package writes it; empty where that is not the reason.
        detail: What else is the reason, after "the ... model".
    """
    if family in _REASONS and not detail:
        told = f" ({backbone})" if backbone else ""
        return ModelUnsupportedError(f"This {family} model{told} {_REASONS[family]}.", hint=f"{_EXPORT}.")
    if detail:
        return ModelUnsupportedError(f"This {family} model {detail}.", hint=f"{_EXPORT}.")
    origin = _origin(backbone)
    return ModelUnsupportedError(
        f"This {family} model has the backbone '{backbone}'{origin}, which Kestrel does not build.",
        hint=f"{_EXPORT}, or train it on resnet50.",
    )


def _origin(backbone: str) -> str:
    lower = backbone.lower()
    if lower.startswith("timm:"):
        return " of the timm library"
    if lower.startswith("hf:"):
        return " of Hugging Face"
    return ", a vision transformer" if "vit" in lower or "swin" in lower or "dino" in lower else ""


def unknown_family(name: str) -> ModelError:
    """Give the refusal of an arcgis.learn model whose class Kestrel does not know."""
    said = f"of the family '{name}'" if name else "that names no family (ModelName)"
    return ModelUnsupportedError(
        f"This is an arcgis.learn model {said}, which this version of Kestrel does not run.",
        hint=f"{_EXPORT}; or look for a newer version of Kestrel.",
    )


def legacy_framework(framework: str, configuration: str, known: tuple[str, ...]) -> ModelError:
    """Give the refusal of a framework that Kestrel does not run."""
    with_it = f" with the configuration '{configuration}'" if configuration else ""
    return ModelUnsupportedError(
        f"The framework '{framework}'{with_it} is not one that Kestrel runs.",
        hint=f"Kestrel runs: {', '.join(known)}. {_EXPORT}.",
    )


def text_of(reader: Reader, key: str) -> str:
    """Give a member as text; empty where it is absent or no plain value."""
    value = reader.data.get(key, "")
    return str(value).strip() if isinstance(value, (str, int, float)) else ""


def configuration_of(reader: Reader) -> str:
    """Give ModelConfiguration, which is a text or an object with a Name."""
    value = reader.data.get("ModelConfiguration", "")
    return str(value.get("Name", "")).strip() if isinstance(value, dict) else text_of(reader, "ModelConfiguration")
