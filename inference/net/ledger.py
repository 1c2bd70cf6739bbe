"""Ledger: which chunks of a run were sent to a service, and which are known to be there; a file in the job's folder."""

from __future__ import annotations

import enum
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import DiskFullError, OutputError

LEDGER_FILE = "publish.sqlite"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS place (target TEXT PRIMARY KEY, item_id TEXT NOT NULL, url TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS doubt (target TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS chunk (
    target TEXT, number INTEGER, count INTEGER NOT NULL, state TEXT NOT NULL, PRIMARY KEY (target, number)
);
CREATE TABLE IF NOT EXISTS sent_row (target TEXT, chunk INTEGER, object_id INTEGER, PRIMARY KEY (target, object_id));
"""


class ChunkState(enum.Enum):
    """What is known of a chunk."""

    planned = "planned"
    sent = "sent"
    """It may be there or not."""
    done = "done"


class Ledger:
    """The ledger of one target.

    Args:
        folder: The job's folder.
        target: What the objects are sent to.

    Raises:
        OutputError: the file cannot be used.
    """

    def __init__(self, folder: Path, target: str) -> None:
        self._path, self._target = folder / LEDGER_FILE, target
        with self._database() as database:
            database.executescript(_SCHEMA)

    @property
    def is_empty(self) -> bool:
        """Tell whether nothing was ever sent."""
        return not self._rows("SELECT 1 FROM chunk WHERE target = ? LIMIT 1")

    @property
    def is_doubtful(self) -> bool:
        """Tell whether rows may be there of any chunk, and not only of the one that was sent last."""
        return bool(self._rows("SELECT 1 FROM doubt WHERE target = ?"))

    def doubt_all(self) -> None:
        """Take nothing for granted any more: every chunk may be there, in whole or in part."""
        with self._database() as database:
            database.execute("INSERT OR IGNORE INTO doubt VALUES (?)", (self._target,))
            database.execute("DELETE FROM chunk WHERE target = ?", (self._target,))
            database.execute("DELETE FROM sent_row WHERE target = ?", (self._target,))

    def settle_all(self) -> None:
        """Note that all is there."""
        with self._database() as database:
            database.execute("DELETE FROM doubt WHERE target = ?", (self._target,))

    def state(self, number: int) -> ChunkState:
        """Give what is known of a chunk."""
        rows = self._rows("SELECT state FROM chunk WHERE target = ? AND number = ?", number)
        if rows:
            return ChunkState(rows[0][0])
        return ChunkState.sent if self.is_doubtful else ChunkState.planned

    def sent(self, number: int, count: int) -> None:
        """Note that a chunk is about to be sent."""
        with self._database() as database:
            database.execute(
                "INSERT OR REPLACE INTO chunk VALUES (?, ?, ?, ?)",
                (self._target, number, count, ChunkState.sent.value),
            )

    def done(self, number: int, count: int, object_ids: Sequence[int]) -> None:
        """Note that a chunk is there, under these row numbers as far as they are known."""
        with self._database() as database:
            database.execute(
                "INSERT OR REPLACE INTO chunk VALUES (?, ?, ?, ?)",
                (self._target, number, count, ChunkState.done.value),
            )
            database.executemany(
                "INSERT OR IGNORE INTO sent_row VALUES (?, ?, ?)",
                [(self._target, number, object_id) for object_id in object_ids if object_id > 0],
            )

    def count_done(self) -> int:
        """Give how many objects are known to be there."""
        rows = self._rows("SELECT coalesce(sum(count), 0) FROM chunk WHERE target = ? AND state = 'done'")
        return int(rows[0][0])

    def object_ids(self) -> set[int]:
        """Give the row numbers of the objects that are known to be there."""
        return {int(row[0]) for row in self._rows("SELECT object_id FROM sent_row WHERE target = ?")}

    @property
    def place(self) -> tuple[str, str] | None:
        """Give item id and address of the service that was made for this run, if it was."""
        rows = self._rows("SELECT item_id, url FROM place WHERE target = ?")
        return (str(rows[0][0]), str(rows[0][1])) if rows else None

    def note_place(self, item_id: str, url: str) -> None:
        """Remember the service that was made for this run."""
        with self._database() as database:
            database.execute("INSERT OR REPLACE INTO place VALUES (?, ?, ?)", (self._target, item_id, url))

    def _rows(self, statement: str, *values: int) -> list[tuple[Any, ...]]:
        with self._database() as database:
            return list(database.execute(statement, (self._target, *values)))

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """Open, commit and close: a killed process leaves nothing half written."""
        try:
            database = sqlite3.connect(self._path, timeout=10)
            try:
                with database:
                    yield database
            finally:
                database.close()
        except sqlite3.Error as error:
            if "full" in str(error):
                raise DiskFullError(
                    f"The disk of {self._path.parent} is full.", hint="Make room, then start again."
                ) from error
            raise OutputError(
                f"The ledger {self._path} of what was published cannot be used: {error}.",
                hint="Check the disk, then start the same run again.",
            ) from error
