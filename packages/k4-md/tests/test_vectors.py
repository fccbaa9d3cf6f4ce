"""Every venue against its vectors, found by looking: a venue without vectors fails here.

A vector file, `vectors/<venue>-<what>.json`, is a list of cases:

    case      what is shown           source    document page or capture it was taken from
    feed      `venue.product.feed`    frames    texts, or {"hex": …} for binary ones, in order
    records   what comes out: `kind` (bbo, trade, aggtrade, depth5) and the record's fields; prices
              and volumes as decimal text; a field that is not named is 0, a side has up to five
    control   {"type": ack | refused | notice | heartbeat | broken, …its fields}
    skipped, seeded    [symbol, id]   drops     reasons

and, where needed, `symbols` as configured (otherwise those of the records, in order), `mapped` (the
venue's ids of them), `options` (fields of the product's configuration) and `endpoints`. All frames
of a case pass one session; what a case does not mention must not happen.
"""

from __future__ import annotations

import importlib
import json
import math
import pkgutil
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import k4.md.exchanges
from k4.core.config import ConnectionConfig, ProductConfig, Secret
from k4.core.enums import KIND_BY_LABEL
from k4.core.layout import LAYOUTS
from k4.core.records import RECORDS, Record
from k4.md.feed import Ack, Broken, Control, Exchange, Feed, Heartbeat, Notice, Refused
from k4.md.sinks import CollectingSink

HERE = Path(__file__).parent
CONTROL: dict[str, type[Control]] = {
    "ack": Ack,
    "refused": Refused,
    "notice": Notice,
    "heartbeat": Heartbeat,
    "broken": Broken,
}
OUTCOMES = ("records", "control", "skipped", "seeded", "drops")
OTHER_KEYS = {"case", "source", "feed", "frames", "symbols", "mapped", "options", "endpoints"}

VENUES = sorted(m.name for m in pkgutil.iter_modules(k4.md.exchanges.__path__))
FILES = sorted((HERE / "vectors").glob("*.json"))
CASES: list[dict[str, Any]] = [case for file in FILES for case in json.loads(file.read_text())]
FEEDS = sorted({case["feed"] for case in CASES})


def exchange_of(name: str) -> Exchange:
    exchange = importlib.import_module(f"k4.md.exchanges.{name}").EXCHANGE
    assert isinstance(exchange, Exchange)
    return exchange


def feed_of(case: dict[str, Any]) -> Feed:
    """The feed that a case is about."""
    venue, product, _ = case["feed"].split(".", 2)
    exchange = exchange_of(venue)
    symbols = case.get("symbols") or list(dict.fromkeys(r["symbol"] for r in case["records"]))
    options = dict(case.get("options", {}))
    labels = options.pop("kinds", None)
    kinds = (
        tuple(KIND_BY_LABEL[label] for label in labels)
        if labels
        else exchange.product(product).kinds
    )
    headers = {name: Secret(text) for name, text in options.pop("headers", {}).items()}
    config = ConnectionConfig(
        exchange=venue,
        endpoints={key: tuple(urls) for key, urls in case.get("endpoints", {}).items()},
        products=(
            ProductConfig(
                name=product, symbols=tuple(symbols), kinds=kinds, headers=headers, **options
            ),
        ),
    )
    rule = exchange.product(product).rule
    mapped = case.get("mapped") or [rule(symbol) for symbol in symbols]
    table = {(product, s): v for s, v in zip(symbols, mapped, strict=True)}
    return next(f for f in exchange.feeds(config, table) if f.name == case["feed"])


def frame_of(entry: str | dict[str, str]) -> bytes:
    return entry.encode() if isinstance(entry, str) else bytes.fromhex(entry["hex"])


def expected(entry: dict[str, Any], product_type: int) -> Record:
    """The record that a vector describes; decimal text goes through Decimal, rounded once."""
    kind = KIND_BY_LABEL[entry["kind"]]
    given = {"product_type": product_type} | {k: v for k, v in entry.items() if k != "kind"}
    values: dict[str, Any] = {}
    for field in LAYOUTS[kind].fields:
        real = field.ctype.code == "d"
        many = field.ctype.count > 1
        value = given.pop(field.name, [] if many else 0)
        figures = value if many else [value]
        if field.name != "symbol":
            figures = [float(Decimal(x)) if real else int(x) for x in figures]
        padding = (0.0 if real else 0,) * (field.ctype.count - len(figures))
        values[field.name] = (*figures, *padding) if many else figures[0]
    assert not given, f"no fields of {entry['kind']}: {given}"
    return RECORDS[kind](**values)


def packed(record: Record) -> tuple[Record, bytes]:
    """A record beside its bytes: equal to the last bit, and readable where it is not."""
    kind = next(kind for kind, cls in RECORDS.items() if isinstance(record, cls))
    return record, LAYOUTS[kind].pack(record)


# -- the vectors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['feed']}: {c['case']}")
def test_a_session_says_exactly_what_the_vector_says(case: dict[str, Any]) -> None:
    feed = feed_of(case)
    session, sink = feed.session(), CollectingSink.of(feed)
    for entry in case["frames"]:
        session.receive(frame_of(entry), 0, sink)
    records = [expected(entry, feed.product_type) for entry in case.get("records", [])]
    assert [packed(r) for r in sink.records] == [packed(r) for r in records]
    assert sink.controls == [
        msgspec.convert({k: v for k, v in entry.items() if k != "type"}, CONTROL[entry["type"]])
        for entry in case.get("control", [])
    ]
    assert sink.skipped == [tuple(pair) for pair in case.get("skipped", [])]
    assert sink.seeded == [tuple(pair) for pair in case.get("seeded", [])]
    assert sink.drops == case.get("drops", [])


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['feed']}: {c['case']}")
def test_a_vector_names_its_source_and_what_comes_out(case: dict[str, Any]) -> None:
    assert case["source"].strip()
    assert case["frames"]
    assert any(key in case for key in OUTCOMES)
    assert not case.keys() - OTHER_KEYS - set(OUTCOMES)


@pytest.mark.parametrize("venue", VENUES)
def test_the_vectors_of_a_venue_cover_its_products_and_kinds(venue: str) -> None:
    exchange = exchange_of(venue)
    cases = [case for case in CASES if case["feed"].startswith(f"{venue}.")]
    assert {case["feed"].split(".")[1] for case in cases} == {p.name for p in exchange.products}
    shown = {KIND_BY_LABEL[r["kind"]] for case in cases for r in case.get("records", [])}
    assert shown == {kind for product in exchange.products for kind in product.kinds}
    assert any(case.get("control") for case in cases)


@pytest.mark.parametrize("venue", VENUES)
def test_a_venue_is_registered_under_its_own_name(venue: str) -> None:
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    entry = project["entry-points"]["k4.md.exchanges"][venue]
    assert entry == f"k4.md.exchanges.{venue}:EXCHANGE"
    assert exchange_of(venue).name == venue


def test_every_file_of_vectors_belongs_to_a_venue() -> None:
    assert FILES
    for file in FILES:
        venues = {case["feed"].split(".")[0] for case in json.loads(file.read_text())}
        assert venues == {file.stem.split("-")[0]}
        assert venues <= set(VENUES)


# -- hostile frames --------------------------------------------------------------------------------


class ProvingSink(CollectingSink):
    """Refuses whatever could not be published: no place in a record, no figure of a market."""

    def __init__(self, feed: Feed) -> None:
        super().__init__({c.slot: c.symbol for c in feed.channels}, feed.product_type)

    def prove(self) -> None:
        for record in self.records:
            for name, figure in msgspec.structs.asdict(record).items():
                for x in figure if isinstance(figure, tuple) else (figure,):
                    if name != "symbol":
                        assert math.isfinite(x)
                        assert x >= 0
            packed(record)
        assert all(0 <= id < 2**63 for _, id in (*self.skipped, *self.seeded))

    @property
    def silent(self) -> bool:
        lists = (self.records, self.skipped, self.seeded, self.controls, self.drops)
        return not any(lists)


def of_feed(name: str) -> tuple[Feed, list[bytes]]:
    """One feed with all the frames that the vectors show of it."""
    cases = [case for case in CASES if case["feed"] == name]
    return feed_of(cases[0]), [frame_of(entry) for case in cases for entry in case["frames"]]


@pytest.mark.parametrize("name", FEEDS)
@settings(max_examples=150, deadline=None)
@given(frames=st.lists(st.binary(max_size=200), min_size=1, max_size=5))
def test_any_bytes_are_dropped_and_counted(name: str, frames: list[bytes]) -> None:
    feed, _ = of_feed(name)
    session = feed.session()
    for frame in frames:
        sink = ProvingSink(feed)
        session.receive(frame, 0, sink)
        sink.prove()
        assert not sink.silent


LEAVES = [b"null", b"true", b"-1", b"0", b"1e400", b"-1e-400", b"9" * 400, b'"' + b"9" * 400 + b'"']
LEAVES += [b'"NaN"', b'"Infinity"', b"NaN", b'"-0"', b'""', b"[]", b"{}", b'"\\ud800"', b'"\xff"']
LEAVES += [b"18446744073709551615", b"9223372036854775807", b"9223372036854775808", b"1.5", b"[[]]"]


@st.composite
def mutations(draw: st.DrawFn, frames: list[bytes]) -> bytes:
    """A frame of the vectors, hurt once or twice."""
    frame = draw(st.sampled_from(frames))
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, max(len(frame) - 1, 0)))
        match draw(st.sampled_from(["cut", "flip", "insert", "value", "key", "repeat"])):
            case "cut":
                frame = frame[:at] + frame[at + draw(st.integers(1, 9)) :]
            case "flip" if frame:
                frame = (
                    frame[:at] + bytes([frame[at] ^ 1 << draw(st.integers(0, 7))]) + frame[at + 1 :]
                )
            case "insert":
                frame = frame[:at] + draw(st.binary(min_size=1, max_size=9)) + frame[at:]
            case "value":
                colon = frame.find(b":", at)
                end = min(
                    (e for e in (frame.find(b",", colon), frame.find(b"}", colon)) if e > 0),
                    default=0,
                )
                if 0 <= colon < end:
                    frame = frame[: colon + 1] + draw(st.sampled_from(LEAVES)) + frame[end:]
            case "key":
                key = draw(
                    st.sampled_from([b'"s"', b'"e"', b'"u"', b'"data"', b'"id"', b'"b"', b'"p"'])
                )
                brace = frame.find(b"{", at) + 1
                leaf = draw(st.sampled_from(LEAVES))
                frame = frame[:brace] + key + b":" + leaf + b"," + frame[brace:]
            case _:
                frame = frame[:at] + frame[at : at + 40] * 3 + frame[at + 40 :]
    return frame


@pytest.mark.parametrize("name", FEEDS)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_hurt_frames_give_records_that_can_be_published_or_nothing(
    name: str, data: st.DataObject
) -> None:
    feed, frames = of_feed(name)
    session, sink = feed.session(), ProvingSink(feed)
    for frame in data.draw(st.lists(mutations(frames), min_size=1, max_size=4)):
        session.receive(frame, 0, sink)
    sink.prove()


MIB = 1 << 20
HUGE = {
    "arrays": b"[" * MIB,
    "objects": b'{"a":' * (MIB // 5),
    "nested data": b'{"data":' * (MIB // 8),
    "digits": b'{"u":' + b"9" * MIB,
    "quotes": b'"' * MIB,
    "escapes": b'{"stream":"' + b"\\" * MIB,
    "empty objects": b'{"data":[' + b"{}," * (MIB // 3) + b"{}]}",
    "zeros": bytes(MIB),
    "ones": b"\xff" * MIB,
    "blanks": b" " * MIB,
}


@pytest.mark.parametrize("shape", HUGE)
@pytest.mark.parametrize("name", FEEDS)
@pytest.mark.timeout(20)
def test_a_huge_frame_of_garbage_is_dropped_in_no_time(name: str, shape: str) -> None:
    feed, _ = of_feed(name)
    session, sink = feed.session(), ProvingSink(feed)
    for _ in range(20):
        session.receive(HUGE[shape], 0, sink)
    assert sink.drops
    assert not sink.records
