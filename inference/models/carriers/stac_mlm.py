"""STAC items that describe a model with the Machine Learning Model extension (MLM), versions 1.0 to 1.5.

An item says what a model takes, gives and is made of, but not everything: what it leaves open is assumed and told.
What in it is a program (functions before and after the network) is never run.

Source:
    The specification of the extension, https://github.com/stac-extensions/mlm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from ...errors import ModelPackageError, ModelUnsupportedError
from ..definition import SCHEMA, SCHEMA_KEY, Reader
from ..emd_text import read_json
from ..strict_json import MAX_JSON_BYTES
from .stac_asset import chosen_artifact
from .stac_input import ItemReader, model_input, words

_TASKS = ("object-detection", "instance-segmentation", "detection")
_VERSION = b'"stac_version"'
_PREFIX = "mlm:"
_OLD_PREFIX = "ml-model:"
_MOST_LISTED, _MOST_ITEMS = 5000, 20  # files of a folder that are listed, and that are looked into
_MOST_FUNCTIONS = 3  # that notes name
_BACKGROUND = ("background", "__background__", "_background_")
_COLOR = re.compile(r"#?([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})")
_ARGUMENTS = {
    "threshold": ("threshold", "confidence_threshold", "score_threshold", "conf_threshold", "confidence", "conf"),
    "nms_overlap": ("nms_overlap", "nms_threshold", "nms_iou_threshold", "iou_threshold", "iou"),
}
"""Hyperparameters that say the same as a model argument, by their usual names."""


def translate(path: Path) -> tuple[dict[str, Any], tuple[str, ...]] | None:
    """Give the definition of a model that a STAC item describes, see `carriers.translate`."""
    if path.is_dir():
        found = [item for item in _looked_into(path) if _item_of(item) is not None]
        return translate(found[0]) if len(found) == 1 else None
    item = _item_of(path)
    if item is None:
        return None
    _refuse_other_items(item, path)
    return _definition(ItemReader(item["properties"], "properties"), item, path)


def _looked_into(folder: Path) -> list[Path]:
    """Give the JSON files of a folder that may be a model's item: the smallest ones, 4 MB together."""
    files = [item for item in islice(folder.iterdir(), _MOST_LISTED) if item.suffix.lower() == ".json"]
    sizes = sorted((item.stat().st_size, item) for item in files if item.is_file())
    found, left = [], MAX_JSON_BYTES
    for size, item in sizes[:_MOST_ITEMS]:
        left -= size
        if left >= 0:
            found.append(item)
    return found


def _item_of(path: Path) -> Mapping[str, Any] | None:
    """Give a STAC item's or collection's JSON; None for everything else."""
    if path.suffix.lower() != ".json" or not path.is_file() or path.stat().st_size > MAX_JSON_BYTES:
        return None
    data = path.read_bytes()
    if _VERSION not in data:
        return None
    try:
        content = read_json(data, f"'{path.name}'")
    except ModelPackageError:
        return None  # who reads definitions says what is wrong with it
    is_item = content.get("type") == "Feature" and isinstance(content.get("properties"), Mapping)
    return content if "stac_version" in content and (is_item or content.get("type") == "Collection") else None


def _refuse_other_items(item: Mapping[str, Any], path: Path) -> None:
    """Refuse what is STAC and describes no model in the way that is understood."""
    if item["type"] == "Collection":
        raise ModelPackageError(
            f"'{path.name}' is a STAC collection, not the item of one model.",
            hint="Choose one of the collection's items as the model.",
        )
    names = list(item["properties"])
    if not any(name.startswith(_PREFIX) for name in names):
        is_old = any(name.startswith(_OLD_PREFIX) for name in names)
        found = "with the older ML Model extension (ml-model)" if is_old else "but no model"
        raise ModelPackageError(
            f"The STAC item '{path.name}' describes something {found}; its properties have no member 'mlm:...'.",
            hint="Describe the model with the extension MLM, or with a definition, see docs/definition.md.",
        )


def _definition(properties: ItemReader, item: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    _check_tasks(properties)
    notes: list[str] = []
    detector, sha256 = chosen_artifact(item, properties, path, notes)
    members = model_input(properties, item, notes)
    classes, has_background = _classes(properties)
    if has_background and detector["kind"] != "torchvision":
        detector["label_offset"] = 1
    if has_background:
        notes.append("The item's class of the background was left out: label 1 is the first class.")
    _tell_functions(properties, notes)
    definition = {
        SCHEMA_KEY: SCHEMA,
        "name": properties.text("mlm:name", "") or str(item.get("id") or path.stem),
        "version": _text(properties, "version"),
        "description": _text(properties, "description"),
        "license": _text(properties, "license"),
        "detector": detector,
        "weights_sha256": sha256 or None,
        "classes": classes,
        "arguments": _arguments(properties),
        **members,
    }
    return {name: value for name, value in definition.items() if value not in (None, "", {})}, tuple(notes)


def _check_tasks(properties: ItemReader) -> None:
    tasks = words(properties.data.get("mlm:tasks"))
    if not set(_TASKS) & set(tasks):
        named = ", ".join(tasks[:6]) or "a task that it does not name"
        raise ModelUnsupportedError(
            f"The STAC item's model is for {named[:200]}; Kestrel finds objects.",
            hint="Choose a model for object-detection or instance-segmentation.",
        )


def _classes(properties: ItemReader) -> tuple[list[dict[str, Any]], bool]:
    """Give the classes in the order of the network's labels, and whether the first label was the background's."""
    outputs = properties.objects("mlm:output")
    stated = [output for output in outputs if output.data.get("classification:classes")]
    fitting = [output for output in stated if set(_TASKS) & set(words(output.data.get("tasks")))]
    if not stated:
        raise ModelPackageError(
            "The STAC item names no classes: no object of 'mlm:output' has the member 'classification:classes'.",
            hint='Add them in the order of the labels: "classification:classes": [{"value": 1, "name": "tree"}].',
        )
    found = [_class(entry) for entry in (fitting or stated)[0].objects("classification:classes")]
    is_background = len(found) > 1 and found[0]["name"].strip().lower() in _BACKGROUND
    return (found[1:] if is_background else found), is_background


def _class(entry: Reader) -> dict[str, Any]:
    name = str(entry.data.get("name") or entry.data.get("title") or entry.data.get("description") or "").strip()
    value = entry.integer("value", None, minimum=-(2**31))
    if not name and value is None:
        raise entry.refuse("name", "a text")
    color = _COLOR.fullmatch(str(entry.data.get("color_hint") or entry.data.get("color-hint") or "").strip())
    shown = [int(part, 16) for part in color.groups()] if color else None
    members = {"value": value, "name": name or str(value), "color": shown}
    return {key: member for key, member in members.items() if member is not None}


def _arguments(properties: ItemReader) -> dict[str, Any]:
    stated = properties.data.get("mlm:hyperparameters")
    given = {str(key).lower(): value for key, value in stated.items()} if isinstance(stated, Mapping) else {}
    found: dict[str, Any] = {}
    for argument, names in _ARGUMENTS.items():
        values = [given.get(name) for name in names]
        shares = [value for value in values if isinstance(value, (int, float)) and 0 <= value <= 1]
        if shares and not isinstance(shares[0], bool):
            found[argument] = shares[0]
    return found


def _tell_functions(properties: ItemReader, notes: list[str]) -> None:
    for key, member in (("mlm:input", "pre_processing_function"), ("mlm:output", "post_processing_function")):
        stated = [entry.data.get(member) for entry in properties.objects(key)]
        functions = [function for item in stated for function in (item if isinstance(item, list) else [item])]
        functions = [function for function in functions if function]
        for function in functions[:_MOST_FUNCTIONS]:
            name = function.get("expression") if isinstance(function, Mapping) else function
            notes.append(
                f"The item names a {member} that Kestrel does not run: '{str(name)[:80]}'. If the network "
                "needs it, describe the model with a definition, see docs/definition.md."
            )
        if len(functions) > _MOST_FUNCTIONS:
            n_more = len(functions) - _MOST_FUNCTIONS
            notes.append(f"The item names {n_more} more of the kind {member}, which Kestrel does not run either.")


def _text(properties: ItemReader, key: str) -> str:
    value = properties.data.get(key)
    return value if isinstance(value, str) else ""
