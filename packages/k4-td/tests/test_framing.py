"""The gateway's framing: any bytes, in any pieces."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k4.td.framing import (
    MAX_LINE,
    PAGE_BYTES,
    BadLine,
    Lines,
    Request,
    TooLong,
    encode,
    pages,
    parse_request,
)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@given(st.lists(st.binary(max_size=40)), st.lists(st.integers(0, 10_000), max_size=10))
def test_lines_are_the_same_however_they_are_cut(parts: list[bytes], cuts: list[int]) -> None:
    lines = [part.replace(b"\n", b"") for part in parts]
    data = b"".join(line + b"\n" for line in lines)
    reader = Lines()
    found = [line for piece in pieces(data, cuts) for line in reader.feed(piece)]
    assert found == [line for line in lines if line.strip()]


@given(
    st.lists(st.integers(1, 64), min_size=1, max_size=20),
    st.lists(st.integers(0, 2000), max_size=20),
)
def test_a_line_that_is_too_long_is_told_once_and_the_next_is_read(
    lengths: list[int], cuts: list[int]
) -> None:
    reader = Lines(limit=32)
    data = b"".join(b"x" * length + b"\n" for length in lengths)
    found = [line for piece in pieces(data, cuts) for line in reader.feed(piece)]
    assert [isinstance(line, TooLong) for line in found] == [length >= 32 for length in lengths]
    kept = [len(line) for line in found if not isinstance(line, TooLong)]
    assert kept == [length for length in lengths if length < 32]


def test_memory_is_bounded_without_a_line_feed() -> None:
    reader = Lines()
    told = [line for _ in range(100) for line in reader.feed(b"x" * MAX_LINE)]
    assert told == [TooLong()]
    assert len(reader._rest) < MAX_LINE
    assert reader.feed(b'\n{"id":1}\n') == [b'{"id":1}']


def read(line: bytes) -> Request | BadLine:
    """What a line is; nothing else than BadLine is ever raised."""
    try:
        return parse_request(line)
    except BadLine as error:
        return error


@given(st.binary(max_size=200))
def test_any_line_is_a_request_or_a_bad_line(line: bytes) -> None:
    read(line)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
)
def test_any_json_is_a_request_or_a_bad_line(value: object) -> None:
    for candidate in (value, {"id": value, "method": value, "params": value}):
        read(json.dumps(candidate).encode())


def test_the_id_of_a_bad_request_is_kept_where_there_is_one() -> None:
    with pytest.raises(BadLine) as caught:
        parse_request(b'{"id": 7, "method": 3}')
    assert caught.value.id == 7
    with pytest.raises(BadLine, match="no JSON"):
        parse_request(b"[" * 100_000)


@given(st.lists(st.integers(0, 20_000), max_size=30))
def test_pages_keep_every_item_and_fit_a_line(lengths: list[int]) -> None:
    items = [{"n": number, "text": "x" * length} for number, length in enumerate(lengths)]
    found = pages(items)
    assert [item for page in found for item in page] == items
    for page in found:
        assert len(page) == 1 or sum(len(encode(item)) for item in page) <= PAGE_BYTES + len(page)
        assert len(encode({"id": 10**9, "result": {"orders": page, "next": "x" * 20}})) <= MAX_LINE
