"""A raster function of a package: a Python class that ArcGIS would call, called here in the same order and manner.

    __init__()  initialize(model, device)  getParameterInfo()  getConfiguration(**scalars)  getFields()
    getGeometryType()  then for each block  vectorize(raster_pixels, raster_mask)

A block is a tile with its padding. What `vectorize` gives is text, a feature set in pixels of the unpadded block; it is
read by the worker (detectors/features.py).
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import shims
from .frames import Frame
from .stages import UnusableProgram, stage

_MAX_NAMES = 500
_RASTERS = ("raster", "rasters")
_NUMBERS = ("numeric", "gplong", "gpdouble")
_TRUE = ("true", "1", "t", "yes", "y")
_PIXEL_TYPES = {
    "uint8": "u1", "int8": "i1", "uint16": "u2", "int16": "i2", "uint32": "u4", "int32": "i4", "float32": "f4",
    "float64": "f8",
}  # fmt: skip


@dataclass(frozen=True)
class _Parameter:
    """One entry of getParameterInfo."""

    name: str
    kind: str
    default: Any


def load_raster_function(request: Mapping[str, Any]) -> RasterFunction:
    """Import a raster function, and bring it to the point where it takes blocks.

    Args:
        request: `file` and `definition`, paths; `device`, the number of the GPU or -1; `arguments`, what the user
            set; `bands` and `chip`, what the definition says, for where the function says nothing.

    Raises:
        UnusableProgram: the file is no raster function that detects objects.
        Stage: the function failed; where, and with what as the cause.
    """
    device, definition = int(request["device"]), str(request["definition"])
    shims.install(device)
    function = _instance(Path(request["file"]), Path(definition).parent)
    with stage("initialize"):
        if hasattr(function, "initialize"):
            function.initialize(model=definition, device=device)
    with stage("getParameterInfo"):
        parameters = _parameters(function.getParameterInfo() if hasattr(function, "getParameterInfo") else [])
    scalars = fill(parameters, request["arguments"], {"model": definition, "device": device})
    with stage("getConfiguration"):
        told = function.getConfiguration(**scalars) if hasattr(function, "getConfiguration") else {}
        configuration = _configuration(told, request)
    raster = next((item for item in parameters if item.kind in _RASTERS), _Parameter("raster", "raster", None))
    return RasterFunction(function, raster, configuration)


# -- The class ---------------------------------------------------------------------------------------------------------


def _instance(path: Path, definition_folder: Path) -> Any:
    """Import the file, and make an object of the class that is named like it."""
    # At the end, so that no file of the package stands before the standard library or an installed one.
    sys.path += [str(folder) for folder in dict.fromkeys((path.parent, definition_folder)) if str(folder) != "."]
    with stage("import"):
        module = _module(path)
        cls = getattr(module, path.stem, None)
        if not isinstance(cls, type):
            raise UnusableProgram(f"the file {path.name} holds no class '{path.stem}'")
        if not hasattr(cls, "vectorize"):
            other = "; it makes rasters (updatePixels)" if hasattr(cls, "updatePixels") else ""
            raise UnusableProgram(f"the class '{path.stem}' has no method 'vectorize', so it detects no objects{other}")
    with stage("__init__"):
        return cls()


def _module(path: Path) -> ModuleType:
    name = path.stem
    if name in sys.modules or name in sys.stdlib_module_names:
        name = f"_raster_function_{name}"  # it must not stand in for a module that others need
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UnusableProgram(f"the file {path.name} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# -- Parameters --------------------------------------------------------------------------------------------------------


def _parameters(told: Any) -> list[_Parameter]:
    parameters = []
    for item in list(told or [])[:_MAX_NAMES]:
        if isinstance(item, Mapping) and isinstance(item.get("name"), str):
            kind = str(item.get("dataType", "string")).strip().lower()
            parameters.append(_Parameter(item["name"], kind, item.get("value")))
    n_rasters = sum(item.kind in _RASTERS for item in parameters)
    if n_rasters > 1:
        raise UnusableProgram(f"it takes {n_rasters} rasters, and Kestrel has one to give")
    return parameters


def fill(parameters: list[_Parameter], given: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Give every scalar a value: what is fixed, else what the user gave, else the function's own default.

    Booleans become the texts "True" and "False", which functions compare; numbers become numbers, which serve both
    those that convert and those that do not.
    """
    scalars: dict[str, Any] = {}
    for item in parameters:
        if item.kind in _RASTERS:
            continue
        if item.name in fixed:
            scalars[item.name] = fixed[item.name]
            continue
        value = given.get(item.name)
        scalars[item.name] = _scalar(item, item.default if value is None or value == "" else value)
    return scalars


def _scalar(parameter: _Parameter, value: Any) -> Any:
    if value is None:
        return ""
    if parameter.kind in ("boolean", "gpboolean") or isinstance(value, bool):
        return "True" if str(value).strip().lower() in _TRUE else "False"
    if parameter.kind in _NUMBERS:
        return _number(parameter, value)
    return str(value)


def _number(parameter: _Parameter, value: Any) -> Any:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return value
    is_whole = parameter.kind == "gplong" or (parameter.kind == "numeric" and not isinstance(parameter.default, float))
    return int(number) if is_whole and number.is_integer() else number


# -- Configuration -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Configuration:
    bands: list[int]
    padding: int
    tx: int
    ty: int
    data_range: tuple[float, float] | None
    has_mask: bool


def _configuration(told: Any, request: Mapping[str, Any]) -> _Configuration:
    told = told if isinstance(told, Mapping) else {}
    padding = _whole(told, "padding", 0)
    inner = max(int(request["chip"]) - 2 * padding, 1)
    bands = told.get("extractBands")
    data_range = told.get("dataRange")
    return _Configuration(
        [int(band) for band in (bands if bands is not None else request["bands"])][:_MAX_NAMES],
        padding,
        _whole(told, "tx", inner),
        _whole(told, "ty", inner),
        (float(data_range[0]), float(data_range[1])) if data_range is not None and len(data_range) == 2 else None,
        bool(told.get("inputMask", True)),
    )


def _whole(told: Mapping[str, Any], name: str, default: int) -> int:
    value = told.get(name)
    return default if value is None else int(value)


class RasterFunction:
    """A raster function that is ready for blocks."""

    def __init__(self, function: Any, raster: _Parameter, configuration: _Configuration) -> None:
        """Take the parts."""
        self._function, self._raster, self._configuration = function, raster, configuration
        self._knows_raster = False

    def describe(self) -> dict[str, Any]:
        """Give configuration, fields and type of geometry."""
        with stage("getFields"):
            fields = list(_fields(self._function.getFields() if hasattr(self._function, "getFields") else None))
        with stage("getGeometryType"):
            kind = self._function.getGeometryType() if hasattr(self._function, "getGeometryType") else 4
            geometry = int(kind) if kind is not None else 4
        settings = self._configuration
        return {
            "bands": settings.bands, "padding": settings.padding, "tx": settings.tx, "ty": settings.ty,
            "fields": fields, "geometry": geometry,
        }  # fmt: skip

    def find(self, request: Frame) -> dict[str, NDArray[Any]]:
        """Run the function on one block.

        Shape:
            request.arrays: pixels (C, S, S) in the raster's own type, mask (1, S, S) uint8, 0 where there is no data;
            gives vectors, the bytes of a JSON text.
        """
        pixels, mask = request.arrays["pixels"], request.arrays["mask"]
        self._tell_raster(pixels)
        blocks = {"pixels": _rescaled(pixels, self._configuration.data_range)}
        if self._configuration.has_mask:
            # As large as the pixels: functions write pixels[mask == 0] = 0.
            blocks["mask"] = np.ascontiguousarray(np.broadcast_to(mask, pixels.shape))
        is_list = self._raster.kind == "rasters"
        named = {f"{self._raster.name}_{key}": (array,) if is_list else array for key, array in blocks.items()}
        with stage("vectorize"):
            text = _vectors(self._function.vectorize(**named))
        return {"vectors": np.frombuffer(text.encode("utf-8", "replace"), np.uint8)}

    def _tell_raster(self, pixels: NDArray[Any]) -> None:
        """Tell the function once what the raster is like. It is optional, and written for another host: it may fail."""
        if self._knows_raster or not hasattr(self._function, "updateRasterInfo"):
            return
        self._knows_raster = True
        info = {"bandCount": len(pixels), "pixelType": _PIXEL_TYPES.get(pixels.dtype.name, "f4")}
        try:
            self._function.updateRasterInfo(**{f"{self._raster.name}_info": dict(info), "output_info": dict(info)})
        except Exception as error:
            sys.stderr.write(f"updateRasterInfo of the raster function was left out: {error!r}\n")


def _fields(told: Any) -> Iterator[dict[str, str]]:
    """Give name, type and alias of the fields of a getFields text."""
    content = json.loads(told) if isinstance(told, (str, bytes)) else told
    items = content.get("fields", []) if isinstance(content, Mapping) else content
    for item in list(items or [])[:_MAX_NAMES]:
        if isinstance(item, Mapping) and item.get("name"):
            yield {key: str(item.get(key) or "")[:200] for key in ("name", "type", "alias")}


def _rescaled(pixels: NDArray[Any], data_range: tuple[float, float] | None) -> NDArray[Any]:
    """Give the pixels in the range that the function wants; numbers that are no integers have no range of their own."""
    if data_range is None or pixels.dtype.kind not in "iu":
        return pixels
    own = np.iinfo(pixels.dtype)
    low, high = data_range
    if (low, high) == (own.min, own.max):
        return pixels
    share = (pixels.astype(np.float64) - own.min) / (own.max - own.min)
    return (share * (high - low) + low).astype(np.float32)


def _vectors(told: Any) -> str:
    """Give the text of the features that `vectorize` gave."""
    if not isinstance(told, Mapping) or "output_vectors" not in told:
        raise ValueError(f"it gave {type(told).__name__} without 'output_vectors'")
    vectors = told["output_vectors"]
    if vectors is None:
        return ""
    if isinstance(vectors, bytes):
        return vectors.decode("utf-8", "replace")
    return vectors if isinstance(vectors, str) else json.dumps(vectors, default=_plain)


def _plain(value: Any) -> Any:
    """Give a numpy value as a JSON value."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        number = value.item()
        return None if isinstance(number, float) and not math.isfinite(number) else number
    raise TypeError(f"{type(value).__name__} is no value of JSON")
