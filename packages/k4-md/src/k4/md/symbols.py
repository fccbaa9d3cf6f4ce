"""Configured symbols to the venue's ids: by its metadata, else the disk, else documented rules.

Only a list that the venue gave now proves that a symbol is unknown; an older one, or none, is a
warning, and the venue's own refusal is reported later for that symbol alone.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from k4.core.clock import Clock
from k4.core.config import ConnectionConfig, ProductConfig
from k4.core.errors import ConfigError, Problem, SymbolError
from k4.md import listings
from k4.md.feed import Exchange, Instrument, Product, SymbolMap
from k4.md.listings import Listing, ListingError

DEADLINE = 3.0  # seconds for all products together


class Source(msgspec.Struct, frozen=True):
    """Where a product's mapping came from; `date` of the list, empty for rules."""

    kind: Literal["metadata", "cache", "rule"]
    date: str = ""


class Resolution(msgspec.Struct, frozen=True, kw_only=True):
    """How the symbols of one connection map.

    symbols: (product, configured symbol) to the venue's id. instruments: what is known of them,
    for those that a list named. sources: by product. warnings: sentences for the log.
    """

    symbols: SymbolMap
    instruments: Mapping[tuple[str, str], Instrument]
    sources: Mapping[str, Source]
    warnings: tuple[str, ...] = ()


async def resolve(
    exchange: Exchange,
    config: ConnectionConfig,
    *,
    clock: Clock,
    cache_dir: Path | None = None,
    offline: bool = False,
    deadline: float = DEADLINE,
) -> Resolution:
    """Map every symbol of the connection; products are asked in parallel, `deadline` s in all.

    offline: ask nobody, use the disk. Products that the exchange does not have are left out.
    Raises ConfigError with every symbol that the venue does not list (the nearest ones named), or
    that names more than one instrument; K4Error where `ca_file` is unusable.
    """
    known = {product.name: product for product in exchange.products}
    pairs = [(known[p.name], p) for p in config.products if p.name in known]
    folder = cache_dir or listings.default_cache_dir()
    why_not = _why_not_asked(config)
    rests = {p.name: _rests(exchange, config, p) for p, _ in pairs}
    askable = {p.name: p for p, _ in pairs if rests[p.name] and not why_not}
    fresh = {} if offline else await _ask(config.ca_file, askable, rests, clock, deadline)
    found = _Findings(exchange.name)
    for product, wanted in pairs:
        name = product.name
        answer = fresh.get(name)
        file = listings.cache_file(folder, exchange.name, name, " ".join(rests[name]))
        if isinstance(answer, Listing):
            _keep(file, answer, found)
            found.by_list(product, wanted, answer, Source("metadata", answer.date))
            continue
        why = why_not or (answer.message if answer is not None else "the venue was not asked")
        old = listings.kept(file) if name in askable else None
        if old is None:
            found.by_rule(product, wanted, why if rests[name] else "")
        else:
            found.warn(name, f"symbols are mapped by the list of {old.date}: {why}")
            found.by_list(product, wanted, old, Source("cache", old.date))
    return found.resolution()


def _why_not_asked(config: ConnectionConfig) -> str:
    """Why the venue's list does not apply, '' where it does."""
    if config.metadata == "off":
        return "metadata is off"
    if config.endpoints and "rest" not in config.endpoints:
        return "endpoints are overridden without 'rest'"
    return ""


def _rests(exchange: Exchange, config: ConnectionConfig, product: Product) -> tuple[str, ...]:
    """Base URLs of a product's list: configured, the product's own (`rest.ubase`), the venue's."""
    if product.metadata is None:
        return ()
    own = exchange.endpoints.get(f"rest.{product.name}") or exchange.endpoints.get("rest")
    return config.endpoints.get("rest") or ((own,) if own else ())


async def _ask(
    ca_file: str,
    products: Mapping[str, Product],
    rests: Mapping[str, tuple[str, ...]],
    clock: Clock,
    deadline: float,
) -> dict[str, Listing | ListingError]:
    if not products:
        return {}
    async with listings.http_session(ca_file) as http:
        jobs = {
            name: listings.fetch(http, rests[name], product.metadata, clock)
            for name, product in products.items()
            if product.metadata is not None
        }
        return await listings.within(clock, deadline, jobs)


def _keep(file: Path, listing: Listing, found: _Findings) -> None:
    try:
        listings.keep(file, listing)
    except OSError as error:
        found.warn("cache", f"the list of instruments cannot be kept in {file.parent}: {error}")


class _Findings:
    """What has been found so far, product by product."""

    def __init__(self, venue: str) -> None:
        self._venue = venue
        self._symbols: dict[tuple[str, str], str] = {}
        self._instruments: dict[tuple[str, str], Instrument] = {}
        self._sources: dict[str, Source] = {}
        self._warnings: list[str] = []
        self._problems: list[Problem] = []

    def resolution(self) -> Resolution:
        """Raises ConfigError where a symbol has a problem."""
        if self._problems:
            raise ConfigError(self._problems)
        return Resolution(
            symbols=self._symbols,
            instruments=self._instruments,
            sources=self._sources,
            warnings=tuple(self._warnings),
        )

    def warn(self, what: str, message: str) -> None:
        self._warnings.append(f"{self._venue}.{what}: {message}")

    def by_rule(self, product: Product, wanted: ProductConfig, why: str) -> None:
        """Nothing is listed; `why` is empty where the venue has no lists at all."""
        self._sources[product.name] = Source("rule")
        if why:
            self.warn(product.name, f"symbols are mapped by rule, unchecked: {why}")
        self._place(product, wanted, [product.rule(symbol) for symbol in wanted.symbols])

    def by_list(
        self, product: Product, wanted: ProductConfig, listing: Listing, source: Source
    ) -> None:
        self._sources[product.name] = source
        matches = match(wanted.symbols, listing.instruments)
        venue_symbols: list[str] = []
        for index, (symbol, found) in enumerate(zip(wanted.symbols, matches, strict=True)):
            ids = [instrument.venue_symbol for instrument in found]
            if len(ids) == 1:
                self._instruments[product.name, symbol] = found[0]
            elif ids:
                text = f"{symbol!r} is more than one instrument, write one of {', '.join(ids)}"
                self._problem(wanted, index, text)
            elif source.kind == "metadata":
                self._problem(wanted, index, str(self._unknown(product, symbol, listing)))
            else:
                self.warn(product.name, f"{symbol!r} is not in the list of {source.date}")
            venue_symbols.append(ids[0] if ids else product.rule(symbol))
        self._place(product, wanted, venue_symbols)

    def _unknown(self, product: Product, symbol: str, listing: Listing) -> SymbolError:
        listed = {instrument.symbol for instrument in listing.instruments}
        near = difflib.get_close_matches(symbol.upper(), listed, n=3)
        return SymbolError(symbol, f"{self._venue}.{product.name}", near)

    def _place(self, product: Product, wanted: ProductConfig, venue_symbols: Sequence[str]) -> None:
        owner: dict[str, str] = {}
        for index, (symbol, id) in enumerate(zip(wanted.symbols, venue_symbols, strict=True)):
            other = owner.setdefault(id, symbol)
            if other != symbol:
                self._problem(
                    wanted, index, f"{symbol!r} and {other!r} are both the venue's {id!r}"
                )
            self._symbols[product.name, symbol] = id

    def _problem(self, wanted: ProductConfig, index: int, message: str) -> None:
        path = wanted.symbols_path or f"{wanted.path}.symbols"
        self._problems.append(Problem(f"{path}[{index}]", message))


def match(
    symbols: Sequence[str], instruments: Sequence[Instrument]
) -> list[tuple[Instrument, ...]]:
    """For every symbol the instruments that it may mean: by K4's spelling, else by the venue's."""
    spelled: dict[str, dict[str, Instrument]] = {}
    exact: dict[str, Instrument] = {}
    for instrument in instruments:
        spelled.setdefault(instrument.symbol, {})[instrument.venue_symbol] = instrument
        exact[instrument.venue_symbol] = instrument
    return [
        tuple(spelled[symbol].values())
        if symbol in spelled
        else ((exact[symbol],) if symbol in exact else ())
        for symbol in symbols
    ]
