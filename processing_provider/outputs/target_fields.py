"""Which field of an existing layer takes which column of the objects; the same for QGIS's layers and feature services.

A column goes to the field of its name, whatever the case, unless FIELD_MAP says otherwise: `{"Class": "species",
"Tile": null}` puts the class into `species` and leaves the tile out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qgis.PyQt.QtCore import QMetaType

from ...inference.errors import JobError, OutputError
from ..feature_sink import Column

JOB_COLUMN = "JobId"
JOB_ID_LENGTH = 22
"""Of what `new_job_id` gives."""

TEXT, INTEGER, NUMBER, BOOLEAN, OTHER = "text", "whole numbers", "decimal numbers", "true or false", "something else"

_KINDS = {
    QMetaType.Type.QString: TEXT,
    QMetaType.Type.Int: INTEGER,
    QMetaType.Type.UInt: INTEGER,
    QMetaType.Type.LongLong: INTEGER,
    QMetaType.Type.ULongLong: INTEGER,
    QMetaType.Type.Short: INTEGER,
    QMetaType.Type.Double: NUMBER,
    QMetaType.Type.Float: NUMBER,
    QMetaType.Type.Bool: BOOLEAN,
}
_TAKES = {
    TEXT: (TEXT,),
    INTEGER: (INTEGER, NUMBER),
    NUMBER: (NUMBER,),
    BOOLEAN: (BOOLEAN, INTEGER, NUMBER),
}
"""Kinds of fields that hold a column's values without loss."""


@dataclass(frozen=True)
class TargetField:
    """A field of an existing layer.

    Attributes:
        name: Its name.
        kind: What it holds: TEXT, INTEGER, NUMBER, BOOLEAN or OTHER.
        length: The most characters of a text; 0: no limit is known.
        is_required: Whether a feature without a value in it is refused.
    """

    name: str
    kind: str
    length: int = 0
    is_required: bool = False


def kind_of(meta_type: QMetaType.Type) -> str:
    """Give what values of one of Qt's types are."""
    return _KINDS.get(meta_type, OTHER)


def read_field_map(text: str) -> dict[str, str | None]:
    """Read FIELD_MAP.

    Args:
        text: JSON, an object of texts and nulls; empty: no column is renamed.

    Returns:
        Field name, or None, by name of the column in lower case.

    Raises:
        JobError: it is no such object, or leaves out the job's id.
    """
    if not text:
        return {}
    example = 'Write for example {"Class": "species", "Tile": null}.'
    try:
        data = json.loads(text)
    except ValueError as error:
        raise JobError(f"The field map is not valid JSON: {error}.", hint=example) from error
    if not isinstance(data, dict) or not all(value is None or isinstance(value, str) for value in data.values()):
        raise JobError("The field map is not a JSON object of field names.", hint=example)
    found = {key.casefold(): value or None for key, value in data.items()}
    if found.get(JOB_COLUMN.casefold(), JOB_COLUMN) is None:
        raise JobError(
            f"The field map leaves out {JOB_COLUMN}: without it a run can neither be undone nor written exactly once.",
            hint="Name a text field of the layer for it.",
        )
    return found


def match_columns(
    table: Sequence[Column],
    extra: Sequence[str],
    target: Sequence[TargetField],
    field_map: Mapping[str, str | None],
    lengths: Mapping[str, int],
    layer_name: str,
) -> dict[str, str]:
    """Give the field of the layer for each column.

    Args:
        table: The columns of the objects.
        extra: Names of those that only this model's objects have: left out where the layer has no such field.
        target: The layer's fields.
        field_map: What `read_field_map` gave.
        lengths: How long a column's texts get, by its name.
        layer_name: For messages.

    Raises:
        OutputError: a column has no field, its field holds something else or is too short, two columns have the same,
            or a field must have a value that the objects do not have.
    """
    by_name = {item.name.casefold(): item for item in target}
    found: dict[str, TargetField] = {}
    missing: list[str] = []
    faults: list[str] = []
    for column in table:
        wanted = field_map.get(column.name.casefold(), column.name)
        if wanted is None:
            continue
        item = by_name.get(wanted.casefold())
        if item is None:
            is_named = column.name.casefold() in field_map
            missing += [] if column.name in extra and not is_named else [wanted]
            continue
        found[column.name] = item
        fault = _fault(column, item, lengths.get(column.name, 0))
        faults += [fault] if fault else []
    if missing:
        raise OutputError(
            f"The layer '{layer_name}' has no field named {', '.join(repr(name) for name in missing)}. "
            f"Its fields are: {', '.join(item.name for item in target)}.",
            hint=f"Add the missing fields, or say in FIELD_MAP where values go: {_example(missing)} leaves them out.",
        )
    twice = [name for name, count in Counter(item.name for item in found.values()).items() if count > 1]
    faults += [f"the field '{name}' would get two values" for name in twice]
    taken = {item.name for item in found.values()}
    faults += [f"the field '{f.name}' must not be empty" for f in target if f.is_required and f.name not in taken]
    if faults:
        raise OutputError(
            f"The layer '{layer_name}' cannot take the objects: {'; '.join(faults)}.",
            hint='Change the layer\'s fields, or say in FIELD_MAP where the values go, as in {"Class": "species", '
            '"Tile": null}.',
        )
    return {column: item.name for column, item in found.items()}


def _fault(column: Column, item: TargetField, length: int) -> str:
    kind = kind_of(column.type)
    if item.kind not in _TAKES[kind]:
        return f"the field '{item.name}' holds {item.kind}, '{column.name}' is {kind}"
    if kind == TEXT and 0 < item.length < length:
        return f"the field '{item.name}' holds {item.length} characters, '{column.name}' has up to {length}"
    return ""


def _example(missing: Sequence[str]) -> str:
    names = [name for name in missing if name != JOB_COLUMN]
    return json.dumps(dict.fromkeys(names)) if names else json.dumps({JOB_COLUMN: "name of a text field"})


def unknown_columns(table: Sequence[Column], field_map: Mapping[str, str | None]) -> list[str]:
    """Give what FIELD_MAP names and no column is called: a model's own field, or a slip."""
    known = {column.name.casefold() for column in table}
    return [name for name in field_map if name not in known]
