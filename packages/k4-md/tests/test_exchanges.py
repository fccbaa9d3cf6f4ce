"""Exchanges are found by name through their entry points."""

from __future__ import annotations

import pytest

from k4.core.errors import K4Error
from k4.md.exchanges import find, names
from k4.md.feed import Exchange


def test_installed_exchanges_are_found_by_name() -> None:
    assert "binance" in names()
    for name in names():
        exchange = find(name)
        assert isinstance(exchange, Exchange)
        assert exchange.name == name
        assert 1 <= exchange.code <= 254
    assert len({find(name).code for name in names()}) == len(names())


def test_an_unknown_exchange_is_an_error_with_the_nearest() -> None:
    with pytest.raises(K4Error, match="did you mean 'binance'"):
        find("binanse")
    with pytest.raises(K4Error, match="installed: "):
        find("zzz")
