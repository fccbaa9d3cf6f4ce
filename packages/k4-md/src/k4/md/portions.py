"""Cut a list of subscriptions into what one connection, or one request, may carry."""

from __future__ import annotations

from collections.abc import Sequence


def portions(sizes: Sequence[int], *, most: int = 0, room: int = 0) -> list[range]:
    """Runs of consecutive items, as few as the limits allow, of nearly equal lengths where that
    fits.

    sizes: length of every item's text. most: items in a run. room: length of a run's items, with
    one separator between two. 0: no such limit. An item that alone exceeds `room` gets a run of its
    own; the venue then says what it thinks of it.
    """
    found = _greedy(sizes, most, room)
    count, runs = len(sizes), len(found)
    even = [range(count * i // runs, count * (i + 1) // runs) for i in range(runs)]
    return even if all(_fits(sizes, run, most, room) for run in even) else found


def _greedy(sizes: Sequence[int], most: int, room: int) -> list[range]:
    found: list[range] = []
    start = length = 0
    for index, size in enumerate(sizes):
        longer = length + 1 + size if index > start else size
        full = (most and index - start >= most) or (room and longer > room)
        if index > start and full:
            found.append(range(start, index))
            start, longer = index, size
        length = longer
    if sizes:
        found.append(range(start, len(sizes)))
    return found


def _fits(sizes: Sequence[int], run: range, most: int, room: int) -> bool:
    length = sum(sizes[i] for i in run) + len(run) - 1
    return (not most or len(run) <= most) and (not room or length <= room)
