"""Run a job in a worker process, from QGIS's side of the pipe. No Qt in here: `idle` is where a host pumps its events.

How a run ends, never mixed up:
    done, canceled      what `run_worker` returns
    failed              the worker's own InferenceError, raised
    not started         WorkerStartError
    crashed             WorkerCrashError: no last word; exit code and last lines of the log
    garbled             ProtocolError

QGIS imports this module: it needs nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Callable, Union

from ..errors import (
    InferenceError,
    ProtocolError,
    RasterReadError,
    WorkerCrashError,
    WorkerError,
    WorkerStartError,
    error_from_dict,
)
from ..events import Done, Failed, Objects, PixelsWanted, WasCanceled, WorkerEvent
from ..jobs import LOG_FILE, OBJECTS_PATTERN
from ..pictures import Picture, check_wanted
from ..secrets import Secrets
from ..versions import SETUP_HINT
from .control import CANCEL, PixelsAnswer, encode_answer, encode_secrets
from .environment import child_environment
from .protocol import MAX_LINE, read_event

NO_SECRETS = Secrets()
"""For runs that sign in nowhere."""

START_FILE = Path(__file__).with_name("__main__.py")

POLL_INTERVAL = 0.1
"""Seconds between two looks at `is_cancelled` and calls of `idle`, at most."""
CANCEL_GRACE = 1.5
"""Seconds that the worker has to end when it is asked to."""
START_LIMIT = 120.0
"""Seconds to the first event. It is sent before any library is loaded; a Python on a cold disk takes some seconds."""
END_LIMIT = 2.0
"""Seconds from the last word to the end of the process."""

_QUEUE_LENGTH = 1000
_TAIL_BYTES, _TAIL_LINES = 8192, 20
_NOT_A_WORKER = "{interpreter} does not run as the Python of an inference environment: {reason}."

_SIGNALS = {
    "SIGKILL": "the system ended it, most likely because the memory was used up",
    "SIGSEGV": "it crashed in a native library",
    "SIGABRT": "a native library gave up",
    "SIGBUS": "a file that was in use shrank, or the disk is full",
    "SIGILL": "a library uses an instruction that this processor does not have",
    "SIGFPE": "it crashed in a native library",
    "SIGTERM": "another program ended it",
}
# Source: NTSTATUS values, Microsoft [MS-ERREF] 2.3.1.
_WINDOWS_CODES = {
    0xC0000005: "it crashed in a native library",
    0xC0000017: "the memory was used up",
    0xC000001D: "a library uses an instruction that this processor does not have",
    0xC0000135: "a library (DLL) is missing",
    0xC0000374: "it crashed in a native library",
    0xC0000409: "a native library gave up",
}

_LastWord = Union[Done, WasCanceled, Failed]


def run_worker(
    interpreter: str,
    folder: Path,
    on_event: Callable[[WorkerEvent], None],
    is_cancelled: Callable[[], bool],
    *,
    idle: Callable[[], None] | None = None,
    secrets: Secrets = NO_SECRETS,
    pixels: Callable[[PixelsWanted], Picture] | None = None,
) -> Done | WasCanceled:
    """Run the job of a folder in a process of its own, and wait for it.

    The callbacks are called in this thread. When one of them raises, the worker is ended and the error goes on; only
    a RasterReadError of `pixels` is handed to the worker.

    Args:
        interpreter: Python of the inference environment.
        folder: The job folder (jobs.py).
        on_event: Gets every event but the last word, in order.
        is_cancelled: Asked all the time; once it is true, the worker is asked to end, and killed if it does not.
        idle: Called all the time.
        secrets: What signs in to servers; goes through the pipe.
        pixels: Gives the pixels that the worker asks for, within a limit of time, and soon once it is cancelled. No
            event is handed on meanwhile.

    Returns:
        The last word: Done also when the cancel came too late.

    Raises:
        WorkerStartError: The interpreter cannot be started, or is none.
        WorkerCrashError: The worker died without a last word.
        ProtocolError: What it said cannot be understood.
        InferenceError: What the worker failed with.
    """
    folder = folder.absolute()
    with _Worker(interpreter, folder) as worker:
        worker.send(encode_secrets(secrets))
        word = _follow(worker, _Callbacks(on_event, is_cancelled, idle or _do_nothing, pixels))
    if isinstance(word, Failed):
        raise error_from_dict(word.error)
    return word


@dataclass(frozen=True)
class _Callbacks:
    """What `run_worker` was given."""

    on_event: Callable[[WorkerEvent], None]
    is_cancelled: Callable[[], bool]
    idle: Callable[[], None]
    pixels: Callable[[PixelsWanted], Picture] | None


def _follow(worker: _Worker, host: _Callbacks) -> _LastWord:
    """Hand the events on until the last word. Once cancelled, any end but a success counts as canceled."""
    started = time.monotonic()
    kill_at = float("inf")
    next_look = 0.0
    while True:
        now = time.monotonic()
        if now >= next_look:
            next_look = now + POLL_INTERVAL
            host.idle()
            if kill_at == float("inf") and host.is_cancelled():
                kill_at = now + CANCEL_GRACE
                worker.send(CANCEL)
        if now >= kill_at:
            return WasCanceled()
        if not worker.has_spoken and now - started > START_LIMIT:
            raise worker.not_started(f"it did not answer within {START_LIMIT:.0f} seconds")
        try:
            event = worker.next_event(max(0.0, min(next_look, kill_at) - time.monotonic()))
        except WorkerError:
            if kill_at < float("inf"):
                return WasCanceled()
            raise
        if isinstance(event, (Done, WasCanceled)):
            return event
        if isinstance(event, Failed):
            return event if kill_at == float("inf") else WasCanceled()
        if isinstance(event, PixelsWanted):
            if kill_at == float("inf"):
                worker.send(*encode_answer(_answer(event, host.pixels)))
        elif event is not None:
            host.on_event(event)


def _answer(wanted: PixelsWanted, pixels: Callable[[PixelsWanted], Picture] | None) -> PixelsAnswer:
    """Answer a request.

    Raises:
        ProtocolError: it cannot be meant so.
    """
    check_wanted(wanted)
    if pixels is None:
        raise ProtocolError("The worker asked for pixels, and nobody has any.")
    try:
        return PixelsAnswer(wanted.request, pixels(wanted))
    except RasterReadError as error:
        return PixelsAnswer(wanted.request, error=str(error))


def _do_nothing() -> None:
    """Stand in for a missing `idle`."""


class _Sender:
    """Writes to the worker in a thread of its own: one that does not read holds up nobody but this."""

    def __init__(self, stream: IO[bytes]) -> None:
        """Start with nothing to send."""
        self._stream = stream
        self._parts: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="kestrel-worker-control", daemon=True)
        self._thread.start()

    def send(self, *parts: bytes) -> None:
        """Send this after all that was sent before."""
        for part in parts:
            self._parts.put(part)

    def close(self) -> None:
        """Close the stream once all is sent; does not wait for it."""
        self._parts.put(None)

    def join(self, seconds: float) -> None:
        """Wait until the stream is closed."""
        self._thread.join(seconds)

    def _write(self) -> None:
        # A worker that is gone already is noticed elsewhere.
        with contextlib.suppress(OSError):
            while (part := self._parts.get()) is not None:
                self._stream.write(part)
                self._stream.flush()
        with contextlib.suppress(OSError):
            self._stream.close()


class _Worker:
    """The process and the threads that read from it and write to it; leaving the context ends them all."""

    def __init__(self, interpreter: str, folder: Path) -> None:
        """Start the process.

        Raises:
            WorkerStartError: that is not possible.
        """
        self.has_spoken = False
        self._has_ended_its_work = False
        self._died_at: float | None = None
        self._interpreter = interpreter
        self._folder = folder
        self._log = folder / LOG_FILE
        self._lines: queue.Queue[bytes] = queue.Queue(_QUEUE_LENGTH)
        try:
            with self._log.open("ab") as log:
                self._log_start = log.tell()
                self._process = _spawn(interpreter, folder, log.fileno())
        except OSError as error:
            raise self.not_started(error.strerror or str(error)) from error
        self._reader = threading.Thread(target=self._read, name="kestrel-worker-events", daemon=True)
        self._reader.start()
        if self._process.stdin is None or self._process.stdout is None:
            raise self.not_started("it has no pipes")
        self._sender = _Sender(self._process.stdin)

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        """End the process: after its last word with a short time to end by itself, otherwise at once."""
        self._sender.close()
        if self._has_ended_its_work:
            self._drain(END_LIMIT)
        _kill_group(self._process)
        self._process.wait()
        self._drain(END_LIMIT)
        self._sender.join(END_LIMIT)
        if not self._reader.is_alive() and self._process.stdout is not None:
            self._process.stdout.close()

    def _read(self) -> None:
        """Read lines until the end of file, which is told as an empty one. The full queue holds the worker back."""
        stream = self._process.stdout
        while stream is not None:
            line = stream.readline(MAX_LINE + 1)
            self._lines.put(line)
            if not line:
                return

    def _drain(self, seconds: float) -> None:
        """Throw away what still comes, until the end of file."""
        end = time.monotonic() + seconds
        while self._reader.is_alive() and time.monotonic() < end:
            with contextlib.suppress(queue.Empty):
                self._lines.get(timeout=0.01)

    def send(self, *parts: bytes) -> None:
        """Send a message, in its parts; never waits."""
        self._sender.send(*parts)

    def next_event(self, timeout: float) -> WorkerEvent | None:
        """Give the next event, None when none comes in time.

        Raises:
            WorkerStartError, WorkerCrashError: The process ended.
            ProtocolError: It said something else.
        """
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            if self._is_long_dead():
                raise self._ended() from None
            return None
        if not line:
            raise self._ended()
        try:
            event = read_event(line)
            if isinstance(event, Objects):
                self._check_path(event.path)
        except ProtocolError as error:
            if not self.has_spoken:
                raise self.not_started("it writes something else on its output") from error
            raise
        self.has_spoken = True
        self._has_ended_its_work = isinstance(event, (Done, WasCanceled, Failed))
        return event

    def _is_long_dead(self) -> bool:
        """Tell whether the process has ended, but its stream has not: something that it has started may hold that."""
        if self._process.poll() is None:
            return False
        if self._died_at is None:
            self._died_at = time.monotonic()
        return time.monotonic() > self._died_at + END_LIMIT

    def _check_path(self, text: str) -> None:
        # The reader deletes that file afterwards.
        path = self._folder / text
        if path.parent != self._folder or not path.match(OBJECTS_PATTERN):
            raise ProtocolError(f"The worker named a file of objects outside its job: {text[:200]}")

    def _ended(self) -> InferenceError:
        """Say how the process ended that closed its stream without a last word."""
        try:
            code = self._process.wait(END_LIMIT)
        except subprocess.TimeoutExpired:
            return ProtocolError("The worker closed its stream of messages, but goes on.", hint=self._log_hint())
        name, reason = _explain(code)
        if not self.has_spoken and not name:
            return self.not_started(reason)
        return WorkerCrashError(
            f"The worker process died: {reason}.",
            hint=self._log_hint(),
            exit_code=code,
            signal=name,
            stderr_tail=self._tail(),
        )

    def not_started(self, reason: str) -> WorkerStartError:
        """Give the error for a worker that never came up."""
        message = _NOT_A_WORKER.format(interpreter=self._interpreter or "(no interpreter)", reason=reason)
        return WorkerStartError(message, hint=SETUP_HINT, interpreter=self._interpreter, stderr_tail=self._tail())

    def _log_hint(self) -> str:
        return f"The last lines that it wrote are in {self._log}."

    def _tail(self) -> list[str]:
        """Give the last lines that this process wrote to its log."""
        try:
            with self._log.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, end - _TAIL_BYTES))
                return log.read().decode("utf-8", "replace").splitlines()[-_TAIL_LINES:]
        except OSError:
            return []


def _spawn(interpreter: str, folder: Path, log: int) -> subprocess.Popen[bytes]:
    """Start the process in a group of its own, with the job folder as working directory."""
    windows_flags = 0
    if sys.platform == "win32":
        windows_flags = subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP
    # A list, no shell: the interpreter is the user's choice, the rest is ours.
    return subprocess.Popen(  # nosec B603
        [interpreter, "-I", "-u", "-X", "utf8", str(START_FILE), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        cwd=folder,
        env=child_environment(os.environ),
        close_fds=True,
        start_new_session=sys.platform != "win32",
        creationflags=windows_flags,
    )


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """End the process, if it still runs, and what it has started."""
    if sys.platform == "win32":
        process.kill()  # a virtual environment's launcher takes the Python it has started with it
        return
    # macOS answers "not permitted" where Linux answers "no such process".
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _explain(code: int) -> tuple[str, str]:
    """Give the name of the signal or system error that ended a process, empty for a plain exit, and a reason."""
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return name, f"{_SIGNALS.get(name, 'it was ended')} ({name})"
    reason = _WINDOWS_CODES.get(code)
    if reason:
        return f"0x{code:08X}", f"{reason} (0x{code:08X})"
    return "", f"it ended with exit code {code}"
