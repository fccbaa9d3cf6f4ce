"""Bitget, classic v2, by a venue that shares no code with K4: what it sends is what the stores
hold.

One URL serves four products, told apart by `instType` alone. Every arg is answered; trades begin
with a snapshot of history and come newest first; `seq` exceeds 2**53 and falls after maintenance; a
side may be empty; fields that came and went (`pseq`, `checksum`) are there or not.
"""

from __future__ import annotations

import json
import random
import threading
from dataclasses import replace
from pathlib import Path

from plain_gateway import Product, play
from plain_traffic import Book, Channel, Expect, Trade, books, mixed, send, trades
from plain_venue import Client, PlainVenue

T0 = 1_790_000_000_000
UNKNOWN = "NOPEUSDT"
INST_TYPES = {
    "spot": "SPOT",
    "futures": "USDT-FUTURES",
    "usdc_futures": "USDC-FUTURES",
    "coin_futures": "COIN-FUTURES",
}
PRODUCT_TYPES = {"spot": 0, "futures": 5, "usdc_futures": 6, "coin_futures": 3}
SYMBOLS = {
    "spot": {"BTCUSDT": "BTCUSDT", "ETHUSDT": "ETHUSDT"},
    "futures": {"BTCUSDT": "BTCUSDT", "ETHUSDT": "ETHUSDT"},
    "usdc_futures": {"BTCUSDC": "BTCPERP"},
    "coin_futures": {"BTCUSD": "BTCUSD", "BTCUSDZ24": "BTCUSDZ24"},
}
LINES = {"spot": 2, "futures": 1, "usdc_futures": 1, "coin_futures": 1}
CHANNELS = {"bbo": "books1", "trade": "trade", "depth5": "books5"}
FIRST_SEQ = {"coin_futures": 1_483_653_649_791_156_272}
MAINTENANCE = ((7, 2001), (3, 60_000))
MOST_ARGS = 4096


def answer(client: Client, text: bytes) -> list[bytes]:
    if text == b"ping":
        client.seen["ping"] += 1
        return [b"pong"]
    request = json.loads(text)
    assert set(request) == {"op", "args"}
    assert request["op"] == "subscribe"
    assert len(text) <= MOST_ARGS
    client.seen["request"] += 1
    said: list[dict[str, object]] = []
    for arg in request["args"]:
        if arg["instId"] == UNKNOWN:
            what = f"instType:{arg['instType']},channel:{arg['channel']},instId:{UNKNOWN}"
            refusal = {"code": 30001, "msg": f"{what},precision:null doesn't exist"}
            said.append({"event": "error", "arg": arg, **refusal, "op": "subscribe"})
        else:
            client.topics.append(f"{arg['instType']}:{arg['channel']}:{arg['instId']}")
            said.append({"event": "subscribe", "arg": arg})
    return [dump(message) for message in said]


def dump(message: dict[str, object]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()


def push(
    topic: str, action: str, data: list[dict[str, object]], ts: int, turned: bool = False
) -> bytes:
    """A push; turned: in the other key order."""
    inst_type, channel, inst_id = topic.split(":")
    arg = {"instType": inst_type, "channel": channel, "instId": inst_id}
    message: dict[str, object] = {"action": action, "arg": arg, "data": data, "ts": ts}
    return dump(dict(reversed(message.items())) if turned else message)


def book_data(rng: random.Random, book: Book) -> dict[str, object]:
    sides = {
        name: [[price, size] for price, size, _ in levels]
        for name, levels in (("asks", book.asks), ("bids", book.bids))
    }
    more = rng.choice(({}, {"pseq": 0}, {"checksum": 0, "pseq": 0}))
    return {**sides, "ts": str(book.ms), "seq": book.id, **more}


def trade_data(trade: Trade) -> dict[str, object]:
    data = {"ts": str(trade.ms), "price": trade.price, "size": trade.size}
    return {**data, "side": "sell" if trade.sell else "buy", "tradeId": str(trade.id)}


def book_channel(
    rng: random.Random, product: str, symbol: str, topic: str, depth: int, count: int
) -> Channel:
    made = Channel(resets=len(MAINTENANCE))
    expect = Expect(symbol, PRODUCT_TYPES[product])
    tell = expect.quote if depth == 1 else expect.depth
    first = FIRST_SEQ.get(product, 850_167_842_345)
    for book in books(rng, count, depth=depth, first_id=first, first_ms=T0, resets=MAINTENANCE):
        ts = book.ms + rng.randint(0, 9)
        tell(made, book, ts * 1000, book.ms * 1000)
        made.steps.append(
            push(topic, "snapshot", [book_data(rng, book)], ts, not rng.randrange(50))
        )
    return made


def trade_channel(rng: random.Random, product: str, symbol: str, topic: str, count: int) -> Channel:
    made = Channel()
    expect = Expect(symbol, PRODUCT_TYPES[product])
    first = 1_471_423_022_176_681_986
    history = [
        Trade(first - 100 + i, 1, T0 - 500 + i, "63961", "0.0727", bool(i % 2)) for i in range(100)
    ]
    messages = trades(
        rng, made, count, first_id=first, first_ms=T0, most=4, large=500, step=5_000_000
    )
    made.steps.append(push(topic, "snapshot", [trade_data(t) for t in reversed(history)], T0))
    # the newest of them once more, as if just made
    again = [replace(trade, new=False) for trade in history[-3:]]
    for message in (again, *messages):
        ts = message[-1].ms + 1
        for trade in message:
            expect.trade(made, trade, ts * 1000, trade.ms * 1000)
        data = [trade_data(trade) for trade in reversed(message)]
        made.steps.append(push(topic, "update", data, ts, not rng.randrange(50)))
    return made


def channel(rng: random.Random, product: str, symbol: str, kind: str, count: int) -> Channel:
    topic = topic_of(product, symbol, kind)
    if kind == "trade":
        return trade_channel(rng, product, symbol, topic, count)
    return book_channel(rng, product, symbol, topic, 1 if kind == "bbo" else 5, count)


def topic_of(product: str, symbol: str, kind: str) -> str:
    return f"{INST_TYPES[product]}:{CHANNELS[kind]}:{SYMBOLS[product][symbol]}"


class Feeding:
    """Sends a client all that it subscribed, then waits for its pings."""

    def __init__(self, products: list[Product]) -> None:
        self.done = threading.Semaphore(0)
        self._channels = {
            topic_of(product.section, symbol, kind): made
            for product in products
            for kind, channels in product.channels.items()
            for symbol, made in channels.items()
        }

    def __call__(self, client: Client) -> None:
        inst_type = client.topics[0].partition(":")[0] + ":"
        topics = [topic for topic in self._channels if topic.startswith(inst_type)]
        client.until(lambda: sorted(client.topics) == sorted(topics))
        rng = random.Random(inst_type + client.headers["sec-websocket-key"])
        send(client, mixed(rng, [self._channels[topic] for topic in topics]), rng)
        client.settle()
        client.until(lambda: client.seen["ping"] >= 2)
        assert client.seen["request"] == 1
        self.done.release()


def test_the_stores_hold_what_was_sent(tmp_path: Path) -> None:
    rng, count = random.Random(17), 1500
    made = [
        Product(
            product,
            {
                kind: {s: channel(rng, product, s, kind, count) for s in symbols}
                for kind in CHANNELS
            },
            lines=LINES[product],
            refused=(UNKNOWN,),
        )
        for product, symbols in SYMBOLS.items()
    ]
    feeding = Feeding(made)
    venue = PlainVenue(feeding, answer)
    try:
        play(
            tmp_path,
            made,
            feeding.done,
            sum(LINES.values()),
            exchange="bitget",
            endpoints={"public": venue.url("/v2/ws/public")},
            ping_interval_sec=0.2,
        )
    finally:
        venue.close()
