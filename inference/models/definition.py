"""ModelDefinition: what Kestrel knows about a model before it is loaded, and Kestrel's own definition JSON.

The JSON form is documented in docs/definition.md and resources/schema/definition-1.json; Esri's .emd is translated to
the same values by esri.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Union

from ..errors import ModelPackageError, ModelUnsupportedError
from .arguments import ARGUMENT_KINDS, ARGUMENT_NAMES, FAMILY_ARGUMENTS, ONNX_ARGUMENTS, ArgumentSpec
from .onnx_heads import HEADS
from .stretch import STRETCH_MEMBERS, Stretch, stretch_from_json

SCHEMA = 1
SCHEMA_KEY = "kestrel_definition"

ESRI_KINDS = ("arcgis", "tensorflow", "python")
"""Detectors that come from Esri's packages, see esri_detectors.py."""
DETECTOR_KINDS = ("onnx", "torchvision", "torchscript", "torch_export", "transformers", *ESRI_KINDS)
PROGRAM_KINDS = ("torchscript", "torch_export")
"""Detectors whose one file is a program."""
OPEN_VOCABULARY = ("owlvit", "owlv2", "grounding-dino", "mm-grounding-dino")
"""Architectures of transformers that look for what a text says."""
BOX_FORMATS = ("xyxy", "cxcywh", "xywh", "yxyx")
BOX_UNITS = ("pixels", "fractions")
SCORES = ("probabilities", "sigmoid", "softmax")
"""What a graph's scores are: probabilities already, or numbers that one of these functions turns into such."""
BACKGROUNDS = ("none", "first", "last")
RESIZES = ("letterbox", "stretch", "none")

GEOMETRIES = ("box", "polygon", "point", "line", "any")
SERVICES = ("sentinel", "landsat")
_OF_ARCGIS = ("kind", "weights", "family", "backbone")
READING_OPTIONS = ("box_format", "box_units", "scores", "background", "masks", "numbered_classes")
"""What a definition may say of the outputs of a graph or program besides their head."""

MEMBERS = {
    "": (
        SCHEMA_KEY, "name", "version", "description", "license", "weights_sha256",
        "detector", "input", "tile", "cell_size", "classes", "arguments", "geometry", "map_space", "common_arguments",
        "own_arguments",
    ),
    "onnx": ("kind", "weights", "head", "label_offset", *READING_OPTIONS),
    "torchvision": ("kind", "weights", "architecture", "label_offset"),
    "torchscript": ("kind", "weights", "head", "label_offset", *READING_OPTIONS),
    "torch_export": ("kind", "weights", "head", "label_offset", *READING_OPTIONS),
    "transformers": ("kind", "weights", "architecture", "files"),
    "FasterRCNN": (*_OF_ARCGIS, "kwargs", "resize", "max_size", "is_plain"),
    "MaskRCNN": (*_OF_ARCGIS, "kwargs", "resize", "max_size", "is_plain"),
    "SingleShotDetector": (*_OF_ARCGIS, "grids", "zooms", "ratios", "version"),
    "RetinaNet": (*_OF_ARCGIS, "scales", "ratios"),
    "YOLOv3": (*_OF_ARCGIS, "anchors"),
    "RTDetrV2": (*_OF_ARCGIS, "n_queries", "cross_attn_method"),
    "DeepForest": _OF_ARCGIS,
    "tensorflow": ("kind", "weights"),
    "python": ("kind", "weights", "program", "emd"),
    "input": ("bands", "scale", "mean", "std", "data_range", "pad_value", "resize", "assumed", "stretch", "service"),
    **STRETCH_MEMBERS,
    "tile": ("size", "variable", "padding", "stride", "receptive_field_radius"),
    "cell_size": ("min", "max", "wkid", "read_at"),
    "class": ("value", "name", "color", "Value", "Name", "Color"),
    "arguments": ARGUMENT_NAMES,
    "own_argument": ("name", "kind", "default", "help", "minimum", "maximum", "choices", "label"),
}  # fmt: skip
"""Names that each object of a definition may hold; a detector's depend on its kind, and of arcgis on its family."""

OWN_ARGUMENTS = (FAMILY_ARGUMENTS["stretch"],)
"""What models of this form know besides the common arguments."""

MAX_STRIDE = 1024
_MOST_FILES = 1000
_SHA256 = re.compile(r"[0-9a-f]{64}")
_VALUES = range(-(2**31), 2**31)  # of a field of 32 bits

Color = tuple[int, int, int]

_PALETTE: tuple[Color, ...] = (
    (34, 139, 34), (228, 26, 28), (55, 126, 184), (255, 127, 0), (152, 78, 163),
    (166, 86, 40), (247, 129, 191), (0, 158, 115), (230, 171, 2), (102, 102, 102),
)  # fmt: skip


@dataclass(frozen=True)
class ModelClass:
    """One class of objects: the value and name that go into the output, and the colour it is drawn in (0..255)."""

    value: int
    name: str
    color: Color


@dataclass(frozen=True)
class InputSpec:
    """How pixels become the network's input: (pixel * scale - mean) / std, band by band.

    scale, mean and std hold one number for all bands, or one per band.
    """

    bands: tuple[Union[int, str], ...] = (0, 1, 2)
    """Bands in the network's channel order: 0-based numbers, or band names."""
    scale: tuple[float, ...] = (1.0,)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    data_range: tuple[float, float] | None = None
    """Pixel values that the model was made for; None: any."""
    pad_value: float = 0.0
    """What stands, as a raster value, where a tile has no pixels."""
    resize: str = "letterbox"
    """How a tile becomes an image of the only size that the network takes, see RESIZES: "letterbox" keeps the shape of
    things, and fills up where the raster ends; "stretch" pulls what there is of the raster over the whole image;
    "none" lets tiles have no other size."""
    is_assumed: bool = False
    """Scale and order of the bands are not told by the model: what finds more on a tile of the raster is taken."""
    service: str = ""
    """ "sentinel" or "landsat" where the model was trained on the whole numbers of such an image service, into which
    reflectances 0 to 1 are turned first."""
    stretch: Stretch | None = None
    """How the values of a raster that is not of 8 bits are brought to the model's; None: they are not."""


@dataclass(frozen=True)
class TileSpec:
    """The windows that the network likes, in pixels. None: measured when the model is loaded."""

    size: int = 512
    is_variable: bool = True
    padding: int | None = None
    stride: int | None = None
    receptive_field_radius: int | None = None


@dataclass(frozen=True)
class CellSizeRange:
    """Ground size of the pixels that the model was trained on.

    Units/space: the unit of the coordinate reference system `wkid` (EPSG or Esri), metres where it is None.
    """

    minimum: float
    maximum: float
    wkid: int | None = None
    read_at: float | None = None
    """Metres on the ground at which the model wants to see every raster; None: the raster's own pixels."""


@dataclass(frozen=True)
class ModelDefinition:
    """A model as its package describes it."""

    name: str
    kind: str
    """Which detector runs it, see DETECTOR_KINDS."""
    weights: str
    """Member of the package that holds the weights."""
    classes: tuple[ModelClass, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the detector of this kind needs to know: head, architecture, label_offset, ..."""
    input: InputSpec = field(default_factory=InputSpec)
    tile: TileSpec = field(default_factory=TileSpec)
    cell_size: CellSizeRange | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """The package's own defaults of the model arguments."""
    is_map_space: bool = True
    """Trained on images seen from straight above, in which no direction is special."""
    version: str = ""
    description: str = ""
    license: str = ""
    weights_sha256: str = ""
    """What the file of the weights must have as its hash; empty: anything."""
    geometry: str = "box"
    """What its objects are: "box", "polygon", or "any" where only the loaded model knows."""
    common_arguments: tuple[str, ...] = ARGUMENT_NAMES
    """Which of the common model arguments it knows."""
    own_arguments: tuple[ArgumentSpec, ...] = ()
    """Arguments that it has besides; one of a common one's name stands in its place."""
    program: str = ""
    """Member of the package that is a program, which runs only after consent; empty: the model is nothing but data."""
    notes: tuple[str, ...] = ()
    """What was repaired or assumed while the package was read, for the user."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the package says besides: framework, family, backbone, metrics, ... JSON values."""

    def class_named(self, name: str) -> ModelClass | None:
        """Give the class of that name, or None."""
        return next((item for item in self.classes if item.name == name), None)


class Reader:
    """Typed access to a JSON object, with errors that name the member. A member that is null counts as absent.

    Args:
        data: The object.
        where: How messages call it, for example "tile" for the members of {"tile": {...}}.
    """

    def __init__(self, data: Mapping[str, Any], where: str = "") -> None:
        """Keep the object and its name."""
        self.data = {key: value for key, value in data.items() if value is not None}
        self.where = where
        self._names = set(data)

    def refuse(self, key: str, expected: str) -> ModelPackageError:
        """Give the error for a member that is not what was expected."""
        name = f"{self.where}.{key}" if self.where else key
        found = "is missing" if key not in self.data else f"is {self.data[key]!r}"
        return ModelPackageError(f"The model definition's member '{name}' {found}; expected {expected}.")

    def text(self, key: str, default: str | None = None) -> str:
        """Give a string; required where there is no default."""
        value = self.data.get(key, default)
        if not isinstance(value, str):
            raise self.refuse(key, "a text")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Give a list of strings; none where it is absent."""
        value = self.data.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.refuse(key, "a list of texts")
        return tuple(value)

    def integer(self, key: str, default: int | None, minimum: int = 0, maximum: int = 2**31 - 1) -> int | None:
        """Give a whole number from `minimum` to `maximum`."""
        value = self.data.get(key)
        if value is None:
            return default
        if not _is_whole(value) or not minimum <= value <= maximum:
            raise self.refuse(key, f"a whole number from {minimum} to {maximum}")
        return int(value)

    def boolean(self, key: str, default: bool) -> bool:
        """Give true or false."""
        value = self.data.get(key, default)
        if not isinstance(value, bool):
            raise self.refuse(key, "true or false")
        return value

    def choice(self, key: str, choices: Sequence[str], default: str = "") -> str:
        """Give one of some words; the default where it is absent."""
        value = self.text(key, default)
        if value not in (*choices, default):
            raise self.refuse(key, f"one of {', '.join(choices)}")
        return value

    def number(self, key: str) -> float:
        """Give one number, which is required."""
        if isinstance(self.data.get(key), list):
            raise self.refuse(key, "a number")
        return self.numbers(key, ())[0]

    def numbers(self, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
        """Give one number or a list of numbers as a tuple."""
        value = self.data.get(key, list(default))
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
            raise self.refuse(key, "a number or a list of numbers")
        return tuple(float(v) for v in values)

    def bands(self, key: str) -> tuple[Union[int, str], ...]:
        """Give a list of bands; the first three where it is absent."""
        value = self.data.get(key, [0, 1, 2])
        is_list = isinstance(value, list) and len(value) > 0
        if not is_list or not all(isinstance(band, (int, str)) and not isinstance(band, bool) for band in value):
            raise self.refuse(key, "a list of 0-based band numbers or band names")
        if any(isinstance(band, int) and band < 0 for band in value):
            raise self.refuse(key, "a list of 0-based band numbers or band names")
        return tuple(value)

    def data_range(self, key: str) -> tuple[float, float] | None:
        """Give lowest and highest value, or None where there is nothing."""
        if key not in self.data:
            return None
        values = self.numbers(key, ())
        if len(values) != 2 or values[0] >= values[1]:
            raise self.refuse(key, "[lowest, highest]")
        return values[0], values[1]

    def factors(self, key: str, default: float, n_bands: int) -> tuple[float, ...]:
        """Give one number for all bands, or one for each."""
        values = self.numbers(key, (default,))
        if len(values) not in (1, n_bands):
            raise self.refuse(key, f"one number, or one for each of the {n_bands} bands")
        if key == "std" and 0.0 in values:
            raise self.refuse(key, "numbers other than zero")
        return values

    def child(self, key: str) -> Reader:
        """Give the object below a member; an absent one is empty."""
        value = self.data.get(key, {})
        if not isinstance(value, Mapping):
            raise self.refuse(key, "an object")
        return Reader(value, f"{self.where}.{key}" if self.where else key)

    def only(self, *known: str) -> None:
        """Refuse members that have no meaning: a misspelt one would be ignored in silence otherwise."""
        unknown = sorted(self._names - set(known))
        if unknown:
            place = f"'{self.where}'" if self.where else "the model definition"
            raise ModelPackageError(
                f"Unknown member{'s' if len(unknown) > 1 else ''} in {place}: {', '.join(unknown)}.",
                hint=f"Known members: {', '.join(known)}.",
            )


def _is_whole(value: Any) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, float) and value.is_integer())


def definition_from_json(data: Mapping[str, Any]) -> ModelDefinition:
    """Read Kestrel's own definition JSON.

    Raises:
        ModelPackageError: a member is missing, unknown, or not what it should be.
        ModelUnsupportedError: a newer schema, or a detector kind that does not exist.
    """
    reader = Reader(data)
    check_schema(reader, SCHEMA_KEY, None)
    reader.only(*MEMBERS[""])
    detector = reader.child("detector")
    kind = _kind(detector)
    spec = _input(reader.child("input"))
    found: dict[str, Any] = {
        "name": reader.text("name"),
        "version": reader.text("version", ""),
        "description": reader.text("description", ""),
        "license": reader.text("license", ""),
        "weights_sha256": _sha256(reader),
        "kind": kind,
        "input": spec,
        "tile": _tile(reader.child("tile")),
        "cell_size": _cell_size(reader.child("cell_size")) if "cell_size" in reader.data else None,
        "classes": _strict_classes(data.get("classes")),
        "arguments": default_arguments(reader),
        "is_map_space": reader.boolean("map_space", default=True),
        **_detector(kind, detector, spec),
    }
    return ModelDefinition(**{**found, **_stated(reader)})


def _detector(kind: str, detector: Reader, spec: InputSpec) -> dict[str, Any]:
    if kind in ESRI_KINDS:
        from .esri_detectors import esri_detector  # here, because that module reads with this one's help

        return esri_detector(kind, detector, spec.service)
    detector.only(*MEMBERS[kind])
    if kind in ("torchvision", "transformers"):
        detector.text("architecture")
    weights, options = detector.text("weights"), detector_options(detector)
    return {"weights": weights, "options": options, **following_from(kind, weights, options)}


def _stated(reader: Reader) -> dict[str, Any]:
    """Give what a definition states although its kind says it already."""
    found: dict[str, Any] = {}
    if "geometry" in reader.data:
        found["geometry"] = reader.choice("geometry", GEOMETRIES)
    if "common_arguments" in reader.data:
        found["common_arguments"] = reader.texts("common_arguments")
        if not set(found["common_arguments"]) <= set(ARGUMENT_NAMES):
            raise reader.refuse("common_arguments", f"some of {', '.join(ARGUMENT_NAMES)}")
    if "own_arguments" in reader.data:
        value = reader.data["own_arguments"]
        if not isinstance(value, list):
            raise reader.refuse("own_arguments", "a list of names and of descriptions of arguments")
        found["own_arguments"] = tuple(_own_argument(item, f"own_arguments[{i}]") for i, item in enumerate(value))
    return found


def _own_argument(item: Any, where: str) -> ArgumentSpec:
    """Read one of a model's own arguments: the name of one that Kestrel knows, or a description."""
    if isinstance(item, str):
        if item not in FAMILY_ARGUMENTS:
            raise Reader({where: item}).refuse(where, f"one of {', '.join(FAMILY_ARGUMENTS)}, or an object")
        return FAMILY_ARGUMENTS[item]
    if not isinstance(item, Mapping):
        raise Reader({where: item}).refuse(where, "a name, or an object")
    reader = Reader(item, where)
    reader.only(*MEMBERS["own_argument"])
    minimum, maximum = (reader.number(key) if key in reader.data else None for key in ("minimum", "maximum"))
    kind = reader.text("kind")
    if kind not in ARGUMENT_KINDS:
        raise reader.refuse("kind", f"one of {', '.join(ARGUMENT_KINDS)}")
    return ArgumentSpec(
        reader.text("name"), kind, reader.data.get("default"), reader.text("help", ""), minimum, maximum,
        choices=reader.texts("choices"), label=reader.text("label", ""),
    )  # fmt: skip


def following_from(kind: str, weights: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Give what follows from the kind of a model: what its objects are, its arguments, and whether it is a program.

    Args:
        kind: One of DETECTOR_KINDS, and none of Esri's.
        weights: The file of the weights.
        options: What the detector needs to know besides.
    """
    architecture = str(options.get("architecture", ""))
    common: tuple[str, ...] = ARGUMENT_NAMES
    names: tuple[str, ...] = ONNX_ARGUMENTS if kind == "onnx" else ()
    geometry = geometry_of(kind, options)
    if kind in PROGRAM_KINDS:
        names = (*ONNX_ARGUMENTS, "return_bboxes")
    elif kind == "torchvision" and architecture.startswith("maskrcnn"):
        names = ("return_bboxes",)
    elif kind == "transformers" and architecture in OPEN_VOCABULARY:
        names = ("text_prompt",)
        # Orientations are fused class by class, and here the class is a text.
        common = tuple(name for name in ARGUMENT_NAMES if name != "test_time_augmentation")
    own = (*(FAMILY_ARGUMENTS[name] for name in names), *OWN_ARGUMENTS)
    return {
        "program": weights if kind in PROGRAM_KINDS else "", "geometry": geometry, "own_arguments": own,
        "common_arguments": common,
    }  # fmt: skip


def check_schema(reader: Reader, key: str, default: int | None) -> None:
    """Refuse a definition whose schema is not one that this version reads.

    Raises:
        ModelPackageError: the member is no schema.
        ModelUnsupportedError: a newer schema, or none where there is no default.
    """
    schema = reader.integer(key, default, minimum=1)
    if schema is None or schema > SCHEMA:
        raise ModelUnsupportedError(
            f"The definition has schema {schema}; this version of Kestrel reads schema {SCHEMA}.",
            hint="Update the plugin, or write the definition for the older schema.",
        )


def detector_options(reader: Reader) -> dict[str, Any]:
    """Read what a detector needs to know beside its weights: head, architecture, label_offset, where they are given.

    Raises:
        ModelPackageError: a member is not what it should be.
        ModelUnsupportedError: a head that does not exist.
    """
    head = reader.text("head", "")
    if head not in (*HEADS, ""):
        raise ModelUnsupportedError(
            f"The model's head '{head}' is not one that Kestrel runs.", hint=f"Heads: {', '.join(HEADS)}."
        )
    options = {
        "head": head,
        "architecture": reader.text("architecture", ""),
        "label_offset": reader.integer("label_offset", None),
        "files": _files(reader),
        "box_format": reader.choice("box_format", BOX_FORMATS),
        "box_units": reader.choice("box_units", BOX_UNITS),
        "scores": reader.choice("scores", SCORES),
        "background": reader.choice("background", BACKGROUNDS),
        "masks": reader.boolean("masks", default=False) or None,
        "numbered_classes": reader.boolean("numbered_classes", default=False) or None,
    }
    return {name: value for name, value in options.items() if value not in ("", None, ())}


def geometry_of(kind: str, options: Mapping[str, Any]) -> str:
    """Give what a model's objects are, as far as its description tells, see `ModelDefinition.geometry`."""
    if kind == "torchvision" and str(options.get("architecture", "")).startswith("maskrcnn"):
        return "polygon"
    if kind not in ("onnx", *PROGRAM_KINDS):
        return "box"
    if options.get("masks"):
        return "polygon"
    head = HEADS.get(str(options.get("head", "")), "any")
    return "box" if head == "oriented" else head


def _files(reader: Reader) -> tuple[str, ...]:
    """Give the files besides the weights that a model is made of: without config.json there is no network."""
    if reader.data.get("kind") != "transformers":
        return ()
    names = tuple(dict.fromkeys(("config.json", *reader.texts("files"))))
    if len(names) > _MOST_FILES or any(_leads_out(name) for name in names):
        raise reader.refuse("files", f"at most {_MOST_FILES} names of files in the folder of the weights")
    return names


def _leads_out(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return any(part in ("", "..") or ":" in part for part in parts)


def default_arguments(reader: Reader) -> dict[str, Any]:
    """Read the member `arguments`: a model's own defaults of the model arguments."""
    arguments = reader.child("arguments")
    arguments.only(*MEMBERS["arguments"])
    return dict(arguments.data)


def _sha256(reader: Reader) -> str:
    stated = reader.text("weights_sha256", "").lower()
    if stated and not _SHA256.fullmatch(stated):
        raise reader.refuse("weights_sha256", "the 64 digits of a SHA-256")
    return stated


def _kind(detector: Reader) -> str:
    kind = detector.text("kind")
    if kind not in DETECTOR_KINDS:
        raise ModelUnsupportedError(
            f"Detector kind '{kind}' is not known.", hint=f"Kestrel runs: {', '.join(DETECTOR_KINDS)}."
        )
    return kind


def _input(reader: Reader) -> InputSpec:
    reader.only(*MEMBERS["input"])
    bands = reader.bands("bands")
    return InputSpec(
        bands=bands,
        scale=reader.factors("scale", 1.0, len(bands)),
        mean=reader.factors("mean", 0.0, len(bands)),
        std=reader.factors("std", 1.0, len(bands)),
        data_range=reader.data_range("data_range"),
        service=reader.choice("service", SERVICES),
        stretch=stretch_from_json(reader.child("stretch"), len(bands)) if "stretch" in reader.data else None,
        **fitting(reader),
    )


def fitting(reader: Reader) -> dict[str, Any]:
    """Read how tiles become images of the network's size, and whether the scaling is but assumed."""
    return {
        "pad_value": reader.number("pad_value") if "pad_value" in reader.data else 0.0,
        "resize": reader.choice("resize", RESIZES, "letterbox"),
        "is_assumed": reader.boolean("assumed", default=False),
    }


def _tile(reader: Reader) -> TileSpec:
    reader.only(*MEMBERS["tile"])
    return TileSpec(
        size=reader.integer("size", 512, minimum=8) or 512,
        is_variable=reader.boolean("variable", default=True),
        padding=reader.integer("padding", None),
        stride=reader.integer("stride", None, minimum=1, maximum=MAX_STRIDE),
        receptive_field_radius=reader.integer("receptive_field_radius", None),
    )


def _cell_size(reader: Reader) -> CellSizeRange:
    reader.only(*MEMBERS["cell_size"])
    read_at = _read_at(reader)
    if read_at is not None and not {"min", "max", "wkid"} & set(reader.data):
        return CellSizeRange(read_at, read_at, None, read_at)
    low, high = reader.number("min"), reader.number("max")
    if not 0 < low <= high:
        raise reader.refuse("min", "a positive number that is not above 'max'")
    return CellSizeRange(low, high, reader.integer("wkid", None), read_at)


def _read_at(reader: Reader) -> float | None:
    if "read_at" not in reader.data:
        return None
    value = reader.number("read_at")
    if not 0 < value < math.inf:
        raise reader.refuse("read_at", "metres on the ground, above 0")
    return value


def classes_from_json(value: Any) -> tuple[ModelClass, ...]:
    """Read a list of classes: {"value", "name", "color"} or Esri's {"Value", "Name", "Color"}.

    Raises:
        ModelPackageError: not such a list.
    """
    if not isinstance(value, list) or not value:
        raise ModelPackageError("The model definition has no classes; expected a list of {value, name, color}.")
    classes = [_class_from_json(item, index) for index, item in enumerate(value)]
    return tuple(classes)


def _strict_classes(value: Any) -> tuple[ModelClass, ...]:
    """Read a list of classes of Kestrel's own definition, in which nothing is guessed."""
    classes = classes_from_json(value)
    for index, (item, read) in enumerate(zip(value, classes)):
        reader = Reader(item, f"classes[{index}]")
        reader.only(*MEMBERS["class"])
        for key in {"name", "Name"} & set(reader.data):
            reader.text(key)
        for key in {"color", "Color"} & set(reader.data):
            if reader.data[key] != list(read.color):
                raise reader.refuse(key, "[red, green, blue], each from 0 to 255")
    return classes


def _class_from_json(item: Any, index: int) -> ModelClass:
    if not isinstance(item, Mapping):
        raise ModelPackageError(f"Class {index + 1} of the model definition is {item!r}; expected an object.")
    lower = {str(key).lower(): entry for key, entry in item.items() if entry is not None}
    name = lower.get("name", lower.get("classname"))
    value = lower.get("value", lower.get("classvalue", index + 1))
    if name is None or not _is_whole(value):
        raise ModelPackageError(f"Class {index + 1} of the model definition has no name, or no whole number as value.")
    if int(value) not in _VALUES:
        raise ModelPackageError(
            f"The class '{name}' has the value {value}; expected a whole number from {_VALUES[0]} to {_VALUES[-1]}."
        )
    color = lower.get("color")
    is_color = isinstance(color, list) and len(color) == 3 and all(_is_whole(c) and 0 <= c <= 255 for c in color)
    shown: Any = tuple(int(c) for c in color) if is_color and color else _PALETTE[index % len(_PALETTE)]
    return ModelClass(int(value), str(name), shown)
