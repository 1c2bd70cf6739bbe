from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kestrel.inference.detections import Detections, make_detections, no_detections, to_bytes
from kestrel.inference.errors import DiskFullError, JobError
from kestrel.inference.journal import JobState, Journal, TileNumbers, TileResult, TileState

N_TILES = 12


def boxes_of(number: int, count: int = 3) -> Detections:
    """Detections that belong to one tile and no other."""
    random = np.random.default_rng(number)
    corners = random.uniform(0, 1000, (count, 2)) + np.array([0, 100 * number])
    return make_detections(
        np.hstack([corners, corners + random.uniform(1, 50, (count, 2))]),
        random.uniform(0, 1, count),
        random.integers(0, 5, count),
    )


def result_of(number: int) -> TileResult:
    """The one true result of a tile: every fourth is nodata, some are done and empty."""
    if number % 4 == 3:
        return TileResult(number, TileState.nodata)
    return TileResult(number, TileState.done, boxes_of(number) if number % 3 else no_detections())


def content(journal: Journal) -> tuple[object, ...]:
    """All that a journal tells, comparable."""
    return (
        list(journal.finished()),
        journal.counts(),
        journal.n_objects(),
        list(journal.quarantined()),
        list(journal.y_extents()),
        [(number, to_bytes(found)) for number, found in journal.read_range(0, N_TILES)],
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    with Journal.open(tmp_path_factory.mktemp("job"), "f", N_TILES) as journal:
        journal.commit([result_of(number) for number in range(N_TILES)])
        return content(journal)


def test_a_new_journal_is_all_planned(tmp_path: Path) -> None:
    with Journal.open(tmp_path, "f", N_TILES) as journal:
        assert journal.counts() == {**dict.fromkeys(TileState, 0), TileState.planned: N_TILES}
        assert (len(journal.finished()), journal.n_objects(), journal.state()) == (0, 0, JobState.running)
        assert list(journal.read_range(0, N_TILES)) == list(journal.y_extents()) == []


def test_what_was_committed_is_told(uninterrupted: tuple[object, ...]) -> None:
    finished, counts, n_objects, quarantined, extents, found = uninterrupted
    with_objects = [number for number in range(N_TILES) if number % 4 != 3 and number % 3]
    assert finished == list(range(N_TILES))
    assert counts == {**dict.fromkeys(TileState, 0), TileState.done: 9, TileState.nodata: 3}
    assert n_objects == 3 * len(with_objects)
    assert quarantined == []
    assert found == [(number, to_bytes(boxes_of(number))) for number in with_objects]
    assert extents == [
        (number, boxes_of(number).boxes[:, 1].min(), boxes_of(number).boxes[:, 3].max()) for number in with_objects
    ]


def test_a_range_holds_both_its_ends(tmp_path: Path) -> None:
    with Journal.open(tmp_path, "f", N_TILES) as journal:
        journal.commit([TileResult(number, TileState.done, boxes_of(number)) for number in (9, 2, 5, 7)])
        assert [number for number, _ in journal.read_range(5, 7)] == [5, 7]


def test_a_finished_tile_keeps_what_it_has(tmp_path: Path) -> None:
    with Journal.open(tmp_path, "f", N_TILES) as journal:
        journal.commit([TileResult(1, TileState.done, boxes_of(1)), TileResult(2, TileState.nodata)])
        before = content(journal)
        journal.commit([TileResult(1, TileState.done, boxes_of(8)), TileResult(2, TileState.done, boxes_of(2))])
        journal.commit([TileResult(1, TileState.quarantined, error="raster-read")])
        assert content(journal) == before


def test_a_quarantined_tile_gives_way_to_a_success_in_either_order(tmp_path: Path) -> None:
    bad, good = TileResult(1, TileState.quarantined, error="raster-read"), TileResult(1, TileState.done, boxes_of(1))
    told = []
    for name, order in (("a", [bad, good]), ("b", [good, bad])):
        (tmp_path / name).mkdir()
        with Journal.open(tmp_path / name, "f", N_TILES) as journal:
            journal.commit(order[:1])
            journal.commit(order[1:])
            told.append(content(journal))
    assert told[0] == told[1]
    assert told[0][1] == {**dict.fromkeys(TileState, 0), TileState.planned: N_TILES - 1, TileState.done: 1}


def test_a_quarantined_tile_tells_why(tmp_path: Path) -> None:
    with Journal.open(tmp_path, "f", N_TILES) as journal:
        journal.commit([TileResult(4, TileState.quarantined, error="raster-read"), TileResult(3, TileState.outside)])
        assert list(journal.quarantined()) == [(4, "raster-read")]
        assert 4 in journal.finished()


@pytest.mark.parametrize("number", [-1, N_TILES])
def test_a_tile_that_was_not_planned_is_a_mistake_and_stores_nothing(tmp_path: Path, number: int) -> None:
    with Journal.open(tmp_path, "f", N_TILES) as journal:
        with pytest.raises(ValueError, match=f"tile {number}"):
            journal.commit([result_of(1), TileResult(number, TileState.nodata)])
        assert journal.counts()[TileState.planned] == N_TILES
        journal.commit([result_of(1)])
        assert list(journal.finished()) == [1]


def test_state_and_detections_must_fit_together() -> None:
    with pytest.raises(ValueError, match="planned"):
        TileResult(0, TileState.planned)
    with pytest.raises(ValueError, match="nodata"):
        TileResult(0, TileState.nodata, boxes_of(0))


def test_a_journal_is_resumed(tmp_path: Path, uninterrupted: tuple[object, ...]) -> None:
    with Journal.open(tmp_path, "f", N_TILES) as journal:
        journal.commit([result_of(number) for number in range(0, N_TILES, 2)])
        journal.set_state(JobState.canceled)
    with Journal.open(tmp_path, "f", N_TILES) as journal:
        assert journal.state() is JobState.running
        planned = [number for number in range(N_TILES) if number not in journal.finished()]
        assert planned == list(range(1, N_TILES, 2))
        journal.commit([result_of(number) for number in planned])
        assert content(journal) == uninterrupted


@pytest.mark.parametrize(("fingerprint", "n_tiles"), [("other", N_TILES), ("f", N_TILES + 1)])
def test_another_jobs_journal_is_refused_naming_both(tmp_path: Path, fingerprint: str, n_tiles: int) -> None:
    Journal.open(tmp_path, "f", N_TILES).close()
    with pytest.raises(JobError, match=rf"is f with {N_TILES} tiles.* is {fingerprint} with {n_tiles} tiles"):
        Journal.open(tmp_path, fingerprint, n_tiles)


def test_a_newer_journal_is_refused(tmp_path: Path) -> None:
    Journal.open(tmp_path, "f", N_TILES).close()
    with sqlite3.connect(tmp_path / "journal.sqlite") as database:
        database.execute("PRAGMA user_version = 2")
    with pytest.raises(JobError, match="newer version"):
        Journal.open(tmp_path, "f", N_TILES)


def test_a_second_writer_is_told_that_the_job_is_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kestrel.inference.journal._LOCK_SECONDS", 0.05)
    Journal.open(tmp_path, "f", N_TILES).close()
    database = sqlite3.connect(tmp_path / "journal.sqlite", isolation_level=None)
    database.execute("BEGIN IMMEDIATE")
    with pytest.raises(JobError, match="another process"):
        Journal.open(tmp_path, "f", N_TILES)
    database.close()


def test_another_threads_call_is_a_mistake_not_a_damaged_file(tmp_path: Path) -> None:
    caught: list[BaseException] = []

    def commit() -> None:
        try:
            journal.commit([result_of(0)])
        except BaseException as error:
            caught.append(error)

    with Journal.open(tmp_path, "f", N_TILES) as journal:
        thread = threading.Thread(target=commit)
        thread.start()
        thread.join()
    assert isinstance(caught[0], sqlite3.ProgrammingError)


# -- Interruptions -----------------------------------------------------------------------------------------------------


@st.composite
def runs(draw: st.DrawFn) -> list[list[list[int]]]:
    """Some runs of one job: each commits batches of tiles in any order, also twice, and is killed after its last."""
    batch = st.lists(st.integers(0, N_TILES - 1), max_size=5)
    return draw(st.lists(st.lists(batch, max_size=4), max_size=4))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(interrupted=runs(), last=st.permutations(range(N_TILES)), size=st.integers(1, N_TILES))
def test_any_order_and_any_interruptions_end_with_the_same_content(
    uninterrupted: tuple[object, ...], interrupted: list[list[list[int]]], last: list[int], size: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, batches in enumerate(interrupted):
            journal = Journal.open(folder, "f", N_TILES)
            for batch in batches:
                journal.commit([result_of(tile) for tile in batch])
            # What a killed process leaves: the files as they are, nothing closed, the last log not merged.
            left = folder.with_name(f"{folder.name}-{number}")
            shutil.copytree(folder, left, ignore=shutil.ignore_patterns("*-shm"))
            journal.close()
            shutil.rmtree(folder)
            left.rename(folder)
        with Journal.open(folder, "f", N_TILES) as journal:
            planned = [tile for tile in last if tile not in journal.finished()]
            for start in range(0, len(planned), size):
                journal.commit([result_of(tile) for tile in planned[start : start + size]])
            assert content(journal) == uninterrupted


_KILLED_RUN = """
import sys
from pathlib import Path
import numpy as np
from kestrel.inference.detections import make_detections
from kestrel.inference.journal import Journal, TileResult, TileState
with Journal.open(Path(sys.argv[1]), "f", 2000) as journal:
    planned = [number for number in range(2000) if number not in journal.finished()]
    print("up", flush=True)
    for start in range(0, len(planned), 4):
        journal.commit([
            TileResult(number, TileState.done, make_detections(np.full((20, 4), number), np.zeros(20), np.zeros(20)))
            for number in planned[start:start + 4]
        ])
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_killed_run_loses_nothing_that_was_committed_and_resumes(tmp_path: Path) -> None:
    finished = 0
    for delay in (0.0, 0.01, 0.03, 0.06, 0.1):
        child = subprocess.Popen(
            [sys.executable, "-c", _KILLED_RUN, str(tmp_path)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert child.stdout is not None and child.stdout.readline() == b"up\n"
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        with Journal.open(tmp_path, "f", 2000) as journal:
            done = list(journal.finished())
            assert done == list(range(len(done))) and len(done) % 4 == 0 and len(done) >= finished
            assert [number for number, found in journal.read_range(0, 2000) if len(found) == 20] == done
            assert journal.n_objects() == 20 * len(done)
            finished = len(done)
    assert finished > 0


@settings(max_examples=40, deadline=None)
@given(cut=st.floats(0, 1), damage=st.binary(max_size=64))
def test_a_torn_log_costs_whole_batches_at_most(cut: float, damage: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        torn = Path(name) / "torn"
        torn.mkdir()
        journal = Journal.open(Path(name), "f", N_TILES)
        for start in range(0, N_TILES, 3):
            journal.commit([TileResult(tile, TileState.done, boxes_of(tile)) for tile in range(start, start + 3)])
        shutil.copy(Path(name) / "journal.sqlite", torn)
        log = (Path(name) / "journal.sqlite-wal").read_bytes()
        (torn / "journal.sqlite-wal").write_bytes(log[: int(cut * len(log))] + damage)
        journal.close()
        with Journal.open(torn, "f", N_TILES) as journal:
            done = list(journal.finished())
            assert done == list(range(len(done))) and len(done) % 3 == 0
            assert [(n, to_bytes(found)) for n, found in journal.read_range(0, N_TILES)] == [
                (n, to_bytes(boxes_of(n))) for n in done
            ]


def full_journal(folder: Path) -> Path:
    with Journal.open(folder, "f", 400) as journal:
        journal.commit([TileResult(tile, TileState.done, boxes_of(tile, 50)) for tile in range(400)])
    return folder / "journal.sqlite"


def use_all(folder: Path) -> None:
    with Journal.open(folder, "f", 400) as journal:
        list(journal.finished())
        list(journal.y_extents())
        list(journal.read_range(0, 400))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"this is no database at all" * 1000),
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(path.read_bytes()[:4096] + bytes(path.stat().st_size - 4096)),
        lambda path: sqlite3.connect(path).execute("DROP TABLE found"),
        lambda path: sqlite3.connect(path, isolation_level=None).execute("DELETE FROM job"),
        lambda path: sqlite3.connect(path, isolation_level=None).execute("UPDATE found SET detections = x'00'"),
        lambda path: sqlite3.connect(path, isolation_level=None).execute("UPDATE found SET detections = 'text'"),
        lambda path: sqlite3.connect(path, isolation_level=None).execute("PRAGMA user_version = 0"),
    ],
    ids=["foreign", "cut", "zeros", "no table", "no job", "short blob", "no blob", "no version"],
)
def test_a_damaged_journal_is_told_as_such(tmp_path: Path, damage: object) -> None:
    damage(full_journal(tmp_path))  # type: ignore[operator]
    with pytest.raises(JobError, match="damaged"):
        use_all(tmp_path)


def test_a_full_database_keeps_what_it_has_and_goes_on_later(tmp_path: Path) -> None:
    with Journal.open(tmp_path, "f", N_TILES) as journal:
        journal.commit([result_of(1)])
        before = content(journal)
        journal._database.execute("PRAGMA max_page_count = 8")
        with pytest.raises(DiskFullError) as caught:
            journal.commit([TileResult(2, TileState.done, boxes_of(2, 1000))])
        assert "Make room" in caught.value.hint
        assert content(journal) == before
        journal._database.execute("PRAGMA max_page_count = 100000")
        journal.commit([TileResult(2, TileState.done, boxes_of(2, 1000))])
        assert 2 in journal.finished()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("may not mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_keeps_what_it_has_and_goes_on_later(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(2**20))
    committed = 0
    with Journal.open(small_disk, "f", 400) as journal, pytest.raises(DiskFullError, match="full"):
        for tile in range(400):
            journal.commit([TileResult(tile, TileState.done, boxes_of(tile, 100))])
            committed += 1
    assert 0 < committed < 400
    ballast.unlink()
    with Journal.open(small_disk, "f", 400) as journal:
        assert list(journal.finished()) == list(range(committed))
        journal.commit([TileResult(committed, TileState.done, boxes_of(committed, 100))])


# -- Numbers -----------------------------------------------------------------------------------------------------------


@given(st.sets(st.integers(0, 60)))
def test_tile_numbers_are_a_set(numbers: set[int]) -> None:
    told = TileNumbers(iter(sorted(numbers)))
    assert (list(told), len(told)) == (sorted(numbers), len(numbers))
    assert {number for number in range(-2, 63) if number in told} == numbers


def test_runs_of_tiles_take_no_memory_to_speak_of(tmp_path: Path) -> None:
    told = TileNumbers(iter(range(10**6)))
    assert len(told._starts) == 1 and 999_999 in told and 10**6 not in told
