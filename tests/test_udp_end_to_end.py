"""Market data from host to host over a bad network: every record is stored or counted, exactly.

In one process with paths whose losses are known, and between processes, in network namespaces of
their own where this user may make them (the losses are netem's where the kernel has it).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import udp_peer as peer

from k4.core import wire
from k4.core.clock import SystemClock
from k4.core.config import (
    Address,
    ConnectionConfig,
    ProductConfig,
    ReceiverStore,
    Secret,
    UdpReceiver,
    UdpTarget,
)
from k4.core.counters import CountersReader, MemoryCounters
from k4.core.enums import Kind, ProductType, Venue
from k4.core.retry import LocalBudget
from k4.core.session_window import SessionWindow
from k4.core.shm import ShmMdReader
from k4.core.testing import ManualClock
from k4.core.testing.lossy import LossyPath
from k4.core.udp import UdpSender
from k4.md.module import MdModule
from k4.md.relay import UdpModule
from k4.runner.sim.market import Pace
from k4.runner.sim.venue import VenueSpec
from k4.runner.sim.venues import SimSpec, SimVenues

PEER = Path(peer.__file__)
PREFIX = f"k4test_udp_{os.getpid()}_"
COUNT = 3000


@pytest.fixture(autouse=True)
def _no_store_is_left() -> Iterator[None]:
    yield
    for path in Path("/dev/shm").glob(f"*{PREFIX}*"):
        path.unlink()


class Outlet:
    """Where a sender sends: a plain socket whose datagrams the test carries on."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.setblocking(False)
        ip, port = self.socket.getsockname()
        self.target = UdpTarget(ip=ip, port=port, enabled=True)

    def datagrams(self) -> Iterator[bytes]:
        with contextlib.suppress(BlockingIOError):
            while True:
                yield self.socket.recv(65_536)


class Hosts:
    """Gateway A's sender and gateway B's receiver with lossy paths between them."""

    def __init__(self, key: Secret | None = None) -> None:
        self.clock = ManualClock()
        stores = ReceiverStore(
            exchange="binance",
            product_type=peer.PRODUCT,
            section="",
            symbols=(peer.SYMBOL,),
            stores={kind: PREFIX + kind.label for kind in Kind},
        )
        self.config = ConnectionConfig(
            exchange="udp",
            md_size=COUNT * 2,
            udp_receiver=UdpReceiver(listen=(Address("127.0.0.1", 0),), stores=(stores,), key=key),
        )
        self.module = UdpModule(self.config, clock=self.clock)
        self.out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.outlets: list[Outlet] = []
        self.senders: list[UdpSender] = []

    async def up(self) -> None:
        await self.module.prepare()
        self.module.start()

    async def down(self) -> None:
        for sender in self.senders:
            sender.close()
        for outlet in self.outlets:
            outlet.socket.close()
        self.out.close()
        await self.module.stop()

    def sender(self, paths: int, session: int) -> tuple[UdpSender, list[Outlet]]:
        outlets = [Outlet() for _ in range(paths)]
        call_soon = asyncio.get_running_loop().call_soon
        sender = UdpSender(
            [outlet.target for outlet in outlets], Venue.BINANCE, self.clock, call_soon, session
        )
        sender.open()
        self.senders.append(sender)
        self.outlets += outlets
        return sender, outlets

    async def deliver(self, datagrams: list[bytes]) -> None:
        (to,) = self.module.addresses
        for datagram in datagrams:
            self.out.sendto(datagram, (to.ip, to.port))
        await asyncio.sleep(0)

    async def run(self, routes: list[tuple[UdpSender, list[tuple[Outlet, LossyPath]]]]) -> None:
        """Publish everything through all routes, then let heartbeats show what came last."""
        for id in range(1, COUNT + 1):
            for sender, _ in routes:
                for kind in Kind:
                    sender.publish(kind, peer.PRODUCT, peer.packed(kind, id))
            if id % 7 == 0 or id == COUNT:
                for sender, _ in routes:
                    sender.flush()
                await self.carry(routes)
        for _, paths in routes:
            for _, path in paths:
                await self.deliver(path.flush())
        self.clock.advance(1.25)
        for _, paths in routes:
            for outlet, _ in paths:
                await self.deliver(list(outlet.datagrams()))
        for _ in range(20):
            await asyncio.sleep(0)

    async def carry(self, routes: list[tuple[UdpSender, list[tuple[Outlet, LossyPath]]]]) -> None:
        for _, paths in routes:
            for outlet, path in paths:
                for datagram in outlet.datagrams():
                    await self.deliver(path.carry(datagram))

    def window(self, kind: Kind, session: int) -> SessionWindow:
        channel = wire.channel_id(Venue.BINANCE, peer.PRODUCT, kind)
        return self.module._receiver.sessions[channel, session].window

    @property
    def stale(self) -> int:
        (stream, *_) = self.module.receipt()
        return int(stream["stale"])


SECRET = Secret("between us")


@pytest.fixture
async def hosts() -> AsyncIterator[Hosts]:
    hosts = Hosts()
    await hosts.up()
    yield hosts
    await hosts.down()


@pytest.fixture
async def keyed_hosts() -> AsyncIterator[Hosts]:
    hosts = Hosts(SECRET)
    await hosts.up()
    yield hosts
    await hosts.down()


def numbers(kind: Kind, datagrams: list[bytes]) -> set[int]:
    """The sequences of the records of `kind` in these datagrams."""
    found: set[int] = set()
    for datagram in datagrams:
        header = wire.parse(memoryview(datagram), None, 0)
        assert isinstance(header, wire.Header)
        if header.kind == kind:
            found.update(range(header.sequence, header.sequence + header.records))
    return found


def stored_ids(kind: Kind) -> list[int]:
    """The ids in B's store, in order, every record checked against what A published."""
    name = {Kind.TRADE: "trade_id", Kind.AGGTRADE: "agg_trade_id"}.get(kind, "update_id")
    reader = ShmMdReader(PREFIX + kind.label)
    batch = reader.since(peer.SYMBOL, 0)
    reader.close()
    assert batch.lost == 0
    ids = [int(record[name]) for record in batch.records]
    assert all(
        record.tobytes() == peer.packed(kind, id)
        for record, id in zip(batch.records, ids, strict=True)
    )
    return ids


def assert_stores_hold(delivered: dict[Kind, set[int]]) -> None:
    """Trades: all that was delivered. Quotes and books: rising, up to the newest delivered."""
    for kind, ids in delivered.items():
        stored = stored_ids(kind)
        if kind in (Kind.TRADE, Kind.AGGTRADE):
            assert sorted(stored) == sorted(ids)
        else:
            assert stored == sorted(set(stored))
            assert set(stored) <= ids
            assert stored[-1] == max(ids)


async def test_over_a_lossy_path_every_record_is_stored_or_counted(hosts: Hosts) -> None:
    sender, (outlet,) = hosts.sender(1, session=7)
    path = LossyPath(1, loss=0.01, duplicate=0.01, reorder=0.01)
    await hosts.run([(sender, [(outlet, path)])])

    assert path.dropped
    assert path.repeated
    assert path.delayed
    delivered, accepted, reordered = {}, 0, 0
    for kind in Kind:
        lost, repeated = numbers(kind, path.dropped), numbers(kind, path.repeated)
        window = hosts.window(kind, 7)
        assert window.accepted + window.lost == COUNT
        assert (window.lost, window.duplicate) == (len(lost), len(repeated))
        assert window.received == window.accepted + window.duplicate
        assert window.reordered <= len(numbers(kind, path.delayed))
        reordered += window.reordered
        delivered[kind] = set(range(1, COUNT + 1)) - lost
        accepted += window.accepted
    assert reordered > 0
    assert_stores_hold(delivered)
    assert sum(len(stored_ids(kind)) for kind in Kind) + hosts.stale == accepted


async def test_of_two_paths_only_what_both_lost_is_lost(hosts: Hosts) -> None:
    sender, outlets = hosts.sender(2, session=7)
    paths = [LossyPath(seed, loss=0.05, duplicate=0.01, reorder=0.01) for seed in (1, 2)]
    await hosts.run([(sender, list(zip(outlets, paths, strict=True)))])

    delivered, both_lost = {}, 0
    for kind in Kind:
        one, two = (numbers(kind, path.dropped) for path in paths)
        window = hosts.window(kind, 7)
        assert window.lost == len(one & two) < min(len(one), len(two))
        assert window.accepted == COUNT - len(one & two)
        delivered[kind] = set(range(1, COUNT + 1)) - (one & two)
        both_lost += len(one & two)
    assert both_lost > 0
    assert_stores_hold(delivered)


async def test_two_gateways_with_sessions_of_their_own_lose_only_what_both_lost(
    hosts: Hosts,
) -> None:
    routes, paths = [], []
    for session in (1, 2):
        sender, (outlet,) = hosts.sender(1, session)
        paths.append(LossyPath(session, loss=0.05))
        routes.append((sender, [(outlet, paths[-1])]))
    await hosts.run(routes)

    delivered = {}
    for kind in Kind:
        lost = [numbers(kind, path.dropped) for path in paths]
        for session in (1, 2):
            assert hosts.window(kind, session).lost == len(lost[session - 1])
        delivered[kind] = set(range(1, COUNT + 1)) - (lost[0] & lost[1])
    assert_stores_hold(delivered)


async def test_forged_and_unauthorized_datagrams_change_nothing_and_are_counted(
    keyed_hosts: Hosts,
) -> None:
    hosts = keyed_hosts
    key = wire.Key(SECRET)
    channel = wire.channel_id(Venue.BINANCE, peer.PRODUCT, Kind.TRADE)

    def datagram(id: int, by: wire.Key | None, age_s: int = 0) -> bytes:
        made = wire.Datagram(channel, 1472, by)
        made.append(peer.packed(Kind.TRADE, id))
        return bytes(made.seal(id, 7, hosts.clock.time_ns() - age_s * 10**9))

    await hosts.deliver([datagram(1, key), datagram(2, key)])
    sound = datagram(3, key)
    forged = [
        datagram(3, None),
        datagram(3, wire.Key(Secret("guess"))),
        datagram(3, key, age_s=31),
        sound[:8] + b"\x09" + sound[9:],  # another sequence under an old tag
    ]
    malformed = [
        b"",
        sound[:40],
        sound + b"\0",
        b"\0" + sound[1:],
        sound[:99] + b"\1" + sound[100:],
    ]
    await hosts.deliver(forged + malformed)
    for _ in range(5):
        await asyncio.sleep(0)

    assert stored_ids(Kind.TRADE) == [1, 2]
    (source,) = [row for row in hosts.module.receipt() if row["type"] == "udp_source"]
    assert source["unauthorised"] == len(forged)
    assert source["malformed"] == len(malformed)
    (session,) = [row for row in hosts.module.receipt() if row["type"] == "udp"]
    assert (session["received"], session["lost"]) == (2, 0)


async def test_the_next_hosts_stores_equal_the_gateways_byte_for_byte(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A simulated venue, a gateway with two lines, and a receiver that a strategy reads instead."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kinds = (Kind.BOOKTICKER, Kind.TRADE, Kind.DEPTH5)
    clock, counters = SystemClock(), MemoryCounters(clock=SystemClock())
    names = {kind: f"{PREFIX}far_{kind.label}" for kind in kinds}
    symbols = ("BTCUSDT", "ETHUSDT")
    far = UdpModule(
        ConnectionConfig(
            exchange="udp",
            md_size=4096,
            udp_receiver=UdpReceiver(
                listen=(Address("127.0.0.1", 0),),
                stores=(
                    ReceiverStore(
                        exchange="okx",
                        product_type=ProductType.FUTURES,
                        section="",
                        symbols=symbols,
                        stores=names,
                    ),
                ),
                key=SECRET,
            ),
        ),
        clock=clock,
        counters=counters,
    )
    await far.prepare()
    far.start()
    (to,) = far.addresses
    venue = VenueSpec(
        name="okx", products={"swap": symbols}, pace=Pace(start=False), cadence_scale=10.0
    )
    async with SimVenues(SimSpec(venues=(venue,), seed=3)) as venues:
        near = MdModule(
            ConnectionConfig(
                exchange="okx",
                md_size=4096,
                endpoints={key: (url,) for key, url in venues.endpoints("okx").items()},
                products=(
                    ProductConfig(
                        name="swap",
                        symbols=symbols,
                        lines=2,
                        stores={kind: f"{PREFIX}near_{kind.label}" for kind in kinds},
                    ),
                ),
                udp_sender=(UdpTarget(ip=to.ip, port=to.port, enabled=True, key=SECRET),),
            ),
            ["swap"],
            clock=clock,
            counters=counters,
            budget=LocalBudget(3, 1.0),
            rng=random.Random(1),
        )
        await near.prepare()
        near.start()
        async with asyncio.timeout(10):
            while sum(len(c.topics) for c in venues.server("okx").clients) < 12:  # noqa: ASYNC110
                await asyncio.sleep(0)
        for _ in range(40):
            venues.emit("okx", 25)
            assert await venues.settle()
        await near.stop()
    for _ in range(50):
        await asyncio.sleep(0)
    await far.stop()

    for kind in kinds:
        a, b = ShmMdReader(f"{PREFIX}near_{kind.label}"), ShmMdReader(names[kind])
        for symbol in symbols:
            sent, arrived = a.since(symbol, 0).records, b.since(symbol, 0).records
            assert len(sent) > 5
            assert sent.tobytes() == arrived.tobytes()
        a.close()
        b.close()


# Between processes.


class Network:
    """Two hosts A and B with a bad path from A to B: network namespaces with a pair of virtual
    interfaces where this user may make them, else loopback.

    address: where B's side listens. lossy: the path itself loses (netem).
    """

    def __init__(self) -> None:
        self.names = {host: f"k4test{os.getpid()}{host}" for host in "ab"}
        self.separate = self._make()
        self.address = "10.75.52.2" if self.separate else "127.0.0.1"
        self.lossy = self.separate and self._spoil()

    def command(self, host: str, *argv: str) -> list[str]:
        inside = ["ip", "netns", "exec", self.names[host]] if self.separate else []
        return [*inside, *argv]

    def close(self) -> None:
        for name in self.names.values():
            _does("ip", "netns", "del", name)

    def _make(self) -> bool:
        a, b = self.names["a"], self.names["b"]
        commands = [
            f"ip netns add {a}",
            f"ip netns add {b}",
            f"ip link add k4a netns {a} type veth peer name k4b netns {b}",
            f"ip -n {a} addr add 10.75.52.1/24 dev k4a",
            f"ip -n {b} addr add 10.75.52.2/24 dev k4b",
            f"ip -n {a} link set k4a up",
            f"ip -n {b} link set k4b up",
            f"ip -n {b} link set lo up",
        ]
        return all(_does(*command.split()) for command in commands)

    def _spoil(self) -> bool:
        netem = "tc qdisc add dev k4a root netem loss 1% duplicate 1% delay 2ms 1ms limit 100000"
        return _does(*self.command("a", *netem.split()))


def _does(*argv: str) -> bool:
    """Whether a command exists and succeeds."""
    try:
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.fixture
def network() -> Iterator[Network]:
    network = Network()
    yield network
    network.close()


@contextlib.contextmanager
def running(argv: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has said that it is ready (or, a sender, that it has sent)."""
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline().strip() in (b"ready", b"sent")
        yield process
    finally:
        process.stdin.close()
        try:
            process.wait(10)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def udp_rows(name: str) -> list[dict[str, int]]:
    with CountersReader(name) as counters:
        return [row.values for row in counters.rows() if row.type == "udp"]


def test_between_two_hosts_every_record_is_stored_or_counted(network: Network) -> None:
    counters = f"{PREFIX}receiver"
    port, inner = free_port(), free_port()
    with contextlib.ExitStack() as stack:

        def start(host: str, *args: str) -> None:
            argv = network.command(host, sys.executable, str(PEER), *args)
            stack.enter_context(running(argv))

        if network.lossy:
            start("b", "receive", counters, PREFIX, f"{network.address}:{port}")
        else:
            start("b", "receive", counters, PREFIX, f"127.0.0.1:{inner}")
            start("b", "path", "5", f"{network.address}:{port}", f"127.0.0.1:{inner}")
        start("a", "send", str(COUNT), "7", f"{network.address}:{port}")

        deadline = time.monotonic() + 30
        rows: list[dict[str, int]] = []
        while time.monotonic() < deadline:
            rows = udp_rows(counters)
            if len(rows) == 4 and all(r["accepted"] + r["lost"] == COUNT for r in rows):
                break
            time.sleep(0.1)

        for row in rows:
            assert row["accepted"] + row["lost"] == COUNT
            assert row["received"] == row["accepted"] + row["duplicate"] + row["stale"]
        for figure in ("lost", "duplicate", "reordered"):
            assert sum(row[figure] for row in rows) > 0, figure
        by_kind = {kind: stored_ids(kind) for kind in Kind}
        accepted = sorted(row["accepted"] for row in rows)
        trades = [len(by_kind[kind]) for kind in (Kind.TRADE, Kind.AGGTRADE)]
        assert all(count in accepted for count in trades)
        with CountersReader(counters) as reader:
            (stream,) = [row.values for row in reader.rows() if row.type == "stream"]
        assert sum(map(len, by_kind.values())) == stream["published"]
        assert stream["published"] + stream["stale"] == sum(accepted)
        for kind in (Kind.BOOKTICKER, Kind.DEPTH5):
            assert by_kind[kind] == sorted(set(by_kind[kind]))
