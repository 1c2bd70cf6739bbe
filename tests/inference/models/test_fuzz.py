"""A short run of `make fuzz`, and a proof that it would notice."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kestrel.inference.errors import ModelPackageError
from kestrel.tests.fixtures.evil_pickles import MARKER, Canary

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="memory is capped and measured through /proc"),
]

EXECUTIONS = 6000


@pytest.fixture(scope="module")
def fuzz(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz", repository / "tools" / "fuzz.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_mutated_packages_and_weights_are_read_or_refused(repository: Path, tmp_path: Path) -> None:
    done = run(repository, "--executions", str(EXECUTIONS), "--seed", "1", "--out", str(tmp_path / "out"))
    assert 0 == done.returncode, done.stdout[-3000:] + done.stderr[-2000:]
    assert f"{EXECUTIONS} inputs in" in done.stdout and "0 failures." in done.stdout
    for reader in ("definition", "emd", "package", "checkpoint-zip", "checkpoint-legacy", "arguments"):
        assert f"{reader}: read" in done.stdout  # not all is refused at the door
    for code in ("model-package", "model-unsupported", "untrusted-code", "job"):
        assert code in done.stdout


def run(repository: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(repository / "tools" / "fuzz.py"), "--seconds", "100", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


def go(fuzz: ModuleType, read: Callable[[bytes, Path], Any], tmp_path: Path, **limits: Any) -> Any:
    target = fuzz.Target("planted", [b"0123456789"], fuzz.mutate_bytes, read)
    bounds = fuzz.Limits(seconds=30, **{"executions": 300, **limits})
    return fuzz.go([target], 7, bounds, tmp_path, Canary(tmp_path / "touched"), tmp_path / "out")


def test_a_reader_that_raises_something_else_is_noticed_and_its_input_saved(fuzz: ModuleType, tmp_path: Path) -> None:
    def read(data: bytes, folder: Path) -> None:
        if len(data) > 20:
            raise KeyError("planted")
        raise ModelPackageError("Refused.")

    report = go(fuzz, read, tmp_path)
    assert 0 < len(report.failures) <= fuzz.MAX_FAILURES and "KeyError: 'planted'" in report.failures[0]
    assert {"planted: KeyError", "planted: model-package"} == set(report.outcomes)
    saved = sorted((tmp_path / "out").glob("*.bin"))
    assert len(report.failures) == len(saved) and all(len(path.read_bytes()) > 20 for path in saved)
    number = int(saved[0].stem.rpartition("-")[2])
    target = fuzz.Target("planted", [b"0123456789"], fuzz.mutate_bytes, read)
    assert saved[0].read_bytes() == target.make(7, number)


def test_a_reader_that_takes_too_long_is_noticed(fuzz: ModuleType, tmp_path: Path) -> None:
    report = go(fuzz, lambda data, folder: time.sleep(5), tmp_path, executions=2, seconds_each=0.1)
    assert {"planted: too slow": 2} == report.outcomes and 2 == len(report.failures)


GREEDY = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
import fuzz
from kestrel.tests.fixtures.evil_pickles import Canary
folder = Path(sys.argv[1])
def read(data, place):
    bytearray(b"x" * (fuzz._peak() + 80 * 2**20))
target = fuzz.Target("planted", [b"0123456789"], fuzz.mutate_bytes, read)
limits = fuzz.Limits(seconds=30, executions=1, bytes_each=40 * 2**20)
report = fuzz.go([target], 7, limits, folder, Canary(folder / "touched"), folder / "out")
print(*report.failures)
"""


def test_a_reader_that_takes_much_memory_is_noticed(repository: Path, tmp_path: Path) -> None:
    # In a process of its own: what this one has had for other tests would not count as growth.
    folders = [str(tmp_path), str(repository / "tools"), str(repository / "build" / "plugins")]
    done = subprocess.run([sys.executable, "-c", GREEDY, *folders], capture_output=True, text=True, timeout=100)
    assert "grow by" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("trace", ["file", "variable"])
def test_code_that_ran_is_noticed(fuzz: ModuleType, tmp_path: Path, trace: str) -> None:
    def read(data: bytes, folder: Path) -> None:
        if trace == "file":
            (tmp_path / "touched").touch()
        else:
            os.environ[MARKER] = "1"

    report = go(fuzz, read, tmp_path, executions=2)
    assert 2 == len(report.failures) and "Code of the input ran" in report.failures[0]
    assert MARKER not in os.environ


def test_an_input_that_kills_the_process_is_noticed_and_the_run_goes_on(repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(repository / "tools" / "fuzz.py"), "--seed", "1", "--out", str(tmp_path)]
    with subprocess.Popen([*command, "--seconds", "8"], stdout=subprocess.PIPE, text=True) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        ends = time.monotonic() + 20
        while not children.read_text() and time.monotonic() < ends:
            time.sleep(0.05)
        time.sleep(1.5)
        os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
        output, _ = process.communicate(timeout=60)
    assert 1 == process.returncode
    assert "The process ended with code -9" in output and "1 failures." in output
    assert "package: read" in output and 1 == len(list(tmp_path.glob("*.bin")))


def test_the_same_seed_gives_the_same_inputs(fuzz: ModuleType, tmp_path: Path) -> None:
    first, second = (fuzz.targets(fuzz.canary_in(tmp_path)) for _ in range(2))
    for one, other in zip(first, second):
        assert [one.make(3, number) for number in range(30)] == [other.make(3, number) for number in range(30)]
        assert [one.make(3, number) for number in range(30)] != [one.make(4, number) for number in range(30)]
