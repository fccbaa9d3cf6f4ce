"""Loss accounting against a model that remembers every sequence number."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k4.core import session_window
from k4.core.session_window import REACH, SessionWindow

Event = tuple[int, int]  # sequence and count; count 0 is a heartbeat


class Model:
    """The contract's sentences over plain sets."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.first: int | None = None
        self.highest = 0
        self.received = self.duplicate = self.reordered = 0

    def take(self, sequence: int, count: int) -> list[int]:
        fresh = []
        for number in range(sequence, sequence + count):
            self.received += 1
            if number in self.seen:
                self.duplicate += 1
                continue
            fresh.append(number)
            self.seen.add(number)
            self.reordered += self.first is not None and number <= self.highest
        self._know(sequence, sequence + count - 1)
        return fresh

    def expect(self, sequence: int) -> None:
        self._know(sequence if self.first is None else self.first, sequence - 1)

    def _know(self, first: int, highest: int) -> None:
        self.first = first if self.first is None else min(first, self.first)
        self.highest = max(highest, self.highest)

    @property
    def lost(self) -> int:
        span = 0 if self.first is None else self.highest - self.first + 1
        return span - len(self.seen)


def replay(window: SessionWindow, model: Model, events: list[Event]) -> None:
    for sequence, count in events:
        if count:
            runs = window.take(sequence, count)
            fresh = [number for start, end in runs for number in range(start, end)]
            assert fresh == model.take(sequence, count)
        else:
            window.expect(sequence)
            model.expect(sequence)


EVENTS = st.lists(st.tuples(st.integers(1, 120), st.integers(0, 12)), max_size=60)


@given(EVENTS)
def test_every_record_is_accounted_for_in_any_order(events: list[Event]) -> None:
    window, model = SessionWindow(), Model()

    replay(window, model, events)

    assert window.received == model.received
    assert window.accepted == len(model.seen)
    assert window.duplicate == model.duplicate
    assert window.reordered == model.reordered
    assert window.lost == model.lost
    assert window.stale == 0
    if events:
        assert window.accepted + window.lost == window.next - window.first
    assert sum(end - start for start, end in window.holes) == window.lost


@given(EVENTS, st.integers(1, 4))
def test_with_few_holes_to_keep_nothing_is_taken_twice(events: list[Event], most: int) -> None:
    window, taken = SessionWindow(), set[int]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session_window, "MAX_HOLES", most)
        for sequence, count in events:
            if not count:
                window.expect(sequence)
                continue
            for start, end in window.take(sequence, count):
                run = set(range(start, end))
                assert not run & taken
                taken |= run
            assert len(window.holes) <= most

    assert window.accepted == len(taken)
    assert window.received == window.accepted + window.duplicate + window.stale
    if events:
        assert window.accepted + window.lost == window.next - window.first


def test_a_late_arrival_takes_its_loss_back() -> None:
    window = SessionWindow()
    window.take(1, 10)
    window.take(31, 10)
    assert window.lost == 20

    assert window.take(15, 3) == ((15, 18),)

    assert (window.lost, window.reordered, window.holes) == (17, 3, ((11, 15), (18, 31)))


def test_a_heartbeat_proves_the_loss_of_what_came_last() -> None:
    window = SessionWindow()
    window.take(1, 10)

    window.expect(14)

    assert (window.lost, window.holes) == (3, ((11, 14),))


def test_one_datagram_may_overlap_what_came_by_another_path() -> None:
    window = SessionWindow()
    window.take(1, 5)
    window.take(9, 2)

    assert window.take(4, 9) == ((6, 9), (11, 13))

    assert (window.accepted, window.duplicate, window.lost) == (12, 4, 0)


def test_the_session_may_have_begun_before_the_first_datagram_that_came() -> None:
    window = SessionWindow()
    window.take(13, 12)

    assert window.take(1, 12) == ((1, 13),)

    assert (window.first, window.accepted, window.reordered, window.lost) == (1, 24, 12, 0)


def test_a_replay_from_long_before_is_stale_and_invents_no_loss() -> None:
    window = SessionWindow()
    window.take(REACH + 100, 1)

    assert window.take(1, 5) == ()

    assert (window.stale, window.lost, window.accepted) == (5, 0, 1)


def test_a_forged_jump_costs_one_interval_and_heals() -> None:
    window = SessionWindow()
    window.take(1, 10)
    window.take((1 << 64) - 10, 5)
    assert len(window.holes) == 1

    assert window.take(11, 10) == ((11, 21),)

    assert window.accepted == 25
