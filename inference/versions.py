"""The oldest safe version of Python and of each library that the worker uses, and what is installed of them.

QGIS, the project's set-up and the worker import this, the worker's start file even on Python 3.7 to refuse it: it needs
nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping

from .errors import BackendMissingError

PYTHON_FLOOR = "3.11"

LIBRARY_FLOORS: Mapping[str, str] = {
    "numpy": "1.26",
    "torch": "2.10",
    "torchvision": "0.25",
    "onnx": "1.21",
    "onnxruntime": "1.24.1",
    "rasterio": "1.4",
    "shapely": "2.1",
    "requests": "2.32",
}
"""What the worker imports, and the oldest safe version of it (docs/decisions/0002-inference-environment.md)."""

TORCH_PAIR = ("torch", "torchvision")
"""They fit only in versions that were built for each other."""

TORCH_FAMILY = re.compile(r"^(torch|torchvision|triton|nvidia-.*|cuda-.*)$")
"""Requirements that come from another package index when a torch backend is asked for."""

SETUP_HINT = "Set up the inference environment in Settings > Options > Kestrel."

# The same module comes under several names, by the hardware that it is built for.
_DISTRIBUTIONS: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino"),
}


def version_numbers(version: str) -> tuple[int, ...]:
    """Give the release numbers of a version: `2.10.0a0+cpu` is (2, 10, 0)."""
    leading = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in leading.group().split(".")) if leading else ()


def is_older(version: str, floor: str) -> bool:
    """Whether a version is below a floor, by its release numbers."""
    return version_numbers(version) < version_numbers(floor)


def installed_versions() -> dict[str, str]:
    """Give the installed versions of the libraries that the worker may use, without importing any."""
    from importlib import metadata  # here, because Python 3.7 lacks it

    found = {}
    for library in LIBRARY_FLOORS:
        for distribution in _DISTRIBUTIONS.get(library, (library,)):
            with contextlib.suppress(metadata.PackageNotFoundError):
                found[library] = metadata.version(distribution)
                break
    return found


def check_floors(libraries: Iterable[str], installed: Mapping[str, str]) -> None:
    """Check these libraries against their oldest safe versions; one that is not installed passes.

    Args:
        libraries: Names from `LIBRARY_FLOORS`.
        installed: Version by library, see `installed_versions`.

    Raises:
        BackendMissingError: one is too old.
    """
    for library in libraries:
        version, floor = installed.get(library), LIBRARY_FLOORS[library]
        if version is not None and is_older(version, floor):
            raise BackendMissingError(
                f"{library} {version} of the inference environment is too old: {floor} is needed.", hint=SETUP_HINT
            )
