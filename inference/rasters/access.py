"""RasterAccess: what reading rasters needs besides their names. Standard library only: the worker makes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..net.limits import HttpLimits
from ..secrets import Secrets


def _never() -> bool:
    return False


@dataclass(frozen=True)
class RasterAccess:
    """The surroundings of a run.

    Attributes:
        is_cancelled: Asked while a server is waited for.
        secrets: What signs in to servers, and how they are reached.
        limits: How long a server is waited for.
        on_wait: Told why something is tried again, and the seconds until then; from any thread.
    """

    is_cancelled: Callable[[], bool] = _never
    secrets: Secrets = field(default_factory=Secrets)
    limits: HttpLimits = field(default_factory=HttpLimits)
    on_wait: Callable[[str, float], None] | None = None


ALONE = RasterAccess()
"""For rasters that need nothing."""
