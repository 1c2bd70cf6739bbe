"""Kestrel's definition JSON of any model that Kestrel opens: to be saved, edited, and opened beside the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .arguments import FAMILY_ARGUMENTS, ArgumentSpec
from .definition import SCHEMA, SCHEMA_KEY, CellSizeRange, InputSpec, ModelDefinition, TileSpec, definition_from_json


def definition_to_json(definition: ModelDefinition, emd: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Give the JSON from which `definition_from_json` reads the same model, without its notes and facts.

    Args:
        definition: The model.
        emd: The content of the .emd that a raster function in Python is given; of other kinds it is not needed.

    Raises:
        ModelError: the model is described in a way that the JSON has no words for.
    """
    is_python = definition.kind == "python"
    detector = {
        "kind": definition.kind,
        "weights": definition.weights or None,
        "program": definition.program if is_python else None,
        **definition.options,
    }
    if is_python and emd is not None:
        detector["emd"] = dict(emd)
    members = {
        SCHEMA_KEY: SCHEMA,
        "name": definition.name,
        "version": definition.version or None,
        "description": definition.description or None,
        "license": definition.license or None,
        "weights_sha256": definition.weights_sha256 or None,
        "detector": _present(detector),
        "input": _input(definition.input),
        "tile": _tile(definition.tile),
        "cell_size": _cell_size(definition.cell_size),
        "classes": [
            {"value": item.value, "name": item.name, "color": list(item.color)} for item in definition.classes
        ],
        "arguments": _present(definition.arguments) or None,
    }  # fmt: skip
    found: dict[str, Any] = json.loads(json.dumps(_present(members)))
    return {**found, **_beyond(definition, definition_from_json(found))}


def _beyond(definition: ModelDefinition, read: ModelDefinition) -> dict[str, Any]:
    """Give the members for what a model of its kind usually has in another way."""
    members = {
        "geometry": (definition.geometry, read.geometry),
        "map_space": (definition.is_map_space, read.is_map_space),
        "common_arguments": (list(definition.common_arguments), list(read.common_arguments)),
        "own_arguments": (_arguments(definition), _arguments(read)),
    }
    return {name: value for name, (value, usual) in members.items() if value != usual}


def _arguments(definition: ModelDefinition) -> list[Any]:
    return [
        spec.name if spec == FAMILY_ARGUMENTS.get(spec.name) else _argument(spec) for spec in definition.own_arguments
    ]


def _argument(spec: ArgumentSpec) -> dict[str, Any]:
    members = {
        "name": spec.name, "kind": spec.kind, "default": spec.default, "help": spec.help or None,
        "minimum": spec.minimum, "maximum": spec.maximum, "choices": list(spec.choices) or None,
        "label": spec.label or None,
    }  # fmt: skip
    return _present(members)


def _input(spec: InputSpec) -> dict[str, Any]:
    usual = InputSpec()
    members = {
        "bands": list(spec.bands),
        **{name: _one_or_all(getattr(spec, name)) for name in ("scale", "mean", "std")},
        "data_range": None if spec.data_range is None else list(spec.data_range),
        "pad_value": None if spec.pad_value == usual.pad_value else spec.pad_value,
        "resize": None if spec.resize == usual.resize else spec.resize,
        "assumed": spec.is_assumed or None,
        "stretch": None if spec.stretch is None else spec.stretch.to_json(),
        "service": spec.service or None,
    }
    return _present(members)


def _one_or_all(values: tuple[float, ...]) -> Any:
    return values[0] if len(values) == 1 else list(values)


def _tile(tile: TileSpec) -> dict[str, Any]:
    members = {
        "size": tile.size, "variable": tile.is_variable, "padding": tile.padding, "stride": tile.stride,
        "receptive_field_radius": tile.receptive_field_radius,
    }  # fmt: skip
    return _present(members)


def _cell_size(cell_size: CellSizeRange | None) -> dict[str, Any] | None:
    if cell_size is None:
        return None
    members = {
        "min": cell_size.minimum, "max": cell_size.maximum, "wkid": cell_size.wkid, "read_at": cell_size.read_at
    }  # fmt: skip
    return _present(members)


def _present(members: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}
