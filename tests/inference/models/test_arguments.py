from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kestrel.inference.errors import JobError
from kestrel.inference.models.arguments import argument_specs, parse_arguments, resolve_arguments
from kestrel.inference.models.definition import ModelClass, ModelDefinition, TileSpec


def define(tile: TileSpec | None = None, **arguments: Any) -> ModelDefinition:
    return ModelDefinition(
        "m", "onnx", "m.onnx", (ModelClass(1, "a", (0, 0, 0)),), tile=tile or TileSpec(), arguments=arguments
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, {}),
        ("", {}),
        ("   ", {}),
        ("{}", {}),
        ("threshold 0.4", {"threshold": "0.4"}),
        ("threshold 0.4;padding 64", {"threshold": "0.4", "padding": "64"}),
        (" threshold   0.4 ; padding 64 ; ", {"threshold": "0.4", "padding": "64"}),
        ("name 'a b'", {"name": "a b"}),
        ("name 'a;b';padding 1", {"name": "a;b", "padding": "1"}),
        ("name ''", {"name": ""}),
        ("name it's", {"name": "it's"}),
        ("text with several words", {"text": "with several words"}),
        ('{"threshold": 0.4, "padding": null}', {"threshold": 0.4, "padding": None}),
        ('  {"a": {"b": 1}}', {"a": {"b": 1}}),
        ({"threshold": 0.4, 5: "x"}, {"threshold": 0.4, "5": "x"}),
    ],
)
def test_both_spellings_are_read(text: Any, expected: dict[str, Any]) -> None:
    assert expected == parse_arguments(text)


@given(
    st.dictionaries(st.sampled_from(["threshold", "padding", "batch_size", "x"]), st.none() | st.integers() | st.text())
)
def test_json_and_mapping_say_the_same(arguments: dict[str, Any]) -> None:
    assert parse_arguments(arguments) == parse_arguments(json.dumps(arguments))


values = st.text(
    st.characters(blacklist_characters="'", blacklist_categories=("Cc", "Zl", "Zp", "Zs", "Cs")), min_size=1
)


@given(st.dictionaries(st.from_regex("[a-z_]+", fullmatch=True), values))
def test_pairs_with_quotes_come_back_as_they_were_written(arguments: dict[str, str]) -> None:
    text = ";".join(f"{name} '{value}'" for name, value in arguments.items())
    assert arguments == parse_arguments(text)


@pytest.mark.parametrize(
    "text", ["threshold", "threshold 0.4;padding", "{", '{"threshold": }', "{'threshold': 1}", '{"a":' * 100_000,
             '{"threshold": NaN}', '{"threshold": -Infinity}', "[0.4]", '["threshold", 0.4]', "[]"],
)  # fmt: skip
def test_text_that_is_neither_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(JobError, match=r"threshold 0\.4;padding 64"):
        parse_arguments(text)


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("threshold", "0.25", 0.25),
        ("threshold", 1, 1.0),
        ("threshold", "1e-1", 0.1),
        ("padding", "64", 64),
        ("padding", 64.0, 64),
        ("padding", " 8 ", 8),
        ("batch_size", "4", 4),
        ("tile_size", 1024, 1024),
        ("test_time_augmentation", "True", True),
        ("test_time_augmentation", "false", False),
        ("test_time_augmentation", True, True),
        ("exclude_pad_detections", "no", False),
        ("exclude_pad_detections", 0, False),
    ],
)
def test_values_are_given_in_the_type_of_the_argument(name: str, given: Any, expected: Any) -> None:
    result = resolve_arguments(define(), {name: given}).values[name]
    assert (expected, type(expected)) == (result, type(result))


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("threshold", "high", "a number from 0 to 1"),
        ("threshold", 1.01, "a number from 0 to 1"),
        ("threshold", -0.1, "a number from 0 to 1"),
        ("threshold", float("nan"), "a number from 0 to 1"),
        ("threshold", "inf", "a number from 0 to 1"),
        ("threshold", True, "a number from 0 to 1"),
        ("threshold", [0.5], "a number from 0 to 1"),
        ("nms_overlap", "1e999", "a number from 0 to 1"),
        ("padding", -8, "a whole number from 0 to 4096"),
        ("padding", 7.5, "a whole number"),
        ("tile_size", 31, "a whole number from 32 to 8192"),
        pytest.param("tile_size", 10**400, "a whole number from 32 to 8192", id="400 digits"),
        pytest.param("tile_size", "9" * 400, "a whole number from 32 to 8192", id="text of 400 digits"),
        ("batch_size", 0, "a whole number from 1 to 4096"),
        ("test_time_augmentation", "maybe", "True or False"),
        ("exclude_pad_detections", 2, "True or False"),
    ],
)
def test_a_bad_value_is_refused_with_its_name_and_range(name: str, given: Any, expected: str) -> None:
    with pytest.raises(JobError, match=f"'{name}' is .*expected {expected}") as caught:
        resolve_arguments(define(), {name: given})
    assert name == caught.value.context["argument"]


def test_the_package_s_defaults_count_unless_something_is_given() -> None:
    definition = define(TileSpec(size=640), threshold=0.3, batch_size=4)
    plain = resolve_arguments(definition, {}).values
    assert (0.3, 4, 640, 0.45) == tuple(plain[name] for name in ("threshold", "batch_size", "tile_size", "nms_overlap"))
    assert 0.6 == resolve_arguments(definition, {"threshold": 0.6}).values["threshold"]
    assert {"threshold": 0.3, "tile_size": 640}.items() <= {
        s.name: s.default for s in argument_specs(definition)
    }.items()


@pytest.mark.parametrize("empty", ["", None])
def test_an_empty_value_means_the_default(empty: Any) -> None:
    definition = define(threshold=0.3)
    assert resolve_arguments(definition, {}) == resolve_arguments(definition, {"threshold": empty, "tile_size": empty})


def test_a_default_that_is_null_is_none() -> None:
    definition = define(TileSpec(size=640), tile_size=None, threshold=None)
    expected = resolve_arguments(define(TileSpec(size=640)), {"padding": 8})
    assert expected == resolve_arguments(definition, {"padding": 8})


def test_names_of_any_type_are_told_as_unknown() -> None:
    given: dict[Any, Any] = {5: 1, "a": 2, None: 3}
    assert 3 == len(resolve_arguments(define(), given).warnings)


def test_a_bad_default_of_the_package_is_refused_by_its_name() -> None:
    for arguments in ({"threshold": 7}, {"batch_size": "many"}, {"tile_size": 5}):
        with pytest.raises(JobError, match=next(iter(arguments))):
            resolve_arguments(define(**arguments), {})
    with pytest.raises(JobError, match="tile_size"):
        resolve_arguments(define(TileSpec(size=10**9)), {})


def test_unknown_names_become_warnings_that_list_the_known_ones() -> None:
    result = resolve_arguments(define(), {"treshold": 1, "a": 2, "threshold": 0.5})
    assert 2 == len(result.warnings)
    assert "'a' is not known" in result.warnings[0]
    assert "threshold, nms_overlap, merge_method" in result.warnings[1]


@pytest.mark.parametrize(("padding", "tile_size"), [(256, 512), (40, 64), (32, 64)])
def test_a_padding_that_leaves_nothing_of_the_tile_is_refused(padding: int, tile_size: int) -> None:
    with pytest.raises(JobError, match=f"'padding' is {padding}; with tile_size {tile_size} it must be below"):
        resolve_arguments(define(), {"padding": padding, "tile_size": tile_size})


def test_a_padding_just_below_half_of_the_tile_is_taken() -> None:
    assert 31 == resolve_arguments(define(), {"padding": 31, "tile_size": 64}).values["padding"]


def test_the_name_of_older_templates_is_understood() -> None:
    assert 0.7 == resolve_arguments(define(), {"score_threshold": 0.7}).values["threshold"]
