"""OKX by a venue that shares no code with K4: what it sends is what the stores hold.

The venue speaks the public WebSocket of API v5: one answer for each arg, refusals that name their
arg in words, the bare `ping` answered, the book snapshot at once after the subscription, `seqId`
that repeats when idle and falls after maintenance, merged trades, sizes in contracts for swaps.
"""

from __future__ import annotations

import json
import random
import threading
from pathlib import Path

import pytest
from plain_gateway import Product, play
from plain_traffic import Book, Channel, Expect, Trade, books, mixed, send, trades
from plain_venue import Client, PlainVenue

T0 = 1_790_000_000_000
UNKNOWN = "NOPEUSDT"
IDS = {
    "spot": {"BTCUSDT": "BTC-USDT", "ETHUSDC": "ETH-USDC"},
    "swap": {"BTCUSDT": "BTC-USDT-SWAP", "BTCUSD": "BTC-USD-SWAP"},
}
PRODUCT_TYPES = {"spot": 0, "swap": 1}
CHANNELS = {"bbo-tbt": "bbo", "trades": "trade", "trades-all": "trade", "books5": "depth5"}
MAINTENANCE = ((7, 2001), (0, 60_000))  # seqId begins anew; 0 is the smallest legal one


def answer(client: Client, text: bytes) -> list[bytes]:
    if text == b"ping":
        client.seen["ping"] += 1
        return [b"pong"]
    request = json.loads(text)
    assert request["op"] == "subscribe"
    assert 0 < len(request["id"]) <= 32
    assert request["id"].isalnum()
    assert len(text) < 64 << 10
    client.seen["request"] += 1
    said = []
    for arg in request["args"]:
        assert set(arg) == {"channel", "instId"}
        assert ("all" in arg["channel"]) == client.path.endswith("business")
        if "NOPE" in arg["instId"]:
            words = f"channel:{arg['channel']},instId:{arg['instId']} doesn't exist."
            refusal = {"event": "error", "code": "60018", "msg": f"Wrong URL or {words}"}
            said.append({"id": request["id"], **refusal, "connId": "a4d3ae55"})
        else:
            client.topics.append(f"{arg['channel']}:{arg['instId']}")
            ack = {"id": request["id"], "event": "subscribe", "arg": arg, "connId": "a4d3ae55"}
            said.append(ack)
    return [json.dumps(message, separators=(",", ":")).encode() for message in said]


def push(name: str, inst_id: str, data: list[dict[str, object]], turned: bool = False) -> bytes:
    """A push; turned: in the other key order."""
    message = {"arg": {"channel": name, "instId": inst_id}, "data": data}
    if turned:
        message = dict(reversed(message.items()))
    return json.dumps(message, separators=(",", ":")).encode()


def levels(side: list[tuple[str, str, int]]) -> list[list[str]]:
    return [[price, size, "0", str(orders)] for price, size, orders in side]


def book_data(book: Book, inst_id: str = "") -> dict[str, object]:
    named = {"instId": inst_id} if inst_id else {}
    sides = {"asks": levels(book.asks), "bids": levels(book.bids)}
    return {**sides, **named, "ts": str(book.ms), "seqId": book.id}


def trade_data(rng: random.Random, name: str, inst_id: str, trade: Trade) -> dict[str, object]:
    data: dict[str, object] = {"instId": inst_id, "tradeId": str(trade.id), "px": trade.price}
    data |= {"sz": trade.size, "side": "sell" if trade.sell else "buy", "ts": str(trade.ms)}
    if name == "trades" and (trade.count > 1 or rng.randrange(4)):  # older frames lack these
        data |= {"count": str(trade.count), "source": str(rng.randrange(2)), "seqId": trade.id}
    return data


def channel(rng: random.Random, product: str, symbol: str, name: str, count: int) -> Channel:
    made, expect = Channel(), Expect(symbol, PRODUCT_TYPES[product])
    inst_id = IDS[product][symbol]
    big = 2**53 + 1 if product == "swap" else 81_456_559_103
    if CHANNELS[name] == "trade":
        merged = 4 if name == "trades" else 1
        for message in trades(
            rng, made, count, first_id=1_040_968_613, first_ms=T0, most=4, large=400, merged=merged
        ):
            data = [trade_data(rng, name, inst_id, trade) for trade in message]
            made.steps.append(push(name, inst_id, data, not rng.randrange(50)))
            for trade in message:
                expect.trade(made, trade, trade.ms * 1000, trade.ms * 1000)
        return made
    depth = 1 if name == "bbo-tbt" else 5
    held: list[dict[str, object]] = []
    for book in books(
        rng, count, depth=depth, first_id=big, first_ms=T0, resets=MAINTENANCE, orders=True
    ):
        tell = expect.quote if depth == 1 else expect.depth
        tell(made, book, book.ms * 1000, book.ms * 1000)
        held.append(book_data(book, inst_id if depth == 5 else ""))
        if not book.first and not rng.randrange(50):
            continue  # two in one message
        made.steps.append(push(name, inst_id, held, not rng.randrange(50)))
        held = []
    if held:
        made.steps.append(push(name, inst_id, held))
    made.resets = len(MAINTENANCE)
    return made


def products(seed: int, names: dict[str, tuple[str, ...]], count: int) -> list[Product]:
    """Two symbols of every product; spot has two lines."""
    rng = random.Random(seed)
    return [
        Product(
            product,
            {
                CHANNELS[name]: {s: channel(rng, product, s, name, count) for s in IDS[product]}
                for name in channels
            },
            lines=2 if product == "spot" else 1,
            refused=(UNKNOWN,),
            options={"trades_channel": "trades-all"} if "trades-all" in channels else {},
        )
        for product, channels in names.items()
    ]


class Feeding:
    """Sends a client all that it subscribed, then waits for its pings."""

    def __init__(self, products: list[Product], names: dict[str, tuple[str, ...]]) -> None:
        self.done = threading.Semaphore(0)
        self._channels = {
            f"{name}:{IDS[product.section][symbol]}": made
            for product in products
            for name in names[product.section]
            for symbol, made in product.channels[CHANNELS[name]].items()
        }
        self._names = names

    def __call__(self, client: Client) -> None:
        product = "swap" if client.topics[0].endswith("SWAP") else "spot"
        business = client.path.endswith("business")
        names = [name for name in self._names[product] if (name == "trades-all") is business]
        client.until(lambda: len(client.topics) == len(names) * len(IDS[product]))
        rng = random.Random(client.topics[0] + client.headers["sec-websocket-key"])
        send(client, mixed(rng, [self._channels[topic] for topic in client.topics]), rng)
        client.settle()
        client.until(lambda: client.seen["ping"] >= 2)
        assert client.seen["request"] == 1
        self.done.release()


@pytest.mark.parametrize(
    ("names", "connections", "count"),
    [
        (dict.fromkeys(IDS, ("bbo-tbt", "trades", "books5")), 3, 3000),
        ({"spot": ("bbo-tbt", "trades-all")}, 4, 1000),
    ],
)
def test_the_stores_hold_what_was_sent(
    tmp_path: Path, names: dict[str, tuple[str, ...]], connections: int, count: int
) -> None:
    made = products(3, names, count)
    feeding = Feeding(made, names)
    venue = PlainVenue(feeding, answer)
    try:
        play(
            tmp_path,
            made,
            feeding.done,
            connections,
            exchange="okx",
            endpoints={"public": venue.url("/public"), "business": venue.url("/business")},
            ping_interval_sec=0.2,
        )
    finally:
        venue.close()
