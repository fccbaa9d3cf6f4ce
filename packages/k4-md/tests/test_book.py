"""The incremental book against a plain dictionary, over any sequence of updates."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k4.md.book import Book, BookBroken

Levels = list[tuple[float, float]]

prices = st.sampled_from([i / 4 for i in range(1, 20)])
vols = st.sampled_from([0.0, 0.0, 1.0, 2.5, 3.0])
levels = st.lists(st.tuples(prices, vols), max_size=6)


class Reference:
    """The same book, as slow and as plain as can be."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.sides: tuple[dict[float, float], dict[float, float]] = ({}, {})

    def apply(self, bids: Levels, asks: Levels) -> None:
        for side, changes in zip(self.sides, (bids, asks), strict=True):
            side.update(changes)
        for side, worst_first in zip(self.sides, (False, True), strict=True):
            for price in [p for p, vol in side.items() if not vol]:
                del side[price]
            for price in sorted(side, reverse=worst_first)[: max(0, len(side) - self.most)]:
                del side[price]

    def top(self, count: int) -> tuple[Levels, Levels]:
        bids, asks = self.sides
        return (
            sorted(bids.items(), reverse=True)[:count],
            sorted(asks.items())[:count],
        )


@settings(max_examples=400, deadline=None)
@given(
    most=st.integers(1, 8),
    updates=st.lists(st.tuples(st.booleans(), levels, levels), min_size=1, max_size=30),
)
def test_any_sequence_of_snapshots_and_deltas_equals_a_dictionary(
    most: int, updates: list[tuple[bool, Levels, Levels]]
) -> None:
    book, reference = Book(most), Reference(most)
    for id, (snapshot, bids, asks) in enumerate(updates, 100):
        if snapshot or id == 100:
            reference = Reference(most)
            book.snapshot(id, bids, asks)
        else:
            book.delta(id, bids, asks)
        reference.apply(bids, asks)
        assert book.id == id
        assert book.levels() == reference.top(most)
        assert book.depth5() == reference.top(5)


@settings(max_examples=300, deadline=None)
@given(
    start=st.integers(0, 50),
    updates=st.lists(st.tuples(st.booleans(), st.integers(0, 60)), max_size=30),
)
def test_a_hole_always_breaks_the_book_until_a_snapshot(
    start: int, updates: list[tuple[bool, int]]
) -> None:
    book = Book(50)
    last: int | None = None
    for snapshot, id in [(True, start), *updates]:
        if snapshot:
            book.snapshot(id, [(1.0, 1.0)], [])
            last = id
        elif last is not None and id == last + 1:
            book.delta(id, [(1.0, float(id))], [])
            last = id
        else:
            with pytest.raises(BookBroken, match=str(id)):
                book.delta(id, [(1.0, 9.0)], [])
            last = None
        assert book.valid is (last is not None)
        if last is None:
            with pytest.raises(BookBroken):
                book.depth5()


def test_a_new_book_is_invalid() -> None:
    book = Book(5)
    assert not book.valid
    with pytest.raises(BookBroken, match="update 7 without a snapshot"):
        book.delta(7, [], [])


def test_a_side_that_empties_is_empty_and_an_unknown_deletion_changes_nothing() -> None:
    book = Book(5)
    book.snapshot(1, [(1.0, 1.0)], [(2.0, 1.0)])
    book.delta(2, [(1.0, 0.0), (0.5, 0.0)], [])
    assert book.depth5() == ([], [(2.0, 1.0)])
