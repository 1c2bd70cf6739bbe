"""ModelDefinition: what Kestrel knows about a model before it is loaded, and Kestrel's own definition JSON.

The JSON form is documented in docs/definition.md and resources/schema/definition-1.json; Esri's .emd is translated to
the same values by esri.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Union

from ..errors import ModelPackageError, ModelUnsupportedError
from .arguments import ARGUMENT_NAMES, FAMILY_ARGUMENTS, ONNX_ARGUMENTS, ArgumentSpec
from .onnx_heads import HEADS

SCHEMA = 1
SCHEMA_KEY = "kestrel_definition"

DETECTOR_KINDS = ("onnx", "torchvision", "torchscript", "torch_export", "transformers")
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

READING_OPTIONS = ("box_format", "box_units", "scores", "background", "masks", "numbered_classes")
"""What a definition may say of the outputs of a graph or program besides their head."""

MEMBERS = {
    "": (
        SCHEMA_KEY, "name", "version", "description", "license",
        "detector", "input", "tile", "cell_size", "classes", "arguments",
    ),
    "onnx": ("kind", "weights", "head", "label_offset", *READING_OPTIONS),
    "torchvision": ("kind", "weights", "architecture", "label_offset"),
    "torchscript": ("kind", "weights", "head", "label_offset", *READING_OPTIONS),
    "torch_export": ("kind", "weights", "head", "label_offset", *READING_OPTIONS),
    "transformers": ("kind", "weights", "architecture", "files"),
    "input": ("bands", "scale", "mean", "std", "data_range", "pad_value", "resize", "assumed"),
    "tile": ("size", "variable", "padding", "stride", "receptive_field_radius"),
    "cell_size": ("min", "max", "wkid"),
    "class": ("value", "name", "color", "Value", "Name", "Color"),
    "arguments": ARGUMENT_NAMES,
}  # fmt: skip
"""Names that each object of a definition may hold; a detector's depend on its kind."""

MAX_STRIDE = 1024
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
    detector.only(*MEMBERS[kind])
    if kind in ("torchvision", "transformers"):
        detector.text("architecture")
    options = detector_options(detector)
    return ModelDefinition(
        name=reader.text("name"),
        version=reader.text("version", ""),
        description=reader.text("description", ""),
        license=reader.text("license", ""),
        kind=kind,
        weights=detector.text("weights"),
        options=options,
        input=_input(reader.child("input")),
        geometry=geometry_of(kind, options),
        own_arguments=arguments_of(kind, options),
        tile=_tile(reader.child("tile")),
        cell_size=_cell_size(reader.child("cell_size")) if "cell_size" in reader.data else None,
        classes=_strict_classes(data.get("classes")),
        arguments=default_arguments(reader),
        **_of_kind(kind, detector.text("weights"), options),
    )


def _of_kind(kind: str, weights: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Give what follows from the kind of a model besides its geometry and arguments."""
    if kind in PROGRAM_KINDS:
        return {"program": weights}
    if kind == "transformers" and options.get("architecture") in OPEN_VOCABULARY:
        # Orientations are fused class by class, and here the class is a text.
        return {"common_arguments": tuple(name for name in ARGUMENT_NAMES if name != "test_time_augmentation")}
    return {}


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


def _files(reader: Reader) -> tuple[str, ...]:
    """Give the files besides the weights that a model is made of: without config.json there is no network."""
    if reader.data.get("kind") != "transformers":
        return ()
    return tuple(dict.fromkeys(("config.json", *reader.texts("files"))))


def geometry_of(kind: str, options: Mapping[str, Any]) -> str:
    """Give what a model's objects are, as far as its description tells, see `ModelDefinition.geometry`."""
    if kind == "torchvision" and str(options.get("architecture", "")).startswith("maskrcnn"):
        return "polygon"
    if kind not in ("onnx", *PROGRAM_KINDS):
        return "box"
    if options.get("masks"):
        return "polygon"
    head = HEADS.get(str(options.get("head", "")), "any")
    return "polygon" if head == "oriented" else head


def arguments_of(kind: str, options: Mapping[str, Any]) -> tuple[ArgumentSpec, ...]:
    """Give the arguments that models of a kind have besides the common ones."""
    architecture = str(options.get("architecture", ""))
    names: tuple[str, ...] = ONNX_ARGUMENTS if kind == "onnx" else ()
    if kind in PROGRAM_KINDS:
        names = (*ONNX_ARGUMENTS, "return_bboxes")
    if kind == "torchvision" and architecture.startswith("maskrcnn"):
        names = ("return_bboxes",)
    if kind == "transformers" and architecture in OPEN_VOCABULARY:
        names = ("text_prompt",)
    return tuple(FAMILY_ARGUMENTS[name] for name in names)


def default_arguments(reader: Reader) -> dict[str, Any]:
    """Read the member `arguments`: a model's own defaults of the model arguments."""
    arguments = reader.child("arguments")
    arguments.only(*MEMBERS["arguments"])
    return dict(arguments.data)


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
    low, high = reader.number("min"), reader.number("max")
    if not 0 < low <= high:
        raise reader.refuse("min", "a positive number that is not above 'max'")
    return CellSizeRange(low, high, reader.integer("wkid", None))


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
