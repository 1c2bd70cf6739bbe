"""Does a raster suit a model: the rules, as plain arithmetic that QGIS and the worker share.

Whoever asks brings what needs a library: the raster's place on the globe, and the unit of a coordinate reference
system.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .definition import CellSizeRange, InputSpec, ModelDefinition

TOLERANCE = 1.25
"""Factor beyond the training range that a network bears without much loss."""
METRES_A_DEGREE = 111_195.0
"""On a sphere of the Earth's mean radius; the ellipsoid differs by less than one per cent."""

_WEB_MERCATOR = (3857, 3785, 900913, 102100, 102113)
_STEPS = 4.0
"""Standard deviations from the mean in which nearly all pixels of the training images lie."""
_OUTSIDE = 0.5
"""Share of the training range by which pixels may lie beyond it."""
_LEAST_USED = 0.05
"""Share of the training range below which a raster's pixels look all the same to the network."""

# -- Cell size ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unit:
    """The unit of a coordinate reference system: metres in one, or a degree."""

    metres: float = 1.0
    is_degree: bool = False


@dataclass(frozen=True)
class CellSizeProblem:
    """A raster that is too fine or too coarse for the model.

    Units/space: actual, low and high in metres on the ground; fitting in the raster's own units.
    """

    actual: float
    low: float
    high: float
    fitting: float

    @property
    def text(self) -> str:
        """Say it, with the remedy."""
        trained = f"{self.low:.2g} to {self.high:.2g} m" if f"{self.low:.2g}" != f"{self.high:.2g}" else (
            f"{self.low:.2g} m")  # fmt: skip
        return (
            f"The pixels are {self.actual:.2g} m wide on the ground, and the model was trained on {trained}: "
            f"it will find little. Set CELL_SIZE to {self.fitting:.2g}."
        )


def ground_side(longitudes: Sequence[float], latitudes: Sequence[float]) -> float | None:
    """Give the side of a pixel on the ground in metres; None where its place is not known.

    Measured on the globe, since map units are no measure: a metre of Web Mercator is half a metre at 60 degrees.

    Args:
        longitudes: Of three corners of the pixel: one, its neighbour along the row, its neighbour along the column.
        latitudes: Of the same.
    """
    shrink = math.cos(math.radians(latitudes[0]))
    sides = [
        math.hypot((longitudes[i] - longitudes[0]) * shrink, latitudes[i] - latitudes[0]) * METRES_A_DEGREE
        for i in (1, 2)
    ]
    size = math.sqrt(sides[0] * sides[1])
    return size if 0 < size < math.inf else None


def range_in_metres(cell_size: CellSizeRange, unit: Unit, latitude: float) -> tuple[float, float]:
    """Give the ground size of the training pixels in metres.

    Degrees, and the metres of Web Mercator, depend on where the training images lay, which no package tells: they are
    taken at the raster's latitude, as a model is mostly used where it was trained.
    """
    shrink = max(math.cos(math.radians(latitude)), 1e-6)
    if unit.is_degree:
        factor = METRES_A_DEGREE * math.sqrt(shrink)  # of a pixel's two sides only one shrinks
    else:
        factor = unit.metres * (shrink if cell_size.wkid in _WEB_MERCATOR else 1.0)
    return cell_size.minimum * factor, cell_size.maximum * factor


def cell_size_problem(low: float, high: float, actual: float, side: float) -> CellSizeProblem | None:
    """Compare a raster's pixels with the training range; None where they suit.

    Units/space: low, high and actual in metres on the ground; side is the same pixel's in the raster's units.
    """
    if low / TOLERANCE <= actual <= high * TOLERANCE:
        return None
    return CellSizeProblem(actual, low, high, math.sqrt(low * high) / actual * side)


# -- Bands -------------------------------------------------------------------------------------------------------------

_SYNONYMS = {
    "red": "red r redband",
    "green": "green g greenband",
    "blue": "blue b blueband",
    "nearinfrared": "nearinfrared nir nir1 infrared nearir nearinfraredband nirband nir08 nearinfrared1",
    "rededge": "rededge rededge1 vegetationrededge",
    "swir1": "swir1 shortwaveinfrared1 shortwaveinfrared swir swir16",
    "swir2": "swir2 shortwaveinfrared2 swir22",
    "coastal": "coastal coastalblue coastalaerosol",
    "yellow": "yellow",
    "panchromatic": "panchromatic pan",
    "thermal": "thermal thermalinfrared tir tir1 lwir",
    "vv": "vv",
    "vh": "vh",
}
_MEANING = {word: meaning for meaning, words in _SYNONYMS.items() for word in words.split()}


_COLORS = ("red", "green", "blue")


def band_meaning(name: str) -> str:
    """Give what a band's name says that it shows, in one word for all spellings; empty where it says nothing."""
    return _MEANING.get("".join(character for character in name.lower() if character.isalnum()), "")


def find_band(name: str, names: Sequence[str]) -> int | None:
    """Give the place of the band that a model names: the same name, or the only one that means the same.

    Args:
        name: The model's.
        names: The raster's.
    """
    lower = [other.lower() for other in names]
    if name.lower() in lower:
        return lower.index(name.lower())
    meaning = band_meaning(name)
    alike = [place for place, other in enumerate(names) if meaning and band_meaning(other) == meaning]
    return alike[0] if len(alike) == 1 else None


def band_warnings(definition: ModelDefinition, names: Sequence[str]) -> list[str]:
    """Tell which of the raster's bands do not show what the model was trained on, as far as both have names."""
    wanted = expected_band_names(definition)
    # GDAL calls the first three bands of most files red, green and blue, whatever they show: these names count only
    # where the raster has all that the model wants, at other places.
    is_named = {band_meaning(name) for name in wanted} - {""} <= {band_meaning(name) for name in names}
    wrong = []
    for band, expected in zip(definition.input.bands, wanted):
        found = names[band] if isinstance(band, int) and band < len(names) else ""
        meanings = band_meaning(expected), band_meaning(found)
        if all(meanings) and meanings[0] != meanings[1] and (is_named or meanings[1] not in _COLORS):
            wrong.append(f"band {int(band) + 1} is '{found}' and should be '{expected}'")
    if not wrong:
        return []
    return [
        f"The raster's bands are not those of the model: {', '.join(wrong)}. Put them in the model's order first, with "
        "Raster > Miscellaneous > Build Virtual Raster."
    ]


def expected_band_names(definition: ModelDefinition) -> list[str]:
    """Give what the model's bands are called, "" where the package does not say."""
    bands = definition.input.bands
    stated = definition.facts.get("band_names")
    names = [str(name) for name in stated] if isinstance(stated, (list, tuple)) else []
    if len(names) != len(bands):
        is_rgb = str(definition.facts.get("imagery", "")).upper() == "RGB" and len(bands) == 3
        names = ["Red", "Green", "Blue"] if is_rgb else [""] * len(bands)
    return [band if isinstance(band, str) else name for band, name in zip(bands, names)]


# -- Values ------------------------------------------------------------------------------------------------------------


def expected_values(spec: InputSpec) -> tuple[float, float] | None:
    """Give the pixel values that the model was made for, None where its definition does not tell."""
    if spec.data_range is not None:
        return spec.data_range
    if all(abs(scale * 255 - 1) < 1e-6 for scale in spec.scale):
        return 0.0, 255.0
    if set(spec.scale) == {1.0} and set(spec.mean) == {0.0} and set(spec.std) == {1.0}:
        return None
    n_bands = len(spec.bands)
    scale, mean, std = (_per_band(values, n_bands) for values in (spec.scale, spec.mean, spec.std))
    if set(std) == {1.0}:
        ends = [(m / s, (m + 1) / s) for s, m in zip(scale, mean) if s]
    else:
        ends = [((m - _STEPS * d) / s, (m + _STEPS * d) / s) for s, m, d in zip(scale, mean, std) if s]
    values = [value for end in ends for value in end]
    return (min(values), max(values)) if values else None


def _per_band(values: Sequence[float], n_bands: int) -> list[float]:
    return list(values) * n_bands if len(values) == 1 else list(values)


def value_warnings(definition: ModelDefinition, dtype: str, found: tuple[float, float] | None) -> list[str]:
    """Tell where the raster's values are not of the size that the model was made for.

    Args:
        definition: The model.
        dtype: The raster's type, as numpy calls it.
        found: Lowest and highest value of a sample of its pixels; None: not looked at.
    """
    expected = expected_values(definition.input)
    if expected is None:
        return []
    low, high = expected
    wanted = f"the model was made for values from {low:.4g} to {high:.4g}"
    if found is None:
        if (low, high) == (0, 255) and dtype not in ("uint8", "int8", ""):
            return [f"The raster holds {_described(dtype)}, and {wanted}. {_remedy(low, high)}"]
        return []
    span = high - low
    is_beyond = found[1] > high + _OUTSIDE * span or found[0] < low - _OUTSIDE * span
    # A dark photograph is one; 16-bit values that nobody scaled, or fractions, are not.
    is_flat = found[1] - found[0] < _LEAST_USED * span and (dtype != "uint8" or span > _OF_8_BIT)
    if not is_beyond and not is_flat:
        return []
    seen = f"The raster's values go from {found[0]:.4g} to {found[1]:.4g}, and {wanted}"
    return [f"{seen}: it will find little. {_remedy(low, high)}"]


_OF_8_BIT = 1000.0


def _described(dtype: str) -> str:
    return {"uint16": "16-bit values", "int16": "16-bit values", "float32": "fractions", "float64": "fractions"}.get(
        dtype, f"values of the type {dtype}"
    )


def _remedy(low: float, high: float) -> str:
    if (low, high) == (0, 255):
        return "Convert it to 8 bits first, with Raster > Conversion > Translate and -ot Byte -scale."
    return "Choose imagery of the kind that the model was trained on, or scale it with Raster > Raster Calculator."
