"""Names of classes for a model that says them in no definition: in a list beside it, else numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

MAX_CLASSES = 10_000
_MAX_NAME = 200
_MAX_LIST_BYTES = 2**20
_LISTS = ("classes.txt", "labels.txt", "class_names.txt", "names.txt", "classes.names", "obj.names", "coco.names")


def as_names(value: Any) -> tuple[str, ...]:
    """Read names that stand as a list, or as a mapping from number to name; empty where they are neither.

    Numbers that a mapping leaves out are named by themselves, so that the others keep their places.
    """
    if isinstance(value, Mapping):
        numbered = {int(key): item for key, item in value.items() if str(key).isdecimal() and len(str(key)) < 6}
        if not numbered or len(numbered) != len(value) or max(numbered) >= MAX_CLASSES:
            return ()
        value = [numbered.get(number, f"class {number}") for number in range(max(numbered) + 1)]
    if not isinstance(value, (list, tuple)) or not 0 < len(value) <= MAX_CLASSES:
        return ()
    return tuple(_plain(str(item)) or f"class {number}" for number, item in enumerate(value))


def names_beside(path: Path) -> tuple[tuple[str, ...], str]:
    """Give the names in the list beside a model, one a line, and the list's own name; nothing where there is none."""
    for name in (f"{path.stem}.names", f"{path.stem}.txt", *_LISTS):
        place = path.with_name(name)
        if place.is_symlink() or not place.is_file():
            continue
        with place.open("rb") as stream:
            data = stream.read(_MAX_LIST_BYTES + 1)
        lines = data.decode("utf-8-sig", "replace").splitlines() if len(data) <= _MAX_LIST_BYTES else []
        names = [_plain(line) for line in lines if _plain(line)]
        if 0 < len(names) <= MAX_CLASSES:
            return tuple(names), name
    return (), ""


def numbered(n: int, first: int = 0) -> tuple[str, ...]:
    """Give names for classes that nobody named: the network's labels."""
    return tuple(f"class {number}" for number in range(first, first + n))


def are_numbered(names: Sequence[str]) -> bool:
    """Tell whether names are those of `numbered`, so that the network may have fewer classes."""
    return tuple(names) == numbered(len(names), 1)


def as_classes(names: Iterable[str], first: int = 1) -> list[dict[str, Any]]:
    """Give the classes of a definition, with values from `first` on."""
    return [{"value": number, "name": name} for number, name in enumerate(names, first)]


def how_to_name(path: Path, n: str) -> str:
    """Say how a model's classes get their names."""
    return (
        f"'{path.name}' does not name its classes: they are numbered. For names, write {n} lines, one name each, into "
        f"a file 'classes.txt' beside it, in the order of the training."
    )


def _plain(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:_MAX_NAME]
