"""What leaves a connection when: control first, and both of a venue's rates."""

from __future__ import annotations

from k4.core.limits import Limits
from k4.core.outbox import Outbox
from k4.core.testing import ManualClock


class Wire:
    """Keeps what was sent, with its time."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.sent: list[tuple[float, bytes]] = []

    def send_text(self, data: bytes) -> None:
        self.sent.append((self.clock.monotonic(), data))

    def ping(self, payload: bytes = b"") -> None:
        self.send_text(payload)

    def pong(self, payload: bytes) -> None:
        self.send_text(payload)

    def close(self, code: int = 1000, reason: str = "") -> None:
        raise AssertionError("nobody asked for it")

    def abort(self) -> None:
        raise AssertionError("nobody asked for it")

    def remote(self) -> str:
        return "wire"


def made(limits: Limits) -> tuple[ManualClock, Wire, Outbox]:
    clock = ManualClock()
    wire = Wire(clock)
    return clock, wire, Outbox(clock, wire, limits, lambda: None)


def test_requests_of_an_hour_are_bounded_and_pings_go_on() -> None:
    clock, wire, outbox = made(Limits(messages=10, requests=4, requests_period=3600.0))
    start = clock.monotonic()
    outbox.texts([b"%d" % i for i in range(6)])
    clock.advance(60.0)
    assert [data for _, data in wire.sent] == [b"0", b"1", b"2", b"3"]
    assert not outbox.idle
    outbox.keepalive(b"ping")
    assert wire.sent[-1][1] == b"ping"
    clock.advance(3600.0)
    assert [data for _, data in wire.sent[5:]] == [b"4", b"5"]
    assert all(at - start >= 3600.0 for at, _ in wire.sent[5:])


def test_it_is_idle_where_a_text_would_leave_at_once() -> None:
    clock, _, outbox = made(Limits(messages=3, messages_period=1.0))
    assert outbox.idle
    outbox.texts([b"a", b"b"])  # one place of the three is kept for control
    assert not outbox.idle
    clock.advance(2.0)
    assert outbox.idle
