"""The oldest safe versions: which they are, and where too old ones stop a run."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from kestrel.inference.detectors import load_detector
from kestrel.inference.detectors.protocol import DetectorSettings
from kestrel.inference.errors import BackendMissingError
from kestrel.inference.models.arguments import resolve_arguments
from kestrel.inference.models.package import open_package
from kestrel.inference.versions import LIBRARY_FLOORS, check_floors, installed_versions, is_older, version_numbers
from kestrel.inference.worker.main import check_versions
from kestrel.tests.fixtures.onnx_graphs import cell_network
from kestrel.tests.fixtures.rasters import cells, write_raster
from kestrel.tests.fixtures.runs import run, write_definition

Install = Callable[[str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts the record of an installed version before the real one."""
    packages = tmp_path / "packages"
    packages.mkdir()
    monkeypatch.syspath_prepend(str(packages))

    def record(name: str, version: str) -> None:
        information = packages / f"{name}-{version}.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    return record


@pytest.mark.parametrize(
    ("version", "numbers"),
    [("2.10.0a0+cpu", (2, 10, 0)), ("1.24.1", (1, 24, 1)), ("2", (2,)), ("2.10.dev3", (2, 10)), ("unknown", ())],
)
def test_a_version_is_its_release_numbers(version: str, numbers: tuple[int, ...]) -> None:
    assert version_numbers(version) == numbers


def test_versions_are_compared_as_numbers() -> None:
    assert is_older("2.9.1", "2.10")
    assert not is_older("2.10.0", "2.10")
    assert not is_older("10.0", "2.10")


def test_the_floors_are_those_of_the_requirements(repository: Path) -> None:
    text = (repository / "requirements" / "inference.in").read_text()
    stated = dict(re.findall(r"^([a-z]+)>=(\S+)", text, re.MULTILINE))
    assert {name: stated[name] for name in LIBRARY_FLOORS if name in stated} == {
        name: floor for name, floor in LIBRARY_FLOORS.items() if name in stated
    }


def test_what_is_installed_is_known_without_an_import(install: Install) -> None:
    install("torch", "2.9.1+cpu")
    assert installed_versions() == {**installed_versions(), "torch": "2.9.1+cpu"}
    assert installed_versions().keys() == LIBRARY_FLOORS.keys()


def test_only_the_libraries_that_are_asked_about_are_checked() -> None:
    installed = {"torch": "2.9.1+cpu", "numpy": LIBRARY_FLOORS["numpy"]}
    check_floors(["numpy", "shapely"], installed)
    with pytest.raises(BackendMissingError, match=r"^torch 2\.9\.1\+cpu .* 2\.10 is needed") as caught:
        check_floors(["numpy", "torch"], installed)
    assert "Set up the inference environment" in caught.value.hint


# -- Where they are checked


@pytest.fixture
def onnx_model(tmp_path: Path) -> Path:
    """A model on ONNX Runtime."""
    cell_network(tmp_path / "model.onnx")
    return write_definition(tmp_path, "model.onnx")


@pytest.fixture
def torchvision_model(tmp_path: Path) -> Path:
    """A definition for torchvision; its weights are never read."""
    (tmp_path / "model.safetensors").touch()
    detector = {"kind": "torchvision", "architecture": "retinanet_resnet50_fpn", "weights": "model.safetensors"}
    return write_definition(tmp_path, "model.safetensors", detector=detector)


def load(model: Path, folder: Path) -> None:
    package = open_package(str(model))
    load_detector(package, resolve_arguments(package.definition, {}).values, DetectorSettings("cpu", 1), folder)


@pytest.mark.parametrize("library", ["torch", "torchvision"])
def test_an_old_torch_does_not_stop_a_run_on_onnx_runtime(
    tmp_path: Path, install: Install, onnx_model: Path, library: str
) -> None:
    install(library, "0.24.1")
    check_versions(installed_versions())
    raster = write_raster(tmp_path / "raster.tif", cells(3, 4, 4, [(0, 1, 2)]))
    assert len(run(tmp_path / "job", raster, onnx_model)) == 1


@pytest.mark.parametrize(("library", "version"), [("torch", "2.9.1+cpu"), ("torchvision", "0.24.1")])
def test_an_old_torch_stops_a_torchvision_model(
    tmp_path: Path, install: Install, torchvision_model: Path, library: str, version: str
) -> None:
    install(library, version)
    wanted = re.escape(f"{library} {version} of the inference environment is too old: {LIBRARY_FLOORS[library]}")
    with pytest.raises(BackendMissingError, match=wanted) as caught:
        load(torchvision_model, tmp_path)
    assert caught.value.hint


@pytest.mark.parametrize(("library", "version"), [("onnx", "1.20.0"), ("onnxruntime", "1.23.2")])
def test_an_old_onnx_library_stops_an_onnx_model(
    tmp_path: Path, install: Install, onnx_model: Path, library: str, version: str
) -> None:
    install(library, version)
    check_versions(installed_versions())
    with pytest.raises(BackendMissingError, match=rf"{library} {re.escape(version)} .* is too old"):
        load(onnx_model, tmp_path)


@pytest.mark.parametrize("library", ["numpy", "rasterio", "shapely"])
def test_what_every_run_needs_is_checked_at_the_start(install: Install, library: str) -> None:
    install(library, "1.3.0")
    with pytest.raises(BackendMissingError, match=rf"{library} 1\.3\.0 .* is too old"):
        check_versions(installed_versions())
