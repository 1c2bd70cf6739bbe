"""The errors of Kestrel. Cancelling is not an error.

    InferenceError                      message, hint, context
    ├── JobError                        the job itself: its parameters or arguments
    ├── ModelError
    │   ├── ModelPackageError           the file cannot be read as a model package
    │   ├── ModelHashError              the package is not the one the job was made with
    │   ├── ModelIncompatibleError      model and raster do not fit together
    │   ├── ModelUnsupportedError       a model of a kind that Kestrel does not run
    │   ├── UntrustedCodeError          the package holds a program, not data
    │   ├── TileError                   the model failed on one tile; the others go on
    │   └── BackendMissingError         the inference environment lacks a library
    ├── RasterError
    │   ├── RasterOpenError
    │   ├── RasterReadError             window
    │   │   └── RasterFetchError        its pixels did not come from their server; they may come another time
    │   └── RasterChangedError          its content is not what it was when the run began
    ├── DeviceError
    │   ├── DeviceUnavailableError
    │   └── DeviceMemoryError           batch_size
    ├── OutputError
    │   └── DiskFullError
    ├── NetworkError                    no connection, no answer in time, or a server that is down, after all tries
    ├── ServiceError                    a server answered with an error, or with something else than was asked for
    ├── CredentialError                 a server wants a sign-in, or refuses the one it got
    └── WorkerError
        ├── WorkerStartError            the worker process could not be started
        ├── WorkerCrashError            it died: exit_code, stderr_tail
        └── ProtocolError               it said something that cannot be understood

Each class has a `code`, which is part of the wire format and of the documentation: it never changes.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

# Source: texts of torch (CUDA and CPU allocator), onnxruntime (BFCArena), the C++ library, and cuBLAS.
_OUT_OF_MEMORY = re.compile(
    r"out ?of ?memory|not enough memory|allocate memory|DefaultCPUAllocator|AllocateRaw|bad.?alloc|ALLOC_FAILED"
    r"|memory of \d+ is smaller",
    re.IGNORECASE,
)

TOO_LARGE = "too-large"
"""The reason, in the context of an error, that a run is larger than the user has bargained for."""


class InferenceError(Exception):
    """Something that stops a run, told so that a GIS analyst can act on it.

    Args:
        message: One sentence: what is wrong, naming the thing and the reason.
        hint: One sentence: the way out. Empty where there is none.
        **context: JSON values for a program that reads the error.
    """

    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str = "", **context: Any) -> None:
        """Keep the parts; `str(error)` joins message and hint."""
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.context = context

    def __str__(self) -> str:
        """Give message and hint as a user reads them."""
        return f"{self.message} {self.hint}".strip()

    def to_dict(self) -> dict[str, Any]:
        """Give the error's wire form, see `error_from_dict`."""
        return {"code": self.code, "message": self.message, "hint": self.hint, "context": self.context}


class JobError(InferenceError):
    """The job's parameters or arguments cannot be used."""

    code = "job"


class ModelError(InferenceError):
    """Something is wrong with the model."""

    code = "model"


class ModelPackageError(ModelError):
    """The file cannot be read as a model package."""

    code = "model-package"


class ModelHashError(ModelError):
    """The package's content is not what the job was made with."""

    code = "model-hash"


class ModelIncompatibleError(ModelError):
    """Model and raster do not fit together."""

    code = "model-incompatible"


class ModelUnsupportedError(ModelError):
    """The model is of a kind that Kestrel does not run."""

    code = "model-unsupported"


class UntrustedCodeError(ModelError):
    """The package would have to run a program of its own."""

    code = "untrusted-code"


class TileError(ModelError):
    """The model failed on one tile; the run goes on without it."""

    code = "tile-failed"


class BackendMissingError(ModelError):
    """The inference environment lacks a library that the model needs."""

    code = "backend-missing"


class RasterError(InferenceError):
    """Something is wrong with the raster."""

    code = "raster"


class RasterOpenError(RasterError):
    """The raster cannot be opened, or cannot be used as it is."""

    code = "raster-open"


class RasterReadError(RasterError):
    """A window of the raster cannot be read."""

    code = "raster-read"


class RasterFetchError(RasterReadError):
    """A window's pixels did not come from their server, and may come another time."""

    code = "raster-fetch"


class RasterChangedError(RasterError):
    """The raster is not the one any more that the run began with."""

    code = "raster-changed"

    @classmethod
    def of(cls, name: str) -> RasterChangedError:
        """Give the error for a raster that messages call so."""
        return cls(
            f"The raster '{name}' was changed while it was read.",
            hint="Start the detection again: what was found so far belongs to the older content.",
        )


class DeviceError(InferenceError):
    """Something is wrong with the processor that was asked for."""

    code = "device"


class DeviceUnavailableError(DeviceError):
    """The device that was asked for does not exist or cannot be used."""

    code = "device-unavailable"


class DeviceMemoryError(DeviceError):
    """The device's memory does not hold the batch."""

    code = "device-memory"

    @classmethod
    def of_batch(cls, n: int) -> DeviceMemoryError:
        """Give the error that makes the caller try fewer than these `n` tiles at once."""
        return cls(f"The memory does not hold a batch of {n} tiles.", batch_size=n)


class OutputError(InferenceError):
    """The result cannot be written."""

    code = "output"


class DiskFullError(OutputError):
    """There is no room left on the disk."""

    code = "disk-full"


class NetworkError(InferenceError):
    """A server cannot be reached, or does not answer, after all tries."""

    code = "network"


class ServiceError(InferenceError):
    """A server answered with an error, or with something else than was asked for."""

    code = "service"


class CredentialError(InferenceError):
    """A server wants a sign-in, or refuses the one it got."""

    code = "credentials"


class WorkerError(InferenceError):
    """Something is wrong with the worker process."""

    code = "worker"


class WorkerStartError(WorkerError):
    """The worker process could not be started."""

    code = "worker-start"


class WorkerCrashError(WorkerError):
    """The worker process died without saying why."""

    code = "worker-crash"


class ProtocolError(WorkerError):
    """The other side of the pipe said something that cannot be understood."""

    code = "protocol"


def _subclasses(cls: type[InferenceError]) -> list[type[InferenceError]]:
    return [cls, *(below for child in cls.__subclasses__() for below in _subclasses(child))]


def error_from_dict(data: dict[str, Any]) -> InferenceError:
    """Rebuild an error from `InferenceError.to_dict`; an unknown code becomes the plain root class."""
    by_code = {cls.code: cls for cls in _subclasses(InferenceError)}
    cls = by_code.get(str(data.get("code")), InferenceError)
    error = cls(str(data.get("message", "")), hint=str(data.get("hint", "")))
    context = data.get("context")
    error.context = dict(context) if isinstance(context, dict) else {}  # any name may stand in it, "hint" too
    return error


def first_line(error: Exception) -> str:
    """Give what a library says, without the rest of its story and without a full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether a library's error, of whatever type, says that memory is short, the computer's or a GPU's."""
    return isinstance(error, MemoryError) or bool(_OUT_OF_MEMORY.search(f"{type(error).__name__}: {error}"))
