"""One slot of an arbiter on a clock that the test moves, and the far ends of its lines."""

from __future__ import annotations

from dataclasses import dataclass, field

from k4.core import layout
from k4.core.enums import Kind
from k4.core.limits import Limits
from k4.core.records import Bookticker, Depth5, Record, Trade
from k4.core.ring import RingWriter
from k4.md.arbiter import Arbiter
from k4.md.feed import Channel, Ids, Reset
from k4.md.port import Port

SECOND = 1_000_000_000
MS = 1_000_000
START = 1_790_000_000 * SECOND


class Venue:
    """The far end of a line: answers `after_ns` after it was asked, never where that is None. Full:
    the line may not send now."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.after_ns: int | None = 50 * MS
        self.full = False
        self.over = False
        self.asked: list[int] = []
        self.answered_ns = START  # it is known to answer

    def ask(self) -> bool:
        if not self.full:
            self.asked.append(self.bench.now)
        return not self.full

    def answer(self) -> None:
        """What time it is for."""
        if self.after_ns is not None:
            due = [at for at in self.asked if at + self.after_ns <= self.bench.now]
            self.answered_ns = max(due, default=self.answered_ns)


@dataclass
class Bench:
    """One slot of one kind, fed by ports, on a clock that the test moves."""

    kind: Kind
    ids: Ids
    reset: Reset = Reset.SILENCE
    lines: int = 2
    size: int = 4096
    now: int = START
    resets: int = 0
    ports: list[Port] = field(default_factory=list)
    venues: list[Venue] = field(default_factory=list)
    answering: bool = False
    symbols: tuple[str, ...] = ("BTCUSDT",)

    def __post_init__(self) -> None:
        self.ring = RingWriter.in_memory(self.kind, self.symbols, self.size)
        self.arbiter = self.made()

    def made(self) -> Arbiter:
        channels = [
            Channel(
                slot=i << 2 | self.kind,
                kind=self.kind,
                symbol=symbol,
                topic="t",
                ids=self.ids,
                reset=self.reset,
            )
            for i, symbol in enumerate(self.symbols)
        ]
        arbiter = Arbiter(
            product_type=0,
            symbols=self.symbols,
            channels=channels,
            rings={self.kind: self.ring},
            limits=Limits(),
            shared=self.lines > 1,
            now_ns=self.now,
            on_reset=lambda slot: setattr(self, "resets", self.resets + 1),
        )
        self.venues = [Venue(self) for _ in range(self.lines if self.answering else 0)]
        self.ports = [
            arbiter.port(
                f"line{i}", lambda event: None, peer=self.venues[i] if self.venues else None
            )
            for i in range(self.lines)
        ]
        for port in self.ports:
            port.serving_ns = self.now
        return arbiter

    def restart(self) -> None:
        """A new process attaches to the same store."""
        self.ring = RingWriter(self.ring.buffer, self.kind)
        self.arbiter = self.made()

    def quote(self, line: int, id: int, us: int = 0, price: float = 0.0, symbol: int = 0) -> None:
        port = self.ports[line]
        port.now = self.now
        slot = symbol << 2 | Kind.BOOKTICKER
        port.bbo(slot, id, us, us, price or float(id), 1.0, id + 1.0, 1.0, 0, 0)

    def trade(self, line: int, id: int, us: int = 0, first: int = -1, key: object = None) -> None:
        port = self.ports[line]
        port.now = self.now
        first = id if first < 0 else first
        port.trade(Kind.TRADE, id, first, us, us, float(id), 1.0, False, key)

    def book(self, line: int, id: int, *levels: tuple[float, float], us: int = 0) -> None:
        port = self.ports[line]
        port.now = self.now
        port.depth(Kind.DEPTH5, id, us, us, levels, levels[:1])

    def wait(self, seconds: float, heard: bool = True) -> None:
        """Time passes, and the arbiter is looked after as the engine does. heard: all lines bring
        something of other instruments meanwhile.
        """
        for _ in range(round(seconds * 10)):
            self.now += SECOND // 10
            if heard:
                for port in self.ports:
                    port.now = self.now
            for venue in self.venues:
                venue.answer()
            self.arbiter.tick(self.now)

    def reset_in_quiet(self, *lines: int) -> None:
        """All lines at 1000; then nothing, and 5 and 6 on some lines, 1.5 s from each other."""
        for line in range(self.lines):
            self.quote(line, 1000)
        self.wait(30.0, heard=False)
        for id in (5, 6):
            self.wait(1.5, heard=False)
            for line in lines:
                self.quote(line, id)

    def records(self) -> list[Record]:
        lane = self.ring.lanes[0]
        assert lane.next <= lane.size, "the ring is too small for this test"
        unpack = layout.LAYOUTS[self.kind].unpack
        return [unpack(self.ring.buffer, lane.base + i * lane.stride) for i in range(lane.next)]

    def published(self) -> list[int]:
        found = []
        for record in self.records():
            assert isinstance(record, Bookticker | Trade | Depth5)
            found.append(record.trade_id if isinstance(record, Trade) else record.update_id)
        return found


def quotes(**options: object) -> Bench:
    return Bench(Kind.BOOKTICKER, Ids.NEWEST, **options)  # type: ignore[arg-type]


def trades(ids: Ids = Ids.CONSECUTIVE, **options: object) -> Bench:
    return Bench(Kind.TRADE, ids, **options)  # type: ignore[arg-type]
