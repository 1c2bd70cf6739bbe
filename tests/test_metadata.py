"""The plugin's metadata holds what QGIS and its plugin site ask for, and agrees with the rest of the repository."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest


@pytest.fixture
def metadata(repository: Path) -> configparser.SectionProxy:
    parser = configparser.ConfigParser()
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(repository / "metadata.txt", encoding="utf-8")
    return parser["general"]


def test_every_required_key_has_a_value(metadata: configparser.SectionProxy) -> None:
    required = "name description version qgisMinimumVersion author email about tracker repository".split()
    assert [key for key in required if not metadata.get(key)] == []


def test_qgis_process_loads_only_what_says_yes_here(metadata: configparser.SectionProxy) -> None:
    assert metadata["hasProcessingProvider"] == "yes"


def test_the_plugin_is_offered_to_qgis_3_40_and_to_qgis_4(metadata: configparser.SectionProxy) -> None:
    assert (metadata["qgisMinimumVersion"], metadata["qgisMaximumVersion"]) == ("3.40", "4.99")


def test_the_text_about_the_plugin_states_its_dependencies(metadata: configparser.SectionProxy) -> None:
    for dependency in ("PyTorch", "torchvision", "ONNX Runtime", "rasterio"):
        assert dependency in metadata["about"]


def test_the_changelog_knows_the_version(metadata: configparser.SectionProxy, repository: Path) -> None:
    headings = re.findall(r"^## (\S+)", (repository / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert metadata["version"] in headings


def test_the_icon_is_there(metadata: configparser.SectionProxy, repository: Path) -> None:
    assert (repository / metadata["icon"]).is_file()


def test_the_author_has_no_slash_which_the_site_refuses(metadata: configparser.SectionProxy) -> None:
    assert "/" not in metadata["author"]
