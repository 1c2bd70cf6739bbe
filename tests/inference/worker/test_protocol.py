from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kestrel.inference.errors import ProtocolError, RasterReadError
from kestrel.inference.events import (
    Done,
    Failed,
    Message,
    Objects,
    PixelsWanted,
    Progress,
    Started,
    WasCanceled,
    WorkerEvent,
    event_to_dict,
)
from kestrel.inference.worker.protocol import MAX_LINE, read_event, write_event

EVENTS = [
    Started(17, {"python": "3.12.1"}),
    Message("warning", "raster-slow", "Bäume\n\r\u2028\x00 \udce4"),
    Progress(1, 2, 3),
    Progress(1, 2, 3, 0.5, 1e9),
    Objects("objects-00000001.npz", 12),
    PixelsWanted(7, "wms:tiles.example#12", [1.5, 2.0, 3.0, 4.0], 512, 256, 1),
    Done({"objects": 3, "device": "cpu"}),
    WasCanceled(),
    Failed(RasterReadError("No.", hint="Yes.", window=[1, 2]).to_dict()),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.type)
def test_an_event_comes_back_as_it_was_written(event: WorkerEvent) -> None:
    stream = io.BytesIO()
    write_event(stream, event)
    assert read_event(stream.getvalue()) == event


@given(st.text(), st.text())
def test_an_event_is_one_line_of_ascii_whatever_it_says(identifier: str, text: str) -> None:
    stream = io.BytesIO()
    write_event(stream, Message("info", identifier, text))
    line = stream.getvalue()
    assert line.isascii() and line.endswith(b"\n") and len(line.splitlines()) == 1
    assert read_event(line) == Message("info", identifier, text)


@pytest.mark.parametrize("summary", [{"x": float("nan")}, {"x": float("inf")}, {"x": object()}, {"x": "y" * MAX_LINE}])
def test_what_is_not_plain_json_is_not_sent(summary: dict[str, object]) -> None:
    stream = io.BytesIO()
    with pytest.raises(ProtocolError, match="'done'"):
        write_event(stream, Done(summary))
    assert stream.getvalue() == b""


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"hello\n",
        b"\xff\xfe\n",
        b"[]\n",
        b"null\n",
        b"{}\n",
        b'{"type": []}\n',
        b'{"type": "exec"}\n',
        b'{"type": "progress"}\n',
        b'{"type": "progress", "done": "1", "total": 2, "objects": 3}\n',
        b'{"type": "progress", "done": NaN, "total": 2, "objects": 3}\n',
        b'{"type": "failed", "error": "text"}\n',
        b'{"type": "objects", "path": null, "count": 1}\n',
        b"[" * 100_000,
        b'{"type": "done", "summary": {"x": ' + b"9" * 5000 + b"}}",
        b" " * MAX_LINE + b'{"type": "canceled"}',
        b"cos\nsystem\n(S'true'\ntR.",
    ],
    ids=lambda line: line[:30],
)
def test_anything_else_is_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_event(line)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_an_event_or_a_protocol_error(line: bytes) -> None:
    try:
        read_event(line)
    except ProtocolError:
        pass


@given(st.sampled_from(EVENTS), st.text(max_size=8), json_values)
def test_an_event_with_any_member_changed_is_an_event_or_a_protocol_error(
    event: WorkerEvent, name: str, value: object
) -> None:
    for member in (name, *event_to_dict(event)):
        try:
            read_event(json.dumps({**event_to_dict(event), member: value}).encode())
        except ProtocolError:
            pass
