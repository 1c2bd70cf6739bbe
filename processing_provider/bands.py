"""The parameter BANDS: which of the raster's bands the model gets, in its order."""

from __future__ import annotations

from dataclasses import replace

from ..inference.errors import JobError
from ..inference.models.definition import ModelDefinition
from ..inference.models.fit_rules import find_band
from .raster_source import SourceRaster

_COLORS_OF_A_PALETTE = ("red", "green", "blue")


def chosen_bands(text: str, raster: SourceRaster, definition: ModelDefinition) -> tuple[int | str, ...]:
    """Read the bands; empty: as the model says.

    Args:
        text: Numbers from 1, or names, separated by commas or semicolons.
        raster: The raster that has them.
        definition: The model that gets them.

    Returns:
        0-based numbers that leave out bands of transparency, and names, as a job has them. A band of transparency that
        is asked for comes as its name: it is read as any other then, and is no mask.

    Raises:
        JobError: the raster has no such band, or the model takes another number of them.
    """
    words = [word.strip().strip("\"'") for word in text.strip("[] ").replace(";", ",").split(",")]
    words = [word for word in words if word]
    wanted = len(definition.input.bands)
    if words and len(words) != wanted:
        raise JobError(
            f"The parameter Bands names {_counted(len(words))}, and the model '{definition.name}' takes {wanted}.",
            hint=f"Name {wanted}. {_there_are(raster)}",
        )
    return tuple(_band(word, raster) for word in words)


def with_bands(definition: ModelDefinition, bands: tuple[int | str, ...]) -> ModelDefinition:
    """Give a model that reads these bands; none: its own."""
    return replace(definition, input=replace(definition.input, bands=bands)) if bands else definition


def _band(word: str, raster: SourceRaster) -> int | str:
    names = _names(raster)
    if not word.isdigit():
        if raster.band_index(word) is None and find_band(word, names) is None:
            raise JobError(f"The raster '{raster.name}' has no band named '{word}'.", hint=_there_are(raster))
        return word
    number = int(word) - 1
    numbers = raster.band_numbers if raster.band_numbers and not raster.has_palette else range(len(names))
    if number not in numbers:
        alpha = dict(raster.alpha_bands).get(number)
        if alpha is None:
            raise JobError(f"The raster '{raster.name}' has no band {word}.", hint=_there_are(raster))
        return alpha  # a job's numbers leave such bands out
    return list(numbers).index(number)


def _names(raster: SourceRaster) -> tuple[str, ...]:
    return _COLORS_OF_A_PALETTE if raster.has_palette else raster.band_names


def _there_are(raster: SourceRaster) -> str:
    names = _names(raster)
    numbers = raster.band_numbers if raster.band_numbers and not raster.has_palette else range(len(names))
    bands = sorted([*zip(numbers, names), *(() if raster.has_palette else raster.alpha_bands)])
    listed = ", ".join(f"{number + 1} ({name})" for number, name in bands)
    return f"The raster's bands are: {listed}."


def _counted(n: int) -> str:
    return f"{n} band{'s' if n != 1 else ''}"
