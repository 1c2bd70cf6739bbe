"""The bands of several rasters in one order: the first raster's, by their names or colours."""

from __future__ import annotations

from collections.abc import Sequence

_NO_NAMES = ("", "undefined", "gray", "grey", "unknown")


def same_bands(bands: tuple[int | str, ...], first: Sequence[str], other: Sequence[str]) -> tuple[int | str, ...]:
    """Give the bands of a raster that hold what the numbered bands of the first one hold.

    Args:
        bands: What a model wants: 0-based numbers, or names. Names mean the same in every raster.
        first: Names of the first raster's bands, transparency left out.
        other: Names of the other one's.

    Returns:
        The bands; as they are where names do not tell bands apart, or the other raster lacks one of them.
    """
    known, there = [name.lower() for name in first], [name.lower() for name in other]
    wanted = [known[band] for band in bands if isinstance(band, int) and band < len(known)]
    is_told_apart = len(set(known)) == len(known) and len(set(there)) == len(there) and not set(known) & set(_NO_NAMES)
    if known == there or not is_told_apart or not set(wanted) <= set(there):
        return bands
    return tuple(there.index(known[band]) if isinstance(band, int) else band for band in bands)
