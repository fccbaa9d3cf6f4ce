"""The server's half of RFC 6455, against the RFC's own examples and any portioning of bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sim_client import masked

from k4.runner.sim import ws

HANDSHAKE = (
    b"GET /stream?streams=btcusdt%40trade/ethusdt@trade&timeUnit=MICROSECOND HTTP/1.1\r\n"
    b"Host: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13"
)


def test_the_handshake_of_the_rfc() -> None:
    request = ws.parse_request(HANDSHAKE, "127.0.0.1")
    assert request.path == "/stream"
    assert request.query == {
        "streams": "btcusdt@trade/ethusdt@trade",
        "timeUnit": "MICROSECOND",
    }
    answer = ws.accept(request)
    assert isinstance(answer, bytes)
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in answer


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"Upgrade: websocket", b"Upgrade: h2c"), (b"Version: 13", b"Version: 8")],
)
def test_what_is_no_upgrade_is_refused(old: bytes, new: bytes) -> None:
    answer = ws.accept(ws.parse_request(HANDSHAKE.replace(old, new)))
    assert isinstance(answer, ws.Refusal)
    assert answer.status == 426
    assert answer.encode().startswith(b"HTTP/1.1 426 Upgrade Required\r\n")


def test_a_post_is_no_handshake() -> None:
    with pytest.raises(ws.ProtocolError, match="not a GET"):
        ws.parse_request(HANDSHAKE.replace(b"GET", b"POST"))


def test_the_masked_hello_of_the_rfc() -> None:
    frame = bytes.fromhex("818537fa213d7f9f4d5158")
    assert ws.Decoder().feed(frame) == [(ws.TEXT, b"Hello")]


@given(st.lists(st.binary(max_size=70_000), min_size=1, max_size=4), st.integers(1, 9_000))
def test_messages_survive_any_portions(payloads: list[bytes], portion: int) -> None:
    stream = b"".join(masked(ws.BINARY, payload) for payload in payloads)
    decoder, found = ws.Decoder(), []
    for at in range(0, len(stream), portion):
        found += decoder.feed(stream[at : at + portion])
    assert [message.payload for message in found] == payloads


def test_fragments_are_joined_around_a_control_frame() -> None:
    stream = (
        masked(ws.TEXT, b"Hel", final=False)
        + masked(ws.PING, b"now")
        + masked(ws.CONTINUATION, b"lo")
    )
    assert ws.Decoder().feed(stream) == [(ws.PING, b"now"), (ws.TEXT, b"Hello")]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (ws.encode(ws.TEXT, b"no mask"), 1002),
        (masked(ws.CONTINUATION, b"no begin"), 1002),
        (masked(ws.TEXT, b"x" * 200), 1009),
    ],
)
def test_violations_have_their_codes(data: bytes, code: int) -> None:
    with pytest.raises(ws.ProtocolError) as caught:
        ws.Decoder(max_bytes=100).feed(data)
    assert caught.value.code == code


@given(st.binary(max_size=70_000), st.sampled_from([ws.TEXT, ws.BINARY]))
def test_own_frames_decode(payload: bytes, opcode: int) -> None:
    assert ws.decode_own(ws.encode(opcode, payload)) == (opcode, payload)
