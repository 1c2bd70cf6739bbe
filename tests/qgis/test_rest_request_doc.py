"""docs/rest_request.md names every member that is known and parameters that there are; its example is a request."""

from __future__ import annotations

import json
import re
from pathlib import Path

from kestrel.processing_provider.parameters import parameter_table
from kestrel.processing_provider.rest_request.text import read_request
from kestrel.processing_provider.rest_request.translate import known_members, translate


def text(repository: Path) -> str:
    return (repository / "docs" / "rest_request.md").read_text("utf-8")


def rows(repository: Path) -> list[tuple[str, str]]:
    return re.findall(r"^\| `([\w:.]+)` \|([^|]*)\|", text(repository), re.MULTILINE)


def test_the_table_has_a_row_for_every_member_and_no_other(repository: Path) -> None:
    named = [member for member, _ in rows(repository)]
    assert sorted(named) == sorted(known_members())


def test_the_parameters_in_the_table_are_those_of_the_algorithm(repository: Path) -> None:
    named = {key for _, keys in rows(repository) for key in re.findall(r"[A-Z_]{2,}", keys)}
    assert len(named) > 15
    assert named - {row.key for row in parameter_table()} == set()


def test_the_example_is_translated_without_a_warning(repository: Path) -> None:
    example = re.findall(r"^```json\n(.*?)^```", text(repository), re.MULTILINE | re.DOTALL)[0]
    assert len(json.loads(example)) > 10
    assert translate(read_request(example)).warnings == ()
