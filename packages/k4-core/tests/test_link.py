"""A line's life on a manual clock against peers in memory, and once over real sockets."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k4.core.clock import SystemClock
from k4.core.limits import Keepalive, Limits
from k4.core.link import BACKOFF_CAP, CLOSE_TIMEOUT, STABLE, Link, LinkState, host_of
from k4.core.retry import Budget, LocalBudget, Unlimited
from k4.core.testing import ManualClock, MemoryPeer, MemoryTransport, ScriptedServer, ServerPeer
from k4.core.transport import TEXT, Closed, Dial, choose

FREE = Limits(messages=0)
ACK = b"ack"


class Owner:
    """Counts acks, notes everything, and does what a test tells it to."""

    def __init__(self) -> None:
        self.last_message_ns = 0
        self.calls: list[str] = []
        self.payloads: list[bytes] = []
        self.downs: list[tuple[Closed, float]] = []
        self.on_message: Callable[[Link, bytes], object] | None = None
        self.on_opened: Callable[[Link], object] | None = None
        self.on_up: Callable[[Link], object] | None = None
        self.on_down: Callable[[Link], object] | None = None
        self._link: Link | None = None

    def link_opened(self, link: Link, /) -> None:
        self._link = link
        self.calls.append("opened")
        if self.on_opened is not None:
            self.on_opened(link)

    def message(self, payload: bytes, received_ns: int, opcode: int, /) -> None:
        assert self._link is not None
        self.last_message_ns = received_ns
        self.payloads.append(payload)
        if payload == ACK:
            self._link.acked()
        if self.on_message is not None:
            self.on_message(self._link, payload)

    def link_up(self, link: Link, /) -> None:
        self.calls.append("up")
        if self.on_up is not None:
            self.on_up(link)

    def link_down(self, link: Link, how: Closed, retry_in: float, /) -> None:
        self.calls.append("down")
        self.downs.append((how, retry_in))
        if self.on_down is not None:
            self.on_down(link)


class Rig:
    """One link with its owner, its clock and its peers."""

    def __init__(
        self,
        script: Callable[[MemoryPeer], object] | None = None,
        *,
        hello: Sequence[bytes] = (b"subscribe",),
        acks: int = 0,
        limits: Limits = FREE,
        keepalive: Keepalive | None = None,
        budget: Budget | None = None,
        dials: Sequence[Dial] = (Dial(url="ws://venue.invalid/ws"),),
        seed: int = 7,
    ) -> None:
        self.clock = ManualClock()
        self.transport = MemoryTransport(self.clock, script)
        self.owner = Owner()
        self.link = Link(
            name="line",
            dials=dials,
            transport=self.transport,
            clock=self.clock,
            budget=budget or Unlimited(),
            hello=hello,
            acks=acks,
            limits=limits,
            keepalive=keepalive,
            owner=self.owner,
            rng=random.Random(seed),
        )

    @property
    def peer(self) -> MemoryPeer:
        return self.transport.peers[-1]

    @property
    def state(self) -> str:
        return self.link.state.value

    @property
    def down(self) -> Closed:
        return self.owner.downs[-1][0]

    def up(self) -> Rig:
        """Start, and be up."""
        self.link.start()
        self.clock.advance(0)
        for _ in range(self.link._acks_missing):
            self.peer.text(ACK)
        assert self.link.state is LinkState.UP
        return self


def mute(peer: MemoryPeer) -> None:
    """A peer that never answers the handshake."""


def acking(peer: MemoryPeer) -> None:
    """A peer that answers each request."""
    peer.on_text = lambda data: peer.text(ACK)
    peer.accept()


# The way up.


def test_way_up() -> None:
    rig = Rig(hello=[b"a", b"b"], acks=2)
    assert rig.state == "idle"
    rig.link.start()
    assert rig.state == "waiting"
    rig.clock.advance(0)
    assert rig.state == "subscribing"
    assert rig.peer.texts == [b"a", b"b"]
    rig.peer.text(ACK)
    assert rig.state == "subscribing"
    rig.clock.advance(3)
    rig.peer.text(ACK)
    assert rig.state == "up"
    assert rig.owner.calls == ["opened", "up"]
    assert (rig.link.since, rig.link.attempts, rig.link.opened_count) == (3.0, 1, 1)
    assert rig.link.remote == "memory"


@pytest.mark.parametrize("hello", [[], [b"a"], [b"a", b"b", b"c"]])
def test_without_acks_it_is_up_when_everything_is_sent(hello: list[bytes]) -> None:
    rig = Rig(hello=hello, acks=0)
    sent_when_up: list[int] = []
    rig.owner.on_up = lambda link: sent_when_up.append(len(rig.peer.texts))
    rig.up()
    assert sent_when_up == [len(hello)]


def test_what_the_owner_sends_on_opening_goes_before_the_hello() -> None:
    rig = Rig(hello=[b"subscribe"])
    rig.owner.on_opened = lambda link: link.send(b"set property")
    rig.up()
    assert rig.peer.texts == [b"set property", b"subscribe"]
    assert rig.owner.calls == ["opened", "up"]


def test_messages_reach_the_owner_with_their_time() -> None:
    rig = Rig().up()
    rig.clock.advance(1.5)
    rig.peer.text(b"data")
    assert rig.owner.payloads == [b"data"]
    assert rig.owner.last_message_ns == rig.clock.time_ns()


def test_the_transport_calls_the_owners_method_itself() -> None:
    rig = Rig().up()
    assert rig.peer._message == rig.owner.message


def test_tap_sees_a_message_first_from_the_next_connection_on() -> None:
    rig = Rig()
    seen: list[tuple[object, ...]] = []
    rig.link.tap = lambda *args: seen.append((*args, list(rig.owner.payloads)))
    rig.up()
    rig.peer.text(b"data")
    assert seen == [("line", rig.clock.time_ns(), TEXT, b"data", [])]
    assert rig.owner.payloads == [b"data"]


def test_starting_twice_is_a_mistake() -> None:
    rig = Rig().up()
    with pytest.raises(RuntimeError, match="line: started twice"):
        rig.link.start()
    with pytest.raises(ValueError, match="no dial"):
        Rig(dials=[])


def test_dials_rotate_over_attempts() -> None:
    dials = [
        Dial(url="ws://a.invalid/", address="10.0.0.1"),
        Dial(url="ws://a.invalid/", address="10.0.0.2"),
        Dial(url="ws://b.invalid/"),
    ]
    rig = Rig(MemoryPeer.fail, dials=dials)
    rig.link.start()
    rig.clock.advance(2.0)
    used = [peer.dial for peer in rig.transport.peers]
    assert len(used) > 4
    assert used == [dials[n % 3] for n in range(len(used))]


TWO_DIALS = (Dial(url="ws://a.invalid/"), Dial(url="ws://b.invalid/"))


@pytest.mark.parametrize("stable", [True, False])
def test_a_connection_that_was_up_is_made_again_where_it_was(stable: bool) -> None:
    """Lines are spread over the dials: one that is cut must not move to where its siblings are."""
    rig = Rig(MemoryPeer.accept, dials=TWO_DIALS).up()
    for _ in range(3 if stable else 1):
        rig.clock.advance(STABLE + 1.0 if stable else 1.0)
        rig.peer.fail("cut")
        rig.clock.advance(1.0)
        assert rig.link.state is LinkState.UP
    assert {peer.dial.url for peer in rig.transport.peers} == {"ws://a.invalid/"}
    assert rig.link.dial == TWO_DIALS[0]


def test_a_dial_whose_connections_do_not_last_is_left() -> None:
    rig = Rig(MemoryPeer.accept, dials=TWO_DIALS).up()
    for _ in range(3):
        rig.peer.fail("cut")
        rig.clock.advance(5.0)
    assert [peer.dial.url[5] for peer in rig.transport.peers] == ["a", "a", "b", "b"]


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("wss://Stream.Binance.com:9443/ws", "stream.binance.com:9443"),
        ("ws://127.0.0.1:81/x?y", "127.0.0.1:81"),
        ("wss://ws.okx.com/ws/v5/public", "ws.okx.com"),
    ],
)
def test_host_of(url: str, host: str) -> None:
    assert host_of(url) == host


# Deadlines.


def test_handshake_deadline() -> None:
    """Half of what the limits say, so that one that hangs costs less; all of it after one that was
    not answered, so that a slow venue is reached all the same."""
    rig = Rig(mute, limits=Limits(handshake_timeout=16.0))
    rig.link.start()
    for count, wait in enumerate((8.0, 16.0, 16.0)):
        rig.clock.advance(wait - 0.01)
        assert (rig.state, len(rig.owner.downs)) == ("connecting", count)
        rig.clock.advance(0.011)
        assert len(rig.owner.downs) == count + 1
        assert "handshake" in rig.down.reason
        rig.clock.advance(rig.owner.downs[-1][1])
    assert rig.link.attempts == 4
    first = rig.transport.peers[0]
    first.accept()  # too late: nobody listens any more
    rig.clock.advance(0)
    assert not first.open
    assert rig.owner.calls == ["down"] * 3


def test_a_venue_that_was_slow_to_answer_is_given_the_same_time_again() -> None:
    rig = Rig(mute, limits=Limits(handshake_timeout=16.0))
    rig.link.start()
    rig.clock.advance(8.0)
    rig.clock.advance(rig.owner.downs[-1][1])
    rig.clock.advance(15.0)
    rig.peer.accept()
    rig.clock.advance(0.0)
    assert rig.link.opened_count == 1
    rig.link.restart("for the test")
    rig.clock.advance(rig.owner.downs[-1][1])
    rig.clock.advance(15.9)
    assert (rig.state, rig.link.attempts) == ("connecting", 3)


def test_ack_deadline_counts_from_the_last_step() -> None:
    rig = Rig(hello=[b"a"], acks=3, limits=Limits(ack_timeout=5.0))
    rig.link.start()
    rig.clock.advance(4.0)
    rig.peer.text(ACK)
    rig.clock.advance(4.0)
    rig.peer.text(ACK)
    rig.clock.advance(4.99)
    assert rig.link.state is LinkState.SUBSCRIBING
    rig.clock.advance(0.02)
    assert rig.link.state in (LinkState.WAITING, LinkState.CONNECTING, LinkState.SUBSCRIBING)
    assert rig.down.reason == "1 subscriptions not acknowledged in time"
    assert rig.transport.peers[0].done


def test_limits_of_zero_still_leave_deadlines() -> None:
    rig = Rig(mute, limits=Limits(handshake_timeout=0.0, ack_timeout=0.0))
    rig.link.start()
    rig.clock.advance(11.0)
    assert rig.owner.downs


# Pacing.


def stamped(rig: Rig, sent: list[float]) -> Callable[[MemoryPeer], None]:
    """A script that notes when each client message came, of whatever kind."""

    def script(peer: MemoryPeer) -> None:
        note = peer._note

        def stamp(what: str, content: bytes | int) -> None:
            sent.append(rig.clock.monotonic())
            note(what, content)

        peer._note = stamp  # type: ignore[method-assign]
        peer.accept()

    return script


def test_three_hundred_requests_at_five_a_second() -> None:
    """Pings are answered on the way, and no second ever sees more than five messages."""
    sent: list[float] = []
    limits = Limits(messages=5, messages_period=1.0, ack_timeout=10.0)
    hello = [b"%d" % n for n in range(300)]
    rig = Rig(hello=hello, acks=300, limits=limits, keepalive=Keepalive(20.0))
    rig.transport._script = stamped(rig, sent)
    rig.link.start()
    rig.clock.advance(0)
    answered = 0
    for n in range(84):
        rig.clock.advance(1.0)
        rig.peer.ping(b"%d" % n)
        answered += rig.peer.received[-1] == ("pong", b"%d" % n)
    assert answered >= 80  # at once: only a keepalive in the same window takes the free place
    while len(rig.peer.texts) < 300:
        rig.clock.advance(0.1)
    assert rig.peer.texts == hello
    assert ("ping", b"") in rig.peer.received
    assert all(later - now >= 1.0 for now, later in zip(sent, sent[5:], strict=False))
    assert 75.0 < rig.clock.monotonic() < 115.0
    for _ in range(300):
        rig.peer.text(ACK)
    assert rig.link.state is LinkState.UP


def test_a_flood_of_pings_is_answered_within_the_rate_with_the_newest() -> None:
    sent: list[float] = []
    rig = Rig(limits=Limits(messages=5, messages_period=1.0))
    rig.transport._script = stamped(rig, sent)
    rig.up()
    for n in range(10_000):
        rig.peer.ping(b"%d" % n)
    rig.clock.advance(2.0)
    pongs = [content for what, content in rig.peer.received if what == "pong"]
    assert len(pongs) == 5
    assert pongs[-1] == b"9999"
    assert all(later - now >= 1.0 for now, later in zip(sent, sent[5:], strict=False))
    assert rig.link.pings == 10_000


def test_where_only_requests_count_pings_are_never_held_back() -> None:
    limits = Limits(messages=2, messages_period=3600.0, pings_count=False)
    rig = Rig(limits=limits, keepalive=Keepalive(20.0, b"ping", idle_only=True)).up()
    for n in (1, 2):
        rig.link.send(b"%d" % n)
    rig.clock.advance(3000.0)
    assert rig.peer.texts == [b"subscribe", b"1", *[b"ping"] * 150]

    rig.clock.advance(1000.0)

    assert rig.peer.texts.count(b"2") == 1
    assert rig.peer.texts.count(b"ping") == 200


def test_send_keeps_order_and_is_lost_where_nothing_is_open() -> None:
    rig = Rig(limits=Limits(messages=3, messages_period=1.0))
    rig.link.send(b"lost")
    rig.up()
    for n in range(10):
        rig.link.send(b"%d" % n)
    rig.clock.advance(30.0)
    assert rig.peer.texts == [b"subscribe", *(b"%d" % n for n in range(10))]
    assert rig.link.sent == 11
    rig.link.stop()
    rig.link.send(b"lost")
    rig.clock.advance(1.0)
    assert len(rig.peer.texts) == 11


# Signs of life.


def test_a_ping_is_answered_with_its_payload() -> None:
    rig = Rig().up()
    rig.clock.advance(2.0)
    rig.peer.ping(b"1754")
    assert rig.peer.received[-1] == ("pong", b"1754")
    assert rig.link.last_control_ns == rig.clock.time_ns()
    rig.clock.advance(1.0)
    rig.peer.pong()
    assert (rig.link.pings, rig.link.pongs) == (1, 1)
    assert rig.link.last_control_ns == rig.clock.time_ns()


def test_a_ping_during_subscription_is_answered() -> None:
    rig = Rig(acks=1)
    rig.link.start()
    rig.clock.advance(0)
    rig.peer.ping(b"x")
    assert rig.peer.received[-1] == ("pong", b"x")


def test_keepalive_text_goes_out_even_while_data_flows() -> None:
    rig = Rig(keepalive=Keepalive(30.0, b"ping")).up()
    for _ in range(120):
        rig.clock.advance(1.0)
        rig.peer.text(b"data")
    assert rig.peer.texts == [b"subscribe"] + [b"ping"] * 4


def test_keepalive_without_text_is_a_websocket_ping() -> None:
    rig = Rig(keepalive=Keepalive(20.0)).up()
    rig.clock.advance(60.0)
    assert [what for what, _ in rig.peer.received] == ["text", "ping", "ping", "ping"]
    assert rig.link.pongs == 3


def test_idle_keepalive_goes_out_only_after_quiet() -> None:
    rig = Rig(keepalive=Keepalive(25.0, b"ping", idle_only=True)).up()
    for _ in range(100):
        rig.clock.advance(1.0)
        rig.peer.text(b"data")
    assert rig.peer.texts == [b"subscribe"]
    rig.clock.advance(24.9)
    assert rig.peer.texts == [b"subscribe"]
    rig.clock.advance(0.2)
    assert rig.peer.texts == [b"subscribe", b"ping"]


@pytest.mark.parametrize("step", [-3600.0, 3600.0])
def test_idle_keepalive_survives_a_step_of_the_wall_clock(step: float) -> None:
    rig = Rig(keepalive=Keepalive(20.0, b"ping", idle_only=True)).up()
    rig.peer.text(b"data")
    rig.clock.step_wall(step)
    rig.clock.advance(41.0)
    assert b"ping" in rig.peer.texts


def test_probe_answered() -> None:
    rig = Rig().up()
    silent: list[int] = []
    rig.link.ping_probe(5.0, lambda: silent.append(1))
    rig.link.ping_probe(5.0, lambda: silent.append(2))  # one at a time
    rig.clock.advance(60.0)
    assert silent == []
    assert [what for what, _ in rig.peer.received] == ["text", "ping"]
    assert rig.link.state is LinkState.UP


def test_probe_of_a_silent_peer_restarts_the_line() -> None:
    rig = Rig().up()
    rig.peer.half_open()
    rig.link.ping_probe(5.0)
    rig.clock.advance(4.99)
    assert rig.link.state is LinkState.UP
    rig.clock.advance(0.02)
    assert rig.down.reason == "silent: no byte, not even the answer to a ping"
    rig.clock.advance(1.0)
    assert rig.link.state is LinkState.UP
    assert rig.link.opened_count == 2


def test_probe_asks_the_caller_what_to_do() -> None:
    rig = Rig(keepalive=Keepalive(30.0, b"ping")).up()
    rig.peer.half_open()
    silent: list[float] = []
    rig.link.ping_probe(5.0, lambda: silent.append(rig.clock.monotonic()))
    rig.clock.advance(10.0)
    assert silent == [5.0]
    assert rig.link.state is LinkState.UP
    assert rig.peer.texts[-1] == b"ping"  # the venue's own kind of ping


@pytest.mark.parametrize("step", [0.0, -7200.0])
def test_a_late_pong_alone_kills_no_line(step: float) -> None:
    """Data proves life, even where the wall clock stepped back under it."""
    rig = Rig().up()
    rig.peer.answers = False
    rig.peer.text(b"before")
    rig.link.ping_probe(5.0)
    rig.clock.step_wall(step)
    rig.clock.advance(4.0)
    rig.peer.text(b"data")
    rig.clock.advance(60.0)
    assert rig.owner.downs == []


def test_a_probe_that_the_rate_held_back_proves_nothing() -> None:
    rig = Rig(limits=Limits(messages=1, messages_period=30.0)).up()
    rig.link.ping_probe(5.0)
    rig.clock.advance(31.0)
    assert rig.owner.downs == []
    rig.clock.advance(60.0)
    assert rig.owner.downs == []  # it left after 33 s and was answered
    assert rig.link.pongs == 1


def test_probe_where_nothing_is_open_does_nothing() -> None:
    rig = Rig(mute)
    rig.link.ping_probe(1.0)
    rig.link.start()
    rig.clock.advance(0)
    rig.link.ping_probe(1.0)
    rig.clock.advance(2.0)
    assert rig.owner.downs == []


# Down and again.


def test_backoff_grows_and_is_bounded() -> None:
    delays: list[list[float]] = []
    for seed in range(40):
        rig = Rig(MemoryPeer.fail, seed=seed)
        rig.link.start()
        rig.clock.advance(600.0)
        delays.append([delay for _, delay in rig.owner.downs])
    for step in range(14):
        of_step = [row[step] for row in delays]
        ceiling = min(BACKOFF_CAP, 0.1 * 2**step)
        assert min(of_step) >= 0.0
        assert 0.6 * ceiling < max(of_step) <= ceiling


def test_a_server_that_accepts_and_cuts_does_not_reset_the_backoff() -> None:
    rig = Rig()
    rig.owner.on_up = lambda link: rig.clock.call_later(0.0, rig.peer.close)
    rig.link.start()
    rig.clock.advance(3600.0)
    assert rig.link.opened_count < 300
    assert max(delay for _, delay in rig.owner.downs) > BACKOFF_CAP / 2


@pytest.mark.parametrize(("lived", "resets"), [(STABLE - 0.5, False), (STABLE + 0.5, True)])
def test_backoff_resets_only_after_a_stable_time(lived: float, resets: bool) -> None:
    longest = 0.0
    for seed in range(30):
        rig = Rig(seed=seed)
        fate = iter([MemoryPeer.fail] * 12 + [MemoryPeer.accept])

        def script(peer: MemoryPeer, fate: object = fate) -> None:
            next(fate, MemoryPeer.accept)(peer)  # type: ignore[call-overload]

        rig.transport._script = script
        rig.link.start()
        while rig.link.state is not LinkState.UP:
            rig.clock.advance(0.01)
        rig.clock.advance(lived)
        rig.peer.fail("cut")
        rig.clock.advance(0)
        longest = max(longest, rig.owner.downs[-1][1])
    assert (longest <= 0.1) is resets


@pytest.mark.parametrize("status", [401, 403])
def test_refused_keys_back_off_at_the_cap_and_are_reported(status: int) -> None:
    rig = Rig(lambda peer: peer.refuse(status))
    rig.link.start()
    rig.clock.advance(0)
    how, delay = rig.owner.downs[0]
    assert how.status == status
    assert BACKOFF_CAP / 2 <= delay <= BACKOFF_CAP
    rig.clock.advance(3600.0)
    assert 120 <= rig.link.attempts <= 242


@pytest.mark.parametrize("status", [429, 418, 503])
def test_retry_after_is_honored(status: int) -> None:
    rig = Rig(lambda peer: peer.refuse(status, retry_after=500.0))
    rig.link.start()
    rig.clock.advance(499.9)
    assert rig.link.attempts == 1
    assert rig.owner.downs[0][1] == 500.0
    rig.clock.advance(0.2)
    assert rig.link.attempts == 2


def test_a_short_retry_after_is_not_made_longer() -> None:
    rig = Rig(lambda peer: peer.refuse(429, retry_after=5.0))
    rig.link.start()
    rig.clock.advance(5.2)
    assert rig.link.attempts == 2


def test_a_ban_holds_every_line_of_the_host() -> None:
    budget = LocalBudget()
    first = Rig(lambda peer: peer.refuse(418, retry_after=100.0), budget=budget)
    second = Rig(MemoryPeer.accept, budget=budget)
    first.link.start()
    first.clock.advance(0)
    second.link.start()
    second.clock.advance(99.0)
    assert second.link.attempts == 0
    second.clock.advance(1.1)
    assert second.link.state is LinkState.UP


def test_budget_holds_attempts_back() -> None:
    """However fast the connections fail: never more than 10 attempts in any 60 s."""
    stamps: list[float] = []
    rig = Rig(budget=LocalBudget(10, 60.0))

    def script(peer: MemoryPeer) -> None:
        stamps.append(rig.clock.monotonic())
        peer.accept()

    rig.transport._script = script
    rig.owner.on_up = lambda link: link.restart("again")
    rig.link._backoff = iter([0.0] * 10_000)
    rig.link.start()
    rig.clock.advance(600.0)
    assert len(stamps) > 50
    assert all(later - now >= 59.99 for now, later in zip(stamps, stamps[10:], strict=False))


def test_restart_drops_at_once_and_comes_back() -> None:
    rig = Rig().up()
    first = rig.peer
    rig.link.restart("stalled")
    assert rig.state == "waiting"
    assert rig.down == Closed(1006, "stalled")
    first.text(b"too late")
    rig.clock.advance(0.2)
    assert first.done
    assert rig.link.state is LinkState.UP
    assert rig.owner.calls == ["opened", "up", "down", "opened", "up"]
    assert rig.owner.payloads == []


@pytest.mark.parametrize("when", ["idle", "waiting", "closing", "stopped"])
def test_restart_where_nothing_is_connected_does_nothing(when: str) -> None:
    rig = Rig(MemoryPeer.accept)
    if when == "waiting":
        rig.link.start()
    elif when != "idle":
        rig.up().link.stop()
    if when == "stopped":
        rig.clock.advance(1.0)
    state = rig.link.state
    assert state.value == when
    rig.link.restart("reason")
    assert rig.link.state is state


def test_an_error_of_the_owner_is_counted_and_costs_one_connection() -> None:
    rig = Rig().up()
    bug = KeyError("bug")

    def fail(link: Link, payload: bytes) -> None:
        raise bug

    rig.owner.on_message = fail
    rig.peer.text(b"data")
    rig.clock.advance(0)
    assert rig.link.faults == 1
    assert rig.down.error is bug
    rig.owner.on_message = None
    rig.clock.advance(1.0)
    assert rig.link.state is LinkState.UP


def test_an_error_while_opening_costs_one_connection() -> None:
    rig = Rig()

    def fail(link: Link) -> None:
        rig.owner.on_opened = None
        raise KeyError("bug")

    rig.owner.on_opened = fail
    rig.link.start()
    rig.clock.advance(1.0)
    assert rig.link.faults == 1
    assert rig.link.state is LinkState.UP


def test_closed_by_the_peer_is_reported_with_its_code() -> None:
    rig = Rig().up()
    rig.peer.close(1012, "restarting")
    rig.clock.advance(0)
    assert rig.down == Closed(1012, "restarting", clean=True)
    assert rig.link.last_down == rig.down


# Stop.


def stopped_cleanly(rig: Rig) -> None:
    assert rig.link.state is LinkState.STOPPED
    assert rig.clock.pending == 0
    assert all(peer.done or not peer.open for peer in rig.transport.peers)
    attempts = rig.link.attempts
    rig.clock.advance(3600.0)
    assert rig.link.attempts == attempts


def test_stop_before_start() -> None:
    rig = Rig()
    rig.link.stop()
    stopped_cleanly(rig)
    with pytest.raises(RuntimeError):
        rig.link.start()


def test_stop_while_waiting() -> None:
    rig = Rig(MemoryPeer.fail)
    rig.link.start()
    rig.clock.advance(100.0)
    while rig.link.state is not LinkState.WAITING:
        rig.clock.advance(0.001)
    rig.link.stop()
    stopped_cleanly(rig)


def test_stop_while_connecting() -> None:
    rig = Rig(mute)
    rig.link.start()
    rig.clock.advance(1.0)
    rig.link.stop()
    assert rig.link.state is LinkState.STOPPED
    rig.clock.advance(0)
    assert rig.peer.done
    assert rig.owner.calls == []
    stopped_cleanly(rig)


@pytest.mark.parametrize("acks", [0, 1])
def test_stop_while_open(acks: int) -> None:
    rig = Rig(acks=acks, keepalive=Keepalive(5.0), limits=Limits(messages=1))
    rig.link.start()
    rig.clock.advance(2.0)
    rig.peer.ping()
    rig.peer.ping()
    rig.link.stop(1001)
    assert rig.link.state is LinkState.CLOSING
    rig.peer.text(b"late")
    rig.link.stop()
    rig.clock.advance(0)
    assert rig.peer.received[-1] == ("close", 1001)
    assert rig.owner.downs == [(Closed(1001, "", clean=True), math.inf)]
    assert rig.owner.payloads == [b"late"]  # it was on its way
    stopped_cleanly(rig)


def test_an_unanswered_close_is_cut_off() -> None:
    rig = Rig().up()
    rig.peer.answers = False
    rig.link.stop()
    rig.clock.advance(CLOSE_TIMEOUT - 0.01)
    assert rig.link.state is LinkState.CLOSING
    rig.clock.advance(0.01)
    assert rig.owner.downs[-1][1] == math.inf
    assert rig.down.code == 1006
    rig.clock.advance(0)
    stopped_cleanly(rig)


def test_a_peer_may_be_given_more_time_to_answer_a_close() -> None:
    rig = Rig().up()
    rig.peer.answers = False
    rig.link.stop(patience=10.0)
    rig.clock.advance(9.0)
    rig.peer.text(b"late")
    rig.clock.advance(0)
    assert rig.owner.payloads == [b"late"]
    rig.clock.advance(1.0)
    stopped_cleanly(rig)


@pytest.mark.parametrize("after", [0.0, 0.3, 0.9])
def test_after_a_pause_of_the_process_an_answered_close_loses_nothing(after: float) -> None:
    """Timers come due before sockets are read, wherever in the wait the pause began."""
    rig = Rig().up()
    rig.peer.answers = False
    rig.link.stop()
    rig.clock.advance(after * CLOSE_TIMEOUT)
    rig.clock.pause(60.0)
    rig.clock.advance(0)
    assert rig.link.state is LinkState.CLOSING
    rig.peer.text(b"late")
    assert rig.owner.payloads == [b"late"]
    rig.clock.advance(CLOSE_TIMEOUT)
    stopped_cleanly(rig)


@pytest.mark.parametrize("after", [0.0, 0.3, 0.9])
def test_after_a_pause_of_the_process_no_line_is_called_silent_unread(after: float) -> None:
    rig = Rig().up()
    rig.peer.answers = False
    rig.link.ping_probe(4.0)
    rig.clock.advance(after * 4.0)
    rig.clock.pause(60.0)
    rig.clock.advance(0)
    rig.peer.text(b"was there all the time")
    rig.clock.advance(10.0)
    assert rig.owner.downs == []


@pytest.mark.parametrize("moment", ["opened", "up", "message", "down"])
def test_stop_from_inside_any_callback(moment: str) -> None:
    rig = Rig(hello=[b"a", b"b"])

    def stop(link: Link, *_: object) -> None:
        link.stop()

    setattr(rig.owner, f"on_{moment}", stop)
    rig.link.start()
    rig.clock.advance(0)
    rig.peer.text(b"data")
    rig.peer.close()
    rig.clock.advance(CLOSE_TIMEOUT)
    stopped_cleanly(rig)


@pytest.mark.parametrize("moment", ["opened", "up", "message"])
def test_restart_from_inside_any_callback(moment: str) -> None:
    rig = Rig(hello=[b"a", b"b"])

    def restart(link: Link, *_: object) -> None:
        setattr(rig.owner, f"on_{moment}", None)
        link.restart("from inside")

    setattr(rig.owner, f"on_{moment}", restart)
    rig.link.start()
    rig.clock.advance(0)
    rig.peer.text(b"data")
    rig.clock.advance(1.0)
    assert rig.link.state is LinkState.UP
    assert rig.link.opened_count == 2
    assert rig.owner.downs[0][0].reason == "from inside"


# Long runs.


def test_an_hour_of_connects_and_cuts_costs_no_time() -> None:
    rng = random.Random(42)
    cuts = 0

    def script(peer: MemoryPeer) -> None:
        nonlocal cuts
        fate = rng.random()
        if fate < 0.2:
            peer.fail()
        elif fate < 0.3:
            peer.refuse(503)
        elif fate < 0.9:
            acking(peer)
            peer._clock.call_later(rng.uniform(0.0, 60.0), peer.fail, "cut")
            cuts += 1

    rig = Rig(script, acks=1, keepalive=Keepalive(20.0), limits=Limits(), budget=LocalBudget())
    began = time.process_time()
    rig.link.start()
    for _ in range(3600):
        rig.clock.advance(1.0)
    assert time.process_time() - began < 1.0
    assert cuts > 50
    assert rig.link.opened_count == cuts
    assert rig.owner.calls.count("down") >= rig.link.attempts - 1
    rig.link.stop()
    rig.clock.advance(61.0)
    stopped_cleanly(rig)


EVENTS = st.one_of(
    st.tuples(st.just("advance"), st.sampled_from([0.0, 0.001, 0.5, 3.0, 11.0, 31.0, 400.0])),
    st.tuples(
        st.sampled_from(
            ["accept", "fail", "close", "ping", "pong", "half_open", "mute", "long", "ack", "data"]
        ),
        st.just(0.0),
    ),
    st.tuples(st.just("refuse"), st.sampled_from([200.0, 401.0, 403.0, 429.0, 503.0])),
    st.tuples(st.sampled_from(["restart", "send", "probe", "acked", "boom"]), st.just(0.0)),
)


def happen(rig: Rig, what: str, value: float) -> None:
    """One thing that the world does to a link."""
    link, peers = rig.link, rig.transport.peers
    if what == "advance":
        rig.clock.advance(value)
    elif what == "restart":
        link.restart("told to")
    elif what == "send":
        link.send(b"text")
    elif what == "probe":
        link.ping_probe(3.0)
    elif what == "acked":
        link.acked(2)
    elif peers:
        peer = peers[-1]
        match what:
            case "ack":
                peer.text(ACK)
            case "data" | "boom":
                peer.text(what.encode())
            case "long":
                peer.binary(bytes(peer.dial.max_frame_bytes + 1))
            case "mute":
                peer.answers = False
            case "refuse":
                peer.refuse(int(value), retry_after=value if value == 429.0 else 0.0)
            case _:
                getattr(peer, what)()


def sound(rig: Rig) -> None:
    """Whatever happened: there is a timer or a connection, and it fits the state."""
    link = rig.link
    waits = link._timer is not None
    connected = link._wire is not None and link._wire.connection is not None
    match link.state:
        case LinkState.WAITING:
            assert waits
            assert link._wire is None
        case LinkState.CONNECTING:
            assert waits
            assert link._wire is not None
        case LinkState.SUBSCRIBING:
            assert connected
            assert waits or (link._outbox is not None and link._outbox._timer is not None)
        case LinkState.UP:
            assert connected
            assert not waits
        case LinkState.CLOSING:
            assert connected
            assert waits
        case _:
            assert not waits
            assert link._wire is None
    if not connected or link.state is LinkState.CLOSING:
        assert link._outbox is None
        assert link._probe_timer is None
        assert link._keepalive_timer is None


@settings(max_examples=300, deadline=None)
@given(
    events=st.lists(EVENTS, max_size=60),
    acks=st.integers(0, 3),
    messages=st.sampled_from([0, 1, 5]),
    idle=st.booleans(),
)
def test_no_sequence_of_events_breaks_a_link(
    events: list[tuple[str, float]], acks: int, messages: int, idle: bool
) -> None:
    def boom(link: Link, payload: bytes) -> None:
        if payload == b"boom":
            raise ValueError("owner's bug")

    rig = Rig(
        mute,
        hello=[b"a", b"b", b"c"],
        acks=acks,
        limits=Limits(messages=messages),
        keepalive=Keepalive(20.0, b"ping", idle_only=True) if idle else Keepalive(15.0),
        budget=LocalBudget(20, 60.0),
    )
    rig.owner.on_message = boom
    rig.link.start()
    for what, value in events:
        happen(rig, what, value)
        sound(rig)
    assert rig.link.opened_count <= rig.link.attempts
    calls = rig.owner.calls
    assert calls.count("down") <= rig.link.attempts <= calls.count("down") + 1
    rig.link.stop()
    sound(rig)
    rig.clock.advance(CLOSE_TIMEOUT)
    assert rig.link.state is LinkState.STOPPED
    rig.clock.advance(0.0)
    assert rig.clock.pending == 0


# Over real sockets.


@pytest.mark.parametrize("name", ["picows", "websockets"])
async def test_a_line_over_real_sockets(name: str) -> None:
    """Subscribes, answers pings, comes back after a cut, and closes in order."""
    events: asyncio.Queue[str] = asyncio.Queue()

    async def script(peer: ServerPeer) -> None:
        await peer.accept()
        assert await peer.expect("text") == b"subscribe"
        await peer.ping(b"alive?")
        assert await peer.expect("pong") == b"alive?"
        await peer.text(ACK)
        if len(server.peers) == 1:
            peer.abort()
        else:
            await peer.gone()

    async with ScriptedServer(script) as server:
        owner = Owner()
        owner.on_up = lambda link: events.put_nowait("up")
        owner.on_down = lambda link: events.put_nowait("down")
        clock = SystemClock()
        link = Link(
            name="line",
            dials=[Dial(url=server.url())],
            transport=choose(name),
            clock=clock,
            budget=LocalBudget(),
            hello=[b"subscribe"],
            acks=1,
            limits=Limits(),
            keepalive=None,
            owner=owner,
            rng=random.Random(1),
        )
        link.start()
        seen = [await asyncio.wait_for(events.get(), 5) for _ in range(3)]
        assert seen == ["up", "down", "up"]
        assert link.remote == f"127.0.0.1:{server.port}"
        assert abs(time.time_ns() - owner.last_message_ns) < 5e9
        link.stop(1001)
        assert await asyncio.wait_for(events.get(), 5) == "down"
        assert owner.downs[-1] == (Closed(1001, "", clean=True), math.inf)
        assert link.state is LinkState.STOPPED
