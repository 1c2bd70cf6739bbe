from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kestrel.inference.errors import ProtocolError
from kestrel.inference.events import (
    Done,
    Failed,
    Item,
    Message,
    Objects,
    Progress,
    Started,
    WasCanceled,
    WorkerEvent,
    event_from_dict,
    event_to_dict,
)

json_objects = st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.booleans()))
rates = st.none() | st.floats(0, 1e9)
all_events = st.one_of(
    st.builds(Started, st.integers(), st.dictionaries(st.text(), st.text())),
    st.builds(Message, st.sampled_from(["info", "warning", "error"]), st.text(), st.text()),
    st.builds(Progress, st.integers(), st.integers(), st.integers(), rates, rates),
    st.builds(Objects, st.text(), st.integers()),
    st.builds(Item, json_objects),
    st.builds(Done, json_objects),
    st.just(WasCanceled()),
    st.builds(Failed, json_objects),
)


@given(all_events)
def test_an_event_comes_back_from_its_wire_form_as_it_was(event: WorkerEvent) -> None:
    assert event == event_from_dict(json.loads(json.dumps(event_to_dict(event))))


def test_members_of_a_newer_version_are_passed_over() -> None:
    assert Objects("/a", 3) == event_from_dict({"type": "objects", "path": "/a", "count": 3, "bytes": 12})


@pytest.mark.parametrize(
    "data",
    [None, 5, "done", [], {}, {"type": "dance"}, {"type": []}, {"type": {}}, {"type": None}, {"type": "objects"}],
)
def test_what_is_no_event_breaks_the_protocol(data: Any) -> None:
    with pytest.raises(ProtocolError):
        event_from_dict(data)
