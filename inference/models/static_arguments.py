"""The arguments of a package's own Python function, read from its source text. The function is never run here.

A raster function tells its parameters in a method, `getParameterInfo`, as a list of dicts. Where these are written as
literals, which is the rule, they can be read without running anything: the arguments table is filled before anybody
consented to the program. What is computed has no known default here; the program itself supplies it when it runs.

QGIS imports this module: it needs nothing but the standard library.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from typing import Any

from .arguments import ArgumentSpec

MAX_SOURCE_BYTES = 2 * 2**20
_MAX_PARAMETERS = 200
_MAX_OPERATORS = 2000
_MAX_TOKENS = 60_000  # ten times what long ones have; their tree would take QGIS a tenth of a gigabyte
_MAX_TEXT = 2000
_MAX_NAME = 100
_MAX_CHOICES = 200

_HIDDEN = frozenset({"model", "device"})  # the host's own
_RASTERS = frozenset({"raster", "rasters"})
_KINDS = {"gplong": "integer", "gpdouble": "number", "gpboolean": "boolean", "boolean": "boolean", "numeric": "number"}
_MISSING = object()


def static_arguments(source: bytes, file_name: str) -> tuple[ArgumentSpec, ...]:
    """Read the arguments of a raster function.

    Args:
        source: The Python file's content.
        file_name: Its name; the class has the same name without the suffix.

    Returns:
        What the text tells: nothing where it cannot be read. A default of None is known to the program only.
    """
    try:
        return tuple(_arguments(source, file_name))
    # Source: the documentation of ast.parse and ast.literal_eval; tokenize for what it refuses.
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError, tokenize.TokenError):
        return ()


def _arguments(source: bytes, file_name: str) -> Iterator[ArgumentSpec]:
    if len(source) > MAX_SOURCE_BYTES or _is_too_deep(source):
        return
    tree = ast.parse(source)
    stem = file_name.replace("\\", "/").rsplit("/", 1)[-1].rsplit(".", 1)[0]
    method = _method(tree, stem, "getParameterInfo")
    seen: set[str] = set()
    for members in _dicts(method, _constants(tree)) if method else ():
        name, kind = _text(members.get("name")), _text(members.get("dataType")).lower()
        if not name or not kind or name in _HIDDEN or kind in _RASTERS or name in seen:
            continue
        if len(name) <= _MAX_NAME and len(seen) < _MAX_PARAMETERS:
            seen.add(name)
            yield _spec(name, kind, members)


def _is_too_deep(source: bytes) -> bool:
    """Tell whether an expression may nest deeper than the parsers of all Python versions bear, or the text is too long.

    Those of Python 3.9 and 3.10 end the process on chains of some ten thousand operators. Counted are the operators
    of an expression between commas, together with those of the brackets around it.
    """
    open_brackets = [0]
    n_clauses = 0
    for number, token in enumerate(tokenize.tokenize(io.BytesIO(source).readline)):
        if token.type == tokenize.NEWLINE:
            open_brackets = [0]
        elif token.type == tokenize.OP and token.string in "([{":
            open_brackets[-1] += 1
            open_brackets.append(0)
        elif token.type == tokenize.OP and token.string in ")]}" and len(open_brackets) > 1:
            open_brackets.pop()
        elif token.type == tokenize.OP and token.string == ",":
            open_brackets[-1] = 0
        elif token.type == tokenize.OP or token.string in ("not", "and", "or", "if", "else", "lambda", "in", "is"):
            open_brackets[-1] += 1
        elif token.string == "elif":
            n_clauses += 1
        if sum(open_brackets) > _MAX_OPERATORS or n_clauses > _MAX_OPERATORS or number > _MAX_TOKENS:
            return True
    return False


def _method(tree: ast.Module, class_name: str, name: str) -> ast.FunctionDef | None:
    """Give a method of the class of that name, or of a class in the same file that it is made from."""
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    waiting, looked_at = [class_name], set()
    while waiting:
        current = waiting.pop(0)
        if current not in classes or current in looked_at:
            continue
        looked_at.add(current)
        for node in classes[current].body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                return node
        waiting += [base.id for base in classes[current].bases if isinstance(base, ast.Name)]
    return None


def _constants(tree: ast.Module) -> dict[str, Any]:
    """Give the values of names that the module sets to a literal."""
    constants = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            value = _literal(node.value, {})
            if value is not _MISSING:
                constants[node.targets[0].id] = value
    return constants


def _dicts(method: ast.FunctionDef, constants: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Give the dicts that a method writes, in the order of the text; members that are no literals are left out."""
    nodes = [node for node in ast.walk(method) if isinstance(node, (ast.Dict, ast.Call))]
    for node in sorted(nodes, key=lambda node: (node.lineno, node.col_offset)):
        if isinstance(node, ast.Dict):
            pairs = [(key.value, value) for key, value in zip(node.keys, node.values) if isinstance(key, ast.Constant)]
        elif isinstance(node.func, ast.Name) and node.func.id == "dict":
            pairs = [(keyword.arg, keyword.value) for keyword in node.keywords if keyword.arg]
        else:
            continue
        members = {str(key): _literal(value, constants) for key, value in pairs}
        yield {key: value for key, value in members.items() if value is not _MISSING}


def _literal(node: ast.expr, constants: dict[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        return constants.get(node.id, _MISSING)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return _MISSING


def _spec(name: str, data_type: str, members: dict[str, Any]) -> ArgumentSpec:
    value, choices = members.get("value"), _choices(members.get("domain"))
    kind = "choice" if choices else _KINDS.get(data_type, "text")
    return ArgumentSpec(
        name, kind, _default(kind, value, choices), _text(members.get("description")),
        choices=choices, label=_text(members.get("displayName")),
    )  # fmt: skip


def _choices(domain: Any) -> tuple[str, ...]:
    if not isinstance(domain, (tuple, list)) or not 0 < len(domain) <= _MAX_CHOICES:
        return ()
    return tuple(_text(str(item)) for item in domain)


def _default(kind: str, value: Any, choices: tuple[str, ...]) -> Any:
    """Give the default in the argument's own type, None where it is none."""
    if value is None:
        return None
    if kind == "boolean":
        return {"true": True, "1": True, "false": False, "0": False}.get(str(value).strip().lower())
    if kind in ("integer", "number"):
        return _number(kind, value)
    text = str(value)[:_MAX_TEXT]
    return text if kind == "text" or text in choices else None


def _number(kind: str, value: Any) -> float | None:
    try:
        number = float(value)
    except (ValueError, TypeError, OverflowError):
        return None
    if number - number != 0 or (kind == "integer" and not number.is_integer()):
        return None
    return int(number) if kind == "integer" else number


def _text(value: Any) -> str:
    return " ".join(value.split())[:_MAX_TEXT] if isinstance(value, str) else ""
