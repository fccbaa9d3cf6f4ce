"""What the configuration knows of each exchange: its product sections and its endpoints.

Market-data plug-ins are known by name alone (their entry points are listed, not imported), so a
plug-in's sections and endpoints are taken as they stand, and the plug-in itself judges them.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points

import msgspec

from k4.core.enums import Kind

MD_GROUP = "k4.md.exchanges"
TD_GROUP = "k4.td.exchanges"

KINDS = (Kind.BOOKTICKER, Kind.TRADE, Kind.DEPTH5)
ALL_KINDS = (Kind.BOOKTICKER, Kind.TRADE, Kind.AGGTRADE, Kind.DEPTH5)


class Venue(msgspec.Struct, frozen=True):
    """sections: canonical product name by section of the file. endpoints: keys of `endpoints`."""

    sections: Mapping[str, str]
    endpoints: tuple[str, ...]
    kinds: tuple[Kind, ...] = KINDS


VENUES: dict[str, Venue] = {
    "binance": Venue(
        {"spot": "spot", "futures": "ubase"},  # `futures` holds ubase and cbase
        ("spot", "spot_sbe", "ubase_public", "ubase_market", "cbase", "rest"),
        ALL_KINDS,
    ),
    "okx": Venue({"spot": "spot", "swap": "swap"}, ("public", "business", "rest")),
    "bitget": Venue(
        {
            "spot": "spot",
            "futures": "futures",
            "usdc_futures": "usdc_futures",
            "coin_futures": "coin_futures",
        },
        ("public", "rest"),
    ),
    "bybit": Venue(
        {"spot": "spot", "futures": "linear", "inverse": "inverse"},
        ("spot", "linear", "inverse", "rest"),
    ),
}
SECTIONS = ("spot", "futures", "swap", "inverse", "usdc_futures", "coin_futures")

UDP = "udp"

# Market, order and user-data hosts of Binance, production.
BINANCE_REST = {
    "spot": "https://api.binance.com",
    "ubase": "https://fapi.binance.com",
    "cbase": "https://dapi.binance.com",
}
BINANCE_WS_API = {
    "spot": "wss://ws-api.binance.com:443/ws-api/v3",
    "ubase": "wss://ws-fapi.binance.com/ws-fapi/v1",
    "cbase": "wss://ws-dapi.binance.com/ws-dapi/v1",
}
BINANCE_USER_DATA = {
    "ubase": "wss://fstream.binance.com/private",
    "cbase": "wss://dstream.binance.com",
}
ACCOUNTS = ("spot", "ubase", "cbase")


def market_data_plugins() -> list[str]:
    """Names of the exchanges that other distributions bring, sorted."""
    found = {point.name for point in entry_points(group=MD_GROUP)}
    return sorted(found - VENUES.keys() - {UDP})


def trading_plugins() -> list[str]:
    """Names of the exchanges on which other distributions can trade, sorted."""
    return sorted({point.name for point in entry_points(group=TD_GROUP)} - {"binance"})
