"""docs/rasters.md has a row for each kind of source that is tested; tests and parameters that it names are there."""

from __future__ import annotations

import re
from pathlib import Path

from kestrel.inference.job import RASTER_KINDS
from kestrel.processing_provider.parameters import output_table, parameter_table
from kestrel.tests.qgis.test_routes import ROUTES


def text(repository: Path) -> str:
    return (repository / "docs" / "rasters.md").read_text("utf-8")


def routes(repository: Path) -> list[list[str]]:
    """Give the cells of the table of kinds and routes."""
    part = text(repository).partition("## Kinds and routes")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:1] == "|"]
    return rows[2:]


def test_every_kind_that_is_tested_has_its_row_and_no_other(repository: Path) -> None:
    assert [row[0] for row in routes(repository)] == list(ROUTES)


def test_every_way_of_reading_is_named(repository: Path) -> None:
    read_as = {kind for row in routes(repository) for kind in re.findall(r"`(\w+)`", row[1])}
    assert read_as == set(RASTER_KINDS)
    head = re.findall(r"^\| \|(.*)\|$", text(repository), re.MULTILINE)[0]
    assert set(re.findall(r"`(\w+)`", head)) == set(RASTER_KINDS)


def test_every_cell_names_a_test_of_the_list(repository: Path) -> None:
    listed = set(re.findall(r"^- \*\*([A-Z])\*\* `test_", text(repository), re.MULTILINE))
    used = set()
    for row in routes(repository):
        assert len(row) == 6
        for cell in row[3:]:
            letters = set(re.findall(r"\b[A-Z]\b", cell))
            assert letters and letters <= listed, (row[0], cell)
            used |= letters
    assert used == listed


def test_the_tests_that_are_named_are_there(repository: Path) -> None:
    content = text(repository)
    named = set(re.findall(r"`(test_\w+\.py)(?:::(test_\w+))?`", content))
    files: dict[str, str] = {}
    for path in (repository / "tests").rglob("test_*.py"):
        files[path.name] = files.get(path.name, "") + path.read_text("utf-8")
    assert len(named) > 40 and content.count("::") == sum(bool(test) for _, test in re.findall(
        r"`(test_\w+\.py)::(test_\w+)`", content))  # fmt: skip
    lost = [(file, test) for file, test in sorted(named) if f"def {test or 'test_'}" not in files.get(file, "")]
    assert lost == []


def test_parameters_that_are_named_are_there(repository: Path) -> None:
    known = {row.key for row in (*parameter_table(), *output_table())}
    words = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", text(repository)))
    assert len(words) > 15
    assert words - known - {"PROCESS_AS_MOSAICKED_IMAGE", "PROCESS_ITEMS_SEPARATELY"} == set()
