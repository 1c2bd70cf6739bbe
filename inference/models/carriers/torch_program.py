"""Bare programs of PyTorch: TorchScript, and what torch.export writes. Recognised by what is in the archive, never run.

    form            what its zip archive holds
    TorchScript     <name>/constants.pkl and <name>/code/...
    torch.export    <name>/archive_format and <name>/models/<model>.json; once serialized_exported_program.json

Ultralytics and YOLOv5 leave a note in the archive (extra/config.txt): names, size, task. It is read as data.
"""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import ModelPackageError, ModelUnsupportedError
from ..definition import SCHEMA, SCHEMA_KEY
from ..emd_text import read_json
from ..stack_machine import MalformedError
from ..stored_zip import read_directory
from .class_names import as_classes, as_names, how_to_name, names_beside, numbered

_CONFIG = "/extra/config.txt"
_MAX_CONFIG_BYTES = 2**20
_MAX_GRAPH_BYTES = 32 * 2**20
_OLD_EXPORT = "serialized_exported_program.json"
_N_NUMBERED = 100
"""Classes of a program that says nothing of its own: as many as networks usually have."""
_TASKS = {"classify": "image classification", "depth": "depth estimation", "semantic": "pixel classification"}
_DENSE_AXES = 3
_TABLE = 6
"""Columns of finished boxes: four corners, score, label."""


def translate(path: Path) -> tuple[dict[str, Any], tuple[str, ...]] | None:
    """Give the definition of a file that is a program of PyTorch, see `carriers.translate`."""
    names = _members(path)
    if any("/code/" in name for name in names) and any(name.endswith("/constants.pkl") for name in names):
        return _torchscript(path, names)
    graphs = [name for name in names if name.count("/") == 2 and "/models/" in name and name.endswith(".json")]
    if any(name.endswith("/archive_format") for name in names) and not graphs:
        raise ModelUnsupportedError(
            f"'{path.name}' is a program that torch compiled for one computer (AOTInductor).",
            hint="Save the exported program itself: torch.export.save(program, 'model.pt2').",
        )
    if graphs or _OLD_EXPORT in names:
        return _torch_export(path, names, graphs)
    return None


def _members(path: Path) -> tuple[str, ...]:
    """Give the names in a zip archive; none for other files, and for archives that are damaged."""
    if not path.is_file():
        return ()
    with path.open("rb") as stream:
        if stream.read(4) != b"PK\x03\x04":
            return ()
        try:
            return tuple(read_directory(stream, path.stat().st_size)[0])
        except (MalformedError, struct.error, ValueError, OverflowError):
            return ()


def _read(path: Path, name: str, most: int) -> bytes:
    """Give a member of at most so many bytes; nothing where it is larger, or damaged."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as stream:
            data = stream.read(most + 1)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, KeyError, ValueError):
        return b""
    return data if len(data) <= most else b""


def _config(path: Path, names: tuple[str, ...]) -> Mapping[str, Any]:
    name = next((name for name in names if name.endswith(_CONFIG)), "")
    data = _read(path, name, _MAX_CONFIG_BYTES) if name else b""
    try:
        return read_json(data, "in the archive") if data else {}
    except ModelPackageError:
        return {}


def _torchscript(path: Path, names: tuple[str, ...]) -> tuple[dict[str, Any], tuple[str, ...]]:
    config = _config(path, names)
    if config:
        return _described(path, "torchscript", config)
    return _silent(path, "torchscript", {"input": {"scale": 1 / 255}}, 0)


def _torch_export(path: Path, names: tuple[str, ...], graphs: list[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    config = _config(path, names)
    if config:
        return _described(path, "torch_export", config)
    shapes = _graph_shapes(path, graphs[0] if graphs else _OLD_EXPORT)
    members: dict[str, Any] = {"input": {"scale": 1 / 255}}
    if len(shapes) > 1 and len(shapes[0]) == 4 and shapes[0][1] and shapes[0][1] <= 64:
        members["input"]["bands"] = list(range(shapes[0][1]))
        members["tile"] = _tile(path, shapes[0][2], shapes[0][3])
    members = {key: value for key, value in members.items() if value}
    outputs = [shape for shape in shapes[1:] if len(shape) == _DENSE_AXES]
    n_rows = min(outputs[0][1:]) if len(shapes) == 2 and outputs and all(outputs[0][1:]) else 0
    is_table = bool(outputs) and outputs[0][2] == _TABLE
    return _silent(path, "torch_export", members, 0 if is_table else max(n_rows - 4, 0))


def _tile(path: Path, height: int, width: int) -> dict[str, Any]:
    if not height or not width:
        return {}
    if height != width:
        raise ModelUnsupportedError(
            f"The model '{path.name}' takes images of {width} x {height} pixels; Kestrel cuts square tiles.",
            hint="Export it for a square size, for example imgsz=640.",
        )
    return {"size": height, "variable": False}


def _graph_shapes(path: Path, name: str) -> list[list[int]]:
    """Give the shapes of an exported program's image input and of its outputs, with 0 for an axis that is free."""
    try:
        graph = json.loads(_read(path, name, _MAX_GRAPH_BYTES) or b"{}")["graph_module"]["graph"]
        inputs = [item["as_tensor"]["name"] for item in graph["inputs"]]
        outputs = [item["as_tensor"]["name"] for item in graph["outputs"]]
        shapes = [_shape(graph["tensor_values"][name]["sizes"]) for name in (inputs[-1], *outputs)]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return []
    return shapes if all(shapes) else []


def _shape(sizes: Any) -> list[int]:
    found = [size.get("as_int", 0) for size in sizes]
    return [size if type(size) is int and 0 <= size < 2**20 else 0 for size in found]


def _described(path: Path, kind: str, config: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Give the definition of a program whose archive says what it is."""
    task = str(config.get("task") or "detect")
    if task in _TASKS:
        raise ModelUnsupportedError(f"The model '{path.name}' is for {_TASKS[task]}, not for the detection of objects.")
    names = as_names(config.get("names"))
    notes: list[str] = []
    if not names:
        names, told = _names(path, _N_NUMBERED)
        notes.append(told)
    members: dict[str, Any] = {"input": {"scale": 1 / 255}}
    size = config.get("imgsz") or (config.get("shape") or [])[-2:]
    sides = size if isinstance(size, list) else [size, size]
    if len(sides) == 2 and all(type(side) is int and 32 <= side <= 8192 for side in sides):
        members["tile"] = {**_tile(path, *sides), **_stride(config.get("stride"))}
    channels = config.get("channels")
    if type(channels) is int and 0 < channels <= 64:
        members["input"]["bands"] = list(range(channels))
    detector = {"label_offset": 0}
    if not _suppresses(config) and task == "detect":
        detector["head"] = "yolov8" if "task" in config else "yolov5"  # type: ignore[assignment]
    for key in ("license", "version"):
        if isinstance(config.get(key), str):
            members[key] = config[key][:200]
    description = config.get("description")
    if isinstance(description, str) and description.strip():
        members["description"] = description.strip()[:500]
    return _definition(path, kind, names, detector, members), tuple(notes)


def _stride(value: Any) -> dict[str, Any]:
    return {"stride": value} if type(value) is int and 0 < value <= 1024 else {}


def _suppresses(config: Mapping[str, Any]) -> bool:
    """Tell whether the program gives finished boxes, not candidates."""
    args = config.get("args")
    return config.get("end2end") is True or (isinstance(args, Mapping) and args.get("nms") is True)


def _silent(
    path: Path, kind: str, members: dict[str, Any], n_classes: int
) -> tuple[dict[str, Any], tuple[str, ...]]:  # fmt: skip
    """Give the definition of a program that says nothing of itself."""
    names, told = _names(path, n_classes or _N_NUMBERED)
    assumed = (
        f"'{path.name}' does not say what images it takes: red, green and blue from 0 to 1 were assumed"
        + ("." if "tile" in members else ", in tiles of any size.")
        + " Where that is wrong, describe it with a definition, see docs/definition.md."
    )
    return _definition(path, kind, names, {}, members), (told, assumed)


def _names(path: Path, n: int) -> tuple[tuple[str, ...], str]:
    names, where = names_beside(path)
    if names:
        return names, f"The names of the classes are those in '{where}'."
    return numbered(n, 1), how_to_name(path, "as many")


def _definition(
    path: Path, kind: str, names: tuple[str, ...], detector: Mapping[str, Any], members: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        SCHEMA_KEY: SCHEMA,
        "name": path.stem or path.name,
        "detector": {"kind": kind, "weights": path.name, **detector},
        "classes": as_classes(names),
        **members,
    }
