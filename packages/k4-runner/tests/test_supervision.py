"""The policy alone: literals in, actions out, time handed in."""

from __future__ import annotations

import random
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from k4.runner.supervision import (
    Action,
    End,
    Go,
    Kill,
    Spawn,
    State,
    Stop,
    Supervision,
    Timing,
)


def delays() -> Iterator[float]:
    delay = 1.0
    while True:
        yield delay
        delay *= 2


def two() -> Supervision:
    return Supervision(["a", "b"], delays)


def running() -> Supervision:
    policy = two()
    policy.begin(0.0)
    policy.ready("a", 1.0)
    policy.ready("b", 2.0)
    return policy


def test_nobody_opens_a_socket_before_all_are_ready() -> None:
    policy = two()
    assert policy.begin(0.0) == [Spawn("a"), Spawn("b")]
    assert policy.ready("b", 1.0) == []
    assert policy.ready("a", 2.0) == [Go("a"), Go("b")]


def test_a_failed_preparation_ends_the_run_with_status_1() -> None:
    policy = two()
    policy.begin(0.0)
    policy.ready("b", 1.0)
    policy.failed("a", 1)
    assert policy.exited("a", 1.0) == [Stop("b")]
    assert policy.exited("b", 1.1) == [End(1)]


def test_a_wrong_configuration_found_in_preparation_ends_it_with_status_2() -> None:
    policy = Supervision(["a"], delays)
    policy.begin(0.0)
    policy.failed("a", 2)
    assert policy.exited("a", 1.0) == [End(2)]


def test_preparation_has_sixty_seconds() -> None:
    policy = two()
    policy.begin(0.0)
    policy.ready("a", 1.0)
    assert policy.due() == 60.0
    assert policy.tick(59.9) == []
    assert policy.tick(60.0) == [Kill("b", "was not ready in 60 s")]
    assert policy.exited("b", 60.1) == [Stop("a")]
    assert policy.exited("a", 60.2) == [End(1)]


def test_heartbeats_count_only_after_the_release() -> None:
    policy = two()
    policy.begin(0.0)
    policy.ready("a", 1.0)
    assert policy.tick(50.0) == []
    policy.ready("b", 50.0)
    assert policy.due() == 55.0


def test_a_dead_worker_is_started_again_with_backoff_and_released_at_once() -> None:
    policy = running()
    assert policy.exited("a", 10.0) == []
    assert policy.due() == 7.0  # b's heartbeat
    policy.beat("b", 10.5)
    assert policy.tick(10.9) == []
    assert policy.tick(11.0) == [Spawn("a")]
    assert policy.ready("a", 11.5) == [Go("a")]
    policy.exited("a", 12.0)
    policy.beat("b", 12.5)
    assert policy.tick(13.9) == []
    assert policy.tick(14.0) == [Spawn("a")]


def test_backoff_begins_anew_after_a_stable_life() -> None:
    policy = Supervision(["a"], delays, Timing(stable=60.0, beat=1000.0))
    policy.begin(0.0)
    policy.ready("a", 0.0)
    policy.exited("a", 1.0)
    policy.tick(2.0)
    policy.ready("a", 2.0)
    policy.exited("a", 62.0)
    assert policy.due() == 63.0


def test_a_restarted_worker_may_fail_to_prepare_without_ending_the_run() -> None:
    policy = running()
    policy.exited("a", 3.0)
    policy.tick(4.0)
    policy.failed("a", 1)
    assert policy.exited("a", 5.0) == []
    policy.beat("b", 6.0)
    assert policy.tick(7.0) == [Spawn("a")]
    assert policy.workers["a"].starts == 3


def test_a_worker_that_no_longer_beats_is_killed_and_started_again() -> None:
    policy = running()
    policy.beat("a", 6.0)
    policy.beat("b", 6.5)
    assert policy.tick(10.9) == []
    assert policy.tick(11.0) == [Kill("a", "sent no heartbeat for 5 s")]
    assert policy.exited("a", 11.1) == []
    assert policy.workers["a"].state is State.WAITING


def test_stop_goes_in_reverse_order_and_ends_with_status_0() -> None:
    policy = running()
    assert policy.stop(100.0) == [Stop("b")]
    assert policy.exited("b", 100.1) == [Stop("a")]
    assert policy.exited("a", 100.2) == [End(0)]


def test_a_slow_worker_does_not_keep_the_next_from_being_asked() -> None:
    policy = running()
    assert policy.stop(100.0) == [Stop("b")]
    due = policy.due()
    assert due == 101.0  # half of the four seconds, shared by two
    assert policy.tick(due) == [Stop("a")]
    assert policy.exited("a", 101.5) == []
    assert policy.exited("b", 102.0) == [End(0)]


def test_who_is_left_at_the_deadline_is_killed() -> None:
    policy = running()
    policy.stop(100.0)
    policy.exited("b", 100.1)
    policy.tick(102.1)
    assert policy.due() == 104.0
    assert policy.tick(104.0) == [Kill("a", "did not stop in time")]
    assert policy.exited("a", 104.1) == [End(0)]


def test_a_second_signal_kills() -> None:
    policy = running()
    policy.stop(100.0)
    assert policy.stop(100.1) == [Kill("a", "stopped twice"), Kill("b", "stopped twice")]
    policy.exited("a", 100.2)
    assert policy.exited("b", 100.2) == [End(1)]


def test_stopping_before_the_release_is_orderly_too() -> None:
    policy = two()
    policy.begin(0.0)
    policy.ready("a", 0.5)
    assert policy.stop(1.0) == [Stop("b")]
    assert policy.exited("b", 1.1) == [Stop("a")]
    assert policy.exited("a", 1.2) == [End(0)]


def test_a_worker_that_waits_for_its_restart_is_not_started_to_be_stopped() -> None:
    policy = Supervision(["a"], delays)
    policy.begin(0.0)
    policy.ready("a", 0.0)
    policy.exited("a", 1.0)
    assert policy.stop(1.5) == [End(0)]
    assert policy.tick(100.0) == []


EVENTS = st.tuples(
    st.sampled_from(["ready", "failed", "exited", "beat", "tick", "stop"]),
    st.sampled_from(["a", "b", "c"]),
    st.floats(0.0, 30.0),
)


@given(st.lists(EVENTS, max_size=60), st.integers())
def test_whatever_happens_a_worker_has_at_most_one_process_and_the_run_can_end(
    events: list[tuple[str, str, float]], seed: int
) -> None:
    rng = random.Random(seed)
    policy = Supervision(["a", "b", "c"], lambda: iter(lambda: rng.random(), None))
    alive: set[str] = set()
    ended: list[int] = []

    def obey(actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Spawn(worker):
                    assert worker not in alive
                    alive.add(worker)
                case Go(worker) | Stop(worker) | Kill(worker):
                    assert worker in alive
                case End(status):
                    assert not alive
                    ended.append(status)

    now = 0.0
    obey(policy.begin(now))
    for event, name, passed in events:
        now += passed
        if ended:
            break
        if event == "tick":
            obey(policy.tick(now))
        elif event == "stop":
            obey(policy.stop(now))
        elif name in alive and event == "ready":
            obey(policy.ready(name, now))
        elif name in alive and event == "beat":
            policy.beat(name, now)
        elif name in alive and event == "failed":
            policy.failed(name, 1)
        elif name in alive and event == "exited":
            alive.discard(name)
            obey(policy.exited(name, now))
    if not ended and not policy.stopping:
        obey(policy.stop(now))
    for name in sorted(alive):
        alive.discard(name)
        obey(policy.exited(name, now))
    assert len(ended) == 1
