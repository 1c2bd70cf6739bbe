from __future__ import annotations

from typing import Any

import pytest

from kestrel.inference.models.definition import InputSpec, ModelClass, ModelDefinition
from kestrel.inference.models.overrides import overruled, scaled

RGB, BGR = ("red", "green", "blue"), ("blue", "green", "red")


def definition(**spec: Any) -> ModelDefinition:
    return ModelDefinition(
        "m", "onnx", "m.onnx", (ModelClass(1, "a", (0, 0, 0)),), options={"head": "yolov8"}, input=InputSpec(**spec)
    )


@pytest.mark.parametrize(
    ("bands", "order", "expected"),
    [
        (RGB, "rgb", RGB), (RGB, "bgr", BGR), (BGR, "rgb", RGB), (BGR, "bgr", BGR),
        ((0, 1, 2), "rgb", (0, 1, 2)), ((0, 1, 2), "bgr", (2, 1, 0)), ((2, 1, 0), "rgb", (0, 1, 2)),
        ((3, 2, 1), "rgb", (3, 2, 1)), ((3, 2, 1), "bgr", (1, 2, 3)), (("B4", "B3", "B2"), "rgb", ("B4", "B3", "B2")),
        ((0,), "bgr", (0,)),
    ],
)  # fmt: skip
def test_the_order_is_that_of_the_colours_not_of_numbers_or_letters(
    bands: tuple[Any, ...], order: str, expected: tuple[Any, ...]
) -> None:
    assert expected == overruled(definition(bands=bands), {"input_order": order}).input.bands


@pytest.mark.parametrize(("scale", "expected"), [("0-1", (0.0, 1.0)), ("0-255", (0.0, 255.0)), ("-1-1", (-1.0, 1.0))])
def test_a_scale_says_what_0_and_255_become(scale: str, expected: tuple[float, float]) -> None:
    spec = scaled(InputSpec(is_assumed=True), scale)
    ends = tuple((value * spec.scale[0] - spec.mean[0]) / spec.std[0] for value in (0, 255))
    assert (expected, False) == (pytest.approx(ends), spec.is_assumed)


def test_what_is_automatic_overrules_nothing() -> None:
    same = definition()
    assert same == overruled(same, {"head": "automatic", "scale": "automatic", "input_order": "automatic"})


def test_another_head_forgets_what_the_old_one_said_of_boxes() -> None:
    changed = overruled(definition(), {"head": "yolov8-seg"})
    assert ({"head": "yolov8-seg"}, "polygon") == (changed.options, changed.geometry)
