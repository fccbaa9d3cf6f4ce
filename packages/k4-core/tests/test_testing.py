"""The shipped test tools do what their users build on."""

from __future__ import annotations

import asyncio

import pytest

from k4.core.testing import ManualClock, ScriptedServer, ServerPeer


def test_timers_run_in_order_of_time_then_of_setting() -> None:
    clock = ManualClock()
    ran: list[object] = []
    for delay, name in [(2.0, "c"), (1.0, "a"), (1.0, "b"), (9.0, "never")]:
        clock.call_later(delay, ran.append, name)
    clock.advance(2.0)
    assert ran == ["a", "b", "c"]
    assert clock.pending == 1


def test_both_clocks_move_together_and_stand_at_the_timers_time() -> None:
    clock = ManualClock(5_000_000_000)
    seen: list[tuple[float, int]] = []
    clock.call_later(1.5, lambda: seen.append((clock.monotonic(), clock.time_ns())))
    clock.advance(10.0)
    assert seen == [(1.5, 6_500_000_000)]
    assert (clock.monotonic(), clock.time_ns()) == (10.0, 15_000_000_000)


def test_a_callback_set_while_advancing_runs_when_due() -> None:
    clock = ManualClock()
    ticks: list[float] = []

    def tick() -> None:
        ticks.append(clock.monotonic())
        clock.call_later(1.0, tick)

    clock.call_later(1.0, tick)
    clock.advance(3.5)
    assert ticks == [1.0, 2.0, 3.0]
    assert clock.next_in == pytest.approx(0.5)


def test_a_cancelled_timer_does_not_run_even_from_a_callback_due_at_the_same_time() -> None:
    clock = ManualClock()
    ran: list[object] = []
    clock.call_later(1.0, lambda: second.cancel())
    second = clock.call_later(1.0, ran.append, "second")
    clock.advance(5.0)
    assert ran == []
    assert clock.pending == 0
    assert clock.next_in is None


def test_zero_delay_needs_an_advance() -> None:
    clock = ManualClock()
    ran: list[object] = []
    clock.call_later(0.0, ran.append, 1)
    clock.call_later(-3.0, ran.append, 2)
    assert ran == []
    clock.advance(0.0)
    assert ran == [1, 2]


@pytest.mark.parametrize("delay", [0.1, 1 / 3, 20.0, 29.999999999, 86_400.1])
def test_a_timer_never_runs_before_its_time(delay: float) -> None:
    clock = ManualClock()
    ran: list[float] = []
    clock.advance(0.7)
    due = clock.monotonic() + delay
    clock.call_later(delay, lambda: ran.append(clock.monotonic()))
    clock.advance(delay + 1.0)
    assert ran[0] == pytest.approx(due, abs=2e-9)
    assert ran[0] >= due - 1e-9


def test_an_exception_reaches_the_test_and_the_clock_goes_on() -> None:
    clock = ManualClock()
    ran: list[object] = []

    def fail() -> None:
        raise RuntimeError("bug")

    clock.call_later(1.0, fail)
    clock.call_later(2.0, ran.append, "later")
    with pytest.raises(RuntimeError, match="bug"):
        clock.advance(5.0)
    assert clock.monotonic() == 1.0
    clock.advance(4.0)
    assert ran == ["later"]


def test_the_wall_clock_can_step_without_the_timers() -> None:
    clock = ManualClock(1_000_000_000)
    ran: list[object] = []
    clock.call_later(1.0, ran.append, "due")
    clock.step_wall(-3600.0)
    assert clock.time_ns() == 1_000_000_000 - 3_600_000_000_000
    clock.advance(1.0)
    assert ran == ["due"]


async def test_a_failing_script_fails_the_test() -> None:
    async def script(peer: ServerPeer) -> None:
        raise AssertionError("not what was expected")

    async def meet() -> None:
        async with ScriptedServer(script) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()

    with pytest.raises(AssertionError, match="not what was expected"):
        await meet()


async def test_a_client_that_leaves_early_is_no_failure() -> None:
    joined = asyncio.Event()

    async def script(peer: ServerPeer) -> None:
        joined.set()
        await peer.accept()

    async with ScriptedServer(script) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.close()
        await writer.wait_closed()
        await joined.wait()
        await server.peers[0].left.wait()
        assert server.peers[0].received == []
        assert server.peers[0].path == ""
