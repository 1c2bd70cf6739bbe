"""Foreign strings lose what could mislead a reader or a window."""

from __future__ import annotations

import pytest

from kestrel.processing_provider.text import file_name, to_plain, to_ui


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("Palm & House", "Palm &amp; House"),
        ("<img src=file:///etc/passwd>", "&lt;img src=file:///etc/passwd&gt;"),
        ('"quoted"', "&quot;quoted&quot;"),
        ("two\nlines\tand a tab", "two lines and a tab"),
        ("evil\u202egnp.exe", "evilgnp.exe"),
        ("zero\u200bwidth\x00\x1b[31m", "zerowidth[31m"),
        ("Bäume, деревья, 木", "Bäume, деревья, 木"),
        (7, "7"),
    ],
)
def test_html_is_escaped_and_control_characters_go(given: object, expected: str) -> None:
    assert to_ui(given) == expected


def test_a_long_text_is_cut_at_200_characters() -> None:
    assert to_ui("x" * 201) == "x" * 199 + "…"


def test_plain_text_holds_nothing_that_qt_takes_for_markup() -> None:
    assert to_plain("a <b>bold</b> name & more") == "a ‹b>bold‹/b> name & more"


@pytest.mark.parametrize(
    ("source", "name"),
    [("/vsicurl/https://a.example/b/c.tif?sig=canary", "c.tif"), ("https://a.example/c.tif", "c.tif"),
     ("/data/odd?.tif", "odd?.tif"), ("", "")],
)  # fmt: skip
def test_the_name_of_a_raster_holds_nothing_of_what_stands_behind_its_address(source: str, name: str) -> None:
    assert file_name(source) == name
