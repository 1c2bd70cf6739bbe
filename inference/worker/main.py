"""The worker process: runs one job from its folder, tells events on stdout, and listens on stdin.

    fd 0  control from QGIS (control.py), end of file when QGIS is gone; read by the watch thread
    fd 1  events; kept aside at the start, and then pointed at fd 2, so that a library's print cannot garble them
    fd 2  the job's log file

Outcomes: done and canceled end with exit code 0, a failure with 1, each after its event. A process that ends without
one of these three events has crashed.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Callable, NoReturn

from ..errors import (
    BackendMissingError,
    DeviceMemoryError,
    DiskFullError,
    InferenceError,
    ProtocolError,
    is_out_of_memory,
)
from ..events import Canceled, Done, Failed, Report, Started, WasCanceled, WorkerEvent
from ..jobs import LOG_FILE, WORK_PREFIX, read_job
from ..rasters.access import RasterAccess
from ..versions import SETUP_HINT, check_floors, installed_versions
from .control import ControlReader
from .link import QgisLink
from .protocol import encode_event, write_event

Detect = Callable[..., "dict[str, Any]"]

ORPHAN_GRACE = 1.25
"""Seconds that a run has to commit its batch and end once QGIS is gone."""

ALWAYS_NEEDED = ("numpy", "rasterio", "requests", "shapely")
"""Libraries that no run does without; which others a model needs, its detector knows."""

_AT_ONCE = 2**18
"""Bytes that are read at a time of what QGIS sends."""

_ON_GPU = re.compile(r"cuda|hip|mps|gpu|cublas", re.IGNORECASE)


class EventWriter:
    """Sends events to QGIS, from any thread. When QGIS is gone they go nowhere: the watch thread ends the process."""

    def __init__(self, stream: BinaryIO) -> None:
        """Take the stream that QGIS reads."""
        self._stream = stream
        self._lock = threading.Lock()

    def __call__(self, event: WorkerEvent) -> None:
        """Send one event, whole.

        Raises:
            ProtocolError: the event is not plain finite JSON.
        """
        with self._lock, contextlib.suppress(OSError):
            write_event(self._stream, event)


def load_detect() -> Detect:
    """Import the detection with numpy, rasterio and shapely; torch and onnxruntime wait until a model needs them."""
    from ..detect import detect

    return detect


def run(folder: Path, load: Callable[[], Detect]) -> int:
    """Run the job in a folder, and tell how it ended.

    Args:
        folder: The job folder.
        load: Gives the function that does the work. A function of its own, because importing it can fail, too.

    Returns:
        The process's exit code.
    """
    folder = folder.absolute()
    events, control = _claim_standard_streams()
    report = EventWriter(events)
    faulthandler.enable()
    _limit_process()
    try:
        report(_run_job(folder, load, report, control))
    except Canceled:
        report(WasCanceled())
    except Exception as error:
        with contextlib.suppress(OSError):  # the log may lie on the very disk that is full
            traceback.print_exception(error)
        report(_failed(_explain(error, folder)))
        return 1
    return 0


def leave(code: int) -> NoReturn:
    """End the process without tearing down libraries.

    By now everything is written. The GPU libraries' own tear-down is known to crash or hang, and threads may be left.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def _run_job(folder: Path, load: Callable[[], Detect], report: Report, control: int) -> Done:
    job = read_job(folder)
    versions = installed_versions()
    report(Started(os.getpid(), {"python": platform.python_version(), **versions}))
    check_versions(versions)
    with _work_folder(folder):
        detect = load()
        # After the imports: on Windows, loading a library can block while another thread waits on a standard stream.
        link = QgisLink(report)
        threading.Thread(target=_watch, args=(control, link), daemon=True).start()
        is_cancelled = link.cancelled.is_set
        access = RasterAccess(is_cancelled, link.secrets(), ask=link.ask, report=report)
        return Done(detect(job, folder, report, is_cancelled, access))


# -- Surroundings of the run -------------------------------------------------------------------------------------------


def _claim_standard_streams() -> tuple[BinaryIO, int]:
    """Give the stream for events and the descriptor for control; what is started from here inherits neither."""
    sys.stdout.flush()
    events, control = os.dup(1), os.dup(0)
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return os.fdopen(events, "wb"), control


def _limit_process() -> None:
    """Keep what the run writes to this user, and no images of its memory."""
    os.umask(0o077)
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


@contextlib.contextmanager
def _work_folder(folder: Path) -> Iterator[None]:
    """Work in an empty folder: libraries look for settings, plug-ins and kernels in the working directory."""
    for left_over in folder.glob(WORK_PREFIX + "*"):
        shutil.rmtree(left_over, ignore_errors=True)
    work = tempfile.mkdtemp(prefix=WORK_PREFIX, dir=folder)
    os.chdir(work)
    try:
        yield
    finally:
        os.chdir(folder)
        shutil.rmtree(work, ignore_errors=True)


def _watch(control: int, link: QgisLink) -> None:
    """Listen to QGIS. At the end of file: ask the run to stop, and end the process if it does not.

    A native call that holds Python's global lock for longer delays this until it returns.
    """
    try:
        reader = ControlReader()
        while data := _read_control(control, is_coming=reader.is_inside):
            for message in reader.feed(data):
                link.take(message)
    except ProtocolError as error:
        link.fail(error)
        while _read_control(control, is_coming=False):
            """Nothing can be understood any more, but the end of file still counts."""
    link.cancelled.set()
    time.sleep(ORPHAN_GRACE)
    _end_with_children()


def _end_with_children() -> NoReturn:
    """End this process at once, and what it and the program of a package have started.

    QGIS starts the worker as the leader of a group of its own; in another's group nobody else is touched.
    """
    if sys.platform != "win32" and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _read_control(control: int, *, is_coming: bool) -> bytes:
    """Give what QGIS sent next, empty at the end of file.

    Args:
        control: The descriptor.
        is_coming: More is sure to come at once.
    """
    try:
        if sys.platform == "win32":
            import _winapi
            import msvcrt

            # No long waiting read: a library that is loaded meanwhile may ask for the pipe's type, and would wait, too.
            pipe = msvcrt.get_osfhandle(control)
            while not is_coming and not _winapi.PeekNamedPipe(pipe)[0]:
                time.sleep(0.1)
        return os.read(control, _AT_ONCE)
    except OSError:
        return b""


# -- Versions ----------------------------------------------------------------------------------------------------------


def check_versions(versions: Mapping[str, str]) -> None:
    """Check what every run needs; what a kind of model needs besides, `load_detector` checks.

    Raises:
        BackendMissingError: something is missing or too old.
    """
    missing = [name for name in ALWAYS_NEEDED if name not in versions]
    if missing:
        raise BackendMissingError(f"The inference environment lacks {', '.join(missing)}.", hint=SETUP_HINT)
    check_floors(ALWAYS_NEEDED, versions)


# -- Failures ----------------------------------------------------------------------------------------------------------


def _explain(error: Exception, folder: Path) -> InferenceError:
    """Say what happened in a sentence for the user; the details are in the log."""
    if isinstance(error, InferenceError):
        return error
    if is_out_of_memory(error):
        place = "graphics processor" if _ON_GPU.search(str(error)) else "computer"
        return DeviceMemoryError(
            f"The {place} does not have enough memory for this run.",
            hint="Choose a smaller batch size or tile size, or end other programs.",
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return DiskFullError("The disk is full.", hint="Make room, then run the job again: it goes on where it ended.")
    if isinstance(error, ImportError):
        return BackendMissingError(
            f"A library of the inference environment cannot be loaded: {error.name or error}.", hint=SETUP_HINT
        )
    return InferenceError(
        f"The detection ended because of an unexpected error ({type(error).__name__}).",
        hint=f"Please report it, together with the file {folder / LOG_FILE}.",
    )


def _failed(error: InferenceError) -> Failed:
    """Give the last word on a failure; a context that cannot be sent does not keep the message from being told."""
    failed = Failed(error.to_dict())
    try:
        encode_event(failed)
    except ProtocolError:
        return Failed({**error.to_dict(), "context": {}})
    return failed
