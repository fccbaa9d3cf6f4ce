"""What happens on a venue's channels, with what a store must hold afterwards. It knows nothing of
K4: figures are made as decimal text, expectations by `Decimal` and integers.

Traffic is seeded and has every trouble that the venues' protocols know: repeats, messages that are
older than the last, resets, empty sides, late, lost and repeated trades, batches.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from decimal import Decimal
from itertools import chain

from plain_venue import Client, ws_frame

Level = tuple[str, str, int]  # price, size, orders
Record = tuple[object, ...]
Step = bytes | Callable[[Client], None]

RESET_MS = 2000  # a smaller id proves a reset when its time is newer by more than this


@dataclass
class Channel:
    """The messages of one subscription in order, and the records that must come of them.

    A step that is a function is called with the client after all that is before it was sent.
    resets, lost, healed: what the ledger must say.
    """

    steps: list[Step] = field(default_factory=list)
    expected: list[Record] = field(default_factory=list)
    resets: int = 0
    lost: int = 0
    healed: int = 0


# -- books -----------------------------------------------------------------------------------------


@dataclass
class Book:
    """One message of a channel that sends whole books. ms: the engine's time. first: data of a
    generation begins with it. new: its id says that it is newer than all before."""

    id: int
    ms: int
    bids: list[Level]
    asks: list[Level]
    new: bool
    first: bool = False


def decimal(rng: random.Random, units: int, places: int) -> str:
    """`units` of the last decimal place; sometimes with a trailing zero more, as some venues do."""
    text = f"{Decimal(units).scaleb(-places):f}"
    return text + "0" if places and not rng.randrange(20) else text


def side(
    rng: random.Random, best: int, step: int, depth: int, places: int, orders: bool
) -> list[Level]:
    """Up to `depth` levels, best first; seldom fewer, or none."""
    count = rng.choice((0, 1, depth - 1)) if not rng.randrange(16) else depth
    return [
        (
            decimal(rng, best + step * i * rng.randint(1, 9), places),
            decimal(rng, rng.randint(1, 10**9), rng.randint(0, 8)),
            rng.randint(1, 500) if orders else 0,
        )
        for i in range(max(0, count))
    ]


def books(
    rng: random.Random,
    count: int,
    *,
    depth: int,
    first_id: int,
    first_ms: int,
    resets: Iterable[tuple[int, int]],
    places: int = 2,
    orders: bool = False,
    step: int = 100,
) -> Iterator[Book]:
    """`count` books, the resets spread over them: each an id, and ms after the newest time."""
    id, ms, mid = first_id, first_ms, rng.randint(10**5, 10**7)
    bids: list[Level] = []
    asks: list[Level] = []
    old: tuple[int, int] | None = None  # the last id and time of the generation before
    due = list(resets)
    slack = min((RESET_MS, *(jump - 1 for _, jump in due)))  # still older than what a reset brings
    at = [count * (i + 1) // (len(due) + 1) for i in range(len(due))]
    for i in range(count):
        below = side(rng, mid - 1, -1, depth, places, orders)
        above = side(rng, mid + 1, 1, depth, places, orders)
        chance = rng.random()
        if i in at:
            old = id, ms
            id, jump = due.pop(0)
            ms += jump
            bids, asks = below, above
            yield Book(id, ms, bids, asks, new=True, first=True)
            yield Book(id, ms, bids, asks, new=False)  # and once more
        elif i and chance < 0.08:
            yield Book(id, ms, bids, asks, new=False)  # an idle repeat
        elif i and chance < 0.12:  # an older one; a little newer by its time proves nothing
            newer = rng.randint(0, slack) if rng.randrange(2) else -rng.randint(1, 1000)
            older = max(0, id - rng.randint(1, 9))
            yield Book(0 if older == 1 else older, ms + newer, below, above, new=False)
        elif old is not None and chance < 0.16:  # of the generation before
            yield Book(old[0] + rng.randint(0, 9), old[1], below, above, new=False)
        else:
            id += rng.randint(1, step)
            ms += rng.choice((1, 1, 3, 20)) if old else rng.choice((0, 1, 3, 20))
            if chance > 0.2:  # else the id moves and the levels do not
                mid += rng.randint(-5, 5)
                bids, asks = below, above
            yield Book(id, ms, bids, asks, new=True, first=not i)


class Expect:
    """Makes the records of one instrument. Times in microseconds."""

    def __init__(self, symbol: str, product_type: int) -> None:
        self._head = (symbol.encode().ljust(32, b"\0"), product_type)
        self._top: object = None

    def quote(self, channel: Channel, book: Book, event_us: int, trade_us: int) -> None:
        if not book.new:
            return
        nothing = ("0", "0", 0)
        bid, bid_vol, bid_orders = book.bids[0] if book.bids else nothing
        ask, ask_vol, ask_orders = book.asks[0] if book.asks else nothing
        figures = [number(text) for text in (bid, bid_vol, ask, ask_vol)]
        record = (*self._head, event_us, trade_us, book.id, *figures, bid_orders, ask_orders)
        channel.expected.append(record)

    def depth(self, channel: Channel, book: Book, event_us: int, trade_us: int) -> None:
        """Books that show what the last published one showed are not published."""
        sides = (book.bids[:5], book.asks[:5])
        figures = [
            [number(text) for text in texts] + [0.0] * (5 - len(texts))
            for levels in sides
            for texts in ([level[0] for level in levels], [level[1] for level in levels])
        ]
        orders = [[level[2] for level in levels] + [0] * (5 - len(levels)) for levels in sides]
        top = (len(sides[0]), len(sides[1]), 0.0, *chain(*figures), *chain(*orders))
        if book.new and top != self._top:
            self._top = top
            channel.expected.append((*self._head, event_us, trade_us, book.id, *top))

    def trade(self, channel: Channel, trade: Trade, event_us: int, trade_us: int) -> None:
        if trade.new:
            figures = (number(trade.price), number(trade.size), int(trade.sell))
            record = (*self._head, event_us, trade_us, trade.id, *figures)
            channel.expected.append(record)


def number(text: str) -> float:
    return float(Decimal(text))


# -- trades ----------------------------------------------------------------------------------------


@dataclass
class Trade:
    """One trade, or `count` of them with consecutive ids, of which `id` is the last."""

    id: int
    count: int
    ms: int
    price: str
    size: str
    sell: bool
    new: bool = True


def trades(
    rng: random.Random,
    channel: Channel,
    messages: int,
    *,
    first_id: int,
    first_ms: int,
    most: int,
    large: int,
    merged: int = 1,
    step: int = 1,
    reset: bool = True,
) -> Iterator[list[Trade]]:
    """Messages of one or more trades, oldest first, mostly of 1 to `most`, now and then of `large`.

    merged: how many ids a trade may cover. step: how far ids may jump where they are not
    consecutive; then nothing is counted as lost. reset: whether ids begin anew in the middle. The
    channel is told what the ledger must say.
    """
    ids, ms = first_id, first_ms
    sent: list[list[Trade]] = []
    held: list[Trade] | None = None
    unproved = 0  # ids that were left out since the last message
    moves: tuple[int, ...] = (0, 0, 1, 30)

    def make() -> Trade:
        nonlocal ids, ms
        count = rng.randint(1, merged)
        ids += rng.randint(1, step) if step > 1 else count
        ms += rng.choice(moves)
        price, size = rng.randint(1, 10**7), rng.randint(1, 10**9)
        places = rng.randint(0, 8)
        return Trade(
            ids, count, ms, decimal(rng, price, 2), decimal(rng, size, places), rng.random() < 0.5
        )

    for i in range(messages):
        chance = rng.random()
        if reset and i == messages // 2:
            held, unproved, moves = None, 0, (1, 1, 2, 30)
            ids, ms = 10, ms + RESET_MS + 1
            channel.resets += 1
            sent.append([Trade(ids, 1, ms, "1.5", "2", False)])
            yield sent[-1]
        elif sent and chance < 0.06:  # the same trades once more, before or after the reset
            yield [replace(trade, new=False) for trade in rng.choice(sent)]
        elif held is not None and not unproved and chance < 0.3:  # late, but in the window
            if step == 1:
                channel.healed += sum(trade.count for trade in held)
                channel.lost -= sum(trade.count for trade in held)
            sent.append(held)
            yield held
            held = None
        else:
            size = large if not rng.randrange(messages // 3) else rng.randint(1, most)
            message = [make() for _ in range(size)]
            if i and chance > 0.94:  # never sent, or kept back
                if held is None and chance > 0.96:
                    held = message
                unproved += sum(trade.count for trade in message)
            else:
                channel.lost += unproved if step == 1 else 0
                unproved = 0
                sent.append(message)
                yield message
    channel.lost += unproved if step == 1 else 0
    yield [make()]  # so that what was lost before it shows


# -- sending ---------------------------------------------------------------------------------------


def mixed(rng: random.Random, channels: Iterable[Channel]) -> Iterator[Step]:
    """The channels' steps in a random order that keeps each channel's own; first their firsts."""
    queues = [iter(channel.steps) for channel in channels]
    for queue in queues:
        yield next(queue)
    while queues:
        queue = rng.choice(queues)
        for _ in range(rng.randint(1, 40)):
            step = next(queue, None)
            if step is None:
                queues.remove(queue)
                break
            yield step


def send(client: Client, steps: Iterable[Step], rng: random.Random) -> None:
    """Send frames in writes of many sizes, cut anywhere."""
    buffer, most = bytearray(), 60_000

    def flush() -> None:
        cut = rng.randint(0, len(buffer))
        client.send(bytes(buffer[:cut]), bytes(buffer[cut:]))
        buffer.clear()

    for step in steps:
        if callable(step):
            flush()
            step(client)
        else:
            buffer += ws_frame(step)
        if len(buffer) >= most:
            flush()
            most = rng.choice((200, 2_000, 60_000))
    flush()
