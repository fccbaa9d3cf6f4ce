"""A venue and a reader that share no code with K4: what the one sent is what the other finds.

200,000 distinct frames of every kind, first at full speed, the rest paced; JSON and SBE. The
gateway is `k4-runner run`, set onto the venue by `endpoints` alone.
"""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
from plain_gateway import gateway, remove, wait_for, without_local_time
from plain_reader import read_store
from plain_venue import Client, PlainVenue, in_chunks, ws_frame

FULL = 200_000  # frames of a kind
SHORT = 40_000  # where only the product or the transport differs
PACED = 2_000
T0 = 1_790_000_000_000
KINDS = {"bookTicker": "bbo", "trade": "trade", "aggTrade": "aggtrade", "depth5@100ms": "depth5"}

Record = tuple[object, ...]


def price(i: int) -> str:
    return f"{60000 + i % 5000}.{i % 100:02d}"


def volume(i: int) -> str:
    return f"{i % 90}.{i % 100_000:05d}"


class Json:
    """Binance's JSON of one product, and the records that must come of it (without local time)."""

    def __init__(self, symbol: str, product_type: int, futures: bool) -> None:
        self.symbol = symbol
        self.head = (symbol.encode().ljust(32, b"\0"), product_type)
        self.futures = futures

    def wrap(self, stream: str, payload: dict[str, object]) -> bytes:
        wrapped = {"stream": f"{self.symbol.lower()}@{stream}", "data": payload}
        return ws_frame(json.dumps(wrapped, separators=(",", ":")).encode())

    def times(self, i: int) -> dict[str, object]:
        return {"T": T0 + i, "E": T0 + i + 1} if self.futures else {}

    def us(self, i: int) -> tuple[int, int]:
        return ((T0 + i + 1) * 1000, (T0 + i) * 1000) if self.futures else (0, 0)

    def quote(self, i: int) -> tuple[bytes, Record]:
        u = 10**10 + 3 * i
        payload: dict[str, object] = {"u": u, "s": self.symbol, "b": price(i), "B": volume(i)}
        payload |= {"a": price(i + 1), "A": volume(i + 2)} | self.times(i)
        figures = (float(price(i)), float(volume(i)), float(price(i + 1)), float(volume(i + 2)))
        return self.wrap("bookTicker", payload), (*self.head, *self.us(i), u, *figures, 0, 0)

    def trade(self, i: int) -> tuple[bytes, Record]:
        id, maker = 6 * 10**9 + i, bool(i % 3)
        payload: dict[str, object] = {"e": "trade", "E": T0 + i + 1, "s": self.symbol, "t": id}
        payload |= {"p": price(i), "q": volume(i + 1), "T": T0 + i, "m": maker}
        us = ((T0 + i + 1) * 1000, (T0 + i) * 1000)
        figures = (float(price(i)), float(volume(i + 1)), int(maker))
        return self.wrap("trade", payload), (*self.head, *us, id, *figures)

    def agg(self, i: int) -> tuple[bytes, Record]:
        id, first, last = 4 * 10**9 + i, 6 * 10**9 + 3 * i, 6 * 10**9 + 3 * i + i % 3
        payload: dict[str, object] = {"e": "aggTrade", "E": T0 + i + 1, "s": self.symbol, "a": id}
        payload |= {"p": price(i), "q": volume(i + 1), "f": first, "l": last}
        payload |= {"T": T0 + i, "m": True}
        us = ((T0 + i + 1) * 1000, (T0 + i) * 1000)
        figures = (float(price(i)), float(volume(i + 1)), last - first + 1, 1)
        return self.wrap("aggTrade", payload), (*self.head, *us, first, last, id, *figures)

    def book(self, i: int) -> tuple[bytes, Record]:
        u, bids, asks = 10**10 + 7 * i, 5 - i % 2, 5
        sides = [
            [[price(i + j), volume(i + j + 1)] for j in range(bids)],
            [[price(i + j + 9), volume(i + j + 3)] for j in range(asks)],
        ]
        if self.futures:
            payload: dict[str, object] = {"e": "depthUpdate", "s": self.symbol, "u": u, "U": u - 1}
            payload |= {"pu": u - 7, "b": sides[0], "a": sides[1]} | self.times(i)
        else:
            payload = {"lastUpdateId": u, "bids": sides[0], "asks": sides[1]}
        flat = [
            [float(level[column]) for level in side] + [0.0] * (5 - len(side))
            for side in sides
            for column in (0, 1)
        ]
        record = (*self.head, *self.us(i), u, bids, asks, 0.0, *chain(*flat), *[0] * 10)
        return self.wrap("depth5@100ms", payload), record

    def makers(self) -> dict[str, Callable[[int], tuple[bytes, Record]]]:
        return {
            "bookTicker": self.quote,
            "trade": self.trade,
            "aggTrade": self.agg,
            "depth5@100ms": self.book,
        }


class Sbe:
    """Binance's spot SBE, packed by hand, and its records."""

    def __init__(self, symbol: str) -> None:
        self.name = symbol.encode()
        self.head = (self.name.ljust(32, b"\0"), 0)

    def frame(self, template: int, root: bytes, *groups: bytes) -> bytes:
        header = struct.pack("<HHHH", len(root), template, 1, 0)
        tail = bytes([len(self.name)]) + self.name
        return ws_frame(header + root + b"".join(groups) + tail, binary=True)

    def quote(self, i: int) -> tuple[bytes, Record]:
        us, u = T0 * 1000 + i, 10**10 + 3 * i
        figures = (6_000_000 + i, 100_000 + i, 6_000_001 + i, 7 * i)
        root = struct.pack("<qqbbqqqq", us, u, -2, -5, *figures)
        values = (figures[0] / 100, figures[1] / 10**5, figures[2] / 100, figures[3] / 10**5)
        return self.frame(10001, root), (*self.head, us, 0, u, *values, 0, 0)

    def trade(self, i: int) -> tuple[bytes, Record]:
        us, id = T0 * 1000 + i, 6 * 10**9 + i
        root = struct.pack("<qqbb", us + 5, us, -2, -5)
        group = struct.pack("<HI", 25, 1) + struct.pack("<qqqB", id, 6_000_000 + i, 77 + i, i % 2)
        record = (*self.head, us + 5, us, id, (6_000_000 + i) / 100, (77 + i) / 10**5, i % 2)
        return self.frame(10000, root, group), record

    def book(self, i: int) -> tuple[bytes, Record]:
        us, u = T0 * 1000 + i, 10**10 + 7 * i
        root = struct.pack("<qqbb", us, u, -2, -5)
        bids = [(6_000_000 + i - j, 100 + i + j) for j in range(20)]
        asks = [(6_000_001 + i + j, 200 + i + j) for j in range(20)]
        groups = [
            struct.pack("<HH", 16, 20) + b"".join(struct.pack("<qq", *level) for level in side)
            for side in (bids, asks)
        ]
        flat = [
            [level[column] / scale for level in side[:5]]
            for side in (bids, asks)
            for column, scale in ((0, 100), (1, 10**5))
        ]
        record = (*self.head, us, 0, u, 5, 5, 0.0, *chain(*flat), *[0] * 10)
        return self.frame(10002, root, *groups), record

    def makers(self) -> dict[str, Callable[[int], tuple[bytes, Record]]]:
        return {"bestBidAsk": self.quote, "trade": self.trade, "depth20": self.book}


SBE_KINDS = {"bestBidAsk": "bbo", "trade": "trade", "depth20": "depth5"}
Makers = dict[str, Callable[[int], tuple[bytes, Record]]]


class Sending:
    """Sends everything of the kinds that a client subscribed; keeps the records to expect."""

    def __init__(self, makers: Makers, count: int) -> None:
        self.expected: dict[str, list[Record]] = {}
        self._chunks: dict[str, list[bytes]] = {}
        self._paced: dict[str, list[bytes]] = {}
        for stream, make in makers.items():
            made = [make(i) for i in range(count)]
            self.expected[stream] = [record for _, record in made]
            self._chunks[stream] = in_chunks(frame for frame, _ in made[:-PACED])
            self._paced[stream] = [frame for frame, _ in made[-PACED:]]

    def __call__(self, client: Client) -> None:
        streams = [topic.partition("@")[2] for topic in client.topics]
        for batch in zip(*(self._chunks[stream] for stream in streams), strict=False):
            for chunk in batch:
                client.send(chunk)
        for stream in streams:  # those with more chunks than the shortest
            shortest = min(len(self._chunks[other]) for other in streams)
            for chunk in self._chunks[stream][shortest:]:
                client.send(chunk)
        due = time.perf_counter()
        for frames in zip(*(self._paced[stream] for stream in streams), strict=True):
            due += 0.0005
            while time.perf_counter() < due:
                pass
            for frame in frames:
                client.send(frame)


def stores(section: dict[str, object], makers: Makers, kinds: dict[str, str]) -> dict[str, str]:
    """Names the stores in a product section; store name by stream."""
    names = {}
    for stream in makers:
        kind = kinds[stream]
        names[stream] = f"foreign_{os.getpid()}_{kind}"
        section[f"{kind}_shm_name"] = names[stream]
    return names


def check(
    folder: Path,
    makers: Makers,
    kinds: dict[str, str],
    connection: Callable[[PlainVenue, dict[str, object]], dict[str, object]],
    *,
    count: int = FULL,
    prefix: str = "",
) -> None:
    sending = Sending(makers, count)
    venue = PlainVenue(sending)
    section: dict[str, object] = {}
    names = stores(section, makers, kinds)
    section = {prefix + key: value for key, value in section.items()}
    try:
        with gateway(folder, connection(venue, section)):
            wait_for(dict.fromkeys(names.values(), count))
        for stream, name in names.items():
            (instrument,) = read_store(name)
            assert instrument.current_index == count - 1
            assert instrument.generation == 0
            assert without_local_time(instrument) == sending.expected[stream]
            local = [record[-1] for record in instrument.records]
            assert local == sorted(local)  # type: ignore[type-var]
    finally:
        venue.close()
        remove(names.values())


def common(**more: object) -> dict[str, object]:
    return {"exchange": "binance", "md_size": FULL + 2, "metadata": "off", **more}


@pytest.mark.parametrize(("transport", "count"), [("picows", FULL), ("websockets", SHORT)])
def test_spot_json(tmp_path: Path, transport: str, count: int) -> None:
    def connection(venue: PlainVenue, section: dict[str, object]) -> dict[str, object]:
        return common(
            endpoints={"spot": venue.url("/stream")},
            transport=transport,
            spot={"symbols": ["BTCUSDT"], **section},
        )

    makers = Json("BTCUSDT", 0, futures=False).makers()
    check(tmp_path, makers, KINDS, connection, count=count)


def test_spot_sbe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K4_TEST_KEY", "a key")

    def connection(venue: PlainVenue, section: dict[str, object]) -> dict[str, object]:
        headers = {"X-MBX-APIKEY": {"env": "K4_TEST_KEY"}}
        return common(
            endpoints={"spot_sbe": venue.url("/stream")},
            spot={"symbols": ["BTCUSDT"], "feed": "sbe", "extra_headers": headers, **section},
        )

    check(tmp_path, Sbe("BTCUSDT").makers(), SBE_KINDS, connection)


def test_usd_margined_futures(tmp_path: Path) -> None:
    def connection(venue: PlainVenue, section: dict[str, object]) -> dict[str, object]:
        urls = {"ubase_public": venue.url("/public/stream")}
        urls["ubase_market"] = venue.url("/market/stream")
        return common(endpoints=urls, futures={"ubase_symbols": ["BTCUSDT"], **section})

    makers = Json("BTCUSDT", 2, futures=True).makers()
    check(tmp_path, makers, KINDS, connection, count=SHORT)


def test_coin_margined_futures(tmp_path: Path) -> None:
    def connection(venue: PlainVenue, section: dict[str, object]) -> dict[str, object]:
        urls = {"cbase": venue.url("/stream")}
        return common(endpoints=urls, futures={"cbase_symbols": ["BTCUSD_PERP"], **section})

    makers = Json("BTCUSD_PERP", 3, futures=True).makers()
    check(tmp_path, makers, KINDS, connection, count=SHORT, prefix="cbase_")
