"""How long a request may take, how often it is tried, and the pauses in between."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class HttpLimits:
    """Limits of one request.

    Units/space: seconds.

    Attributes:
        connect: Until the connection stands.
        read: Without a byte of the answer.
        total: For one whole answer; downloads to a file have no such limit.
        patience: For all tries together, with their pauses; a download begins anew with each byte that it gains.
        first_pause: After the first try that failed; doubled after each further one.
        longest_pause: What the doubling ends at.
    """

    connect: float = 15.0
    read: float = 60.0
    total: float = 300.0
    patience: float = 600.0
    first_pause: float = 1.0
    longest_pause: float = 60.0

    def pauses(self) -> Iterator[float]:
        """Give the pauses after each try that failed, without end.

        They are shortened at random by up to a half, so that requests that failed together do not come back together.
        """
        chance = random.SystemRandom()
        pause = self.first_pause
        while True:
            yield min(pause, self.longest_pause) * chance.uniform(0.5, 1.0)
            pause = min(pause * 2, self.longest_pause)


FIRST_CONTACT = HttpLimits(patience=60.0)
"""For requests that somebody waits for in front of the screen."""
