"""Both ends over real sockets on loopback, and the receiver's rules on datagrams given by hand."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from k4.core import udp_receiver, wire
from k4.core.clock import SystemClock
from k4.core.config import Address, Secret, UdpTarget
from k4.core.config import UdpReceiver as ReceiverConfig
from k4.core.counters import MemoryCounters
from k4.core.enums import Kind, ProductType, Venue
from k4.core.errors import ConfigError, K4Error, WireError
from k4.core.layout import LAYOUTS
from k4.core.records import Trade
from k4.core.testing import ManualClock
from k4.core.udp import UdpSender
from k4.core.udp_receiver import MAX_SESSIONS, UdpReceiver
from k4.core.wire import Datagram, Flaw, Key, channel_id

CHANNEL = channel_id(Venue.BINANCE, ProductType.SPOT, Kind.TRADE)
SECRET = Secret("between us")


def trade(trade_id: int) -> memoryview:
    record = Trade("BTCUSDT", 0, 11, 12, trade_id, 42000.5, 0.25, 1, 13)
    return memoryview(LAYOUTS[Kind.TRADE].pack(record))


def datagram(
    *ids: int, sequence: int, session: int = 7, channel: int = CHANNEL, key: Key | None = None
) -> memoryview:
    made = Datagram(channel, 1472, key)
    for trade_id in ids:
        made.append(trade(trade_id))
    return made.seal(sequence, session, ManualClock().time_ns())


class Collected:
    """What came through, per session: (sequence, trade ids) of each run."""

    def __init__(self, unwanted: int = 0) -> None:
        self.runs: dict[tuple[int, int], list[tuple[int, list[int]]]] = {}
        self.closed: list[int] = []
        self.unwanted = unwanted
        self.arrived = asyncio.Event()

    def open(self, channel: int, session: int) -> udp_receiver.SessionSink | None:
        return None if channel == self.unwanted else Collector(self, channel, session)

    @property
    def ids(self) -> list[int]:
        return [id for runs in self.runs.values() for _, ids in runs for id in ids]

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self.arrived.clear()
                await self.arrived.wait()


class Collector:
    def __init__(self, to: Collected, channel: int, session: int) -> None:
        self.to, self.key = to, (channel, session)

    def records(self, sequence: int, records: memoryview, received_ns: int) -> None:
        kind = Kind(self.key[0] & 15)
        size = LAYOUTS[kind].size
        ids = [
            int.from_bytes(records[at + 56 : at + 64], "little")
            for at in range(0, len(records), size)
        ]
        self.to.runs.setdefault(self.key, []).append((sequence, ids))
        self.to.arrived.set()

    def closed(self) -> None:
        self.to.closed.append(self.key[1])


class Receiving:
    """A receiver on manual time that gets its datagrams by hand."""

    def __init__(self, allow_from: tuple[str, ...] = (), key: Secret | None = None) -> None:
        self.clock = ManualClock()
        self.collected = Collected()
        config = ReceiverConfig(listen=(), stores=(), allow_from=allow_from, key=key)
        self.receiver = UdpReceiver(config, self.collected.open, self.clock)

    def take(self, data: memoryview, address: str = "127.0.0.1") -> None:
        self.receiver.take(data, address, self.clock.time_ns())

    def source(self, address: str = "127.0.0.1") -> tuple[int, int]:
        source = self.receiver.sources.get(address, udp_receiver.Source())
        return source.malformed, source.unauthorized


@pytest.fixture
def inbox() -> Iterator[socket.socket]:
    """A plain socket, as any other program would have."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        yield sock


def target(to: socket.socket, **options: object) -> UdpTarget:
    ip, port = to.getsockname()
    return UdpTarget(ip=ip, port=port, enabled=True, **options)  # type: ignore[arg-type]


def read_all(sock: socket.socket) -> list[bytes]:
    """What the kernel has already put into the socket (loopback delivers within the send)."""
    found = []
    while True:
        try:
            found.append(sock.recv(65_536))
        except BlockingIOError:
            return found


class Sending:
    """A sender on manual time whose event loop turns when the test says so."""

    def __init__(self, *targets: UdpTarget, session: int | None = 99) -> None:
        self.clock = ManualClock()
        self.calls: list[Callable[[], None]] = []
        self.sender = UdpSender(targets, Venue.BINANCE, self.clock, self.calls.append, session)
        self.sender.open()

    def publish(self, *ids: int) -> None:
        for trade_id in ids:
            self.sender.publish(Kind.TRADE, ProductType.SPOT, trade(trade_id))

    def turn(self) -> None:
        calls, self.calls[:] = list(self.calls), []
        for call in calls:
            call()

    def headers(self, sock: socket.socket, key: Key | None = None) -> list[wire.Header]:
        parsed = [wire.parse(memoryview(d), key, self.clock.time_ns()) for d in read_all(sock)]
        assert all(isinstance(header, wire.Header) for header in parsed)
        return [header for header in parsed if isinstance(header, wire.Header)]


# Sender.


def test_what_one_turn_brings_leaves_together_at_its_end(inbox: socket.socket) -> None:
    sending = Sending(target(inbox))
    sending.publish(1, 2, 3)
    assert read_all(inbox) == []
    assert len(sending.calls) == 1

    sending.turn()

    (data,) = read_all(inbox)
    assert data[32:] == b"".join(map(bytes, (trade(1), trade(2), trade(3))))
    sending.sender.close()


def test_a_full_datagram_leaves_at_once(inbox: socket.socket) -> None:
    sending = Sending(target(inbox))
    sending.publish(*range(16))  # 15 trades fill 1,472 bytes

    assert [(h.sequence, h.records) for h in sending.headers(inbox)] == [(1, 15)]

    sending.turn()
    assert [(h.sequence, h.records) for h in sending.headers(inbox)] == [(16, 1)]
    sending.sender.close()


def test_each_channel_counts_its_own_records(inbox: socket.socket) -> None:
    sending = Sending(target(inbox))
    sending.publish(1, 2)
    sending.sender.publish(Kind.TRADE, ProductType.U_MARGIN, trade(3))
    sending.turn()
    sending.publish(4)
    sending.turn()

    assert [(h.channel, h.sequence) for h in sending.headers(inbox)] == [
        (0x101, 1),
        (0x121, 1),
        (0x101, 3),
    ]
    sending.sender.close()


def test_an_idle_channel_beats_once_a_second_with_the_next_sequence(inbox: socket.socket) -> None:
    sending = Sending(target(inbox))
    sending.clock.advance(5)
    assert read_all(inbox) == []  # a channel that never sent has nothing to say

    sending.publish(1, 2)
    sending.turn()
    read_all(inbox)
    sending.clock.advance(10)

    beats = sending.headers(inbox)
    assert {(h.kind, h.channel, h.sequence, h.records) for h in beats} == {(101, 0x101, 3, 0)}
    assert 9 <= len(beats) <= 10
    sending.sender.close()


def test_a_busy_channel_does_not_beat(inbox: socket.socket) -> None:
    sending = Sending(target(inbox))
    for i in range(20):
        sending.publish(i)
        sending.turn()
        sending.clock.advance(0.5)

    assert {h.kind for h in sending.headers(inbox)} == {Kind.TRADE}
    sending.sender.close()


def test_a_heartbeat_never_overtakes_records_of_its_turn(inbox: socket.socket) -> None:
    sending = Sending(target(inbox, key=SECRET))
    sending.publish(1)
    sending.turn()
    sending.publish(2)
    sending.clock.advance(1.25)  # timers run before the end of the turn

    sending.turn()

    assert [(h.kind, h.sequence) for h in sending.headers(inbox, Key(SECRET))] == [(1, 1), (1, 2)]
    sending.sender.close()


def test_all_targets_get_the_same_sequences_in_their_own_format(inbox: socket.socket) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        other.setblocking(False)
        sending = Sending(target(inbox), target(inbox), target(other, mtu=400, key=SECRET))
        sending.publish(*range(7))
        sending.turn()

        first, second = read_all(inbox)
        assert first == second
        cut = sending.headers(other, Key(SECRET))
        assert [(h.sequence, h.records) for h in cut] == [(1, 3), (4, 3), (7, 1)]
        assert {h.session for h in cut} == {99}
        sending.sender.close()


def test_a_target_that_is_not_enabled_gets_nothing(inbox: socket.socket) -> None:
    ip, port = inbox.getsockname()
    sending = Sending(UdpTarget(ip=ip, port=port))
    sending.publish(1)
    sending.turn()

    assert read_all(inbox) == []
    assert sending.sender.paths == ()
    sending.sender.close()


def test_sessions_differ_between_starts() -> None:
    clock = ManualClock()
    assert len({UdpSender((), Venue.OKX, clock).session for _ in range(20)}) == 20


def test_a_missing_listener_is_counted_and_forgotten_when_it_comes(inbox: socket.socket) -> None:
    ip, port = inbox.getsockname()
    inbox.close()
    sending = Sending(UdpTarget(ip=ip, port=port, enabled=True))
    path = sending.sender.paths[0]
    for trade_id in range(4):
        sending.publish(trade_id)
        sending.turn()
    assert path.refused >= 1

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as late:
        late.bind((ip, port))
        late.setblocking(False)
        sending.publish(4)
        sending.turn()

        assert [h.sequence for h in sending.headers(late)] == [5]
    sending.sender.close()


def test_a_full_socket_buffer_is_counted_and_costs_its_sequence(
    inbox: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(socket.socket):
        """The kernel's answer while a buffer is full, which loopback never gives."""

        full = False

        def send(self, *args: object) -> int:
            if Full.full:
                raise BlockingIOError(11, "Resource temporarily unavailable")
            return super().send(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "socket", Full)
    sending = Sending(target(inbox))
    Full.full = True
    sending.publish(1, 2)
    sending.turn()
    Full.full = False
    sending.publish(3)
    sending.turn()

    assert sending.sender.paths[0].send_dropped == 1
    assert [h.sequence for h in sending.headers(inbox)] == [3]
    sending.sender.close()


def test_what_became_of_datagrams_is_in_the_counters(inbox: socket.socket) -> None:
    clock = ManualClock()
    counters = MemoryCounters(clock=clock)
    targets = (target(inbox), UdpTarget(ip="255.255.255.255", port=9, enabled=True))
    calls: list[Callable[[], None]] = []
    sender = UdpSender(targets, Venue.OKX, clock, calls.append, session=5, counters=counters)
    sender.open()
    sender.publish(Kind.TRADE, ProductType.SPOT, trade(1))
    sender.flush()
    clock.advance(0.25)

    rows = {row.labels["target"]: row.values for row in counters.rows()}
    ip, port = inbox.getsockname()
    assert rows[f"{ip}:{port}"] == {"sent": 1, "send_dropped": 0, "refused": 0, "failed": 0}
    assert rows["255.255.255.255:9"]["failed"] == 1

    sender.close()
    assert counters.rows() == []


def test_a_target_without_a_route_does_not_stop_the_others(inbox: socket.socket) -> None:
    unreachable = UdpTarget(ip="255.255.255.255", port=9, enabled=True)  # broadcast: EACCES
    sending = Sending(unreachable, target(inbox))
    sending.publish(1)
    sending.turn()

    assert sending.sender.paths[0].failed >= 1
    assert len(read_all(inbox)) == 1
    sending.sender.close()


def test_closing_sends_what_is_pending_and_nothing_after(inbox: socket.socket) -> None:
    sending = Sending(target(inbox))
    sending.publish(1)

    sending.sender.close()
    sending.sender.close()

    assert len(read_all(inbox)) == 1
    sending.turn()
    sending.clock.advance(5)
    assert read_all(inbox) == []


@pytest.mark.parametrize(
    ("made", "error"),
    [
        (UdpTarget(ip="nowhere", port=1, enabled=True), ConfigError),
        (UdpTarget(ip="127.0.0.1", port=1, enabled=True, mtu=300), WireError),
        (UdpTarget(ip="127.0.0.1", port=1, enabled=True, key=Secret("")), WireError),
    ],
)
def test_a_target_that_cannot_work_is_refused(made: UdpTarget, error: type[K4Error]) -> None:
    with pytest.raises(error):
        UdpSender((made,), Venue.BINANCE, ManualClock())


# Receiver.


def test_each_session_of_a_channel_is_accounted_for_by_itself() -> None:
    at = Receiving()
    at.take(datagram(1, 2, 3, sequence=1))
    at.take(datagram(2, 3, sequence=2, session=8))
    at.take(datagram(3, 4, sequence=3))
    at.take(datagram(9, sequence=9))

    one = at.receiver.sessions[CHANNEL, 7].window
    assert (one.received, one.accepted, one.duplicate, one.lost) == (6, 5, 1, 4)
    two = at.receiver.sessions[CHANNEL, 8].window
    assert (two.received, two.accepted, two.first) == (2, 2, 2)
    assert at.collected.runs == {
        (CHANNEL, 7): [(1, [1, 2, 3]), (4, [4]), (9, [9])],
        (CHANNEL, 8): [(2, [2, 3])],
    }


def test_a_heartbeat_shows_that_the_last_records_were_lost() -> None:
    at = Receiving()
    at.take(datagram(1, sequence=1))
    at.take(Datagram(CHANNEL, 1472).heartbeat(5, 7, 0))

    window = at.receiver.sessions[CHANNEL, 7].window
    assert (window.received, window.accepted, window.lost) == (1, 1, 3)


def test_what_is_malformed_or_forged_changes_nothing_and_is_counted() -> None:
    at = Receiving(key=SECRET)
    key = Key(SECRET)
    at.take(datagram(1, sequence=1, key=key))
    before = dict(at.collected.runs)

    at.take(datagram(666, sequence=2), "10.0.0.1")
    at.take(datagram(666, sequence=2, key=Key(Secret("guess"))), "10.0.0.1")
    at.take(memoryview(b"hello"), "10.0.0.2")
    at.clock.advance(31)
    at.take(datagram(2, sequence=2, key=key))

    assert at.collected.runs == before
    assert at.source("10.0.0.1") == (0, 2)
    assert at.source("10.0.0.2") == (1, 0)
    assert at.source("127.0.0.1") == (0, 1)
    assert at.receiver.flaws == {Flaw.TAG: 2, Flaw.SHORT: 1, Flaw.SEND_TIME: 1}


def test_only_listed_networks_are_heard() -> None:
    at = Receiving(allow_from=("10.1.0.0/16", "192.168.0.7", "fd00::/8"))
    for address in ("10.1.2.3", "192.168.0.7", "fd00::1"):
        at.take(datagram(1, sequence=1, session=1), address)
    for address in ("10.2.0.1", "192.168.0.8", "::1"):
        at.take(datagram(2, sequence=2, session=1), address)
        assert at.source(address) == (0, 1)

    assert at.collected.ids == [1]


def test_the_table_of_sources_is_bounded() -> None:
    at = Receiving()
    for i in range(udp_receiver.MAX_SOURCES + 50):
        at.take(memoryview(b""), f"10.0.{i // 256}.{i % 256}")

    assert len(at.receiver.sources) == udp_receiver.MAX_SOURCES + 1
    assert at.source(udp_receiver.OTHERS) == (50, 0)


def test_a_flood_of_sessions_does_not_displace_one_that_speaks() -> None:
    at = Receiving()
    for session in range(MAX_SESSIONS):
        at.take(datagram(session, sequence=1, session=session))
    at.take(datagram(1000, sequence=1, session=1000))
    assert (at.receiver.refused, at.receiver.evicted) == (1, 0)

    at.clock.advance(6)
    at.take(datagram(1001, sequence=2, session=0))  # the first speaks again
    at.take(datagram(1000, sequence=1, session=1000))

    assert at.receiver.evicted == 1
    assert at.collected.closed == [1]  # the one that was silent for longest
    assert len(at.receiver.sessions) == MAX_SESSIONS
    assert at.collected.runs[CHANNEL, 0] == [(1, [0]), (2, [1001])]


def test_channels_are_bounded_and_unwanted_ones_keep_nothing() -> None:
    at = Receiving()
    at.collected.unwanted = CHANNEL
    at.take(datagram(1, sequence=1))
    assert (at.receiver.unwanted, at.receiver.sessions) == (1, {})

    wanted = [channel_id(venue, product, 1) for venue in range(5, 100) for product in range(8)]
    for channel in wanted[: udp_receiver.MAX_CHANNELS + 1]:
        at.take(datagram(1, sequence=1, channel=channel))

    assert len(at.receiver.sessions) == udp_receiver.MAX_CHANNELS
    assert at.receiver.refused == 1


@pytest.fixture
async def listening() -> AsyncIterator[tuple[UdpReceiver, Collected, tuple[Address, ...]]]:
    collected = Collected()
    local = Address("127.0.0.1", 0)
    config = ReceiverConfig(listen=(local, local), stores=())
    receiver = UdpReceiver(config, collected.open, SystemClock())
    addresses = receiver.bind()
    receiver.start()
    yield receiver, collected, addresses
    receiver.close()
    receiver.close()


async def test_two_paths_of_one_sender_complement_each_other(
    listening: tuple[UdpReceiver, Collected, tuple[Address, ...]],
) -> None:
    receiver, collected, addresses = listening
    targets = [UdpTarget(ip=a.ip, port=a.port, enabled=True) for a in addresses]
    sender = UdpSender(targets, Venue.BINANCE, SystemClock(), session=5)
    sender.open()
    for i in range(1000):
        sender.publish(Kind.TRADE, ProductType.SPOT, trade(i))
        if i % 40 == 0:
            await asyncio.sleep(0)
    sender.close()

    await collected.wait_for(lambda: receiver.sessions[CHANNEL, 5].window.received >= 2000)

    assert collected.ids == list(range(1000))
    window = receiver.sessions[CHANNEL, 5].window
    assert (window.accepted, window.duplicate, window.lost) == (1000, 1000, 0)


async def test_a_multicast_group_is_joined_on_the_given_interface() -> None:
    collected = Collected()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = ReceiverConfig(
        listen=(Address("239.75.52.1", port),), stores=(), multicast_interface="127.0.0.1"
    )
    receiver = UdpReceiver(config, collected.open, SystemClock())
    receiver.bind()
    receiver.start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        out.sendto(datagram(1, 2, sequence=1), ("239.75.52.1", port))

    await collected.wait_for(lambda: collected.ids == [1, 2])
    receiver.close()


async def test_a_port_in_use_is_an_error_that_says_what_to_do(
    listening: tuple[UdpReceiver, Collected, tuple[Address, ...]],
) -> None:
    config = ReceiverConfig(listen=(listening[2][0],), stores=())

    with pytest.raises(K4Error, match=r"cannot receive datagrams on 127\.0\.0\.1"):
        UdpReceiver(config, Collected().open, SystemClock()).bind()


@pytest.mark.parametrize(
    ("ip", "allow_from", "key", "warned"),
    [
        ("0.0.0.0", (), None, True),
        ("0.0.0.0", ("10.0.0.0/8",), None, False),
        ("0.0.0.0", (), SECRET, False),
        ("127.0.0.1", (), None, False),
    ],
)
async def test_a_receiver_open_to_everybody_is_warned_about(
    ip: str,
    allow_from: tuple[str, ...],
    key: Secret | None,
    warned: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = ReceiverConfig(listen=(Address(ip, 0),), stores=(), allow_from=allow_from, key=key)
    receiver = UdpReceiver(config, Collected().open, SystemClock())

    receiver.bind()

    receiver.close()
    assert ("takes prices from anybody" in capsys.readouterr().err) is warned


def test_a_network_that_is_none_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="allow_from"):
        Receiving(allow_from=("10.0.0.0/99",))
