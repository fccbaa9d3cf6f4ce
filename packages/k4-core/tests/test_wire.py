"""Datagrams: the contract's bytes, and nothing that is not them."""

from __future__ import annotations

import hashlib
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k4.core import wire
from k4.core.config import Secret
from k4.core.enums import Kind, ProductType, Venue
from k4.core.errors import WireError
from k4.core.layout import LAYOUTS
from k4.core.records import Trade
from k4.core.wire import Datagram, Flaw, Header, Key, channel_id, parse

NOW = 1_790_000_000_000_000_000
CHANNEL = channel_id(Venue.BINANCE, ProductType.U_MARGIN, Kind.TRADE)
KEY = Key(Secret("between us"))


def trade(trade_id: int) -> memoryview:
    record = Trade("BTCUSDT", 2, 11, 12, trade_id, 42000.5, 0.25, 1, 13)
    return memoryview(LAYOUTS[Kind.TRADE].pack(record))


def sealed(key: Key | None = None, count: int = 3, sequence: int = 8) -> bytearray:
    datagram = Datagram(CHANNEL, 1472, key)
    for i in range(count):
        datagram.append(trade(i))
    return bytearray(datagram.seal(sequence, 0xDEADBEEF, NOW))


def read(data: bytes | bytearray, key: Key | None = None, now: int = NOW) -> Header | Flaw:
    return parse(memoryview(data), key, now)


def test_the_bytes_are_the_contracts() -> None:
    records = b"".join(bytes(trade(i)) for i in range(3))

    assert bytes(sealed()) == (
        struct.pack("<H", 0x344B)
        + bytes([1, 1])
        + struct.pack("<HHQ", 1 << 8 | 2 << 4 | 1, 3, 8)
        + struct.pack("<QII", NOW, 0xDEADBEEF, zlib.crc32(records))
        + records
    )


def test_a_key_appends_blake2b_of_all_before() -> None:
    data = bytes(sealed(KEY))

    assert data[:-16] == bytes(sealed())
    assert data[-16:] == hashlib.blake2b(data[:-16], digest_size=16, key=b"between us").digest()


def test_a_heartbeat_has_no_records_and_carries_the_next_sequence() -> None:
    data = bytes(Datagram(CHANNEL, 1472).heartbeat(42, 7, NOW))

    assert data == struct.pack("<HBBHHQQII", 0x344B, 1, 101, CHANNEL, 0, 42, NOW, 7, 0)
    assert read(data) == Header(101, CHANNEL, 0, 42, NOW, 7)


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("mtu", [400, 1472, 9000])
def test_a_datagram_is_full_when_no_further_record_fits(
    kind: Kind, mtu: int, key: Key | None
) -> None:
    channel = channel_id(4, 1, kind)
    size = LAYOUTS[kind].size
    datagram = Datagram(channel, mtu, key)
    record = memoryview(bytes(range(256)) * 2)[:size]

    while not datagram.append(record):
        pass
    data = datagram.seal(1, 2, NOW)

    assert mtu - size < len(data) <= mtu
    assert parse(data, key, NOW) == Header(kind, channel, datagram.capacity, 1, NOW, 2)
    assert datagram.count == 0


def test_a_used_buffer_leaves_nothing_behind() -> None:
    datagram = Datagram(CHANNEL, 1472, KEY)
    for i in range(9):
        datagram.append(trade(i))
    datagram.seal(1, 5, NOW)
    datagram.append(trade(9))

    data = datagram.seal(10, 5, NOW)

    assert data[32:-16] == trade(9)
    assert parse(data, KEY, NOW) == Header(1, CHANNEL, 1, 10, NOW, 5)


@pytest.mark.parametrize(("at", "value", "flaw"), [
    (0, b"\x00", Flaw.MAGIC),
    (2, b"\x02", Flaw.VERSION),
    (3, b"\x00", Flaw.KIND),  # a kind that exists, but not the channel's
    (3, b"\x04", Flaw.KIND),
    (4, b"\x24", Flaw.KIND),  # the channel's, reserved
    (3, b"\x65", Flaw.LENGTH),  # a heartbeat with records
    (6, b"\x00\x00", Flaw.LENGTH),
    (6, b"\x02\x00", Flaw.LENGTH),
    (6, b"\xff\xff", Flaw.LENGTH),
    (8, b"\x00", Flaw.SEQUENCE),
    (8, b"\xff" * 8, Flaw.SEQUENCE),
    (28, b"\x00", Flaw.CRC),
    (100, b"\x01", Flaw.CRC),
])  # fmt: skip
@pytest.mark.parametrize("key", [None, KEY])
def test_what_is_wrong_is_named(at: int, value: bytes, flaw: Flaw, key: Key | None) -> None:
    data = sealed(key)
    data[at : at + len(value)] = value

    assert read(data, key) is flaw
    assert not flaw.unauthorized


@pytest.mark.parametrize("length", [0, 1, 31])
def test_less_than_a_header_is_short(length: int) -> None:
    assert read(sealed()[:length]) is Flaw.SHORT


def test_a_cut_or_padded_datagram_has_the_wrong_length() -> None:
    data = sealed()

    assert read(data[:-1]) is Flaw.LENGTH
    assert read(data + b"\0") is Flaw.LENGTH
    assert read(sealed(KEY)) is Flaw.LENGTH  # a tag that nobody here can check


@pytest.mark.parametrize("key", [None, KEY])
def test_a_heartbeat_must_not_claim_a_checksum(key: Key | None) -> None:
    data = bytearray(Datagram(CHANNEL, 1472, key).heartbeat(5, 6, NOW))
    data[28] = 1

    assert read(data, key) is Flaw.CRC


def test_without_the_key_nothing_gets_in() -> None:
    for flaw, data in {
        "missing": sealed(),
        "another key": sealed(Key(Secret("guessed"))),
        "tag changed": sealed(KEY)[:-1] + b"\0",
        "sequence changed": sealed(KEY)[:8] + b"\x09" + sealed(KEY)[9:],
    }.items():
        assert read(data, KEY) is Flaw.TAG, flaw
    assert Flaw.TAG.unauthorized


@pytest.mark.parametrize("offset", [-31, 31])
def test_a_recorded_datagram_cannot_be_replayed_later(offset: int) -> None:
    assert read(sealed(KEY), KEY, NOW + offset * 10**9) is Flaw.SEND_TIME
    assert isinstance(read(sealed(KEY), KEY, NOW + offset * 29 * 10**9 // 31), Header)
    assert isinstance(read(sealed(), None, NOW + offset * 10**9), Header)


@given(st.binary(max_size=2000), st.sampled_from([None, KEY]))
def test_any_bytes_are_a_header_or_a_flaw(data: bytes, key: Key | None) -> None:
    assert isinstance(read(data, key), Header | Flaw)


@given(st.data(), st.sampled_from([None, KEY]))
def test_a_changed_datagram_is_never_taken_for_other_records(
    data: st.DataObject, key: Key | None
) -> None:
    whole = sealed(key)
    changed = bytearray(whole)
    at = data.draw(st.integers(32, len(whole) - 1))
    changed[at] ^= data.draw(st.integers(1, 255))

    assert isinstance(read(changed, key), Flaw)


@pytest.mark.parametrize(("venue", "product", "kind"), [(0, 0, 0), (255, 0, 0), (1, 16, 0)])
def test_a_channel_that_does_not_fit_is_refused(venue: int, product: int, kind: int) -> None:
    with pytest.raises(WireError):
        channel_id(venue, product, kind)


def test_a_channel_falls_apart_again() -> None:
    assert wire.split_channel(channel_id(254, 7, 3)) == (254, 7, 3)


@pytest.mark.parametrize("mtu", [335, 65_508])
def test_an_mtu_that_carries_no_book_is_refused(mtu: int) -> None:
    with pytest.raises(WireError, match="set mtu to 336"):
        Datagram(channel_id(1, 0, Kind.DEPTH5), mtu, KEY)


@pytest.mark.parametrize("secret", ["", "x" * 65])
def test_a_key_of_the_wrong_length_is_refused_without_showing_it(secret: str) -> None:
    with pytest.raises(WireError) as caught:
        Key(Secret(secret))
    assert "xx" not in str(caught.value)
