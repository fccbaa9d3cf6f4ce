"""The vocabulary that records, stores, datagrams and configuration share. Values are the
contract's.
"""

from __future__ import annotations

from enum import IntEnum


class Kind(IntEnum):
    """What a market-data record is. The value is the `kind` of stores and datagrams."""

    BOOKTICKER = 0
    TRADE = 1
    AGGTRADE = 2
    DEPTH5 = 3

    @property
    def label(self) -> str:
        """The name used in channels and configuration keys: bbo, trade, aggtrade, depth5."""
        return _LABELS[self]


_LABELS = {
    Kind.BOOKTICKER: "bbo",
    Kind.TRADE: "trade",
    Kind.AGGTRADE: "aggtrade",
    Kind.DEPTH5: "depth5",
}
KIND_BY_LABEL: dict[str, Kind] = {label: kind for kind, label in _LABELS.items()}


class MessageKind(IntEnum):
    """Kinds on the wire; 4 to 7 are reserved and never sent."""

    BOOKTICKER = 0
    TRADE = 1
    AGGTRADE = 2
    DEPTH5 = 3
    ORDER_UPDATE = 4
    TRADE_UPDATE = 5
    QUERY_ORDER_RESPONSE = 6
    QUERY_INTERNAL_RESPONSE = 7
    HEARTBEAT = 101


class ProductType(IntEnum):
    """The `product_type` byte of a record. It comes from the connection, never from the payload."""

    SPOT = 0
    FUTURES = 1
    U_MARGIN = 2
    COIN_MARGIN = 3
    OPTIONS = 4
    USDT_FUTURES = 5
    USDC_FUTURES = 6
    BTC_MARGIN = 7


class Venue(IntEnum):
    """Venue codes of the UDP channel id; 5 to 254 belong to plug-ins."""

    BINANCE = 1
    OKX = 2
    BITGET = 3
    BYBIT = 4
