from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kestrel.inference.models.arguments import ArgumentSpec
from kestrel.inference.models.static_arguments import MAX_SOURCE_BYTES, static_arguments

TYPICAL = """
import arcpy, torch  # neither is imported here
DEFAULT_OVERLAP = 0.1
raise SystemExit("never run")

class Helper:
    def getParameterInfo(self):
        return [{"name": "not_mine", "dataType": "numeric", "value": 1}]

class Finder:
    def getParameterInfo(self):
        parameters = [
            {'name': 'raster', 'dataType': 'raster', 'value': None, 'required': True, 'displayName': 'Input Raster'},
            {'name': 'model', 'dataType': 'string', 'value': None, 'required': True},
            {'name': 'device', 'dataType': 'numeric', 'value': -2},
            {'name': 'padding', 'dataType': 'numeric', 'value': int(self.height / 4), 'displayName': 'Padding'},
            {'name': 'threshold', 'dataType': 'numeric', 'value': 0.5, 'displayName': 'Confidence Score',
             'description': 'Lowest\\n  score.'},
            {'name': 'batch_size', 'dataType': 'numeric', 'value': 4},
            {'name': 'nms_overlap', 'dataType': 'numeric', 'value': DEFAULT_OVERLAP},
            {'name': 'offset', 'dataType': 'GPLong', 'value': -3},
            {'name': 'ratio', 'dataType': 'GPDouble', 'value': '2'},
            {'name': 'exclude', 'dataType': 'boolean', 'value': 'TRUE'},
            {'name': 'text_prompt', 'dataType': 'string', 'value': ''},
            {'name': 'policy', 'dataType': 'string', 'domain': ('mean', 'max'), 'value': 'max'},
            {'name': 'policy', 'dataType': 'string', 'value': 'twice'},
        ]
        parameters.append(dict(name="late", dataType="GPString", value="x"))
        return parameters
"""


def by_name(source: str, file_name: str = "Finder.py") -> dict[str, ArgumentSpec]:
    return {spec.name: spec for spec in static_arguments(source.encode(), file_name)}


def test_a_typical_function_tells_its_arguments_without_being_run() -> None:
    specs = by_name(TYPICAL)
    assert list(specs) == [
        "padding", "threshold", "batch_size", "nms_overlap", "offset", "ratio", "exclude", "text_prompt", "policy",
        "late",
    ]  # fmt: skip
    assert {name: (spec.kind, spec.default) for name, spec in specs.items()} == {
        "padding": ("number", None),
        "threshold": ("number", 0.5),
        "batch_size": ("number", 4.0),
        "nms_overlap": ("number", 0.1),
        "offset": ("integer", -3),
        "ratio": ("number", 2.0),
        "exclude": ("boolean", True),
        "text_prompt": ("text", ""),
        "policy": ("choice", "max"),
        "late": ("text", "x"),
    }
    assert specs["threshold"].label == "Confidence Score"
    assert specs["threshold"].help == "Lowest score."
    assert specs["policy"].choices == ("mean", "max")


def test_the_class_is_named_like_the_file() -> None:
    assert [*by_name(TYPICAL, "sub\\Helper.py")] == ["not_mine"]
    assert by_name(TYPICAL, "Other.py") == {}


def test_a_method_of_a_base_class_in_the_same_file_counts() -> None:
    source = "class A:\n def getParameterInfo(self): return [{'name':'a','dataType':'numeric','value':1}]\n"
    assert [*by_name(source + "class B(A): pass\n", "B.py")] == ["a"]
    assert by_name("class A(B): pass\nclass B(A): pass\n", "B.py") == {}


@pytest.mark.parametrize(
    ("data_type", "value"), [("numeric", "[1]"), ("GPLong", "1.5"), ("boolean", "'perhaps'"), ("numeric", "1e999")]
)
def test_a_default_of_another_type_is_unknown(data_type: str, value: str) -> None:
    source = "class F:\n def getParameterInfo(self):\n  return [{'name':'a','dataType':'%s','value':%s}]"
    assert by_name(source % (data_type, value), "F.py")["a"].default is None


def test_a_default_outside_the_domain_is_unknown() -> None:
    source = (
        "class F:\n def getParameterInfo(self): return [{'name':'a','dataType':'string','value':'z','domain':('y',)}]"
    )
    assert by_name(source, "F.py")["a"].default is None


EVIL = {
    "no python": b"class Finder(:",
    "no text": b"\x00\xff\xfe",
    "wrong coding": b"# coding: nonsense\n",
    "open bracket": b"class Finder:\n x = (",
    "chain of attributes": b"x" + b".a" * 300_000,
    "chain of calls": b"x" + b"(1,1)" * 100_000,
    "chain of sums": b"1" + b"+1" * 300_000,
    "chain of signs": b"-" * 300_000 + b"1",
    "chain of not": b"not " * 300_000 + b"1",
    "chain of lambdas": b"lambda:" * 100_000 + b"1",
    "chain of clauses": b"if a:\n pass\n" + b"elif a:\n pass\n" * 20_000,
    "brackets": b"(" * 100_000,
    "too large": b"#" * (MAX_SOURCE_BYTES + 1),
    "huge number": b"class Finder:\n def getParameterInfo(self): return [{'name':'a','dataType':'GPLong','value':"
    + b"9" * 9000 + b"}]",
}  # fmt: skip


@pytest.mark.parametrize("name", EVIL)
def test_source_that_cannot_be_read_tells_nothing(name: str) -> None:
    assert static_arguments(EVIL[name], "Finder.py") == ()


@given(st.binary(max_size=300))
def test_any_bytes_give_arguments_or_nothing(data: bytes) -> None:
    assert isinstance(static_arguments(data, "Finder.py"), tuple)


def test_reading_runs_and_imports_nothing_of_the_package(tmp_path: Path, repository: Path) -> None:
    canary = tmp_path / "canary"
    source = f"open({str(canary)!r}, 'w')\nimport sibling\n" + TYPICAL
    (tmp_path / "Finder.py").write_text(source)
    (tmp_path / "sibling.py").write_text(f"open({str(canary)!r}, 'w')\n")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from kestrel.inference.models.static_arguments import static_arguments\n"
        "print(len(static_arguments(open('Finder.py', 'rb').read(), 'Finder.py')))\n"
        "print([name for name in ('numpy', 'torch', 'sibling', 'Finder') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(repository / "build" / "plugins")],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split("\n")[:2] == ["10", "[]"]
    assert not canary.exists()


def test_a_text_that_is_longer_than_any_function_is_not_parsed() -> None:
    source = b"class Finder:\n    def getParameterInfo(self):\n        return [{'name': 'a', 'dataType': 'numeric'}]\n"
    assert 1 == len(static_arguments(source, "Finder.py"))
    assert () == static_arguments(source + b"x\n" * 200_000, "Finder.py")
