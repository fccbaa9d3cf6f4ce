"""What `k4.core.transport` promises, asked of every transport over real sockets on loopback."""

from __future__ import annotations

import asyncio
import datetime
import importlib
import ipaddress
import random
import ssl
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from websockets.frames import Frame, Opcode

from k4.core.clock import SystemClock
from k4.core.errors import K4Error
from k4.core.testing import ManualClock, MemoryTransport, ScriptedServer, ServerPeer, stay
from k4.core.transport import (
    BINARY,
    TEXT,
    Closed,
    Connection,
    Dial,
    Transport,
    choose,
    retry_after,
    tls_context,
)

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
Scenario = Callable[[Transport], Coroutine[Any, Any, None]]


def everywhere(scenario: Scenario) -> Callable[[str, str], None]:
    """The scenario as a test for each transport on each event loop, which must stay silent."""

    @pytest.mark.parametrize("loop", LOOPS)
    @pytest.mark.parametrize("name", ["picows", "websockets"])
    def test(name: str, loop: str) -> None:
        complaints: list[dict[str, Any]] = []

        async def guarded() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, c: complaints.append(c))
            await asyncio.wait_for(scenario(choose(name)), 20)

        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(guarded())
        assert complaints == []

    test.__doc__ = scenario.__doc__
    return test


class Ears:
    """A receiver that writes everything down, and lets a test wait for it."""

    def __init__(self) -> None:
        self.events: list[tuple[object, ...]] = []
        self.stamps: list[int] = []
        self.connection: Connection | None = None
        self.how: Closed | None = None
        self.on_message: Callable[[bytes], object] | None = None
        self._changed = asyncio.Event()

    def opened(self, connection: Connection, /) -> None:
        self.connection = connection
        self._note("opened")

    def message(self, payload: bytes, received_ns: int, opcode: int, /) -> None:
        assert type(payload) is bytes
        self.stamps.append(received_ns)
        self._note("message", payload, opcode)
        if self.on_message is not None:
            self.on_message(payload)

    def pinged(self, payload: bytes, /) -> None:
        self._note("pinged", payload)

    def ponged(self, payload: bytes, /) -> None:
        self._note("ponged", payload)

    def closed(self, how: Closed, /) -> None:
        self.how = how
        self._note("closed")

    def _note(self, *event: object) -> None:
        self.events.append(event)
        self._changed.set()

    @property
    def open(self) -> Connection:
        assert self.connection is not None
        return self.connection

    @property
    def kinds(self) -> list[object]:
        return [event[0] for event in self.events]

    @property
    def messages(self) -> list[tuple[object, ...]]:
        return [event[1:] for event in self.events if event[0] == "message"]

    async def until(self, kind: str, count: int = 1) -> None:
        while self.kinds.count(kind) < count:
            self._changed.clear()
            await self._changed.wait()

    async def end(self) -> Closed:
        await self.until("closed")
        assert self.kinds.count("closed") == 1
        assert self.kinds[-1] == "closed"
        assert self.how is not None
        return self.how


def first(server: ScriptedServer) -> ServerPeer:
    return server.peers[0]


async def heard(
    transport: Transport, script: Callable[[ServerPeer], Awaitable[object]], **dial: Any
) -> Ears:
    """What a receiver hears of this script, to the end."""
    async with ScriptedServer(script) as server:
        ears = Ears()
        transport.connect(Dial(url=server.url(), **dial), ears)
        await ears.end()
        return ears


# Order and content.


@everywhere
async def test_order_of_calls(transport: Transport) -> None:
    """opened, then everything in the peer's order, then closed once."""

    async def script(peer: ServerPeer) -> None:
        await peer.accept()
        await peer.text(b"one")
        await peer.ping(b"p")
        await peer.binary(b"\x00\xff")
        await peer.pong(b"q")
        await peer.close(1001, "bye")

    ears = await heard(transport, script)
    assert ears.events == [
        ("opened",),
        ("message", b"one", TEXT),
        ("pinged", b"p"),
        ("message", b"\x00\xff", BINARY),
        ("ponged", b"q"),
        ("closed",),
    ]
    assert ears.how == Closed(1001, "bye", clean=True)


@everywhere
async def test_messages_in_the_same_segment_as_the_handshake(transport: Transport) -> None:
    async def script(peer: ServerPeer) -> None:
        early = Frame(Opcode.TEXT, b"early").serialize(mask=False)
        await peer.accept(followed_by=early + early)
        await peer.gone()

    async with ScriptedServer(script) as server:
        ears = Ears()
        transport.connect(Dial(url=server.url()), ears)
        await ears.until("message", 2)
        assert ears.kinds == ["opened", "message", "message"]
        ears.open.abort()
        await ears.end()


@everywhere
async def test_many_messages_and_sizes_arrive_unchanged(transport: Transport) -> None:
    sizes = [0, 1, 125, 126, 127, 65_535, 65_536, 300_000]
    payloads = [bytes([65 + n % 26]) * size for n, size in enumerate(sizes * 20)]

    async def script(peer: ServerPeer) -> None:
        await peer.accept()
        for n, payload in enumerate(payloads):
            await (peer.binary(payload) if n % 3 else peer.text(payload))
        await peer.close()

    ears = await heard(transport, script)
    assert ears.messages == [
        (payload, BINARY if n % 3 else TEXT) for n, payload in enumerate(payloads)
    ]


@everywhere
async def test_stamp_is_the_wall_clock_of_the_bytes(transport: Transport) -> None:
    async def script(peer: ServerPeer) -> None:
        await peer.accept()
        await peer.text(b"now")
        await peer.close()

    before = time.time_ns()
    ears = await heard(transport, script)
    assert before <= ears.stamps[0] <= time.time_ns()


@everywhere
async def test_frames_split_at_every_byte(transport: Transport) -> None:
    wire = b"".join(
        Frame(opcode, payload).serialize(mask=False)
        for opcode, payload in [
            (Opcode.TEXT, b"alpha"),
            (Opcode.BINARY, b"b" * 130),
            (Opcode.PING, b"p"),
            (Opcode.TEXT, b"last"),
        ]
    )

    async def script(peer: ServerPeer) -> None:
        await peer.accept()
        for n in range(len(wire)):
            await peer.raw(wire[n : n + 1])
            await asyncio.sleep(0)
        await peer.close()

    ears = await heard(transport, script)
    assert ears.messages == [(b"alpha", TEXT), (b"b" * 130, BINARY), (b"last", TEXT)]


@everywhere
async def test_fragments_with_control_frames_between(transport: Transport) -> None:
    async def script(peer: ServerPeer) -> None:
        await peer.accept()
        await peer.text(b"whole")
        await peer.frame(Opcode.TEXT, b"a", fin=False)
        await peer.ping(b"between")
        await peer.frame(Opcode.CONT, b"b", fin=False)
        await peer.pong(b"also")
        await peer.frame(Opcode.CONT, b"c")
        await peer.frame(Opcode.BINARY, b"x", fin=False)
        await peer.frame(Opcode.CONT, b"")
        await peer.text(b"after")
        await peer.close()

    ears = await heard(transport, script)
    assert ears.events[1:-1] == [
        ("message", b"whole", TEXT),
        ("pinged", b"between"),
        ("ponged", b"also"),
        ("message", b"abc", TEXT),
        ("message", b"x", BINARY),
        ("message", b"after", TEXT),
    ]


@everywhere
async def test_invalid_utf8_in_a_message_is_the_decoders_business(transport: Transport) -> None:
    async def script(peer: ServerPeer) -> None:
        await peer.accept()
        await peer.text(b"\xff\xfe")
        await peer.text(b"next")
        await peer.close()

    ears = await heard(transport, script)
    assert ears.messages == [(b"\xff\xfe", TEXT), (b"next", TEXT)]


# What the client sends.


@everywhere
async def test_client_messages_reach_the_peer(transport: Transport) -> None:
    async with ScriptedServer() as server:
        ears = Ears()
        transport.connect(Dial(url=server.url("/stream?x=1")), ears)
        await ears.until("opened")
        ears.open.send_text('{"op":"é"}'.encode())
        ears.open.ping(b"ping")
        ears.open.pong(b"pong")
        await ears.until("ponged")
        ears.open.close(1000, "done")
        assert await ears.end() == Closed(1000, "done", clean=True)
        peer = first(server)
        await peer.left.wait()
        assert peer.path == "/stream?x=1"
        assert peer.received == [
            ("text", '{"op":"é"}'.encode()),
            ("ping", b"ping"),
            ("pong", b"pong"),
            ("close", b"\x03\xe8done"),
        ]


@everywhere
async def test_pings_are_left_to_the_receiver(transport: Transport) -> None:
    async def script(peer: ServerPeer) -> None:
        await peer.accept()
        await peer.ping(b"answer me")
        await peer.text(b"after the ping")
        await peer.gone()

    async with ScriptedServer(script) as server:
        ears = Ears()
        transport.connect(Dial(url=server.url()), ears)
        await ears.until("message")
        ears.open.close()
        await ears.end()
        await first(server).left.wait()
        assert [kind for kind, _ in first(server).received] == ["close"]


@everywhere
async def test_headers_and_no_extension(transport: Transport) -> None:
    async with ScriptedServer() as server:
        ears = Ears()
        headers = {"X-MBX-APIKEY": "abc", "User-Agent": "k4"}
        transport.connect(Dial(url=server.url(), headers=headers), ears)
        await ears.until("opened")
        seen = first(server).headers
        assert seen["X-MBX-APIKEY"] == "abc"
        assert seen["User-Agent"] == "k4"
        assert seen["Host"] == f"127.0.0.1:{server.port}"
        assert "Sec-WebSocket-Extensions" not in seen
        assert ears.open.remote() == f"127.0.0.1:{server.port}"
        ears.open.abort()
        await ears.end()


@everywhere
async def test_pinned_address_keeps_the_host(transport: Transport) -> None:
    async with ScriptedServer() as server:
        ears = Ears()
        url = server.url(host="venue.invalid")
        transport.connect(Dial(url=url, address="127.0.0.1"), ears)
        await ears.until("opened")
        assert first(server).headers["Host"] == f"venue.invalid:{server.port}"
        ears.open.abort()
        await ears.end()


# Ends.


@pytest.mark.parametrize("code", [1000, 1001, 1008, 1011, 1012, 1013, 3000, 4004, 4999])
def test_close_codes_of_the_peer(code: int) -> None:
    async def scenario(transport: Transport) -> None:
        async def script(peer: ServerPeer) -> None:
            await peer.accept()
            await peer.close(code, "why")

        async with ScriptedServer(script) as server:
            ears = Ears()
            transport.connect(Dial(url=server.url()), ears)
            assert await ears.end() == Closed(code, "why", clean=True)
            await first(server).left.wait()
            assert first(server).close_code == code

    for name in ("picows", "websockets"):
        everywhere(scenario)(name, "uvloop")


@everywhere
async def test_close_inside_a_fragmented_message(transport: Transport) -> None:
    async def script(peer: ServerPeer) -> None:
        await peer.accept()
        await peer.frame(Opcode.TEXT, b"half", fin=False)
        await peer.close(1012, "restart")

    ears = await heard(transport, script)
    assert ears.kinds == ["opened", "closed"]
    assert ears.how == Closed(1012, "restart", clean=True)


@everywhere
async def test_a_ping_does_not_count_as_a_part_of_the_message_around_it(
    transport: Transport,
) -> None:
    async def script(peer: ServerPeer) -> None:
        await peer.accept()
        await peer.frame(Opcode.TEXT, b"x" * 180, fin=False)
        await peer.ping(b"p" * 125)
        await peer.frame(Opcode.CONT, b"y" * 20)
        await peer.close()

    ears = await heard(transport, script, max_frame_bytes=200)
    assert ears.kinds == ["opened", "pinged", "message", "closed"]


@everywhere
async def test_close_without_a_code(transport: Transport) -> None:
    async def script(peer: ServerPeer) -> None:
        await peer.accept()
        await peer.frame(Opcode.CLOSE, b"")
        await peer.gone()

    ears = await heard(transport, script)
    assert ears.how == Closed(1005, "", clean=True)


@everywhere
async def test_what_was_on_its_way_counts_after_the_links_own_close(transport: Transport) -> None:
    async def script(peer: ServerPeer) -> None:
        await peer.accept()
        texts = [Frame(Opcode.TEXT, text).serialize(mask=False) for text in (b"first", b"second")]
        ping = Frame(Opcode.PING, b"?").serialize(mask=False)
        half = Frame(Opcode.TEXT, b"thi", fin=False).serialize(mask=False)
        rest = Frame(Opcode.CONT, b"rd").serialize(mask=False)
        await peer.raw(texts[0] + ping + texts[1] + half + ping + rest)
        await peer.gone()

    async with ScriptedServer(script) as server:
        ears = Ears()

        def close_and_more(payload: bytes) -> None:
            ears.open.close(4001, "enough")
            ears.open.close()
            ears.open.send_text(b"too late")
            ears.open.ping()

        ears.on_message = close_and_more
        transport.connect(Dial(url=server.url()), ears)
        await ears.end()
        assert ears.kinds == ["opened", "message", "message", "message", "closed"]
        await first(server).left.wait()
        assert [kind for kind, _ in first(server).received] == ["close"]


@everywhere
async def test_messages_behind_an_abort_are_not_delivered(transport: Transport) -> None:
    async def script(peer: ServerPeer) -> None:
        await peer.accept()
        await peer.raw(Frame(Opcode.TEXT, b"x").serialize(mask=False) * 5)
        await peer.gone()

    async with ScriptedServer(script) as server:
        ears = Ears()
        ears.on_message = lambda payload: ears.open.abort()
        transport.connect(Dial(url=server.url()), ears)
        how = await ears.end()
        assert (how.code, how.clean) == (1006, False)
        assert ears.kinds == ["opened", "message", "closed"]
        ears.open.send_text(b"dead")
        ears.open.ping()
        ears.open.pong(b"")
        ears.open.close()
        ears.open.abort()
        assert ears.open.remote() == ""


@everywhere
async def test_peer_drops_the_socket(transport: Transport) -> None:
    async def script(peer: ServerPeer) -> None:
        await peer.accept()
        await peer.text(b"x")
        await peer.raw(b"\x81\x05ha")  # half a frame
        peer.abort()

    ears = await heard(transport, script)
    assert ears.how is not None
    assert (ears.how.code, ears.how.clean, ears.how.error) == (1006, False, None)


@everywhere
async def test_half_open_peer_is_silent_until_the_abort(transport: Transport) -> None:
    released = asyncio.Event()

    async def script(peer: ServerPeer) -> None:
        await peer.accept()
        await released.wait()  # reads nothing, answers nothing

    async with ScriptedServer(script) as server:
        ears = Ears()
        transport.connect(Dial(url=server.url()), ears)
        await ears.until("opened")
        ears.open.ping(b"?")
        ears.open.close()
        await asyncio.sleep(0.1)  # the answer that must not come has no event to wait for
        assert ears.kinds == ["opened"]
        ears.open.abort()
        how = await ears.end()
        assert (how.code, how.clean) == (1006, False)
        released.set()


@everywhere
async def test_a_peer_that_reads_nothing_cannot_hold_up_the_end(transport: Transport) -> None:
    released = asyncio.Event()

    async def script(peer: ServerPeer) -> None:
        await peer.accept()
        await released.wait()

    async def farewell(peer: ServerPeer) -> None:
        await peer.frame(Opcode.CLOSE, b"\x03\xe9")

    async with ScriptedServer(script) as server:
        ears = Ears()
        transport.connect(Dial(url=server.url()), ears)
        await ears.until("opened")
        ears.open.send_text(b"x" * 30_000_000)  # more than the kernel's buffers take
        await farewell(first(server))
        assert (await ears.end()).code == 1001
        released.set()


@everywhere
async def test_what_escapes_opened_ends_the_connection(transport: Transport) -> None:
    class Failing(Ears):
        def opened(self, connection: Connection, /) -> None:
            super().opened(connection)
            raise bug

    bug = ValueError("bug")
    async with ScriptedServer() as server:
        ears = Failing()
        transport.connect(Dial(url=server.url()), ears)
        assert (await ears.end()).error is bug
        assert ears.kinds == ["opened", "closed"]


@everywhere
async def test_what_escapes_the_receiver_ends_its_connection_alone(transport: Transport) -> None:
    async def script(peer: ServerPeer) -> None:
        await peer.accept()
        await peer.text(b"1")
        await peer.text(b"2")
        await peer.gone()

    async with ScriptedServer(script) as server:
        ears, other = Ears(), Ears()
        bug = ValueError("bug")

        def fail(payload: bytes) -> None:
            raise bug

        ears.on_message = fail
        transport.connect(Dial(url=server.url()), other)
        transport.connect(Dial(url=server.url()), ears)
        how = await ears.end()
        assert how.error is bug
        assert ears.kinds == ["opened", "message", "closed"]
        await other.until("message", 2)
        other.open.abort()
        await other.end()


# Refusals.


@pytest.mark.parametrize(
    ("status", "headers", "wait"),
    [
        (401, {}, 0.0),
        (403, {}, 0.0),
        (429, {"Retry-After": "17"}, 17.0),
        (418, {"retry-after": "120"}, 120.0),
        (503, {}, 0.0),
        (302, {"Location": "ws://127.0.0.1:9/"}, 0.0),
        (200, {}, 0.0),
    ],
)
def test_refused_handshake(status: int, headers: dict[str, str], wait: float) -> None:
    async def scenario(transport: Transport) -> None:
        ears = await heard(transport, lambda peer: peer.refuse(status, headers))
        assert ears.kinds == ["closed"]
        assert ears.how is not None
        assert (ears.how.status, ears.how.retry_after) == (status, wait)
        assert ears.how.code == 1006

    for name in ("picows", "websockets"):
        everywhere(scenario)(name, "uvloop")


@pytest.mark.parametrize(
    "answer",
    [
        b"\x15\x03\x01\x00\x02\x02\x50",
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: bm9wZQ==\r\n\r\n",
        b"HTTP/1.1 abc Nope\r\n\r\n",
        b"x" * 70_000,
        b"",
    ],
)
def test_garbage_instead_of_a_handshake(answer: bytes) -> None:
    async def scenario(transport: Transport) -> None:
        async def script(peer: ServerPeer) -> None:
            await peer.handshake()
            await peer.raw(answer)

        ears = await heard(transport, script)
        assert ears.kinds == ["closed"]
        assert ears.how is not None
        assert (ears.how.code, ears.how.status) == (1006, 0)
        assert ears.how.reason

    for name in ("picows", "websockets"):
        everywhere(scenario)(name, "uvloop")


@everywhere
async def test_connection_refused_and_unknown_host_and_bad_url(transport: Transport) -> None:
    async with ScriptedServer() as server:
        dead = server.url()
    for url in (dead, "ws://k4-no-such-host.invalid/", "http://127.0.0.1/", "ws://"):
        ears = Ears()
        transport.connect(Dial(url=url), ears)
        assert ears.events == []  # nothing from inside `connect`
        how = await ears.end()
        assert (how.code, how.status) == (1006, 0)
        assert how.reason


@everywhere
async def test_cancelled_attempts(transport: Transport) -> None:
    """At once, while the handshake is unanswered, and after the end."""

    asked = asyncio.Event()

    async def script(peer: ServerPeer) -> None:
        await peer.handshake()
        asked.set()
        await peer.gone()

    async with ScriptedServer(script) as server:
        at_once, waiting = Ears(), Ears()
        transport.connect(Dial(url=server.url()), at_once).cancel()
        assert at_once.events == []
        assert (await at_once.end()).reason == "cancelled"
        attempt = transport.connect(Dial(url=server.url()), waiting)
        await asked.wait()
        attempt.cancel()
        assert (await waiting.end()).reason == "cancelled"
        attempt.cancel()
        assert waiting.kinds == ["closed"]
        for peer in server.peers:
            await peer.left.wait()  # the socket is really gone


# Violations of the protocol.


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        pytest.param(b"\xc1\x01x", 1002, id="rsv1"),
        pytest.param(b"\xa1\x01x", 1002, id="rsv2"),
        pytest.param(b"\x92\x01x", 1002, id="rsv3"),
        pytest.param(b"\xc9\x00", 1002, id="rsv1 on a ping"),
        pytest.param(b"\x81\x81abcdx", 1002, id="masked"),
        pytest.param(b"\x83\x00", 1002, id="unknown opcode"),
        pytest.param(b"\x09\x00", 1002, id="fragmented ping"),
        pytest.param(b"\x89\x7e\x00\x7e" + b"x" * 126, 1002, id="long ping"),
        pytest.param(b"\x80\x01x", 1002, id="stray continuation"),
        pytest.param(b"\x01\x01x\x81\x01y", 1002, id="message inside a message"),
        pytest.param(b"\x01\x01x\x41\x01y", 1002, id="reserved bit in a fragment"),
        pytest.param(b"\x88\x01x", 1002, id="close of one byte"),
        pytest.param(b"\x88\x02\x00\x00", 1002, id="close with 0"),
        pytest.param(b"\x88\x02\x03\xed", 1002, id="close with 1005"),
        pytest.param(b"\x88\x02\x03\xee", 1002, id="close with 1006"),
        pytest.param(b"\x88\x02\x13\x88", 1002, id="close with 5000"),
        pytest.param(b"\x88\x03\x03\xe8\xff", 1007, id="close with invalid UTF-8"),
        pytest.param(b"\x82\x7e\x03\xe9" + b"x" * 1001, 1009, id="frame too long"),
        pytest.param(b"\x82\x7f\x00\x00\x00\x10\x00\x00\x00\x00", 1009, id="64 GiB announced"),
        pytest.param(
            b"\x02\x7e\x02\x58" + b"x" * 600 + b"\x80\x7e\x02\x58" + b"x" * 600,
            1009,
            id="fragments too long",
        ),
    ],
)
def test_violations(wire: bytes, code: int) -> None:
    """The connection is closed with the right code, and what follows is not delivered."""

    async def scenario(transport: Transport) -> None:
        async def script(peer: ServerPeer) -> None:
            await peer.accept()
            await peer.raw(wire + b"\x81\x05after")
            await peer.gone()

        async with ScriptedServer(script) as server:
            ears = Ears()
            transport.connect(Dial(url=server.url(), max_frame_bytes=1000), ears)
            how = await ears.end()
            assert ears.kinds == ["opened", "closed"]
            assert (how.code, how.clean, how.error) == (code, False, None)
            await first(server).left.wait()
            assert first(server).close_code == code

    for name in ("picows", "websockets"):
        for loop in LOOPS:
            everywhere(scenario)(name, loop)


@everywhere
async def test_the_good_message_before_a_violation_counts(transport: Transport) -> None:
    async def script(peer: ServerPeer) -> None:
        await peer.accept()
        await peer.raw(b"\x81\x04good\x81\x05great\x83\x00\x81\x03bad")
        await peer.gone()

    ears = await heard(transport, script)
    assert [payload for payload, _ in ears.messages] == [b"good", b"great"]
    assert ears.how is not None
    assert ears.how.code == 1002


@everywhere
async def test_a_message_of_exactly_the_limit(transport: Transport) -> None:
    async def script(peer: ServerPeer) -> None:
        await peer.accept()
        await peer.binary(b"x" * 1000)
        await peer.frame(Opcode.BINARY, b"y" * 500, fin=False)
        await peer.frame(Opcode.CONT, b"y" * 500)
        await peer.close()

    ears = await heard(transport, script, max_frame_bytes=1000)
    assert ears.messages == [(b"x" * 1000, BINARY), (b"y" * 1000, BINARY)]


def wires(seed: int, count: int) -> list[bytes]:
    """Frames, some of them damaged, as a hostile or broken peer might send them."""
    rng = random.Random(seed)
    opcodes = [Opcode.TEXT, Opcode.BINARY, Opcode.CONT, Opcode.PING, Opcode.PONG]

    def frame() -> bytes:
        payload = rng.randbytes(rng.choice([0, 1, 5, 125, 126, 400, 1000, 1001]))
        fin = rng.random() < 0.7
        opcode = rng.choice(opcodes)
        if opcode in (Opcode.PING, Opcode.PONG) and rng.random() < 0.9:
            payload, fin = payload[:125], True
        head = bytes([fin << 7 | opcode])
        size = len(payload)
        length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2, "big")
        return head + length + payload

    def wire() -> bytes:
        data = bytearray(b"".join(frame() for _ in range(rng.randint(1, 8))))
        if rng.random() < 0.5:
            position = rng.randrange(len(data))
            data[position] ^= 1 << rng.randrange(8)
        if rng.random() < 0.3:
            data = data[: rng.randrange(len(data) + 1)]
        if rng.random() < 0.5:
            data += b"\x88\x05\x03\xf4bye"
        return bytes(data)

    return [wire() for _ in range(count)]


@pytest.mark.parametrize("seed", range(4))
def test_both_transports_make_the_same_of_damaged_frames(seed: int) -> None:
    """Nothing escapes, and what a receiver hears does not depend on the library."""
    count = 60
    heard_by: dict[str, list[Ears]] = {}

    async def scenario(transport: Transport) -> None:
        todo = iter(wires(seed, count))

        async def script(peer: ServerPeer) -> None:
            await peer.accept()
            await peer.raw(next(todo))
            peer.end()
            await peer.gone()

        async with ScriptedServer(script) as server:
            for _ in range(count):
                ears = Ears()
                transport.connect(Dial(url=server.url(), max_frame_bytes=1000), ears)
                assert (await ears.end()).error is None
                heard_by.setdefault(transport.name, []).append(ears)

    for name in ("picows", "websockets"):
        everywhere(scenario)(name, "uvloop")
    codes = set()
    for fast, portable in zip(heard_by["picows"], heard_by["websockets"], strict=True):
        assert fast.how is not None
        assert portable.how is not None
        codes.add(portable.how.code)
        if "reserved bits" in portable.how.reason:  # picows' own depth, see the module
            assert fast.events[: len(portable.events) - 1] == portable.events[:-1]
        else:
            assert fast.events == portable.events
            assert fast.how.clean == portable.how.clean
            # Of two faults in one frame each library names the one that it meets first, and a frame
            # cut short may end the connection before the fault in it is met.
            if not {fast.how.code, portable.how.code} <= {1002, 1006, 1009}:
                assert fast.how.code == portable.how.code
    assert codes >= {1002, 1006, 1009, 1012}


# TLS.


class Authority:
    """A throwaway certificate authority."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "k4 test authority")])
        self.certificate = self._sign(self._name, self._key, None)
        self.ca_file = folder / "ca.pem"
        self.ca_file.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, host: str | None
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=host is None, path_length=None), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )
        if host is not None:
            name: x509.GeneralName = (
                x509.IPAddress(ipaddress.ip_address(host))
                if host[0].isdigit()
                else x509.DNSName(host)
            )
            builder = builder.add_extension(x509.SubjectAlternativeName([name]), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def server_context(self, host: str) -> ssl.SSLContext:
        """A server's context with a certificate for `host`."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "k4 test server")])
        path = self._folder / f"{host}.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + self._sign(subject, key, host).public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", ["picows", "websockets"])
def test_tls(name: str, loop: str, authority: Authority) -> None:
    """Verified by default, the custom authority accepted, another host's certificate refused."""
    trusting = tls_context(str(authority.ca_file))

    async def scenario(transport: Transport) -> None:
        names: list[str | None] = []
        context = authority.server_context("venue.invalid")
        context.sni_callback = lambda _, sni, __: names.append(sni)

        async def script(peer: ServerPeer) -> None:
            await peer.accept()
            await peer.text(b"over TLS")
            await peer.close(1001)

        async with ScriptedServer(script, ssl_context=context) as server:
            asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # server's alerts
            right = Dial(
                url=server.url(host="venue.invalid"), address="127.0.0.1", ssl_context=trusting
            )
            wrong = Dial(
                url=server.url(host="other.invalid"), address="127.0.0.1", ssl_context=trusting
            )
            strangers = Dial(url=right.url, address="127.0.0.1")
            ears = Ears()
            transport.connect(right, ears)
            assert await ears.end() == Closed(1001, "", clean=True)
            assert ears.messages == [(b"over TLS", TEXT)]
            for dial in (wrong, strangers):
                ears = Ears()
                transport.connect(dial, ears)
                how = await ears.end()
                assert ears.kinds == ["closed"]
                assert "certificate" in how.reason
            assert names == ["venue.invalid", "other.invalid", "venue.invalid"]

    everywhere(scenario)(name, loop)


def test_unusable_ca_file(tmp_path: Path) -> None:
    with pytest.raises(K4Error, match="cannot be used"):
        tls_context(str(tmp_path / "absent.pem"))
    (tmp_path / "bad.pem").write_text("not a certificate")
    with pytest.raises(K4Error, match="PEM"):
        tls_context(str(tmp_path / "bad.pem"))


# Choice.


def test_choice() -> None:
    assert choose("auto").name == "picows"
    assert choose("websockets", SystemClock()).name == "websockets"
    with pytest.raises(K4Error, match="no transport 'aiohttp'"):
        choose("aiohttp")


def test_choice_without_picows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "picows", None)  # what an import finds that is not installed
    monkeypatch.delitem(sys.modules, "k4.core.transport_picows", raising=False)
    try:
        assert choose("auto").name == "websockets"
        with pytest.raises(K4Error, match=r"k4-md\[fast\]"):
            choose("picows")
    finally:
        monkeypatch.undo()
        importlib.import_module("k4.core.transport_picows")


NOON_NS = int(datetime.datetime(2026, 11, 22, 12, tzinfo=datetime.UTC).timestamp()) * 10**9


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 0.0),
        ("", 0.0),
        ("120", 120.0),
        ("-5", 0.0),
        ("nan", 0.0),
        ("inf", 259_200.0),
        ("soon", 0.0),
        ("Sun, 22 Nov 2026 12:01:30 GMT", 90.0),
        ("Sun, 22 Nov 2026 11:00:00 GMT", 0.0),
        ("9999999999", 259_200.0),
    ],
)
def test_retry_after(value: str | None, seconds: float) -> None:
    assert retry_after(value, NOON_NS) == seconds


def test_a_dial_shows_no_key() -> None:
    dial = Dial(url="wss://venue.invalid/", headers={"X-MBX-APIKEY": "secret"}, address="10.0.0.1")
    assert repr(dial) == (
        "Dial('wss://venue.invalid/', address='10.0.0.1', headers=['X-MBX-APIKEY'])"
    )
    assert "secret" not in f"{dial} {[dial]}"


# The transport in memory keeps the same order.


async def test_memory_transport_keeps_the_same_promises() -> None:
    clock = ManualClock()
    transport = MemoryTransport(clock)
    ears = Ears()
    transport.connect(Dial(url="ws://venue.invalid/", max_frame_bytes=10), ears)
    assert ears.events == []
    clock.advance(0)
    peer = transport.peers[0]
    peer.text(b"one")
    peer.ping(b"p")
    peer.binary(b"two")
    peer.pong(b"q")
    ears.open.send_text(b"hello")
    ears.open.ping(b"?")
    peer.close(1001, "bye")
    peer.text(b"too late")
    assert ears.how is None
    clock.advance(0)
    assert ears.kinds == ["opened", "message", "pinged", "message", "ponged", "closed"]
    assert ears.how == Closed(1001, "bye", clean=True)
    assert peer.received == [("text", b"hello"), ("ping", b"?")]

    def meet(dial: Dial, script: Callable[[Any], object]) -> tuple[Ears, Any]:
        ears = Ears()
        MemoryTransport(clock, script).connect(dial, ears)
        clock.advance(0)
        return ears, ears.connection

    dial = Dial(url="ws://venue.invalid/", max_frame_bytes=10)
    ears, _ = meet(dial, lambda peer: peer.refuse(429, 7.0))
    assert ears.how == Closed(1006, "HTTP 429", status=429, retry_after=7.0)
    ears, _ = meet(dial, lambda peer: peer.fail())
    assert ears.kinds == ["closed"]

    peers: list[Any] = []

    def accept(peer: Any) -> None:
        peers.append(peer)
        peer.accept()

    ears, connection = meet(dial, accept)
    peers[-1].text(b"x" * 11)
    clock.advance(0)
    assert ears.how is not None
    assert ears.how.code == 1009
    ears, connection = meet(dial, accept)
    peers[-1].half_open()
    peers[-1].text(b"lost")
    connection.close()
    clock.advance(60)
    assert ears.kinds == ["opened"]
    connection.abort()
    clock.advance(0)
    assert ears.kinds == ["opened", "closed"]
    ears, connection = meet(dial, accept)
    bug = ValueError("bug")

    def fail(payload: bytes) -> None:
        raise bug

    ears.on_message = fail
    peers[-1].text(b"boom")
    clock.advance(0)
    assert ears.how is not None
    assert ears.how.error is bug
    ears = Ears()
    MemoryTransport(clock).connect(dial, ears).cancel()
    clock.advance(0)
    assert ears.kinds == ["closed"]
    assert clock.pending == 0


async def test_plain_script_stays_until_the_client_leaves() -> None:
    async with ScriptedServer(stay) as server:
        ears = Ears()
        choose("websockets").connect(Dial(url=server.url()), ears)
        await ears.until("opened")
        ears.open.close()
        assert (await ears.end()).clean
