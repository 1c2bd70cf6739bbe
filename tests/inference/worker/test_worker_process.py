"""The worker as what it is: real child processes, that are cancelled, killed, crash, and lose their parent."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from kestrel.inference import jobs
from kestrel.inference.errors import (
    BackendMissingError,
    DeviceMemoryError,
    DiskFullError,
    InferenceError,
    JobError,
    ProtocolError,
    RasterReadError,
    WorkerCrashError,
    WorkerStartError,
)
from kestrel.inference.events import Done, Message, Objects, PixelsWanted, Progress, Started, WasCanceled, WorkerEvent
from kestrel.inference.job import DetectionJob, RasterItem
from kestrel.inference.pictures import Picture, check_wanted
from kestrel.inference.secrets import Secrets
from kestrel.inference.versions import installed_versions
from kestrel.inference.worker import client, main

pytestmark = pytest.mark.slow

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
posix_only = pytest.mark.skipif(os.name != "posix", reason="POSIX signals and processes")


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "START_FILE", FIXTURES / "worker_start.py")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "job"
    folder.mkdir()
    return folder


def never() -> bool:
    return False


def prepare(folder: Path, behaviour: str) -> None:
    jobs.write_job(
        folder,
        DetectionJob("job", (RasterItem("gdal", "raster.tif"),), "model.dlpk", arguments={"behaviour": behaviour}),
    )


def run(
    folder: Path,
    behaviour: str,
    on_event: Callable[[WorkerEvent], None] = lambda event: None,
    is_cancelled: Callable[[], bool] = never,
) -> Done | WasCanceled:
    prepare(folder, behaviour)
    return client.run_worker(sys.executable, folder, on_event, is_cancelled)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    if sys.platform == "linux":
        # Orphans whose new parent does not collect them stay in the list.
        status = Path(f"/proc/{pid}/stat")
        return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"
    return True


def seconds_until_gone(pid: int, limit: float = 10) -> float:
    start = time.monotonic()
    while is_alive(pid) and time.monotonic() - start < limit:
        time.sleep(0.02)
    return time.monotonic() - start


class Watcher:
    """Collects events, and wants to cancel once the worker says that it waits."""

    def __init__(self) -> None:
        self.events: list[WorkerEvent] = []
        self.pids: list[int] = []
        self.waiting_since = 0.0

    def __call__(self, event: WorkerEvent) -> None:
        self.events.append(event)
        if isinstance(event, Message) and event.id == "waiting":
            self.pids = [int(text) for text in event.text.split()]
            self.waiting_since = time.monotonic()

    def is_waiting(self) -> bool:
        return bool(self.pids)

    def seconds(self) -> float:
        return time.monotonic() - self.waiting_since


# -- Ends well ---------------------------------------------------------------------------------------------------------


def test_events_come_in_order_and_the_last_word_is_returned(folder: Path) -> None:
    events: list[WorkerEvent] = []
    assert run(folder, "count", events.append) == Done({"objects": 7, "text": "Bäume"})
    assert isinstance(events[0], Started)
    assert events[0].versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "numpy" in events[0].versions and "rasterio" in events[0].versions
    counted = [
        event
        for done in range(3)
        for event in (Message("info", "count", f"tile {done} – ¼\n\u2028"), Progress(done + 1, 3, 10 * done, 1.5, None))
    ]
    assert events[1:] == [*counted, Objects(str(folder / "objects-00000001.npz"), 7)]


def test_a_worker_works_in_an_empty_private_folder_that_is_gone_afterwards(folder: Path) -> None:
    (folder / "work-left-over").mkdir()
    word = run(folder, "describe")
    assert isinstance(word, Done)
    work = Path(word.summary["cwd"])
    assert work.parent == folder and word.summary["listing"] == []
    assert sorted(entry.name for entry in folder.iterdir()) == ["job.json", "worker.log"]


@posix_only
def test_a_worker_keeps_to_itself(folder: Path) -> None:
    word = run(folder, "describe")
    assert isinstance(word, Done)
    assert word.summary["umask"] == 0o077
    assert word.summary["stdin"] == ""
    assert not [link for link in word.summary["descriptors"].values() if link.startswith("socket:")]
    assert word.summary["modules"] == []


def test_nobody_can_slip_it_a_module_or_a_library(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = tmp_path / "evil"
    evil.mkdir()
    for place in (evil, folder):
        for name in ("json", "numpy", "sitecustomize", "usercustomize", "encodings"):
            (place / f"{name}.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'a').write({name!r})")
    monkeypatch.chdir(evil)
    for name in ("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "GDAL_DRIVER_PATH"):
        monkeypatch.setenv(name, str(evil))
    monkeypatch.setenv("PYTHONSTARTUP", str(evil / "json.py"))
    monkeypatch.setenv("GDAL_VRT_ENABLE_PYTHON", "YES")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.setenv("PROJ_LIB", str(evil))
    word = run(folder, "describe")
    assert isinstance(word, Done)
    assert not (tmp_path / "canary").exists()
    assert str(evil) not in repr(word.summary)
    assert not {"GDAL_VRT_ENABLE_PYTHON", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"} & word.summary["environment"].keys()


def test_stray_prints_go_to_the_log_and_cannot_forge_an_event(folder: Path) -> None:
    assert run(folder, "print_around") == Done({"objects": 0})
    log = (folder / "worker.log").read_text()
    assert all(f"a stray {what}" in log for what in ("print", "write", "child"))
    assert "forged" in log


def test_a_flood_from_many_threads_comes_whole_and_in_order(folder: Path) -> None:
    events: list[WorkerEvent] = []
    assert run(folder, "flood", events.append) == Done({})
    for thread in range(4):
        told = [event.text.split()[0] for event in events if isinstance(event, Message) and event.id == str(thread)]
        assert told == [str(number) for number in range(2500)]


def test_the_host_is_given_its_turn_all_the_time(folder: Path) -> None:
    prepare(folder, "wait_politely")
    watcher, turns = Watcher(), []

    def is_cancelled() -> bool:
        return watcher.is_waiting() and watcher.seconds() > 1

    client.run_worker(sys.executable, folder, watcher, is_cancelled, idle=lambda: turns.append(time.monotonic()))
    waiting = [turn for turn in turns if turn >= watcher.waiting_since]
    assert len(waiting) >= 5
    assert max(after - before for before, after in pairwise(waiting)) < 1


# -- Pixels and secrets from QGIS --------------------------------------------------------------------------------------


def test_secrets_reach_the_worker_and_nothing_else(folder: Path) -> None:
    headers = {"X-Esri-Authorization": "Bearer canary-4711"}
    secrets = Secrets(({"origin": "https://maps.example", "headers": headers},), ca_file="/certificates.pem")
    prepare(folder, "tell_secrets")
    word = client.run_worker(sys.executable, folder, lambda event: None, never, secrets=secrets)
    assert word == Done({"as sent": [{"origin": "https://maps.example", "headers": headers}],
                         "ca_file": "/certificates.pem"})  # fmt: skip
    assert "Secrets()" in (folder / "worker.log").read_text()
    assert not [path for path in folder.rglob("*") if path.is_file() and b"canary" in path.read_bytes()]


def test_many_large_answers_and_a_flood_of_events_do_not_hold_each_other_up(folder: Path) -> None:
    def pixels(wanted: PixelsWanted) -> Picture:
        thread, side = int(wanted.source.split()[1]), wanted.width
        assert wanted.extent == [0.0, 0.0, side, 1.0]
        content = bytes([thread, wanted.again, 7]) * (side * side)
        return Picture("uint8", (3, side, side), content, b"\1" * (side * side), failures=thread)

    prepare(folder, "ask_for_pixels")
    events: list[WorkerEvent] = []
    word = client.run_worker(sys.executable, folder, events.append, never, pixels=pixels)
    assert word == Done({"right": 24, "asked": 24})
    assert sum(isinstance(event, Message) for event in events) == 4000


def test_the_reason_for_missing_pixels_reaches_the_worker(folder: Path) -> None:
    def pixels(wanted: PixelsWanted) -> Picture:
        raise RasterReadError("The server sleeps.")

    prepare(folder, "ask_once")
    word = client.run_worker(sys.executable, folder, lambda event: None, never, pixels=pixels)
    assert word == Done({"error": "The server sleeps."})


def test_a_worker_that_waits_for_pixels_ends_in_order_when_cancelled(folder: Path) -> None:
    watcher = Watcher()

    def pixels(wanted: PixelsWanted) -> Picture:
        time.sleep(0.3)  # as long as QGIS takes to notice a cancel
        raise RasterReadError("cancelled")

    prepare(folder, "ask_again_and_again")
    word = client.run_worker(sys.executable, folder, watcher, watcher.is_waiting, pixels=pixels)
    assert word == WasCanceled()
    assert watcher.seconds() < 2
    assert (folder / "ended").read_text() == "in order"


@posix_only
def test_a_worker_that_does_not_even_read_holds_up_no_cancel(folder: Path) -> None:
    watcher, picture = Watcher(), Picture("uint8", (3, 4000, 4000), bytes(48_000_000), bytes(16_000_000))
    prepare(folder, "ask_and_stop")
    word = client.run_worker(sys.executable, folder, watcher, watcher.is_waiting, pixels=lambda wanted: picture)
    assert word == WasCanceled()
    assert watcher.seconds() < 3
    assert not is_alive(watcher.pids[0])


@pytest.mark.parametrize("extent", [[0, 0, 1], [0, 0, 0, 1], [1, 0, 0, 1], ["a", 0, 1, 1]])
def test_a_senseless_request_for_pixels_is_refused(extent: list[float]) -> None:
    with pytest.raises(ProtocolError):
        check_wanted(PixelsWanted(1, "layer", extent, 2, 2))


# -- Cancel ------------------------------------------------------------------------------------------------------------


def test_a_polite_worker_ends_in_order_when_cancelled(folder: Path) -> None:
    watcher = Watcher()
    assert run(folder, "wait_politely", watcher, watcher.is_waiting) == WasCanceled()
    assert watcher.seconds() < 2
    assert (folder / "ended").read_text() == "in order"
    assert not is_alive(watcher.pids[0])


@pytest.mark.slow
@pytest.mark.parametrize("behaviour", ["wait_forever", "flood_forever"])
def test_a_worker_that_does_not_listen_is_killed(folder: Path, behaviour: str) -> None:
    watcher = Watcher()
    assert run(folder, behaviour, watcher, watcher.is_waiting) == WasCanceled()
    assert watcher.seconds() < 2.5
    assert not is_alive(watcher.pids[0])


@posix_only
def test_what_the_worker_started_ends_with_it(folder: Path) -> None:
    watcher = Watcher()
    assert run(folder, "wait_with_a_child", watcher, watcher.is_waiting) == WasCanceled()
    started = next(event for event in watcher.events if isinstance(event, Message))
    assert all(seconds_until_gone(int(pid)) < 2 for pid in started.text.split())


def test_an_error_on_the_way_out_of_a_cancel_is_a_cancel(folder: Path) -> None:
    watcher = Watcher()
    assert run(folder, "fail_when_cancelled", watcher, watcher.is_waiting) == WasCanceled()


def test_a_run_that_ends_well_although_cancelled_is_done(folder: Path) -> None:
    watcher = Watcher()
    assert run(folder, "finish_when_cancelled", watcher, watcher.is_waiting) == Done({"objects": 1})


def test_a_run_that_is_cancelled_from_the_start_is_canceled(folder: Path) -> None:
    assert run(folder, "wait_politely", is_cancelled=lambda: True) == WasCanceled()


@pytest.mark.parametrize("behaviour", ["wait_politely", "wait_forever"])
def test_no_worker_is_left_when_the_host_fails(folder: Path, behaviour: str) -> None:
    watcher = Watcher()

    def fail(event: WorkerEvent) -> None:
        watcher(event)
        if watcher.is_waiting():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(folder, behaviour, fail)
    assert watcher.seconds() < 2
    assert not is_alive(watcher.pids[0])


# -- Failures ----------------------------------------------------------------------------------------------------------


def test_a_failure_comes_with_its_hint_and_context(folder: Path) -> None:
    with pytest.raises(RasterReadError) as caught:
        run(folder, "fail_with_a_hint")
    error = caught.value
    assert (error.message, error.hint) == ("Window 3 cannot be read.", "Copy it again.")
    assert error.context == {"window": [0, 0, 4, 4]}
    assert "raw text" in (folder / "worker.log").read_text()


def test_a_context_that_cannot_be_sent_does_not_hide_the_failure(folder: Path) -> None:
    with pytest.raises(RasterReadError, match=r"Window 3 cannot be read\. Copy it again\."):
        run(folder, "fail_with_an_odd_context")


def test_an_unexpected_error_is_a_sentence_and_its_traceback_is_in_the_log(folder: Path) -> None:
    with pytest.raises(InferenceError, match="unexpected error") as caught:
        run(folder, "fail_unexpectedly")
    assert caught.value.code == "error"
    assert "secret detail" not in str(caught.value) and str(folder / "worker.log") in caught.value.hint
    assert "secret detail" in (folder / "worker.log").read_text()


@pytest.mark.parametrize(
    ("behaviour", "kind", "text"),
    [
        ("allocate", DeviceMemoryError, "computer does not have enough memory"),
        ("run_out_on_the_gpu", DeviceMemoryError, "graphics processor does not have enough memory"),
        ("import_what_is_not_there", BackendMissingError, "a_library_that_is_not_installed"),
        pytest.param("fill_the_disk", DiskFullError, "disk is full", marks=posix_only),
    ],
)
def test_common_causes_are_said_plainly(folder: Path, behaviour: str, kind: type[InferenceError], text: str) -> None:
    with pytest.raises(kind, match=text) as caught:
        run(folder, behaviour)
    assert caught.value.hint


def test_a_missing_library_is_refused_by_name() -> None:
    good = installed_versions()
    main.check_versions({name: version for name, version in good.items() if name in main.ALWAYS_NEEDED})
    with pytest.raises(BackendMissingError, match=r"lacks rasterio"):
        main.check_versions({name: version for name, version in good.items() if name != "rasterio"})


# -- Crashes -----------------------------------------------------------------------------------------------------------


@posix_only
def test_an_abort_is_a_crash_that_names_signal_and_last_lines(folder: Path) -> None:
    (folder / "worker.log").write_text("from an earlier run\n")
    with pytest.raises(WorkerCrashError, match=r"a native library gave up \(SIGABRT\)") as caught:
        run(folder, "abort")
    context = caught.value.context
    assert (context["exit_code"], context["signal"]) == (-signal.SIGABRT, "SIGABRT")
    assert "about to abort" in context["stderr_tail"]
    assert any("worker_start.py" in line for line in context["stderr_tail"])  # where it was
    assert "from an earlier run" not in context["stderr_tail"]
    assert str(folder / "worker.log") in caught.value.hint


@posix_only
def test_a_killed_worker_most_likely_ran_out_of_memory(folder: Path) -> None:
    def kill(event: WorkerEvent) -> None:
        if isinstance(event, Message):
            os.kill(int(event.text), signal.SIGKILL)

    with pytest.raises(WorkerCrashError, match=r"memory was used up \(SIGKILL\)"):
        run(folder, "wait_politely", kill)


@pytest.mark.slow
@posix_only
def test_a_crash_is_noticed_although_a_child_holds_the_stream_open(folder: Path) -> None:
    watcher = Watcher()
    with pytest.raises(WorkerCrashError, match="SIGABRT"):
        run(folder, "crash_beside_a_child", watcher)
    assert seconds_until_gone(watcher.pids[0]) < 2


def test_a_silent_exit_is_a_crash(folder: Path) -> None:
    with pytest.raises(WorkerCrashError, match="exit code 7") as caught:
        run(folder, "exit_silently")
    assert caught.value.context["exit_code"] == 7


@pytest.mark.parametrize("behaviour", ["garble", "write_one_endless_line", "name_a_foreign_file"])
def test_what_cannot_be_understood_ends_the_run(folder: Path, behaviour: str) -> None:
    events: list[WorkerEvent] = []
    with pytest.raises(ProtocolError):
        run(folder, behaviour, events.append)
    assert len(events) == 1 and isinstance(events[0], Started)
    assert not is_alive(events[0].pid)


@pytest.mark.slow
@posix_only
@pytest.mark.parametrize("behaviour", ["wait_politely", "wait_forever", "flood_forever"])
def test_a_worker_ends_when_its_parent_is_killed(folder: Path, behaviour: str) -> None:
    prepare(folder, behaviour)
    command = [sys.executable, FIXTURES / "worker_parent.py", FIXTURES / "worker_start.py", sys.executable, folder]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    waiting = next(line for line in parent.stdout if "waiting" in line)
    worker = int("".join(filter(str.isdigit, waiting)))
    parent.kill()
    assert seconds_until_gone(worker) < 2
    parent.communicate()
    assert (folder / "ended").exists() == (behaviour == "wait_politely")


@pytest.mark.slow
@posix_only
def test_what_a_worker_has_started_ends_with_it_when_its_parent_is_killed(folder: Path) -> None:
    prepare(folder, "wait_with_a_child")
    command = [sys.executable, FIXTURES / "worker_parent.py", FIXTURES / "worker_start.py", sys.executable, folder]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    waiting = next(line for line in parent.stdout if "waiting" in line)
    started = re.findall(r"\d+", waiting)
    parent.kill()
    assert len(started) == 2
    assert all(seconds_until_gone(int(pid)) < 2 for pid in started)
    parent.communicate()


# -- Starts ------------------------------------------------------------------------------------------------------------


def check_not_started(interpreter: str, folder: Path) -> WorkerStartError:
    prepare(folder, "count")
    with pytest.raises(WorkerStartError) as caught:
        client.run_worker(interpreter, folder, lambda event: None, never)
    assert "Settings > Options > Kestrel" in caught.value.hint
    return caught.value


@pytest.mark.parametrize("interpreter", ["", "/no/such/python"])
def test_an_interpreter_that_is_missing(folder: Path, interpreter: str) -> None:
    check_not_started(interpreter, folder)


@posix_only
@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("#!/bin/sh\nexit 0\n", 0o600),
        ("not a program", 0o700),
        ("#!/no/such/interpreter\n", 0o700),
        ("#!/bin/sh\nexit 0\n", 0o700),
        ("#!/bin/sh\necho usage: something else >&2; exit 2\n", 0o700),
        ("#!/bin/sh\nwhile echo hello; do :; done\n", 0o700),
    ],
    ids=["not executable", "no program", "no interpreter", "silent", "other program", "talkative"],
)
def test_an_interpreter_that_is_not_a_python(folder: Path, tmp_path: Path, text: str, mode: int) -> None:
    program = tmp_path / "python"
    program.write_text(text)
    program.chmod(mode)
    error = check_not_started(str(program), folder)
    assert str(program) in error.message
    if "usage" in text:
        assert error.context["stderr_tail"] == ["usage: something else"]


def test_a_folder_as_interpreter(folder: Path, tmp_path: Path) -> None:
    check_not_started(str(tmp_path), folder)


@posix_only
def test_a_program_that_says_nothing_is_given_up(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "START_LIMIT", 0.5)
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    program.chmod(0o700)
    assert "did not answer" in check_not_started(str(program), folder).message


def test_the_real_start_file_finds_the_package_and_reads_the_job(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "START_FILE", Path(client.__file__).with_name("__main__.py"))
    (folder / "job.json").write_text("{}")
    with pytest.raises(JobError, match="does not say which schema"):
        client.run_worker(sys.executable, folder, lambda event: None, never)


def old_pythons() -> list[str]:
    found = [shutil.which(f"python3.{minor}") for minor in (9, 10)]
    managed = Path.home().glob(".pyenv/versions/3.[89].*/bin/python")
    return [path for path in (*found, *map(str, managed)) if path and "shims" not in path]


@pytest.mark.skipif(not old_pythons(), reason="no old Python is installed")
def test_a_python_that_is_too_old_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "START_FILE", Path(client.__file__).with_name("__main__.py"))
    for interpreter in old_pythons():
        error = check_not_started(interpreter, folder)
        assert "too old" in error.message
        assert error.context["interpreter"]


@pytest.mark.skipif(not [path for path in old_pythons() if "3.9" in path], reason="no Python 3.9 is installed")
def test_qgis_oldest_python_imports_its_side_with_nothing_installed() -> None:
    interpreter = next(path for path in old_pythons() if "3.9" in path)
    plugins = FIXTURES.parents[1] / "build" / "plugins"
    code = (
        f"import sys; sys.path.append({str(plugins)!r}); import kestrel.inference.worker.client;"
        "print([name for name in ('numpy', 'torch', 'rasterio') if name in sys.modules])"
    )
    answer = subprocess.run([interpreter, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
