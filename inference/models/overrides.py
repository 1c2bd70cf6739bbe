"""What a user's arguments overrule of a model's description: the head, and how pixels become the network's input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Union

from .arguments import AUTOMATIC
from .definition import InputSpec, ModelDefinition, geometry_of
from .fit_rules import band_meaning

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_OF_HEAD = ("box_format", "box_units", "scores", "background", "masks")


def scaled(spec: InputSpec, scale: str) -> InputSpec:
    """Give an input for which the values 0 to 255 become what one of arguments.SCALES says."""
    plain = replace(spec, scale=(1 / 255,), mean=(0.0,), std=(1.0,), is_assumed=False)
    if scale == "0-255":
        return replace(plain, scale=(1.0,))
    if scale == "-1-1":
        return replace(plain, scale=(1.0,), mean=(127.5,), std=(127.5,))
    return replace(plain, mean=_IMAGENET[0], std=_IMAGENET[1]) if scale == "imagenet" else plain


def _is_bgr(bands: Sequence[Union[int, str]]) -> bool:
    """Tell whether bands are blue, green, red; of numbers only those of a colour image tell it."""
    meanings = [band_meaning(band) if isinstance(band, str) else "" for band in bands]
    return meanings == ["blue", "green", "red"] or list(bands) == [2, 1, 0]


def overruled(definition: ModelDefinition, arguments: Mapping[str, Any]) -> ModelDefinition:
    """Give the definition as the arguments head, scale and input_order want it."""
    head, scale, order = (str(arguments.get(name) or AUTOMATIC) for name in ("head", "scale", "input_order"))
    if head not in (AUTOMATIC, definition.options.get("head", "")):
        options = {name: value for name, value in definition.options.items() if name not in _OF_HEAD}
        options["head"] = head
        definition = replace(definition, options=options, geometry=geometry_of(definition.kind, options))
    spec = definition.input
    if scale != AUTOMATIC and (scale != "imagenet" or len(spec.bands) == len(_IMAGENET[0])):
        spec = scaled(spec, scale)
    if order != AUTOMATIC and len(spec.bands) == 3:
        bands = spec.bands[::-1] if _is_bgr(spec.bands) != (order == "bgr") else spec.bands
        spec = replace(spec, bands=bands, is_assumed=False)
    return replace(definition, input=spec)
