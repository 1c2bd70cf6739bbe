"""RasterAccess: what reading rasters needs besides their names. Standard library only: the worker makes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def _never() -> bool:
    return False


@dataclass(frozen=True)
class RasterAccess:
    """The surroundings of a run.

    Attributes:
        is_cancelled: Asked while a server is waited for.
    """

    is_cancelled: Callable[[], bool] = _never


ALONE = RasterAccess()
"""For rasters that need nothing."""
