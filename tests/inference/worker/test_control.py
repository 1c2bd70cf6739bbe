from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kestrel.inference.errors import ProtocolError
from kestrel.inference.pictures import DTYPES, MAX_SIDE, Picture
from kestrel.inference.secrets import Secrets
from kestrel.inference.worker.control import (
    CANCEL,
    MAX_LINE,
    CancelWish,
    ControlReader,
    PixelsAnswer,
    encode_answer,
    encode_secrets,
)

SECRETS = Secrets(
    ({"origin": "https://maps.example", "headers": {"Authorization": "Bearer canary"}},), ca_file="/x.pem"
)


@st.composite
def pictures(draw: st.DrawFn) -> Picture:
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    shape = tuple(draw(st.tuples(*[st.integers(1, 5)] * 3)))
    size = shape[0] * shape[1] * shape[2] * DTYPES[dtype]
    n_pixels = shape[1] * shape[2]
    pixels, cover = (draw(st.binary(min_size=n, max_size=n)) for n in (size, n_pixels))
    return Picture(dtype, shape, pixels, cover, draw(st.integers(0, 9)), draw(st.integers(0, 9)), draw(st.text()))


def plain(message: Any) -> Any:
    """Give a message in a form that can be compared."""
    if isinstance(message, PixelsAnswer) and message.picture is not None:
        return message.request, vars(message.picture)
    return (message.request, message.error) if isinstance(message, PixelsAnswer) else message


@given(
    st.lists(
        st.one_of(
            st.just(CancelWish()),
            st.builds(PixelsAnswer, st.integers(0, 2**40), pictures()),
            st.builds(PixelsAnswer, st.integers(0, 9), st.none(), st.text(min_size=1)),
        ),
        max_size=5,
    ),
    st.data(),
)
def test_messages_come_out_as_they_went_in_however_the_pipe_cuts_them(messages: list[Any], data: st.DataObject) -> None:
    stream = encode_secrets(SECRETS)
    for message in messages:
        stream += CANCEL if isinstance(message, CancelWish) else b"".join(encode_answer(message))
    reader, found, rest = ControlReader(), [], stream
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        found += list(reader.feed(rest[:size]))
        rest = rest[size:]
    assert found[0] == SECRETS
    assert [plain(message) for message in found[1:]] == [plain(message) for message in messages]


@pytest.mark.parametrize(
    "data",
    [
        b"canary\n",
        b'"canary"\n',
        b'{"type": "canary"}\n',
        b'{"type": "pixels", "canary": 1}\n',
        b'{"type": "pixels", "request": 1, "bytes": [99999999999, 1], "reason": "canary"}\n',
        b'{"type": "pixels", "request": 1, "bytes": [-1, 1], "reason": "canary"}\n',
        b'{"type": "pixels", "request": 1, "bytes": "canary"}\n',
        b'{"type": "pixels", "request": 1, "bytes": [1, 1], "dtype": "canary", "shape": [1, 1, 1],'
        b' "answered": 0, "failures": 0, "reason": ""}\n..',
        b'{"type": "pixels", "request": 1, "bytes": [2, 1], "dtype": "uint8", "shape": [1, 1, 1],'
        b' "answered": 0, "failures": 0, "reason": "canary"}\n...',
        b'{"type": "secrets", "credentials": "canary"}\n',
        b'{"a":' * 20_000 + b"\n",
    ],
)
def test_what_is_no_message_is_refused_without_being_repeated(data: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        list(ControlReader().feed(data))
    if not data.startswith(b'{"type": "pixels", "request": 1, "bytes": [1, 1]'):  # there the type is what is wrong
        assert "canary" not in str(caught.value)


def test_a_line_without_end_is_refused_before_it_fills_the_memory() -> None:
    reader = ControlReader()
    assert list(reader.feed(b"x" * (MAX_LINE - 1))) == []
    with pytest.raises(ProtocolError, match="too long"):
        list(reader.feed(b"x"))


@pytest.mark.parametrize("shape", [(1, 0, 5), (1, 5, MAX_SIDE + 1), (0, 2, 2), (2000, 1, 1)])
def test_a_picture_of_a_senseless_size_cannot_be_made(shape: tuple[int, int, int]) -> None:
    n_pixels = shape[1] * shape[2]
    with pytest.raises(ProtocolError):
        Picture("uint8", shape, b"x" * (shape[0] * n_pixels), b"x" * n_pixels)


def test_the_header_of_a_picture_is_plain_json_of_which_the_bytes_follow() -> None:
    header, pixels, cover = encode_answer(PixelsAnswer(3, Picture("uint8", (1, 1, 2), b"ab", b"\1\0", 4, 5, "why")))
    assert json.loads(header) == {
        "type": "pixels", "request": 3, "dtype": "uint8", "shape": [1, 1, 2], "answered": 4, "failures": 5,
        "reason": "why", "bytes": [2, 2],
    }  # fmt: skip
    assert (pixels, cover) == (b"ab", b"\1\0")
