"""Throws mutated packages, definitions, weights and arguments at the readers, in a process with a cap on its memory.

An input is a function of the seed and its number, so a run can be repeated, and an input that makes the process die or
hang is known all the same. A reader may read what it gets or refuse it with an InferenceError. A run fails on any other
exception, on memory above the cap, on an input that takes longer than 10 seconds, and where code of an input ran; such
inputs are saved. Linux only: memory is capped and measured through /proc and setrlimit.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "build" / "plugins"))

from kestrel.inference.errors import InferenceError
from kestrel.inference.models.arguments import argument_specs, parse_arguments, resolve_arguments
from kestrel.inference.models.checkpoint import read_checkpoint
from kestrel.inference.models.package import open_package
from kestrel.inference.models.program import program_files
from kestrel.tests.fixtures import evil_pickles
from kestrel.tests.fixtures.esri_packages import arcgis_emd, programs
from kestrel.tests.fixtures.evil_pickles import MARKER, Canary
from kestrel.tests.fixtures.packages import definition, emd

ROOT = Path(__file__).resolve().parent.parent
MEMORY_DISK = Path("/dev/shm")  # noqa: S108 - the folders made in it have names of their own
FAMILIES = ("FasterRCNN", "MaskRCNN", "SingleShotDetector", "RetinaNet", "YOLOv3", "RTDetrV2")
LARGEST_SEED = 20_000
MAX_FAILURES = 20
SILENCE = 30.0
"""Seconds without a new input after which the process counts as hanging where no signal reaches it."""


@dataclass(frozen=True)
class Limits:
    """When a run ends, and what an input may cost."""

    seconds: float = 60.0
    executions: int | None = None
    seconds_each: float = 10.0
    bytes_each: int = 256 * 2**20


@dataclass
class Report:
    """What a run has seen."""

    executions: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, str] = (0.0, "")
    growth: int = 0
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Target:
    """A reader, and inputs that it takes."""

    name: str
    seeds: list[bytes]
    mutate: Callable[[random.Random, list[bytes]], bytes]
    read: Callable[[bytes, Path], Any]

    def make(self, seed: int, number: int) -> bytes:
        """Give the input of a number."""
        return self.mutate(random.Random(f"{seed} {self.name} {number}"), self.seeds)


class TooSlow(BaseException):
    """An input took too long. No reader catches this: it is no Exception."""


# -- Mutation ----------------------------------------------------------------------------------------------------------

INTERESTING = (
    0,
    1,
    4,
    127,
    128,
    255,
    256,
    2**15,
    2**16 - 1,
    2**27,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63 - 1,
    2**63,
)
OPERATIONS = bytes(range(0x80, 0x99)) + b"().01234FGIJKLMNPQRSTUVXabcdeghijlopqrstu]}"
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2**31, 2**63, 1e300, 0.5, "", "x" * 3000, "../x", "\ud800", "\u202e", "C:\\x", [], {}, [[]],
    {"x": {}}, [None] * 50, "ONNX", "arcgis.learn.models._inferencing", "NUL", [1, 2, 3], "<b>", "0.5",
)  # fmt: skip


def mutate_bytes(randomness: random.Random, seeds: list[bytes]) -> bytes:
    """Change a few bytes of a seed, or join two."""
    data = bytearray(randomness.choice(seeds))
    for _ in range(randomness.choice((1, 1, 2, 4, 8))):
        at = randomness.randrange(len(data) + 1)
        kind = randomness.randrange(9)
        n = randomness.choice((1, 1, 2, 4, 8, 32))
        if kind == 0:
            data[at : at + 1] = bytes([randomness.randrange(256)])
        elif kind == 1:
            size = randomness.choice((1, 2, 4, 8))
            data[at : at + size] = (randomness.choice(INTERESTING) % 2 ** (8 * size)).to_bytes(size, "little")
        elif kind == 2:
            del data[at : at + n]
        elif kind == 3:
            data[at:at] = randomness.randbytes(n)
        elif kind == 4:
            data[at:at] = data[at : at + n] * randomness.choice((1, 2, 50))
        elif kind == 5:
            del data[at:]
        elif kind == 6:
            data[at:at] = bytes(randomness.choices(OPERATIONS, k=n))
        elif kind == 7:
            other = randomness.choice(seeds)
            start = randomness.randrange(len(other) + 1)
            data[at : at + n] = other[start : start + 4 * n]
        else:
            data[at : at + n] = data[at : at + n][::-1]
    return bytes(data[: 4 * LARGEST_SEED])


def mutate_json(randomness: random.Random, seeds: list[bytes]) -> bytes:
    """Change values, names and structure of a JSON object; now and then its text too."""
    content = json.loads(randomness.choice(seeds))
    for _ in range(randomness.choice((1, 1, 2, 4))):
        place = _place(randomness, content)
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            continue
        key = randomness.choice(keys)
        kind = randomness.randrange(5)
        if kind == 0:
            del place[key]
        elif kind == 1 and isinstance(place, dict):
            place[randomness.choice((str(key).lower(), str(key) + " ", "Kestrel", "x"))] = place.pop(key)
        elif kind == 2:
            place[key] = [place[key]] * randomness.choice((0, 1, 3))
        else:
            place[key] = copy.deepcopy(randomness.choice(VALUES))
    text = json.dumps(content).encode()
    return mutate_bytes(randomness, [text]) if randomness.random() < 0.3 else text


def _place(randomness: random.Random, content: Any) -> Any:
    place = content
    while True:
        below = [v for v in (place.values() if isinstance(place, dict) else place) if isinstance(v, (dict, list))]
        if not below or randomness.random() < 0.4:
            return place
        place = randomness.choice(below)


def mutate_checkpoint(randomness: random.Random, seeds: list[bytes]) -> bytes:
    """Change a whole archive, or the pickle in a sound one."""
    data = randomness.choice(seeds)
    members = unpack(data)
    name = next((name for name in members if name.endswith("data.pkl")), None)
    if name is None or randomness.random() < 0.4:
        return mutate_bytes(randomness, [data])
    members[name] = mutate_bytes(randomness, [members[name]])
    return pack(members, zipfile.ZIP_STORED)


def mutate_package(randomness: random.Random, seeds: list[bytes]) -> bytes:
    """Change a whole archive, or one member or its name in a sound one."""
    data = randomness.choice(seeds)
    if randomness.random() < 0.4:
        return mutate_bytes(randomness, [data])
    members = unpack(data)
    name = randomness.choice(list(members))
    content = members.pop(name)
    if randomness.random() < 0.3:
        name = mutate_bytes(randomness, [name.encode()]).decode("latin-1")[:200]
    elif name.endswith((".emd", ".json")):
        content = mutate_json(randomness, [content])
    else:
        content = mutate_bytes(randomness, [content])
    return pack({**members, name: content}, zipfile.ZIP_DEFLATED)


def unpack(data: bytes) -> dict[str, bytes]:
    """Give the members of an archive; none where it is not sound."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return {info.filename: archive.read(info) for info in archive.infolist()}
    except (zipfile.BadZipFile, RuntimeError, ValueError, NotImplementedError, EOFError, zlib.error):
        return {}


def pack(members: Mapping[str, bytes], compression: int) -> bytes:
    """Give a zip archive, whatever its members are called."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", compression) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo("x")
            info.filename, info.compress_type = name, compression
            archive.writestr(info, content)
    return sink.getvalue()


# -- Targets -----------------------------------------------------------------------------------------------------------


def targets(canary: Canary) -> list[Target]:
    """Give all readers with their seeds, some of which are evil from the start."""
    ours = [definition(), definition(tile={"size": 640, "padding": 64}, input={"bands": [0, 1], "scale": [1, 2]}),
            definition(arguments={"threshold": 0.4}, cell_size={"min": 0.1, "max": 0.2, "wkid": 3857})]  # fmt: skip
    theirs = [emd(), *(arcgis_emd(family) for family in FAMILIES), arcgis_emd("MaskRCNN", n_bands=4),
              emd(Framework="Python", InferenceFunction="Finder.py", ModelConfiguration=None)]  # fmt: skip
    texts = [json.dumps(content).encode() for content in ours], [json.dumps(content).encode() for content in theirs]
    files = [file.content for file in evil_pickles.corpus(canary) if len(file.content) < LARGEST_SEED]
    sound = [_state(), evil_pickles.mapping({"opt": evil_pickles.LIST, "model": _state()})] * 30
    archives = [data for data in files if data.startswith(b"PK\x03\x04")] + [evil_pickles.zipped(p) for p in sound]
    legacy = [data for data in files if data.startswith(b"\x80")] + [evil_pickles.legacy(p) for p in sound]
    pairs = [
        b'{"threshold": 0.4, "padding": 64}',
        b"threshold 0.4;padding 64",
        b"text 'a;b';test_time_augmentation True",
    ]
    return [
        Target("definition", texts[0], mutate_json, read_text),
        Target("emd", texts[1], mutate_json, read_text),
        Target("package", _packages(canary), mutate_package, read_package),
        Target("checkpoint-zip", archives, mutate_checkpoint, read_weights),
        Target("checkpoint-legacy", legacy, mutate_bytes, read_weights),
        Target("arguments", pairs, mutate_bytes, read_arguments),
    ]


def _state() -> bytes:
    """Give a sound state dict with views, types and counters."""
    rows = evil_pickles.tensor(size=evil_pickles.numbers(2, 2), stride=evil_pickles.numbers(1, 2))
    none = evil_pickles.tensor(size=evil_pickles.numbers(0, 3), stride=evil_pickles.numbers(3, 1))
    return evil_pickles.state(rows=rows, none=none, last=evil_pickles.tensor(offset=3, size=evil_pickles.numbers(1)),
                              num_batches_tracked=evil_pickles.number(7))  # fmt: skip


def _packages(canary: Canary) -> list[bytes]:
    weights = evil_pickles.zipped(evil_pickles.beside(evil_pickles.payloads(canary)["exec"]))
    definitions = [arcgis_emd(family) for family in FAMILIES]
    packed = [
        {"m.emd": json.dumps(data).encode(), "model.pth": weights, **programs(data, canary.file)}
        for data in definitions
    ]
    packed += [
        {"m.kestrel.json": json.dumps(definition()).encode(), "model.onnx": b"weights"},
        {"f\\m.emd": json.dumps(emd(ModelFile=".\\model.onnx")).encode(), "f\\model.onnx": b"\x08\x07"},
        {"m.emd": json.dumps(emd(Framework="Python", InferenceFunction="Finder.py", ModelConfiguration=None)).encode(),
         "model.onnx": b"", "Finder.py": canary.python.encode()},
    ]  # fmt: skip
    return [pack(members, zipfile.ZIP_DEFLATED) for members in packed]


def read_text(data: bytes, folder: Path) -> None:
    """Read a definition given as text."""
    argument_specs(open_package(data.decode("utf-8", "surrogateescape")).definition)


def read_package(data: bytes, folder: Path) -> None:
    """Open a package, hash it, list what it holds, and read its weights where they are a checkpoint."""
    path = folder / "p.dlpk"
    path.write_bytes(data)
    package = open_package(str(path))
    argument_specs(package.definition)
    package.info_files()
    package.sha256()
    if package.definition.program:
        program_files(package)
    elif package.definition.weights.endswith(".pth"):
        target = folder / "weights"
        target.unlink(missing_ok=True)
        read_weights_at(package.extract(package.weights_member(), target))


def read_weights(data: bytes, folder: Path) -> None:
    """Read a checkpoint with all its numbers."""
    path = folder / "m.pth"
    path.write_bytes(data)
    read_weights_at(path)


def read_weights_at(path: Path) -> None:
    """Read a checkpoint with all its numbers."""
    for tensor in read_checkpoint(path, path.name).values():
        array = tensor.numpy()
        if array.shape != tensor.shape or array.nbytes != tensor.nbytes:
            raise AssertionError(f"{tensor} became {array.shape} {array.dtype}")


def read_arguments(data: bytes, folder: Path) -> None:
    """Read model arguments, and fill in what they leave out."""
    text = data.decode("utf-8", "surrogateescape")
    resolve_arguments(MODEL, parse_arguments(text))


MODEL = open_package(json.dumps(definition())).definition


# -- One process -------------------------------------------------------------------------------------------------------


def go(chosen: list[Target], seed: int, limits: Limits, folder: Path, canary: Canary, out: Path,
       start: int = 0, progress: Callable[[int], None] = lambda number: None) -> Report:  # fmt: skip
    """Run inputs until a limit is reached.

    Args:
        chosen: The readers, which take turns.
        seed: Decides all inputs.
        limits: When to end.
        folder: For the files that readers read.
        canary: What evil inputs would touch.
        out: Where inputs are saved that make a reader fail.
        start: Number of the first input.
        progress: Is told each input's number before it is read.
    """
    report = Report()
    ends = time.monotonic() + limits.seconds
    signal.signal(signal.SIGALRM, _too_slow)
    highest = _peak()
    while time.monotonic() < ends and len(report.failures) < MAX_FAILURES:
        if limits.executions is not None and report.executions >= limits.executions:
            break
        number = start + report.executions
        target = chosen[number % len(chosen)]
        data = target.make(seed, number)
        progress(number)
        started = time.perf_counter()
        outcome, trace = _outcome(target, data, folder, limits.seconds_each)
        seconds = time.perf_counter() - started
        report.executions += 1
        report.outcomes[f"{target.name}: {outcome}"] += 1
        report.slowest = max(report.slowest, (seconds, f"{target.name} {number}"))
        grown = _peak() - highest
        report.growth = max(report.growth, grown)
        if grown > limits.bytes_each:
            highest += grown
            trace = trace or f"The input made the process grow by {grown / 2**20:.0f} MB."
        if canary.file.exists() or MARKER in os.environ:
            canary.file.unlink(missing_ok=True)
            os.environ.pop(MARKER, None)
            trace = f"Code of the input ran. {trace}"
        if trace:
            report.failures.append(save(out, target.name, seed, number, data, trace))
    return report


def _outcome(target: Target, data: bytes, folder: Path, seconds: float) -> tuple[str, str]:
    """Give the name of what happened, and the trace where that is a failure."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        target.read(data, folder)
    except InferenceError as error:
        return error.code, ""
    except TooSlow:
        return "too slow", traceback.format_exc()
    except Exception as error:  # whatever it is, it is what we are looking for
        return type(error).__name__, traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "read", ""


def _too_slow(*_: Any) -> None:
    raise TooSlow


def _peak() -> int:
    """Give the most bytes that this process ever had; getrusage would count what its parent had before it, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def save(out: Path, target: str, seed: int, number: int, data: bytes, trace: str) -> str:
    """Keep an input and what it caused; give one line about it."""
    out.mkdir(parents=True, exist_ok=True)
    stem = f"{target}-{seed}-{number}"
    (out / f"{stem}.bin").write_bytes(data)
    (out / f"{stem}.txt").write_text(trace)
    return f"{out / stem}.bin: {trace.strip().splitlines()[-1][:200]}"


def canary_in(out: Path) -> Canary:
    """Give the canary of a run. Its name stands in the inputs, which are the same ones again for the same seed."""
    return Canary(out.resolve() / "canary")


def child(options: argparse.Namespace) -> int:
    """Run in this process under its cap, and print the report as JSON."""
    import numpy as np

    np.fromfile(__file__, "u1", 1)  # what readers load on use is loaded before memory is measured
    canary = canary_in(options.out)
    chosen = targets(canary)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + options.memory * 2**20,) * 2)
    heartbeat = os.open(options.folder / "number", os.O_WRONLY | os.O_CREAT)
    scratch = options.folder / "scratch"
    scratch.mkdir(exist_ok=True)
    report = go(
        chosen, options.seed, Limits(options.seconds, options.executions), scratch, canary, options.out, options.start,
        lambda number: os.pwrite(heartbeat, struct.pack("<q", number), 0) and None,
    )  # fmt: skip
    print(json.dumps({**vars(report), "outcomes": dict(report.outcomes)}))
    return 0


# -- The parent --------------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> Report:
    """Start the process, again where an input killed it, and join the reports."""
    total, chosen = Report(), targets(canary_in(options.out))
    ends, start = time.monotonic() + options.seconds, 0
    with tempfile.TemporaryDirectory(dir=MEMORY_DISK if MEMORY_DISK.is_dir() else None) as name:
        folder = Path(name)
        while True:
            left = None if options.executions is None else options.executions - total.executions
            seconds = ends - time.monotonic()
            if seconds <= 0 or left == 0 or len(total.failures) >= MAX_FAILURES:
                return total
            found, number, problem = _run_child(options, folder, seconds, left, start)
            if found is not None:
                _add(total, found)
                return total
            target = chosen[number % len(chosen)]
            data = target.make(options.seed, number)
            total.failures.append(save(options.out, target.name, options.seed, number, data, problem))
            total.executions += number + 1 - start
            start = number + 1


def _run_child(
    options: argparse.Namespace, folder: Path, seconds: float, left: int | None, start: int
) -> tuple[dict[str, Any] | None, int, str]:
    """Give the report; or, where the process died or hung, the number of the input and what happened."""
    place = folder / "number"
    place.write_bytes(struct.pack("<q", start))
    command = [
        sys.executable, "-I", str(Path(__file__).resolve()), "--child", str(folder), "--seconds", str(seconds),
        "--seed", str(options.seed), "--out", str(options.out), "--memory", str(options.memory), "--start", str(start),
        *(["--executions", str(left)] if left is not None else []),
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        last, since = b"", time.monotonic()
        while True:
            try:
                output, errors = process.communicate(timeout=1.0)
                break
            except subprocess.TimeoutExpired:
                now = place.read_bytes()
                if now != last:
                    last, since = now, time.monotonic()
                elif time.monotonic() - since > SILENCE:
                    process.kill()
                    process.communicate()
                    return None, struct.unpack("<q", now)[0], f"The process hung for {SILENCE:.0f} s and was killed."
    number = struct.unpack("<q", place.read_bytes())[0]
    if process.returncode != 0:
        return None, number, f"The process ended with code {process.returncode}.\n{errors[-2000:]}"
    return json.loads(output), number, ""


def _add(total: Report, found: Mapping[str, Any]) -> None:
    total.executions += found["executions"]
    total.outcomes.update(found["outcomes"])
    total.slowest = max(total.slowest, tuple(found["slowest"]))
    total.growth = max(total.growth, found["growth"])
    total.failures += found["failures"]


def main() -> int:
    """Run, print what was seen, and give 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to run")
    parser.add_argument("--executions", type=int, help="end after so many inputs")
    parser.add_argument("--seed", type=int, help="decides all inputs; another one each time where it is not given")
    parser.add_argument("--memory", type=int, default=512, help="MB that the process may have beyond its libraries")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "fuzz", help="where inputs go that fail")
    parser.add_argument("--start", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--child", type=Path, dest="folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.randrange(2**31)
    if options.folder:
        return child(options)
    started = time.monotonic()
    report = run(options)
    seconds = time.monotonic() - started
    for name, count in sorted(report.outcomes.items()):
        print(f"  {name:45} {count:8}")
    codes = sorted({name.partition(": ")[2] for name in report.outcomes} - {"read"})
    print(f"{report.executions} inputs in {seconds:.0f} s, seed {options.seed}. Distinct codes: {', '.join(codes)}.")
    print(f"Slowest: {report.slowest[1]} with {report.slowest[0]:.2f} s. Most memory: {report.growth / 2**20:.0f} MB.")
    for failure in report.failures:
        print(f"FAILED {failure}")
    print(f"{len(report.failures)} failures.")
    return 1 if report.failures or not report.executions else 0


if __name__ == "__main__":
    sys.exit(main())
