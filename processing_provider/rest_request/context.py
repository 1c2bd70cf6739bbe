"""The request's member `context` -> parameters of `kestrel:detectobjects`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from ...inference.errors import JobError
from ...inference.job import parse_parallel_factor
from .draft import Draft, feature_class, is_address
from .spatial_reference import crs_text
from .values import as_number, as_object, as_text, given, refused, unpacked

Handler = Callable[[Draft, str, Any], None]

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_WHOLE = ("maxof", "minof", "default")
_RESAMPLING = {
    "nearest": "Nearest", "bilinear": "Bilinear", "cubic": "Cubic", "average": "Average",
    "rsp_nearestneighbor": "Nearest", "rsp_bilinearinterpolation": "Bilinear", "rsp_cubicconvolution": "Cubic",
}  # fmt: skip
_PROCESSORS = {"cpu": "CPU", "gpu": "GPU"}
_RASTER_SERVICE = re.compile(r"https?://[^?#\s]+/ImageServer/?", re.IGNORECASE)
_FEATURE_LAYER = re.compile(r"https?://[^?#\s]+/(?:FeatureServer|MapServer)/\d+/?", re.IGNORECASE)


def translate_context(draft: Draft, member: str, value: Any) -> None:
    """Translate all members of the context.

    Raises:
        JobError: one of them cannot be done.
    """
    content = given(as_object(member, value, '{"cellSize": 0.5, "processorType": "CPU"}'))
    draft.tell_unknown(member, content, CONTEXT)
    for name, entry in content.items():
        if name in CONTEXT:
            CONTEXT[name](draft, f"{member}.{name}", entry)
    if "CELL_SIZE" in draft.values and {"outSR", "outSpatialReference", "processSR"} & set(content):
        draft.warnings.append(
            f"The request's member '{member}.cellSize' is taken in the units of the input raster, not of another "
            "coordinate reference system."
        )


# -- Where to look -----------------------------------------------------------------------------------------------------


def _extent(draft: Draft, member: str, value: Any) -> None:
    if isinstance(value, str) and value.strip().lower() in _WHOLE:
        if value.strip().lower() == "minof":
            draft.tell(member, "the whole of the input is searched")
        return
    content = given(as_object(member, value, '{"xmin": 0, "ymin": 0, "xmax": 9, "ymax": 9}'))
    draft.tell_unknown(member, content, (*_CORNERS, "spatialReference"))
    missing = [name for name in _CORNERS if name not in content]
    if missing:
        raise refused(member, f"lacks {', '.join(missing)}")
    x0, y0, x1, y1 = (as_number(f"{member}.{name}", content[name]) for name in _CORNERS)
    if x0 >= x1 or y0 >= y1:
        raise refused(member, "is empty: xmin must be below xmax, and ymin below ymax")
    text = f"{x0!r},{x1!r},{y0!r},{y1!r}"
    if "spatialReference" in content:
        text += f" [{crs_text(draft, f'{member}.spatialReference', content['spatialReference'])}]"
    draft.values["EXTENT"] = text


def _mask(draft: Draft, member: str, value: Any) -> None:
    source = _layer(draft, member, value)
    if not is_address(source):
        file, table = feature_class(source)
        draft.values["MASK"] = f"{file}|layername={table}" if table else source
    elif _FEATURE_LAYER.fullmatch(source):
        draft.values["MASK"] = feature_layer(source)
        draft.services["MASK"] = (member, source)
    else:
        raise refused(
            f"{member}.url",
            "is not the address of a layer of polygons",
            "Name the layer, for example https://server/arcgis/rest/services/Parks/FeatureServer/0. A raster as mask "
            "is turned into polygons first.",
        )


def _snap_raster(draft: Draft, member: str, value: Any) -> None:
    _put_raster(draft, "SNAP_RASTER", member, value)


# -- How large the pixels are ------------------------------------------------------------------------------------------


def _cell_size(draft: Draft, member: str, value: Any) -> None:
    content = unpacked(member, value)
    if isinstance(content, str) and content.strip().lower() in _WHOLE:
        if content.strip().lower() != "default":
            draft.tell(member, "the cells of the input are taken as they are")
        return
    if not isinstance(content, dict):
        draft.values["CELL_SIZE"] = _positive(member, content)
    elif "factor" in content:
        draft.tell_unknown(member, given(content), ("factor",))
        draft.cell_factor = _positive(f"{member}.factor", content["factor"])
    elif {"x", "y"} & set(given(content)):
        draft.values["CELL_SIZE"] = _square(draft, member, content)
    else:
        _put_raster(draft, "CELL_SIZE_LAYER", member, content)


def _square(draft: Draft, member: str, content: Mapping[str, Any]) -> float:
    content = given(content)
    draft.tell_unknown(member, content, ("x", "y", "spatialReference"))
    if "spatialReference" in content:
        draft.tell(f"{member}.spatialReference", "the size is taken in the units of the input raster")
    sides = [_positive(f"{member}.{name}", content[name]) for name in ("x", "y") if name in content]
    if not math.isclose(sides[0], sides[-1], rel_tol=1e-6):
        asked = " by ".join(f"{side:g}" for side in sides)
        raise refused(member, f"asks for cells of {asked}, and models see square ones", "Give one number.")
    return sides[0]


def _positive(member: str, value: Any) -> float:
    number = as_number(member, value)
    if number <= 0:
        raise refused(member, "is not above 0")
    return number


def _resampling(draft: Draft, member: str, value: Any) -> None:
    name = as_text(member, value)
    if name.lower() not in _RESAMPLING:
        raise refused(member, "is a method that Kestrel does not have", "Write NEAREST, BILINEAR or CUBIC.")
    draft.values["RESAMPLING"] = _RESAMPLING[name.lower()]


# -- Layers ------------------------------------------------------------------------------------------------------------


def _layer(draft: Draft, member: str, value: Any) -> str:
    """Give the address or path of the layer that `{"url": ...}`, `{"uri": ...}` or a bare text names."""
    content = unpacked(member, value)
    if not isinstance(content, dict):
        content = {"url": content}
    content = given(content)
    draft.tell_unknown(member, content, ("url", "uri"))
    name = next((name for name in ("url", "uri") if name in content), None)
    if name is None:
        raise refused(member, "names no layer", f'Write {{"url": "..."}} for the member {member}.')
    return draft.place(f"{member}.{name}", content[name])


def _put_raster(draft: Draft, key: str, member: str, value: Any) -> None:
    source = draft.values[key] = _layer(draft, member, value)
    if _RASTER_SERVICE.fullmatch(source):
        draft.services[key] = (member, source)


def feature_layer(url: str, authcfg: str = "") -> str:
    """Give the layer of a feature service as QGIS's parameters take it, with its provider's name in front."""
    quoted = url.rstrip("/").replace("\\", "\\\\").replace("'", "\\'")
    return f"arcgisfeatureserver://url='{quoted}'" + (f" authcfg='{authcfg}'" if authcfg else "")


# -- How to run --------------------------------------------------------------------------------------------------------


def _out_crs(draft: Draft, member: str, value: Any) -> None:
    draft.values["OUTPUT_CRS"] = crs_text(draft, member, value)


def _parallel(draft: Draft, member: str, value: Any) -> None:
    text = f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else as_text(member, value)
    try:
        parse_parallel_factor(text, 1)
    except JobError as error:
        raise refused(member, "is neither a count nor a share", "Write for example 4 or 75%.") from error
    draft.values["PARALLEL_PROCESSING_FACTOR"] = text


def _processor(draft: Draft, member: str, value: Any) -> None:
    name = as_text(member, value).lower()
    if name not in _PROCESSORS:
        raise refused(member, "is neither CPU nor GPU")
    draft.values["PROCESSOR_TYPE"] = _PROCESSORS[name]


def _gpu(draft: Draft, member: str, value: Any) -> None:
    number = as_number(member, value)
    if number != int(number):
        raise refused(member, "is not a whole number", "GPUs are counted from 0.")
    if number >= 0:  # below: the server chooses, and so does Kestrel
        draft.values["GPU_ID"] = int(number)


def _where(draft: Draft, member: str, value: Any) -> None:
    if "".join(as_text(member, value).split()) == "1=1":
        return
    raise refused(
        member,
        "chooses among the items of a mosaic, which Kestrel does not do here",
        "Put it into the input: "
        '"inputRaster": {"url": "...", "mosaicRule": {"mosaicMethod": "esriMosaicNone", "where": "..."}}.',
    )


def _alignment(draft: Draft, member: str, value: Any) -> None:
    if as_text(member, value).lower() != "default":
        draft.tell(member, "cells are aligned with the input raster, or with snapRaster where it is given")


def _without_effect(reason: str) -> Handler:
    return lambda draft, member, value: draft.tell(member, reason)


_NO_RASTER = "Kestrel writes features, and no raster"

CONTEXT: dict[str, Handler] = {
    "extent": _extent,
    "mask": _mask,
    "cellSize": _cell_size,
    "snapRaster": _snap_raster,
    "resamplingMethod": _resampling,
    "outSR": _out_crs,
    "outSpatialReference": _out_crs,
    "parallelProcessingFactor": _parallel,
    "processorType": _processor,
    "gpuId": _gpu,
    "where": _where,
    "cellAlignment": _alignment,
    "processSR": _without_effect("objects are searched for in the input raster's own system, and written in outSR"),
    "geographicTransformations": _without_effect("QGIS chooses the transformation, as its options say"),
    "noData": _without_effect(_NO_RASTER),
    "compression": _without_effect(_NO_RASTER),
    "pyramid": _without_effect(_NO_RASTER),
    "recycleProcessingWorkers": _without_effect("one worker process does the run, and ends with it"),
    "retryOnFailures": _without_effect("what could not be read is always tried again"),
    "logging": _without_effect("the run's log is always written"),
}
"""What becomes of each member that an ArcGIS server knows."""
