"""The simulated Binance that trades, as one value to describe and one object to run.

    spec = TradingSpec(accounts=(AccountSpec(name="alice"),), market="manual")
    async with SimTrading(spec) as venue:
        entry = venue.config_entries("alice", folder)       # a `trading` entry, keys in files
        venue.quote("spot", "BTCUSDT", "buy", "63999.00", "1.5")
        venue.inject({"fault": "drop_reply", "target": {"op": "order.place"}})
        ...
        assert venue.ledger.placed_twice() == []

Its market is its own (seeded, at `pace`), or follows that of a simulated Binance for market data:
then orders meet the very book that the data shows. Orders of accounts are not shown there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from itertools import cycle
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any

import msgspec

from k4.core.clock import Clock, SystemClock, Timer
from k4.core.errors import ConfigError, Problem
from k4.runner.sim.binance_feeds import specs
from k4.runner.sim.market import Instrument, MarketEvent, Pace
from k4.runner.sim.trading.acts import Acts
from k4.runner.sim.trading.exchange import Exchange
from k4.runner.sim.trading.faults import AnyFault, Injector, parse_fault, parse_script
from k4.runner.sim.trading.front import Front
from k4.runner.sim.trading.futures import FuturesDesk
from k4.runner.sim.trading.futures_accounts import FuturesAccounts
from k4.runner.sim.trading.gate import Gate, Request, VenueClock
from k4.runner.sim.trading.keys import KeyRing
from k4.runner.sim.trading.ledger import TradingLedger
from k4.runner.sim.trading.limits import OrderCounts, Pool
from k4.runner.sim.trading.rules import Rules, make_rules
from k4.runner.sim.trading.service import Service
from k4.runner.sim.trading.settlement import (
    FUTURES_FEES,
    SPOT_FEES,
    MarginSettlement,
    SpotSettlement,
)
from k4.runner.sim.trading.spec import PRODUCTS, TradingSpec, check_spec
from k4.runner.sim.trading.spot import SpotDesk
from k4.runner.sim.trading.streams import StreamHub
from k4.runner.sim.trading.wallets import MarginWallet, SpotWallet

Json = dict[str, Any]
_SIDES = {"buy": True, "sell": False}


class SimTrading:
    """An async context manager, or `start` and `stop`. ledger: the truth, also afterwards."""

    def __init__(self, spec: TradingSpec, *, clock: Clock | None = None) -> None:
        """Raises ConfigError: what cannot be simulated."""
        check_spec(spec)
        self.spec = spec
        self.clock: Clock = clock if clock is not None else SystemClock()
        self.ledger = TradingLedger()
        self.venue_clock = VenueClock(self.clock, spec.clock_ms)
        self.keys = KeyRing(spec.accounts, spec.seed)
        self.instruments = _instruments(spec, self.clock)
        self.exchanges = {product: self._exchange(product) for product in PRODUCTS}
        self._acts = Acts(self)
        self.injector = Injector(
            parse_script(list(spec.faults)), spec.seed, self.clock, self._acts.commit
        )
        self.streams = StreamHub(
            self.clock, self.venue_clock, self.injector, self.ledger, spec.scale
        )
        self._make_accounts()
        self.service = Service(
            self._make_gate(),
            self.streams,
            self.injector,
            self.ledger,
            self.clock,
            order=spec.order,
            scale=spec.scale,
            seed=spec.seed,
        )
        self.front = Front(self)
        self._pace = spec.pace
        self._turns = cycle([item for items in self.instruments.values() for item in items])
        self._owed = 0.0
        self._last = 0.0
        self._timer: Timer | None = None

    # -- composition ------------------------------------------------------------------------------

    def _exchange(self, product: str) -> Exchange:
        rules: dict[str, Rules] = {}
        for instrument in self.instruments[product]:
            symbol = instrument.spec.symbol
            changes = self.spec.filters.get(product, {}).get(symbol, {})
            rules[symbol] = make_rules(instrument.spec, changes, f"filters.{product}.{symbol}")
        random = Random(f"{self.spec.seed}/{product}")
        exchange = Exchange(
            product,
            rules,
            self.clock,
            self.venue_clock.engine_now_ms,
            first_order=random.randrange(10**9, 10**10),
            first_trade=random.randrange(10**8, 10**9),
        )
        self.ledger.attach(exchange.orders, exchange.trades)
        return exchange

    def _make_accounts(self) -> None:
        """Wallets, order counts and desks."""
        accounts, limits = self.spec.accounts, self.spec.limits
        hedge = {account.name: account.hedge for account in accounts}
        spot_counts = {account.name: OrderCounts(limits.spot_orders) for account in accounts}
        # USD-M and COIN-M draw from the same pools since June 2026.
        shared = {account.name: OrderCounts(limits.futures_orders) for account in accounts}
        self.counts = {(name, "spot"): counts for name, counts in spot_counts.items()}
        for product in ("ubase", "cbase"):
            self.counts |= {(name, product): counts for name, counts in shared.items()}
        self.spot_wallets = {
            account.name: SpotWallet(account.funds.get("spot", {}), SPOT_FEES)
            for account in accounts
        }
        self.spot = SpotDesk(
            self.exchanges["spot"],
            self.spot_wallets,
            spot_counts,
            self.venue_clock,
            lambda account, body, client: self.streams.tell("spot", account, body, client),
            lambda: self._info("spot"),
        )
        self.exchanges["spot"].connect(SpotSettlement(self.spot_wallets), self.spot)
        self.futures = {
            product: self._futures(product, hedge, shared) for product in ("ubase", "cbase")
        }
        self.ledger.attach_wealth(self._wealth)

    def _futures(
        self, product: str, hedge: dict[str, bool], counts: Mapping[str, OrderCounts]
    ) -> FuturesDesk:
        exchange = self.exchanges[product]
        wallets = {
            account.name: MarginWallet(account.funds.get(product, {}), FUTURES_FEES)
            for account in self.spec.accounts
        }
        settlement = MarginSettlement(
            wallets,
            exchange.rules,
            {account.name: account.leverage for account in self.spec.accounts},
            hedge.__getitem__,
            exchange.open_orders,
            exchange.mark,
        )
        accounts = FuturesAccounts(exchange, settlement, wallets, hedge, self._busy)

        def tell(account: str, body: Json, client_id: str) -> None:
            self.streams.tell(product, account, body, client_id)

        desk = FuturesDesk(
            exchange,
            accounts,
            counts,
            self.venue_clock,
            self.clock,
            tell,
            lambda: self._info(product),
        )
        exchange.connect(settlement, desk)
        return desk

    def _make_gate(self) -> Gate:
        limits = self.spec.limits
        self.spot_pool = Pool(limits.spot_weight, limits.raw_requests, limits)
        self.futures_pool = Pool(limits.futures_weight, limits.raw_requests, limits)
        pools = {
            "spot": self.spot_pool,
            "ubase": self.futures_pool,
            "cbase": self.futures_pool,
        }
        return Gate(self.venue_clock, self.keys, pools, self.counts)

    def _info(self, product: str) -> Json:
        """What `exchangeInfo` says besides the symbols."""
        gate = self.service.gate
        windows = [gate.pools[product].weight]
        windows += self.counts[self.spec.accounts[0].name, product].windows
        if product == "spot":
            windows.append(gate.pools[product].raw)
        return {
            "timezone": "UTC",
            "serverTime": self.venue_clock.now_ms(),
            "rateLimits": [window.entry() for window in windows],
            "exchangeFilters": [],
        }

    def _busy(self, account: str) -> tuple[bool, bool]:
        """(open orders, positions) of an account in either futures product."""
        orders = any(
            self.exchanges[product].open_orders(account) or desk.algos.open(account)
            for product, desk in self.futures.items()
        )
        positions = any(desk.accounts.open_positions(account) for desk in self.futures.values())
        return orders, positions

    # -- life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the ports. Raises ConfigError where one is taken."""
        if self.spec.market == "random":
            for product, items in self.instruments.items():
                for instrument in items:
                    self.exchanges[product].fill_book(instrument)
        await self.front.start()
        self.injector.start()
        if self._pace.start:
            self.set_pace(self._pace)

    async def stop(self) -> None:
        """Close everything; the ledger stays. Safe to call twice."""
        self.injector.stop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.service.stop()
        self.streams.stop()
        for exchange in self.exchanges.values():
            exchange.stop()
        for desk in self.futures.values():
            desk.stop()
        await self.front.stop()

    async def __aenter__(self) -> SimTrading:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    # -- for a client -----------------------------------------------------------------------------

    def urls(self) -> dict[str, str]:
        """The URLs of a `trading` entry, by the configuration's keys."""
        return self.front.urls()

    def config_entries(
        self, account: str, folder: Path | None = None, algorithm: str = "hmac"
    ) -> dict[str, Any]:
        """The entries of a `trading` entry: exchange, what is enabled, URLs, and, where a folder is
        given, the account's key of that algorithm in files there (mode 0600). Raises ConfigError
        for an account or key that does not exist."""
        if all(account != known.name for known in self.spec.accounts):
            raise ConfigError([Problem("account", f"no account {account!r}")])
        enabled = {f"{product}_enabled": bool(self.instruments[product]) for product in PRODUCTS}
        entry: dict[str, Any] = {"exchange": "binance", **enabled, **self.urls()}
        if folder is not None:
            try:
                entry |= self.keys.of(account, algorithm).write(folder)
            except KeyError as error:
                raise ConfigError([Problem("account", str(error))]) from error
        return entry

    def perform(self, request: Request) -> Any:
        """Carry out an admitted request that concerns no connection."""
        product, account = request.product, request.account
        match request.endpoint.op:
            case "userDataStream.start":
                return {"listenKey": self.streams.start_key(product, account)}
            case "userDataStream.ping":
                return {"listenKey": self.streams.extend_key(product, account)}
            case "userDataStream.stop":
                self.streams.stop_key(product, account)
                return {}
        if product == "spot":
            return self.spot.execute(request)
        result = self.futures[product].execute(request)
        if request.symbol in self.exchanges[product].rules:
            self.futures[product].check_triggers(request.symbol)
        return result

    # -- the market -------------------------------------------------------------------------------

    def emit(self, events: int) -> None:
        """Let that many things happen in the random market, over all instruments in turn."""
        for _ in range(events):
            instrument = next(self._turns)
            self.moved(instrument, instrument.step(self._pace.trade_share))

    def moved(self, instrument: Instrument, event: MarketEvent) -> None:
        """An instrument took a step: its own, or one of the market-data simulation."""
        spec = instrument.spec
        if spec.symbol in self.exchanges[spec.product].rules:
            self.exchanges[spec.product].moved(spec.symbol, event)
            self._after_move(spec.product, spec.symbol)

    def follow(self, instruments: Sequence[Instrument]) -> None:
        """Before `start`: the market is that of these instruments, whose steps come by `moved`; its
        own stands still. Symbols that none of them has keep their first book."""
        theirs = {(item.spec.product, item.spec.symbol): item for item in instruments}
        self.instruments = {
            product: [theirs.get((product, item.spec.symbol), item) for item in items]
            for product, items in self.instruments.items()
        }
        self._pace = msgspec.structs.replace(self._pace, start=False)

    def quote(self, product: str, symbol: str, side: str, price: str, quantity: str) -> None:
        """Set the market's own size at a price. side: buy (a bid) or sell."""
        exchange = self._exchange_of(product, symbol)
        exchange.quote(symbol, _SIDES[side], Decimal(price), Decimal(quantity))
        self._after_move(product, symbol)

    def hit(self, product: str, symbol: str, side: str, price: str, quantity: str) -> Decimal:
        """Somebody in the market buys or sells, at `price` or better; returns how much."""
        exchange = self._exchange_of(product, symbol)
        done = exchange.hit(symbol, _SIDES[side], Decimal(price), Decimal(quantity))
        self._after_move(product, symbol)
        return done

    def deposit(self, account: str, product: str, asset: str, amount: str) -> None:
        """Move funds in (negative: out), with the events that follow."""
        if product == "spot":
            self.spot.deposit(account, asset, Decimal(amount))
        else:
            self.futures[product].deposit(account, asset, Decimal(amount))

    def set_pace(self, pace: Pace) -> None:
        """Let the random market move at that rate from now on; `start` False halts it."""
        self._pace = pace
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if pace.start and pace.rate and self.spec.market == "random":
            self._last, self._owed = self.clock.monotonic(), 0.0
            self._timer = self.clock.call_later(pace.tick, self._tick)

    def _tick(self) -> None:
        now = self.clock.monotonic()
        self._owed += min(now - self._last, 0.25) * self._pace.rate
        self._last = now
        whole = int(self._owed)
        self._owed -= whole
        self.emit(whole)
        self._timer = self.clock.call_later(self._pace.tick, self._tick)

    def _after_move(self, product: str, symbol: str) -> None:
        if product != "spot":
            self.futures[product].check_triggers(symbol)

    def _exchange_of(self, product: str, symbol: str) -> Exchange:
        exchange = self.exchanges.get(product)
        if exchange is None or symbol not in exchange.rules:
            raise ConfigError([Problem("symbol", f"{product} has no {symbol!r} here")])
        return exchange

    # -- faults and truth -------------------------------------------------------------------------

    def inject(self, fault: Mapping[str, Any]) -> object:
        """One fault by hand, see `faults.py`: an act happens now, and what it did is returned; a
        fault of requests or events waits for its opportunity."""
        rule: AnyFault = parse_fault(fault)
        return self.injector.inject(rule)

    def _wealth(self) -> Json:
        found: Json = {}
        for account in self.spec.accounts:
            name = account.name
            spot = self.spot_wallets[name].assets
            mine: Json = {
                "spot": {
                    asset: {"free": f"{held.free:f}", "locked": f"{held.locked:f}"}
                    for asset, held in spot.items()
                }
            }
            for product, desk in self.futures.items():
                wallet = desk.accounts.wallets[name]
                mine[product] = {asset: f"{amount:f}" for asset, amount in wallet.assets.items()}
                mine[f"{product}_positions"] = [
                    {"symbol": p.symbol, "side": p.side, "amount": f"{p.amount:f}"}
                    for p in desk.accounts.open_positions(name)
                ]
            found[name] = mine
        return found


def _instruments(spec: TradingSpec, clock: Clock) -> dict[str, Sequence[Instrument]]:
    return {
        product: [
            Instrument(item, spec.seed, clock)
            for item in specs(product, spec.symbols.get(product, ()))
        ]
        for product in PRODUCTS
    }
