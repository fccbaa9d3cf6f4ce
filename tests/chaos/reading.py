"""Readers of a gateway's stores that keep every record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from k4.core.enums import Kind
from k4.core.errors import StoreMissing
from k4.core.shm import ShmMdReader

from .script import Market, kinds, store_name

Records = npt.NDArray[np.void]


class Shelf(msgspec.Struct, frozen=True):
    """One symbol of one store."""

    product: str
    symbol: str
    kind: Kind


class Reading:
    """All stores of a run, read from their first record on. lapped: records that were missed."""

    def __init__(self, venue: str, prefix: str, markets: Sequence[Market]) -> None:
        self.lapped = 0
        self._readers: dict[str, ShmMdReader] = {}
        self._shelves = {
            Shelf(market.product, symbol, kind): store_name(prefix, market, kind)
            for market in markets
            for kind in kinds(venue)
            for symbol in market.symbols
        }
        self._cursors = dict.fromkeys(self._shelves, 0)
        self._batches: dict[Shelf, list[Records]] = {shelf: [] for shelf in self._shelves}

    @property
    def names(self) -> set[str]:
        return set(self._shelves.values())

    def open(self) -> bool:
        """Whether all stores are there."""
        for name in self.names - self._readers.keys():
            try:
                self._readers[name] = ShmMdReader(name)
            except StoreMissing:
                return False
        return True

    def take(self) -> None:
        """Read what is new."""
        for shelf, name in self._shelves.items():
            batch = self._readers[name].since(shelf.symbol, self._cursors[shelf])
            self._cursors[shelf] = batch.cursor
            self.lapped += batch.lost
            if len(batch.records):
                self._batches[shelf].append(batch.records)

    def shelves(self) -> Iterator[tuple[Shelf, Records, int]]:
        """Every shelf with all its records and its generation, once something was read."""
        for shelf, name in self._shelves.items():
            batches = self._batches[shelf]
            reader = self._readers[name]
            empty = reader.since(shelf.symbol, self._cursors[shelf]).records
            records = np.concatenate(batches) if batches else empty
            yield shelf, records, reader.generation(shelf.symbol)

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()
