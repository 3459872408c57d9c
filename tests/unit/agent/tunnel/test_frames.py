"""Frames written by hand are the protobuf messages that the contract names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.tunnel.frames import HALF_CLOSE, OPENED, First, HalfClose, decode, decode_open, encode_data, encode_open
from common.errors import InvalidRequest
from ferry.tunnel.v1 import tunnel_service_pb2 as pb


@pytest.mark.parametrize("count", [1, 127, 128, 16383, 16384, 262144, 2097151, 2097152])
def test_a_data_frame_is_what_protobuf_would_write(count):
    content = b"\x5a" * count

    frame = encode_data(content)

    assert frame == pb.RelayRequest(data=content).SerializeToString()
    assert frame == pb.RelayResponse(data=content).SerializeToString()


def test_the_frames_without_content_are_what_protobuf_would_write():
    half_close = pb.HalfClose()

    assert pb.RelayRequest(half_close=half_close).SerializeToString() == HALF_CLOSE
    assert pb.RelayResponse(half_close=half_close).SerializeToString() == HALF_CLOSE
    assert pb.RelayResponse(opened=pb.Opened()).SerializeToString() == OPENED


@given(st.binary(min_size=1, max_size=40_000))
def test_data_comes_out_as_it_went_in(content):
    assert decode(encode_data(content)) == content


def test_data_is_a_view_into_the_message_and_no_copy():
    message = encode_data(b"guest memory")

    frame = decode(message)

    assert isinstance(frame, memoryview)
    assert frame.obj is message


def test_an_open_names_token_and_ordinal():
    frame = decode(encode_open("secret", 7))

    assert isinstance(frame, First)
    opened = decode_open(frame)
    assert (opened.token, opened.ordinal) == ("secret", 7)


def test_a_half_close_is_told_from_data():
    assert decode(HALF_CLOSE) == HalfClose()


@pytest.mark.parametrize(
    "message",
    [b"", b"\x12", b"\x12\x05abc", b"\x12\x02abc", b"\x22\x01a", b"\x12" + b"\xff" * 9, HALF_CLOSE + HALF_CLOSE],
    ids=["empty", "no length", "short", "long", "unknown field", "endless length", "two frames"],
)
def test_what_is_not_exactly_one_frame_is_refused(message):
    with pytest.raises(InvalidRequest) as refusal:
        decode(message)

    assert refusal.value.reason == "FRAME_INVALID"


def test_an_open_that_is_no_message_is_refused():
    with pytest.raises(InvalidRequest) as refusal:
        decode_open(First(b"\xff\xff"))

    assert refusal.value.reason == "FRAME_INVALID"
