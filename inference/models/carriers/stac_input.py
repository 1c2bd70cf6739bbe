"""What a STAC item says of a model's input: bands, tile, scaling of values, size of pixels.

Two spellings of the scaling are read: `value_scaling` (MLM 1.3 and later), a list of steps, one for each band or one
for all; and `norm_type` with `statistics` (1.0 to 1.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import ModelPackageError, ModelUnsupportedError
from ..definition import Reader
from ..fit_rules import band_meaning

_CHANNEL, _HEIGHT, _WIDTH = ("channel", "channels", "c", "bands", "band"), ("height", "h", "y"), ("width", "w", "x")
_BATCH = ("batch", "b", "n")
_MOST_BANDS = 1000
_RESIZES = "interpolation-"


class ItemReader(Reader):
    """Typed access to a part of an item; its errors name the item's member."""

    def refuse(self, key: str, expected: str) -> ModelPackageError:
        """Give the error for a member that is not what was expected."""
        found = "is missing" if key not in self.data else f"is {str(self.data[key])[:200]!r}"
        return ModelPackageError(f"The STAC item's member '{self.where}.{key}' {found}; expected {expected}.")

    def child(self, key: str) -> ItemReader:
        """Give the object below a member; an absent one is empty."""
        value = self.data.get(key, {})
        if not isinstance(value, Mapping):
            raise self.refuse(key, "an object")
        return ItemReader(value, f"{self.where}.{key}")

    def objects(self, key: str) -> list[ItemReader]:
        """Give a list of objects; none where it is absent."""
        value = self.data.get(key, [])
        if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
            raise self.refuse(key, "a list of objects")
        return [ItemReader(entry, f"{self.where}.{key}[{index}]") for index, entry in enumerate(value)]


def words(value: Any) -> list[str]:
    """Give a member that should be a list of texts, as far as it is one; a single text counts too."""
    return [str(entry) for entry in (value if isinstance(value, list) else [value]) if entry is not None]


def model_input(properties: ItemReader, item: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Give the definition's members `input`, `tile` and `cell_size`.

    Raises:
        ModelPackageError: a member is not what it should be.
        ModelUnsupportedError: an input that Kestrel cannot give.
    """
    inputs = properties.objects("mlm:input")
    if len(inputs) != 1:
        raise ModelUnsupportedError(
            f"The STAC item's model takes {len(inputs)} inputs ('mlm:input'); Kestrel gives it one image.",
            hint="Export a model that takes one image.",
        )
    (spec,) = inputs
    known = _known_bands(item)
    n_channels, side = _shape(spec.child("input"))
    bands = _bands(spec, known, n_channels, notes)
    is_of_bytes = spec.child("input").data.get("data_type") == "uint8"
    found: dict[str, Any] = {"data_range": [0, 255]} if is_of_bytes else {}
    found.update(_scaling(spec, len(bands), known, notes))
    resize = spec.data.get("resize_type")
    if isinstance(resize, str) and resize.startswith(_RESIZES):
        notes.append("The model was trained on resized images: it may want another cell size than the item says.")
    tile = {"size": side, "variable": False} if side else {}
    return {"input": {"bands": bands, **found}, "tile": tile, "cell_size": _cell_size(properties, known, item)}


def _shape(structure: ItemReader) -> tuple[int | None, int | None]:
    """Give the number of channels, and the side of the images where it is fixed."""
    if not structure.data:
        return None, None
    shape, order = structure.data.get("shape"), structure.data.get("dim_order")
    if not isinstance(shape, list) or not all(type(size) is int and size >= -1 for size in shape):
        raise structure.refuse("shape", "a list of whole numbers, -1 for an axis of any length")
    if not isinstance(order, list) or len(order) != len(shape):
        raise structure.refuse("dim_order", f"the names of the {len(shape)} axes of 'shape'")
    names = [str(name).lower() for name in order]
    places = [_place(names, words) for words in (_BATCH, _CHANNEL, _HEIGHT, _WIDTH)]
    if places != [0, 1, 2, 3] or len(shape) != len(places):
        raise ModelUnsupportedError(
            f"The STAC item's model takes {', '.join(names)[:120]}; Kestrel gives it batch, channel, height, width.",
            hint="Export it with this order of axes.",
        )
    _, channels, height, width = shape
    if height != width:
        raise ModelUnsupportedError(
            f"The STAC item's model takes images of {width} x {height} pixels; Kestrel cuts square tiles.",
            hint="Export it for square images.",
        )
    if height != -1 and height < _LEAST_SIDE:
        raise structure.refuse("shape", f"images of at least {_LEAST_SIDE} pixels")
    return (channels if channels > 0 else None), (height if height > 0 else None)


_LEAST_SIDE = 8


def _place(names: list[str], words: tuple[str, ...]) -> int | None:
    return next((place for place, name in enumerate(names) if name in words), None)


# -- Bands -------------------------------------------------------------------------------------------------------------


def _known_bands(item: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Gather what the item says of its bands, by name: in its properties and its assets, in all three spellings."""
    properties, assets = item.get("properties"), item.get("assets")
    places = [properties, *(assets.values() if isinstance(assets, Mapping) else ())]
    known: dict[str, dict[str, Any]] = {}
    for place in places:
        for key in ("bands", "eo:bands", "raster:bands"):
            bands = place.get(key) if isinstance(place, Mapping) else None
            for band in (bands if isinstance(bands, list) else [])[:_MOST_BANDS]:
                if isinstance(band, Mapping) and isinstance(band.get("name"), str):
                    entry = known.setdefault(band["name"], {})
                    entry.update({name: value for name, value in band.items() if name not in entry})
    return known


def _bands(
    spec: ItemReader, known: Mapping[str, Mapping[str, Any]], n_channels: int | None, notes: list[str]
) -> list[int | str]:
    """Give the bands as a definition names them: by what they show, or where that is not said, by their places."""
    stated = spec.data.get("bands", [])
    if not isinstance(stated, list) or len(stated) > _MOST_BANDS:
        raise spec.refuse("bands", "a list of names, or of objects with a name")
    names = [_band_name(spec, band) for band in stated]
    if not names:
        count = n_channels or 3
        if count > _MOST_BANDS:
            raise ModelUnsupportedError(
                f"The STAC item's model takes {count} channels; Kestrel feeds at most {_MOST_BANDS}.",
                hint="Correct the shape in 'mlm:input'.",
            )
        notes.append(f"The item names no bands: the raster's first {count} are taken, in their order.")
        return list(range(count))
    if n_channels not in (None, len(names)):
        raise ModelPackageError(
            f"The STAC item's model takes {n_channels} channels, and 'mlm:input' names {len(names)} bands.",
            hint="Correct the shape, or the list of bands.",
        )
    found = [_shown(name, known.get(name, {})) for name in names]
    if all(found):
        return list(found)
    notes.append(
        f"The item does not say what its bands {', '.join(names)[:120]} show: the raster's first {len(names)} are "
        "taken, in their order."
    )
    return list(range(len(names)))


def _band_name(spec: ItemReader, band: Any) -> str:
    name = band.get("name") if isinstance(band, Mapping) else band
    if not isinstance(name, str) or not name.strip():
        raise spec.refuse("bands", "a list of names, or of objects with a name")
    if isinstance(band, Mapping) and band.get("expression"):
        raise ModelUnsupportedError(
            f"The STAC item's model takes the band '{name[:80]}', which is computed of others; Kestrel computes none.",
            hint="Compute it with Raster > Raster Calculator, and describe the model with a definition of its own.",
        )
    return name.strip()


def _shown(name: str, band: Mapping[str, Any]) -> str:
    """Give the common name of a band, or its own one where that says what it shows; empty where nothing does."""
    common = str(band.get("common_name") or band.get("eo:common_name") or "").strip()
    return next((word for word in (common, name) if band_meaning(word)), "")


# -- Values ------------------------------------------------------------------------------------------------------------


def _scaling(
    spec: ItemReader, n_bands: int, known: Mapping[str, Mapping[str, Any]], notes: list[str]
) -> dict[str, Any]:
    steps = _steps(spec)
    if not steps or all(step.data.get("type") is None for step in steps):
        return {}
    if len(steps) not in (1, n_bands):
        raise ModelUnsupportedError(
            f"The STAC item's '{spec.where}' scales with {len(steps)} steps, and the model takes {n_bands} bands.",
            hint="State one step for each band, or one for all.",
        )
    kinds = {str(step.data.get("type")) for step in steps}
    if any(kind.startswith("clip") for kind in kinds):
        return _clipped(spec, steps, kinds)
    factors = [_factors(step) for step in steps]
    if kinds == {"z-score"} and _is_of_fractions(factors, known):
        notes.append("The item's mean and deviation are those of values from 0 to 1: pixels are divided by 255 first.")
        factors = [(1 / 255, mean, std) for _, mean, std in factors]
    scale, mean, std = ([factor[index] for factor in factors] for index in range(3))
    found: dict[str, Any] = {"scale": scale, "mean": mean, "std": std}
    ends = {(str(step.data.get("minimum")), str(step.data.get("maximum"))) for step in steps}
    if kinds == {"min-max"} and len(ends) == 1:
        found["data_range"] = [float(end) for end in next(iter(ends))]
    return found


def _steps(spec: ItemReader) -> list[ItemReader]:
    """Give the steps of both spellings in the later one."""
    stated = spec.data.get("value_scaling")
    if isinstance(stated, Mapping):
        return [ItemReader(stated, f"{spec.where}.value_scaling")]
    if stated is not None:
        return spec.objects("value_scaling")
    kind, limits = spec.data.get("norm_type"), spec.data.get("norm_clip")
    if kind is None:
        return []
    if kind == "clip" and isinstance(limits, list):
        return [ItemReader({"type": "clip-share", "maximum": limit}, f"{spec.where}.norm_clip") for limit in limits]
    statistics = spec.objects("statistics")
    if not statistics:
        raise spec.refuse("statistics", f"the numbers of the scaling '{str(kind)[:40]}'")
    by_channel = statistics if spec.data.get("norm_by_channel") is not False else statistics[:1]
    return [ItemReader({**entry.data, "type": kind}, entry.where) for entry in by_channel]


def _factors(step: ItemReader) -> tuple[float, float, float]:
    """Give scale, mean and std of one step: (pixel * scale - mean) / std."""
    kind = step.data.get("type")
    if kind is None:
        return 1.0, 0.0, 1.0
    if kind == "min-max":
        low, high = step.number("minimum"), step.number("maximum")
        if not low < high:
            raise step.refuse("minimum", "a number below 'maximum'")
        return 1 / (high - low), low / (high - low), 1.0
    if kind == "z-score":
        mean, std = step.number("mean"), step.number("stddev")
        if std == 0:
            raise step.refuse("stddev", "a number other than zero")
        return 1.0, mean, std
    if kind == "offset":
        return 1.0, step.number("value"), 1.0
    if kind == "scale":
        value = step.number("value")
        if value == 0:
            raise step.refuse("value", "a number other than zero")
        return 1.0, 0.0, value
    raise ModelUnsupportedError(
        f"The STAC item scales values with '{str(kind)[:60]}', which Kestrel does not compute.",
        hint="State it as min-max, z-score, offset or scale; or describe the model with a definition, see "
        "docs/definition.md.",
    )


def _clipped(spec: ItemReader, steps: list[ItemReader], kinds: set[str]) -> dict[str, Any]:
    """Give a scaling that cuts values off, as a stretch: of all bands to the same ends."""
    if kinds == {"clip-share"}:
        highs = [step.number("maximum") for step in steps]
        return {"stretch": {"from": "range", "minimum": 0, "maximum": highs, "to": [0, 1]}}
    ends = {(str(step.data.get("minimum")), str(step.data.get("maximum"))) for step in steps}
    if kinds == {"clip"} and len(ends) == 1:
        low, high = steps[0].number("minimum"), steps[0].number("maximum")
        stretch = {"from": "range", "minimum": low, "maximum": high, "to": [low, high]}
        return {"stretch": stretch, "data_range": [low, high]}
    raise ModelUnsupportedError(
        f"The STAC item's member '{spec.where}' cuts values off ({', '.join(sorted(kinds))[:80]}) in a way that "
        "Kestrel does not compute.",
        hint="State 'clip' with the same minimum and maximum for all bands; or describe the model with a definition, "
        "see docs/definition.md.",
    )


def _is_of_fractions(factors: list[tuple[float, float, float]], known: Mapping[str, Mapping[str, Any]]) -> bool:
    """Tell whether mean and deviation are those of 8-bit values divided by 255, as libraries for photographs do."""
    is_small = all(0 < mean < 1 and 0 < std < 1 for _, mean, std in factors)
    types = {str(band.get("data_type")) for band in known.values() if band.get("data_type")}
    return is_small and types <= {"uint8"}


# -- Size of pixels ----------------------------------------------------------------------------------------------------


def _cell_size(
    properties: ItemReader, known: Mapping[str, Mapping[str, Any]], item: Mapping[str, Any]
) -> dict[str, float] | None:
    """Give the range of ground sizes that the item states, in metres: its own, else those of its bands and assets."""
    assets = item.get("assets")
    places = [*known.values(), *(assets.values() if isinstance(assets, Mapping) else ())]
    keys = ("gsd", "spatial_resolution", "raster:spatial_resolution")
    inner = [place.get(key) for place in places if isinstance(place, Mapping) for key in keys]
    stated = [properties.data["gsd"]] if "gsd" in properties.data else inner
    numbers = [size for size in stated if isinstance(size, (int, float)) and not isinstance(size, bool)]
    sizes = [float(size) for size in numbers if size > 0]
    return {"min": min(sizes), "max": max(sizes)} if sizes else None
