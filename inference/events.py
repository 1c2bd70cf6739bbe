"""What a run tells whoever watches it: the events that cross the pipe from the worker to QGIS, one JSON object each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Union

from .errors import ProtocolError


class Canceled(Exception):  # noqa: N818  # cancelling is an outcome, not an error
    """The user asked the run to stop, and it did."""


@dataclass(frozen=True)
class Started:
    """The worker is up and has read its job."""

    type: ClassVar[str] = "started"
    pid: int
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Message:
    """Something the user should read. `level`: info, warning, error; `id` is stable, for programs and translations."""

    type: ClassVar[str] = "message"
    level: str
    id: str
    text: str


@dataclass(frozen=True)
class Progress:
    """How far the run is.

    Units/space: done and total in tiles; rate in tiles a second; remaining in seconds, for all rasters. None: not known
    yet.
    """

    type: ClassVar[str] = "progress"
    done: int
    total: int
    objects: int
    rate: float | None = None
    remaining: float | None = None
    item: int = 1
    """Of several rasters that are searched one by one: the number of this one, from 1; the tiles are its own."""
    items: int = 1


@dataclass(frozen=True)
class Objects:
    """A file of finished objects (object_file.py) lies in the job folder; the reader deletes it."""

    type: ClassVar[str] = "objects"
    path: str
    count: int


@dataclass(frozen=True)
class Item:
    """One of several rasters that are searched one by one is over. `facts`: its name, and counts or an error."""

    type: ClassVar[str] = "item"
    facts: dict[str, Any]


@dataclass(frozen=True)
class PixelsWanted:
    """The worker asks QGIS for the pixels of a rectangle, see pictures.py; the answer names the request.

    Units/space: extent is xmin, ymin, xmax, ymax in the coordinate reference system of the raster.
    """

    type: ClassVar[str] = "pixels-wanted"
    request: int
    source: str
    """`RasterItem.source`."""
    extent: list[float]
    width: int
    height: int
    again: int = 0
    """How often the same pixels have been asked for before."""


@dataclass(frozen=True)
class Done:
    """The run ended well. `summary`: JSON numbers and texts about it."""

    type: ClassVar[str] = "done"
    summary: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class WasCanceled:
    """The run ended because it was asked to; what had been done is in the journal."""

    type: ClassVar[str] = "canceled"


@dataclass(frozen=True)
class Failed:
    """The run ended with an error (`InferenceError.to_dict`)."""

    type: ClassVar[str] = "failed"
    error: dict[str, Any]


WorkerEvent = Union[Started, Message, Progress, Objects, PixelsWanted, Item, Done, WasCanceled, Failed]
Report = Callable[[WorkerEvent], None]

_TYPES = (Started, Message, Progress, Objects, PixelsWanted, Item, Done, WasCanceled, Failed)
_BY_TYPE = {cls.type: cls for cls in _TYPES}


def event_to_dict(event: WorkerEvent) -> dict[str, Any]:
    """Give the event's wire form."""
    return {"type": event.type, **asdict(event)}


def event_from_dict(data: Any) -> WorkerEvent:
    """Rebuild an event.

    Raises:
        ProtocolError: not an event.
    """
    cls = _BY_TYPE.get(str(data.get("type"))) if isinstance(data, dict) else None
    if cls is None:
        raise ProtocolError(f"The worker sent an unknown message: {str(data)[:200]}")
    names = {item.name for item in fields(cls)}
    try:
        return cls(**{name: value for name, value in data.items() if name in names})
    except TypeError as error:
        raise ProtocolError(f"The worker sent an incomplete message: {str(data)[:200]}") from error
