"""Detectors of Esri's packages, as Kestrel's own definition JSON states them: arcgis, tensorflow, python."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .arguments import FAMILY_ARGUMENTS
from .definition import MEMBERS, Reader
from .esri_families import DEEP_FOREST, FAMILIES, Family, is_network_argument, numbers_above_zero, pairs_above_zero

_BY_NAME = {family.name: family for family in (*FAMILIES.values(), DEEP_FOREST)}
_MOST = 10_000


def esri_detector(kind: str, detector: Reader, service: str) -> dict[str, Any]:
    """Give what follows from a detector of such a kind: options, objects, arguments, program.

    Args:
        kind: arcgis, tensorflow or python.
        detector: The definition's member `detector`.
        service: Of the definition's input.

    Raises:
        ModelPackageError: a member is missing, unknown, or not what it should be.
    """
    if kind == "arcgis":
        return _arcgis(detector, service)
    detector.only(*MEMBERS[kind])
    if kind == "tensorflow":
        return {"weights": detector.text("weights"), "own_arguments": ()}
    content = detector.child("emd").data
    return {
        "weights": detector.text("weights", ""),
        "program": _program(detector),
        "geometry": "any",
        "own_arguments": (),
        "options": {"emd": content} if content else {},
    }


def _program(detector: Reader) -> str:
    """Give the place of the program: below the definition, or an absolute path where the definition is a text."""
    from .package import is_safe_name  # here, because that module imports this one

    name = detector.text("program")
    plain = name.replace("\\", "/")
    while plain.startswith("./"):
        plain = plain[2:]
    is_absolute = plain.startswith("/") or plain[1:3] == ":/"
    parts = plain.split("/")
    if not is_safe_name(parts[-1] if is_absolute else plain) or ".." in parts:
        raise detector.refuse("program", "the name of a file beside the definition")
    return name


def _arcgis(detector: Reader, service: str) -> dict[str, Any]:
    name = detector.choice("family", tuple(_BY_NAME))
    if not name:
        raise detector.refuse("family", f"one of {', '.join(_BY_NAME)}")
    family = _BY_NAME[name]
    detector.only(*MEMBERS[name])
    names = (*family.own_arguments, *(("radiometric_offset_correction",) if service == "sentinel" else ()))
    return {
        "weights": detector.text("weights"),
        "options": {"family": name, **_options(detector, family)},
        "geometry": family.geometry,
        "own_arguments": tuple(FAMILY_ARGUMENTS[argument] for argument in names),
    }


def _options(detector: Reader, family: Family) -> dict[str, Any]:
    read: dict[str, Callable[[], Any]] = {
        "backbone": lambda: detector.choice("backbone", family.backbones),
        "kwargs": lambda: _kwargs(detector.child("kwargs")),
        "resize": lambda: numbers_above_zero(detector, "resize", 100)[0],
        "max_size": lambda: detector.integer("max_size", None, minimum=1),
        "is_plain": lambda: detector.boolean("is_plain", default=False),
        "grids": lambda: _whole(detector, "grids"),
        "zooms": lambda: numbers_above_zero(detector, "zooms", 100),
        "scales": lambda: numbers_above_zero(detector, "scales", 100),
        "ratios": lambda: _ratios(detector, family),
        "version": lambda: detector.integer("version", None, minimum=1, maximum=2),
        "anchors": lambda: _anchors(detector),
        "n_queries": lambda: detector.integer("n_queries", None, minimum=1, maximum=_MOST),
        "cross_attn_method": lambda: detector.choice("cross_attn_method", ("default", "discrete")),
    }
    if family.name == "SingleShotDetector" and "grids" not in detector.data:
        raise detector.refuse("grids", "a list of whole numbers: cells along a side")
    names = [name for name in MEMBERS[family.name] if name in read and name in detector.data]
    return {name: read[name]() for name in names}


def _kwargs(reader: Reader) -> Mapping[str, Any]:
    for name, value in reader.data.items():
        if not is_network_argument(name, value):
            raise reader.refuse(name, "a number that torchvision's builder takes, of an argument box_... or rpn_...")
    return reader.data


def _whole(detector: Reader, key: str) -> list[int]:
    values = numbers_above_zero(detector, key, _MOST)
    if any(value != int(value) for value in values):
        raise detector.refuse(key, "a list of whole numbers: cells along a side")
    return [int(value) for value in values]


def _ratios(detector: Reader, family: Family) -> list[Any]:
    if family.name == "RetinaNet":
        return list(numbers_above_zero(detector, "ratios", 100))
    return list(pairs_above_zero(detector, "ratios", 100))


def _anchors(detector: Reader) -> list[list[float]]:
    anchors = pairs_above_zero(detector, "anchors", 1e5)
    if len(anchors) != _N_ANCHORS:
        raise detector.refuse("anchors", "nine pairs [width, height] in pixels")
    return anchors


_N_ANCHORS = 9
