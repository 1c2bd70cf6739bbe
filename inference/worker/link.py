"""The worker's end of the link to QGIS: what QGIS has sent, and questions that wait for its answers."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, wait

from ..errors import InferenceError, ProtocolError, RasterReadError
from ..events import Canceled, PixelsWanted, Report
from ..pictures import Picture
from ..secrets import Secrets
from .control import CancelWish, ControlMessage, PixelsAnswer

SECRETS_LIMIT = 60.0
"""Seconds that the first line may take. QGIS sends it before the worker is up."""
_LOOK = 0.1


class QgisLink:
    """Asks QGIS, from any thread, and keeps what it says.

    Nothing here waits for QGIS without an end: a cancel, and the end of QGIS, wake every thread that waits. How long
    QGIS may take for an answer, QGIS's side limits.

    Args:
        report: Sends an event to QGIS.
    """

    def __init__(self, report: Report) -> None:
        """Start without any message."""
        self._report = report
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[Picture]] = {}
        self._n_asked = 0
        self._secrets: Secrets | None = None
        self._error: InferenceError | None = None
        self._came = threading.Condition(self._lock)
        self.cancelled = threading.Event()

    def take(self, message: ControlMessage) -> None:
        """Take what QGIS sent."""
        if isinstance(message, CancelWish):
            self.cancelled.set()
        elif isinstance(message, PixelsAnswer):
            self._answer(message)
        else:
            with self._came:
                self._secrets = message
                self._came.notify_all()

    def fail(self, error: InferenceError) -> None:
        """Note that nothing will be understood from now on."""
        with self._came:
            self._error = error
            self._came.notify_all()

    def secrets(self) -> Secrets:
        """Wait for the secrets.

        Raises:
            Canceled: the run is to end.
            ProtocolError: they did not come.
        """
        end = time.monotonic() + SECRETS_LIMIT
        with self._came:
            while self._secrets is None:
                self._check()
                if time.monotonic() > end:
                    raise ProtocolError("QGIS did not send the first line.")
                self._came.wait(_LOOK)
            return self._secrets

    def ask(self, item: str, extent: tuple[float, float, float, float], size: tuple[int, int], again: int) -> Picture:
        """Ask for pixels, and wait for them, see `RasterAccess.ask`."""
        future: Future[Picture] = Future()
        with self._lock:
            self._check()
            self._n_asked += 1
            number = self._n_asked
            self._waiting[number] = future
        try:
            self._report(PixelsWanted(number, item, list(extent), *size, again))
            return self._wait(future)
        finally:
            with self._lock:
                self._waiting.pop(number, None)

    def _wait(self, future: Future[Picture]) -> Picture:
        while not wait((future,), timeout=_LOOK).done:
            self._check()
        return future.result()

    def _check(self) -> None:
        if self.cancelled.is_set():
            raise Canceled
        if self._error is not None:
            raise self._error

    def _answer(self, message: PixelsAnswer) -> None:
        with self._lock:
            future = self._waiting.pop(message.request, None)
        if future is None:
            return  # nobody waits any more
        if message.picture is not None:
            future.set_result(message.picture)
        else:
            future.set_exception(RasterReadError(message.error or "QGIS gave no pixels."))
