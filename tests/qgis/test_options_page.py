"""The options: which programs are allowed, and the optional parts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qgis.core import QgsSettings

from kestrel.processing_provider.code_consent import allow, is_allowed
from kestrel.processing_provider.interpreter import EXTRAS
from kestrel.ui import environment_task, options_page
from kestrel.ui.environment_task import ExtraTask
from kestrel.ui.options_page import KestrelOptionsPage

ONE, TWO = "a1" * 32, "b2" * 32


@pytest.fixture
def page() -> Iterator[KestrelOptionsPage]:
    """The page, with two programs allowed."""
    QgsSettings().remove("kestrel/trusted_code")
    allow(ONE, "Finder of <b>trees</b>")
    allow(TWO, "Counter")
    value = KestrelOptionsPage(None, None, [])
    yield value
    value.deleteLater()
    QgsSettings().remove("kestrel/trusted_code")


def rows(page: KestrelOptionsPage) -> list[str]:
    return [page._programs.topLevelItem(row).text(0) for row in range(page._programs.topLevelItemCount())]


def test_allowed_programs_are_listed_and_can_be_revoked(page: KestrelOptionsPage) -> None:
    assert rows(page) == ["Finder of \u2039b>trees\u2039/b>", "Counter"]
    assert not page._revoke.isEnabled()
    page._programs.topLevelItem(0).setSelected(True)
    page._revoke.click()
    assert (rows(page), is_allowed(ONE), is_allowed(TWO)) == (["Counter"], False, True)


def test_the_page_tells_what_the_administrator_settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "global.ini").write_text("[kestrel]\ncode_policy=deny\n")
    monkeypatch.setenv("QGIS_GLOBAL_SETTINGS_FILE", str(tmp_path / "global.ini"))
    page = KestrelOptionsPage(None, None, [])
    assert "does not allow models to run programs" in page._policy.text()
    page.deleteLater()


@pytest.mark.parametrize("name", ["TensorFlow", "Transformers"])
def test_each_optional_library_has_a_button_that_asks_first(
    page: KestrelOptionsPage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    asked: list[str] = []

    def refuse(_parent: Any, title: str, question: str, *_: Any) -> Any:
        asked.extend([title, question])
        return options_page.QMessageBox.StandardButton.No

    monkeypatch.setattr(options_page.QMessageBox, "question", refuse)
    page._interpreter.setFilePath(str(tmp_path / "python"))
    page._extras[name].click()
    assert asked[0] == f"Install {name}"
    assert name in asked[1]
    assert EXTRAS[name].is_file()
    assert page._tasks == []


def ended(task: ExtraTask, result: bool) -> list[tuple[bool, str]]:
    ends: list[tuple[bool, str]] = []
    task.ended.connect(lambda is_good, text: ends.append((is_good, text)))
    task.finished(result)
    return ends


def test_an_optional_part_for_an_environment_that_is_not_there_ends_with_the_reason(tmp_path: Path) -> None:
    task = ExtraTask(str(tmp_path / "python"), tmp_path / "tensorflow.txt", "TensorFlow")
    assert not task.run()
    ((is_good, text),) = ended(task, False)
    assert (is_good, "does not exist" in text) == (False, True)


@pytest.mark.parametrize(("is_there", "text"), [(True, "TensorFlow is installed."), (False, "Canceled.")])
def test_the_end_of_an_installation_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_there: bool, text: str
) -> None:
    def install(*_: Any, **__: Any) -> bool:
        return is_there

    monkeypatch.setattr(environment_task, "install_extra", install)
    task = ExtraTask("python", tmp_path / "tensorflow.txt", "TensorFlow")
    assert task.run() is is_there
    assert ended(task, is_there) == [(is_there, text)]
    assert task.is_given_up is not is_there
