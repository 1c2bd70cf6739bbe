from __future__ import annotations

import json
import time
from contextlib import nullcontext
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kestrel.inference.errors import ModelPackageError
from kestrel.inference.models.emd_text import read_emd, read_json

GOOD = {"Framework": "Onnx", "ImageHeight": 256, "Classes": [{"Value": 1, "Name": "Bäume"}]}


def test_a_sound_text_is_read_without_a_word() -> None:
    text = read_emd(json.dumps(GOOD).encode(), "'x.emd'")
    assert (GOOD, ()) == (text.content, text.notes)


# -- Repairs: what stands there, what is read, what is told ------------------------------------------------------------

REPAIRS: dict[str, tuple[bytes, dict[str, Any], str]] = {
    "byte order mark": (b'\xef\xbb\xbf{"a": 1}', {"a": 1}, "'x.emd' begins with a byte order mark"),
    "UTF-16 with a mark": ('{"a": "ä"}'.encode("utf-16"), {"a": "ä"}, "'x.emd' is UTF-16 text"),
    "UTF-16, little end first": ('{"a": "ä"}'.encode("utf-16-le"), {"a": "ä"}, "is UTF-16 text"),
    "UTF-16, big end first": ('{"a": "ä"}'.encode("utf-16-be"), {"a": "ä"}, "is UTF-16 text"),
    "Windows-1252": ('{"a": "Bäume – 5 €"}'.encode("cp1252"), {"a": "Bäume – 5 €"}, "is Windows-1252 text"),
    "comma missing between lines": (b'{"a": 1\n"b": 2}', {"a": 1, "b": 2}, "line 2: a comma is missing"),
    "comma missing in a line": (b'{"a": "x" "b": 2}', {"a": "x", "b": 2}, "line 1: a comma is missing"),
    "comma missing in a list": (b'{"a": [1\n2]}', {"a": [1, 2]}, "line 2: a comma is missing"),
    "comma missing between objects": (b'{"a": [{}\n{"b": 2}]}', {"a": [{}, {"b": 2}]}, "a comma is missing"),
    "comma at the end of an object": (b'{"a": 1,\n}', {"a": 1}, "line 1: there is a comma too many"),
    "comma at the end of a list": (b'{"a": [1, ]}', {"a": [1]}, "a comma too many"),
    "two commas": (b'{"a": 1,, "b": 2}', {"a": 1, "b": 2}, "a comma too many"),
    "comma in front": (b'{, "a": 1}', {"a": 1}, "a comma too many"),
    "path of Windows": (
        b'{\n"ModelFile": "C:\\models\\new\\x.pb"}', {"ModelFile": "C:\\models\\new\\x.pb"},
        "line 2: backslashes in a text are not doubled",
    ),
    "path beside": (b'{"ModelFile": ".\\model.pb"}', {"ModelFile": ".\\model.pb"}, "backslashes in a text"),
    "path that ends with a backslash": (
        b'{"a": "C:\\models\\",\n"b": "x"}', {"a": "C:\\models\\", "b": "x"}, "backslashes in a text",
    ),
    "built-in function": (
        b'{"InferenceFunction": "[Functions]System\\DeepLearning\\x.py"}',
        {"InferenceFunction": "[Functions]System\\DeepLearning\\x.py"}, "backslashes in a text",
    ),
    "half of a unicode escape": (b'{"a": "C:\\users\\me"}', {"a": "C:\\users\\me"}, "backslashes in a text"),
    "comment to the end of the line": (b'{"a": 1, // one\n"b": 2}', {"a": 1, "b": 2}, "line 1: there is a comment"),
    "comment of Python": (b'# hello\n{"a": 1 # one\n}', {"a": 1}, "lines 1 and 2: there is a comment"),
    "comment of C": (b'{"a": /* one\ntwo */ 1}', {"a": 1}, "line 1: there is a comment"),
    "comment at the very end": (b'{"a": 1} // end', {"a": 1}, "there is a comment"),
    "single quotes": (b"{'a': 'it\\'s \"x\"'}", {"a": "it's \"x\""}, "texts stand in other quotes"),
    "typographic quotes": ("{“a”: “b”}".encode(), {"a": "b"}, "texts stand in other quotes"),
    "bare names": (b'{a: 1, b.c: "x"}', {"a": 1, "b.c": "x"}, "a name stands without quotes"),
    "Python's words": (b'{"a": True, "b": False, "c": None}', {"a": True, "b": False, "c": None}, "True, False, None"),
    "NaN": (b'{"a": NaN, "b": [-Infinity]}', {"a": None, "b": [None]}, "NaN is written"),
    "line break in a text": (b'{"a": "x\ny",\n"b": 1}', {"a": "x\ny", "b": 1}, "line 1: a text holds line breaks"),
    "tab in a text": (b'{"a": "x\ty"}', {"a": "x\ty"}, "control characters"),
    "half a number": (b'{"a": .5, "b": 5., "c": +1, "d": 007}', {"a": 0.5, "b": 5.0, "c": 1, "d": 7}, "a number"),
    "same member twice": (b'{"a": [1],\n"a": [1]}', {"a": [1]}, "line 2: a member stands there a second time"),
    "text after the end": (b'{"a": 1}\nThank you for downloading', {"a": 1}, "line 2: text follows the end"),
    "second brace at the end": (b'{"a": 1}}', {"a": 1}, "text follows the end"),
}  # fmt: skip


@pytest.mark.parametrize("name", REPAIRS)
def test_damage_is_repaired_and_told_with_its_line(name: str) -> None:
    data, content, told = REPAIRS[name]
    with pytest.raises(ModelPackageError) if name != "byte order mark" else nullcontext():
        read_json(data, "'x.emd'")
    text = read_emd(data, "'x.emd'")
    assert content == text.content
    assert 1 == len(text.notes)
    assert told in text.notes[0]
    assert text.notes[0].startswith("The model definition 'x.emd'")


def test_each_kind_of_damage_is_told_once_with_some_of_its_lines() -> None:
    data = b'{"a": [' + b"\n".join(b"{'b': %d,}" % i for i in range(20)) + b"]}"
    notes = read_emd(data, "'x.emd'").notes
    assert 3 == len(notes)
    assert any("lines 1, 2, 3, 4, 5 and others: there is a comma too many" in note for note in notes)


def test_escapes_that_json_knows_are_resolved_in_a_damaged_text_too() -> None:
    text = read_emd(b'{"a": "x\\n\\u00e4\\ud83d\\ude00\\\\", "b": "C:\\\\models",}', "'x.emd'")
    assert {"a": "x\nä😀\\", "b": "C:\\models"} == text.content


# -- What cannot be repaired -------------------------------------------------------------------------------------------

REFUSALS: dict[str, tuple[bytes, str, str]] = {
    "no value": (b'{\n"Framework": }', r"expected a value in line 2, column 14: '\"Framework\": }'", "null"),
    "cut off": (b'{"a": [1, 2', r"ends before the closing '\]' in line 1, column 12", "cut off"),
    "cut off in a text": (b'{\n"a": "x', 'no closing " in line 2, column 6', "Add the"),
    "no colon": (b'{"a" 1}', r"expected ':' after 'a' in line 1, column 6", "Put a colon"),
    "quotes inside a text": (b'{"a": "the "best" one"}', "expected ':' after 'best' in line 1", "quote inside a text"),
    "wrong bracket": (b'{"a": [1, 2}', r"expected '\]' instead of '}' in line 1, column 12", r"Put a '\]' before it"),
    "closed too early": (b'{"a": 1},\n"b": 2}', "closed, and members follow in line 1, column 9", "too early"),
    "a word": (b'{"a": yes}', "'yes' is no value in line 1, column 7", "in quotes"),
    "a version": (b'{"a": 1.2.3}', "expected a value in line 1, column 7", "in quotes"),
    "a bare path": (b'{"a": C:\\x}', "'C' is no value", "in quotes"),
    "a name that is a number": (b'{1: 2}', "expected a member's name in quotes", '"name": value'),
    "an endless comment": (b'{"a": 1 /* x', "comment begins that does not end in line 1", r"\*/"),
    "grown together": (b'{"a": [1"b"]}', r"expected ',' or '\]' in line 1, column 9", "comma"),
    "a list": (b"[1]", "does not hold a JSON object", "begins with '{'"),
    "a number": (b"5", "does not hold a JSON object", "begins with '{'"),
    "nothing": (b"", "does not hold a JSON object", "begins with '{'"),
    "no text": (b"{\x81\xff", "is no text", "UTF-8"),
    "twice, with different values": (
        b'{"a": 1,\n"a": 2}', r"'a' stands in it twice, with different values \(the second time in line 2\)", "Remove",
    ),
    "too deep": (b'{"a": ' + b"[" * 70 + b"]" * 70 + b",}", "nested too deeply", "cannot be used"),
    "far too deep": (b'{"a": ' + b"[" * 100_000, "nested too deeply", "cannot be used"),
    "too many digits": (b'{"a": 123456789012345678901,}', "a number of 21 digits", "Mend"),
    "too large": (b'{"a": 1e999,}', "the number 1e999", "Mend"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_repaired_is_refused_with_place_and_remedy(name: str) -> None:
    data, reason, remedy = REFUSALS[name]
    with pytest.raises(ModelPackageError, match=reason) as caught:
        read_emd(data, "'x.emd'")
    assert caught.value.message.startswith("The model definition 'x.emd' ")
    with pytest.raises(ModelPackageError, match=remedy):
        raise caught.value


def test_a_long_line_is_shown_in_part() -> None:
    with pytest.raises(ModelPackageError) as caught:
        read_emd(b'{"a": "' + b"x" * 100_000 + b'", "b": yes, "c": "' + b"y" * 100_000 + b'"}', "'x.emd'")
    assert '"b": yes' in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.slow
@pytest.mark.parametrize(
    "data",
    [
        b'{"a":' + b"1" * 500_000 + b"x",
        b'{"a":1.' + b"1" * 500_000 + b"x",
        b'{"' + b'\\"  ' * 150_000,
        b'{"a": "' + b"\\" * 500_001,
        b"{" + b'"a":1,' * 100_000 + b"}",
        b"{" + b"/**/" * 150_000,
        b"{" + b"," * 300_000,
        b'{"a": 1} ' + b'"x ' * 200_000,
        b'{"a":' + b"\n" * 300_000 + b"x",
        b"{" + b"'a':'b'" * 80_000,
        ('{"a":[' + "“a\\”," * 6600 + "]}").encode(),
    ],
)
def test_no_damage_takes_long(data: bytes) -> None:
    start = time.process_time()
    try:
        read_emd(data, "'x.emd'")
    except ModelPackageError as error:
        assert len(str(error)) < 600
    assert time.process_time() - start < 5


def test_texts_that_end_with_a_backslash_are_told_apart_up_to_a_bound() -> None:
    few = ('{"a":[' + "“a\\”," * 50 + "]}").encode()
    assert ["a\\"] * 50 == read_emd(few, "'x.emd'").content["a"]
    with pytest.raises(ModelPackageError, match=r"too often.*twice"):
        read_emd(few.replace(b'{"a":[', b'{"a":[' + "“a\\”,".encode() * 6600), "'x.emd'")


def test_a_text_that_is_too_large_to_repair_is_refused_as_it_stands() -> None:
    with pytest.raises(ModelPackageError, match="is not valid JSON"):
        read_emd(b'{"a": "' + b"x" * 2**20 + b'",}', "'x.emd'")


# -- Fuzzing -----------------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.floats(-1e300, 1e300) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text(max_size=6), json_values, max_size=5), st.sampled_from([None, 1]), st.booleans())
def test_the_repairing_reader_reads_sound_json_as_the_strict_one_does(
    content: dict[str, Any], indent: int | None, is_ascii: bool
) -> None:
    data = json.dumps(content, indent=indent, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass")
    try:
        expected = read_json(data, "'x'")
    except ModelPackageError:
        return  # halves of characters
    repaired = read_emd(data + b" //", "'x'")
    assert expected == repaired.content
    assert 1 == len(repaired.notes)


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=80)
    | st.text("{}[]:,\"'\\/*#\n aTtnN.-+e0159u“”", max_size=60).map(lambda text: ("{" + text).encode())
)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        text = read_emd(data, "'x'")
    except ModelPackageError as error:
        assert "'x'" in error.message
        return
    assert isinstance(text.content, dict)
    json.dumps(text.content)
