"""The account of a run: what the ledger says was delivered against what the stores held.

Pure: tables and records in, figures out. A row of the ledger is `confirmed` when at least one
connection certainly brought it: it later answered a ping sent after the frame, or was closed in
order. It was `sent` when some connection was given it. What is published must lie between the two.

    lost        trades: confirmed and not published, unless all copies came when a reset had made
                them stale, or after a snapshot that had them as history, or nothing else was ever
                sent of a reset of Binance, which two ids prove. Quotes and books:
                generations whose newest published one is older than the newest confirmed
    duplicates  ids published twice in a generation
    backward    quotes and books that do not rise within a generation, and any record of a
                generation that was over. Where time is the evidence of a reset, trades of both
                generations are published until a new one is newer by two seconds
    invented    records of which no connection was sent a row, and resets that did not happen
    wrong       records with a field that differs from the row's
    gap_errors  symbols whose ledger of gaps is not what the published ids leave out
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from k4.core.enums import Kind
from k4.runner.sim.ledger import Ledger, Series, SeriesKey
from k4.runner.tally import ID_FIELD, changed

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Table = npt.NDArray[np.void]

TRADES = (Kind.TRADE, Kind.AGGTRADE)
ON_ITS_WAY_US = 1_000_000  # at most, from a venue's write to the gateway's read; venue's time
EVIDENCE_US = 2_000_000  # by which a smaller id must be newer to prove a reset
PROOF_US = 6_000_000  # of venue's time: from the second id of a reset until it is proved
PLAIN = {  # fields of a row that a record repeats as they are, by the record's name
    Kind.BOOKTICKER: {"bid_order_count": "bid_count", "ask_order_count": "ask_count"},
    Kind.TRADE: {"is_buyer_maker": "is_buyer_maker"},
    Kind.AGGTRADE: {
        "is_buyer_maker": "is_buyer_maker",
        "first_trade_id": "first_id",
        "last_trade_id": "last_id",
    },
    Kind.DEPTH5: {"bid_order_counts": "bid_counts", "ask_order_counts": "ask_counts"},
}
PRICES = {
    Kind.BOOKTICKER: ("bid_price", "ask_price"),
    Kind.TRADE: ("price",),
    Kind.AGGTRADE: ("price",),
    Kind.DEPTH5: ("bid_prices", "ask_prices"),
}
SIZES = {
    Kind.BOOKTICKER: ("bid_vol", "ask_vol"),
    Kind.TRADE: ("vol",),
    Kind.AGGTRADE: ("vol",),
    Kind.DEPTH5: ("bid_vols", "ask_vols"),
}


class Verdict(msgspec.Struct, kw_only=True):
    """The account of one (product, symbol, kind)."""

    produced: int = 0
    confirmed: int = 0
    published: int = 0
    lost: int = 0
    duplicates: int = 0
    backward: int = 0
    invented: int = 0
    wrong: int = 0
    gap_errors: int = 0
    gap_ids: int = 0
    resets: int = 0
    notes: list[str] = []

    @property
    def violations(self) -> int:
        return (
            self.lost
            + self.duplicates
            + self.backward
            + self.invented
            + self.wrong
            + self.gap_errors
        )


def judge(ledger: Ledger, series: Series, records: Table, said: Mapping[str, Any]) -> Verdict:
    """The account of one series. said: the gateway's own figures of that slot."""
    key, kind, table = series.key, series.key.kind, series.table()
    confirmed = ledger.delivered_rows(series.key)
    sent = ledger.delivered_rows(series.key, confirmed=False)
    verdict = Verdict(
        produced=len(table),
        confirmed=int(confirmed.sum()),
        published=len(records),
        resets=int(said["resets"]),
        notes=[],
    )
    times = records["trade_timestamp_us"]
    rows = rows_of(table, records[ID_FIELD[kind]], times, kind)
    known = rows >= 0
    verdict.invented = int((~known).sum()) + int((~sent[rows[known]]).sum())
    if verdict.invented:
        verdict.notes.append(f"{verdict.invented} that no connection was sent")
    records, rows = records[known], rows[known]
    _order(verdict, series.key, table, rows, confirmed)
    wrong = wrong_fields(series, table, records, rows)
    verdict.wrong = sum(wrong.values())
    verdict.notes += [f"{name}: {count} wrong" for name, count in wrong.items() if count]
    published = np.zeros(len(table), dtype=np.bool_)
    published[rows] = True
    if kind in TRADES:
        owed = confirmed & ~published
        if kind is Kind.TRADE:
            owed &= table["placeholder"] == 0
        lost = np.flatnonzero(owed).tolist()
        if lost and key.venue != "binance":
            openings = openings_of(table, records, rows)
            lost = [row for row in lost if not stale(ledger, key, row, table[row], openings)]
        if lost and key.venue == "binance":
            lost = [row for row in lost if not is_unproved(table, sent, row)]
        if lost and key.venue == "bitget":
            lost = [row for row in lost if not is_history(ledger, key, row, table[row])]
        verdict.lost = len(lost)
        verdict.notes += [f"lost {table[row]['id']}" for row in lost[:5]]
    else:
        verdict.lost = _outdated(verdict, ledger, key, table, confirmed, published)
    if said["ids"] in ("consecutive", "suspected"):
        _gaps(verdict, table, published, confirmed, sent, said)
    elif said["ids"] == "newest-consecutive":
        _gaps_of_book(verdict, table, published, sent, said)
    return verdict


def is_unproved(table: Table, sent: Bools, row: int) -> bool:
    """Whether a trade is of a generation that cannot be proved: silence proves one only with two of
    its ids, and if all lines stalled after the first, the market may end before the second."""
    generation = table["generation"] == table[row]["generation"]
    return bool(table[row]["generation"]) and int((generation & sent).sum()) < 2


def rows_of(
    table: Table, ids: npt.NDArray[np.uint64], times: npt.NDArray[np.uint64], kind: Kind
) -> Ints:
    """The row of every published id, -1 where there is none.

    Ids that began anew at a reset may repeat those of an earlier generation. Quotes and books only
    rise within one, so the published order tells which is meant, and the time (µs or whole ms, 0
    where the feed has none) where a generation was skipped. Trade ids do not repeat here.
    """
    order = np.argsort(table["id"], kind="stable")
    sorted_ids = table["id"][order]
    if len(np.unique(sorted_ids)) == len(sorted_ids) or kind in TRADES:
        if not len(order):
            return np.full(len(ids), -1, dtype=np.int64)
        at = np.searchsorted(sorted_ids, ids)
        at[at == len(order)] = 0
        return np.where(sorted_ids[at] == ids, order[at], -1).astype(np.int64)
    position: dict[tuple[int, int], int] = {}
    generations = np.unique(table["generation"]).tolist()
    for row, (generation, id) in enumerate(
        zip(table["generation"].tolist(), table["id"].tolist(), strict=True)
    ):
        position.setdefault((generation, id), row)
    exact = table["trade_us"]

    def row_of(turn: int, id: int, us: int) -> int:
        row = position.get((generations[turn], id), -1)
        return row if row >= 0 and us in (0, exact[row], exact[row] // 1000 * 1000) else -1

    found, turn, before = [], 0, -1
    for id, us in zip(ids.tolist(), times.tolist(), strict=True):
        turn += id <= before
        before = id
        rows = (
            (at, row_of(at, id, time)) for time in (us, 0) for at in range(turn, len(generations))
        )
        turn, row = next((pair for pair in rows if pair[1] >= 0), (turn, -1))
        found.append(row)
    return np.array(found, dtype=np.int64)


def _order(verdict: Verdict, key: SeriesKey, table: Table, rows: Ints, confirmed: Bools) -> None:
    kept, counts = np.unique(rows, return_counts=True)
    verdict.duplicates = len(rows) - len(kept)
    verdict.notes += [f"published twice: {table[row]['id']}" for row in kept[counts > 1][:5]]
    generation = table["generation"][rows]
    timed_trades = key.kind in TRADES and key.venue != "binance"
    times = table["trade_us"][rows] if timed_trades else None
    verdict.backward = _of_the_past(generation, times)
    if key.kind not in TRADES:
        verdict.backward += int((np.diff(rows) < 0).sum())
    if verdict.backward:
        verdict.notes.append(f"{verdict.backward} backward")
    opened = sum(
        key.venue == "binance"
        or _is_evident(key, table, confirmed & (table["generation"] == number))
        for number in np.unique(generation)[1:].tolist()
    )
    if opened > verdict.resets:
        verdict.backward += opened - verdict.resets
        verdict.notes.append(f"{opened} resets published, {verdict.resets} counted")
    happened = int(table["generation"].max(initial=0))
    if verdict.resets > happened:
        verdict.invented += verdict.resets - happened
        verdict.notes.append(f"{happened} resets happened, {verdict.resets} counted")


def _of_the_past(generation: Ints, times: Ints | None) -> int:
    """Records of a generation that was over. times: where they are the evidence, µs."""
    if times is None:
        return int((np.diff(generation) < 0).sum())
    return sum(
        int((generation[at:] < number).sum()) for number, at in _proofs(generation, times).items()
    )


def _proofs(generation: Ints, times: Ints) -> dict[int, int]:
    """By generation, the position of the first trade that proves that it has begun."""
    found = {}
    for number in np.unique(generation)[1:].tolist():
        newest = np.maximum.accumulate(np.where(generation < number, times, 0))
        proof = (generation == number) & (times > newest + EVIDENCE_US)
        if proof.any():
            found[number] = int(np.argmax(proof))
    return found


class Opening(NamedTuple):
    """local_us: when a generation was proved. floor_us: venue time of its first trade."""

    local_us: int
    floor_us: int


def openings_of(table: Table, records: Table, rows: Ints) -> dict[int, Opening]:
    """The openings of trades, by generation."""
    generation, times = table["generation"][rows], table["trade_us"][rows]
    return {
        number: Opening(
            int(records["local_time_us"][at]),
            int(times[: at + 1][generation[: at + 1] == number].min()),
        )
        for number, at in _proofs(generation, times).items()
    }


def stale(
    ledger: Ledger, key: SeriesKey, row: int, trade: np.void, openings: Mapping[int, Opening]
) -> bool:
    """Whether every copy of a trade came after a generation had opened that makes it stale."""
    came_us = min(ledger.sent_ns(key, row)) // 1000 + ON_ITS_WAY_US
    return any(
        came_us > opening.local_us
        and (trade["generation"] < number or trade["trade_us"] <= opening.floor_us)
        for number, opening in openings.items()
        if trade["generation"] <= number
    )


def is_history(ledger: Ledger, key: SeriesKey, row: int, trade: np.void) -> bool:
    """Whether all that got a trade had subscribed after it happened and before they were sent it:
    then it was in the snapshot, too, which overtook it, and such trades are history."""
    happened_ns = int(trade["trade_us"]) * 1_000
    return all(
        any(
            happened_ns <= ns <= sent_ns and topic.endswith(f":trade:{key.symbol}")
            for topic, ns in log.topics
        )
        for log, sent_ns in ledger.deliveries(key, row)
    )


def wrong_fields(series: Series, table: Table, records: Table, rows: Ints) -> dict[str, int]:
    """By field: how many records differ from their row."""
    key, kind, truth = series.key, series.key.kind, table[rows]
    differs: dict[str, Bools] = {}
    for name, column in PLAIN[kind].items():
        differs[name] = records[name] != truth[column]
    for names, scale in ((PRICES[kind], series.price_scale), (SIZES[kind], series.size_scale)):
        for name in names:
            # Exact: both operands are integers below 2**53, and division rounds once.
            differs[name] = records[name] != truth[name] / 10.0**scale
    if kind is Kind.AGGTRADE:
        differs["trade_count"] = records["trade_count"] != truth["last_id"] - truth["first_id"] + 1
    if kind is Kind.DEPTH5:
        for side in ("bid", "ask"):
            differs[f"{side}_level"] = records[f"{side}_level"] != (truth[f"{side}_vols"] > 0).sum(
                axis=1
            )
    untimed = key.venue == "binance" and key.product == "spot" and kind not in TRADES
    for name, column, may_lack in (
        ("event_timestamp_us", "event_us", untimed),
        ("trade_timestamp_us", "trade_us", kind not in TRADES),
    ):
        time, exact = records[name].astype(np.int64), truth[column]
        differs[name] = (time != exact) & (time != exact // 1000 * 1000)
        if may_lack:
            differs[name] &= time != 0
    symbol = key.symbol.encode()
    differs["symbol"] = records["symbol"] != symbol
    return {
        name: int((flags if flags.ndim == 1 else flags.any(axis=1)).sum())
        for name, flags in differs.items()
    }


def _outdated(
    verdict: Verdict,
    ledger: Ledger,
    key: SeriesKey,
    table: Table,
    confirmed: Bools,
    published: Bools,
) -> int:
    """Generations whose newest published row is older than the newest confirmed.

    What comes of a generation after the next has begun is stale by promise, and older than what is
    published: only the last generation can be outdated, and those that were never published though
    they lasted long enough to be proved.
    """
    found = 0
    over = table["generation"][published].max(initial=-1)
    for generation in np.unique(table["generation"]):
        rows = np.flatnonzero(table["generation"] == generation)
        due, done = rows[confirmed[rows]], rows[published[rows]]
        if not len(due) or (len(done) and (done[-1] >= due[-1] or generation < over)):
            continue
        if not len(done) and generation < over:
            of = confirmed & (table["generation"] == generation)
            if not (
                _provable(ledger, key, table, due)
                if key.venue == "binance"
                else _is_evident(key, table, of)
            ):
                continue
        # The same five levels are not published again.
        shown = np.flatnonzero(published[: due[-1]])[-1:]
        if key.kind is Kind.DEPTH5 and len(shown) and not changed(table[[shown[0], due[-1]]])[1]:
            continue
        found += 1
        last = table[done[-1]]["id"] if len(done) else "nothing"
        verdict.notes.append(
            f"generation {generation} ends with {last}, delivered {table[due[-1]]['id']}"
        )
    return found


def _is_evident(key: SeriesKey, table: Table, rows: Bools) -> bool:
    """Whether rows of a generation carry evidence that it has begun. On Bybit that is the id 1,
    which tells nothing if it was the last one as well: the venue repeats what does not change."""
    of = table["generation"][np.argmax(rows)] if rows.any() else 0
    former = table[table["generation"] < of]
    if not rows.any() or not len(former):
        return False
    if key.venue == "bybit" and key.kind not in TRADES:
        return bool((table["id"][rows] == 1).any()) and int(former["id"][-1]) != 1
    return bool(table["trade_us"][rows].max() > former["trade_us"].max() + EVIDENCE_US)


def _provable(ledger: Ledger, key: SeriesKey, table: Table, rows: Ints) -> bool:
    """Whether some connection brought two of a generation's rows in time before the next one, both
    newer than what came before: the venue repeats a book under its new id, with its old time."""
    times, generation = table["event_us"], table["generation"]
    of = generation[rows[0]]
    until_us = times[generation > of].min() - PROOF_US
    rows = rows[times[rows] > times[generation < of].max(initial=0)]
    for log in ledger.connections:
        brought = np.intersect1d(ledger.sent_rows(key, log.index), rows)
        if len(brought) > 1 and times[brought[1]] < until_us:
            return True
    return False


def _gaps(
    verdict: Verdict,
    table: Table,
    published: Bools,
    confirmed: Bools,
    sent: Bools,
    said: Mapping[str, Any],
) -> None:
    """The gateway's ledger of gaps against what it can have seen.

    A placeholder leaves no record: of one that was sent and never confirmed nobody can tell whether
    it was seen, so each such allows a difference: it may fill a gap, or begin or end one.
    """
    empty = table["placeholder"] != 0 if "placeholder" in (table.dtype.names or ()) else ~sent
    seen = published | (empty & confirmed)
    inside = _between(table, seen)
    least = missing(table, seen | (empty & sent & inside))
    most = missing(table, seen | (empty & sent & ~inside))
    verdict.gap_ids = most[1]
    _compare(verdict, least, most, said)


def _gaps_of_book(
    verdict: Verdict, table: Table, published: Bools, sent: Bools, said: Mapping[str, Any]
) -> None:
    """The ledger of gaps of a book that is kept by deltas: what was sent to nobody is missing, and
    nothing is that was published. Between these lie updates that left the best levels as they
    were, and those that came while the books of all lines were broken.
    """
    _compare(verdict, missing(table, published | sent), missing(table, published), said)
    verdict.gap_ids = said["lost"]


def _compare(
    verdict: Verdict, least: tuple[int, int], most: tuple[int, int], said: Mapping[str, Any]
) -> None:
    """What was said of (runs, ids) that are missing against what they are at least and at most."""
    if not (least[1] <= said["lost"] <= most[1]) or (least == most and said["gaps"] != most[0]):
        verdict.gap_errors = 1
        verdict.notes.append(
            f"gaps: {said['gaps']} runs of {said['lost']} ids said,"
            f" {least[0]} of {least[1]} to {most[0]} of {most[1]} are missing"
        )


def _between(table: Table, seen: Bools) -> Bools:
    """Rows that lie between the first and the last that was seen of their generation."""
    inside = np.zeros(len(table), dtype=np.bool_)
    for generation in np.unique(table["generation"]):
        rows = np.flatnonzero(seen & (table["generation"] == generation))
        if len(rows):
            inside[rows[0] : rows[-1] + 1] = True
    return inside


def missing(table: Table, seen: Bools) -> tuple[int, int]:
    """(runs, ids) that lie between the first and the last id seen of each generation.

    A row covers the ids from `first_id` (a trade merged of several) to `id`.
    """
    merged = "first_id" in (table.dtype.names or ()) and "last_id" not in (table.dtype.names or ())
    runs = ids = 0
    for generation in np.unique(table["generation"]):
        rows = table[seen & (table["generation"] == generation)]
        if len(rows) < 2:
            continue
        last = rows["id"].astype(np.int64)
        first = rows["first_id"].astype(np.int64) if merged else last
        holes = first[1:] - last[:-1] - 1
        runs += int((holes > 0).sum())
        ids += int(holes[holes > 0].sum())
    return runs, ids


def series_key(venue: str, product: str, symbol: str, kind: Kind) -> SeriesKey:
    return SeriesKey(venue, product, symbol, kind)
