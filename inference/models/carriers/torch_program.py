"""Bare programs of PyTorch: TorchScript, and what torch.export writes. Recognised by what is in the archive, never run.

    form            what its zip archive holds
    TorchScript     <name>/constants.pkl and <name>/code/...
    torch.export    <name>/archive_format and <name>/models/<model>.json; once serialized_exported_program.json

Ultralytics and YOLOv5 leave a note in the archive (extra/config.txt): names, size, task. It is read as data.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import ModelPackageError, ModelUnsupportedError
from ..definition import SCHEMA, SCHEMA_KEY
from ..emd_text import read_json
from ..stack_machine import MALFORMED, Machine, MalformedError, PickledMapping, PickledTensor, Stream
from ..stored_zip import read_directory
from .class_names import MAX_CLASSES, as_classes, as_names, classes_for

_CONFIG = "/extra/config.txt"
_MAX_CONFIG_BYTES = 2**20
_MAX_GRAPH_BYTES, _MAX_BRACKETS, _MAX_DIGITS = 4 * 2**20, 200_000, 20
_OLD_EXPORT = "serialized_exported_program.json"
_TASKS = {"classify": "image classification", "depth": "depth estimation", "semantic": "pixel classification"}
_HEADS = {"detect": "yolov8", "segment": "yolov8-seg", "obb": "yolov8-obb", "pose": "yolov8-pose"}
"""What Ultralytics' programs give for each task, where nothing is suppressed in them."""
_MOST_LETTERS = 200
_DENSE_AXES, _IMAGE_AXES, _MOST_BANDS = 3, 4, 1000
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Of others zipfile unpacks a whole block at once, whatever is asked for."""
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
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(name).compress_type not in _METHODS:
                return b""
            with archive.open(name) as stream:
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
    return _silent(path, "torchscript", _taking(path, _traced_shape(path, names)), 0)


def _torch_export(path: Path, names: tuple[str, ...], graphs: list[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    config = _config(path, names)
    if config:
        return _described(path, "torch_export", config)
    shapes = _graph_shapes(path, graphs[0] if graphs else _OLD_EXPORT)
    members = _taking(path, shapes[0] if shapes else ())
    outputs = [shape for shape in shapes[1:] if len(shape) == _DENSE_AXES]
    n_rows = min(outputs[0][1:]) if len(shapes) == 2 and outputs and all(outputs[0][1:]) else 0
    is_table = bool(outputs) and outputs[0][2] == _TABLE
    n_classes = 0 if is_table else max(n_rows - 4, 0)
    if n_classes > MAX_CLASSES:
        raise ModelUnsupportedError(
            f"The model '{path.name}' gives {n_classes} classes; more than {MAX_CLASSES} are not taken.",
            hint="Describe what it gives with a definition, see docs/definition.md.",
        )
    return _silent(path, "torch_export", members, n_classes)


def _taking(path: Path, shape: Sequence[int]) -> dict[str, Any]:
    """Give the members of a definition for a program that takes images of that shape, where it is known."""
    members: dict[str, Any] = {"input": {"scale": 1 / 255, "assumed": True}}
    if len(shape) == _IMAGE_AXES and shape[1] > _MOST_BANDS:
        raise ModelUnsupportedError(
            f"The model '{path.name}' takes {shape[1]} bands; more than {_MOST_BANDS} are not taken.",
            hint="Export it for images of the shape (1, bands, height, width).",
        )
    if len(shape) == _IMAGE_AXES and shape[1] > 0:
        members["input"]["bands"] = list(range(shape[1]))
        members["tile"] = _tile(path, shape[2], shape[3])
    return {key: value for key, value in members.items() if value}


def _traced_shape(path: Path, names: tuple[str, ...]) -> tuple[int, ...]:
    """Give the shape of the images that a program was traced with, which newer versions of torch keep."""
    name = next((name for name in names if name.count("/") == 1 and name.endswith("/traced_inputs.pkl")), "")
    data = _read(path, name, _MAX_CONFIG_BYTES) if name else b""
    try:
        content = Machine(Stream(io.BytesIO(data), len(data))).load() if data else None
    except (MalformedError, *MALFORMED):
        return ()
    entries = content.entries if isinstance(content, PickledMapping) else {}
    given = entries.get("forward")
    first = given[0] if isinstance(given, list) and len(given) == 1 else None
    return first.shape if isinstance(first, PickledTensor) else ()


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
        data = _read(path, name, _MAX_GRAPH_BYTES)
        if not data or data.count(b"[") + data.count(b"{") > _MAX_BRACKETS:
            return []
        # Not the strict reader: torch writes Infinity into graphs.
        graph = json.loads(data, parse_int=_whole)["graph_module"]["graph"]
        inputs = [item["as_tensor"]["name"] for item in graph["inputs"]]
        outputs = [item["as_tensor"]["name"] for item in graph["outputs"]]
        shapes = [_shape(graph["tensor_values"][name]["sizes"]) for name in (inputs[-1], *outputs)]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return []
    return shapes if all(shapes) else []


def _whole(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError("a number that no graph holds")
    return int(text)


def _shape(sizes: Any) -> list[int]:
    found = [size.get("as_int", 0) for size in sizes]
    return [size if type(size) is int and 0 <= size < 2**20 else 0 for size in found]


def _described(path: Path, kind: str, config: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Give the definition of a program whose archive says what it is."""
    task = str(config.get("task") or "detect")
    if task in _TASKS:
        raise ModelUnsupportedError(f"The model '{path.name}' is for {_TASKS[task]}, not for the detection of objects.")
    names = as_names(config.get("names"))
    notes: tuple[str, ...] = ()
    detector: dict[str, Any] = {"label_offset": 0}
    classes = as_classes([_plain(name) or f"Class {number}" for number, name in enumerate(names)])
    if not classes:
        classes, told, is_numbered = classes_for(path, None)
        detector, notes = {**detector, **({"numbered_classes": True} if is_numbered else {})}, (told,)
    members: dict[str, Any] = {"input": {"scale": 1 / 255, "pad_value": 114}}
    shape = config.get("shape")
    size = config.get("imgsz") or (shape[-2:] if isinstance(shape, list) else [])
    sides = size if isinstance(size, list) else [size, size]
    if len(sides) == 2 and all(type(side) is int and 32 <= side <= 8192 for side in sides):
        members["tile"] = {**_tile(path, *sides), **_stride(config.get("stride"))}
    channels = config.get("channels")
    if type(channels) is int and 0 < channels <= 64:
        members["input"]["bands"] = list(range(channels))
    if not _suppresses(config) and task in _HEADS:
        detector["head"] = _HEADS[task] if "task" in config else "yolov5"
    for key in ("license", "version"):
        if isinstance(config.get(key), str):
            members[key] = config[key][:200]
    description = config.get("description")
    if isinstance(description, str) and description.strip():
        members["description"] = description.strip()[:500]
    return _definition(path, kind, classes, detector, members), notes


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
    classes, told, is_numbered = classes_for(path, n_classes or None)
    assumed = f"'{path.name}' does not say what images it takes: red, green and blue were assumed" + (
        "." if "tile" in members else ", in tiles of any size."
    )
    detector = {"numbered_classes": True} if is_numbered else {}
    return _definition(path, kind, classes, detector, members), (told, assumed)


def _plain(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text[:_MOST_LETTERS]).split())


def _definition(
    path: Path, kind: str, classes: list[dict[str, Any]], detector: Mapping[str, Any], members: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        SCHEMA_KEY: SCHEMA,
        "name": path.stem or path.name,
        "detector": {"kind": kind, "weights": path.name, **detector},
        "classes": classes,
        **members,
    }
