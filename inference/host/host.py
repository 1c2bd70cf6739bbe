"""The host: runs a package's program in a process of its own, for the worker that started it.

    fd 0  requests from the worker, or end of file when it is gone; read by the watch thread
    fd 1  replies; kept aside at the start, and then pointed at fd 2, so that a program's print cannot garble them
    fd 2  what the program writes; the worker copies it to the job's log

The process holds no secret, works in an empty private folder, and ends with its worker. It is no sandbox: the program
has the rights of the user, which is why nothing runs here without consent to exactly this content.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NoReturn, Protocol, cast

from numpy.typing import NDArray

from ..errors import ProtocolError, is_out_of_memory
from .frames import Frame, read_frame, write_frame
from .stages import Stage, UnusableProgram

MAX_MESSAGE = 500
_PIPE_POLL_SECONDS = 0.02


class Program(Protocol):
    """A loaded program."""

    def describe(self) -> dict[str, Any]:
        """Give what the worker wants to know of it, as JSON values."""
        ...

    def find(self, request: Frame) -> dict[str, NDArray[Any]]:
        """Give what it finds in a request's pixels."""
        ...


Loader = Callable[[Mapping[str, Any]], Program]


def run() -> int:
    """Serve the worker until it says `end`, or is gone.

    Returns:
        The process's exit code.
    """
    replies, requests = _claim_standard_streams()
    faulthandler.enable()
    os.umask(0o077)
    sys.dont_write_bytecode = True
    waiting: queue.Queue[Frame] = queue.Queue(2)
    threading.Thread(target=_watch, args=(requests, waiting), daemon=True).start()
    return serve(waiting.get, lambda frame: write_frame(replies, frame))


def serve(next_request: Callable[[], Frame], reply: Callable[[Frame], None]) -> int:
    """Answer requests, one reply for each; a request that fails does not end the process.

    Returns:
        The process's exit code.
    """
    program: Program | None = None
    while True:
        request = next_request()
        if request.type == "end":
            return 0
        try:
            if request.type == "start":
                program = _loader(str(request.members.get("kind")))(request.members)
                answer = Frame("ready", program.describe())
            elif request.type == "block" and program is not None:
                answer = Frame("found", {}, program.find(request))
            else:
                raise ProtocolError(f"The worker sent '{request.type}', which has no meaning here.")
            reply(answer)
        # Whatever a stranger's program raises, the end of the process too: it is told, and the worker decides.
        except (Exception, SystemExit) as error:
            traceback.print_exception(error)
            reply(_error_frame(error))


def leave(code: int) -> NoReturn:
    """End the process without tearing down libraries: their own tear-down is known to crash or hang."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _loader(kind: str) -> Loader:
    if kind == "python":
        from .raster_function import load_raster_function

        return load_raster_function
    if kind in ("torchscript", "torch_export"):
        from .torchscript import load_network

        return load_network
    raise ProtocolError(f"There is no program of the kind '{kind}'.")


def _error_frame(error: BaseException) -> Frame:
    """Say in one line what went wrong: where, of what type, and which library is missing, if that is it."""
    stage = error.stage if isinstance(error, Stage) else ""
    cause = error.__cause__ if isinstance(error, Stage) and error.__cause__ is not None else error
    name, text = type(cause).__name__, " ".join(str(cause).split())[:MAX_MESSAGE]
    kind = "memory" if is_out_of_memory(cause) else "unusable" if isinstance(cause, UnusableProgram) else "exception"
    missing = ""
    if isinstance(cause, ImportError):
        kind, missing = "import", str(cause.name or "")
    return Frame("error", {"kind": kind, "stage": stage, "exception": name, "message": text, "missing": missing})


# -- Streams -----------------------------------------------------------------------------------------------------------


def _claim_standard_streams() -> tuple[BinaryIO, BinaryIO]:
    """Give the streams of replies and requests; what the program writes or starts gets neither."""
    sys.stdout.flush()
    replies, requests = os.dup(1), os.dup(0)
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return os.fdopen(replies, "wb"), cast("BinaryIO", io.BufferedReader(_Pipe(requests), 2**16))


class _Pipe(io.RawIOBase):
    """A pipe that is read from. On Windows never with a waiting read, see the worker's main.py."""

    def __init__(self, descriptor: int) -> None:
        """Take the descriptor."""
        self._descriptor = descriptor

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what there is, at least one byte; none at the end of file."""
        try:
            if sys.platform == "win32":
                import _winapi
                import msvcrt

                pipe = msvcrt.get_osfhandle(self._descriptor)
                while not _winapi.PeekNamedPipe(pipe)[0]:
                    time.sleep(_PIPE_POLL_SECONDS)
            data = os.read(self._descriptor, len(buffer))
        except OSError:
            return 0
        buffer[: len(data)] = data
        return len(data)


def _watch(requests: BinaryIO, waiting: queue.Queue[Frame]) -> None:
    """Hand requests on. When the worker is gone, or says what cannot be understood, end the process at once."""
    try:
        while (frame := read_frame(requests)) is not None:
            waiting.put(frame)
            if frame.type == "end":
                return
    except ProtocolError as error:
        traceback.print_exception(error)
    os._exit(1)
