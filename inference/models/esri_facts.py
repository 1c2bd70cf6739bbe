"""What an .emd says for people: classes in all the forms that exist, and the facts that describe a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..errors import ModelPackageError
from .definition import ModelClass, classes_from_json
from .emd_text import read_json
from .esri_files import EmdReader
from .esri_input import Bands, band_names
from .esri_refusals import configuration_of

_MAX_CLASSES = 10_000
_MAX_TEXT = 2000
_MAX_METRICS = 500
_MAX_FIGURE = 40


def read_classes(emd: EmdReader, default: str = "") -> tuple[ModelClass, ...]:
    """Read the classes, in the order of the network's labels.

    Args:
        emd: The definition.
        default: Name of the only class of a model that lists none; empty: such a model is refused.

    Raises:
        ModelPackageError: there are none, or one cannot be understood.
    """
    stated = emd.data.get("Classes")
    if not stated and stated is not False and stated != 0 and default:
        emd.note(f"The definition lists no classes; all objects are of the class '{default}'.")
        stated = [{"Value": 1, "Name": default}]
    if isinstance(stated, Mapping) and all(isinstance(name, str) for name in stated.values()):
        stated = [{"Value": value, "Name": name} for value, name in stated.items()]
    items = [_cleaned(emd, item, index) for index, item in enumerate(stated)] if isinstance(stated, list) else stated
    if isinstance(items, list) and len(items) > _MAX_CLASSES:
        raise ModelPackageError(
            f"The model definition has {len(items)} classes; more than {_MAX_CLASSES} are not read."
        )
    classes = classes_from_json(items)
    return _told_apart(emd, classes)


def _cleaned(emd: EmdReader, item: Any, index: int) -> Any:
    """Give a class in the form that is read; what cannot be understood stays, and is refused there."""
    if isinstance(item, str) and item.strip():
        return {"Value": index + 1, "Name": item.strip()}
    if not isinstance(item, Mapping):
        return item
    lower = {str(key).lower(): entry for key, entry in item.items() if entry is not None}
    value = lower.get("value", lower.get("classvalue"))
    name = lower.get("name", lower.get("classname"))
    if isinstance(value, str) and value.strip().lstrip("-").isdigit() and len(value) < 12:
        value = int(value)
    if (name is None or name == "") and value is not None:
        name = str(value)
        emd.note(f"Class {index + 1} has no name; it is called '{name}' after its value.")
    color = lower.get("color")
    parts = {"Value": value, "Name": name, "Color": color[:3] if isinstance(color, list) else None}
    return {key: entry for key, entry in parts.items() if entry is not None}


def _told_apart(emd: EmdReader, classes: tuple[ModelClass, ...]) -> tuple[ModelClass, ...]:
    """Number classes of the same name, so that people can choose among them."""
    taken = {item.name for item in classes}
    seen: dict[str, int] = {}
    found = []
    for item in classes:
        seen[item.name] = seen.get(item.name, 0) + 1
        name = item.name
        if seen[name] > 1:
            while f"{name} ({seen[name]})" in taken:
                seen[name] += 1
            name = f"{name} ({seen[name]})"
            taken.add(name)
        found.append(ModelClass(item.value, name, item.color))
    twice = [name for name, count in seen.items() if count > 1]
    if twice:
        named = ", ".join(f"'{name}'" for name in twice[:5])
        emd.note(f"Several classes have the name {named}; they are numbered to tell them apart.")
    return tuple(found)


_METRICS = ("average_precision_score", "accuracy", "per_class_metrics", "panoptic_quality")


def facts_of(emd: EmdReader, bands: Bands, **more: Any) -> dict[str, Any]:
    """Gather what describes the model, as JSON values; what the package does not say is left out.

    Args:
        emd: The definition.
        bands: The extracted bands.
        **more: What was found out about it: family, backbone, ...
    """
    version = emd.word("ArcGISLearnVersion")
    is_arcgis = emd.word("Framework").lower().startswith("arcgis")
    facts = {
        "framework": emd.word("Framework"),
        "model_configuration": configuration_of(emd),
        "model_type": emd.word("ModelType"),
        "arcgis_learn_version": version,
        "era": (version or "before 1.8.3") if is_arcgis else "",
        "inference_function": emd.word("InferenceFunction"),
        "imagery": emd.word("ImageryType"),
        "image_space": emd.word("ImageSpaceUsed"),
        "resize_to": emd.data.get("resize_to"),
        "band_names": band_names(emd, bands),
        "min_cell_size": emd.data.get("MinCellSize"),
        "max_cell_size": emd.data.get("MaxCellSize"),
        "learning_rate": emd.word("LearningRate"),
        "preprocessing": emd.data.get("Preprocessing"),
        "metrics": _metrics(emd),
        **more,
    }
    return {name: _short(value) for name, value in facts.items() if value not in (None, "", [], {})}


def _short(value: Any) -> Any:
    return value[:_MAX_TEXT] if isinstance(value, str) else value


def _metrics(emd: EmdReader) -> dict[str, Any]:
    """Give the figures of the training's own judgement."""
    names = [name for name in emd.data if name in _METRICS or name.startswith("monitored_")]
    found = {name: _metric(emd.data[name]) for name in names[:_MAX_METRICS]}
    return {name: value for name, value in found.items() if value not in (None, "", {}, [])}


def _metric(value: Any) -> Any:
    """Give a figure; JSON that stands in a text is read, numbers that stand in one too."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("{"):
        try:
            return read_json(text.encode("utf-8", "surrogatepass"), "in a text")
        except ModelPackageError:
            return None
    try:
        number = float(text) if len(text) < _MAX_FIGURE else math.nan
    except ValueError:
        number = math.nan
    return number if math.isfinite(number) else _short(text)
