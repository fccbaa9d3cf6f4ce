"""Promise: the bytes are those of the C structs, so that a C, C++ or Rust strategy can map them."""

from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from k4.core import layout
from k4.core.enums import Kind
from k4.core.records import AggTrade, Bookticker, Depth5, Record, Trade

SAMPLES: dict[Kind, Record] = {
    Kind.BOOKTICKER: Bookticker(
        "BTCUSDT", 2, 1_700_000_000_000_001, 2, 2**64 - 1, 0.1, 1e-7, 65000.25, 3.5, -4, 5, 6
    ),
    Kind.TRADE: Trade("币安人生USDT", 0, 1, 2, 2**63, 0.30000000000000004, 5e-324, 1, 9),
    Kind.AGGTRADE: AggTrade("A" * 32, 3, 1, 2, 3, 4, 5, 6.5, 7.5, 2**31 - 1, 1, 8),
    Kind.DEPTH5: Depth5(
        "ETHUSDT",
        5,
        1,
        2,
        3,
        5,
        4,
        100.5,
        (1.0, 2.0, 3.0, 4.0, 5.0),
        (1.5, 2.5, 3.5, 4.5, 5.5),
        (6.0, 7.0, 8.0, 9.0, 0.0),
        (6.5, 7.5, 8.5, 9.5, 0.0),
        (1, 2, 3, 4, 5),
        (-6, 7, 8, 9, 0),
        77,
    ),
}

SOURCE = r"""
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef struct {
  char symbol[32]; uint8_t product_type;
  uint64_t event_timestamp_us, trade_timestamp_us, update_id;
  double bid_price, bid_vol, ask_price, ask_vol;
  int32_t bid_order_count, ask_order_count; uint64_t local_time_us;
} Bookticker;
typedef struct {
  char symbol[32]; uint8_t product_type;
  uint64_t event_timestamp_us, trade_timestamp_us, trade_id;
  double price, vol; uint8_t is_buyer_maker; uint64_t local_time_us;
} Trade;
typedef struct {
  char symbol[32]; uint8_t product_type;
  uint64_t event_timestamp_us, trade_timestamp_us, first_trade_id, last_trade_id, agg_trade_id;
  double price, vol; int32_t trade_count; uint8_t is_buyer_maker; uint64_t local_time_us;
} AggTrade;
typedef struct {
  char symbol[32]; uint8_t product_type;
  uint64_t event_timestamp_us, trade_timestamp_us, update_id;
  uint32_t bid_level, ask_level; double last_price;
  double bid_prices[5], bid_vols[5], ask_prices[5], ask_vols[5];
  int32_t bid_order_counts[5], ask_order_counts[5]; uint64_t local_time_us;
} Depth5;
typedef struct { uint64_t update_num; uint32_t instrument_count, buffer_size; } Header;
typedef struct {
  char symbol[32]; int64_t current_index; uint32_t buffer_len, generation; Trade buffer[];
} Instrument;
typedef struct {
  char magic[8]; uint32_t record_kind, record_size, writer_pid, state;
  uint64_t epoch, heartbeat_ns, created_ns, feed_ok_ns;
  uint16_t lines_up, lines_configured; uint32_t reserved;
} Trailer;

#define AT(type, member) printf("\"%s\": %zu, ", #member, offsetof(type, member))
#define END(type) printf("\"sizeof\": %zu}\n", sizeof(type))

static void show_offsets(void) {
  printf("{"); AT(Bookticker, symbol); AT(Bookticker, product_type);
  AT(Bookticker, event_timestamp_us); AT(Bookticker, trade_timestamp_us);
  AT(Bookticker, update_id); AT(Bookticker, bid_price); AT(Bookticker, bid_vol);
  AT(Bookticker, ask_price); AT(Bookticker, ask_vol); AT(Bookticker, bid_order_count);
  AT(Bookticker, ask_order_count); AT(Bookticker, local_time_us); END(Bookticker);
  printf("{"); AT(Trade, symbol); AT(Trade, product_type); AT(Trade, event_timestamp_us);
  AT(Trade, trade_timestamp_us); AT(Trade, trade_id); AT(Trade, price); AT(Trade, vol);
  AT(Trade, is_buyer_maker); AT(Trade, local_time_us); END(Trade);
  printf("{"); AT(AggTrade, symbol); AT(AggTrade, product_type);
  AT(AggTrade, event_timestamp_us); AT(AggTrade, trade_timestamp_us);
  AT(AggTrade, first_trade_id); AT(AggTrade, last_trade_id); AT(AggTrade, agg_trade_id);
  AT(AggTrade, price); AT(AggTrade, vol); AT(AggTrade, trade_count);
  AT(AggTrade, is_buyer_maker); AT(AggTrade, local_time_us); END(AggTrade);
  printf("{"); AT(Depth5, symbol); AT(Depth5, product_type); AT(Depth5, event_timestamp_us);
  AT(Depth5, trade_timestamp_us); AT(Depth5, update_id); AT(Depth5, bid_level);
  AT(Depth5, ask_level); AT(Depth5, last_price); AT(Depth5, bid_prices); AT(Depth5, bid_vols);
  AT(Depth5, ask_prices); AT(Depth5, ask_vols); AT(Depth5, bid_order_counts);
  AT(Depth5, ask_order_counts); AT(Depth5, local_time_us); END(Depth5);
  printf("{"); AT(Header, update_num); AT(Header, instrument_count); AT(Header, buffer_size);
  END(Header);
  printf("{"); AT(Instrument, symbol); AT(Instrument, current_index); AT(Instrument, buffer_len);
  AT(Instrument, generation); AT(Instrument, buffer); END(Instrument);
  printf("{"); AT(Trailer, magic); AT(Trailer, record_kind); AT(Trailer, record_size);
  AT(Trailer, writer_pid); AT(Trailer, state); AT(Trailer, epoch); AT(Trailer, heartbeat_ns);
  AT(Trailer, created_ns); AT(Trailer, feed_ok_ns); AT(Trailer, lines_up);
  AT(Trailer, lines_configured); END(Trailer);
}

#define U(x) printf("%llu ", (unsigned long long)(x))
#define I(x) printf("%d ", (int)(x))
#define F(x) printf("%a ", (double)(x))
#define S(x) do { for (int k = 0; k < 32; k++) printf("%02x", (unsigned char)(x)[k]); \
                  printf(" "); } while (0)

static int show_values(int kind) {
  union { Bookticker b; Trade t; AggTrade a; Depth5 d; } r;
  if (fread(&r, 1, sizeof r, stdin) < 96) return 1;
  S(r.b.symbol); U(r.b.product_type); U(r.b.event_timestamp_us); U(r.b.trade_timestamp_us);
  if (kind == 0) {
    U(r.b.update_id); F(r.b.bid_price); F(r.b.bid_vol); F(r.b.ask_price); F(r.b.ask_vol);
    I(r.b.bid_order_count); I(r.b.ask_order_count); U(r.b.local_time_us);
  } else if (kind == 1) {
    U(r.t.trade_id); F(r.t.price); F(r.t.vol); U(r.t.is_buyer_maker); U(r.t.local_time_us);
  } else if (kind == 2) {
    U(r.a.first_trade_id); U(r.a.last_trade_id); U(r.a.agg_trade_id); F(r.a.price); F(r.a.vol);
    I(r.a.trade_count); U(r.a.is_buyer_maker); U(r.a.local_time_us);
  } else {
    U(r.d.update_id); U(r.d.bid_level); U(r.d.ask_level); F(r.d.last_price);
    for (int k = 0; k < 5; k++) F(r.d.bid_prices[k]);
    for (int k = 0; k < 5; k++) F(r.d.bid_vols[k]);
    for (int k = 0; k < 5; k++) F(r.d.ask_prices[k]);
    for (int k = 0; k < 5; k++) F(r.d.ask_vols[k]);
    for (int k = 0; k < 5; k++) I(r.d.bid_order_counts[k]);
    for (int k = 0; k < 5; k++) I(r.d.ask_order_counts[k]);
    U(r.d.local_time_us);
  }
  return 0;
}

int main(int argc, char **argv) {
  if (argc > 1) return show_values(argv[1][0] - '0');
  show_offsets();
  return 0;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("c")
    (folder / "layout.c").write_text(SOURCE)
    subprocess.run(
        ["gcc", "-std=c11", "-Wall", "-Werror", "-o", folder / "layout", folder / "layout.c"],
        check=True,
    )
    return folder / "layout"


@pytest.fixture(scope="module")
def compiled(program: Path) -> list[dict[str, int]]:
    out = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize("kind", list(Kind))
def test_record_is_the_c_struct(compiled: list[dict[str, int]], kind: Kind) -> None:
    record = layout.LAYOUTS[kind]
    ours = {field.name: field.offset for field in record.fields} | {"sizeof": record.size}
    assert ours == compiled[kind]
    dtype = record.dtype
    assert dtype.fields is not None
    numpy = {name: entry[1] for name, entry in dtype.fields.items()} | {"sizeof": dtype.itemsize}
    assert numpy == compiled[kind]
    assert record.packer.size == record.size


def test_segment_is_the_c_structs(compiled: list[dict[str, int]]) -> None:
    header, instrument, trailer = compiled[4:]
    assert header == {
        "update_num": layout.UPDATE_NUM,
        "instrument_count": layout.INSTRUMENT_COUNT,
        "buffer_size": layout.BUFFER_SIZE,
        "sizeof": layout.HEADER_SIZE,
    }
    assert instrument == {
        "symbol": layout.SYMBOL,
        "current_index": layout.CURRENT_INDEX,
        "buffer_len": layout.BUFFER_LEN,
        "generation": layout.GENERATION,
        "buffer": layout.INSTRUMENT_SIZE,
        "sizeof": layout.INSTRUMENT_SIZE,
    }
    names = "magic record_kind record_size writer_pid state epoch heartbeat_ns created_ns"
    names += " feed_ok_ns lines_up lines_configured"
    assert trailer == {name: getattr(layout, name.upper()) for name in names.split()} | {
        "sizeof": layout.TRAILER_SIZE
    }
    assert layout.HEADER.size == layout.HEADER_SIZE
    assert layout.INSTRUMENT.size == layout.INSTRUMENT_SIZE
    assert layout.TRAILER.size == layout.TRAILER_SIZE


def test_sizes_are_the_contract() -> None:
    assert [layout.LAYOUTS[kind].size for kind in Kind] == [112, 96, 112, 288]
    assert layout.MAGIC_BYTES == b"K4SHM\0\0\1"


@pytest.mark.parametrize("kind", list(Kind))
def test_c_reads_what_is_packed(program: Path, kind: Kind) -> None:
    sample = SAMPLES[kind]
    raw = layout.LAYOUTS[kind].pack(sample).ljust(288, b"\0")
    out = subprocess.run([program, str(int(kind))], input=raw, capture_output=True, check=True)
    words = iter(out.stdout.decode().split())
    assert bytes.fromhex(next(words)) == sample.symbol.encode().ljust(32, b"\0")
    flat: list[Any] = []
    for field in layout.LAYOUTS[kind].fields[1:]:
        value = getattr(sample, field.name)
        flat.extend(value if isinstance(value, tuple) else [value])
    assert [
        float.fromhex(word) if isinstance(value, float) else int(word)
        for value, word in zip(flat, words, strict=True)
    ] == flat


@pytest.mark.parametrize("kind", list(Kind))
def test_padding_is_zero(kind: Kind) -> None:
    record = layout.LAYOUTS[kind]
    dirty = bytearray(b"\xff" * record.size)
    flat = struct.unpack(record.packer.format, record.pack(SAMPLES[kind]))
    record.packer.pack_into(dirty, 0, *flat)
    used = {
        field.offset + k
        for field in record.fields
        for k in range(field.ctype.size * field.ctype.count)
    }
    padding = [dirty[k] for k in range(record.size) if k not in used]
    assert padding
    assert not any(padding)


@pytest.mark.parametrize(
    ("kind", "count", "slots", "size"),
    [(0, 1, 2, 16 + 48 + 2 * 112 + 64), (1, 3, 5, 16 + 3 * (48 + 5 * 96) + 64)],
)
def test_segment_size(kind: int, count: int, slots: int, size: int) -> None:
    assert layout.segment_size(Kind(kind), count, slots) == size
