"""Stretch: how a raster's values are brought to those that a model was made for, as a definition states it.

A straight line for each band, cut off at both ends. Where the line lies is told by the raster as a whole, never by a
tile: a part gives the same objects as the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # definitions hold stretches, and are read with this module's help
    from .definition import Reader

SOURCES = ("percentiles", "statistics", "range")
STRETCH_MEMBERS = {
    "percentiles": ("from", "low", "high", "to"),
    "statistics": ("from", "deviations", "to"),
    "range": ("from", "minimum", "maximum", "to"),
}
"""What each kind of stretch may hold in a definition."""
BYTES = (0.0, 255.0)


@dataclass(frozen=True)
class Stretch:
    """Which of a band's values become the lowest and the highest one that the model wants.

    Attributes:
        source: "percentiles" `low` and `high` of the band's values; "statistics", its mean less and plus so many
            standard deviations; "range", `minimum` and `maximum` themselves.
        low, high: Percentages.
        deviations: Standard deviations on each side of the mean.
        minimum, maximum: One number for all bands, or one for each.
        to: The model's lowest and highest value; 0 and 255 are rounded to 8 bits.
    """

    source: str
    low: float = 2.0
    high: float = 98.0
    deviations: float = 2.0
    minimum: tuple[float, ...] = ()
    maximum: tuple[float, ...] = ()
    to: tuple[float, float] = BYTES

    @property
    def is_to_bytes(self) -> bool:
        """Tell whether what comes out are values of 8 bits."""
        return self.to == BYTES

    def to_json(self) -> dict[str, Any]:
        """Give it as a definition states it."""
        members = {"from": self.source, "low": self.low, "high": self.high, "deviations": self.deviations,
                   "minimum": list(self.minimum), "maximum": list(self.maximum), "to": list(self.to)}  # fmt: skip
        return {name: members[name] for name in STRETCH_MEMBERS[self.source]}


def stretch_from_json(reader: Reader, n_bands: int) -> Stretch:
    """Read a definition's member `input.stretch`.

    Args:
        reader: The object.
        n_bands: Bands that the model takes.

    Raises:
        ModelPackageError: a member is missing, unknown, or not what it should be.
    """
    source = reader.text("from")
    if source not in SOURCES:
        raise reader.refuse("from", f"one of {', '.join(SOURCES)}")
    reader.only(*STRETCH_MEMBERS[source])
    to = reader.data_range("to") or BYTES
    if source == "range":
        return _range(reader, n_bands, to)
    if source == "statistics":
        (deviations,) = reader.factors("deviations", 2.0, 1)
        if not deviations > 0:
            raise reader.refuse("deviations", "a number above 0")
        return Stretch(source, deviations=deviations, to=to)
    (low,), (high,) = reader.factors("low", 2.0, 1), reader.factors("high", 98.0, 1)
    if not 0 <= low < high <= 100:
        raise reader.refuse("low", "a percentage from 0 to 100 that is below 'high'")
    return Stretch(source, low=low, high=high, to=to)


def _range(reader: Reader, n_bands: int, to: tuple[float, float]) -> Stretch:
    for key in ("minimum", "maximum"):
        if key not in reader.data:
            raise reader.refuse(key, f"one number, or one for each of the {n_bands} bands")
    lows, highs = reader.factors("minimum", 0.0, n_bands), reader.factors("maximum", 0.0, n_bands)
    n = max(len(lows), len(highs))
    if any(not low < high for low, high in zip(per_band(lows, n), per_band(highs, n))):
        raise reader.refuse("minimum", "numbers below 'maximum'")
    return Stretch("range", minimum=lows, maximum=highs, to=to)


def per_band(values: tuple[float, ...], n_bands: int) -> list[float]:
    """Give one number for each band."""
    return list(values) * n_bands if len(values) == 1 else list(values)
