"""The product sections of a connection, as `ProductConfig`s.

A section is one group of stores, except Binance's `futures`, which holds two: USD-M (`ubase_*`, and
the names without prefix) and COIN-M (`cbase_*`).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from k4.core.config import ProductConfig
from k4.core.enums import Kind
from k4.core.loading.document import Section, one_of
from k4.core.loading.schema import ALL_KINDS
from k4.core.loading.values import (
    MAX_STORE_NAME,
    choice,
    cores,
    headers,
    integer,
    store_name,
    symbols,
)

MAX_LINES = 256
SBE_KEY = "x-mbx-apikey"
RESERVED = "k4c."  # counters live beside the stores in /dev/shm


class Setting(msgspec.Struct, frozen=True):
    """What a section inherits: its exchange, the kinds that this has, and the connection's own
    settings that matter to it.
    """

    exchange: str
    kinds: tuple[Kind, ...]
    prefix: str
    endpoints: Mapping[str, tuple[str, ...]]


def products(section: Section, name: str, setting: Setting) -> list[ProductConfig]:
    """The products of one section; `name` is the canonical one (`linear`, `ubase` …)."""
    if setting.exchange == "binance" and name == "ubase":
        return _binance_futures(section, setting)
    product = ProductConfig(
        name=name,
        symbols=section.need("symbols", by=symbols, default=()),
        lines=section.read("redun_conn_count", "conn_count", by=integer(1, MAX_LINES), default=1),
        cores=_cores(section),
        headers=section.read("extra_headers", by=headers, default={}),
        feed=_feed(section, name, setting),
        trades_channel=_trades_channel(section, setting),
        path=section.path,
        symbols_path=section.at("symbols"),
    )
    product = _with_stores(section, product, setting, "")
    _check_sbe_key(section, product, setting)
    section.close()
    return [product]


def stores(section: Section, keys: Mapping[Kind, tuple[str, ...]], prefix: str) -> dict[Kind, str]:
    """The store name of every kind that has one, prefix included; no name twice in the file."""
    found: dict[Kind, str] = {}
    for kind, names in keys.items():
        name = section.read(*names, by=store_name, default="")
        if not name:
            continue
        path = section.at(next(key for key in names if section.has(key)))
        found[kind] = prefix + name
        section.findings.claim("shm name", found[kind], path)
        if found[kind].startswith((".", RESERVED)):
            section.findings.problem(path, f"must not begin with '.' or {RESERVED!r}")
        if len(found[kind].encode()) > MAX_STORE_NAME:
            section.findings.problem(path, f"is longer than {MAX_STORE_NAME} bytes")
    return found


def _binance_futures(section: Section, setting: Setting) -> list[ProductConfig]:
    lines = integer(1, MAX_LINES)
    shared_cores = _cores(section)
    shared_headers = section.read("extra_headers", by=headers, default={})
    ubase = ProductConfig(
        name="ubase",
        symbols=section.read("ubase_symbols", "symbols", by=symbols, default=()),
        lines=section.read(
            "ubase_conn_count", "redun_conn_count", "conn_count", by=lines, default=1
        ),
        cores=shared_cores,
        headers=shared_headers,
        path=section.path,
        symbols_path=section.at("symbols" if section.has("symbols") else "ubase_symbols"),
    )
    cbase = ProductConfig(
        name="cbase",
        symbols=section.read("cbase_symbols", by=symbols, default=()),
        lines=section.read("cbase_conn_count", by=lines, default=1),
        cores=shared_cores,
        headers=shared_headers,
        path=section.path,
        symbols_path=section.at("cbase_symbols"),
    )
    _feed(section, "ubase", setting)
    _trades_channel(section, setting)
    found = []
    if section.has("ubase_symbols", "symbols") or not section.has("cbase_symbols"):
        if not section.has("ubase_symbols", "symbols"):
            section.problem("'ubase_symbols' is missing, and so is 'cbase_symbols'")
        found.append(_with_stores(section, ubase, setting, ""))
    else:
        _refuse_stores(section, "", "has a store and no 'ubase_symbols'")
    if section.has("cbase_symbols"):
        found.append(_with_stores(section, cbase, setting, "cbase_"))
    else:
        _refuse_stores(section, "cbase_", "has a store and no 'cbase_symbols'")
    section.close()
    return found


def _with_stores(
    section: Section, product: ProductConfig, setting: Setting, pre: str
) -> ProductConfig:
    keys = {kind: (_store_key(pre, kind),) for kind in setting.kinds}
    before = len(section.findings.problems)
    for kind in ALL_KINDS:
        if kind not in setting.kinds:
            section.refuse(
                _store_key(pre, kind), f"{setting.exchange} has no {kind.label}; only binance has"
            )
    names = stores(section, keys, setting.prefix)
    if not names and len(section.findings.problems) == before:
        wanted = one_of([key for (key,) in keys.values()])
        section.problem(f"{product.name} names no store, so it would do nothing: give {wanted}")
    return msgspec.structs.replace(product, stores=names, kinds=tuple(names))


def _refuse_stores(section: Section, pre: str, reason: str) -> None:
    for kind in ALL_KINDS:
        key = _store_key(pre, kind)
        if section.read(key, by=store_name, default=""):
            section.findings.problem(section.at(key), reason)


def _store_key(pre: str, kind: Kind) -> str:
    return f"{pre}{kind.label}_shm_name"


def _cores(section: Section) -> tuple[int, ...]:
    """Receiving and arbitration share a thread, so all affinities of a section are one set."""
    groups = (
        ("cpu_affinity_conn", "cpu_affinity"),
        ("cpu_affinity_sbe",),
        ("cpu_affinity_dedup",),
        ("cpu_affinity_dedup_sbe",),
    )
    found = [section.read(*keys, by=cores, default=()) for keys in groups]
    return tuple(sorted({core for group in found for core in group}))


def _feed(section: Section, name: str, setting: Setting) -> str:
    if setting.exchange == "binance" and name == "spot":
        return section.read("feed", by=choice("auto", "json", "sbe", "both"), default="auto")
    section.refuse("feed", "only spot of binance has a choice of feeds")
    return "auto"


def _trades_channel(section: Section, setting: Setting) -> str:
    if setting.exchange == "okx":
        return section.read("trades_channel", by=choice("trades", "trades-all"), default="trades")
    section.refuse("trades_channel", "only okx has a choice of trade channels")
    return "trades"


def _check_sbe_key(section: Section, product: ProductConfig, setting: Setting) -> None:
    """Binance refuses an SBE handshake without a key; a venue of the user's own may not."""
    if product.feed not in {"sbe", "both"} or "spot_sbe" in setting.endpoints:
        return
    if not any(name.lower() == SBE_KEY for name in product.headers):
        section.findings.problem(
            section.at("feed"),
            f"{product.feed!r} needs an API key: give "
            '"extra_headers": {"X-MBX-APIKEY": {"env": NAME}}',
        )
