"""The text of a model definition: read strictly; an .emd with the damage that real ones have is repaired and told.

`read_json` is the strict reader. `read_emd` tries it first, and reads what it refuses with `_Repairer`: a reader of the
same limits (size, depth, digits, finite numbers) that goes on where it is plain what was meant. Nothing is guessed
about values; what cannot be read is refused with its line, its column and the way to mend it.
"""

from __future__ import annotations

import json
import re
from array import array
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any

from ..errors import ModelPackageError
from .strict_json import (
    MAX_JSON_DEPTH,
    NestedTooDeeplyError,
    UnusableJsonError,
    bounded_integer,
    finite_number,
    parse_json,
)

_MAX_REPAIRED_BYTES = 2**20  # real ones have a hundredth of it, and repairs go character by character
_MAX_LOOKED_AHEAD = 2 * 2**20  # characters beyond the ends of texts, in a whole definition
_MOST_LINES = 5  # that a note names
_SHOWN = 60  # characters of a line that a message shows

_HINT = "Mend the line in a text editor, or export the model again."


def read_json(data: bytes, where: str) -> dict[str, Any]:
    """Read a JSON object strictly: bounded depth, finite numbers, no member twice.

    Args:
        data: UTF-8, with or without a byte order mark.
        where: How messages call the text.

    Raises:
        ModelPackageError: not such an object; with line and column where the syntax is at fault.
    """
    try:
        content = parse_json(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ModelPackageError(f"The model definition {where} is not UTF-8 text.") from error
    except json.JSONDecodeError as error:
        raise ModelPackageError(
            f"The model definition {where} is not valid JSON: {error.msg} in line {error.lineno}, column {error.colno}."
        ) from error
    except UnusableJsonError as error:
        raise ModelPackageError(f"The model definition {where} cannot be used: {error}.") from error
    if not isinstance(content, dict):
        raise ModelPackageError(f"The model definition {where} does not hold a JSON object.")
    return content


# -- Texts with damage -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EmdText:
    """What an .emd holds, and what had to be repaired to read it: one sentence a kind of damage."""

    content: dict[str, Any]
    notes: tuple[str, ...] = ()


def read_emd(data: bytes, where: str) -> EmdText:
    """Read the JSON object of an .emd, strictly if that works, else with repairs.

    Args:
        data: The file's bytes.
        where: How messages call the text.

    Raises:
        ModelPackageError: it cannot be read; names line and column, shows the line, and says what to do.
    """
    mark = (f"{_named(where)} begins with a byte order mark, which was passed over.",)
    marks = mark if data.startswith(b"\xef\xbb\xbf") else ()
    try:
        return EmdText(read_json(data, where), marks)
    except ModelPackageError as error:
        if isinstance(error.__cause__, NestedTooDeeplyError) or len(data) > _MAX_REPAIRED_BYTES:
            raise
    text, note = _decode(data, where)
    repairer = _Repairer(text, where)
    content = repairer.read()
    return EmdText(content, (*marks, *note, *repairer.notes()))


def _named(where: str) -> str:
    return f"The model definition {where}"


def _decode(data: bytes, where: str) -> tuple[str, tuple[str, ...]]:
    """Give the text in the encoding that it is in, and a note where that is not UTF-8."""
    for encoding, name in _encodings(data):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        return text.lstrip("\ufeff"), (f"{_named(where)} is {name} text, and was read as that.",) if name else ()
    raise ModelPackageError(
        f"{_named(where)} is no text: it is neither UTF-8 nor UTF-16 nor Windows-1252.",
        hint="Choose the .emd file that the training wrote; save it as UTF-8 if it was edited.",
    )


def _encodings(data: bytes) -> tuple[tuple[str, str], ...]:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return (("utf-16", "UTF-16"),)
    head = data[:64].lstrip(b"\x00 \t\r\n\x00")
    if b"\x00" in data[:4] and head.startswith(b"{"):
        return (("utf-16-be" if data.startswith(b"\x00") else "utf-16-le", "UTF-16"),)
    return (("utf-8", ""), ("cp1252", "Windows-1252"))


_SPACE = re.compile(r"[ \t\r\n\ufeff\u00a0\f\v\u2028\u2029]*")
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?![\w.])")
_STRICT_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
_WORD = re.compile(r"[+-]?[A-Za-z_$][\w$.]*")
_MEMBER_AFTER = re.compile(r"""["'“][^"'“”\r\n]{1,100}["'”][ \t]*:""")
_ESCAPE = re.compile(r"""\\(?:(["'\\/bfnrt])|u([0-9a-fA-F]{4}))""")
_ENDS = re.compile(r"[ \t]*(?:[,:}\]]|//|#|/\*|\r|\n|$)")
_UNESCAPED = {'"': '"', "'": "'", "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_CONTROL = re.compile(r"[\x00-\x1f]")
_WORDS = {
    "true": True, "false": False, "null": None, "none": None, "nan": None, "-nan": None, "inf": None, "-inf": None,
    "infinity": None, "-infinity": None, "+infinity": None, "undefined": None,
}  # fmt: skip
_QUOTES = {'"': '"', "'": "'", "“": "”", "”": "”", "„": "“", "‘": "’", "’": "’"}

_REPAIRS = {
    "comma missing": "a comma is missing between two entries, and was put in",
    "comma too many": "there is a comma too many, which was passed over",
    "comment": "there is a comment, which JSON does not have; it was passed over",
    "quotes": "texts stand in other quotes than JSON's \" and were read all the same",
    "bare name": "a name stands without quotes, and was read all the same",
    "word": "True, False, None or NaN is written as JSON does not know it, and was read as true, false or null",
    "backslash": "backslashes in a text are not doubled, and were read as they stand",
    "control": "a text holds line breaks or other control characters, and was read as it stands",
    "number": "a number is not written as JSON writes it, and was read all the same",
    "duplicate": "a member stands there a second time with the same value, which was passed over",
    "rest": "text follows the end of the definition, and was passed over",
}  # fmt: skip


@dataclass
class _Repairer:
    """A reader of JSON that goes on where it is plain what was meant, and keeps the lines where it had to."""

    text: str
    where: str
    at: int = 0
    looked_ahead: int = 0
    lines: dict[str, list[int]] = field(default_factory=dict)
    starts: array[int] = field(default_factory=lambda: array("L"))

    def __post_init__(self) -> None:
        """Find the lines."""
        self.starts.extend(found.end() for found in re.finditer("\n", self.text))

    # - What was done

    def notes(self) -> tuple[str, ...]:
        """Tell of each kind of repair, and of the lines where it was done."""
        return tuple(f"{_named(self.where)}, {_lines(at)}: {_REPAIRS[kind]}." for kind, at in self.lines.items())

    def repair(self, kind: str, at: int) -> None:
        """Remember a repair."""
        numbers = self.lines.setdefault(kind, [])
        line = self.line_of(at)
        if line not in numbers[-1:] and len(numbers) <= _MOST_LINES:
            numbers.append(line)

    def line_of(self, at: int) -> int:
        """Give the line of a place, counted from 1."""
        return bisect_right(self.starts, at) + 1

    def refuse(self, what: str, hint: str = _HINT) -> ModelPackageError:
        """Give the error for a text that cannot be read on from here."""
        line = self.line_of(self.at)
        start = self.starts[line - 2] if line > 1 else 0
        shown = self.text[max(start, self.at - _SHOWN) : self.at + _SHOWN]
        before = min(self.at - start, _SHOWN)
        shown = shown[:before] + shown[before:].partition("\n")[0]
        return ModelPackageError(
            f"{_named(self.where)} is not valid JSON: {what} in line {line}, column {self.at - start + 1}"
            f"{f': {shown.strip()!r}' if shown.strip() else ''}.",
            hint=hint,
        )

    def unusable(self, reason: str, hint: str = _HINT) -> ModelPackageError:
        """Give the error for something that JSON allows and Kestrel does not."""
        return ModelPackageError(f"{_named(self.where)} cannot be used: {reason}.", hint=hint)

    # - The grammar

    def read(self) -> dict[str, Any]:
        """Read the whole text."""
        self.skip()
        if not self.text.startswith("{", self.at):
            raise ModelPackageError(
                f"{_named(self.where)} does not hold a JSON object.",
                hint="A definition begins with '{' and ends with '}'.",
            )
        content = self.object(1)
        self.skip()
        if self.at < len(self.text):
            if _MEMBER_AFTER.search(self.text, self.at):
                raise self.refuse(
                    "the definition is closed, and members follow", "Remove the '}' that closes it too early."
                )
            self.repair("rest", self.at)
        return content

    def skip(self) -> None:
        """Go over white space and comments."""
        while True:
            found = _SPACE.match(self.text, self.at)
            self.at = found.end() if found else self.at
            if self.text.startswith("/*", self.at):
                end = self.text.find("*/", self.at + 2)
                if end < 0:
                    raise self.refuse("a comment begins that does not end", "Close it with */, or remove it.")
                self.repair("comment", self.at)
                self.at = end + 2
            elif self.text.startswith(("//", "#"), self.at):
                self.repair("comment", self.at)
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            else:
                return

    def value(self, depth: int) -> Any:
        """Read one value; `at` stands at its first character."""
        character = self.text[self.at : self.at + 1]
        if depth > MAX_JSON_DEPTH:
            raise self.unusable("it is nested too deeply")
        if character == "{":
            return self.object(depth)
        if character == "[":
            return self.array(depth)
        if character in _QUOTES:
            return self.string()
        return self.number_or_word()

    def object(self, depth: int) -> dict[str, Any]:
        """Read an object; `at` stands at its brace."""
        content: dict[str, Any] = {}
        self.at += 1
        while self.goes_on("}"):
            at = self.at
            name = self.name()
            self.skip()
            if self.text[self.at : self.at + 1] != ":":
                raise self.refuse(
                    f"expected ':' after '{name[:_SHOWN]}'",
                    'Put a colon between name and value; a quote inside a text is written \\".',
                )
            self.at += 1
            self.skip()
            value = self.value(depth + 1)
            if name in content and content[name] != value:
                raise self.unusable(
                    f"the member '{name[:_SHOWN]}' stands in it twice, with different values "
                    f"(the second time in line {self.line_of(at)})",
                    "Remove one of the two.",
                )
            if name in content:
                self.repair("duplicate", at)
            content[name] = value
            self.between("}")
        return content

    def array(self, depth: int) -> list[Any]:
        """Read a list; `at` stands at its bracket."""
        content: list[Any] = []
        self.at += 1
        while self.goes_on("]"):
            content.append(self.value(depth + 1))
            self.between("]")
        return content

    def goes_on(self, end: str) -> bool:
        """Tell whether there is another entry, and step over the end if not."""
        self.skip()
        while self.text.startswith(",", self.at):
            self.repair("comma too many", self.at)
            self.at += 1
            self.skip()
        character = self.text[self.at : self.at + 1]
        if character == "":
            raise self.refuse(
                f"the text ends before the closing '{end}'",
                "The file may be cut off: copy it again, or add what is missing.",
            )
        if character == end:
            self.at += 1
            return False
        if character in "}]":
            raise self.refuse(f"expected '{end}' instead of '{character}'", f"Put a '{end}' before it.")
        return True

    def between(self, end: str) -> None:
        """Step over the comma between two entries."""
        after = self.at
        self.skip()
        character = self.text[self.at : self.at + 1]
        if character == ",":
            self.at += 1
            comma = self.at - 1
            self.skip()
            if self.text.startswith(end, self.at):
                self.repair("comma too many", comma)
        elif character and character not in "}]":
            if self.at == after and end == "]":
                raise self.refuse("expected ',' or ']'", "Put a comma between the entries of the list.")
            self.repair("comma missing", self.at)

    def name(self) -> str:
        """Read a member's name."""
        if self.text[self.at] in _QUOTES:
            return self.string()
        found = _WORD.match(self.text, self.at)
        if not found:
            raise self.refuse("expected a member's name in quotes", 'Write members as "name": value.')
        self.repair("bare name", self.at)
        self.at = found.end()
        return found.group()

    def number_or_word(self) -> Any:
        """Read a number, or a word such as true."""
        number = _NUMBER.match(self.text, self.at)
        if number:
            return self.number(number)
        word = _WORD.match(self.text, self.at)
        if not word or word.group().lower() not in _WORDS:
            what = f"'{word.group()[:_SHOWN]}' is no value" if word else "expected a value"
            raise self.refuse(what, "Put texts in quotes; a value that is not known is null.")
        if word.group() not in ("true", "false", "null"):
            self.repair("word", self.at)
        self.at = word.end()
        return _WORDS[word.group().lower()]

    def number(self, found: re.Match[str]) -> float | int:
        """Read what looks like a number."""
        text = found.group()
        try:
            is_whole = not set(text) & set(".eE")
            value = bounded_integer(text) if is_whole else finite_number(text)
        except ValueError as error:
            raise self.unusable(str(error)) from error
        if not _STRICT_NUMBER.fullmatch(text):
            self.repair("number", self.at)
        self.at = found.end()
        return value

    # - Texts

    def string(self) -> str:
        """Read a text; `at` stands at its quote."""
        start, quote = self.at, self.text[self.at]
        end = self.end_of_string(_QUOTES[quote])
        body = self.text[start + 1 : end]
        if quote != '"':
            self.repair("quotes", start)
        if _CONTROL.search(body):
            self.repair("control", start)
        self.at = end + 1
        return self.unescape(body, start)

    def end_of_string(self, quote: str) -> int:
        """Give the place of the quote that ends a text.

        In order: the first quote in the line that no backslash stands before; one that a backslash stands before, as
        at the end of a folder's name, where what follows is what follows a text; a quote in a later line, likewise.
        """
        line = self.line_of(self.at)
        line_end = self.starts[line - 1] - 1 if line <= len(self.starts) else len(self.text)
        at, escaped = self.at + 1, -1
        while at < len(self.text):
            character = self.text[at]
            if character == "\\":
                if self.text[at + 1 : at + 2] == quote and _ENDS.match(self.text, at + 2) and at < line_end:
                    escaped = at + 1 if escaped < 0 else escaped
                at += 2
                continue
            if character == quote and (at < line_end or _ENDS.match(self.text, at + 1)):
                return at
            if at >= line_end and escaped >= 0:
                break
            if escaped >= 0 and at - escaped > _MAX_LOOKED_AHEAD - self.looked_ahead:
                raise self.refuse(
                    "texts end with a backslash too often to tell where they end", "Write each backslash twice."
                )
            at += 1
        if escaped >= 0:
            self.looked_ahead += at - escaped
            return escaped
        raise self.refuse(f"a text begins that has no closing {quote}", f"Add the {quote} that is missing.")

    def unescape(self, body: str, start: int) -> str:
        """Resolve a text's escapes; where one of them is none of JSON's, all backslashes stand for themselves."""
        if "\\" not in _ESCAPE.sub("", body):
            return _joined(_ESCAPE.sub(_resolved, body))
        self.repair("backslash", start)
        return body.replace("\\\\", "\\").replace('\\"', '"')


def _resolved(found: re.Match[str]) -> str:
    character, code = found.groups()
    return _UNESCAPED[character] if character else chr(int(code, 16))


def _joined(text: str) -> str:
    """Give a text in which halves of characters outside the basic plane are whole again."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _lines(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return f"line {numbers[0]}"
    if len(numbers) > _MOST_LINES:
        return f"lines {', '.join(map(str, numbers[:_MOST_LINES]))} and others"
    return f"lines {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
