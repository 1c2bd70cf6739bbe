"""What a worker process inherits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kestrel.inference.jobs import CACHE_VARIABLE
from kestrel.inference.worker.environment import child_environment


@pytest.mark.parametrize(
    "name",
    [
        "PYTHONPATH",
        "PYTHONHOME",
        "VIRTUAL_ENV",
        "PROJ_LIB",
        "PROJ_DATA",
        "GDAL_DATA",
        "GDAL_DRIVER_PATH",
        "GDAL_VRT_ENABLE_PYTHON",
        "LD_PRELOAD",
        "LD_LIBRARY_PATH",
        "DYLD_INSERT_LIBRARIES",
        "QGIS_PREFIX_PATH",
        "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD",
        "PIP_TARGET",
        "SECRET_TOKEN",
    ],
)
def test_what_could_steer_the_worker_stays_outside(name: str) -> None:
    assert name not in child_environment({name: "1"})


@pytest.mark.parametrize(
    "name", ["HOME", "PATH", "TMPDIR", "LC_ALL", "https_proxy", "NO_PROXY", "CUDA_VISIBLE_DEVICES", "SystemRoot"]
)
def test_what_programs_need_comes_along(name: str) -> None:
    assert child_environment({name: "value"})[name] == "value"


def test_the_worker_gets_what_it_needs_whatever_the_user_had() -> None:
    child = child_environment({"PYTHONIOENCODING": "latin-1", "OMP_WAIT_POLICY": "ACTIVE"})
    assert child == {"PYTHONIOENCODING": "utf-8", "PYTHONSAFEPATH": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def test_certificates_are_kept_where_they_exist_and_dropped_where_not(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.touch()
    child = child_environment({"SSL_CERT_FILE": str(bundle), "REQUESTS_CA_BUNDLE": str(tmp_path / "gone.pem")})
    assert child["SSL_CERT_FILE"] == str(bundle)
    assert "REQUESTS_CA_BUNDLE" not in child


def test_qgis_own_libraries_leave_the_path_on_windows() -> None:
    base = {"OSGEO4W_ROOT": "/qgis", "PATH": os.pathsep.join(["/qgis/bin", "/windows", "/qgis/apps/Qt5/bin"])}
    assert child_environment(base)["PATH"] == "/windows"


def test_a_cache_that_was_moved_is_the_workers_cache_too() -> None:
    assert child_environment({CACHE_VARIABLE: "/srv/cache"})[CACHE_VARIABLE] == "/srv/cache"
