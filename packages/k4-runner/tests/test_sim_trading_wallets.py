"""Balances and positions: nothing appears, nothing is lost, whatever is traded."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k4.core.testing.clock import ManualClock
from k4.runner.sim.binance_feeds import specs
from k4.runner.sim.matching import Prevention
from k4.runner.sim.trading.errors import VenueError
from k4.runner.sim.trading.exchange import Exchange
from k4.runner.sim.trading.orders import Order, Trade
from k4.runner.sim.trading.rules import Rules, make_rules
from k4.runner.sim.trading.settlement import MarginSettlement, SpotSettlement
from k4.runner.sim.trading.wallets import MarginWallet, SpotWallet

D = Decimal
FREE = D(0), D(0)
FEES = D("0.001"), D("0.002")
NAMES = ("a", "b", "c")


class Nobody:
    """A listener that checks that histories never go back."""

    def __init__(self) -> None:
        self.events: list[tuple[int, str]] = []

    def stepped(self, order: Order, event: str, trade: Trade | None) -> None:
        self.events.append((order.number, event))
        executed = [step.executed for step in order.history]
        assert executed == sorted(executed)
        assert order.left >= 0


def rules_of(product: str, symbol: str) -> Rules:
    return make_rules(specs(product, (symbol,))[0], {}, "")


def exchange_of(product: str, symbol: str) -> Exchange:
    return Exchange(product, {symbol: rules_of(product, symbol)}, ManualClock(), lambda: 1, 1, 1)


def new(
    exchange: Exchange,
    account: str,
    buy: bool,
    price: Decimal,
    quantity: Decimal,
    *,
    tif: str = "GTC",
    kind: str = "LIMIT",
    reduce_only: bool = False,
    prevention: Prevention = Prevention.NONE,
) -> Order:
    symbol = next(iter(exchange.rules))
    number = exchange.new_number()
    return Order(
        number=number,
        product=exchange.product,
        account=account,
        symbol=symbol,
        client_id=f"c{number}",
        buy=buy,
        kind=kind,
        tif=tif,
        price=price,
        quantity=quantity,
        created_ms=1,
        reduce_only=reduce_only,
        prevention=prevention,
    )


def spot(fees: tuple[Decimal, Decimal] = FREE) -> tuple[Exchange, dict[str, SpotWallet], Nobody]:
    exchange, listener = exchange_of("spot", "BTCUSDT"), Nobody()
    funds = {"BTC": "10", "USDT": "1000000"}
    wallets = {name: SpotWallet(funds, fees) for name in NAMES}
    exchange.connect(SpotSettlement(wallets), listener)
    return exchange, wallets, listener


def margin(
    product: str, symbol: str, fees: tuple[Decimal, Decimal] = FREE
) -> tuple[Exchange, dict[str, MarginWallet], Nobody]:
    exchange, listener = exchange_of(product, symbol), Nobody()
    asset = exchange.rules[symbol].margin_asset
    wallets = {name: MarginWallet({asset: "1000000"}, fees) for name in NAMES}
    exchange.connect(
        MarginSettlement(
            wallets,
            exchange.rules,
            dict.fromkeys(NAMES, 20),
            lambda _: False,
            exchange.open_orders,
            exchange.mark,
        ),
        listener,
    )
    return exchange, wallets, listener


def test_a_limit_buy_locks_its_worth_and_gets_back_what_a_better_price_saves() -> None:
    exchange, wallets, _ = spot()
    exchange.place(new(exchange, "a", False, D("64000"), D("1")))
    assert wallets["a"].assets["BTC"].locked == 1
    exchange.place(new(exchange, "b", True, D("64100"), D("2")))
    held = wallets["b"].assets["USDT"]
    assert (held.locked, held.free) == (D("64100"), D(1_000_000 - 64_000 - 64_100))
    assert wallets["b"].assets["BTC"].free == 11
    assert wallets["a"].assets["USDT"].free == 1_064_000


def test_more_than_there_is_cannot_be_locked() -> None:
    exchange, wallets, listener = spot()
    with pytest.raises(VenueError, match="insufficient balance"):
        exchange.place(new(exchange, "a", False, D("64000"), D("10.00001")))
    assert wallets["a"].assets["BTC"].free == 10
    assert listener.events == []


def test_commissions_are_cut_to_eight_decimals_of_what_is_received() -> None:
    exchange, _wallets, _ = spot(FEES)
    exchange.place(new(exchange, "a", False, D("63999.99"), D("0.00001")))
    exchange.place(new(exchange, "b", True, D("63999.99"), D("0.00001")))
    maker, taker = exchange.trades
    assert (maker.commission, maker.asset) == (D("0.00063999"), "USDT")
    assert (taker.commission, taker.asset) == (D("0.00000002"), "BTC")


ORDERS = st.lists(
    st.tuples(
        st.sampled_from(NAMES),
        st.booleans(),
        st.integers(63_990, 64_010),
        st.integers(1, 500_000),
        st.sampled_from(("GTC", "IOC", "FOK", "MARKET", "CANCEL")),
        st.sampled_from(tuple(Prevention)),
    ),
    max_size=30,
)
Steps = Sequence[tuple[str, bool, int, int, str, Prevention]]


def play(exchange: Exchange, steps: Steps, unit: Decimal) -> None:
    for account, buy, price, size, what, mode in steps:
        if what == "CANCEL":
            for order in exchange.open_orders(account)[:1]:
                exchange.cancel(order)
            continue
        order = new(
            exchange,
            account,
            buy,
            D(0) if what == "MARKET" else D(price),
            size * unit,
            tif="GTC" if what == "MARKET" else what,
            kind="MARKET" if what == "MARKET" else "LIMIT",
            prevention=mode,
        )
        try:
            exchange.place(order)
        except VenueError:
            assert order.history == []  # a refusal leaves no trace


@settings(deadline=None, max_examples=100)
@given(ORDERS)
def test_spot_balances_are_conserved(steps: Steps) -> None:
    """Over all accounts and the commissions, every asset sums to what there was; nothing is
    negative; what is locked is what the open orders need."""
    exchange, wallets, _ = spot(FEES)
    play(exchange, steps, D("0.00001"))
    paid: dict[str, Decimal] = {"BTC": D(0), "USDT": D(0)}
    for trade in exchange.trades:
        paid[trade.asset] += trade.commission
    for asset, start in (("BTC", D(30)), ("USDT", D(3_000_000))):
        held = [wallet.assets[asset] for wallet in wallets.values()]
        assert sum(item.free + item.locked for item in held) + paid[asset] == start
        assert all(item.free >= 0 and item.locked >= 0 for item in held)
    for account in NAMES:
        orders = exchange.open_orders(account)
        bids = sum((item.left * item.price for item in orders if item.buy), D(0))
        asks = sum((item.left for item in orders if not item.buy), D(0))
        assert wallets[account].assets["USDT"].locked == bids
        assert wallets[account].assets["BTC"].locked == asks


@settings(deadline=None, max_examples=60)
@given(ORDERS, st.sampled_from((("ubase", "BTCUSDT"), ("cbase", "BTCUSD_PERP"))))
def test_futures_positions_sum_to_zero_and_profits_are_what_others_lose(
    steps: Steps, what: tuple[str, str]
) -> None:
    exchange, wallets, _ = margin(*what)
    unit = D(1) if what[0] == "cbase" else D("0.001")
    play(exchange, [(*step[:3], step[3] % 900 + 1, *step[4:]) for step in steps], unit)
    positions = [p for wallet in wallets.values() for p in wallet.positions.values()]
    assert sum(position.amount for position in positions) == 0
    for position in positions:
        assert position.cost >= 0
        assert bool(position.cost) == bool(position.amount)
    # Marked at any one price, what the accounts own together is what they began with.
    rules = exchange.rules[what[1]]
    asset = rules.margin_asset
    total = sum(wallet.assets[asset] for wallet in wallets.values())
    mark = D(64_000)
    open_profit = sum(
        (w.unrealized(p, rules, mark) for w in wallets.values() for p in w.positions.values()), D(0)
    )
    assert abs(total + open_profit - 3_000_000) < D("1e-9")


def test_closing_in_parts_realizes_the_whole_profit() -> None:
    exchange, wallets, _ = margin("ubase", "BTCUSDT")
    exchange.place(new(exchange, "a", False, D("64000"), D("0.003")))
    exchange.place(new(exchange, "b", True, D("64000"), D("0.003")))
    for _ in range(3):
        exchange.place(new(exchange, "c", True, D("64010"), D("0.001")))
        exchange.place(new(exchange, "b", False, D("64010"), D("0.001")))
    assert wallets["b"].assets["USDT"] == 1_000_000 + D("0.03")
    assert not wallets["b"].positions["BTCUSDT", "BOTH"].cost


def test_an_inverse_long_gains_coin_when_the_price_rises() -> None:
    exchange, wallets, _ = margin("cbase", "BTCUSD_PERP")
    exchange.place(new(exchange, "a", False, D("50000"), D("10")))
    exchange.place(new(exchange, "b", True, D("50000"), D("10")))
    exchange.place(new(exchange, "c", True, D("100000"), D("10")))
    exchange.place(new(exchange, "b", False, D("100000"), D("10")))
    # 1000 dollars: 0.02 coins at entry, 0.01 at exit.
    assert wallets["b"].assets["BTC"] == 1_000_000 + D("0.01")
    assert wallets["a"].unrealized(
        wallets["a"].positions["BTCUSD_PERP", "BOTH"],
        exchange.rules["BTCUSD_PERP"],
        D("100000"),
    ) == D("-0.01")


def test_reduce_only_orders_never_turn_a_position() -> None:
    exchange, wallets, listener = margin("ubase", "BTCUSDT")
    exchange.place(new(exchange, "a", False, D("64000"), D("0.010")))
    exchange.place(new(exchange, "b", True, D("64000"), D("0.010")))
    first = new(exchange, "b", False, D("64100"), D("0.006"), reduce_only=True)
    second = new(exchange, "b", False, D("64200"), D("0.004"), reduce_only=True)
    exchange.place(first)
    exchange.place(second)
    # Another sale takes the position down to 0.005: only what still fits stays, the oldest first.
    exchange.place(new(exchange, "a", True, D("63000"), D("0.005")))
    exchange.place(new(exchange, "b", False, D("63000"), D("0.005")))
    assert (first.status, second.status) == ("EXPIRED", "NEW")
    exchange.place(new(exchange, "a", True, D("65000"), D("0.010")))
    assert wallets["b"].amount("BTCUSDT", "BOTH") == D("0.001")
    assert second.status == "FILLED"
    assert listener.events[-1][1] == "TRADE"


def test_reduce_only_without_a_position_is_refused() -> None:
    exchange, _, _ = margin("ubase", "BTCUSDT")
    with pytest.raises(VenueError, match="-2022"):
        exchange.place(new(exchange, "b", False, D("64100"), D("0.006"), reduce_only=True))


def test_margin_is_what_an_order_would_open() -> None:
    exchange, wallets, _ = margin("ubase", "BTCUSDT")
    wallets["a"].assets["USDT"] = D(640)
    with pytest.raises(VenueError, match="-2019"):
        exchange.place(new(exchange, "a", True, D("64000"), D("0.201")))
    exchange.place(new(exchange, "a", True, D("64000"), D("0.200")))  # 12,800 at 20 times
    with pytest.raises(VenueError, match="-2019"):
        exchange.place(new(exchange, "a", True, D("64000"), D("0.001")))
