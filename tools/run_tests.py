"""Runs the tests, each part in the environment that it is for, and ends with one line over all of them."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
NOTHING_COLLECTED = 5
"""pytest's exit code when there was no test to run."""


@dataclass(frozen=True)
class Suite:
    """Tests that run together in one environment."""

    name: str
    environment: str
    paths: tuple[str, ...]
    options: tuple[str, ...] = ()

    @property
    def report(self) -> Path:
        """Where pytest writes its counts."""
        return BUILD / f"tests-{self.name}.xml"


SUITES = (
    # Without QGIS, tests bear company: one process a core.
    Suite("inference", "inference", ("tests/inference", "tests/training"), ("-n", "auto")),
    # Two of QGIS: much of their time they wait for a worker. A file's tests share what they have set up.
    Suite("qgis", "qgis", ("tests/qgis", "tests/system", "tests/test_metadata.py"), ("-n", "2", "--dist", "loadfile")),
)


@dataclass
class Counts:
    """How tests ended."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0


def main() -> int:
    """Run the suites; 0 only when at least one test ran and none failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="leave out what is marked slow")
    parser.add_argument("--suite", choices=[suite.name for suite in SUITES], help="only this one")
    options, pytest_options = parser.parse_known_args()
    suites = [suite for suite in SUITES if options.suite in (None, suite.name)]
    started, total = time.monotonic(), Counts()
    # Side by side in the fast run only: the full one has time limits that a loaded machine would break.
    with ThreadPoolExecutor(len(suites) if options.fast else 1) as pool:
        codes = list(pool.map(lambda suite: run(suite, options.fast, pytest_options), suites))
    for suite in suites:
        add_counts(suite, total)
    is_good = all(code in (0, NOTHING_COLLECTED) for code in codes)
    if total.failed == 0 and not is_good:
        total.failed = 1  # pytest itself did not come through: the line below must not look like success
    print(f"\nAll tests together, {time.monotonic() - started:.0f} s:")
    print(f"{total.passed} passed, {total.failed} failed, {total.skipped} skipped")
    return 0 if is_good and total.passed else 1


def run(suite: Suite, is_fast: bool, pytest_options: list[str]) -> int:
    """Run one suite and give pytest's exit code."""
    suite.report.unlink(missing_ok=True)
    paths = [path for path in suite.paths if (ROOT / path).exists()]
    python = BUILD / "env" / suite.environment / "bin" / "python"
    command = [str(python), "-m", "pytest", f"--junitxml={suite.report}", *suite.options, *pytest_options, *paths]
    if is_fast:
        # Two that run at once would mix their lines: each is shown when it is done.
        command[3:3] = ["-q", "-m", "not slow"]
        done = subprocess.run(
            command, cwd=ROOT, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        print(f"\n-- Tests in the {suite.environment} environment\n{done.stdout}", flush=True)
        return done.returncode
    print(f"\n-- Tests in the {suite.environment} environment", flush=True)
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def add_counts(suite: Suite, total: Counts) -> None:
    """Add what a suite's report says, if it came to one."""
    if not suite.report.exists():
        return
    for result in ET.parse(suite.report).getroot().iter("testsuite"):  # noqa: S314 (pytest wrote it)
        failed = int(result.get("failures", 0)) + int(result.get("errors", 0))
        skipped = int(result.get("skipped", 0))
        total.passed += int(result.get("tests", 0)) - failed - skipped
        total.failed += failed
        total.skipped += skipped


if __name__ == "__main__":
    sys.exit(main())
