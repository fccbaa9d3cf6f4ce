"""Binance as a `k4.td.venue.Venue`: one account type, its REST API and its WebSockets together.

Orders and cancels go over the WebSocket API while it is connected and the venue has not announced
to close it, else over REST; queries go over REST, so that an order in doubt is asked for on another
channel than the one that lost it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import msgspec

from k4.core.clock import Clock
from k4.core.config import Secret, TradingConfig
from k4.core.trading import (
    AccountType,
    AuthRefused,
    Balance,
    ClockRefused,
    Fault,
    Fill,
    NewOrder,
    NotReady,
    OrderError,
    OrderMissing,
    OutcomeUnknown,
    Position,
    RequestRefused,
    RuleRefused,
    VenueRefused,
)
from k4.core.waiting import sleep
from k4.td.exchanges.binance import protocol, reports
from k4.td.exchanges.binance.errors import UNKNOWN_REMEDY, interpret
from k4.td.exchanges.binance.events import Changes, Ended, parse_event
from k4.td.exchanges.binance.info import parse_info
from k4.td.exchanges.binance.keeper import Keeper
from k4.td.exchanges.binance.listen_key import ListenKey
from k4.td.exchanges.binance.pacer import Pacer
from k4.td.exchanges.binance.protocol import Call, Lane
from k4.td.exchanges.binance.reports import ErrorBody, Frame, Malformed, ReplaceBody
from k4.td.exchanges.binance.rest import REST_REMEDY, Http, Rest
from k4.td.exchanges.binance.stream import ApiLine, Line, Socket, StreamLine
from k4.td.limits import Limiter
from k4.td.server_clock import ServerClock
from k4.td.signing import Signer
from k4.td.symbols import SymbolBook
from k4.td.timing import Timing
from k4.td.venue import OrderRef, Replaced, Report, VenueSink

_T = TypeVar("_T")
_HALVES = (-2021, -2022)
"""Codes of a cancel-and-replace of which one half failed, or both."""


class BinanceVenue:
    """One account type."""

    def __init__(
        self,
        config: TradingConfig,
        account: AccountType,
        signer: Signer,
        http: Http,
        limiter: Limiter,
        clock: Clock,
        timing: Timing,
    ) -> None:
        self.account = account
        self.symbols = SymbolBook(f"binance {account}", ())
        self._config = config
        self._product = protocol.PRODUCTS[account]
        self.replaces = self._product.spot
        self._key: Secret | None = config.api_key
        self._signer = signer
        self._http = http.join()
        self._clock = clock
        self._timing = timing
        self._server = ServerClock()
        # Spot takes fractions of a millisecond.
        window = config.recv_window if self._product.spot else math.ceil(config.recv_window)
        self._pacer = Pacer(clock, self._server, limiter, timing, window)
        self._limiter = limiter
        self._rest = Rest(
            self._product,
            config.rest_url[account],
            http,
            config.api_key,
            signer,
            self._pacer,
            clock,
            timing,
        )
        self._sink: VenueSink | None = None
        self._hedge: bool | None = None
        self._algo = account is AccountType.UBASE
        self._last_failure = ""
        self._closed = False
        self._tasks: list[asyncio.Task[None]] = []
        self._api: Keeper[ApiLine] = Keeper(
            self._connect_api,
            clock,
            timing,
            up=self._api_up,
            down=self._api_down,
            failed=self._failed,
        )
        self._listen = ListenKey(
            self._product,
            self._rest,
            clock,
            timing,
            config.listen_key_refresh_secs,
            self._key_refreshed,
        )
        self._stream: Keeper[StreamLine] | None = None
        if not self._product.events:
            self._stream = Keeper(
                self._connect_stream,
                clock,
                timing,
                up=self._stream_up,
                down=self._stream_down,
                failed=self._failed,
            )
        self.malformed = 0
        self.strays = 0

    # Life.

    @property
    def clock_error(self) -> float:
        """Seconds that the estimate of the venue's clock may be off."""
        return self._server.error_ns / 1e9

    def now_us(self) -> int:
        return (self._clock.time_ns() + self._server.offset_ns) // 1000

    async def open(self, sink: VenueSink) -> None:
        self._sink = sink
        await self._rest.sync_clock()
        await self._load_symbols()
        if not self._product.spot:
            self._hedge = await self._position_mode()
        self._api.start()
        if self._stream is not None:
            self._stream.start()
            self._spawn(self._listen.keep(self._key_lost))
        self._spawn(self._repeat(self._timing.clock_refresh, self._rest.sync_clock))
        self._spawn(self._repeat(self._timing.symbols_refresh, self._load_symbols))

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._api.close()
        if self._stream is not None:
            await self._stream.close()
        await self._http.leave()

    def suspect(self, reason: str) -> None:
        if self._stream is not None:
            self._listen.forget()
            self._stream.reconnect(reason)
        else:
            self._api.reconnect(reason)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._ended_task)
        self._tasks.append(task)

    def _ended_task(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (defect := task.exception()) is not None:
            what = f"{type(defect).__name__}: {defect}"
            self._fault(NotReady("internal", what, remedy="restart the module, and report this"))

    async def _load_symbols(self) -> None:
        body = await self._rest.call(protocol.exchange_info(self._product))
        try:
            self.symbols, windows = parse_info(self._product, body)
        except msgspec.DecodeError as error:
            raise NotReady(
                "exchange_info", f"unreadable exchange information: {error}", remedy=REST_REMEDY
            ) from None
        self._limiter.learn(windows)

    async def _position_mode(self) -> bool | None:
        """None where the venue has no such endpoint (test venues): then the order decides."""
        try:
            return reports.hedge_mode(await self._signed(protocol.position_mode(self._product)))
        except Malformed:
            return None
        except RequestRefused as error:
            if _absent(error):
                return None
            raise

    async def _relearn_mode(self) -> None:
        try:
            self._hedge = await self._position_mode()
        except OrderError as error:
            self._fault(error)

    async def _repeat(self, interval: float, work: Callable[[], Awaitable[None]]) -> None:
        """Do it again and again; a failure is told, and the next one follows in its time."""
        while True:
            await sleep(self._clock, interval)
            try:
                await work()
            except OrderError as error:
                self._fault(error)

    # Connections.

    async def _connect_api(self) -> ApiLine:
        self._pacer.charge(self._product.connect_weight)
        socket = await Socket.open(
            self._http, self._config.ws_api_url[self.account], self._clock, self._timing
        )
        line = ApiLine(
            socket,
            self.account,
            self._key,
            self._signer,
            self._pacer,
            self._clock,
            self._timing,
            self._heard,
            self._stray,
        )
        try:
            await self._hello(line)
        except BaseException:
            await line.close()
            raise
        return line

    async def _hello(self, line: ApiLine) -> None:
        try:
            await line.hello(self._product.events)
        except ClockRefused:
            await self._rest.sync_clock()
            await line.hello(self._product.events)

    async def _connect_stream(self) -> StreamLine:
        key = await self._listen.get()
        url = protocol.private_url(self._product, self._config.ws_url[self.account], key)
        socket = await Socket.open(self._http, url, self._clock, self._timing)
        return StreamLine(socket, lambda line, text: self._heard(line, text.encode()))

    def _api_up(self) -> None:
        self._last_failure = ""
        if self._product.events and self._sink is not None:
            self._sink.up()

    def _api_down(self, reason: str) -> None:
        if self._product.events and self._sink is not None:
            self._sink.down(reason)

    def _stream_up(self) -> None:
        self._last_failure = ""
        if self._sink is not None:
            self._sink.up()

    def _stream_down(self, reason: str) -> None:
        if self._sink is not None:
            self._sink.down(reason)

    def _key_refreshed(self, created: bool) -> None:
        if self._sink is not None:
            self._sink.key_refreshed(created)

    def _key_lost(self, reason: str) -> None:
        if self._stream is not None:
            self._stream.reconnect(reason)

    def _failed(self, error: OrderError) -> None:
        """An attempt to connect came to nothing. The same failure is told once."""
        if str(error) != self._last_failure:
            self._last_failure = str(error)
            self._fault(error)

    def _fault(self, error: OrderError) -> None:
        if self._sink is not None:
            self._sink.fault(
                Fault(
                    code=error.code,
                    message=error.message,
                    remedy=error.remedy,
                    account_type=self.account.value,
                )
            )

    # Events.

    def _heard(self, line: Line, body: bytes) -> None:
        sink = self._sink
        if sink is None:
            return
        try:
            event = parse_event(self._product, body)
        except Malformed:
            self.malformed += 1
            return
        match event:
            case Report():
                sink.report(event)
            case Changes(positions=positions, balances=balances):
                for position in positions:
                    sink.position(position)
                for balance in balances:
                    sink.balance(balance)
            case Ended():
                self._ended(line, event)

    def _ended(self, line: Line, event: Ended) -> None:
        keeper = self._stream if isinstance(line, StreamLine) else self._api
        assert keeper is not None
        if event.announced:
            keeper.announced(line)
        elif keeper.holds(line):  # otherwise it is being replaced anyway
            if event.key_expired:
                self._listen.forget()
            keeper.reconnect(event.reason)

    def _stray(self, line: Line, frame: Frame | None) -> None:
        """A frame that answers nothing that waits: malformed, late, or an error without id."""
        if frame is None:
            self.malformed += 1
            return
        self.strays += 1
        if frame.id is None and frame.error is not None:
            error = interpret(self.account, frame.status, frame.error.code, frame.error.msg)
            self._fault(error)
            if isinstance(error, AuthRefused):
                # The session is no longer logged on; what was sent on it is in doubt.
                line.socket.end("the venue ended the session")

    # Requests.

    async def _send(self, call: Call) -> bytes:
        """One request, by the WebSocket API where it exists and is connected."""
        return await self._retimed(self._once, call)

    async def _retimed(self, send: Callable[[Call], Awaitable[_T]], call: Call) -> _T:
        """-1021 proves that a request was not executed, so it is stamped and sent anew, once. Where
        the venue's clock cannot be read, the refusal stands: it says what became of the request."""
        try:
            return await send(call)
        except ClockRefused as error:
            if error.venue_code != -1021:
                raise
            refusal = error
        try:
            await self._rest.sync_clock()
        except OrderError:
            raise refusal from None
        return await send(call)

    async def _once(self, call: Call) -> bytes:
        line = self._api.line if call.method and call.lane is not Lane.QUERY else None
        if line is not None:
            with contextlib.suppress(NotReady):  # nothing was sent
                return await line.call(call)
        return await self._rest.call(call)

    async def _signed(self, call: Call) -> bytes:
        return await self._send(call)

    def validate(self, order: NewOrder) -> None:
        protocol.validate(self._product, order, self._hedge, self.now_us())
        self._pacer.check(protocol.place(self._product, order))

    async def place(self, order: NewOrder) -> Report:
        try:
            return self._order(await self._send(protocol.place(self._product, order)))
        except RuleRefused as error:
            if error.venue_code in (-4061, -4062):  # somebody changed the position mode
                self._spawn(self._relearn_mode())
            raise

    async def cancel(self, ref: OrderRef) -> Report:
        return self._order(await self._send(protocol.cancel(self._product, ref)))

    async def amend(self, ref: OrderRef, order: NewOrder) -> Report:
        body = await self._send(protocol.amend(self._product, ref, order))
        try:
            return reports.amend_report(self._product, body)
        except Malformed as error:
            raise _unreadable(error) from None

    async def replace(self, ref: OrderRef, order: NewOrder) -> Replaced:
        status, body = await self._retimed(self._replace_once, protocol.replace(ref, order))
        try:
            return self._replaced(status, reports.decode(body, ReplaceBody))
        except Malformed as error:
            raise _unreadable(error) from None

    async def _replace_once(self, call: Call) -> tuple[int, bytes]:
        """Status, and the object with both halves' results, which an error carries too where one
        half or both failed. Raises what a refusal of the whole means."""
        line = self._api.line
        if line is not None:
            with contextlib.suppress(NotReady):  # nothing was sent
                frame = await line.exchange(call)
                if frame.error is not None and frame.error.code in _HALVES:
                    return frame.status, bytes(frame.error.data)
                return frame.status, line.result(frame)
        answer = await self._rest.exchange(call)
        if not answer.good and (failure := reports.error_body(answer.body)).code in _HALVES:
            return answer.status, bytes(failure.data)
        return answer.status, self._rest.result(answer)

    def _replaced(self, status: int, body: ReplaceBody) -> Replaced:
        canceled = self._half(status, body.cancel_result, body.cancel_response)
        placed = self._half(status, body.new_order_result, body.new_order_response)
        if canceled is None or (placed is None and isinstance(canceled, Report)):
            # Not documented: only a cancel that fails keeps the venue from placing.
            raise OutcomeUnknown("", "one half was left out for no reason", remedy=UNKNOWN_REMEDY)
        return Replaced(canceled=canceled, placed=placed)

    def _half(
        self, status: int, result: str, response: msgspec.Raw
    ) -> Report | VenueRefused | None:
        if result == "SUCCESS":
            return reports.order_report(self._product, response)
        if result == "NOT_ATTEMPTED":
            return None
        failure = reports.decode(response, ErrorBody)
        # A half that failed was refused with a code of its own, whatever the whole's status is.
        error = interpret(self.account, min(status, 409), failure.code, failure.msg)
        if isinstance(error, VenueRefused):
            return error
        raise error

    async def cancel_all(self, symbol: str) -> None:
        with contextlib.suppress(OrderMissing):  # nothing was open (-2011)
            await self._send(protocol.cancel_all(self._product, symbol))
        if self._algo:
            try:
                await self._send(protocol.cancel_all_algo(symbol))
            except RequestRefused as error:
                self._no_algo(error)
            except OrderMissing:
                return

    async def order(self, ref: OrderRef) -> Report:
        report = self._order(await self._send(protocol.query(self._product, ref)))
        if not ref.client_order_id or report.client_order_id == ref.client_order_id:
            return report
        raise _unreadable(Malformed("an answer about another order"))

    async def open_orders(self, symbol: str = "") -> list[Report]:
        body = await self._send(protocol.open_orders(self._product, symbol))
        try:
            found = reports.order_reports(self._product, body)
            if self._algo:
                found += [
                    report
                    for report in await self._algo_orders()
                    if not symbol or report.symbol == symbol
                ]
        except Malformed as error:
            raise _unreadable(error) from None
        return found

    async def _algo_orders(self) -> list[Report]:
        try:
            return reports.algo_reports(await self._send(protocol.open_algo_orders()))
        except RequestRefused as error:
            self._no_algo(error)
            return []

    def _no_algo(self, error: RequestRefused) -> None:
        """A venue without the algo service (a test venue) has no such orders; say so once."""
        if not _absent(error):
            raise error
        self._algo = False
        self._fault(
            NotReady(
                "algo",
                "the venue has no algo order service: conditional orders are unseen",
                remedy="look at conditional orders at the venue itself",
            )
        )

    async def fills(self, symbol: str, after_trade_id: str, since_us: int) -> list[Fill]:
        following = int(after_trade_id) + 1 if after_trade_id else None
        found: list[Fill] = []
        while True:
            call = protocol.trades(self._product, symbol, following, since_us // 1000)
            body = await self._send(call)
            try:
                page = reports.trade_fills(self._product, body)
            except Malformed as error:
                raise _unreadable(error) from None
            found += page
            if len(page) < 1000:
                return found
            following = max(int(fill.trade_id) for fill in page) + 1

    async def order_fills(self, symbol: str, order_id: str) -> list[Fill]:
        body = await self._send(protocol.order_trades(self._product, symbol, order_id))
        try:
            return reports.trade_fills(self._product, body)
        except Malformed as error:
            raise _unreadable(error) from None

    async def positions(self) -> list[Position]:
        if self._product.spot:
            return []
        body = await self._send(protocol.positions(self._product))
        try:
            return reports.position_list(self._product, body)
        except Malformed as error:
            raise _unreadable(error) from None

    async def balances(self) -> list[Balance]:
        body = await self._send(protocol.balances(self._product))
        try:
            return reports.balance_list(self._product, body)
        except Malformed as error:
            raise _unreadable(error) from None

    def _order(self, body: bytes) -> Report:
        try:
            return reports.order_report(self._product, body)
        except Malformed as error:
            raise _unreadable(error) from None


def _absent(error: VenueRefused) -> bool:
    """Whether the endpoint itself does not exist: 404 without a code of the venue."""
    return error.venue_code is None and "[404]" in error.message


def _unreadable(error: Malformed) -> OutcomeUnknown:
    """A good answer that cannot be read says nothing about what was executed."""
    return OutcomeUnknown("", f"unreadable answer: {error}", remedy=UNKNOWN_REMEDY)
