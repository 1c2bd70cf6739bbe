"""What raster functions expect of their surroundings: arcpy, GPUtil, and names that newer libraries have dropped.

The modules are built here, from what public raster functions call; nothing of Esri's is in them.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from types import ModuleType
from typing import Any

import numpy as np

# Source: release notes of numpy 1.24 and 2.0, "expired deprecations".
_NUMPY_NAMES: dict[str, Any] = {
    "float": float, "int": int, "bool": bool, "object": object, "str": str, "complex": complex, "long": int,
    "unicode": str, "float_": np.float64, "complex_": np.complex128, "string_": np.bytes_, "unicode_": np.str_,
    "Inf": np.inf, "Infinity": np.inf, "infty": np.inf, "NaN": np.nan, "NAN": np.nan, "PINF": np.inf, "NINF": -np.inf,
    "product": np.prod, "cumproduct": np.cumprod, "sometrue": np.any, "alltrue": np.all, "round_": np.round,
    "row_stack": np.vstack, "mat": np.asmatrix,
}  # fmt: skip


def install(device: int) -> None:
    """Make the process look as raster functions expect.

    Args:
        device: Number of the GPU that the program shall use, -1 for the CPU.
    """
    install_numpy_names()
    sys.modules["arcpy"] = make_arcpy(device)
    if not _is_installed("GPUtil"):
        sys.modules["GPUtil"] = make_gputil(device)
    if not _is_installed("distutils"):
        sys.modules.update(make_distutils())


def install_numpy_names() -> None:
    """Give numpy the names back that it has dropped."""
    for name, value in _NUMPY_NAMES.items():
        if name not in vars(np):
            setattr(np, name, value)


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


# -- arcpy -------------------------------------------------------------------------------------------------------------


class _Arcpy(ModuleType):
    """A stand-in: messages and settings. Anything else says what it is that is missing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(
            f"this function uses arcpy.{name}, which only ArcGIS has; Kestrel brings arcpy.env and messages"
        )


class _Environment:
    """arcpy.env: settings that can be read and set; one that nobody has set is None."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


def make_arcpy(device: int) -> ModuleType:
    """Give the stand-in for arcpy."""
    arcpy = _Arcpy("arcpy", "Kestrel's stand-in for arcpy.")
    environment = _Environment()
    vars(environment).update(
        processorType="CPU" if device < 0 else "GPU", gpuId=max(device, 0), scratchFolder=".", scratchWorkspace=".",
        overwriteOutput=True,
    )  # fmt: skip
    arcpy.env = environment  # type: ignore[attr-defined]
    arcpy.ExecuteError = type("ExecuteError", (Exception,), {})  # type: ignore[attr-defined]
    for level in ("Message", "Warning", "Error"):
        setattr(arcpy, f"Add{level}", _teller(level.lower()))
    return arcpy


def _teller(level: str) -> Any:
    def tell(message: object = "", *_: object) -> None:
        """Write a message to the log."""
        sys.stderr.write(f"{level}: {message}\n")

    return tell


# -- GPUtil ------------------------------------------------------------------------------------------------------------


def make_gputil(device: int) -> ModuleType:
    """Give a stand-in for GPUtil that knows the one GPU that the program shall use."""
    available = [device] if device >= 0 else []

    def first_available(*_: object, **__: object) -> list[int]:
        if not available:
            raise RuntimeError("Could not find an available GPU")
        return available

    gputil = ModuleType("GPUtil", "Kestrel's stand-in for GPUtil.")
    vars(gputil).update(
        getGPUs=lambda *_, **__: [],
        getAvailable=lambda *_, **__: list(available),
        getFirstAvailable=first_available,
        showUtilization=lambda *_, **__: None,
    )
    return gputil


# -- distutils, which Python 3.12 no longer has ------------------------------------------------------------------------


class LooseVersion:
    """Compares versions by their numbers and words, as distutils did."""

    def __init__(self, vstring: str = "") -> None:
        """Split the text."""
        self.vstring = str(vstring)
        parts = [part for part in re.split(r"(\d+|[a-z]+|\.)", self.vstring) if part and part != "."]
        self.version: list[Any] = [int(part) if part.isdecimal() else part for part in parts]

    def _key(self) -> list[tuple[int, Any]]:
        return [(1, part) if isinstance(part, int) else (0, part) for part in self.version]

    def _other(self, other: object) -> list[tuple[int, Any]]:
        return (other if isinstance(other, LooseVersion) else LooseVersion(str(other)))._key()

    def __str__(self) -> str:
        return self.vstring

    def __eq__(self, other: object) -> bool:
        return self._key() == self._other(other)

    def __hash__(self) -> int:
        return hash(str(self._key()))

    def __lt__(self, other: object) -> bool:
        return self._key() < self._other(other)

    def __le__(self, other: object) -> bool:
        return self._key() <= self._other(other)

    def __gt__(self, other: object) -> bool:
        return self._key() > self._other(other)

    def __ge__(self, other: object) -> bool:
        return self._key() >= self._other(other)


def _strtobool(text: str) -> int:
    lower = text.lower()
    if lower in ("y", "yes", "t", "true", "on", "1"):
        return 1
    if lower in ("n", "no", "f", "false", "off", "0"):
        return 0
    raise ValueError(f"invalid truth value {text!r}")


def make_distutils() -> dict[str, ModuleType]:
    """Give stand-ins for distutils, distutils.version and distutils.util."""
    modules = {name: ModuleType(name) for name in ("distutils", "distutils.version", "distutils.util")}
    vars(modules["distutils.version"]).update(LooseVersion=LooseVersion, StrictVersion=LooseVersion)
    vars(modules["distutils.util"]).update(strtobool=_strtobool)
    vars(modules["distutils"]).update(version=modules["distutils.version"], util=modules["distutils.util"], __path__=[])
    return modules
