"""The risk gate: each rule, with the figures that it must say; the kill switch; quotes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from k4.core.config import RiskLimits
from k4.core.enums import Kind
from k4.core.shm import ShmMdStore, remove_store
from k4.core.testing.clock import ManualClock
from k4.core.trading import (
    ZERO,
    AccountType,
    Direction,
    NewOrder,
    OrderType,
    RiskRefused,
)
from k4.td.filters import Range, SymbolRules
from k4.td.journal import Journal
from k4.td.kill import KillSwitch, release_offline
from k4.td.quotes import NoQuotes, Quote, ShmQuotes
from k4.td.risk import Figures, RiskGate

RULES = SymbolRules(
    symbol="BTCUSDT",
    unified="BTC/USDT",
    base="BTC",
    quote="USDT",
    price=Range(name="PRICE_FILTER"),
    lot=Range(name="LOT_SIZE"),
)
FRESH = Quote(Decimal(100), Decimal(101), 0.1)
BUY, SELL = Direction.BUY, Direction.SELL


def order(**more: Any) -> NewOrder:
    values: dict[str, Any] = {
        "symbol": "BTCUSDT",
        "account_type": AccountType.UBASE,
        "direction": BUY,
        "order_type": OrderType.GTC,
        "quantity": Decimal(2),
        "price": Decimal(100),
    }
    return NewOrder(**{**values, **more})


def refused(
    limits: RiskLimits,
    wanted: NewOrder,
    figures: Figures | None = None,
    quote: Quote | None = FRESH,
    account: AccountType = AccountType.UBASE,
    rules: SymbolRules = RULES,
) -> RiskRefused | None:
    error: RiskRefused | None = None
    try:
        RiskGate(account, limits).check(wanted, rules, figures or Figures(), quote, 0.0)
    except RiskRefused as found:
        error = found
    if error is not None:
        assert error.code == f"risk.{error.rule}"
        assert error.message.startswith(f"risk.{error.rule} of {account}: ")
        assert error.remedy
    return error


def test_without_limits_everything_passes() -> None:
    assert refused(RiskLimits(), order(), quote=None) is None


def test_symbols_by_either_spelling() -> None:
    assert refused(RiskLimits(symbols=("BTCUSDT",)), order()) is None
    assert refused(RiskLimits(symbols=("BTC/USDT",)), order()) is None
    error = refused(RiskLimits(symbols=("ETHUSDT",)), order())
    assert error is not None
    assert error.rule == "symbols"
    assert "BTCUSDT is not among ETHUSDT" in error.message


def test_quantity_and_notional() -> None:
    assert refused(RiskLimits(max_order_qty="2"), order()) is None
    error = refused(RiskLimits(max_order_qty="1.5"), order())
    assert error is not None
    assert "quantity 2 is above 1.5" in error.message
    assert refused(RiskLimits(max_order_notional="200"), order()) is None
    error = refused(RiskLimits(max_order_notional="199.9"), order())
    assert error is not None
    assert "notional 200 is above 199.9" in error.message


def test_a_market_order_s_notional_needs_a_fresh_quote() -> None:
    market = order(order_type=OrderType.MARKET, price=ZERO)
    limits = RiskLimits(max_order_notional="202")
    assert refused(limits, market) is None
    for stale in (None, Quote(Decimal(100), Decimal(101), 1.5)):
        error = refused(limits, market, quote=stale)
        assert error is not None
        assert (error.rule, "fresh quote" in error.message) == ("max_order_notional", True)
    error = refused(RiskLimits(max_order_notional="201"), market)
    assert error is not None


def test_a_sell_below_the_bid_is_worth_the_bid() -> None:
    """A limit of 1 does not make the order cheap: it trades at 100."""
    low = order(direction=SELL, price=Decimal(1))
    error = refused(RiskLimits(max_order_notional="199"), low)
    assert error is not None
    assert "notional 200 is above 199" in error.message
    assert refused(RiskLimits(max_order_notional="200"), low) is None
    assert refused(RiskLimits(max_order_notional="199"), low, quote=None) is None  # none is known
    above = order(direction=SELL, price=Decimal(150))
    assert refused(RiskLimits(max_order_notional="299"), above) is not None
    assert refused(RiskLimits(max_order_notional="199"), order(price=Decimal(99))) is None


def test_contracts_are_worth_their_size_without_any_quote() -> None:
    contract = SymbolRules(
        symbol="BTCUSD_PERP",
        unified="BTC/USD",
        base="BTC",
        quote="USD",
        price=Range(name="p"),
        lot=Range(name="l"),
        contract_size=Decimal(100),
    )
    market = order(order_type=OrderType.MARKET, price=ZERO)
    assert refused(RiskLimits(max_order_notional="200"), market, None, None, rules=contract) is None
    assert refused(RiskLimits(max_order_notional="199"), market, None, None, rules=contract)


@pytest.mark.parametrize(
    ("side", "figures", "passes"),
    [
        (BUY, Figures(position=Decimal(8)), True),
        (BUY, Figures(position=Decimal(9)), False),
        (BUY, Figures(position=Decimal(6), buys=Decimal(3)), False),
        (BUY, Figures(position=Decimal(6), sells=Decimal(50)), True),
        (BUY, Figures(position=Decimal(-30)), True),
        (SELL, Figures(position=Decimal(-8)), True),
        (SELL, Figures(position=Decimal(-9)), False),
        (SELL, Figures(position=Decimal(0), sells=Decimal(9)), False),
        (SELL, Figures(position=Decimal(50)), True),
    ],
)
def test_position_with_everything_open(side: Direction, figures: Figures, passes: bool) -> None:
    error = refused(RiskLimits(max_position="10"), order(direction=side), figures)
    assert (error is None) == passes
    if error is not None:
        assert error.rule == "max_position"
        assert "limit 10" in error.message
        reducing = order(direction=side, reduce_only=True)
        assert refused(RiskLimits(max_position="10"), reducing, figures) is None


def test_what_an_order_has_filled_is_not_counted_twice_when_it_is_changed() -> None:
    limits = RiskLimits(max_position="5")
    partly = Figures(position=Decimal(3), done=Decimal(3))  # of a buy of 5, which stays 5
    assert refused(limits, order(quantity=Decimal(5)), partly) is None
    error = refused(limits, order(quantity=Decimal(6)), partly)
    assert error is not None
    assert "could become 6, limit 5" in error.message
    short = Figures(position=Decimal(-3), done=Decimal(3))
    assert refused(limits, order(quantity=Decimal(5), direction=SELL), short) is None
    assert refused(limits, order(quantity=Decimal(6), direction=SELL), short) is not None


def test_spot_cannot_be_short_so_sells_are_free() -> None:
    figures = Figures(position=Decimal(1))
    sell = order(direction=SELL, quantity=Decimal(50))
    assert refused(RiskLimits(max_position="10"), sell, figures, account=AccountType.SPOT) is None


def test_open_orders() -> None:
    limits = RiskLimits(max_open_orders=3)
    assert refused(limits, order(), Figures(open_orders=2)) is None
    error = refused(limits, order(), Figures(open_orders=3))
    assert error is not None
    assert "3 orders are open, limit 3" in error.message


@pytest.mark.parametrize(
    ("side", "price", "passes"),
    [
        (BUY, "102.01", True),
        (BUY, "102.02", False),
        (BUY, "1", True),
        (SELL, "99", True),
        (SELL, "98.99", False),
        (SELL, "5000", True),
    ],
)
def test_the_collar_bounds_the_harmful_side(side: Direction, price: str, passes: bool) -> None:
    limits = RiskLimits(price_collar_bps=100.0, bbo_store="x")
    error = refused(limits, order(direction=side, price=Decimal(price)))
    assert (error is None) == passes
    if error is not None:
        assert error.rule == "price_collar_bps"
        assert "100 bps" in error.message


def test_the_collar_fails_closed_without_a_fresh_quote() -> None:
    limits = RiskLimits(price_collar_bps=100.0, max_bbo_age_ms=50.0)
    for quote, text in (
        (None, "none"),
        (FRESH, "100 ms old, limit 50 ms"),
        (Quote(Decimal(100), ZERO, 0.0), "empty side"),
    ):
        error = refused(limits, order(), quote=quote)
        assert error is not None
        assert text in error.message


def test_the_order_rate_counts_what_passes() -> None:
    gate = RiskGate(AccountType.SPOT, RiskLimits(max_orders_per_sec=2.0, max_order_qty="5"))
    gate.check(order(), RULES, Figures(), None, 0.0)
    with pytest.raises(RiskRefused, match="quantity"):
        gate.check(order(quantity=Decimal(9)), RULES, Figures(), None, 0.1)
    gate.check(order(), RULES, Figures(), None, 0.2)
    with pytest.raises(RiskRefused, match="more than 2 orders a second"):
        gate.check(order(), RULES, Figures(), None, 0.9)
    gate.check(order(), RULES, Figures(), None, 0.9, amends=True)
    gate.check(order(), RULES, Figures(), None, 1.0)
    slow = RiskGate(AccountType.SPOT, RiskLimits(max_orders_per_sec=0.5))
    slow.check(order(), RULES, Figures(), None, 0.0)
    with pytest.raises(RiskRefused):
        slow.check(order(), RULES, Figures(), None, 1.9)
    slow.check(order(), RULES, Figures(), None, 2.0)


def test_the_kill_switch_is_sticky(tmp_path: Path) -> None:
    path, file = str(tmp_path / "j.db"), tmp_path / "kill"
    journal = Journal(path)
    kill = KillSwitch(journal, str(file))
    kill.check()
    file.touch()
    with pytest.raises(RiskRefused, match=r"the file .* exists"):
        kill.check()
    file.unlink()  # removing the file releases nothing
    with pytest.raises(RiskRefused):
        kill.check()
    journal.close()
    journal = Journal(path)
    again = KillSwitch(journal, str(file))
    assert again.reason
    journal.close()
    release_offline(path, str(file))
    journal = Journal(path)
    KillSwitch(journal, str(file)).check()
    journal.close()


@pytest.fixture
def store() -> Iterator[ShmMdStore]:
    made = ShmMdStore(f"k4test_td_{os.getpid()}", Kind.BOOKTICKER, ["BTCUSDT"], 8)
    yield made
    made.close()
    remove_store(made.name)


def test_quotes_come_from_shared_memory_with_the_age_of_the_feed(store: ShmMdStore) -> None:
    clock = ManualClock()
    quotes = ShmQuotes(store.name, clock)
    assert quotes.quote("BTCUSDT") is None  # no record yet
    store.feed_ok(clock.time_ns())
    store.ring.lanes[0].publish(2, 1, 1, 1, 100.1, 1.0, 100.2, 1.0, 0, 0, 1)
    clock.advance(0.5)  # the quote is as old as the feed's last proof of life, not as its change
    assert quotes.quote("BTCUSDT") == Quote(Decimal("100.1"), Decimal("100.2"), 0.5)
    assert quotes.quote("ETHUSDT") is None
    quotes.close()
    assert ShmQuotes("k4test_td_absent", clock).quote("BTCUSDT") is None
    assert NoQuotes().quote("BTCUSDT") is None
