"""How a graph's outputs are to be read, and what its pixels should be: as stated, as they look, or as a tile shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..detections import Detections
from ..errors import InferenceError, ModelUnsupportedError
from ..merge import suppress_once
from ..models.definition import InputSpec, ModelDefinition
from ..models.onnx_file import TensorInfo
from ..models.onnx_heads import HEADS, Question, Reading, readings, roles_of
from ..models.overrides import scaled
from .graph_input import GraphInput
from .heads import HeadSettings, Outputs, Size, make_head
from .heads.settle import Names, by_role, choose, settle

_OPTIONS = ("label_offset", "box_format", "box_units", "scores", "background", "masks")
_TRIAL_SIDE = 640
_PLACES = 9
_EVIDENCE = 0.25
"""Lowest score of an object that counts for a way of scaling pixels."""
_CLEARLY = 1.5
"""Another scaling than the likeliest one must find so many times more."""
_MOST_JUDGED = 300


Sample = Callable[["Size | None", int], NDArray[Any]]
"""See `DetectorSettings.sample`."""


class Runner(Protocol):
    """Runs a graph."""

    input: GraphInput
    outputs: tuple[TensorInfo, ...]

    def run(self, batch: NDArray[Any]) -> Outputs:
        """Run a batch of raster values."""
        ...


@dataclass(frozen=True)
class FoundReading:
    """A reading that leaves nothing open, and what was assumed for it."""

    reading: Reading
    settings: HeadSettings
    notes: tuple[str, ...] = ()


def find_reading(
    runner: Runner, definition: ModelDefinition, settings: HeadSettings,
    sample: Sample | None,
) -> FoundReading:  # fmt: skip
    """Find out how a graph is to be read; adapts the runner's input where the model does not tell its scaling.

    Args:
        runner: The graph.
        definition: What is stated.
        settings: The head's.
        sample: Gives a tile of the raster, see `DetectorSettings`.

    Raises:
        ModelUnsupportedError: its outputs are none that Kestrel knows; says what was found.
    """
    stated = _stated(definition, runner.outputs)
    are_numbers = bool(definition.options.get("numbered_classes"))
    is_open = stated is None or definition.input.is_assumed or are_numbers or stated.head in ("detr", "ssd")
    if stated is not None and not is_open:
        return FoundReading(stated, settings)
    trial, outputs = _tried(runner, definition, settings, sample)
    found = stated or _recognised(outputs, definition, trial.size, runner)
    found = replace(found, options={**found.options, **_stated_options(definition)})
    if are_numbers:
        n_classes = _counted(found, outputs, definition, trial.size, runner) if stated else found.n_classes
        settings = replace(settings, n_classes=min(n_classes or settings.n_classes, settings.n_classes))
        trial = replace(trial, settings=settings)
    names = Names(settings.n_classes, definition.classes[0].name, are_numbers)
    reading, notes = settle(found, outputs, names, trial.size)
    texts = _told(reading, notes, is_stated=stated is not None)
    if definition.input.is_assumed and runner.input.is_adaptable:
        texts.append(trial.adapt(reading, is_raster=sample is not None))
    return FoundReading(reading, settings, tuple(texts))


def _told(reading: Reading, notes: tuple[str, ...], *, is_stated: bool) -> list[str]:
    """Say how the outputs are read, as far as nobody stated it."""
    if is_stated:
        return [f"Assumed of the model: {'; '.join(notes)}."] if notes else []
    why = f" ({reading.why})" if reading.why else ""
    read = "; ".join([f"The model's outputs were read as '{reading.head}'{why}", *notes])
    return [f"{read}. The argument head overrules that."]


def _stated(definition: ModelDefinition, outputs: tuple[TensorInfo, ...]) -> Reading | None:
    head = str(definition.options.get("head", ""))
    if not head:
        return None
    return _with_roles(Reading(head, _stated_options(definition), len(definition.classes)), outputs)


def _stated_options(definition: ModelDefinition) -> dict[str, Any]:
    return {name: definition.options[name] for name in _OPTIONS if name in definition.options}


def _with_roles(reading: Reading, outputs: tuple[TensorInfo, ...]) -> Reading:
    """Find the outputs that a head reads.

    Raises:
        ModelUnsupportedError: the graph has not got them.
    """
    roles = dict(roles_of(outputs))
    by_axes = sorted(outputs, key=lambda item: len(item.shape or ()))
    if reading.head in ("boxes", "ssd", "detr") and "boxes" in roles:
        if reading.head == "detr":
            roles["logits"] = roles.get("logits") or roles.get("scores") or roles.get("labels", "")
        missing = {"boxes": (), "ssd": ("scores",), "detr": ("logits",)}[reading.head]
        if all(roles.get(role) for role in missing):
            is_masked = "masks" in roles and reading.head == "boxes"
            options = {**reading.options, **({"masks": True} if is_masked else {})}
            return replace(reading, roles=roles, options=options)
    tables = [item for item in by_axes if item.shape is None or len(item.shape) in (2, 3)]
    maps = [item for item in by_axes if item.shape is not None and len(item.shape) == 4]
    if reading.head not in ("boxes", "ssd") and len(tables) >= 1:
        if not reading.head.endswith("-seg"):
            return replace(reading, roles={"table": tables[0].name})
        if maps:
            return replace(reading, roles={"table": tables[0].name, "prototypes": maps[0].name})
    if reading.head == "ssd" and len(tables) == 2:
        boxes = next((item for item in tables if (item.shape or (0,))[-1] == 4), tables[0])
        scores = next(item for item in tables if item is not boxes)
        return replace(reading, roles={"boxes": boxes.name, "scores": scores.name})
    needed = {"boxes": "outputs named boxes and scores", "ssd": "table of boxes and table of scores"}.get(
        reading.head, "table of objects"
    )
    raise ModelUnsupportedError(
        f"The model has no {needed}, as the head '{reading.head}' asks for.",
        hint=f"Its outputs are {_listed(outputs)}.",
    )


def _listed(outputs: tuple[TensorInfo, ...]) -> str:
    return ", ".join(str(item) for item in outputs)


def _tried(
    runner: Runner, definition: ModelDefinition, settings: HeadSettings, sample: Sample | None
) -> tuple[_Trial, Outputs]:
    """Give a trial on a tile with something on it, where there is such a one, and what the graph gave for it."""
    for place in range(_PLACES if sample else 1):
        trial = _Trial(runner, definition, settings, _image(runner, definition, sample, place))
        outputs = trial.outputs()
        if all(array.size and np.any(array) for array in outputs.values()):
            break
    return trial, outputs


def _counted(stated: Reading, outputs: Outputs, definition: ModelDefinition, size: Size, runner: Runner) -> int | None:
    """Give the number of classes that the outputs have if they are read as stated."""
    found = [reading for reading in _readings(outputs, definition, size, runner) if reading.head == stated.head]
    table = outputs.get(stated.roles.get("table", ""))
    if found or table is None or table.ndim != 3:
        return found[0].n_classes if found else None
    # Nobody would have read it so: the shorter side holds the numbers.
    n_more = {"yolov5": 5, "yolox": 5, "yolov8": 4, "yolov8-obb": 5, "detr": 4}.get(stated.head)
    return None if n_more is None else max(min(table.shape[1:]) - n_more, 1)


def _readings(outputs: Outputs, definition: ModelDefinition, size: Size, runner: Runner) -> list[Reading]:
    types = {item.name: item.dtype for item in runner.outputs}
    given = tuple(TensorInfo(name, types[name], array.shape) for name, array in outputs.items())
    are_numbers = bool(definition.options.get("numbered_classes"))
    return readings(Question(given, None if are_numbers else len(definition.classes), size))


def _recognised(outputs: Outputs, definition: ModelDefinition, size: Size, runner: Runner) -> Reading:
    found = _readings(outputs, definition, size, runner)
    if not found:
        given = tuple(replace(item, shape=outputs[item.name].shape) for item in runner.outputs)
        raise ModelUnsupportedError(
            f"The model's outputs ({_listed(given)}) are none that Kestrel knows.",
            hint=f"Name the head in the definition, or with the argument head, where one fits: {', '.join(HEADS)}.",
        )
    return choose(found, outputs, size)


def _image(runner: Runner, definition: ModelDefinition, sample: Sample | None, place: int) -> NDArray[Any]:
    if sample is not None:
        return sample(runner.input.size, place)
    side = min(max(definition.tile.size // 32, 1) * 32, _TRIAL_SIDE)
    height, width = runner.input.size or (side, side)
    noise: NDArray[Any] = np.random.default_rng(0).integers(0, 256, (len(definition.input.bands), height, width))
    return noise.astype(np.uint8)


@dataclass
class _Trial:
    """One image, run as often as there are questions."""

    runner: Runner
    definition: ModelDefinition
    settings: HeadSettings
    image: NDArray[Any]

    @property
    def size(self) -> Size:
        return (self.image.shape[1], self.image.shape[2])

    def outputs(self) -> Outputs:
        return self.runner.run(self.image[None])

    def adapt(self, reading: Reading, *, is_raster: bool) -> str:
        """Take the scaling with which most is found, the usual one where that makes no difference; say which."""
        found: list[tuple[float, int, str, InputSpec, bool]] = []
        for name, spec, is_reversed in _scalings(self.definition.input, reading.head):
            self.runner.input.adapt(spec, is_reversed=is_reversed)
            objects = self._objects(reading)
            found.append((float(objects.scores.sum()), len(objects), name, spec, is_reversed))
            if not is_raster:
                break
        best = max(found, key=lambda item: item[0])
        chosen = best if best[0] > _CLEARLY * found[0][0] else found[0]
        self.runner.input.adapt(chosen[3], is_reversed=chosen[4])
        tried = ", ".join(f"{name}: {n}" for _, n, name, _, _ in found)
        seen = f" Objects that a tile of the raster shows with each: {tried}." if len(found) > 1 else ""
        return (
            f"The model does not say what pixels it wants; taken was {chosen[2]}.{seen} The arguments scale and "
            "input_order overrule that."
        )

    def _objects(self, reading: Reading) -> Detections:
        head = make_head(reading, replace(self.settings, threshold=_EVIDENCE))
        try:
            outputs = by_role(self.outputs(), reading, head.roles)
            (found,) = head.read(outputs, 1, self.size)
        except InferenceError:
            return Detections(*_NOTHING)
        is_sound = np.asarray(
            np.isfinite(found.boxes).all(axis=1) & (found.boxes[:, 2:] > found.boxes[:, :2]).all(axis=1)
        )
        strongest = np.argsort(-found.scores[is_sound], kind="stable")[: 20 * _MOST_JUDGED]
        kept = suppress_once(found.take(is_sound).take(strongest), self.settings.max_overlap)
        return kept.take(np.argsort(-kept.scores, kind="stable")[:_MOST_JUDGED])


_NOTHING: tuple[Any, ...] = (
    np.empty((0, 4)), np.empty(0, np.float32), np.empty(0, np.int32), np.empty((0, 2)),
)  # fmt: skip
_USUAL: Mapping[str, tuple[str, ...]] = {
    "yolox": ("0-255 bgr", "0-255 rgb", "0-1 rgb", "imagenet rgb"),
    "detr": ("imagenet rgb", "0-1 rgb", "0-255 rgb"),
    "ssd": ("-1-1 rgb", "0-1 rgb", "0-255 rgb", "imagenet rgb"),
}
_OTHERWISE = ("0-1 rgb", "0-255 rgb", "imagenet rgb", "-1-1 rgb")


def _scalings(spec: InputSpec, head: str) -> Iterator[tuple[str, InputSpec, bool]]:
    """Give name, scaling and whether bands are reversed, of the ways in which models of a kind want their pixels."""
    for name in _USUAL.get(head, _OTHERWISE):
        scale, order = name.split(" ")
        if len(spec.bands) == 3:
            yield name, scaled(spec, scale), order == "bgr"
        elif order == "rgb" and scale != "imagenet":
            yield scale, scaled(spec, scale), False
