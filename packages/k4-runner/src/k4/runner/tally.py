"""What was lost between simulated venues and stores: the ledger against the records read, exactly.

Lost is what at least one connection certainly got and the store never held. A book that shows the
same five levels as the one before is not published, by contract, and so is not expected either.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from k4.core.enums import KIND_BY_LABEL, Kind
from k4.runner.sim.ledger import updates

ID_FIELD = {
    Kind.BOOKTICKER: "update_id",
    Kind.TRADE: "trade_id",
    Kind.AGGTRADE: "agg_trade_id",
    Kind.DEPTH5: "update_id",
}
BOOK = ("bid_prices", "bid_vols", "ask_prices", "ask_vols", "bid_counts", "ask_counts")

Ids = npt.NDArray[np.uint64]


class Market(NamedTuple):
    """One (venue, product, symbol, kind)."""

    venue: str
    product: str
    symbol: str
    kind: Kind


class Ledger:
    """A ledger that a simulation wrote into `folder`; see `sim.ledger.Ledger.dump`."""

    def __init__(self, folder: Path) -> None:
        self._head = json.loads((folder / "ledger.json").read_text())
        with np.load(folder / "ledger.npz") as arrays:
            self._arrays = {name: arrays[name] for name in arrays.files}

    @property
    def sent(self) -> int:
        """Updates sent, all connections; a frame may carry several."""
        logs = (keys for name, keys in self._arrays.items() if name.startswith("sent/"))
        return sum(updates(keys) for keys in logs)

    def owed(self) -> dict[Market, Ids]:
        """The ids that a gateway must have published."""
        return {
            Market(
                series["venue"], series["product"], series["symbol"], KIND_BY_LABEL[series["kind"]]
            ): self._owed(series["series"], KIND_BY_LABEL[series["kind"]])
            for series in self._head["series"]
        }

    def _owed(self, number: int, kind: Kind) -> Ids:
        rows = self._arrays[f"series/{number}"][self._arrays[f"delivered/{number}"]]
        if kind is Kind.DEPTH5:
            rows = rows[changed(rows)]
        elif kind is Kind.TRADE:
            rows = rows[rows["placeholder"] == 0]
        ids: Ids = rows["id"]
        return ids


def changed(books: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
    """For every book: does it show other levels than the one before?"""
    different = np.zeros(len(books), dtype=np.bool_)
    different[:1] = True
    for field in BOOK:
        different[1:] |= (books[field][1:] != books[field][:-1]).any(axis=1)
    return different


def lost(owed: Mapping[Market, Ids], held: Mapping[Market, Ids]) -> int:
    """How many ids were owed and not held, over all markets that have a store."""
    return sum(len(np.setdiff1d(owed[market], ids)) for market, ids in held.items())
