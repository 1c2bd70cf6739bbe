"""Model arguments: the name-value pairs that steer a model, their defaults, ranges and texts.

The names are ArcGIS's. Their meanings are too, with two differences: seams between tiles are always merged, so no
argument is needed against duplicates; and batch_size is a plain count, not the next lower square.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import JobError
from .onnx_heads import HEADS

if TYPE_CHECKING:  # definitions name arguments, and are read with this module's help
    from .definition import ModelDefinition


@dataclass(frozen=True)
class ArgumentSpec:
    """One argument: `kind` is integer, number, boolean, text or choice; a default of None is found out by the worker.

    Attributes:
        choices: The allowed texts of a choice.
        label: How people call it; the name where there is none.
    """

    name: str
    kind: str
    default: Any
    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    label: str = ""

    def expected(self) -> str:
        """Say what values are allowed, for messages and tooltips."""
        if self.kind == "boolean":
            return "True or False"
        if self.kind == "choice":
            return f"one of {', '.join(self.choices)}"
        if self.kind == "text":
            return "a text"
        noun = "a whole number" if self.kind == "integer" else "a number"
        if self.minimum is not None and self.maximum is not None:
            return f"{noun} from {self.minimum:g} to {self.maximum:g}"
        return f"{noun} of at least {self.minimum:g}" if self.minimum is not None else noun


MAX_TILE_SIZE = 8192
PROGRAM = "program"
"""Key of the arguments that a package's own Python program is given, among the resolved ones."""
_OTHER_NAMES = {"score_threshold": "threshold"}
"""What ArcGIS's templates of the older frameworks call an argument."""

_EXAMPLE = 'Write for example {"threshold": 0.4}, or threshold 0.4;padding 64.'

COMMON_ARGUMENTS: tuple[ArgumentSpec, ...] = (
    ArgumentSpec("threshold", "number", 0.5, "Lowest score, 0 to 1, that an object needs.", 0, 1),
    ArgumentSpec(
        "nms_overlap", "number", 0.45,
        "Highest overlap of two objects of a class, from 0 to 1. A pair above it is taken for one object, which "
        "merge_method makes of them.", 0, 1,
    ),
    ArgumentSpec(
        "merge_method", "choice", "nms",
        "What becomes of objects that overlap by more than nms_overlap. nms: the one with the best score stays, the "
        "others go. soft-nms: the others lose score and go only when they fall below the threshold, for crowded "
        "scenes where real objects overlap. nmm: the best one grows until it covers the others, for objects that are "
        "found in pieces. wbf: the best one's box moves to the mean of all, weighted with their scores; outlines and "
        "rotated boxes stay as they are.", choices=("nms", "soft-nms", "nmm", "wbf"),
    ),
    ArgumentSpec(
        "merge_metric", "choice", "iou",
        "How overlap is measured. iou: the common area as a share of what both cover together. ios: the common area "
        "as a share of the smaller one, so that a small object inside a large one counts as the same.",
        choices=("iou", "ios"),
    ),
    ArgumentSpec(
        "class_agnostic", "boolean", False,
        "Objects of different classes are compared, too: at one place only the class with the best score is left.",
    ),
    ArgumentSpec(
        "padding", "integer", None,
        "Pixels on each side of a tile that it shares with its neighbours. Automatic: what the model needs to give "
        "the same objects as one pass over the whole image.", 0, MAX_TILE_SIZE // 2,
    ),
    ArgumentSpec("tile_size", "integer", None, "Side of a tile in pixels, padding included.", 32, MAX_TILE_SIZE),
    ArgumentSpec("batch_size", "integer", None, "Tiles that go through the network together. Automatic: by device.",
                 1, 4096),
    ArgumentSpec(
        "exclude_pad_detections", "boolean", True,
        "Drop objects that are cut by the edge of their tile. Without effect on models whose objects do not depend "
        "on the tiles.", label="Filter outer padding detections",
    ),
    ArgumentSpec(
        "test_time_augmentation", "boolean", False,
        "Look at each tile in several orientations and fuse what is found: slower, often better.",
    ),
)  # fmt: skip

ARGUMENT_NAMES = tuple(spec.name for spec in COMMON_ARGUMENTS)

AUTOMATIC = "automatic"
SCALES = ("0-1", "0-255", "-1-1", "imagenet")
ONNX_ARGUMENTS = ("head", "input_order", "scale")

FAMILY_ARGUMENTS: Mapping[str, ArgumentSpec] = {
    spec.name: spec
    for spec in (
        ArgumentSpec(
            "tta_scales", "text", "1",
            "Sizes at which each tile is looked at when test_time_augmentation is on: factors with commas between, "
            "such as 0.9,1,1.1.",
        ),
        ArgumentSpec(
            "merge_policy", "choice", "mean",
            "What remains of the outlines of one object seen several times by test_time_augmentation: what most of "
            "them cover (mean), what any covers (max), or what all cover (min).", choices=("mean", "max", "min"),
        ),
        ArgumentSpec("return_bboxes", "boolean", False, "Give rectangles instead of the objects' outlines."),
        ArgumentSpec(
            "text_prompt", "text", "",
            "What to look for, in the words of the model's training (most know English): tree. car. building",
        ),
        ArgumentSpec(
            "box_decoding", "choice", "arcgis",
            "How the network's numbers become boxes: as ArcGIS does it, which takes a box's size from the numbers of "
            "its centre and with which such models are trained and judged, or as the textbook has it.",
            choices=("arcgis", "textbook"),
        ),
        ArgumentSpec(
            "head", "choice", AUTOMATIC,
            "How the network's outputs are to be read. Automatic: as the model says, or as its outputs look.",
            choices=(AUTOMATIC, *HEADS),
        ),
        ArgumentSpec(
            "input_order", "choice", AUTOMATIC,
            "Order in which the network wants the colours: rgb, or bgr as models made with OpenCV do. Automatic: as "
            "the model says.", choices=(AUTOMATIC, "rgb", "bgr"),
        ),
        ArgumentSpec(
            "scale", "choice", AUTOMATIC,
            "What the network wants the values 0 to 255 to become. Automatic: as the model says.",
            choices=(AUTOMATIC, *SCALES),
        ),
        ArgumentSpec(
            "radiometric_offset_correction", "boolean", False,
            "Subtract 1000 from the pixel values, for Sentinel-2 images processed since January 2022.",
        ),
        ArgumentSpec(
            "stretch", "choice", "model",
            "How the raster's values are brought to those that the model was made for, by one straight line a band "
            "over the whole raster: as the model states it, and by percentiles where it states nothing, wants 0 to 255 "
            "and the raster holds other values (model); not at all (none); from the 2nd to the 98th percentile "
            "(percentiles); or two standard deviations around the mean (statistics).",
            choices=("model", "none", "percentiles", "statistics"),
        ),
    )
}  # fmt: skip
"""Arguments of some families of models, by name."""


@dataclass(frozen=True)
class ResolvedArguments:
    """The value of every argument, and what the user should hear about the ones given."""

    values: Mapping[str, Any]
    warnings: tuple[str, ...]


def parse_arguments(value: Any) -> dict[str, Any]:
    """Read arguments as people and programs write them.

    Args:
        value: A mapping, JSON text of an object, or ArcGIS's `name value;name value` (a value with spaces in single
            quotes). None and empty text mean no arguments.

    Raises:
        JobError: the text is neither.
    """
    if value is None or value == "":
        return {}
    if isinstance(value, Mapping):
        return {str(name): entry for name, entry in value.items()}
    text = str(value).strip()
    if text.startswith("["):
        raise JobError("The model arguments are a list; expected names with values.", hint=_EXAMPLE)
    if not text.startswith("{"):
        return _parse_pairs(text)
    try:
        data = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise JobError(f"The model arguments are not valid JSON: {error}.", hint=_EXAMPLE) from error
    return {str(name): entry for name, entry in data.items()}


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _parse_pairs(text: str) -> dict[str, Any]:
    pairs: dict[str, Any] = {}
    for part in _split_outside_quotes(text):
        name, _, value = part.strip().partition(" ")
        if not name:
            continue
        value = value.strip()
        if not value:
            raise JobError(
                f"The model argument '{name}' has no value.", hint="Write for example threshold 0.4;padding 64."
            )
        is_quoted = len(value) > 1 and value[0] == value[-1] == "'"
        pairs[name] = value[1:-1] if is_quoted else value
    return pairs


def _split_outside_quotes(text: str) -> list[str]:
    parts, is_quoted = [""], False
    for character in text:
        if character == "'":
            is_quoted = not is_quoted
        if character == ";" and not is_quoted:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def argument_specs(definition: ModelDefinition) -> tuple[ArgumentSpec, ...]:
    """Give the arguments that this model knows, with its own defaults."""
    shared = [spec for spec in COMMON_ARGUMENTS if spec.name in definition.common_arguments]
    own = {spec.name for spec in definition.own_arguments}
    common = [_with_default(spec, definition) for spec in shared if spec.name not in own]
    return (*common, *(_with_stated(spec, definition, spec.default) for spec in definition.own_arguments))


def _with_default(spec: ArgumentSpec, definition: ModelDefinition) -> ArgumentSpec:
    return _with_stated(spec, definition, definition.tile.size if spec.name == "tile_size" else spec.default)


def _with_stated(spec: ArgumentSpec, definition: ModelDefinition, otherwise: Any) -> ArgumentSpec:
    stated = definition.arguments.get(spec.name)
    default = otherwise if stated is None else stated
    if default is not None:
        default = convert(spec, default)
    return replace(spec, default=default)


def convert(spec: ArgumentSpec, value: Any) -> Any:
    """Give the value in the argument's own type.

    Args:
        spec: The argument.
        value: A JSON value or the text that someone typed.

    Raises:
        JobError: not a value of that type, or outside its range; names argument, value and range.
    """
    converted: Any = _CONVERTERS[spec.kind](value)
    if spec.kind == "choice":
        converted = next((choice for choice in spec.choices if choice.lower() == str(value).strip().lower()), None)
    too_low = spec.minimum is not None and converted is not None and converted < spec.minimum
    too_high = spec.maximum is not None and converted is not None and converted > spec.maximum
    if converted is None or too_low or too_high:
        raise JobError(f"Model argument '{spec.name}' is {value!r}; expected {spec.expected()}.", argument=spec.name)
    return converted


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number - number == 0 else None  # not NaN, not infinite


def _integer(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number == int(number) else None


def _boolean(value: Any) -> bool | None:
    return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(str(value).lower())


def _text(value: Any) -> str | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return str(value) if isinstance(value, str) or is_number else None


ARGUMENT_KINDS = ("integer", "number", "boolean", "text", "choice")
_CONVERTERS = {"number": _number, "integer": _integer, "boolean": _boolean, "text": _text, "choice": _text}


def resolve_arguments(definition: ModelDefinition, given: Mapping[str, Any]) -> ResolvedArguments:
    """Settle the value of every argument.

    Returns:
        A value for each known argument; None where the worker finds it out. Unknown names become a warning. What a
        Python program is given stands under PROGRAM.

    Raises:
        JobError: a value is of the wrong type or outside its range.
    """
    if definition.kind == "python":
        return _resolve_programs(definition, given)
    given = {_OTHER_NAMES.get(name, name): value for name, value in given.items()}
    specs = {spec.name: spec for spec in argument_specs(definition)}
    # The run asks for each of the common ones, whether or not the model knows it.
    unused = {spec.name: _with_default(spec, definition).default for spec in COMMON_ARGUMENTS}
    values = {**unused, **{name: spec.default for name, spec in specs.items()}}
    values.update({name: convert(specs[name], value) for name, value in given.items()
                   if name in specs and value is not None and value != ""})  # fmt: skip
    if "text_prompt" in specs and not str(values["text_prompt"]).strip(" .,"):
        raise JobError(
            f"The model '{definition.name}' finds what a text says, and no text was given.",
            hint="Set the model argument text_prompt, for example: tree. car. building",
            argument="text_prompt",
        )
    tile_size, padding = values["tile_size"], values["padding"]
    if padding is not None and 2 * padding >= tile_size:
        raise JobError(
            f"Model argument 'padding' is {padding}; with tile_size {tile_size} it must be below {tile_size // 2}.",
            argument="padding",
        )
    unknown = sorted(set(given) - set(specs), key=str)
    warnings = [
        f"Model argument '{name}' is not known to this model and has no effect. Known: {', '.join(specs)}."
        for name in unknown
    ]
    return ResolvedArguments(values, tuple(warnings))


def _resolve_programs(definition: ModelDefinition, given: Mapping[str, Any]) -> ResolvedArguments:
    """Settle what a Python program is given, apart from Kestrel's own values: they may share names and not meanings.

    A program may know arguments that its text does not tell without being run: these are handed on as they are.
    """
    specs = {spec.name: spec for spec in argument_specs(definition)}
    program = {name: spec.default for name, spec in specs.items() if spec.default is not None}
    for name, value in given.items():
        if value is not None and value != "":
            program[name] = convert(specs[name], value) if name in specs else value
    own = {spec.name: spec.default for spec in COMMON_ARGUMENTS}
    # What a program drops at the edges of its blocks is its own affair.
    own.update({"tile_size": definition.tile.size, "exclude_pad_detections": False, PROGRAM: program})
    return ResolvedArguments(own, ())
