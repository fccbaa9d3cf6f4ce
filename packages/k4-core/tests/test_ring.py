"""Promises: no torn record, and the exact number of lost ones; against a plain list as model."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k4.core import layout
from k4.core.enums import Kind
from k4.core.errors import K4Error
from k4.core.records import Bookticker
from k4.core.ring import Lane, LaneReader, RingReader, RingWriter


def publish(lane: Lane, n: int) -> None:
    """Record n of a lane, recognizable in every field."""
    lane.publish(n % 8, n, n, n, n + 0.25, n + 0.5, n + 0.75, n + 1.0, n, n, n)


def record(symbol: str, n: int) -> Bookticker:
    return Bookticker(symbol, n % 8, n, n, n, n + 0.25, n + 0.5, n + 0.75, n + 1.0, n, n, n)


def ring(size: int, *symbols: str) -> tuple[RingWriter, RingReader]:
    writer = RingWriter.in_memory(Kind.BOOKTICKER, symbols or ("A",), size)
    return writer, RingReader(writer.buffer.toreadonly(), Kind.BOOKTICKER)


STEP = st.one_of(
    st.tuples(st.just("publish"), st.integers(0, 1), st.integers(1, 12)),
    st.tuples(st.just("since"), st.integers(0, 1), st.integers(0, 6)),
    st.tuples(st.just("latest"), st.integers(0, 1), st.just(0)),
    st.tuples(st.just("reset"), st.integers(0, 1), st.just(0)),
)


@given(st.integers(2, 9), st.lists(STEP, max_size=60))
def test_any_sequence_against_a_list(size: int, steps: list[tuple[str, int, int]]) -> None:
    writer, reader = ring(size, "A", "B")
    written, cursors, resets, read = [0, 0], [0, 0], [0, 0], [0, 0]
    for what, i, n in steps:
        symbol, lane = "AB"[i], writer.lanes[i]
        if what == "publish":
            for _ in range(n):
                publish(lane, written[i])
                written[i] += 1
        elif what == "since":
            limit = n or None  # 0 draws "no limit"
            batch = reader.since(symbol, cursors[i], limit)
            there = list(range(max(cursors[i], written[i] - (size - 1)), written[i]))[:limit]
            assert batch.records["update_id"].tolist() == there
            assert [
                layout.LAYOUTS[Kind.BOOKTICKER].unpack(row.tobytes()) for row in batch.records
            ] == [record(symbol, k) for k in there]
            assert batch.lost + len(there) == batch.cursor - cursors[i]
            cursors[i] = batch.cursor
            read[i] += batch.lost + len(there)
        elif what == "latest":
            newest = record(symbol, written[i] - 1) if written[i] else None
            assert reader.latest(symbol) == newest
        else:
            resets[i] += 1
            assert lane.open_generation() == resets[i]
    for i, symbol in enumerate("AB"):
        batch = reader.since(symbol, cursors[i])
        assert read[i] + batch.lost + len(batch.records) == written[i] == batch.cursor
        assert reader.cursor(symbol) == written[i]
        assert reader.generation(symbol) == resets[i]
    assert reader.update_num == sum(written)


class Interleaved:
    """Index words that let the writer act at the n-th load: a race, played by hand."""

    def __init__(self, words: memoryview, at_load: int, act: Callable[[], None]) -> None:
        self.words, self.left, self.act = words, at_load, act

    def __getitem__(self, k: int) -> int:
        self.left -= 1
        if self.left == 0:
            self.act()
        return int(self.words[k])


def raced(writer: RingWriter, at_load: int, act: Callable[[], None]) -> LaneReader:
    words = cast(memoryview, Interleaved(writer.words, at_load, act))
    return LaneReader(writer.buffer, words, writer.kind, layout.HEADER_SIZE, writer.buffer_size)


@pytest.mark.parametrize("size", [2, 3, 4, 7])
@pytest.mark.parametrize("before", range(10))
@pytest.mark.parametrize("during", range(10))
def test_overtaken_during_the_copy(size: int, before: int, during: int) -> None:
    writer, _ = ring(size)
    lane = writer.lanes[0]
    for n in range(before):
        publish(lane, n)

    def overtake() -> None:
        for n in range(before, before + during):
            publish(lane, n)

    batch = raced(writer, 2, overtake).since(0)
    total = before + during
    # of what was there at the first load, that which was still there at the second
    survivors = list(range(max(0, before - size + 1, total - size + 1), before))
    assert batch.records["update_id"].tolist() == survivors
    assert (batch.cursor, batch.lost) == (before, before - len(survivors))


@pytest.mark.parametrize("size", [2, 3, 64])
def test_the_slot_being_written_is_never_read(size: int) -> None:
    writer, reader = ring(size)
    lane = writer.lanes[0]
    for n in range(3 * size):
        publish(lane, n)
    at = lane.base + lane.next % size * lane.stride
    writer.buffer[at : at + lane.stride] = b"\xee" * lane.stride  # a writer inside its next slot
    batch = reader.since("A", 0)
    assert batch.records["update_id"].tolist() == list(range(2 * size + 1, 3 * size))
    assert reader.latest("A") == record("A", 3 * size - 1)


@pytest.mark.parametrize("size", [2, 3])
def test_latest_tries_again_when_overtaken(size: int) -> None:
    writer, _ = ring(size)
    lane = writer.lanes[0]
    publish(lane, 0)

    def overtake() -> None:
        for n in range(1, 1 + size):
            publish(lane, n)

    assert raced(writer, 2, overtake).latest() == record("A", size)


def test_a_batch_is_a_private_copy() -> None:
    writer, reader = ring(4)
    publish(writer.lanes[0], 0)
    batch = reader.since("A", 0)
    for n in range(1, 20):
        publish(writer.lanes[0], n)
    assert batch.records["bid_price"].tolist() == [0.25]
    batch.records["bid_price"] = 9.0  # the caller's own memory
    assert batch.records.dtype == layout.LAYOUTS[Kind.BOOKTICKER].dtype
    reader.release()
    assert batch.records["bid_price"].tolist() == [9.0]
    with pytest.raises(ValueError, match="released"):
        reader.latest("A")


def test_an_empty_ring() -> None:
    _, reader = ring(2, "A", "币安人生USDT")
    assert reader.symbols == ("A", "币安人生USDT")
    assert reader.latest("A") is None
    records, cursor, lost = reader.since("A", 0)
    assert (records.shape, cursor, lost) == ((0,), 0, 0)
    assert records.dtype == layout.LAYOUTS[Kind.BOOKTICKER].dtype


@pytest.mark.parametrize("cursor", [-1, 4])
def test_a_cursor_outside_the_ring_is_an_error(cursor: int) -> None:
    writer, reader = ring(8)
    for n in range(3):
        publish(writer.lanes[0], n)
    assert reader.since("A", 3).cursor == 3
    with pytest.raises(K4Error, match="not within 0 to 3"):
        reader.since("A", cursor)


def test_an_unknown_symbol_names_the_nearest() -> None:
    _, reader = ring(2, "BTCUSDT", "ETHUSDT")
    with pytest.raises(K4Error, match=r"'BTCUSD'.*nearest: BTCUSDT"):
        reader.latest("BTCUSD")


@pytest.mark.parametrize("kind", list(Kind))
def test_every_kind_comes_back_whole(kind: Kind) -> None:
    writer = RingWriter.in_memory(kind, ["A"], 3)
    reader = RingReader(writer.buffer, kind)
    codes = "".join(f.ctype.code * f.ctype.count for f in layout.LAYOUTS[kind].fields[1:])
    for n in range(5):
        writer.lanes[0].publish(*(n + k / 4 if code == "d" else n for k, code in enumerate(codes)))
        raw = writer.lanes[0].newest().tobytes()
        assert reader.latest("A") == layout.LAYOUTS[kind].unpack(raw)
        assert reader.since("A", n).records.tobytes() == raw
    read, cursor, lost = reader.lane("A").read(0)
    assert [layout.LAYOUTS[kind].pack(one) for one in read] == [
        row.tobytes() for row in reader.since("A", 0).records
    ]
    assert (cursor, lost) == (5, 3)


def test_the_writer_goes_on_from_the_indexes_it_finds() -> None:
    writer, reader = ring(4, "A", "B")
    for n in range(6):
        publish(writer.lanes[n % 2], n // 2)
    writer.words[0] = 99  # as after a death between index and update_num
    again = RingWriter(writer.buffer, Kind.BOOKTICKER)
    assert [lane.next for lane in again.lanes] == [3, 3]
    assert reader.update_num == 6
    publish(again.lanes[0], 3)
    assert reader.latest("A") == record("A", 3)
    assert reader.since("B", 0).records["update_id"].tolist() == [0, 1, 2]
    assert np.array_equal(reader.since("A", 1).records["update_id"], [1, 2, 3])
