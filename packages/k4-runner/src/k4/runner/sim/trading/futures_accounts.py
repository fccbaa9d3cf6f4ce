"""Balances, positions and settings of one futures product, as requests and events show them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from k4.runner.sim.trading import errors
from k4.runner.sim.trading import futures_shapes as shapes
from k4.runner.sim.trading.exchange import Exchange
from k4.runner.sim.trading.futures_shapes import PositionView
from k4.runner.sim.trading.gate import Request
from k4.runner.sim.trading.orders import Order
from k4.runner.sim.trading.rules import Rules
from k4.runner.sim.trading.settlement import MarginSettlement
from k4.runner.sim.trading.wallets import MarginWallet, Position

Json = dict[str, Any]
ZERO = Decimal(0)
_EIGHT = Decimal("1e-8")


class FuturesAccounts:
    """hedge: position mode by account, shared by both futures products. busy(account): has either
    product open orders, or positions?"""

    def __init__(
        self,
        exchange: Exchange,
        settlement: MarginSettlement,
        wallets: Mapping[str, MarginWallet],
        hedge: dict[str, bool],
        busy: Callable[[str], tuple[bool, bool]],
    ) -> None:
        self.wallets = wallets
        self.hedge = hedge
        self._exchange = exchange
        self._settlement = settlement
        self._busy = busy
        self._usd = exchange.product == "ubase"
        self.handlers: Mapping[str, Callable[[Request], Any]] = {
            "account.position": self._positions,
            "account.balance": self._balances,
            "account.status": self._account,
            "accountConfig": self._config,
            "symbolConfig": self._symbol_config,
            "positionMode": lambda request: {"dualSidePosition": self.hedge[request.account]},
        }

    # -- figures ----------------------------------------------------------------------------------

    def open_positions(self, account: str) -> list[Position]:
        return [p for p in self.wallets[account].positions.values() if p.amount]

    def reducible(self, account: str, symbol: str, side: str, buy: bool) -> Decimal:
        return self.wallets[account].reducible(symbol, side, buy)

    def open_notional(self, account: str, symbol: str) -> tuple[Decimal, Decimal]:
        """(bids, asks): what the account's open orders on the symbol are worth."""
        rules, worth = self._exchange.rules[symbol], [ZERO, ZERO]
        for order in self._exchange.open_orders(account, symbol):
            if order.price:
                worth[not order.buy] += rules.value(order.price, order.left)
        return worth[0], worth[1]

    def view(self, account: str, position: Position) -> PositionView:
        rules = self._exchange.rules[position.symbol]
        leverage = self._settlement.leverage(account, position.symbol)
        mark = self._exchange.mark(position.symbol)
        return PositionView(position, self.wallets[account], rules, mark, leverage)

    def update_after(self, order: Order, rules: Rules, now_ms: int) -> Json:
        """The ACCOUNT_UPDATE of a fill."""
        wallet = self.wallets[order.account]
        position = wallet.position(order.symbol, order.position_side)
        position.updated_ms = wallet.updated_ms = order.updated_ms
        asset = rules.margin_asset
        return shapes.account_update(
            "ORDER",
            [(asset, wallet.assets.get(asset, ZERO), ZERO)],
            [self.view(order.account, position)],
            now_ms,
            order.updated_ms,
        )

    # -- requests ---------------------------------------------------------------------------------

    def _sides(self, account: str) -> tuple[str, ...]:
        return ("LONG", "SHORT") if self.hedge[account] else ("BOTH",)

    def _views(self, account: str, symbol: str) -> list[PositionView]:
        wallet = self.wallets[account]
        return [self.view(account, wallet.position(symbol, side)) for side in self._sides(account)]

    def _positions(self, request: Request) -> list[Json]:
        account, params = request.account, request.params
        rules = self._exchange.rules
        if not self._usd:
            asset, pair = params.text("marginAsset"), params.text("pair")
            return [
                shapes.coin_position_risk(view)
                for symbol, item in rules.items()
                if asset in ("", item.margin_asset) and pair in ("", symbol.partition("_")[0])
                for view in self._views(account, symbol)
            ]
        wanted = params.symbol() if "symbol" in params else ""
        if wanted and wanted not in rules:
            raise errors.invalid_symbol()
        found: list[Json] = []
        for symbol in [wanted] if wanted else rules:
            bids, asks = self.open_notional(account, symbol)
            found += [
                shapes.position_risk(view, bids, asks)
                for view in self._views(account, symbol)
                if view.position.amount or bids or asks
            ]
        return found

    def _balances(self, request: Request) -> list[Json]:
        account, wallet = request.account, self.wallets[request.account]
        return [
            shapes.balance(
                f"sim-{account}",
                asset,
                amount,
                self._settlement.unrealized(account, asset).quantize(_EIGHT),
                self._settlement.available(account, asset).quantize(_EIGHT),
                wallet.updated_ms,
            )
            for asset, amount in wallet.assets.items()
        ]

    def _account(self, request: Request) -> Json:
        account, wallet = request.account, self.wallets[request.account]
        margins = self._settlement
        assets = [
            shapes.account_asset(
                asset,
                amount,
                margins.unrealized(account, asset).quantize(_EIGHT),
                margins.position_margin(account, asset).quantize(_EIGHT),
                margins.order_margin(account, asset).quantize(_EIGHT),
                wallet.updated_ms,
            )
            for asset, amount in wallet.assets.items()
        ]
        symbols = list(self._exchange.rules)
        views = [view for symbol in symbols for view in self._views(account, symbol)]
        body: Json = {
            "assets": assets,
            "positions": [
                shapes.account_position(view)
                for view in views
                if view.position.amount or not self._usd
            ],
        }
        if not self._usd:
            return {"canTrade": True, "canDeposit": True, "canWithdraw": True, "feeTier": 0, **body}
        totals = {
            "totalInitialMargin": "initialMargin",
            "totalMaintMargin": "maintMargin",
            "totalWalletBalance": "walletBalance",
            "totalUnrealizedProfit": "unrealizedProfit",
            "totalMarginBalance": "marginBalance",
            "totalPositionInitialMargin": "positionInitialMargin",
            "totalOpenOrderInitialMargin": "openOrderInitialMargin",
            "totalCrossWalletBalance": "crossWalletBalance",
            "totalCrossUnPnl": "crossUnPnl",
            "availableBalance": "availableBalance",
            "maxWithdrawAmount": "maxWithdrawAmount",
        }
        summed = {
            total: shapes.text(sum((Decimal(entry[name]) for entry in assets), ZERO))
            for total, name in totals.items()
        }
        return {**summed, **body}

    def _config(self, request: Request) -> Json:
        return {
            "feeTier": 0,
            "canTrade": True,
            "canDeposit": True,
            "canWithdraw": True,
            "dualSidePosition": self.hedge[request.account],
            "updateTime": 0,
            "multiAssetsMargin": False,
            "tradeGroupId": -1,
        }

    def _symbol_config(self, request: Request) -> list[Json]:
        wanted = request.params.text("symbol")
        return [
            {
                "symbol": symbol,
                "marginType": "CROSSED",
                "isAutoAddMargin": False,
                "leverage": self._settlement.leverage(request.account, symbol),
                "maxNotionalValue": "1000000",
            }
            for symbol in self._exchange.rules
            if wanted in ("", symbol)
        ]

    def set_hedge(self, account: str, hedge: bool) -> None:
        if self.hedge[account] == hedge:
            raise errors.futures(-4059)
        orders, positions = self._busy(account)
        if orders:
            raise errors.futures(-4067)
        if positions:
            raise errors.futures(-4068)
        self.hedge[account] = hedge
