"""What arcgis.learn models want to see: bands, normalisation, tiles and ground sizes of an .emd.

Normalisation is folded into one step, (pixel * scale - mean) / std, whatever part of it Esri leaves to the network:
with statistics s = (pixel - minimum) / (maximum - minimum) and n = (s - scaled mean) / scaled std become
scale = 1 / (maximum - minimum), mean = minimum * scale + scaled mean, std = scaled std.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Union

from ..errors import ModelIncompatibleError, ModelPackageError, ModelUnsupportedError
from .definition import CellSizeRange, InputSpec
from .esri_files import EmdReader

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_MAX_SIDE = 8192
_MAX_BANDS = 1000

Bands = tuple[Union[int, str], ...]


def extract_bands(emd: EmdReader) -> Bands:
    """Give the bands in the order of the network's channels; numbers that were written as text become numbers.

    Raises:
        ModelPackageError: ExtractBands is no list of numbers or names.
    """
    stated = emd.data.get("ExtractBands")
    if stated is None:
        return tuple(range(_n_training_bands(emd)))
    if isinstance(stated, list):
        emd.data["ExtractBands"] = [_number_of(band) for band in stated]
    return emd.bands("ExtractBands")


def _number_of(band: Any) -> Any:
    if isinstance(band, float) and band.is_integer():
        return int(band)
    is_number = isinstance(band, str) and band.strip().isdigit() and len(band) < 6
    return int(band) if is_number else band.strip() if isinstance(band, str) else band


def _n_training_bands(emd: EmdReader) -> int:
    """Give the number of bands of a model that does not say which it takes: all of a multispectral one, else three."""
    if emd.data.get("IsMultispectral") is not True:
        return 3
    lists = [emd.data.get("Bands"), *_lists(emd.data.get("NormalizationStats"))]
    lengths = [len(entry) for entry in lists if isinstance(entry, list) and 0 < len(entry) <= _MAX_BANDS]
    return lengths[0] if lengths else 3


def _lists(stats: Any) -> list[Any]:
    return list(stats.values()) if isinstance(stats, Mapping) else []


def band_names(emd: EmdReader, bands: Bands) -> list[str]:
    """Give the names of the extracted bands as far as the package tells them; none where it tells none."""
    names = emd.data.get("Bands")
    known = [str(name) for name in names] if isinstance(names, list) else []
    found = [band if isinstance(band, str) else known[band] if band < len(known) else "" for band in bands]
    return found if any(found) else []


def arcgis_input(emd: EmdReader, family: str) -> InputSpec:
    """Give the complete normalisation of an arcgis.learn model.

    Args:
        emd: The definition.
        family: The model's class.

    Raises:
        ModelPackageError: bands or statistics are not what they should be.
        ModelIncompatibleError: there are no statistics for bands that need them.
    """
    means: tuple[float, ...] = IMAGENET_MEAN
    stds: tuple[float, ...] = IMAGENET_STD
    bands = extract_bands(emd)
    stats = _Statistics.of(emd, bands)
    if stats is None:
        return InputSpec(bands, *_of_8_bit(bands, is_plain=family == "YOLOv3"), stated_range(emd))
    lows, highs = stats.values("band_min_values"), stats.values("band_max_values")
    scale = tuple(1 / (high - low) for low, high in zip(lows, highs))
    if family != "MaskRCNN" or _has_own_statistics(emd, bands):
        means, stds = stats.values("scaled_mean_values"), stats.values("scaled_std_values")
    mean = tuple(low * factor + offset for low, factor, offset in zip(lows, scale, means))
    return InputSpec(bands, scale, mean, stds, stated_range(emd))


def copy_input(spec: InputSpec, emd: EmdReader, family: str) -> InputSpec:
    """Give the normalisation of an exported copy of a network: what its own transform does is in the copy.

    A MaskRCNN's copy takes pixels of 0 to 1 and subtracts means itself; so does a FasterRCNN's without statistics.
    """
    stats = _Statistics.of(emd, spec.bands)
    if family not in ("MaskRCNN", "FasterRCNN") or (family == "FasterRCNN" and stats is not None):
        return spec
    if stats is None:
        return replace(spec, scale=(1 / 255,), mean=(0.0,), std=(1.0,))
    lows, highs = stats.values("band_min_values"), stats.values("band_max_values")
    scale = tuple(1 / (high - low) for low, high in zip(lows, highs))
    return replace(spec, scale=scale, mean=tuple(low * f for low, f in zip(lows, scale)), std=(1.0,))


def _has_own_statistics(emd: EmdReader, bands: Bands) -> bool:
    """Tell whether a MaskRCNN takes mean and deviation of its images instead of ImageNet's."""
    is_multispectral = emd.data.get("IsMultispectral") is True or len(bands) != len(IMAGENET_MEAN)
    return is_multispectral or emd.data.get("IsImageNetNormalization") is False


def _of_8_bit(bands: Bands, *, is_plain: bool) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Give scale, mean and std of a model that was trained on ordinary photographs."""
    if is_plain:
        return (1 / 255,), (0.0,), (1.0,)
    if len(bands) != len(IMAGENET_MEAN):
        raise ModelIncompatibleError(
            f"The model takes {len(bands)} bands, and its definition has no NormalizationStats that tell how their "
            "values are scaled.",
            hint="Use the .emd that the training wrote: it holds NormalizationStats for all bands.",
        )
    return (1 / 255,), IMAGENET_MEAN, IMAGENET_STD


def stated_range(emd: EmdReader) -> tuple[float, float] | None:
    """Give the lowest and the highest value that the model expects; None where the definition does not say."""
    return emd.data_range("DataRange") if emd.data.get("DataRange") else None


@dataclass(frozen=True)
class _Statistics:
    """NormalizationStats: lists over all bands of the training images, of which the extracted ones count."""

    lists: Mapping[str, Any]
    bands: Bands
    places: tuple[int, ...]

    @classmethod
    def of(cls, emd: EmdReader, bands: Bands) -> _Statistics | None:
        """Give them, or None where the definition holds none.

        Raises:
            ModelPackageError: they are no object of lists.
        """
        if not any(value is not None for value in _lists(emd.data.get("NormalizationStats", {}))):
            emd.child("NormalizationStats")  # refuses what is no object
            return None
        lists = emd.child("NormalizationStats").data
        length = max((len(entry) for entry in lists.values() if isinstance(entry, list)), default=0)
        return cls(lists, bands, _places(emd, bands, length))

    def values(self, key: str) -> tuple[float, ...]:
        """Give a list's numbers for the extracted bands.

        Raises:
            ModelPackageError: there is no number for one of them, or one that cannot be divided by.
        """
        entries = self.lists.get(key)
        found = tuple(self._value(key, entries, place) for place in self.places)
        if key == "scaled_std_values":
            self._check(found, key, "is zero")
        if key == "band_max_values":
            lows = self.values("band_min_values")
            self._check([high - low for low, high in zip(lows, found)], key, "is not above band_min_values")
        return found

    def _value(self, key: str, entries: Any, place: int) -> float:
        value = entries[place] if isinstance(entries, list) and place < len(entries) else None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ModelPackageError(
                f"The model definition's NormalizationStats hold no {key} for band {place}, which the model takes.",
                hint="Use the .emd that the training wrote.",
            )
        return float(value)

    def _check(self, values: Sequence[float], key: str, fault: str) -> None:
        for place, value in zip(self.places, values):
            if not value > 0 or not math.isfinite(value) or not math.isfinite(1 / value):
                raise ModelPackageError(
                    f"In the model definition's NormalizationStats, {key} of band {place} {fault}.",
                    hint="The band had the same value everywhere in training: train again without it.",
                )


def _places(emd: EmdReader, bands: Bands, length: int) -> tuple[int, ...]:
    """Give where in the statistics the extracted bands stand."""
    names = [str(name).lower() for name in emd.data.get("Bands", [])] if isinstance(emd.data.get("Bands"), list) else []
    places = [
        band if isinstance(band, int) else names.index(band.lower()) if band.lower() in names else None
        for band in bands
    ]
    known = tuple(place for place in places if place is not None)
    if len(known) == len(bands) and all(place < length for place in known):
        return known
    if length == len(bands):
        if known:
            emd.note(
                "The definition's NormalizationStats cover the extracted bands only; they were taken in that order."
            )
        return tuple(range(length))
    if len(known) < len(bands):
        raise ModelPackageError(
            f"The model definition extracts bands by name, and 'Bands' does not say which of the {length} entries of "
            "NormalizationStats belongs to each.",
            hint='Write the bands\' numbers into the .emd: "ExtractBands": [0, 1, 2].',
        )
    return known


SERVICES = {"SentinelService": "sentinel", "LandsatService": "landsat"}
"""What `InputSpec.service` is for a step of this name."""


def without_radiometric_offset(spec: InputSpec, offset: float = 1000.0) -> InputSpec:
    """Give the normalisation of pixels from which an offset is subtracted first: Sentinel-2's since January 2022."""
    pairs = [(spec.scale[index % len(spec.scale)], spec.mean[index % len(spec.mean)])
             for index in range(max(len(spec.scale), len(spec.mean)))]  # fmt: skip
    return replace(spec, mean=tuple(mean + offset * scale for scale, mean in pairs))


def preprocessing(emd: EmdReader) -> tuple[str, ...]:
    """Give the names of the steps that Esri's host puts before the network; one that is not known is told."""
    stated = emd.data.get("Preprocessing")
    names = tuple(name for name in (stated if isinstance(stated, list) else [stated]) if isinstance(name, str))
    for name in names:
        if name not in SERVICES:
            emd.note(
                f"The definition asks for a preprocessing '{name[:60]}' that Kestrel does not know; it is left out."
            )
    return names


def tile_side(emd: EmdReader, default: int) -> int:
    """Give the side of the model's tiles; the default where the definition does not tell it.

    Raises:
        ModelPackageError: not a size.
        ModelUnsupportedError: tiles that are not square.
    """
    height = emd.integer("ImageHeight", None, minimum=8, maximum=_MAX_SIDE)
    width = emd.integer("ImageWidth", None, minimum=8, maximum=_MAX_SIDE)
    if height is not None and width is not None and height != width:
        raise ModelUnsupportedError(
            f"The model wants tiles of {width} x {height} pixels; Kestrel cuts square tiles.",
            hint="Train the model on square chips, or export it with square ones.",
        )
    return height or width or default


_FOOT_UNITS = ("foot", "feet", "ft", "yard", "mile", "inch")


def cell_size(emd: EmdReader) -> CellSizeRange | None:
    """Give the ground size of the training images' pixels, or None where the definition does not tell it."""
    low, high = emd.data.get("MinCellSize"), emd.data.get("MaxCellSize")
    values = [_side(value) for value in (low, high) if value is not None]
    if len(values) != 2 or None in values:
        return None
    sides = [value for value in values if value is not None]
    reference = low.get("spatialReference") if isinstance(low, Mapping) else None
    wkid = _wkid(reference)
    if wkid is None and _is_unclear(reference):
        return None
    return CellSizeRange(min(sides), max(sides), wkid)


def _side(value: Any) -> float | None:
    side = value.get("x", value.get("y")) if isinstance(value, Mapping) else None
    is_number = isinstance(side, (int, float)) and not isinstance(side, bool)
    return float(side) if is_number and 0 < side < math.inf else None  # type: ignore[arg-type, operator]


def _wkid(reference: Any) -> int | None:
    if not isinstance(reference, Mapping):
        return None
    for key in ("latestWkid", "wkid"):
        number = reference.get(key)
        if isinstance(number, int) and not isinstance(number, bool) and 0 < number < 2**31:
            return number
    wkt = str(reference.get("wkt2") or reference.get("wkt") or "").strip().upper()
    return 4326 if wkt.startswith(("GEOGCS", "GEOGCRS", "GEODCRS")) else None


def _is_unclear(reference: Any) -> bool:
    """Tell whether a projected reference counts in something else than metres."""
    wkt = str(reference.get("wkt2") or reference.get("wkt") or "") if isinstance(reference, Mapping) else ""
    return any(unit in wkt.rpartition("UNIT")[2].lower() for unit in _FOOT_UNITS)
