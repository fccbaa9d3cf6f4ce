"""Lists cut to limits: whole, in order, as few runs as there can be, and even where that fits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from k4.md.portions import portions


@given(
    sizes=st.lists(st.integers(1, 30), max_size=60),
    most=st.integers(0, 12),
    room=st.integers(0, 200),
)
def test_runs_are_whole_in_order_within_limits_and_few(
    sizes: list[int], most: int, room: int
) -> None:
    runs = portions(sizes, most=most, room=room)
    assert [i for run in runs for i in run] == list(range(len(sizes)))
    for run in runs:
        assert len(run) >= 1
        assert not most or len(run) <= most
        length = sum(sizes[i] for i in run) + len(run) - 1
        assert not room or length <= room or len(run) == 1
    fewest = 0
    count = length = 0
    for size in sizes:  # filling each run before the next one begins is as good as it gets
        if count == 0 or (most and count == most) or (room and length + 1 + size > room):
            fewest, count, length = fewest + 1, 0, -1
        count, length = count + 1, length + 1 + size
    assert len(runs) == fewest


def test_runs_are_even_where_that_fits() -> None:
    assert portions([]) == []
    assert portions([5, 5, 5]) == [range(3)]
    assert [len(run) for run in portions([0] * 11, most=5)] == [3, 4, 4]
    assert portions([50, 1, 1], room=10) == [range(1), range(1, 3)]
