"""The task that makes the environment always ends with a word."""

from __future__ import annotations

from typing import Any

import pytest

from kestrel.ui import environment_task
from kestrel.ui.environment_task import EnvironmentTask


def ended(task: EnvironmentTask, result: bool) -> list[tuple[bool, str]]:
    ends: list[tuple[bool, str]] = []
    task.ended.connect(lambda is_good, text: ends.append((is_good, text)))
    task.finished(result)
    return ends


def test_an_error_that_nobody_foresaw_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise PermissionError("no entry")

    monkeypatch.setattr(environment_task, "create_environment", fail)
    task = EnvironmentTask("")
    assert not task.run()
    assert ended(task, False) == [(False, "Unexpected error (PermissionError): no entry")]
    assert not task.is_given_up


def test_optional_libraries_of_the_old_environment_go_into_the_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def create(*_: Any, extras: Any, **__: Any) -> str:
        given.extend(extras)
        return "python"

    monkeypatch.setattr(environment_task, "create_environment", create)
    monkeypatch.setattr(environment_task, "installed_extras", lambda _: ("transformers", "unknown"))
    assert EnvironmentTask("").run()
    assert [path.name for path in given] == ["transformers.txt"]


def test_a_task_that_is_cancelled_before_it_starts_counts_as_given_up() -> None:
    task = EnvironmentTask("")
    task.cancel()
    assert ended(task, False) == [(False, "Canceled.")]
    assert task.is_given_up
