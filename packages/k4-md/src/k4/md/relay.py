"""The `udp` module: datagrams in, stores out, as if the venue's sockets were on this host.

`k4.core.udp_receiver` accounts for the datagrams and hands on first copies; here they find their
store and pass arbitration (`relayed.py`).

A store's `feed_ok_ns` says when a session that feeds it was last heard; senders heartbeat once a
second, so that a quiet market does not look dead. Whether the sender's own lines to the venue live
is known on the sender's host alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from k4.core import layout, wire
from k4.core.clock import Clock, Timer
from k4.core.config import Address, ConnectionConfig, ReceiverStore
from k4.core.counters import Counters, Row
from k4.core.enums import Kind, ProductType, Venue
from k4.core.errors import ConfigError, K4Error, Problem
from k4.core.limits import Limits
from k4.core.log import get_logger
from k4.core.records import SYMBOL_BYTES
from k4.core.shm import ShmMdStore
from k4.core.udp_receiver import ReceivedSession, SessionSink, UdpReceiver
from k4.md.arbiter import Arbiter
from k4.md.exchanges import find
from k4.md.feed import slot_of
from k4.md.port import Port
from k4.md.relayed import LIVE_NS, Cell, Owner, RelayedPort
from k4.md.slots import Slot

TICK = 0.25

UDP_FIELDS = ("received", "accepted", "duplicate", "reordered", "stale", "lost")
NUMBERS = ("channel", "session")  # labels that are
SOURCE_FIELDS = ("malformed", "unauthorised")
STREAM_FIELDS = (
    "published",
    "duplicates",
    "stale",
    "gaps",
    "lost",
    "resets",
    "too_late",
    "conflicts",
    "unknown_symbols",
    "unwanted",
    "refused",
    "evicted",
)

Cells = dict[bytes, Cell]  # by symbol, NUL-padded as in a record


class Shelf:
    """The stores of one entry of the configuration, and the lines that feed them."""

    def __init__(self, config: ReceiverStore, venue: int) -> None:
        self.config = config
        self.venue = venue
        self.stores: dict[Kind, ShmMdStore] = {}
        self.cells: dict[tuple[Kind, str], Cell] = {}
        self.most_lines = 1

    def takes(self, venue: int, product_type: int) -> bool:
        """Whether a channel's records belong here."""
        if self.config.section:
            return (product_type == ProductType.SPOT) == (self.config.section == "spot")
        return venue == self.venue and product_type == self.config.product_type


class Line(SessionSink):
    """One (channel, session): finds the cell of every record and offers it to arbitration."""

    def __init__(self, module: UdpModule, channel: int, session: int, cells: Cells) -> None:
        venue, product_type, kind = wire.split_channel(channel)
        self.owner: Owner = venue, product_type
        self.cells = cells
        self.port = RelayedPort(module.arbiter, f"{channel}.{session}")
        self._module = module
        self._size = layout.LAYOUTS[Kind(kind)].size
        self._newest = [-1] * len(module.arbiter.slots)  # sequence, by slot

    def records(self, sequence: int, records: memoryview, received_ns: int) -> None:
        """First copies, in the order of their sequences."""
        size, cells, owner, port = self._size, self.cells, self.owner, self.port
        newest = self._newest
        port.now = received_ns
        for number, at in enumerate(range(0, len(records), size), sequence):
            record = records[at : at + size]
            cell = cells.get(bytes(record[:SYMBOL_BYTES]))
            if cell is None:
                self._module.unknown_symbols += 1
                continue
            slot = cell.slot
            if slot is None:
                slot = self._claim(cell, record, received_ns)
            elif cell.owner != owner:
                self._module.conflict(cell, owner)
                continue
            in_order = number > newest[slot.slot]
            if in_order:
                newest[slot.slot] = number
            port.offer(cell, slot, record, in_order)

    def _claim(self, cell: Cell, record: memoryview, now_ns: int) -> Slot:
        has_time = any(record[40:56])
        return cell.claim(self._module.arbiter, self.owner, has_time, now_ns)

    def closed(self) -> None:
        """The session is over."""
        self._module.drop_line(self)


class UdpModule:
    """A worker's receiver of UDP market data (see `k4.core.module.Module`).

    counters: where its rows go, None for nowhere. addresses: what it is bound to, once prepared.
    """

    def __init__(
        self, config: ConnectionConfig, *, clock: Clock, counters: Counters | None = None
    ) -> None:
        """Raises ConfigError for what a receiver cannot do."""
        if config.udp_receiver is None:
            raise ConfigError([Problem(f"{config.path}.udp_receiver", "missing")])
        if any(target.enabled for target in config.udp_sender):
            raise ConfigError(
                [Problem(f"{config.path}.udp_sender", "a receiver does not send on what it got")]
            )
        self.name = config.module_name or "udp"
        self.addresses: tuple[Address, ...] = ()
        self.unknown_symbols = 0
        self._config = config
        self._clock = clock
        self._counters = counters
        self._shelves = [Shelf(s, _venue_code(s)) for s in config.udp_receiver.stores]
        self._receiver = UdpReceiver(config.udp_receiver, self._open_session, clock)
        self._routes: dict[int, Cells] = {}
        self._retired = {"published": 0, "duplicates": 0, "stale": 0}
        self._rows: dict[tuple[str, ...], Row] = {}
        self._full = False
        self._timer: Timer | None = None
        self._log = get_logger("k4.md.relay")
        self.arbiter = self._make_arbiter()

    # Life.

    async def prepare(self) -> None:
        """Make the stores and bind the sockets. Raises K4Error."""
        try:
            number = 0
            for shelf in self._shelves:
                for kind, name in shelf.config.stores.items():
                    self._make_store(shelf, kind, name, number)
                number += len(shelf.config.symbols)
            self.addresses = self._receiver.bind()
        except BaseException:
            self._close_stores()
            raise

    def start(self) -> None:
        self._receiver.start()
        self._tick()

    async def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._receiver.close()
        if self._counters is not None and not self._counters.closed:
            self._report(self._counters)
        self._close_stores()

    def receipt(self) -> list[dict[str, Any]]:
        """The stream's figures, then one object per session and per source of unusable
        datagrams.
        """
        return [
            {
                "type": type,
                **{name: int(text) if name in NUMBERS else text for name, text in labels.items()},
                **dict(zip(fields, values, strict=True)),
            }
            for type, labels, fields, values in self._figures()
        ]

    # Routing.

    def _open_session(self, channel: int, session: int) -> SessionSink | None:
        cells = self._routes.get(channel)
        if cells is None:
            cells = self._route(channel)
            if not cells:
                return None
            self._routes[channel] = cells
        line = Line(self, channel, session, cells)
        self.arbiter.ports.append(line.port)
        self._log.info("session", channel=channel, session=session)
        return line

    def _route(self, channel: int) -> Cells:
        """By symbol: entries of `stores` come first, then the original's spot and ubase."""
        venue, product_type, kind = wire.split_channel(channel)
        cells: Cells = {}
        for shelf in sorted(self._shelves, key=lambda shelf: bool(shelf.config.section)):
            if not shelf.takes(venue, product_type):
                continue
            for symbol in shelf.config.symbols:
                cell = shelf.cells.get((Kind(kind), symbol))
                if cell is not None:
                    cells.setdefault(layout.encode_symbol(symbol).ljust(SYMBOL_BYTES, b"\0"), cell)
        return cells

    def conflict(self, cell: Cell, owner: Owner) -> None:
        """A record of another venue or product than the one that fills the cell."""
        cell.conflicts += 1
        if cell.conflicts == 1:
            self._log.error(
                "second source for one store and symbol: not published",
                store=cell.store,
                symbol=cell.symbol,
                filled_by=_owner_text(cell.owner),
                refused=_owner_text(owner),
                remedy="give each venue stores of its own in udp_receiver.stores",
            )

    def drop_line(self, line: Line) -> None:
        """Keep the totals of a session that is over."""
        if line.port in self.arbiter.ports:
            self.arbiter.ports.remove(line.port)
            for name, value in _totals(line.port).items():
                self._retired[name] += value

    # Stores.

    def _make_arbiter(self) -> Arbiter:
        symbols = [symbol for shelf in self._shelves for symbol in shelf.config.symbols]
        return Arbiter(
            product_type=0,
            symbols=symbols,
            channels=(),
            rings={},
            limits=Limits(),
            shared=False,
            now_ns=self._clock.time_ns(),
            on_reset=lambda slot: self._log.warning(
                "sequence reset", store=slot.channel.topic, symbol=slot.channel.symbol
            ),
        )

    def _make_store(self, shelf: Shelf, kind: Kind, name: str, number: int) -> None:
        symbols = shelf.config.symbols
        store = ShmMdStore(
            name,
            kind,
            symbols,
            self._config.md_size,
            mode=self._config.shm_mode,
            clock=self._clock,
        )
        shelf.stores[kind] = store
        for i, symbol in enumerate(symbols):
            lane = store.ring.lanes[i]
            shelf.cells[kind, symbol] = Cell(kind, symbol, name, lane, slot_of(number + i, kind))

    def _close_stores(self) -> None:
        for shelf in self._shelves:
            for store in shelf.stores.values():
                store.close()
            shelf.stores.clear()

    # What time decides, what others see.

    def _tick(self) -> None:
        self._timer = self._clock.call_later(TICK, self._tick)
        now_ns = self._clock.time_ns()
        for session in self._receiver.sessions.values():
            if isinstance(session.sink, Line):
                session.sink.port.heard_ns = session.last_ns
        self.arbiter.tick(now_ns)
        for shelf in self._shelves:
            self._beat(shelf, now_ns)
        if self._counters is not None:
            self._report(self._counters)

    def _beat(self, shelf: Shelf, now_ns: int) -> None:
        heard = dict.fromkeys(shelf.stores, 0)
        for session in self._receiver.sessions.values():
            if now_ns - session.last_ns >= LIVE_NS:
                continue
            venue, product_type, kind = wire.split_channel(session.channel)
            if shelf.takes(venue, product_type) and kind in heard:
                heard[Kind(kind)] += 1
        for kind, store in shelf.stores.items():
            store.heartbeat()
            shelf.most_lines = max(shelf.most_lines, heard[kind])
            store.lines(heard[kind], shelf.most_lines)
            if heard[kind]:
                store.feed_ok(now_ns)

    def _report(self, counters: Counters) -> None:
        current: set[tuple[str, ...]] = set()
        for type, labels, fields, values in self._figures():
            identity = type, *labels.values()
            current.add(identity)
            if identity not in self._rows:
                try:
                    self._rows[identity] = counters.row(type, labels, fields)
                except K4Error as error:  # datagrams are counted all the same, `receipt` shows them
                    if not self._full:
                        text = "figures are left out of the shared counters"
                        self._log.error(text, why=str(error))
                    self._full = True
                    continue
            self._rows[identity].write(values)
        for identity in self._rows.keys() - current:
            self._rows.pop(identity).release()

    def _figures(self) -> Iterator[tuple[str, dict[str, str], tuple[str, ...], list[int]]]:
        receiver = self._receiver
        yield "stream", {"name": self.name}, STREAM_FIELDS, self._stream_values()
        for session in receiver.sessions.values():
            labels = {"channel": str(session.channel), "session": str(session.session)}
            yield "udp", labels, UDP_FIELDS, _session_values(session)
        for address, source in receiver.sources.items():
            values = [source.malformed, source.unauthorized]
            yield "udp_source", {"address": address}, SOURCE_FIELDS, values

    def _stream_values(self) -> list[int]:
        receiver = self._receiver
        totals = dict(self._retired)
        for port in self.arbiter.ports:
            for name, value in _totals(port).items():
                totals[name] += value
        cells = [cell for shelf in self._shelves for cell in shelf.cells.values()]
        slots = [cell.slot for cell in cells if cell.slot is not None]
        totals |= {
            # Losses are the sessions'; ids prove none here, for what a sender skipped has no sign.
            "gaps": 0,
            "lost": 0,
            "resets": sum(slot.resets for slot in slots),
            "too_late": sum(slot.too_late for slot in slots),
            "conflicts": sum(cell.conflicts for cell in cells),
            "unknown_symbols": self.unknown_symbols,
            "unwanted": receiver.unwanted,
            "refused": receiver.refused,
            "evicted": receiver.evicted,
        }
        return [totals[name] for name in STREAM_FIELDS]


def _totals(port: Port) -> dict[str, int]:
    return {"published": port.wins, "duplicates": port.duplicates, "stale": port.stale}


def _session_values(session: ReceivedSession) -> list[int]:
    window = session.window
    return [
        window.received,
        window.accepted,
        window.duplicate,
        window.reordered,
        window.stale,
        window.lost,
    ]


def _venue_code(store: ReceiverStore) -> int:
    """The code of the exchange that an entry of `stores` names, 0 for the original's split."""
    if store.section:
        return 0
    known = {venue.name.lower(): int(venue) for venue in Venue}
    return known.get(store.exchange) or find(store.exchange).code


def _owner_text(owner: Owner | None) -> str:
    if owner is None:
        return ""
    names = {int(venue): venue.name.lower() for venue in Venue}
    return f"{names.get(owner[0], owner[0])} product type {owner[1]}"
