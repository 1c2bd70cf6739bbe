"""The journal: the one place where a run's results are kept until it is finished, and the truth about what is done.

A batch of tiles is committed in one SQLite transaction, its detections together with the tiles' states: after any
death of the process each tile is either finished with all of its detections, or still planned. A resumed run asks
`finished()` what it may leave out, and ends with the same content as a run that was never interrupted.

    job     one row: what the run is (fingerprint), and how it stands
    tile    one row a finished tile: state, number of detections, their extent in y. No row: planned
    found   one row a tile with detections: the packed boxes. A table of its own, so that counting and sweeping over
            the tiles does not read through all the boxes
"""

from __future__ import annotations

import errno
import json
import shutil
import sqlite3
from array import array
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, IntEnum
from pathlib import Path
from types import MappingProxyType, TracebackType

from .detections import Detections, from_bytes, to_bytes
from .errors import DiskFullError, InferenceError, JobError, OutputError
from .jobs import JOURNAL_FILE

SCHEMA = 1
_LOCK_SECONDS = 10.0
_ALMOST_FULL = 2**20
_NONE: Mapping[str, str] = MappingProxyType({})


class TileState(IntEnum):
    """How a tile stands. Planned tiles have no row; every other state is an end."""

    planned = 0
    done = 1
    nodata = 2
    """Nothing valid in it: never run."""
    quarantined = 3
    """Could not be read or run; the run went on without it."""
    outside = 4
    """Outside the area to search: never read."""


class JobState(str, Enum):
    """How the run stands. Running, with no process at work, is an interrupted run."""

    running = "running"
    canceled = "canceled"
    failed = "failed"
    done = "done"


@dataclass(frozen=True)
class TileResult:
    """What became of a tile."""

    number: int
    state: TileState
    detections: Detections | None = None
    """Raster pixels; None: no detections."""
    error: str = ""
    """Why the tile was quarantined: an error code."""

    def __post_init__(self) -> None:
        """Check that state and detections fit together."""
        if self.state is TileState.planned or (self.detections is not None and self.state is not TileState.done):
            raise ValueError(f"tile {self.number} cannot be {self.state.name} with {self.detections}")


class TileNumbers(Collection[int]):
    """Tile numbers as runs of neighbours: a finished run of millions of tiles takes a few bytes."""

    def __init__(self, ascending: Iterator[int]) -> None:
        """Take the numbers in ascending order."""
        self._starts = array("q")
        self._ends = array("q")
        for number in ascending:
            if self._ends and number == self._ends[-1]:
                self._ends[-1] += 1
            else:
                self._starts.append(number)
                self._ends.append(number + 1)

    def __contains__(self, number: object) -> bool:
        if not isinstance(number, int):
            return False
        index = bisect_right(self._starts, number) - 1
        return index >= 0 and number < self._ends[index]

    def __iter__(self) -> Iterator[int]:
        for start, end in zip(self._starts, self._ends):
            yield from range(start, end)

    def __len__(self) -> int:
        return sum(self._ends) - sum(self._starts)


_TABLES = (
    "CREATE TABLE job (fingerprint TEXT NOT NULL, n_tiles INTEGER NOT NULL, versions TEXT NOT NULL,"
    " state TEXT NOT NULL, created TEXT NOT NULL DEFAULT (datetime('now')),"
    " changed TEXT NOT NULL DEFAULT (datetime('now')))",
    "CREATE TABLE tile (number INTEGER PRIMARY KEY, state INTEGER NOT NULL, count INTEGER NOT NULL, y_min REAL,"
    " y_max REAL, error TEXT NOT NULL)",
    "CREATE TABLE found (number INTEGER PRIMARY KEY, detections BLOB NOT NULL)",
    "PRAGMA user_version = 1",
)


class Journal:
    """The open journal of one job. One process writes it, from the thread that opened it; others may read."""

    def __init__(self, path: Path, database: sqlite3.Connection, n_tiles: int) -> None:
        """Take over an open database, see `open`."""
        self._path = path
        self._database = database
        self._n_tiles = n_tiles
        # Kept up to date by `commit`: progress is told after each batch, and counting takes a look at every tile.
        self._counts, self._n_objects = _count(database, n_tiles)

    @classmethod
    def open(cls, folder: Path, fingerprint: str, n_tiles: int, *, versions: Mapping[str, str] = _NONE) -> Journal:
        """Open the journal of a job folder; a job that was interrupted is resumed.

        Args:
            folder: The job folder.
            fingerprint: Hash over all that decides the result.
            n_tiles: How many tiles are planned.
            versions: Versions of the libraries at work, kept for the record.

        Raises:
            JobError: the journal is another job's, a newer version's, damaged, or in use.
            DiskFullError, OutputError: the journal cannot be written.
        """
        path = folder / JOURNAL_FILE
        with _told(path):
            database = sqlite3.connect(path, timeout=_LOCK_SECONDS, isolation_level=None)
        try:
            with _told(path):
                database.execute("PRAGMA journal_mode = WAL")
                database.execute("PRAGMA synchronous = NORMAL")
                with _transaction(database):
                    _prepare(database, path, fingerprint, n_tiles, versions)
                return cls(path, database, n_tiles)
        except InferenceError:
            database.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the journal; what was committed stays."""
        self._database.close()

    # -- Writing -------------------------------------------------------------------------------------------------------

    def commit(self, results: Sequence[TileResult]) -> None:
        """Store what became of some tiles, all or nothing.

        A tile that is finished already keeps what it has, so a tile may come twice; only a quarantined one gives way
        to a later success.

        Raises:
            DiskFullError, OutputError: nothing of this batch was stored, all before it is safe.
            JobError: the journal is damaged or in use.
        """
        counts, n_objects = dict(self._counts), self._n_objects
        with _told(self._path), _transaction(self._database):
            for result in results:
                before = self._state(result.number)
                if before not in (TileState.planned, TileState.quarantined) or before == result.state:
                    continue
                self._store(result)
                counts[before] -= 1
                counts[result.state] += 1
                n_objects += len(result.detections or ())
        self._counts, self._n_objects = counts, n_objects

    def _state(self, number: int) -> TileState:
        if not 0 <= number < self._n_tiles:
            raise ValueError(f"tile {number} of {self._n_tiles}")
        row = self._database.execute("SELECT state FROM tile WHERE number = ?", (number,)).fetchone()
        return TileState(row[0]) if row else TileState.planned

    def _store(self, result: TileResult) -> None:
        found = result.detections
        y_min, y_max = None, None
        if found:
            y_min, y_max = float(found.boxes[:, 1].min()), float(found.boxes[:, 3].max())
            self._database.execute("INSERT INTO found VALUES (?, ?)", (result.number, to_bytes(found)))
        self._database.execute(
            "INSERT OR REPLACE INTO tile VALUES (?, ?, ?, ?, ?, ?)",
            (result.number, int(result.state), len(found or ()), y_min, y_max, result.error),
        )

    def set_state(self, state: JobState) -> None:
        """Note how the run stands, safe also from a loss of power.

        Raises:
            DiskFullError, OutputError, JobError: as `commit`.
        """
        with _told(self._path):
            self._database.execute("PRAGMA synchronous = FULL")
            with _transaction(self._database):
                self._database.execute("UPDATE job SET state = ?, changed = datetime('now')", (state.value,))
            self._database.execute("PRAGMA synchronous = NORMAL")

    # -- Reading -------------------------------------------------------------------------------------------------------

    def state(self) -> JobState:
        """Give how the run stands."""
        with _told(self._path):
            return JobState(self._database.execute("SELECT state FROM job").fetchone()[0])

    def finished(self) -> TileNumbers:
        """Give the numbers of the tiles that need no more work: all but the planned ones."""
        with _told(self._path):
            rows = self._database.execute("SELECT number FROM tile ORDER BY number")
            return TileNumbers(number for (number,) in rows)

    def counts(self) -> dict[TileState, int]:
        """Give the number of tiles in each state; they sum up to the planned number of tiles."""
        return dict(self._counts)

    def n_objects(self) -> int:
        """Give the number of detections so far, before any merging."""
        return self._n_objects

    def quarantined(self) -> Iterator[tuple[int, str]]:
        """Give number and error code of each quarantined tile, in tile order."""
        with _told(self._path):
            yield from self._database.execute(
                "SELECT number, error FROM tile WHERE state = ? ORDER BY number", (int(TileState.quarantined),)
            )

    def read_range(self, first: int, last: int) -> Iterator[tuple[int, Detections]]:
        """Give tile number and detections of the tiles from first to last, both included, in tile order.

        Tiles without detections are left out. Not more than one tile is in memory.

        Raises:
            JobError: the journal is damaged.
        """
        with _told(self._path):
            rows = self._database.execute(
                "SELECT number, detections FROM found WHERE number BETWEEN ? AND ? ORDER BY number", (first, last)
            )
            for number, blob in rows:
                yield number, _unpack(blob, self._path)

    def y_extents(self) -> Iterator[tuple[int, float, float]]:
        """Give number, smallest y0 and largest y1 of each tile that has detections, in tile order; raster pixels."""
        with _told(self._path):
            yield from self._database.execute("SELECT number, y_min, y_max FROM tile WHERE count > 0 ORDER BY number")


def _prepare(
    database: sqlite3.Connection, path: Path, fingerprint: str, n_tiles: int, versions: Mapping[str, str]
) -> None:
    """Make the tables, or check that they are this job's."""
    (schema,) = database.execute("PRAGMA user_version").fetchone()
    (n_tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if schema > SCHEMA:
        raise JobError(f"The journal {path} was written by a newer version of Kestrel.", hint="Update the plugin.")
    if n_tables == 0:
        for statement in _TABLES:
            database.execute(statement)
        database.execute(
            "INSERT INTO job (fingerprint, n_tiles, versions, state) VALUES (?, ?, ?, ?)",
            (fingerprint, n_tiles, json.dumps(dict(versions)), JobState.running.value),
        )
        return
    row = database.execute("SELECT fingerprint, n_tiles FROM job").fetchone() if schema else None
    if row is None:
        raise _damaged(path)
    if row != (fingerprint, n_tiles):
        raise JobError(
            f"The job was started with other input: its fingerprint is {row[0]} with {row[1]} tiles, "
            f"this run's is {fingerprint} with {n_tiles} tiles.",
            hint="Restore the model, raster and parameters it was started with, or start a new job.",
        )
    database.execute(
        "UPDATE job SET state = ?, versions = ?, changed = datetime('now')",
        (JobState.running.value, json.dumps(dict(versions))),
    )


def _count(database: sqlite3.Connection, n_tiles: int) -> tuple[dict[TileState, int], int]:
    counts, n_objects = dict.fromkeys(TileState, 0), 0
    for state, tiles, objects in database.execute("SELECT state, count(*), sum(count) FROM tile GROUP BY state"):
        counts[TileState(state)] = tiles
        n_objects += objects
    counts[TileState.planned] = n_tiles - sum(counts.values())
    return counts, n_objects


def _unpack(blob: bytes, path: Path) -> Detections:
    try:
        return from_bytes(blob)
    except (TypeError, ValueError) as error:
        raise _damaged(path) from error


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        # On a full disk SQLite may have rolled back by itself.
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Translate SQLite's errors."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise  # our mistake, for example another thread's call; the file is well
    except sqlite3.OperationalError as error:
        raise _translated(error, path) from error
    except sqlite3.DatabaseError as error:
        raise _damaged(path) from error
    except OSError as error:
        raise (_full(path) if error.errno == errno.ENOSPC else _unusable(path, error)) from error


def _translated(error: sqlite3.OperationalError, path: Path) -> InferenceError:
    # The texts are SQLite's own and never translated; Python 3.9 and 3.10 do not hand out its error codes.
    text = str(error)
    if "full" in text or ("I/O error" in text and shutil.disk_usage(path.parent).free < _ALMOST_FULL):
        return _full(path)
    if "locked" in text:
        return JobError("The job is being run by another process.", hint="Wait until that run has ended, or stop it.")
    if "no such" in text:
        return _damaged(path)
    return _unusable(path, error)


def _full(path: Path) -> DiskFullError:
    return DiskFullError(
        f"The disk that holds the job's results is full: {path.parent}.",
        hint="What was found is kept. Make room on that disk, then run the job again: it goes on where it ended.",
    )


def _unusable(path: Path, error: Exception) -> OutputError:
    return OutputError(f"The job's journal {path} cannot be used: {error}.", hint="Check the disk and its permissions.")


def _damaged(path: Path) -> JobError:
    return JobError(f"The job's journal {path} is damaged.", hint="Start the detection again as a new job.")
