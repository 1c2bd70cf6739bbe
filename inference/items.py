"""Rasters searched one by one: one run, one model, a journal for each; one that cannot be read stops no other."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .errors import CredentialError, InferenceError, JobError, ModelIncompatibleError, RasterError, ServiceError
from .events import Canceled, Item, Message, Progress, Report, WorkerEvent
from .job import DetectionJob
from .region import OUTSIDE
from .results import SOURCE

Search = Callable[[DetectionJob, str, Report], "dict[str, Any]"]
"""Runs the job of one raster in a folder of that name; gives the summary."""

_OF_ONE = (RasterError, ModelIncompatibleError, ServiceError, CredentialError)
"""What may be wrong with one raster and right with the next. A network that is down is down for all of them."""
_TOLD = ("objects", "class_counts", "tiles", "tiles_by_state", "seconds", "camera")
"""What of a raster's summary is told of it: the rest is the same for all."""
_SUMMED, _COUNTED = ("objects", "tiles"), ("class_counts", "tiles_by_state")
_SAME_FOR_ALL = ("package", "argument", "model", "plan", "fit", "resolution")
"""Messages about the model; what several rasters have in common is told once."""


def search_items(job: DetectionJob, search: Search, report: Report, is_cancelled: Callable[[], bool]) -> dict[str, Any]:
    """Search a job's rasters one by one.

    Args:
        job: The job of all.
        search: Does the work for one.
        report: Told what happens.
        is_cancelled: Asked between two rasters.

    Returns:
        The summary of all.

    Raises:
        Canceled: is_cancelled said so.
        InferenceError: none of the rasters could be searched, or what would stop each of them.
    """
    teller, tally = _Teller(report, len(job.rasters)), _Tally()
    for number, item in enumerate(job.rasters):
        if is_cancelled():
            raise Canceled
        report(Message("info", "item", f"Raster {number + 1} of {len(job.rasters)}: {item.shown}"))
        try:
            summary = search(replace(job, rasters=(item,)), f"item-{number + 1:05d}", teller)
        except (*_OF_ONE, JobError) as error:
            is_outside = error.context.get("reason") == OUTSIDE
            if isinstance(error, JobError) and not is_outside:
                raise
            tally.failed.append((item.shown, error))
            report(_left_out(item.shown, error, is_outside))
            report(Item({"name": item.shown, "error": error.code, "text": str(error)}))
        else:
            tally.done.append(summary)
            report(Item({"name": item.shown, **{key: summary[key] for key in _TOLD if key in summary}}))
        teller.next()
    return tally.summary(report)


def _left_out(name: str, error: InferenceError, is_outside: bool) -> Message:
    if is_outside:
        return Message("info", "item-outside", f"{name} lies outside the extent or mask and was passed over.")
    return Message("warning", "item-failed", f"{name} was left out: {error}")


class _Teller:
    """Passes on what the run of one raster says, as part of the run of all."""

    def __init__(self, report: Report, n_items: int) -> None:
        self._report, self._n_items = report, n_items
        self._place, self._n_before, self._n_objects = 0, 0, 0
        self._told: set[tuple[str, str]] = set()
        self._start = time.monotonic()

    def next(self) -> None:
        """Go on to the next raster."""
        self._place += 1
        self._n_before, self._n_objects = self._n_before + self._n_objects, 0

    def __call__(self, event: WorkerEvent) -> None:
        if isinstance(event, Progress):
            self._n_objects = event.objects
            self._report(self._of_all(event))
        elif isinstance(event, Message) and event.id in _SAME_FOR_ALL:
            if (event.id, event.text) not in self._told:
                self._told.add((event.id, event.text))
                self._report(event)
        else:
            self._report(event)

    def _of_all(self, event: Progress) -> Progress:
        share = (self._place + event.done / max(event.total, 1)) / self._n_items
        remaining = (time.monotonic() - self._start) * (1 - share) / share if share > 0 else None
        return replace(
            event, objects=self._n_before + event.objects, remaining=remaining, item=self._place + 1,
            items=self._n_items,
        )  # fmt: skip


@dataclass
class _Tally:
    """What has become of the rasters so far."""

    done: list[dict[str, Any]] = field(default_factory=list)
    failed: list[tuple[str, InferenceError]] = field(default_factory=list)

    def summary(self, report: Report) -> dict[str, Any]:
        """Give the summary of all.

        Raises:
            InferenceError: there is nothing to sum up.
        """
        if not self.done:
            raise self._nothing_done()
        failures = [(name, error) for name, error in self.failed if error.context.get("reason") != OUTSIDE]
        if failures:
            text = (
                f"{len(failures)} of {len(self.done) + len(self.failed)} rasters could not be searched and are missing"
            )
            report(Message("warning", "items-failed", f"{text} from the result: {_names(failures)}."))
        parts = self.done
        sums = {key: sum(part[key] for part in parts) for key in _SUMMED if key in parts[0]}
        counts = {key: _added(part[key] for part in parts) for key in _COUNTED if key in parts[0]}
        fields = [entry for entry in parts[0].get("fields", ()) if entry["name"] != SOURCE]
        first = {key: value for key, value in parts[0].items() if key != "camera"}
        return {
            **first,
            **sums,
            **counts,
            "fields": [{"name": SOURCE, "type": "text"}, *fields],
            "plan": _plan_of_all([part["plan"] for part in parts]),
            "seconds": round(sum(part["seconds"] for part in parts), 3),
        }

    def _nothing_done(self) -> InferenceError:
        name, first = next(
            ((name, error) for name, error in self.failed if error.context.get("reason") != OUTSIDE), self.failed[0]
        )
        if len(self.failed) == 1:
            return first
        return type(first)(
            f"None of the {len(self.failed)} rasters could be searched; {name}: {first.message}", hint=first.hint
        )


def _added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total = Counter[str]()
    for part in counts:
        total.update(part)
    return dict(total)


def _plan_of_all(plans: list[dict[str, Any]]) -> dict[str, Any]:
    """Give the plan of all: what is done adds up, what is needed at a time does not."""
    seconds, memory = [plan["seconds"] for plan in plans], [plan["memory"] for plan in plans]
    return {
        **plans[0],
        "tiles": sum(plan["tiles"] for plan in plans),
        "outside": sum(plan["outside"] for plan in plans),
        "is_counted": all(plan["is_counted"] for plan in plans),
        "seconds": None if None in seconds else round(sum(seconds), 3),
        "memory": None if None in memory else max(memory),
        "pixel_memory": max(plan["pixel_memory"] for plan in plans),
        "rasters": len(plans),
    }


def _names(failures: list[tuple[str, InferenceError]], most: int = 5) -> str:
    shown = ", ".join(name for name, _ in failures[:most])
    return shown + (f", and {len(failures) - most} more" if len(failures) > most else "")
