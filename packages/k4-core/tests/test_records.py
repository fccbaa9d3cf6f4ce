"""Promise: one definition; what is packed is what NumPy and Python read, to the last bit."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k4.core import layout
from k4.core.enums import Kind
from k4.core.errors import K4Error
from k4.core.records import RECORDS, CType, Record, Trade

INTEGERS = {
    "B": (0, 2**8 - 1),
    "I": (0, 2**32 - 1),
    "i": (-(2**31), 2**31 - 1),
    "Q": (0, 2**64 - 1),
}
SYMBOLS = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=32
).filter(lambda text: len(text.encode()) <= 32)


def values(ctype: CType) -> st.SearchStrategy[Any]:
    if ctype.code == "s":
        return SYMBOLS
    one: st.SearchStrategy[Any] = (
        st.floats(allow_nan=False) if ctype.code == "d" else st.integers(*INTEGERS[ctype.code])
    )
    return st.tuples(*[one] * ctype.count) if ctype.count > 1 else one


def records(kind: Kind) -> st.SearchStrategy[Record]:
    members = [values(field.ctype) for field in layout.LAYOUTS[kind].fields]
    return st.tuples(*members).map(lambda row: RECORDS[kind](*row))


@given(st.sampled_from(list(Kind)).flatmap(lambda kind: st.tuples(st.just(kind), records(kind))))
def test_round_trip(case: tuple[Kind, Record]) -> None:
    kind, record = case
    raw = layout.LAYOUTS[kind].pack(record)
    assert layout.LAYOUTS[kind].unpack(raw) == record
    row = np.frombuffer(raw, layout.LAYOUTS[kind].dtype)[0]
    for field in layout.LAYOUTS[kind].fields:
        ours, theirs = getattr(record, field.name), row[field.name]
        if field.ctype.code == "s":
            assert theirs == ours.encode()
        else:
            assert np.array_equal(theirs, np.array(ours, theirs.dtype))


def test_a_float_keeps_its_bits() -> None:
    record = layout.LAYOUTS[Kind.TRADE]
    raw = record.pack(Trade("A", 0, 0, 0, 0, -0.0, math.nan, 0, 0))
    price = raw[record.offset("price") : record.offset("price") + 8]
    assert price == struct.pack("<d", -0.0)
    back = record.unpack(raw)
    assert isinstance(back, Trade)
    assert math.isnan(back.vol)


@pytest.mark.parametrize("symbol", ["", "A" * 33, "币" * 11, "A\0B"])
def test_a_symbol_is_never_cut(symbol: str) -> None:
    with pytest.raises(K4Error, match="1 to 32 bytes"):
        layout.encode_symbol(symbol)


@pytest.mark.parametrize("symbol", ["A", "A" * 32, "币安人生USDT", "币" * 10 + "AB"])
def test_a_symbol_of_up_to_32_bytes_survives(symbol: str) -> None:
    assert layout.decode_symbol(layout.encode_symbol(symbol).ljust(32, b"\0")) == symbol


def test_bytes_that_are_no_text_are_replaced() -> None:
    assert layout.decode_symbol(b"\xffA" + bytes(30)) == "�A"


@pytest.mark.parametrize("kind", list(Kind))
def test_a_value_that_does_not_fit_is_refused(kind: Kind) -> None:
    record = layout.LAYOUTS[kind]
    blank = [
        0.0 if f.ctype.code == "d" else 0 for f in record.fields[1:] for _ in range(f.ctype.count)
    ]
    assert record.packer.pack(b"A", *blank)
    blank[0] = 256  # product_type is one byte
    with pytest.raises(struct.error):
        record.packer.pack(b"A", *blank)
