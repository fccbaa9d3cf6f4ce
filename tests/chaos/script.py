"""What is simulated and what goes wrong: markets, a gateway's configuration, and the fault script.

All times are the venue's; the clock of the run divides them by its factor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from k4.core.enums import Kind

LINES = 4
SLOTS = 32_768
KEY = "K4_CHAOS_KEY"  # the environment variable with the key that the simulated SBE endpoint wants

Json = dict[str, Any]


class Market(msgspec.Struct, frozen=True):
    """One product of a venue. section: where it stands in a configuration."""

    product: str
    section: str
    symbols: tuple[str, ...]


MARKETS: Mapping[str, tuple[Market, ...]] = {
    "binance": (
        Market("spot", "spot", ("BTCUSDT", "ETHUSDT")),
        Market("ubase", "futures", ("BTCUSDT",)),
        Market("cbase", "futures", ("BTCUSD_PERP",)),
    ),
    "okx": (
        Market("spot", "spot", ("BTCUSDT", "ETHUSDT")),
        Market("swap", "swap", ("BTCUSDT",)),
    ),
    "bybit": (
        Market("spot", "spot", ("BTCUSDT",)),
        Market("linear", "futures", ("BTCUSDT", "ETHUSDT")),
        Market("inverse", "inverse", ("BTCUSD",)),
    ),
    "bitget": (
        Market("spot", "spot", ("BTCUSDT", "ETHUSDT")),
        Market("futures", "futures", ("BTCUSDT",)),
        Market("coin_futures", "coin_futures", ("BTCUSD",)),
    ),
}


def kinds(venue: str) -> list[Kind]:
    return [kind for kind in Kind if kind is not Kind.AGGTRADE or venue == "binance"]


def store_name(prefix: str, market: Market, kind: Kind) -> str:
    return f"{prefix}{market.product}_{kind.label}"


def configuration(venue: str, prefix: str, endpoints: Mapping[str, str]) -> Json:
    """The gateway's configuration file, as a user would write it."""
    connection: Json = {
        "exchange": venue,
        "md_size": SLOTS,
        "endpoints": dict(endpoints),
        "stall_timeout_sec": 10,
        "hb_interval_sec": 30,
        "redun_reset_on_hb": True,
        "redun_reset_on_threshold": 150,
    }
    for market in MARKETS[venue]:
        section = connection.setdefault(market.section, {})
        names = {
            f"{kind.label}_shm_name": store_name(prefix, market, kind) for kind in kinds(venue)
        }
        if venue == "binance" and market.section == "futures":
            section[f"{market.product}_symbols"] = list(market.symbols)
            section[f"{market.product}_conn_count"] = LINES
            if market.product == "cbase":
                names = {f"cbase_{key}": name for key, name in names.items()}
        else:
            section["symbols"] = list(market.symbols)
            section["redun_conn_count"] = LINES
        section |= names
    if venue == "binance":
        connection["spot"]["feed"] = "both"
        connection["spot"]["extra_headers"] = {"X-MBX-APIKEY": {"env": KEY}}
    return {"RazorTrade": {"module_name": "chaos"}, "connections": [connection]}


ONE = {"pick": "one"}


def faults(venue: str) -> tuple[Json, ...]:
    """Every fault that the simulator knows, often enough for a run of 200 seconds.

    Each place among the lines has a lateness of its own, so that one line is always really the
    slowest and rotation never rests.
    """
    rules: list[Json] = [
        {"fault": "delay", "ms": 40.0 * place, "target": {"line": place}} for place in range(1, 6)
    ]
    rules += [
        {"fault": "jitter", "probability": 0.02, "ms": 60.0},
        {"fault": "drop", "probability": 0.003},
        # Now and then on all lines at once: gaps that no redundancy heals.
        {"fault": "drop", "at": 20, "every": 45, "duration": 1.5, "probability": 0.6},
        {"fault": "duplicate", "probability": 0.003},
        {"fault": "reorder", "probability": 0.003},
        {"fault": "truncate", "probability": 0.001},
        {"fault": "fragment", "probability": 0.002},
        {"fault": "stall", "every": 23, "target": ONE},
        {"fault": "stall", "every": 31, "duration": 5, "target": ONE},
        {"fault": "half_open", "every": 37, "target": ONE},
        {"fault": "reset", "every": 17, "target": ONE},
        {"fault": "close", "every": 19, "code": 1012, "target": ONE},
        {"fault": "close", "every": 29, "code": 1001, "target": ONE},
        {"fault": "no_pong", "every": 37, "duration": 20, "target": ONE},
        {"fault": "oversize", "every": 53, "target": ONE},
        {"fault": "shutdown", "every": 15, "grace": 3, "target": ONE},
        {"fault": "refuse_handshake", "probability": 0.05},
        {"fault": "refuse_handshake", "nth": 17, "how": "drop"},
        {"fault": "refuse_handshake", "nth": 23, "how": "hang"},
        {"fault": "slow_ack", "probability": 0.1, "seconds": 3},
        {"fault": "ack_without_data", "nth": 29},
        {"fault": "refuse_topic", "nth": 41},
    ]
    rules += [
        {"fault": "garbage", "every": 11.0 + 2 * i, "what": what, "target": ONE}
        for i, what in enumerate(("text", "json", "types", "binary", "wire"))
    ]
    endpoints = {
        "binance": ("spot", "spot_sbe", "ubase_public", "ubase_market", "cbase"),
        "okx": ("public",),
        "bybit": ("spot", "linear", "inverse"),
        "bitget": ("public",),
    }[venue]
    rules += [
        {
            "fault": "stall",
            "at": 90.0 + 7 * i,
            "every": 210,
            "target": {"endpoint": endpoint, "pick": "all-but-one"},
        }
        for i, endpoint in enumerate(endpoints)
    ]
    return tuple(rules)
