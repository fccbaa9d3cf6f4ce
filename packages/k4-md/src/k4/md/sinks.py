"""A sink that keeps what it is given, for tests and for those who study a venue's frames."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from k4.core.enums import ProductType
from k4.core.records import AggTrade, Bookticker, Depth5, Record, Trade
from k4.md.feed import NO_COUNTS, Control, Feed, Level


class CollectingSink:
    """Everything a session says, in order, as records and lists.

    records: as they would be published (Bookticker, Trade, AggTrade, Depth5), nothing deduplicated.
    keys: by which trades are told apart. skipped, seeded: (symbol, id). controls: control events.
    drops: reasons. Set `local_time_us` before a frame to have it in the frame's records.
    """

    def __init__(
        self, symbols: Mapping[int, str], product_type: ProductType = ProductType.SPOT
    ) -> None:
        self._symbols = symbols
        self._product_type = product_type
        self.local_time_us = 0
        self.records: list[Record] = []
        self.keys: list[object] = []
        self.skipped: list[tuple[str, int]] = []
        self.seeded: list[tuple[str, int]] = []
        self.controls: list[Control] = []
        self.drops: list[str] = []

    @classmethod
    def of(cls, feed: Feed) -> CollectingSink:
        """A sink for the sessions of `feed`, which names the slots and the product type."""
        return cls({c.slot: c.symbol for c in feed.channels}, feed.product_type)

    def bbo(
        self,
        slot: int,
        id: int,
        event_us: int,
        trade_us: int,
        bid: float,
        bid_vol: float,
        ask: float,
        ask_vol: float,
        bid_count: int,
        ask_count: int,
    ) -> None:
        self.records.append(
            Bookticker(
                self._symbols[slot],
                self._product_type,
                event_us,
                trade_us,
                id,
                bid,
                bid_vol,
                ask,
                ask_vol,
                bid_count,
                ask_count,
                self.local_time_us,
            )
        )

    def trade(
        self,
        slot: int,
        id: int,
        first_id: int,
        event_us: int,
        trade_us: int,
        price: float,
        vol: float,
        is_buyer_maker: bool,
        key: object = None,
    ) -> None:
        self.keys.append(id if key is None else key)
        self.records.append(
            Trade(
                self._symbols[slot],
                self._product_type,
                event_us,
                trade_us,
                id,
                price,
                vol,
                int(is_buyer_maker),
                self.local_time_us,
            )
        )

    def agg(
        self,
        slot: int,
        id: int,
        first_id: int,
        last_id: int,
        event_us: int,
        trade_us: int,
        price: float,
        vol: float,
        is_buyer_maker: bool,
    ) -> None:
        self.records.append(
            AggTrade(
                self._symbols[slot],
                self._product_type,
                event_us,
                trade_us,
                first_id,
                last_id,
                id,
                price,
                vol,
                last_id - first_id + 1,
                int(is_buyer_maker),
                self.local_time_us,
            )
        )

    def depth(
        self,
        slot: int,
        id: int,
        event_us: int,
        trade_us: int,
        bids: Sequence[Level],
        asks: Sequence[Level],
        bid_counts: Sequence[int] = NO_COUNTS,
        ask_counts: Sequence[int] = NO_COUNTS,
    ) -> None:
        self.records.append(
            Depth5(
                self._symbols[slot],
                self._product_type,
                event_us,
                trade_us,
                id,
                min(len(bids), 5),
                min(len(asks), 5),
                0.0,
                five(level[0] for level in bids[:5]),
                five(level[1] for level in bids[:5]),
                five(level[0] for level in asks[:5]),
                five(level[1] for level in asks[:5]),
                tuple(bid_counts),
                tuple(ask_counts),
                self.local_time_us,
            )
        )

    def skip(self, slot: int, id: int) -> None:
        self.skipped.append((self._symbols[slot], id))

    def seed(self, slot: int, id: int) -> None:
        self.seeded.append((self._symbols[slot], id))

    def control(self, event: Control) -> None:
        self.controls.append(event)

    def drop(self, reason: str) -> None:
        self.drops.append(reason)


def five(figures: Iterable[float]) -> tuple[float, ...]:
    """The figures of a side, padded to five with 0."""
    found = tuple(figures)
    return found + (0.0,) * (5 - len(found))
