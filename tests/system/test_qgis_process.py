"""tools/qgis_process.sh is QGIS's own qgis_process, unchanged, on the repository's profile."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def test_the_algorithm_is_listed(run_qgis_process: Callable[..., Any]) -> None:
    answer = run_qgis_process(["--json", "list"])
    assert answer.code == 0
    assert "kestrel:detectobjects" in answer.json["providers"]["kestrel"]["algorithms"]


def test_standard_input_and_the_exit_code_pass_through(run_qgis_process: Callable[..., Any]) -> None:
    good = run_qgis_process(["run", "native:createpointslayerfromtable", "-"], stdin='{"inputs": {}}')
    assert good.code != 0
    assert "not" in good.stderr


def test_inputs_given_as_json_reach_the_algorithm(run_qgis_process: Callable[..., Any]) -> None:
    answer = run_qgis_process(
        ["run", "native:stringconcatenation", "-"], stdin='{"inputs": {"INPUT_1": "a b", "INPUT_2": "ü"}}'
    )
    assert answer.json["results"]["CONCATENATION"] == "a bü"


@pytest.fixture
def fake_checkout(tmp_path: Path, repository: Path) -> Path:
    """A copy of the script beside a profile, with a qgis_process that tells what it was given."""
    (tmp_path / "tools").mkdir()
    shutil.copy(repository / "tools" / "qgis_process.sh", tmp_path / "tools")
    fake = tmp_path / "bin" / "qgis_process"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nprintf "%s|" "$@"\ncat\nstat -c %a "$XDG_RUNTIME_DIR"\nexit 7\n')
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def run_fake(checkout: Path, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{checkout / 'bin'}:{os.environ['PATH']}"}
    environment.pop("XDG_RUNTIME_DIR", None)
    script = str(checkout / "tools" / "qgis_process.sh")
    return subprocess.run([script, *args], env=environment, input=stdin, capture_output=True, text=True, timeout=30)


def test_arguments_arrive_unchanged_and_the_runtime_folder_is_private(fake_checkout: Path) -> None:
    marker = fake_checkout / "build" / "profile" / "made-for.txt"
    marker.parent.mkdir(parents=True)
    marker.write_text("here")
    done = run_fake(fake_checkout, "run", "--A=a b", '--B={"x": "*"}', "", stdin="text\n")
    assert done.stdout == 'run|--A=a b|--B={"x": "*"}||text\n700\n'
    assert done.returncode == 7


def test_without_a_profile_it_says_what_to_do(fake_checkout: Path) -> None:
    done = run_fake(fake_checkout, "list")
    assert done.returncode == 2
    assert "make setup" in done.stderr
