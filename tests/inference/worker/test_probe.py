"""How an interpreter is judged."""

from __future__ import annotations

from pathlib import Path

import pytest

from kestrel.inference.versions import LIBRARY_FLOORS
from kestrel.inference.worker.probe import probe
from kestrel.tests.fixtures.interpreters import GOOD, make_interpreter, posix_only, write_program


def test_an_interpreter_with_everything_is_usable(tmp_path: Path) -> None:
    report = probe(make_interpreter(tmp_path, GOOD))
    assert report.problems == []
    assert report.is_usable
    assert report.versions == {**LIBRARY_FLOORS, "gdal": "3.10.3"}
    assert [(device.name, device.title, device.memory) for device in report.devices] == [("cuda:0", "Test GPU", 2**33)]


@pytest.mark.slow
def test_the_projects_own_environment_is_usable(inference_python: str) -> None:
    report = probe(inference_python)
    assert report.problems == []
    assert report.versions.keys() == {*LIBRARY_FLOORS, "gdal"}


@pytest.mark.parametrize("library", list(LIBRARY_FLOORS))
def test_a_missing_library_is_named_with_the_command_that_installs_it(tmp_path: Path, library: str) -> None:
    modules = {name: source for name, source in GOOD.items() if name != library}
    interpreter = make_interpreter(tmp_path, modules)
    (problem,) = probe(interpreter).problems
    assert problem.startswith(f"{library} is not installed.")
    assert f'"{interpreter}" -m pip install --upgrade "{library}>={LIBRARY_FLOORS[library]}"' in problem


@pytest.mark.parametrize(
    ("library", "version"), [("torch", "2.9.1+cu128"), ("onnxruntime", "1.23.2"), ("onnx", "1.20.0"), ("numpy", "1.25")]
)
def test_a_library_below_its_floor_is_a_problem(tmp_path: Path, library: str, version: str) -> None:
    source = GOOD[library].replace(LIBRARY_FLOORS[library], version, 1)
    (problem,) = probe(make_interpreter(tmp_path, {**GOOD, library: source})).problems
    assert problem.startswith(f"{library} {version} is too old.")


def test_a_torchvision_built_for_another_torch_is_recognised(tmp_path: Path) -> None:
    broken = "raise RuntimeError('operator torchvision::nms does not exist')"
    (problem,) = probe(make_interpreter(tmp_path, {**GOOD, "torchvision": broken})).problems
    assert "must come as a pair" in problem
    assert '--force-reinstall "torch>=2.10" "torchvision>=0.25"' in problem


def test_a_library_that_kills_the_interpreter_is_named(tmp_path: Path) -> None:
    problems = probe(make_interpreter(tmp_path, {**GOOD, "onnx": "import os\nos._exit(9)"})).problems
    assert len(problems) == 1
    assert "ended with code 9 while it imported onnx" in problems[0]


@pytest.mark.slow
def test_a_library_that_hangs_is_named(tmp_path: Path) -> None:
    interpreter = make_interpreter(tmp_path, {**GOOD, "torch": "import time\ntime.sleep(60)"})
    (problem,) = probe(interpreter, timeout=2).problems
    assert "did not answer within 2 seconds while it imported torch" in problem


def test_a_library_that_greets_on_stdout_does_no_harm(tmp_path: Path) -> None:
    greeting = "print('Hello from', 'shapely')\n" + GOOD["shapely"]
    assert probe(make_interpreter(tmp_path, {**GOOD, "shapely": greeting})).is_usable


def test_a_missing_runtime_library_on_windows_has_its_own_remedy(tmp_path: Path) -> None:
    broken = "raise OSError('[WinError 1114] A dynamic link library (DLL) initialization routine failed')"
    (problem,) = probe(make_interpreter(tmp_path, {**GOOD, "onnxruntime": broken})).problems
    assert "Visual C++ Redistributable" in problem


def test_an_interpreter_that_does_not_exist_is_a_problem_not_an_exception(tmp_path: Path) -> None:
    report = probe(str(tmp_path / "python"))
    assert not report.is_usable
    assert "cannot be started" in report.problems[0]


@posix_only
def test_a_program_that_is_no_python_is_recognised(tmp_path: Path) -> None:
    program = write_program(tmp_path / "qgis", "#!/bin/sh\nexit 3\n")
    assert "is not a Python that can be used: it ended with code 3" in probe(str(program)).problems[0]


def test_the_users_python_variables_do_not_reach_the_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "json.py").write_text("raise SystemExit(5)")
    monkeypatch.setenv("PYTHONPATH", str(evil))
    monkeypatch.chdir(evil)
    assert probe(make_interpreter(tmp_path / "env", GOOD)).is_usable
