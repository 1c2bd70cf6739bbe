"""Publishing: every object of a run into a feature service exactly once, whatever becomes of the answers.

    chunk of objects ── ledger: "sent" ── request ──> answer: all taken ──> ledger: "done"
                              ^              └─────> no answer, or not all: in doubt
                              └── the rest <── what of the chunk is in the service? ──> all: ledger "done"

A chunk whose answer got lost is never sent again before the service was asked what it has of it. Where a service takes
global ids, each object's is made from the run's id and the object's number, so that the service itself refuses a second
one; where it does not, the ledger knows the row numbers of all other chunks, and what is there besides is taken away
before a chunk is sent again. At the end the rows are counted.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import CredentialError, NetworkError, OutputError, ServiceError
from ..events import Canceled
from .feature_service import ServiceLayer, add_rows, count_rows, delete_rows, list_rows, reason_of
from .http import HttpClient
from .ledger import ChunkState, Ledger

_CHUNK_OBJECTS = 200
_CHUNK_BYTES = 1_000_000
"""Of the features' JSON, roughly; servers take ten times as much."""
_SPACE = uuid.UUID("9c2f5f0e-0d3a-5b7e-8a44-6b5f3c1d2e90")
_LONGEST_PAUSE = 20.0
_MOST_REFUSALS = 3
_GO_ON = "Start the same run again: it goes on with the objects that are not there yet. Nothing is sent twice."

Feature = Mapping[str, Any]


@dataclass(frozen=True)
class Publication:
    """What is published, and how the run's rows are known.

    Attributes:
        job_id: The run.
        job_field: The layer's field that holds it.
        count: How many objects there are.
    """

    job_id: str
    job_field: str
    count: int

    @property
    def where(self) -> str:
        """Give the condition of the run's rows; a job's id holds nothing but letters, digits, '-' and '_'."""
        return f"{self.job_field} = '{self.job_id}'"

    def global_id(self, number: int) -> str:
        """Give the global id of an object by its number, in normal form."""
        return str(uuid.uuid5(uuid.uuid5(_SPACE, self.job_id), str(number)))


@dataclass(frozen=True)
class Chunk:
    """Some objects in a row; `first` is the number of the first of them."""

    number: int
    first: int
    features: tuple[Feature, ...]


class Publisher:
    """Who publishes.

    Args:
        client: Asks the service.
        layer: The layer.
        ledger: What has been sent.
        what: What is published.
        is_cancelled: Asked while something is waited for.
        progress: Told the number of objects that are there.
        patience: Seconds for one chunk, with all its tries.
        first_pause: Seconds after a first try that failed; doubled each time.
    """

    def __init__(
        self,
        client: HttpClient,
        layer: ServiceLayer,
        ledger: Ledger,
        what: Publication,
        *,
        is_cancelled: Callable[[], bool] = lambda: False,
        progress: Callable[[int], None] = lambda _count: None,
        patience: float = 600.0,
        first_pause: float = 1.0,
    ) -> None:
        """Keep what is needed; nothing is asked yet."""
        self._client, self._layer, self._ledger, self._what = client, layer, ledger, what
        self._is_cancelled, self._progress = is_cancelled, progress
        self._patience, self._first_pause = patience, first_pause

    def publish(self, features: Callable[[], Iterable[Feature]]) -> None:
        """Bring all objects into the layer.

        Args:
            features: Gives all objects, always in the same order.

        Raises:
            NetworkError, ServiceError, CredentialError, OutputError: not all are there; the same call goes on.
            Canceled: the user wants it to stop; the same call goes on.
        """
        try:
            if self._ledger.is_empty and self._count():
                # Rows of this run that the ledger knows nothing of: it got lost, or another one knew the layer.
                self._ledger.doubt_all()
            for is_last in (False, True):
                self._send_all(features)
                if self._is_complete(is_last=is_last):
                    return
        except CredentialError as error:
            raise CredentialError(error.message, hint=f"{error.hint} {_GO_ON}".strip()) from error

    def _send_all(self, features: Callable[[], Iterable[Feature]]) -> None:
        present = self._global_ids() if self._ledger.is_doubtful and self._layer.global_id else None
        for chunk in chunks(features()):
            if self._ledger.state(chunk.number) is not ChunkState.done:
                self._send(chunk, present)
            self._progress(chunk.first + len(chunk.features))

    def _send(self, chunk: Chunk, present: set[str] | None) -> None:
        """Send what is not there of a chunk until all of it is."""
        end, pause, refusals = time.monotonic() + self._patience, self._first_pause, 0
        todo = list(range(len(chunk.features)))
        if self._ledger.state(chunk.number) is ChunkState.sent:
            todo = self._missing(chunk, present)
        while todo:
            if self._is_cancelled():
                raise Canceled
            self._ledger.sent(chunk.number, len(chunk.features))
            error, object_ids = self._try(chunk, todo)
            if error is None:
                self._ledger.done(chunk.number, len(chunk.features), object_ids)
                return
            refusals += isinstance(error, ServiceError)
            todo = self._missing(chunk, None)
            if todo and (refusals >= _MOST_REFUSALS or time.monotonic() > end):
                raise type(error)(error.message, hint=_GO_ON) from error
            self._wait(pause * random.SystemRandom().uniform(0.5, 1.0) if todo else 0)
            pause = min(2 * pause, _LONGEST_PAUSE)
        if self._ledger.state(chunk.number) is not ChunkState.done:
            self._ledger.done(chunk.number, len(chunk.features), [])

    def _try(self, chunk: Chunk, todo: list[int]) -> tuple[NetworkError | ServiceError | None, list[int]]:
        """Send some objects once; give what went wrong, and the row numbers of those that are there now."""
        try:
            results = add_rows(self._client, self._layer, [self._row(chunk, index) for index in todo])
        except (NetworkError, ServiceError) as error:
            return error, []
        reason = reason_of(results)
        if reason:
            return ServiceError(f"The feature service '{self._layer.url}' refuses an object: {reason}."), []
        return None, [int(result.get("objectId") or 0) for result in results]

    def _row(self, chunk: Chunk, index: int) -> Feature:
        feature = chunk.features[index]
        if not self._layer.global_id:
            return feature
        global_id = "{" + self._what.global_id(chunk.first + index).upper() + "}"
        return {**feature, "attributes": {**feature["attributes"], self._layer.global_id: global_id}}

    def _missing(self, chunk: Chunk, present: set[str] | None) -> list[int]:
        """Ask the service which objects of a chunk in doubt it lacks, counted from the chunk's first.

        Args:
            chunk: The chunk.
            present: Global ids of the run that are known to be there; None: the service is asked.
        """
        everything, is_alone = list(range(len(chunk.features))), not self._ledger.is_doubtful
        if is_alone and self._count() == self._ledger.count_done():
            return everything
        if self._layer.global_id:
            present = self._global_ids() if present is None else present
            return [i for i in everything if self._what.global_id(chunk.first + i) not in present]
        known = self._ledger.object_ids()
        strangers = [number for number, _ in self._rows() if number not in known]
        if is_alone and len(strangers) == len(everything) and not self._can_delete:
            self._ledger.done(chunk.number, len(everything), strangers)
            return []
        # Which objects they are cannot be told: a request that was given up earlier may have been done late.
        self._delete(strangers)
        return everything

    def _is_complete(self, *, is_last: bool) -> bool:
        """Count the run's rows; take away what is there twice, and put all in doubt where rows are missing.

        Raises:
            OutputError: they are not right, and this was the last time.
        """
        there = self._count()
        if there == self._what.count:
            self._ledger.settle_all()
            return True
        if is_last:
            raise OutputError(
                f"Of {self._what.count} objects {there} are in the feature service '{self._layer.url}' in the end.",
                hint=f"Somebody else may be editing the run's objects. {_GO_ON}",
            )
        seen: set[str] = set()
        spare, known = [], self._ledger.object_ids()
        for number, global_id in self._rows():
            is_spare = global_id in seen if self._layer.global_id else number not in known
            spare += [number] if is_spare else []
            seen.add(global_id)
        self._delete(spare)
        if there - len(spare) < self._what.count:
            self._ledger.doubt_all()
        return False

    @property
    def _can_delete(self) -> bool:
        return not self._layer.capabilities or "Delete" in self._layer.capabilities

    def _count(self) -> int:
        return count_rows(self._client, self._layer, self._what.where)

    def _rows(self) -> Iterator[tuple[int, str]]:
        return list_rows(self._client, self._layer, self._what.where)

    def _global_ids(self) -> set[str]:
        return {global_id for _, global_id in self._rows()}

    def _delete(self, object_ids: list[int]) -> None:
        if object_ids and not self._can_delete:
            raise OutputError(
                f"{len(object_ids)} rows of the run {self._what.job_id} are in doubt, and the feature service "
                f"'{self._layer.url}' does not let them be deleted.",
                hint="Have its owner allow deleting, or delete the run's rows there; then start the same run again.",
            )
        delete_rows(self._client, self._layer, object_ids)

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self._is_cancelled():
                raise Canceled
            time.sleep(min(0.1, max(0.0, end - time.monotonic())))


def chunks(features: Iterable[Feature]) -> Iterator[Chunk]:
    """Cut objects into chunks, always at the same places."""
    waiting: list[Feature] = []
    size, number, first = 0, 0, 0
    for feature in features:
        length = _size(feature)
        if waiting and (len(waiting) == _CHUNK_OBJECTS or size + length > _CHUNK_BYTES):
            yield Chunk(number, first, tuple(waiting))
            number, first, waiting, size = number + 1, first + len(waiting), [], 0
        waiting.append(feature)
        size += length
    if waiting:
        yield Chunk(number, first, tuple(waiting))


def _size(feature: Feature) -> int:
    """Give roughly how long a feature's JSON is: forty characters a vertex."""
    geometry = feature.get("geometry") or {}
    paths = geometry.get("rings") or geometry.get("paths") or [geometry.get("points") or [()]]
    return 400 + 40 * sum(len(path) for path in paths)
