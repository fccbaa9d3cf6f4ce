"""The life of a connection: made before broken, and every hole is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest
from aiohttp import web

from k4.core.clock import SystemClock
from k4.core.trading import NotReady, OrderError
from k4.td.exchanges.binance.keeper import Keeper
from k4.td.exchanges.binance.rest import Http
from k4.td.exchanges.binance.stream import Line, Socket, StreamLine
from k4.td.timing import Timing

TIMING = Timing(
    retry_base=0.01, retry_cap=0.05, ping=5.0, drain=0.2, answer=1.0, handshake=1.0, max_life=60.0
)


class Peer:
    """A WebSocket server that counts connections, and can hold a handshake or hang up."""

    def __init__(self) -> None:
        self.open: list[web.WebSocketResponse] = []
        self.made = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = asyncio.Event()
        self.port = 0
        self._grown = asyncio.Event()

    async def until_made(self, count: int) -> None:
        async with asyncio.timeout(5):
            while self.made < count:
                self._grown.clear()
                await self._grown.wait()

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        self.waiting.set()
        await self.gate.wait()
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        self.made += 1
        self._grown.set()
        self.open.append(ws)
        async for _ in ws:
            pass
        self.open.remove(ws)
        return ws


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    made = Peer()
    app = web.Application()
    app.router.add_get("/", made.serve)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.port = runner.addresses[0][1]
    yield made
    await runner.cleanup()


class Told:
    """What a keeper says, in order."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self._changed = asyncio.Event()

    def say(self, word: str) -> Callable[..., None]:
        def said(*details: object) -> None:
            self.words.append(word)
            self._changed.set()

        return said

    async def until(self, condition: Callable[[list[str]], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition(self.words):
                self._changed.clear()
                await self._changed.wait()


def keeper(
    peer: Peer,
    http: Http,
    told: Told,
    timing: Timing = TIMING,
    opened: Callable[[StreamLine], None] = lambda line: None,
) -> Keeper[StreamLine]:
    clock = SystemClock()

    def ignore(line: Line, text: str) -> None:
        return None

    async def connect() -> StreamLine:
        url = f"ws://127.0.0.1:{peer.port}/"
        line = StreamLine(await Socket.open(http, url, clock, timing), ignore)
        opened(line)
        return line

    made = Keeper(
        connect, clock, timing, up=told.say("up"), down=told.say("down"), failed=told.say("failed")
    )
    made.start()
    return made


async def test_a_lost_connection_is_told_and_made_anew(peer: Peer) -> None:
    http, told = Http().join(), Told()
    kept = keeper(peer, http, told)
    await told.until(lambda words: words == ["up"])
    await peer.open[0].close()
    await told.until(lambda words: words == ["up", "down", "up"])
    await kept.close()
    assert kept.line is None
    await http.leave()


async def test_a_replacement_is_open_before_the_old_one_closes_and_nothing_is_told(
    peer: Peer,
) -> None:
    http, told = Http().join(), Told()
    kept = keeper(peer, http, told)
    await told.until(lambda words: words == ["up"])
    old = kept.line
    peer.gate.clear()
    peer.waiting.clear()
    kept.replace()
    await peer.waiting.wait()
    assert kept.line is old
    peer.gate.set()
    assert old is not None
    await old.ended  # it is closed once the new one serves
    assert kept.line is not None
    assert told.words == ["up"]
    await kept.close()
    await http.leave()


async def test_a_connection_that_dies_while_its_successor_connects_leaves_a_hole_that_is_told(
    peer: Peer,
) -> None:
    http, told = Http().join(), Told()
    kept = keeper(peer, http, told)
    await told.until(lambda words: words == ["up"])
    peer.gate.clear()
    peer.waiting.clear()
    kept.replace()
    await peer.waiting.wait()
    await peer.open[0].close()
    peer.gate.set()
    await told.until(lambda words: words == ["up", "down", "up"])
    await kept.close()
    await http.leave()


async def test_a_replacement_that_cannot_be_made_leaves_the_old_one_serving(peer: Peer) -> None:
    http, told = Http().join(), Told()
    kept = keeper(peer, http, told)
    await told.until(lambda words: words == ["up"])
    port, peer.port = peer.port, 1  # nobody listens there
    kept.replace()
    await told.until(lambda words: "failed" in words)
    assert kept.line is not None
    old, peer.port = kept.line, port
    await old.ended
    assert "down" not in told.words
    await kept.close()
    await http.leave()


async def test_nothing_is_sent_on_a_connection_that_the_venue_is_about_to_close(
    peer: Peer,
) -> None:
    http, told = Http().join(), Told()
    kept = keeper(peer, http, told)
    await told.until(lambda words: words == ["up"])
    old = kept.line
    assert old is not None
    peer.gate.clear()
    peer.waiting.clear()
    kept.announced(old)
    kept.announced(old)  # said twice, done once
    await peer.waiting.wait()
    assert kept.line is None
    assert kept.holds(old)  # what it still brings counts
    peer.gate.set()
    await old.ended
    assert kept.line is not None
    assert (told.words, peer.made) == (["up"], 2)
    await kept.close()
    await http.leave()


async def test_a_connection_that_is_announced_to_close_before_it_serves_is_replaced_in_turn(
    peer: Peer,
) -> None:
    http, told = Http().join(), Told()
    lines: list[StreamLine] = []

    def opened(line: StreamLine) -> None:
        lines.append(line)
        if len(lines) < 3:  # the first as the first of all, the second as a successor
            kept.announced(line)

    kept = keeper(peer, http, told, opened=opened)
    await peer.until_made(3)
    await lines[1].ended
    assert kept.line is lines[2]
    assert told.words == ["up"]
    await kept.close()
    await http.leave()


async def test_what_is_announced_while_its_successor_is_made_needs_no_other(peer: Peer) -> None:
    http, told = Http().join(), Told()
    kept = keeper(peer, http, told)
    await told.until(lambda words: words == ["up"])
    old = kept.line
    assert old is not None
    peer.gate.clear()
    peer.waiting.clear()
    kept.replace()
    await peer.waiting.wait()
    kept.announced(old)
    peer.gate.set()
    await old.ended
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(peer.until_made(3), 0.3)
    assert (told.words, peer.made) == (["up"], 2)
    await kept.close()
    await http.leave()


async def test_a_defect_is_told_and_not_silent() -> None:
    told = Told()
    found: list[OrderError] = []

    async def connect() -> Line:
        raise KeyError("defect")

    kept = Keeper(
        connect,
        SystemClock(),
        TIMING,
        up=told.say("up"),
        down=told.say("down"),
        failed=found.append,
    )
    kept.start()
    await told.until(lambda words: words == ["down"])
    assert found[0].code == "not_ready.internal"
    await kept.close()


async def test_a_refused_handshake_says_its_status_and_no_url(peer: Peer) -> None:
    http = Http().join()
    url = f"ws://127.0.0.1:{peer.port}/ws/secret-listen-key"
    with pytest.raises(NotReady, match="status 404") as caught:
        await Socket.open(http, url, SystemClock(), TIMING)
    assert "secret" not in str(caught.value)
    assert isinstance(http.session, aiohttp.ClientSession)
    await http.leave()
