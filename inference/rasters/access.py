"""RasterAccess: what reading rasters needs besides their names. Standard library only: the worker makes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..errors import RasterOpenError
from ..events import Report, WorkerEvent
from ..net.limits import HttpLimits
from ..pictures import Picture
from ..secrets import Secrets

Ask = Callable[[str, "tuple[float, float, float, float]", "tuple[int, int]", int], Picture]


def _never() -> bool:
    return False


def _nobody(item: str, extent: tuple[float, float, float, float], size: tuple[int, int], again: int) -> Picture:
    raise RasterOpenError("Pixels that QGIS would have to hand over cannot be read without QGIS.")


def _silent(event: WorkerEvent) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class RasterAccess:
    """The surroundings of a run.

    Attributes:
        is_cancelled: Asked while a server is waited for.
        secrets: What signs in to servers, and how they are reached.
        limits: How long a server is waited for.
        on_wait: Told why something is tried again, and the seconds until then; from any thread.
        ask: Gets pixels from QGIS: the item's source, the extent, columns and rows, how often it has been tried. Any
            thread may ask. Raises Canceled, RasterReadError where there are none, ProtocolError.
        report: Told what the user should hear of the reading.
    """

    is_cancelled: Callable[[], bool] = _never
    secrets: Secrets = field(default_factory=Secrets)
    limits: HttpLimits = field(default_factory=HttpLimits)
    on_wait: Callable[[str, float], None] | None = None
    ask: Ask = _nobody
    report: Report = _silent


ALONE = RasterAccess()
"""For rasters that need nothing."""
