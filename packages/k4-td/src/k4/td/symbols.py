"""Names of symbols, both ways (`BTCUSDT`, `BTC/USDT`), from the venue's metadata alone."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

from k4.core.errors import SymbolError
from k4.td.filters import SymbolRules


class SymbolBook:
    """The symbols of one account type. Where two share a unified name, neither answers to it."""

    def __init__(self, venue: str, rules: Iterable[SymbolRules]) -> None:
        self.venue = venue
        self._by_symbol = {rule.symbol: rule for rule in rules}
        self._by_unified: dict[str, SymbolRules | None] = {}
        for rule in self._by_symbol.values():
            taken = rule.unified in self._by_unified
            self._by_unified[rule.unified] = None if taken else rule

    def __len__(self) -> int:
        return len(self._by_symbol)

    def __iter__(self) -> Iterator[SymbolRules]:
        return iter(self._by_symbol.values())

    def find(self, name: str) -> SymbolRules:
        """By either spelling. Raises SymbolError with the nearest names."""
        rule = self.known(name)
        if rule is None:
            known = [*self._by_symbol, *self._by_unified]
            raise SymbolError(name[:60], self.venue, difflib.get_close_matches(name, known, n=3))
        return rule

    def known(self, name: str) -> SymbolRules | None:
        """By either spelling, None where it is not listed."""
        return self._by_symbol.get(name) or self._by_unified.get(name)
