"""The zip that users install: complete, clean by the plugin site's rules, and working from an empty profile."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def run_tool(repository: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(repository / "tools" / name), *arguments]
    return subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def package(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The zip, made of the files as they are."""
    path = tmp_path_factory.mktemp("package") / "kestrel.zip"
    done = run_tool(repository, "package.py", "--worktree", "--output", str(path))
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="module")
def installed(package: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A QGIS profile into which the zip was unpacked."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(package) as archive:
        archive.extractall(folder / "unpacked")
    interpreter = repository / "build" / "env" / "inference" / "bin" / "python"
    done = run_tool(
        repository, "make_profile.py", str(folder / "profile"), str(folder / "unpacked" / "kestrel"), str(interpreter)
    )
    assert done.returncode == 0, done.stderr
    return folder / "profile"


def test_only_what_a_user_needs_is_in_the_zip(package: Path) -> None:
    inside = {name.split("/")[1] for name in zipfile.ZipFile(package).namelist()}
    assert inside.isdisjoint(
        {"tests", "tools", "training", "benchmarks", "Makefile", ".ci", "pyproject.toml", ".gitignore"}
    )
    assert {"__init__.py", "metadata.txt", "LICENSE", "plugin.py", "processing_provider", "inference"} <= inside


def test_the_locked_requirements_come_along_and_no_others(package: Path) -> None:
    names = [name for name in zipfile.ZipFile(package).namelist() if name.startswith("kestrel/requirements/")]
    assert [name for name in names if not name.endswith("/")] == [
        "kestrel/requirements/inference.txt",
        "kestrel/requirements/tensorflow.txt",
    ]


@pytest.mark.slow
def test_the_plugin_site_would_not_refuse_it(package: Path, repository: Path) -> None:
    done = run_tool(repository, "verify_package.py", str(package))
    assert (done.returncode, done.stdout) == (0, "kestrel.zip: nothing that the plugin site would refuse\n")


def test_the_check_finds_what_the_site_refuses(tmp_path: Path, repository: Path) -> None:
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bad/__init__.py", "assert True\nkey = 'AKIAIOSFODNN7EXAMPLF'\n")
        archive.writestr("bad/module.pyc", "")
        archive.writestr("bad/metadata.txt", "[general]\nname=Bad\n")
    done = run_tool(repository, "verify_package.py", str(path))
    assert done.returncode == 1
    for finding in ("B101", "AWS Access Key", "bad/module.pyc", "LICENSE is missing", "no tracker"):
        assert finding in done.stdout


def test_the_plugin_loads_from_an_empty_profile(installed: Path, run_qgis_process: Callable[..., Any]) -> None:
    answer = run_qgis_process(["--json", "help", "kestrel:detectobjects"], profile=installed)
    assert answer.code == 0, answer.stderr
    assert answer.json["algorithm_details"]["id"] == "kestrel:detectobjects"


@pytest.mark.slow
def test_the_demo_runs_from_the_installed_zip(
    installed: Path, tmp_path: Path, repository: Path, run_qgis_process: Callable[..., Any]
) -> None:
    inputs = {
        "INPUT": repository / "resources" / "demo" / "OSBS_029.tif",
        "MODEL": repository / "resources" / "models" / "tree_crowns.dlpk",
        "OUTPUT": tmp_path / "trees.gpkg",
    }
    arguments = [f"--{key}={path}" for key, path in inputs.items()]
    answer = run_qgis_process(["--json", "run", "kestrel:detectobjects", *arguments], profile=installed)
    assert answer.code == 0, answer.stderr
    assert answer.json["results"]["OBJECT_COUNT"] > 20
    assert (tmp_path / "trees.gpkg").stat().st_size > 0
