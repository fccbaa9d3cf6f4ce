"""Bybit v5 by a venue that shares no code with K4: what it sends is what the stores hold.

The venue answers once for each request, refuses one of spot with more than ten topics or one with
an unknown symbol whole, repeats orderbook.1 under its old `u`, keeps books deeper than the fifty
levels that it tells of, restarts at `u` 1, loses updates, and sends up to 1024 trades at once.
"""

from __future__ import annotations

import json
import random
import threading
import uuid
from bisect import insort
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import xxhash
from plain_gateway import Product, play
from plain_traffic import Book, Channel, Expect, Level, Trade, books, decimal, mixed, send, trades
from plain_venue import Client, PlainVenue

T0 = 1_790_000_000_000
TOPICS = {"bbo": "orderbook.1", "trade": "publicTrade", "depth5": "orderbook.50"}
SYMBOLS = {
    "spot": ("BTCUSDT", "ETHUSDT", "SOLUSDC"),
    "linear": ("BTCUSDT", "BTCUSDC"),
    "inverse": ("BTCUSD", "BTCUSDU25"),
}
VENUE_SYMBOLS = {"BTCUSDC": "BTCPERP"}
PRODUCT_TYPES = {"spot": 0, "linear": 1, "inverse": 3}
LINES = {"spot": 2, "linear": 1, "inverse": 1}
REFUSED = {"spot": ("NOPEUSDT",), "linear": (), "inverse": ("NOPEUSD",)}
RESTARTS = ((1, 1), (5, 2001), (1, 40))  # `u` 1 needs a newer time only


def answer(client: Client, text: bytes) -> list[bytes]:
    request = json.loads(text)
    category, op = client.path.rpartition("/")[2], request["op"]
    reply = {"success": True, "ret_msg": "", "conn_id": "0970e817", "req_id": request["req_id"]}
    reply["op"] = op
    if op == "ping":
        client.seen["ping"] += 1
        reply["ret_msg"] = "pong"
        if category == "spot":
            del reply["req_id"]
    elif op == "unsubscribe":
        for topic in request["args"]:
            client.topics.remove(topic)
    else:
        unknown = [topic for topic in request["args"] if "NOPE" in topic]
        if category == "spot" and len(request["args"]) > 10:
            reply |= {"success": False, "ret_msg": "args size >10"}
        elif unknown:
            reply |= {"success": False, "ret_msg": f"Invalid symbol :[{unknown[0]}]"}
        else:
            reply["ret_msg"] = "subscribe" if category == "spot" else ""
            client.topics += request["args"]
            client.seen.update(request["args"])
    return [dump(reply)]


def dump(message: dict[str, object]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()


def push(product: str, topic: str, type: str, ts: int, data: object, cts: int = 0) -> bytes:
    """Keys in the order of the category and the topic."""
    swapped = product == "spot" or topic.startswith("orderbook.1.")
    head = {"ts": ts, "type": type} if swapped else {"type": type, "ts": ts}
    tail = {"cts": cts} if cts else {}
    return dump({"topic": topic, **head, "data": data, **tail})


def book_data(symbol: str, u: int, bids: list[Level], asks: list[Level]) -> dict[str, object]:
    pairs = [[[price, size] for price, size, _ in side] for side in (bids, asks)]
    return {"s": symbol, "b": pairs[0], "a": pairs[1], "u": u, "seq": 3 * u + 2**53}


def quotes(rng: random.Random, product: str, symbol: str, count: int) -> Channel:
    made, expect = Channel(resets=len(RESTARTS)), Expect(symbol, PRODUCT_TYPES[product])
    venue_symbol = VENUE_SYMBOLS.get(symbol, symbol)
    topic = f"orderbook.1.{venue_symbol}"
    for book in books(rng, count, depth=1, first_id=72_212_457, first_ms=T0, resets=RESTARTS):
        cts = book.ms if rng.randrange(10) else 0  # younger than the topic
        ts = book.ms + rng.randint(0, 3) if cts else book.ms
        expect.quote(made, book, ts * 1000, book.ms * 1000)
        data = book_data(venue_symbol, book.id, book.bids, book.asks)
        made.steps.append(push(product, topic, "snapshot", ts, data, cts))
    return made


class Side:
    """One side of the venue's own book: more levels than it tells of."""

    def __init__(self, rng: random.Random, best: int, sign: int) -> None:
        self._rng = rng
        self._sign = sign
        self._prices: list[int] = []  # best first, as sign * price
        self._sizes: dict[int, str] = {}
        self._texts: dict[int, str] = {}
        for i in range(70):
            self._set(best + sign * 3 * i)

    def _set(self, price: int) -> None:
        if price not in self._sizes:
            insort(self._prices, self._sign * price)
            self._texts[price] = decimal(self._rng, price, 2)
        self._sizes[price] = decimal(self._rng, self._rng.randint(1, 10**8), 5)

    def levels(self) -> list[Level]:
        prices = [self._sign * price for price in self._prices[:50]]
        return [(self._texts[price], self._sizes[price], 0) for price in prices]

    def change(self) -> list[Level]:
        """Change some levels; what those who know the fifty best must be told."""
        before = dict((price, (price, size)) for price, size, _ in self.levels())
        rng = self._rng
        for _ in range(rng.randint(0, 4)):
            at = rng.choice((rng.randrange(5), rng.randrange(len(self._prices))))
            price = self._sign * self._prices[at]
            if rng.randrange(3) and len(self._prices) > 60:
                del self._prices[at], self._sizes[price], self._texts[price]
            else:
                self._set(price if rng.randrange(2) else price + self._sign * rng.randint(-2, 2))
        after = dict((price, (price, size)) for price, size, _ in self.levels())
        told = [(price, "0", 0) for price in before if price not in after]
        told += [(*pair, 0) for price, pair in after.items() if before.get(price) != pair]
        return sorted(told, key=lambda level: self._sign * Decimal(level[0]))


class Depths:
    """orderbook.50 of one symbol: deltas, restarts, holes that only a new subscription heals."""

    def __init__(self, rng: random.Random, product: str, symbol: str) -> None:
        self.made = Channel()
        self._rng = rng
        self._product = product
        self._expect = Expect(symbol, PRODUCT_TYPES[product])
        self._symbol = VENUE_SYMBOLS.get(symbol, symbol)
        self._topic = f"orderbook.50.{self._symbol}"
        self._sides = Side(rng, 7_142_380, -1), Side(rng, 7_142_390, 1)
        self._u, self._ms = 10_132_540, T0
        self._subscriptions = 1

    def write(self, count: int) -> Channel:
        self._snapshot()
        rng = self._rng
        for i in range(1, count):
            if i in (count // 3, count // 3 + 2):  # restarted, and soon once more
                self._restart()
            elif i in (count // 2, count * 3 // 4):
                self._hole()
            elif not rng.randrange(100):
                self._next()
                self._snapshot()
            elif not rng.randrange(30):
                self._next()
                self._delta()
                self.made.steps.append(self.made.steps[-1])  # a straggler changes nothing
            else:
                self._next()
                self._delta()
        return self.made

    def _next(self) -> None:
        self._u += 1
        self._ms += self._rng.randint(1, 30)

    def _told(self) -> None:
        bids, asks = (side.levels() for side in self._sides)
        book = Book(self._u, self._ms, bids, asks, new=True)
        self._expect.depth(self.made, book, (self._ms + 2) * 1000, self._ms * 1000)

    def _push(self, type: str, bids: list[Level], asks: list[Level]) -> None:
        data = book_data(self._symbol, self._u, bids, asks)
        ts, cts = self._ms + 2, self._ms
        self.made.steps.append(push(self._product, self._topic, type, ts, data, cts))

    def _snapshot(self) -> None:
        self._push("snapshot", *(side.levels() for side in self._sides))
        self._told()

    def _delta(self) -> None:
        self._push("delta", *(side.change() for side in self._sides))
        self._told()

    def _restart(self) -> None:
        self._u, self._ms = 1, self._ms + 1
        for side in self._sides:
            side.change()
        self._snapshot()
        self.made.resets += 1

    def _hole(self) -> None:
        """Updates that nobody gets; what follows is refused until the subscription is renewed."""
        last = self._u
        for _ in range(self._rng.randint(1, 3)):
            self._next()
            for side in self._sides:
                side.change()
        for _ in range(3):
            self._next()
            self._push("delta", *(side.change() for side in self._sides))
        self._subscriptions += 1
        self.made.steps.append(resubscribed(self._topic, self._subscriptions))
        self._next()
        self._snapshot()
        self.made.lost += self._u - last - 1


def depths(rng: random.Random, product: str, symbol: str, count: int) -> Channel:
    return Depths(rng, product, symbol).write(count)


def resubscribed(topic: str, times: int) -> Callable[[Client], None]:
    def wait(client: Client) -> None:
        client.until(lambda: client.seen[topic] >= times and topic in client.topics)

    return wait


def deals(rng: random.Random, product: str, symbol: str, count: int) -> Channel:
    made, expect = Channel(), Expect(symbol, PRODUCT_TYPES[product])
    venue_symbol, spot = VENUE_SYMBOLS.get(symbol, symbol), product == "spot"
    for message in trades(
        rng,
        made,
        count,
        first_id=2_290_000_001_190_010_739,
        first_ms=T0,
        most=4,
        large=1024,
        reset=spot,
    ):
        ts = message[-1].ms + 1
        data = []
        for trade in message:
            name = str(trade.id)
            if not spot:
                name = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{product}/{symbol}/{trade.id}"))
                trade = replace(trade, id=xxhash.xxh64(name.encode(), seed=0).intdigest())
            expect.trade(made, trade, ts * 1000, trade.ms * 1000)
            data.append(deal_data(rng, venue_symbol, name, trade, spot))
        topic = f"publicTrade.{venue_symbol}"
        made.steps.append(push(product, topic, "snapshot", ts, data))
    if not spot:
        made.lost = made.healed = 0  # such ids prove nothing
    return made


def deal_data(
    rng: random.Random, symbol: str, name: str, trade: Trade, spot: bool
) -> dict[str, object]:
    taker = "Sell" if trade.sell else "Buy"
    flags: dict[str, object] = {"BT": not rng.randrange(9), "RPI": not rng.randrange(9)}
    if not rng.randrange(4):
        flags = {}  # older frames
    if spot:
        fields: dict[str, object] = {"i": name, "T": trade.ms, "p": trade.price, "v": trade.size}
        return {**fields, "S": taker, "seq": 2**53 + trade.ms, "s": symbol, **flags}
    fields = {"T": trade.ms, "s": symbol, "S": taker, "v": trade.size, "p": trade.price}
    return {**fields, "L": "PlusTick", "i": name, **flags, "seq": 2**53 + trade.ms}


class Feeding:
    """Sends a client all that it subscribed, then waits for its pings."""

    def __init__(self, products: list[Product]) -> None:
        self.done = threading.Semaphore(0)
        self._channels = {
            (product.name or product.section): {
                f"{TOPICS[kind]}.{VENUE_SYMBOLS.get(symbol, symbol)}": made
                for kind, channels in product.channels.items()
                for symbol, made in channels.items()
            }
            for product in products
        }

    def __call__(self, client: Client) -> None:
        product = client.path.rpartition("/")[2]
        channels = self._channels[product]
        client.until(lambda: sorted(client.topics) == sorted(channels))
        rng = random.Random(product + client.headers["sec-websocket-key"])
        send(client, mixed(rng, channels.values()), rng)
        client.settle()
        client.until(lambda: client.seen["ping"] >= 2)
        self.done.release()


def test_the_stores_hold_what_was_sent(tmp_path: Path) -> None:
    rng, count = random.Random(11), 1500
    makers = {"bbo": quotes, "trade": deals, "depth5": depths}
    made = [
        Product(
            "futures" if product == "linear" else product,
            {
                kind: {s: make(rng, product, s, count) for s in symbols}
                for kind, make in makers.items()
            },
            lines=LINES[product],
            refused=REFUSED[product],
            name=product,
        )
        for product, symbols in SYMBOLS.items()
    ]
    feeding = Feeding(made)
    venue = PlainVenue(feeding, answer)
    endpoints = {product: venue.url(f"/v5/public/{product}") for product in SYMBOLS}
    try:
        play(
            tmp_path,
            made,
            feeding.done,
            sum(LINES.values()),
            exchange="bybit",
            endpoints=endpoints,
            ping_interval_sec=0.2,
        )
    finally:
        venue.close()
