"""Worker events -> QgsProcessingFeedback, and errors -> QgsProcessingException."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qgis.core import Qgis, QgsMessageLog, QgsProcessingException, QgsProcessingFeedback
from qgis.PyQt.QtCore import QCoreApplication, QEventLoop, QThread

from ..inference.errors import InferenceError
from ..inference.events import Item, Message, Objects, Progress, Started, WorkerEvent
from .text import to_plain, tr

_TEXT_INTERVAL = 5.0
"""Seconds between two progress texts: each one is a line of the log."""


class EventListener:
    """Passes on what a worker says, and remembers what is needed afterwards.

    Attributes:
        object_files: Files of finished objects, in the order in which they came.
        items: What became of each raster, where several are searched one by one.
        versions: The worker's libraries.
    """

    def __init__(self, feedback: QgsProcessingFeedback) -> None:
        """Listen for one run."""
        self._feedback = feedback
        self._next_text = 0.0
        self.object_files: list[Path] = []
        self.items: list[dict[str, Any]] = []
        self.versions: dict[str, str] = {}

    def __call__(self, event: WorkerEvent) -> None:
        """Take one event."""
        if isinstance(event, Progress):
            self._progress(event)
        elif isinstance(event, Message):
            self._message(event)
        elif isinstance(event, Objects):
            self.object_files.append(Path(event.path))
        elif isinstance(event, Item):
            self.items.append(event.facts)
        elif isinstance(event, Started):
            self.versions = dict(event.versions)
            versions = ", ".join(f"{name} {version}" for name, version in event.versions.items())
            self._feedback.pushDebugInfo(to_plain(f"Worker {event.pid}: {versions}"))

    def _progress(self, event: Progress) -> None:
        if event.total > 0:
            self._feedback.setProgress(100.0 * (event.item - 1 + event.done / event.total) / event.items)
        now = time.monotonic()
        is_last = event.done == event.total and event.item == event.items
        if event.done and (now >= self._next_text or is_last):
            self._next_text = now + _TEXT_INTERVAL
            self._feedback.setProgressText(progress_text(event))

    def _message(self, event: Message) -> None:
        text = to_plain(event.text)
        if event.level == "error":
            self._feedback.reportError(text)
        elif event.level == "warning":
            self._feedback.pushWarning(text)
        else:
            self._feedback.pushInfo(text)


def progress_text(event: Progress) -> str:
    """Say how far the run is: tiles, objects, speed and the time that is left, as far as they are known."""
    parts = [tr("Raster {item} of {items}").format(item=event.item, items=event.items)] if event.items > 1 else []
    parts += [
        tr("Tile {done} of {total}").format(done=event.done, total=event.total),
        tr("{count} objects").format(count=event.objects),
    ]
    if event.rate:
        parts.append(tr("{rate} tiles a second").format(rate=f"{event.rate:.3g}"))
    if event.remaining is not None and (event.done < event.total or event.item < event.items):
        parts.append(tr("about {time} left").format(time=duration_text(event.remaining)))
    return ", ".join(parts)


def duration_text(seconds: float) -> str:
    """Give a duration as people say it: 8 s, 4 min, 2 h 10 min."""
    minutes, hours = round(seconds / 60), int(seconds // 3600)
    if seconds < 90:
        return tr("{count} s").format(count=round(seconds))
    if minutes < 90:
        return tr("{count} min").format(count=minutes)
    return tr("{hours} h {minutes} min").format(hours=hours, minutes=int(seconds % 3600 // 60))


def is_main_thread() -> bool:
    """Tell whether this code runs in the application's own thread."""
    application = QCoreApplication.instance()
    return application is not None and QThread.currentThread() == application.thread()


def pump_events() -> None:
    """Let Qt work while the main thread waits for the worker.

    qgis_process notices an interrupt only then. Clicks are left alone: they could close what the run uses.
    """
    if is_main_thread():
        QCoreApplication.processEvents(QEventLoop.ProcessEventsFlag.ExcludeUserInputEvents)


def as_processing_exception(error: InferenceError, log: Path | None = None) -> QgsProcessingException:
    """Give the exception that ends the run, with all there is to say: qgis_process shows nothing else with --json.

    Args:
        error: What went wrong.
        log: The worker's log file, if it got that far.
    """
    parts = [to_plain(error.message), to_plain(error.hint)]
    if log is not None and log.exists() and str(log) not in error.hint:
        parts.append(tr("Log: {path}").format(path=to_plain(log)))
    parts.append(f"[{error.code}]")
    return QgsProcessingException(" ".join(part for part in parts if part))


@contextmanager
def foreseen(log: Callable[[], Path | None] = lambda: None) -> Iterator[None]:
    """Turn errors into the one kind that ends a run; any other that leaves the algorithm would take QGIS along.

    This is the algorithm's one broad `except`, for each of its entry points.

    Args:
        log: Gives the worker's log file once there is one.

    Raises:
        QgsProcessingException: whatever goes wrong; of what nobody foresaw, the traceback goes to the log panel.
    """
    try:
        yield
    except QgsProcessingException:
        raise
    except InferenceError as error:
        raise as_processing_exception(error, log()) from error
    except Exception as error:
        story = "\n".join(to_plain(line) for line in traceback.format_exc().splitlines())
        QgsMessageLog.logMessage(story, "Kestrel", Qgis.MessageLevel.Info, False)
        told = InferenceError(
            f"Unexpected error ({type(error).__name__}): {error}.",
            hint="This is a fault of Kestrel: please report it, with what the log panel says under 'Kestrel'.",
        )
        raise as_processing_exception(told) from error


def cancelled_exception() -> QgsProcessingException:
    """Give the exception for a run that was cancelled where nobody looks at a dialog."""
    return QgsProcessingException(tr("Canceled by the user."))
