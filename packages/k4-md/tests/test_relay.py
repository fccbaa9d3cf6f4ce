"""The udp module on loopback: from datagrams to named stores, and what it counts on the way."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest

from k4.core import layout, wire
from k4.core.config import (
    Address,
    ConnectionConfig,
    ReceiverStore,
    Secret,
    UdpReceiver,
    UdpTarget,
)
from k4.core.counters import MemoryCounters
from k4.core.enums import Kind, ProductType, Venue
from k4.core.errors import ConfigError, K4Error, StoreBusy
from k4.core.records import AggTrade, Bookticker, Depth5, Record, Trade
from k4.core.shm import ShmMdReader, ShmMdStore
from k4.core.testing import ManualClock
from k4.core.udp import UdpSender
from k4.md.relay import UdpModule

PREFIX = f"k4test_relay_{os.getpid()}_"
SPOT, UBASE, SWAP = ProductType.SPOT, ProductType.U_MARGIN, ProductType.FUTURES


def names(section: str) -> Mapping[Kind, str]:
    return {kind: f"{PREFIX}{section}_{kind.label}" for kind in Kind}


def section(name: str, *symbols: str) -> ReceiverStore:
    """The original's split."""
    return ReceiverStore(
        exchange="", product_type=None, section=name, symbols=symbols, stores=names(name)
    )


def entry(exchange: str, product_type: int, *symbols: str) -> ReceiverStore:
    stores = {Kind.BOOKTICKER: f"{PREFIX}{exchange}_{product_type}_bbo"}
    return ReceiverStore(
        exchange=exchange, product_type=product_type, section="", symbols=symbols, stores=stores
    )


def quote(id: int, symbol: str = "BTCUSDT", product: int = SPOT) -> Bookticker:
    return Bookticker(symbol, product, id * 1000, 0, id, 1.0, 2.0, 3.0, 4.0, 5, 6, id * 1000 + 7)


def trade(id: int, symbol: str = "BTCUSDT", product: int = SPOT) -> Trade:
    return Trade(symbol, product, id * 1000, id * 1000, id, 1.5, 2.5, 1, id * 1000 + 7)


def agg(id: int) -> AggTrade:
    return AggTrade("BTCUSDT", SPOT, id * 1000, id * 1000, id, id, id, 1.5, 2.5, 1, 0, id * 1000)


def book(id: int) -> Depth5:
    five = (float(id), 1.0, 2.0, 3.0, 4.0)
    counts = (1, 2, 3, 4, 5)
    return Depth5(
        "BTCUSDT", SPOT, id * 1000, 0, id, 5, 5, 0.0, five, five, five, five, counts, counts, id
    )


KINDS: dict[type[Record], Kind] = {
    Bookticker: Kind.BOOKTICKER,
    Trade: Kind.TRADE,
    AggTrade: Kind.AGGTRADE,
    Depth5: Kind.DEPTH5,
}


class Host:
    """A receiving host on manual time, and senders that reach it over loopback."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.counters = MemoryCounters(clock=self.clock)
        self.modules: list[UdpModule] = []
        self.senders: list[UdpSender] = []

    async def up(
        self, *stores: ReceiverStore, key: Secret | None = None, md_size: int = 64
    ) -> UdpModule:
        config = ConnectionConfig(
            exchange="udp",
            md_size=md_size,
            udp_receiver=UdpReceiver(listen=(Address("127.0.0.1", 0),), stores=stores, key=key),
        )
        module = UdpModule(config, clock=self.clock, counters=self.counters)
        await module.prepare()
        module.start()
        self.modules.append(module)
        return module

    def sender(
        self, venue: int = Venue.BINANCE, session: int = 1, key: Secret | None = None
    ) -> UdpSender:
        (to,) = self.modules[-1].addresses
        target = UdpTarget(ip=to.ip, port=to.port, enabled=True, key=key)
        loop = asyncio.get_running_loop()
        sender = UdpSender((target,), venue, self.clock, loop.call_soon, session)
        sender.open()
        self.senders.append(sender)
        return sender

    async def send(self, sender: UdpSender, *records: Record) -> None:
        """Send, and wait until the module has everything that was sent."""
        for record in records:
            kind = KINDS[type(record)]
            packed = memoryview(layout.LAYOUTS[kind].pack(record))
            sender.publish(kind, record.product_type, packed)
        sender.flush()
        await self.drained()

    async def drained(self) -> None:
        """Loopback delivers within the send: what was sent is read within the next turns."""
        for _ in range(5):
            await asyncio.sleep(0)

    def rows(self, type: str) -> list[tuple[dict[str, str], dict[str, int]]]:
        self.clock.advance(0.25)
        return [(row.labels, row.values) for row in self.counters.rows() if row.type == type]

    async def down(self) -> None:
        for sender in self.senders:
            sender.close()
        self.senders.clear()
        for module in self.modules:
            await module.stop()
            await module.stop()
        self.modules.clear()


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    host = Host()
    yield host
    await host.down()
    remove_stores()


def remove_stores() -> None:
    for path in Path("/dev/shm").glob(f"{PREFIX}*"):
        path.unlink()


def stored(name: str, symbol: str = "BTCUSDT") -> list[Record]:
    """Everything in a store, by a reader of its own."""
    reader = ShmMdReader(name)
    try:
        kind = layout.LAYOUTS[reader.kind]
        return [kind.unpack(record.tobytes()) for record in reader.since(symbol, 0).records]
    finally:
        reader.close()


def ids(name: str, symbol: str = "BTCUSDT") -> list[int]:
    return [
        record.trade_id if isinstance(record, Trade) else record.update_id  # type: ignore[union-attr]
        for record in stored(name, symbol)
    ]


async def test_every_kind_arrives_as_it_was_sent(host: Host) -> None:
    await host.up(section("spot", "BTCUSDT"))
    sent: dict[Kind, list[Record]] = {
        kind: [make(i) for i in range(1, 40)]  # type: ignore[operator]
        for kind, make in zip(Kind, (quote, trade, agg, book), strict=True)
    }
    sender = host.sender()
    for records in sent.values():
        await host.send(sender, *records)

    for kind, records in sent.items():
        assert stored(f"{PREFIX}spot_{kind.label}") == records


async def test_product_type_0_goes_to_spot_and_any_other_to_ubase(host: Host) -> None:
    await host.up(section("spot", "BTCUSDT"), section("ubase", "BTCUSDT", "ETHUSDT"))
    sender = host.sender()
    await host.send(
        sender,
        quote(1),
        quote(2, product=UBASE),
        quote(3, "ETHUSDT", ProductType.USDT_FUTURES),
    )

    assert ids(f"{PREFIX}spot_bbo") == [1]
    assert ids(f"{PREFIX}ubase_bbo") == [2]
    assert ids(f"{PREFIX}ubase_bbo", "ETHUSDT") == [3]


async def test_an_entry_of_stores_comes_before_the_split(host: Host) -> None:
    await host.up(
        section("ubase", "BTCUSDT", "ETHUSDT"), entry("okx", SWAP, "BTCUSDT"), entry("okx", 0, "X")
    )
    okx, binance = host.sender(Venue.OKX), host.sender(Venue.BINANCE)
    await host.send(okx, quote(1, product=SWAP), quote(2, "ETHUSDT", SWAP), quote(9, "X"))
    await host.send(binance, quote(3, product=UBASE))

    assert ids(f"{PREFIX}okx_1_bbo") == [1]
    assert ids(f"{PREFIX}ubase_bbo") == [3]
    assert ids(f"{PREFIX}ubase_bbo", "ETHUSDT") == [2]
    assert ids(f"{PREFIX}okx_0_bbo", "X") == [9]


async def test_a_second_venue_for_one_symbol_is_told_counted_and_not_published(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    await host.up(section("spot", "BTCUSDT", "ETHUSDT"))
    await host.send(host.sender(Venue.BINANCE), quote(1))
    okx = host.sender(Venue.OKX)

    await host.send(okx, quote(2), quote(3), quote(4, "ETHUSDT"))

    assert ids(f"{PREFIX}spot_bbo") == [1]
    assert ids(f"{PREFIX}spot_bbo", "ETHUSDT") == [4]
    ((_, values),) = host.rows("stream")
    assert (values["conflicts"], values["published"]) == (2, 2)
    (told,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert told["level"] == "error"
    assert told["symbol"] == "BTCUSDT"
    assert (told["filled_by"], told["refused"]) == (
        "binance product type 0",
        "okx product type 0",
    )


async def test_what_belongs_nowhere_is_counted(host: Host) -> None:
    await host.up(entry("okx", SPOT, "BTCUSDT"))
    await host.send(host.sender(Venue.OKX), quote(1, "DOGEUSDT"), trade(2))
    await host.send(host.sender(Venue.BITGET), quote(3))

    ((_, values),) = host.rows("stream")
    assert (values["unknown_symbols"], values["unwanted"], values["published"]) == (1, 2, 0)
    assert ids(f"{PREFIX}okx_0_bbo") == []


async def test_two_gateways_complement_each_other(host: Host) -> None:
    await host.up(section("spot", "BTCUSDT"))
    one, two = host.sender(session=1), host.sender(session=2)
    await host.send(one, trade(1), trade(2), quote(1), quote(4))
    await host.send(two, trade(2), trade(3), quote(2), quote(5))
    await host.send(one, trade(4), quote(5), quote(6))

    assert ids(f"{PREFIX}spot_trade") == [1, 2, 3, 4]
    assert ids(f"{PREFIX}spot_bbo") == [1, 4, 5, 6]


async def test_each_session_and_source_has_its_row(host: Host) -> None:
    secret = Secret("between us")
    module = await host.up(section("spot", "BTCUSDT"), key=secret)
    await host.send(host.sender(session=77, key=secret), *map(quote, range(1, 21)))
    (to,) = module.addresses
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as forger:
        for data in (b"", b"x" * 40, _forged(None), _forged(Secret("guess"))):
            forger.sendto(data, (to.ip, to.port))
    await host.drained()

    assert ids(f"{PREFIX}spot_bbo") == list(range(1, 21))
    assert host.rows("udp") == [
        (
            {"channel": "256", "session": "77"},
            {"received": 20, "accepted": 20, "duplicate": 0, "reordered": 0, "stale": 0, "lost": 0},
        )
    ]
    assert host.rows("udp_source") == [
        ({"address": "127.0.0.1"}, {"malformed": 2, "unauthorised": 2})
    ]
    assert {"type": "udp_source", "address": "127.0.0.1", "malformed": 2, "unauthorised": 2} in (
        module.receipt()
    )


async def test_a_full_table_of_counters_is_told_once_and_stops_nothing(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    host.counters = MemoryCounters(rows=1, clock=host.clock)
    module = await host.up(section("spot", "BTCUSDT"))
    await host.send(host.sender(session=77), quote(1), quote(2))
    assert len(host.rows("stream")) == 1
    assert host.rows("udp") == []
    assert ids(f"{PREFIX}spot_bbo") == [1, 2]
    (session,) = (row for row in module.receipt() if row["type"] == "udp")
    assert session["accepted"] == 2
    assert isinstance(session["channel"], int)
    assert isinstance(session["session"], int)
    (told,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert (told["level"], told["event"]) == (
        "error",
        "figures are left out of the shared counters",
    )


def _forged(key: Secret | None) -> bytes:
    datagram = wire.Datagram(0x100, 1472, wire.Key(key) if key else None)
    datagram.append(memoryview(layout.LAYOUTS[Kind.BOOKTICKER].pack(quote(999))))
    return bytes(datagram.seal(1, 77, ManualClock().time_ns()))


async def test_a_restart_goes_on_where_the_store_stands(host: Host) -> None:
    await host.up(section("spot", "BTCUSDT"))
    await host.send(host.sender(), trade(1), trade(2), quote(1), quote(2))
    reader = ShmMdReader(f"{PREFIX}spot_trade")
    await host.down()

    await host.up(section("spot", "BTCUSDT"))
    await host.send(host.sender(session=2), trade(2), trade(3), quote(2), quote(3))

    assert [record["trade_id"] for record in reader.since("BTCUSDT", 0).records] == [1, 2, 3]
    assert ids(f"{PREFIX}spot_bbo") == [1, 2, 3]
    reader.close()


async def test_a_sender_restart_after_a_reset_is_not_silenced(host: Host) -> None:
    await host.up(section("spot", "BTCUSDT"))
    before = host.sender(session=1)
    await host.send(before, quote(5000))
    before.close()

    after = host.sender(session=2)
    for id in (1, 2):
        us = 9_000_000 + id  # the former quote's is 5,000,000
        await host.send(after, Bookticker("BTCUSDT", 0, us, 0, id, 1.0, 1.0, 2.0, 1.0, 0, 0, us))

    assert ids(f"{PREFIX}spot_bbo") == [5000, 1, 2]
    reader = ShmMdReader(f"{PREFIX}spot_bbo")
    assert reader.generation("BTCUSDT") == 1
    reader.close()


async def test_datagrams_overtake_each_other_by_symbol(host: Host) -> None:
    """A symbol's reset comes behind a later quote of another one; then what was before it."""
    module = await host.up(section("spot", "BTCUSDT", "ETHUSDT"))
    channel = wire.channel_id(Venue.BINANCE, SPOT, Kind.BOOKTICKER)
    line = module._open_session(channel, 1)
    assert line is not None
    for sequence, symbol, id in (
        (0, "BTCUSDT", 1000),
        (4, "ETHUSDT", 70),
        (2, "BTCUSDT", 5),
        (1, "BTCUSDT", 1001),
        (3, "BTCUSDT", 6),
    ):
        record = Bookticker(symbol, SPOT, 0, 0, id, 1.0, 1.0, 2.0, 1.0, 0, 0, id)
        packed = layout.LAYOUTS[Kind.BOOKTICKER].pack(record)
        line.records(sequence, memoryview(packed), host.clock.time_ns())

    assert ids(f"{PREFIX}spot_bbo") == [1000, 5, 6]
    assert ids(f"{PREFIX}spot_bbo", "ETHUSDT") == [70]
    assert {"resets": 1, "stale": 1}.items() <= host.rows("stream")[0][1].items()


async def test_a_quiet_market_and_a_dead_sender_differ(host: Host) -> None:
    await host.up(section("spot", "BTCUSDT"))
    reader = ShmMdReader(f"{PREFIX}spot_bbo")
    sender = host.sender()
    await host.send(sender, quote(1))
    for _ in range(40):  # ten seconds of heartbeats
        host.clock.advance(0.25)
        await host.drained()
    quiet_ns = host.clock.time_ns()
    assert quiet_ns - reader.feed_ok_ns < 1_000_000_000
    assert (reader.lines_up, reader.lines_configured) == (1, 1)

    sender.close()
    host.clock.advance(10)

    assert 1_000_000_000 < reader.feed_ok_ns - quiet_ns < 3_500_000_000
    assert (reader.lines_up, reader.lines_configured) == (0, 1)
    assert host.clock.time_ns() - reader.heartbeat_ns < 1_000_000_000
    reader.close()


async def test_a_port_in_use_leaves_no_store_locked(host: Host) -> None:
    first = await host.up(section("spot", "BTCUSDT"))
    config = ConnectionConfig(
        exchange="udp",
        md_size=64,
        udp_receiver=UdpReceiver(listen=first.addresses, stores=(section("ubase", "BTCUSDT"),)),
    )
    second = UdpModule(config, clock=host.clock)

    with pytest.raises(K4Error, match="cannot receive datagrams"):
        await second.prepare()

    with ShmMdStore(f"{PREFIX}ubase_bbo", Kind.BOOKTICKER, ["BTCUSDT"], 64):
        pass


async def test_a_second_receiver_of_the_same_stores_is_refused(host: Host) -> None:
    await host.up(section("spot", "BTCUSDT"))
    with pytest.raises(StoreBusy):
        await host.up(section("spot", "BTCUSDT"))


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda: ConnectionConfig(exchange="udp"), "udp_receiver"),
        (
            lambda: ConnectionConfig(
                exchange="udp",
                udp_receiver=UdpReceiver(listen=(), stores=()),
                udp_sender=(UdpTarget(ip="127.0.0.1", port=1, enabled=True),),
            ),
            "udp_sender",
        ),
    ],
)
def test_what_a_receiver_cannot_do_is_refused(
    make: Callable[[], ConnectionConfig], path: str
) -> None:
    with pytest.raises(ConfigError, match=path):
        UdpModule(make(), clock=ManualClock())
