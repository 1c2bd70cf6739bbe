"""Models that are programs: a package's own raster function, or TorchScript. They run in a process of their own.

Nothing of the package is imported or run in this process. The host (inference/host) is started only when the user
consented to the exact content of the program, gets a private copy of exactly that, and ends with this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..detections import Detections, make_detections
from ..errors import (
    BackendMissingError,
    DeviceMemoryError,
    DeviceUnavailableError,
    InferenceError,
    ModelError,
    ModelIncompatibleError,
    ModelPackageError,
    ModelUnsupportedError,
    ProtocolError,
    TileError,
)
from ..host.frames import Frame, read_frame, write_frame
from ..models.arguments import PROGRAM
from ..models.definition import PROGRAM_KINDS, ModelDefinition
from ..models.emd_text import read_emd
from ..models.package import ModelPackage
from ..models.program import extract_program, placed, program_sha256, untrusted
from ..outlines import outline
from ..preprocess import make_normalisation
from ..versions import SETUP_HINT
from ..worker.environment import child_environment
from ..worker.probe import NO_WINDOW
from .features import FeatureReader, fields_from_esri, plain_text
from .protocol import Detector, DetectorSettings, Traits

# Symbolic links stay as they are, see the start file.
START_FILE = Path(__file__).absolute().parent.parent / "host" / "__main__.py"

ANSWER_LIMIT = 600.0
"""Seconds that a program has for one answer: to load a large network from a slow disk, or for one tile on a CPU."""
MAX_DEATHS = 3
"""Tiles on which a program may take its process down with it; each costs a new start."""
MAX_BLOCK = 16384
"""Largest side of a block; functions ask for k x k tiles at once."""

MAX_LOG = 5_000_000
"""Bytes of what a program writes that go to the job's log."""

_DEFINITION_FILE = "kestrel-definition.emd"
_END_LIMIT = 2.0
_LOOK_AFTER = 0.2
"""Seconds after which a process that has not answered is looked after."""
_TAIL_LINES = 20
_MAX_LINE = 2000
_TORCHSCRIPT_STRIDE = 32
_MAX_LABEL = 2**31
_GEOMETRIES = {1: "point", 2: "point", 3: "line", 4: "polygon"}


def load(package: ModelPackage, arguments: Mapping[str, Any], settings: DetectorSettings, folder: Path) -> Detector:
    """Load a package whose model is a program, see `load_detector`.

    Raises:
        UntrustedCodeError: the user has not consented to exactly this program.
    """
    if not settings.allowed_code:
        raise untrusted(package, program_sha256(package))
    device = _device_number(settings.device)
    folder = folder.absolute()  # the host works in another one
    program = extract_program(package, folder / "program", settings.allowed_code)
    work = folder / "work"
    work.mkdir(mode=0o700)
    host = _Host(work, settings.n_threads)
    try:
        if package.definition.kind in PROGRAM_KINDS:
            return _network(host, package, program, arguments, device, settings)
        return _raster_function(host, package, program, arguments, device)
    except BaseException:
        host.close()
        raise


def _device_number(device: str) -> int:
    """Give what raster functions call a device: -1 for the CPU, the number of a GPU."""
    if device == "cpu":
        return -1
    kind, _, number = device.partition(":")
    if kind != "cuda":
        raise DeviceUnavailableError(
            f"Programs of model packages do not run on the device '{device}'.", hint="Choose processor CPU."
        )
    return int(number or 0)


# -- Raster functions --------------------------------------------------------------------------------------------------


def _raster_function(
    host: _Host, package: ModelPackage, program: Path, arguments: Mapping[str, Any], device: int
) -> RasterFunctionDetector:
    definition = package.definition
    start = Frame("start", {
        "kind": "python",
        "file": str(placed(package, program, definition.program)),
        "definition": str(_definition_file(package, program)),
        "device": device,
        "arguments": dict(arguments[PROGRAM]),
        "bands": list(range(len(definition.input.bands))) if _has_names(definition) else list(definition.input.bands),
        "chip": definition.tile.size,
    })  # fmt: skip
    told = host.start(start)
    fields = fields_from_esri(told.get("fields"))
    traits = _traits(told, definition, fields)
    return RasterFunctionDetector(host, traits, FeatureReader(definition.classes, fields, traits.padding or 0))


def _has_names(definition: ModelDefinition) -> bool:
    return any(isinstance(band, str) for band in definition.input.bands)


def _definition_file(package: ModelPackage, program: Path) -> Path:
    """Give the definition as a file that every reader of JSON reads, beside the copies of the files that it names."""
    folder = program / package.root
    stated = package.definition.options.get("emd")
    content = dict(stated) if stated else read_emd(package.definition_bytes, "of the package").content
    weights = package.definition.weights
    place = placed(package, program, weights) if weights and _is_there(package, weights) else None
    if place is not None:
        content["ModelFile"] = place.relative_to(folder).as_posix() if folder in place.parents else str(place)
    path = folder / _DEFINITION_FILE
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return path


def _is_there(package: ModelPackage, name: str) -> bool:
    try:
        package.find(name)
    except ModelPackageError:  # not every function has weights, or those that it says
        return False
    return True


def _traits(told: Mapping[str, Any], definition: ModelDefinition, fields: tuple[dict[str, str], ...]) -> Traits:
    bands, padding, tx, ty = (told.get(name) for name in ("bands", "padding", "tx", "ty"))
    if not isinstance(bands, list) or not all(type(value) is int for value in (padding, tx, ty, *bands)):
        raise ModelUnsupportedError("The model's function gave a configuration that cannot be understood.")
    _check_bands(bands, definition)
    padding, tx, ty = int(padding or 0), int(tx or 0), int(ty or 0)
    if tx != ty:
        raise ModelUnsupportedError(
            f"The model's function wants blocks of {tx} x {ty} pixels; Kestrel cuts square blocks."
        )
    if padding < 0 or not 0 < tx + 2 * padding <= MAX_BLOCK:
        raise ModelUnsupportedError(
            f"The model's function wants blocks of {tx} pixels with a padding of {padding}; the largest block is "
            f"{MAX_BLOCK} pixels.",
            hint="A smaller batch_size makes the blocks of most functions smaller.",
        )
    code = told.get("geometry")
    geometry = _GEOMETRIES.get(code if type(code) is int else 4, "polygon")
    return Traits(
        stride=1, receptive_field_radius=None, is_dense=False, network_size=tx + 2 * padding, max_batch=1,
        n_callers=1, padding=padding, wants_raw=True, geometry=geometry,
        fields=fields,
    )  # fmt: skip


def _check_bands(wanted: list[int], definition: ModelDefinition) -> None:
    stated = list(definition.input.bands)
    fits = len(wanted) == len(stated) if _has_names(definition) else wanted == stated
    if not fits:
        raise ModelIncompatibleError(
            f"The model's function wants the bands {str(wanted)[:200]}, and its definition names {stated}.",
            hint="Write the function's bands into ExtractBands of the definition.",
        )


class RasterFunctionDetector:
    """A raster function that runs in the host."""

    def __init__(self, host: _Host, traits: Traits, reader: FeatureReader) -> None:
        """Take the parts."""
        self._host, self._traits, self._reader = host, traits, reader

    @property
    def traits(self) -> Traits:
        """Describe the function."""
        return self._traits

    def predict(self, batch: NDArray[Any]) -> list[Detections]:
        """Find objects, see `Detector.predict`.

        Shape:
            batch (N, C + 1, S, S) in the raster's own type; the last band is 1 where pixels are valid, 0 elsewhere.

        Raises:
            TileError: the function failed on a block.
        """
        return [self._predict(block) for block in batch]

    def close(self) -> None:
        """End the function's process."""
        self._host.close()

    def _predict(self, block: NDArray[Any]) -> Detections:
        mask = (block[-1:] > 0).astype(np.uint8)
        vectors = self._host.find({"pixels": block[:-1], "mask": mask}).get("vectors")
        if vectors is None or vectors.dtype != np.uint8:
            raise ProtocolError("The process of the model's program sent an answer without features.")
        return self._reader.read(vectors.tobytes())


# -- Networks -------------------------------------------------------------------------------------------------------


def _network(
    host: _Host, package: ModelPackage, program: Path, arguments: Mapping[str, Any], device: int,
    settings: DetectorSettings,
) -> Detector:  # fmt: skip
    definition = package.definition
    told = host.start(Frame("start", {
        "kind": definition.kind,
        "is_raw": definition.options.get("head", "boxes") != "boxes",
        "file": str(placed(package, program, definition.program)),
        "device": device,
        "n_threads": settings.n_threads,
        "n_bands": len(definition.input.bands),
        "size": definition.tile.size,
    }))  # fmt: skip
    if told.get("raw"):
        from .program_detector import bare_output  # here, because it loads ONNX Runtime, whose detector reads heads

        return bare_output(host, told["raw"], package, arguments, settings)
    is_outlined = told.get("has_masks") is True and definition.geometry != "box" and not arguments.get("return_bboxes")
    traits = Traits(
        stride=definition.tile.stride or _TORCHSCRIPT_STRIDE,
        receptive_field_radius=None,
        is_dense=False,
        network_size=None if definition.tile.is_variable else definition.tile.size,
        max_batch=None if told.get("takes_batch") is True else 1,
        geometry="polygon" if is_outlined else "box",
    )
    # Only torchvision's form is known to have the background as its label 0.
    offset = int(definition.options.get("label_offset", told.get("takes_batch") is True))
    return TorchScriptDetector(host, traits, definition, offset, float(arguments["threshold"]))


class TorchScriptDetector:
    """A network that runs in the host, and suppresses duplicates itself."""

    def __init__(
        self, host: _Host, traits: Traits, definition: ModelDefinition, label_offset: int, threshold: float
    ) -> None:
        """Take the parts."""
        self._host, self._traits, self._threshold = host, traits, threshold
        self._normalisation = make_normalisation(definition.input)
        self._label_offset = label_offset
        self._n_classes = len(definition.classes)

    @property
    def traits(self) -> Traits:
        """Describe the network."""
        return self._traits

    def predict(self, batch: NDArray[Any]) -> list[Detections]:
        """Find objects, see `Detector.predict`.

        Raises:
            TileError: the network failed.
        """
        answer = self._host.find({"images": self._normalisation.apply(batch)})
        counts, boxes, scores, labels, masks = (answer.get(n) for n in ("counts", "boxes", "scores", "labels", "masks"))
        if counts is None or boxes is None or scores is None or labels is None or counts.shape != (len(batch),):
            raise ProtocolError("The process of the model's program sent an answer without detections.")
        n_found = len(boxes) if boxes.ndim else 0
        if self._traits.geometry == "box" or masks is None:
            masks = np.empty((n_found, 0), np.uint8)
        is_whole = boxes.shape == (n_found, 4) and scores.shape == labels.shape == masks.shape[:1] == (n_found,)
        are_numbers = all(array.dtype.kind in "buif" for array in (boxes, scores, labels)) and masks.dtype == np.uint8
        if not is_whole or not are_numbers or not _adds_up(counts, n_found):
            raise ProtocolError("The process of the model's program sent detections that do not belong together.")
        ends = np.cumsum(counts)[:-1]
        parts = zip(*(np.split(array, ends) for array in (boxes, scores, labels, masks)))
        return [self._detections(*part, side=batch.shape[-1]) for part in parts]

    def close(self) -> None:
        """End the network's process."""
        self._host.close()

    def _detections(
        self, boxes: NDArray[Any], scores: NDArray[Any], labels: NDArray[Any], masks: NDArray[Any], *, side: int
    ) -> Detections:
        is_sound = (
            np.isfinite(boxes).all(axis=1) & np.isfinite(scores) & np.isfinite(labels) & (np.abs(labels) < _MAX_LABEL)
        )
        is_box = (boxes[:, 2] >= boxes[:, 0]) & (boxes[:, 3] >= boxes[:, 1])
        numbers = np.where(is_sound, labels, -1).astype(np.int64) - self._label_offset
        keep = is_sound & is_box & (scores >= self._threshold) & (numbers >= 0) & (numbers < self._n_classes)
        shapes = None if self._traits.geometry == "box" else [_outline(mask, side) for mask in masks[keep]]
        found = make_detections(boxes[keep], np.clip(scores[keep], 0, 1), numbers[keep], shapes=shapes)
        if shapes is None:
            return found
        return found.take(np.array([shape is not None for shape in shapes], dtype=bool))


def _adds_up(counts: NDArray[Any], total: int) -> bool:
    """Tell whether numbers of objects are some, and together the total."""
    is_number = counts.dtype.kind in "ui" and bool(((counts >= 0) & (counts <= total)).all())
    return is_number and int(counts.sum()) == total


def _outline(bits: NDArray[np.uint8], side: int) -> Any:
    """Give the outline of a packed mask, None where it covers nothing."""
    return outline(np.unpackbits(bits, axis=-1, count=side).astype(bool)) if bits.ndim == 2 else None


# -- The process -------------------------------------------------------------------------------------------------------


class _EndedError(Exception):
    """The program's process has ended without an answer. No error of the tree: those have codes of their own."""

    def __init__(self, error: ModelError) -> None:
        """Keep the error that tells it."""
        super().__init__(str(error))
        self.error = error


class _Host:
    """The process and the threads that read from it. It ends with this process: by its group, or by its closed pipe.

    When the program takes its process down on a tile, a new one is started, a few times.
    """

    def __init__(self, work: Path, n_threads: int) -> None:
        """Start the process.

        Raises:
            ModelError: that is not possible.
        """
        self._work, self._n_threads = work, n_threads
        self._start: Frame | None = None
        self._n_deaths = 0
        self._output = _Output()
        self._launch()

    def _launch(self) -> None:
        try:
            self._process = _spawn(self._work, self._n_threads)
        except OSError as error:
            raise ModelError(f"The process for the model's program cannot be started: {error.strerror}.") from error
        self._answers: queue.Queue[Frame | ProtocolError | None] = queue.Queue(2)
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        arguments = (self._process.stderr, self._tail, self._output)
        self._log = threading.Thread(target=_copy_log, args=arguments, daemon=True)
        self._log.start()
        threading.Thread(target=_read_answers, args=(self._process.stdout, self._answers), daemon=True).start()
        self._finalizer = weakref.finalize(self, _end, self._process)

    def start(self, request: Frame) -> Mapping[str, Any]:
        """Load the program, and give what it says of itself.

        Raises:
            ModelError: it cannot be used, or its process died.
            DeviceMemoryError: it ran out of memory.
        """
        self._start = request
        try:
            return self._ask(request, "ready").members
        except _EndedError as ended:
            raise ended.error from None

    def find(self, arrays: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """Give what the program finds in a block.

        Raises:
            TileError: the program failed on this block.
            ModelError: it failed too often in a way that ended its process.
            DeviceMemoryError: it ran out of memory.
        """
        try:
            return self._ask(Frame("block", {}, arrays), "found").arrays
        except _EndedError as ended:
            error = ended.error
            self._n_deaths += 1
            if self._n_deaths > MAX_DEATHS or self._start is None:
                raise error from None
            self._launch()
            self.start(self._start)
            raise TileError(error.message, hint=error.hint, **error.context) from None

    def _ask(self, request: Frame, expected: str) -> Frame:
        if self._process.poll() is not None:  # what it started may keep its pipes open, and nobody reads there
            raise self._died()
        try:
            write_frame(self._stdin, request)
        except (OSError, ValueError):  # nobody reads any more; or it was closed before
            raise self._died() from None
        try:
            answer = self._answer()
        except queue.Empty:
            self.close()
            late = ModelError(
                f"The model's program did not answer within {ANSWER_LIMIT:.0f} seconds and was ended.",
                hint="Choose a GPU, or a smaller batch_size, which makes its blocks smaller.",
                stderr_tail=list(self._tail),
            )
            raise _EndedError(late) from None
        if answer is None:
            raise self._died()
        if isinstance(answer, ProtocolError):
            self.close()
            raise answer
        if answer.type == "error":
            raise _error(answer.members, is_start=request.type == "start")
        if answer.type != expected:
            self.close()
            raise ProtocolError(f"The process of the model's program sent '{answer.type[:50]}', not '{expected}'.")
        return answer

    def _answer(self) -> Frame | ProtocolError | None:
        """Wait for an answer; None where the process has died, though what it started may keep its pipes open.

        Raises:
            queue.Empty: there is none in time.
        """
        end, is_dead = time.monotonic() + ANSWER_LIMIT, False
        while True:
            left = end - time.monotonic()
            try:
                return self._answers.get(timeout=max(0.0, min(left, _LOOK_AFTER)))
            except queue.Empty:
                if left <= 0:
                    if is_dead:
                        return None
                    raise
            if not is_dead and self._process.poll() is not None:
                is_dead, end = True, min(end, time.monotonic() + _END_LIMIT)

    @property
    def _stdin(self) -> BinaryIO:
        if self._process.stdin is None:  # it was asked for
            raise OSError
        return self._process.stdin  # type: ignore[return-value]

    def close(self) -> None:
        """End the process, and wait for the last of what it wrote."""
        self._finalizer()
        self._log.join(_END_LIMIT)

    def _died(self) -> _EndedError:
        """Say how the process ended that gives no answer."""
        end = time.monotonic() + _END_LIMIT
        while self._process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        code = self._process.poll()
        self.close()
        last = next((line for line in reversed(self._tail) if line.strip()), "")
        return _EndedError(
            ModelError(
                f"The process of the model's program died (exit code {code})" + (f": {last[:300]}" if last else "."),
                hint="The job's log holds what the program wrote. The program itself has to be repaired, or the memory "
                "was used up.",
                exit_code=code,
                stderr_tail=list(self._tail),
            )
        )


def _spawn(work: Path, n_threads: int) -> subprocess.Popen[bytes]:
    """Start the host in this process's group, with nothing of this process but the pipes."""
    environment = {name: value for name, value in child_environment(os.environ).items() if not _may_be_secret(value)}
    environment["OMP_NUM_THREADS"] = environment["MKL_NUM_THREADS"] = str(max(1, n_threads))
    # A list, no shell: this interpreter and a file of ours; what runs in there, the user consented to.
    return subprocess.Popen(  # nosec B603
        [sys.executable, "-I", "-u", "-X", "utf8", str(START_FILE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=work,
        env=environment,
        close_fds=True,
        creationflags=NO_WINDOW,
    )


def _may_be_secret(value: str) -> bool:
    """Tell whether a variable holds an address with a user's name and password, as those of proxies may."""
    return "://" in value and "@" in value


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    process.kill()
    process.wait()


def _read_answers(stream: Any, answers: queue.Queue[Frame | ProtocolError | None]) -> None:
    """Read answers until the end, which is told as None."""
    try:
        while (frame := read_frame(stream)) is not None:
            answers.put(frame)
    except ProtocolError as error:
        answers.put(error)
    except (OSError, ValueError):  # closed by this side
        pass
    answers.put(None)


class _Output:
    """Counts what a program writes, over all its processes."""

    n_bytes = 0


def _copy_log(stream: Any, tail: deque[str], output: _Output) -> None:
    """Copy what the program writes to the job's log, as far as it has room for it, and keep the last lines."""
    while line := stream.readline(_MAX_LINE):
        text = line.decode("utf-8", "replace")
        tail.append(text.rstrip("\r\n"))
        had_room = output.n_bytes < MAX_LOG
        output.n_bytes += len(line)
        if not had_room:  # read on: the program would wait for room in its pipe
            continue
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)
            if output.n_bytes >= MAX_LOG:
                sys.stderr.write(
                    f"\nThe program wrote {MAX_LOG / 1e6:.0f} MB; what it writes from here on is left out.\n"
                )


def _error(told: Mapping[str, Any], *, is_start: bool) -> InferenceError:
    """Give the error for what the host told."""
    kind, stage, name, text, missing = (
        plain_text(told.get(key), _MAX_LINE) for key in ("kind", "stage", "exception", "message", "missing")
    )
    what = f"{name}: {text}" if text else name
    if kind == "memory":
        return DeviceMemoryError(
            "The memory does not hold one block of the model's program.",
            hint="A smaller batch_size makes the blocks of most functions smaller.",
            batch_size=1,
        )
    if kind == "import" and is_start and missing.split(".")[0] == "arcgis":
        return ModelUnsupportedError(
            "The model's program needs arcgis, a library of Esri that Kestrel neither has nor uses.",
            hint="Use a version of the model that does without, for example in ONNX form.",
        )
    if kind == "import" and is_start:
        library = f"the library '{missing}'" if missing else f"something ({what})"
        return BackendMissingError(
            f"The model's program needs {library}, which the inference environment lacks.",
            hint="Install it into the environment that Settings > Options > Kestrel names. " + SETUP_HINT,
            library=missing,
        )
    if kind == "unusable":
        return ModelUnsupportedError(f"The model's program cannot be used: {text}.")
    if is_start:
        return ModelError(
            f"The model's program failed at the start{f' (in {stage})' if stage else ''}: {what}",
            hint="The job's log holds the whole message. The program may want a newer or older library.",
            stage=stage,
        )
    return TileError(f"The model's program failed on a tile{f' (in {stage})' if stage else ''}: {what}", stage=stage)
