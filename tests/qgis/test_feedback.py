"""What the worker says reaches the person who waits, and errors reach them whole."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from kestrel.inference.errors import ModelHashError, WorkerCrashError
from kestrel.inference.events import Message, Objects, Progress, Started
from kestrel.processing_provider.feedback import (
    EventListener,
    as_processing_exception,
    duration_text,
    is_main_thread,
    progress_text,
)
from kestrel.tests.qgis.examples import Listener


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (Progress(1, 10, 3), "Tile 1 of 10, 3 objects"),
        (Progress(1, 10, 3, 2.345), "Tile 1 of 10, 3 objects, 2.35 tiles a second"),
        (Progress(1, 10, 3, 2.0, 4.5), "Tile 1 of 10, 3 objects, 2 tiles a second, about 4 s left"),
        (Progress(10, 10, 3, 2.0, 0.0), "Tile 10 of 10, 3 objects, 2 tiles a second"),
    ],
)
def test_progress_says_what_is_known(event: Progress, expected: str) -> None:
    assert progress_text(event) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (7800, "2 h 10 min")]
)
def test_a_duration_is_told_as_people_do(seconds: float, expected: str) -> None:
    assert duration_text(seconds) == expected


def test_progress_moves_the_bar_and_not_the_log_each_time() -> None:
    feedback = Listener()
    listener = EventListener(feedback)
    for done in range(1, 100):
        listener(Progress(done, 200, 0))
    assert feedback.progress() == 49.5
    assert feedback.said == [("progress", "Tile 1 of 200, 0 objects")]


def test_the_last_tile_is_always_told() -> None:
    feedback = Listener()
    listener = EventListener(feedback)
    listener(Progress(1, 2, 0))
    listener(Progress(2, 2, 5))
    assert feedback.said[-1] == ("progress", "Tile 2 of 2, 5 objects")


@pytest.mark.parametrize("level", ["info", "warning", "error"])
def test_messages_arrive_by_their_level_without_markup(level: str) -> None:
    feedback = Listener()
    EventListener(feedback)(Message(level, "id", "a <b>\nword"))
    assert feedback.said == [(level, "a ‹b> word")]


def test_the_workers_versions_are_for_those_who_look_closely() -> None:
    feedback = Listener()
    EventListener(feedback)(Started(7, {"torch": "2.10"}))
    assert feedback.said == [("debug", "Worker 7: torch 2.10")]


def test_files_of_objects_are_remembered_in_order() -> None:
    listener = EventListener(Listener())
    for name in ("/x/objects-1.npz", "/x/objects-2.npz"):
        listener(Objects(name, 3))
    assert listener.object_files == [Path("/x/objects-1.npz"), Path("/x/objects-2.npz")]


def test_an_exception_holds_message_hint_log_and_code(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text("")
    error = as_processing_exception(ModelHashError("It changed.", hint="Start anew."), log)
    assert str(error) == f"It changed. Start anew. Log: {log} [model-hash]"


def test_a_log_that_the_hint_names_is_not_named_twice(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text("")
    error = as_processing_exception(WorkerCrashError("It died.", hint=f"See {log}."), log)
    assert str(error) == f"It died. See {log}. [worker-crash]"


def test_the_main_thread_is_told_from_others() -> None:
    found = []
    thread = threading.Thread(target=lambda: found.append(is_main_thread()))
    thread.start()
    thread.join()
    assert [is_main_thread(), *found] == [True, False]
