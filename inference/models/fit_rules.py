"""Does a raster suit a model: the rules, as plain arithmetic that QGIS and the worker share.

Whoever asks brings what needs a library: the raster's place on the globe, and the unit of a coordinate reference
system.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .definition import CellSizeRange, InputSpec, ModelDefinition
from .stretch import BYTES, Stretch, per_band

TOLERANCE = 1.25
"""Factor beyond the training range that a network bears without much loss."""
METRES_A_DEGREE = 111_195.0
"""On a sphere of the Earth's mean radius; the ellipsoid differs by less than one per cent."""
_SEMI_MAJOR, _ECCENTRICITY_2 = 6_378_137.0, 0.00669437999014
"""Of the Earth's ellipsoid, in metres and squared. Source: WGS 84."""

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

    Measured on the ellipsoid, since map units are no measure: a metre of Web Mercator is half a metre at 60 degrees.

    Args:
        longitudes: Of three corners of the pixel: one, its neighbour along the row, its neighbour along the column.
        latitudes: Of the same.
    """
    if not all(math.isfinite(value) for value in (*longitudes, *latitudes)):
        return None
    east, north = _metres_a_degree(latitudes[0])
    sides = []
    for i in (1, 2):
        across = (longitudes[i] - longitudes[0] + 180) % 360 - 180  # neighbours may lie across the date line
        sides.append(math.hypot(across * east, (latitudes[i] - latitudes[0]) * north))
    size = math.sqrt(sides[0] * sides[1])
    return size if 0 < size < math.inf else None


def _metres_a_degree(latitude: float) -> tuple[float, float]:
    """Give the lengths of a degree to the east and to the north.

    Source: the radii of curvature of an ellipsoid, in the prime vertical and in the meridian.
    """
    phi = math.radians(latitude)
    flat = 1 - _ECCENTRICITY_2 * math.sin(phi) ** 2
    east = _SEMI_MAJOR / math.sqrt(flat) * math.cos(phi)
    north = _SEMI_MAJOR * (1 - _ECCENTRICITY_2) / flat**1.5
    return math.radians(east), math.radians(north)


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


@dataclass(frozen=True)
class Resolution:
    """The resolution at which a raster is read for a model that wants always the same.

    Units/space: actual and wanted in metres on the ground; cell_size in the raster's own units.
    """

    actual: float
    wanted: float
    cell_size: float

    @property
    def is_enlarged(self) -> bool:
        """Tell whether the raster is so much coarser that what the model looks for can hardly be in it."""
        return self.actual > MOST_ENLARGED * self.wanted

    @property
    def text(self) -> str:
        """Say what is done, and how to overrule it."""
        done = (
            f"The pixels are {self.actual:.3g} m wide on the ground, and the model wants {self.wanted:.3g} m: the "
            f"raster is read with a cell size of {self.cell_size:g}."
        )
        doubt = " That enlarges it so much that the model will find little." if self.is_enlarged else ""
        return f"{done}{doubt} CELL_SIZE overrules it."


MOST_ENLARGED = 4.0
"""Factor by which a coarse raster is enlarged without a warning."""
_SAME_RESOLUTION = 0.05
"""Share by which a raster's pixels may differ from the wanted ones and are taken as they are."""


def resolution(cell_size: CellSizeRange | None, actual: float, side: float) -> Resolution | None:
    """Give the resolution to read a raster at; None where its own pixels are right, or the model takes any.

    Args:
        cell_size: The model's.
        actual: Side of the raster's pixels in metres on the ground.
        side: The same in the raster's units.
    """
    wanted = cell_size.read_at if cell_size is not None else None
    if wanted is None or abs(actual / wanted - 1) <= _SAME_RESOLUTION:
        return None
    return Resolution(actual, wanted, float(f"{wanted / actual * side:.6g}"))


# -- Bands -------------------------------------------------------------------------------------------------------------

_SYNONYMS = {
    "red": "red r redband",
    "green": "green g greenband",
    "blue": "blue b blueband",
    "green05": "green05",
    "nearinfrared": "nearinfrared nir nir1 infrared nearir nearinfraredband nirband nir08 nearinfrared1",
    "rededge": "rededge rededge1 vegetationrededge rededge071",
    "rededge2": "rededge2 vegetationrededge2 rededge075",
    "rededge3": "rededge3 vegetationrededge3 rededge078",
    "watervapour": "watervapour watervapor nir09",
    "cirrus": "cirrus",
    "swir1": "swir1 shortwaveinfrared1 shortwaveinfrared swir swir16",
    "swir2": "swir2 shortwaveinfrared2 swir22",
    "coastal": "coastal coastalblue coastalaerosol",
    "yellow": "yellow",
    "panchromatic": "panchromatic pan",
    "thermal": "thermal thermalinfrared tir tir1 lwir",
    "thermal1": "thermal1 thermalinfrared1 tirs1 lwir11",
    "thermal2": "thermal2 thermalinfrared2 tirs2 tir2 lwir12",
    "vv": "vv",
    "vh": "vh",
}
"""Words for what a band shows, the common names of STAC among them."""
_MEANING = {word: meaning for meaning, words in _SYNONYMS.items() for word in words.split()}


_COLORS = ("red", "green", "blue")


def band_meaning(name: str) -> str:
    """Give what a band's name says that it shows, in one word for all spellings; empty where it says nothing."""
    return _MEANING.get("".join(character for character in name.lower() if character.isalnum()), "")


def find_band(name: str, names: Sequence[str]) -> int | None:
    """Give the place of the band that a model names: the same name, or the only one that means the same.

    Of a raster whose bands have no names that say anything the first three are red, green and blue.

    Args:
        name: The model's.
        names: The raster's.
    """
    lower = [other.lower() for other in names]
    if name.lower() in lower:
        return lower.index(name.lower())
    meaning = band_meaning(name)
    alike = [place for place, other in enumerate(names) if meaning and band_meaning(other) == meaning]
    if meaning in _COLORS and are_unnamed(names):
        return _COLORS.index(meaning)
    return alike[0] if len(alike) == 1 else None


def are_unnamed(names: Sequence[str]) -> bool:
    """Tell whether no band's name says what it shows; then the first three are red, green and blue by custom."""
    return len(names) >= len(_COLORS) and not any(band_meaning(name) for name in names)


NO_INKS = "Convert it to red, green and blue first, or choose another raster."


def alpha_hint(numbers: Sequence[int]) -> str:
    """Say how a band that is marked as transparency by mistake is read; empty where there is none.

    Args:
        numbers: 1-based numbers of the bands that are marked so.
    """
    if not numbers:
        return ""
    listed = " and ".join(str(number) for number in numbers)
    return (
        f" Band {listed} is marked as transparency (alpha); where it shows something else, near infrared for example, "
        "name all bands that the model gets in the parameter Bands (BANDS), this one among them."
    )


def are_inks(colors: Sequence[str]) -> str:
    """Say that bands are inks of print, in which bright is dark; empty where they are not.

    Args:
        colors: What GDAL calls the colours of the bands.
    """
    names = [color.lower() for color in colors]
    if not {"cyan", "magenta"} <= set(names):
        return ""
    return f"The raster's bands are inks for print ({', '.join(names)}), and models see colours of light."


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
    if not wrong and are_unnamed(names) and any(isinstance(band, str) for band in definition.input.bands):
        return ["The raster's bands have no names: the first three are taken for red, green and blue."]
    if not wrong:
        return []
    return [
        f"The raster's bands are not those of the model: {', '.join(wrong)}. Name them in the model's order in the "
        "parameter Bands (BANDS)."
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
    scale, mean, std = (per_band(values, n_bands) for values in (spec.scale, spec.mean, spec.std))
    if set(std) == {1.0}:
        ends = [(m / s, (m + 1) / s) for s, m in zip(scale, mean) if s]
    else:
        ends = [((m - _STEPS * d) / s, (m + _STEPS * d) / s) for s, m, d in zip(scale, mean, std) if s]
    values = [value for end in ends for value in end]
    return (min(values), max(values)) if values else None


def chosen_stretch(
    definition: ModelDefinition, argument: str, dtype: str, found: tuple[float, float] | None
) -> Stretch | None:
    """Give the stretch that a raster's values need for a model; None: they go in as they are.

    A model that states nothing and wants 0 to 255 gets any raster of other values stretched: with them as they are it
    would find nothing, and 16 bits are what most sensors deliver. Values of 8 bits in a wider type become 8 bits.

    Args:
        definition: The model.
        argument: The model argument `stretch`.
        dtype: The raster's type, as numpy calls it.
        found: Lowest and highest value of a sample of its pixels; None: not looked at.
    """
    stated = definition.input.stretch
    if argument == "none" or not knows_stretch(definition):
        return None
    if argument != "model":
        to = stated.to if stated is not None else definition.input.data_range or BYTES
        return stated if stated is not None and stated.source == argument else Stretch(argument, to=to)
    if stated is not None:
        return None if dtype == "uint8" and stated.is_to_bytes else stated
    if found is None or not depends_on_values(definition, argument, dtype):
        return None
    if "int" in dtype and BYTES[0] <= found[0] and found[1] <= BYTES[1]:
        return AS_BYTES
    return Stretch("percentiles") if _is_unlike(BYTES, dtype, found) else None


AS_BYTES = Stretch("range", minimum=BYTES[:1], maximum=BYTES[1:])
"""Whole numbers of 8 bits that stand in a wider type stay what they are; there is nothing to tell."""


def depends_on_values(definition: ModelDefinition, argument: str, dtype: str) -> bool:
    """Tell whether only the raster's values decide if they are stretched: nobody states it, and 8 bits are wanted."""
    is_open = argument == "model" and definition.input.stretch is None and knows_stretch(definition)
    return is_open and dtype != "uint8" and expected_values(definition.input) == BYTES


def knows_stretch(definition: ModelDefinition) -> bool:
    """Tell whether a model's values may be stretched: Esri's packages say themselves what becomes of values."""
    return definition.kind != "python" and any(spec.name == "stretch" for spec in definition.own_arguments)


def _is_unlike(expected: tuple[float, float], dtype: str, found: tuple[float, float]) -> bool:
    low, high = expected
    span = high - low
    is_beyond = found[1] > high + _OUTSIDE * span or found[0] < low - _OUTSIDE * span
    # A dark photograph is one; 16-bit values that nobody scaled, or fractions, are not.
    is_flat = found[1] - found[0] < _LEAST_USED * span and (dtype != "uint8" or span > _OF_8_BIT)
    return is_beyond or is_flat


def value_warnings(
    definition: ModelDefinition, dtype: str, found: tuple[float, float] | None, argument: str = "model"
) -> list[str]:
    """Tell where the raster's values are not of the size that the model was made for, and nothing is done about it.

    Args:
        definition: The model.
        dtype: The raster's type, as numpy calls it.
        found: Lowest and highest value of a sample of its pixels; None: not looked at.
        argument: The model argument `stretch`.
    """
    expected = expected_values(definition.input)
    if expected is None or chosen_stretch(definition, argument, dtype, found) is not None:
        return []
    low, high = expected
    wanted = f"the model was made for values from {low:.4g} to {high:.4g}"
    can_stretch = knows_stretch(definition)
    if found is None:
        if (low, high) == BYTES and dtype not in ("uint8", "int8", "") and not (can_stretch and argument == "model"):
            return [
                f"The raster holds {_described(dtype)}, and {wanted}. {_remedy(low, high, can_stretch=can_stretch)}"
            ]
        return []
    if not _is_unlike(expected, dtype, found):
        return []
    seen = f"The raster's values go from {found[0]:.4g} to {found[1]:.4g}, and {wanted}"
    return [f"{seen}: it will find little. {_remedy(low, high, can_stretch=can_stretch)}"]


_OF_8_BIT = 1000.0


def _described(dtype: str) -> str:
    return {"uint16": "16-bit values", "int16": "16-bit values", "float32": "fractions", "float64": "fractions"}.get(
        dtype, f"values of the type {dtype}"
    )


def _remedy(low: float, high: float, *, can_stretch: bool) -> str:
    if (low, high) == BYTES:
        if can_stretch:
            return "Set the model argument stretch to percentiles."
        return "Convert it to 8 bits first, with Raster > Conversion > Translate and -ot Byte -scale."
    return "Choose imagery of the kind that the model was trained on, or scale it with Raster > Raster Calculator."


def stretch_text(stretch: Stretch) -> str:
    """Say where the ends of a stretch come from."""
    return {
        "percentiles": f"{_ordinal(stretch.low)} to {_ordinal(stretch.high)} percentile",
        "statistics": f"mean less and plus {stretch.deviations:g} standard deviations",
        "range": "as the model states",
    }[stretch.source]


def _ordinal(number: float) -> str:
    end = (
        "th" if number % 1 or number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(int(number % 10), "th")
    )
    return f"{number:g}{end}"
