"""Packages from a hostile stranger: each is refused with its stable code, and nothing in it ever runs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kestrel.inference.worker.environment import child_environment
from kestrel.tests.fixtures import evil_packages
from kestrel.tests.fixtures.evil_packages import (
    INCOMPATIBLE,
    PACKAGE,
    PROGRAM,
    RASTER,
    RASTER_READ,
    UNSUPPORTED,
    EvilPackage,
    corpus,
)
from kestrel.tests.fixtures.evil_pickles import MARKER, Canary

CAP = 2 * 2**30
"""Memory for the process beyond what it has when its libraries are loaded."""
MAX_GROWTH = 100 * 2**20  # networks that are built before their weights are looked at are in it
MAX_GROWTH_OF_BOMBS = 50 * 2**20
MAX_SECONDS = 10
HOSTILE = {
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1", "GDAL_VRT_ENABLE_PYTHON": "YES", "PYTHONSTARTUP": "sitecustomize.py",
    "PYTHONINSPECT": "1", "GDAL_VRT_PYTHON_TRUSTED_MODULES": "*", "OMP_NUM_THREADS": "1",
}  # fmt: skip
"""Variables that would switch safety off where somebody listened to them."""


@dataclass(frozen=True)
class Run:
    """What became of the corpus."""

    cases: list[EvilPackage]
    results: dict[str, Any]
    canary: Canary
    was_called: bool
    marker: str | None
    before: set[str]
    after: set[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The whole corpus, gone through in one process with a cap on its memory and a hostile environment."""
    if sys.platform != "linux":
        pytest.skip("memory is capped and measured through /proc")
    folder, scratch = tmp_path_factory.mktemp("packages"), tmp_path_factory.mktemp("scratch")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        canary = Canary(tmp_path_factory.mktemp("canary") / "touched", server.getsockname()[1])
        cases, rows, search_path = corpus(canary), [], []
        for number, case in enumerate(cases):
            place = folder / str(number)
            place.mkdir()
            rows.append(
                {"name": case.name, "reference": case.make(place), "tier": case.tier, "allowed_code": case.allowed_code}
            )
            if (place / "sitecustomize.py").exists():
                search_path.append(str(place))
        (scratch / "cases.json").write_text(json.dumps(rows))
        before = tree(folder)
        done = subprocess.run(
            [sys.executable, "-I", evil_packages.__file__, str(scratch / "cases.json"), str(scratch), str(CAP)],
            capture_output=True, text=True, timeout=250, cwd=search_path[0],
            env={**os.environ, **HOSTILE, "PYTHONPATH": os.pathsep.join(search_path)},
        )  # fmt: skip
        assert 0 == done.returncode, done.stderr[-2000:]
        try:
            server.accept()[0].close()
            was_called = True
        except BlockingIOError:
            was_called = False
    found = json.loads(done.stdout)
    return Run(cases, found["cases"], canary, was_called, found["marker"], before, tree(folder))


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.slow
def test_each_package_is_refused_with_its_code(run: Run) -> None:
    wrong = [
        (case.threat, case.name, case.codes, run.results[case.name]["outcome"], run.results[case.name]["message"][:300])
        for case in run.cases
        if run.results[case.name]["outcome"] not in case.codes
    ]
    assert [] == wrong


@pytest.mark.slow
def test_the_corpus_covers_the_table_of_threats(run: Run) -> None:
    assert len(run.cases) == len({case.name for case in run.cases}) == len(run.results) >= 60
    threats = Counter(case.threat for case in run.cases)
    assert {"S1", *(f"S{number}" for number in range(3, 18))} == set(threats)
    assert min(threats.values()) >= 2
    outcomes = {result["outcome"] for result in run.results.values()}
    assert {PACKAGE, PROGRAM, UNSUPPORTED, INCOMPATIBLE, RASTER, RASTER_READ} <= outcomes


@pytest.mark.slow
def test_every_refusal_says_why(run: Run) -> None:
    silent = [name for name, result in run.results.items() if len(result["message"]) < 20]
    assert [] == silent
    raw = ("Traceback", "weights_only", "allow-list", "allowlist", "pickle.")
    assert [] == [name for name, result in run.results.items() if any(word in result["message"] for word in raw)]


@pytest.mark.slow
def test_nothing_of_a_package_ran(run: Run) -> None:
    assert (None, False, False) == (run.marker, run.canary.file.exists(), run.was_called)
    assert MARKER not in os.environ


@pytest.mark.slow
def test_nothing_was_written_beside_a_package_or_where_its_names_point(run: Run) -> None:
    assert run.before == run.after
    assert not Path("/tmp/x.txt").exists()  # what a member of the corpus is called


@pytest.mark.slow
def test_no_package_costs_much_memory_or_time(run: Run) -> None:
    costly = [
        (case.threat, case.name, result["growth"], result["seconds"])
        for case in run.cases
        for result in [run.results[case.name]]
        if result["growth"] > (MAX_GROWTH_OF_BOMBS if case.threat == "S4" else MAX_GROWTH)
        or result["seconds"] > MAX_SECONDS
    ]
    assert [] == costly


def test_variables_that_would_switch_safety_off_do_not_reach_the_worker() -> None:
    loaders = dict.fromkeys(("LD_PRELOAD", "LD_LIBRARY_PATH", "GDAL_DRIVER_PATH", "PYTHONPATH", "PYTHONHOME"), "evil")
    child = child_environment({**os.environ, **HOSTILE, **loaders})
    assert not ({*HOSTILE, *loaders} - {"OMP_NUM_THREADS"}) & set(child)


def test_the_canaries_are_alive(tmp_path: Path) -> None:
    """Run as a program, the same source leaves what the corpus looks for."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        canary = Canary(tmp_path / "touched", server.getsockname()[1])
        program = f"{canary.python}\nprint(os.environ[{MARKER!r}])"
        assert b"1\n" == subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout
        server.settimeout(5)
        server.accept()[0].close()
    assert canary.file.exists()
