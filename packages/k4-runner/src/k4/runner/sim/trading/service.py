"""A request's way through faults, gate and product, to what is to be answered.

Nothing here knows sockets: a front end hands in a `Request` and does what the `Outcome` says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from random import Random
from typing import Any

import msgspec

from k4.core.clock import Clock
from k4.runner.sim.trading import errors
from k4.runner.sim.trading.errors import VenueError
from k4.runner.sim.trading.faults import (
    Disconnect,
    DropReply,
    Injector,
    Latency,
    Occasion,
    Refuse,
    Strike,
    Timeout,
    Unavailable,
)
from k4.runner.sim.trading.gate import Gate, Request, SessionRevoked
from k4.runner.sim.trading.ledger import FaultRecord, RequestRecord, TradingLedger
from k4.runner.sim.trading.streams import StreamHub

Json = dict[str, Any]


class Answer(msgspec.Struct, kw_only=True):
    """status: HTTP's. error: None for a success. limits: the `rateLimits` array; headers: the same
    for REST. detached: the answer names no request (a session that was revoked)."""

    status: int = 200
    result: Any = None
    error: VenueError | None = None
    limits: list[Json] = []
    headers: dict[str, str] = {}
    detached: bool = False


class Outcome(msgspec.Struct, kw_only=True):
    """What the front end does: write `answer`, else break the connection (`abort`), else nothing at
    all. sent: to be called when that is done; the account's events follow."""

    record: RequestRecord
    sent: Callable[[], None]
    answer: Answer | None = None
    abort: bool = False


class Service:
    """The venue's side of every request. order: see `TradingSpec.order`."""

    def __init__(
        self,
        gate: Gate,
        streams: StreamHub,
        injector: Injector,
        ledger: TradingLedger,
        clock: Clock,
        *,
        order: str,
        scale: float,
        seed: int,
    ) -> None:
        self.gate = gate
        self._streams = streams
        self._injector = injector
        self._ledger = ledger
        self._clock = clock
        self._order = order
        self._scale = scale
        self._random = Random(f"{seed}/order")
        self._modifying: set[tuple[str, str, str, str]] = set()
        self._paused: set[asyncio.Future[None]] = set()
        self._stopped = False

    async def handle(self, request: Request, perform: Callable[[Request], Any]) -> Outcome:
        """perform: carries out an admitted request; raises VenueError."""
        record = self._receive(request)
        strikes = self._injector.request(self._occasion(request))
        before = [s for s in strikes if _latency(s, "before")]
        after = [s for s in strikes if _latency(s, "after")]
        ending = next((s for s in strikes if not isinstance(s.rule, Latency)), None)
        if ending is not None and not _executes(ending.rule, request.product):
            return await self._unexecuted(record, request, ending)
        held = ExitStack()  # what holds back the account's events
        outcome = Outcome(record=record, sent=_answered(record, held.close))
        try:
            outcome.answer = await self._run(request, record, before, held, perform)
            for strike in after:
                held.close()
                self._note(record, request, strike)
                await self.pause(strike.seconds)
            if ending is not None:
                held.close()
                await self._executed(outcome, request, ending)
        except BaseException:
            held.close()
            raise
        return outcome

    # -- the ways a request can go ----------------------------------------------------------------

    async def _unexecuted(self, record: RequestRecord, request: Request, strike: Strike) -> Outcome:
        rule = strike.rule
        self._note(record, request, strike)
        outcome = Outcome(record=record, sent=_answered(record, _nothing))
        if isinstance(rule, Disconnect):
            outcome.abort = True
        elif isinstance(rule, Unavailable):
            outcome.answer = self._refusal(request, record, errors.unavailable(rule.what))
        elif isinstance(rule, Refuse):
            refusal = errors.by_code(request.product, rule.code, rule.msg, rule.status)
            outcome.answer = self._refusal(request, record, refusal)
        elif isinstance(rule, Timeout):
            await self.pause(rule.seconds / self._scale)
            outcome.answer = self._refusal(request, record, errors.backend(rule.code))
        if outcome.answer is None:
            outcome.sent = _nothing
        return outcome

    async def _executed(self, outcome: Outcome, request: Request, strike: Strike) -> None:
        rule, record = strike.rule, outcome.record
        self._note(record, request, strike)
        if isinstance(rule, Unavailable):
            outcome.answer = self._refusal(request, record, errors.unavailable(rule.what))
            return
        if isinstance(rule, Timeout):
            await self.pause(rule.seconds / self._scale)
            outcome.answer = self._refusal(request, record, errors.backend(rule.code))
            return
        outcome.answer, outcome.sent = None, _nothing
        outcome.abort = isinstance(rule, Disconnect)

    async def _run(
        self,
        request: Request,
        record: RequestRecord,
        before: list[Strike],
        held: ExitStack,
        perform: Callable[[Request], Any],
    ) -> Answer:
        endpoint = request.endpoint
        pending = self._modification(request)
        try:
            self.gate.admit(request)
            record.account = request.account
            if pending in self._modifying:
                raise errors.futures(-5043)
            with _Member(self._modifying, pending):
                for strike in before:
                    self._note(record, request, strike)
                    await self.pause(strike.seconds)
                self.gate.check_again(request)
                held.callback(self._hold(request))
                result = perform(request)
        except VenueError as error:
            record.account = request.account
            return self._refusal(request, record, error)
        except SessionRevoked:
            answer = self._refusal(request, record, errors.key_rejected())
            answer.detached = True
            return answer
        record.executed, record.status = True, 200
        if endpoint.free:
            weight = endpoint.weight_of(request.values)
            pool = self.gate.pools[request.product]
            pool.give_back(weight, self.gate.clock.now_ms())
        return self._complete(Answer(result=result), request)

    def _refusal(self, request: Request, record: RequestRecord, error: VenueError) -> Answer:
        record.status, record.code = error.status, error.code
        return self._complete(Answer(status=error.status, error=error), request)

    def _complete(self, answer: Answer, request: Request) -> Answer:
        """Add what the answer says about limits."""
        now = self.gate.clock.now_ms()
        windows = [self.gate.pools[request.product].weight]
        if request.endpoint.trades and request.key is not None:
            windows += self.gate.counts[request.account, request.product].windows
        answer.limits = [window.counted(now) for window in reversed(windows)]
        for window in windows:
            name = "ORDER-COUNT" if window.kind == "ORDERS" else "USED-WEIGHT"
            answer.headers[f"X-MBX-{name}-{window.interval[2]}"] = str(window.used(now))
        retry = (answer.error.data or {}).get("retryAfter") if answer.error else None
        if retry is not None:
            answer.headers["Retry-After"] = str(max(1, -(-(retry - now) // 1000)))
        return answer

    # -- bookkeeping ------------------------------------------------------------------------------

    def _receive(self, request: Request) -> RequestRecord:
        values = request.values
        record = RequestRecord(
            number=len(self._ledger.requests) + 1,
            time_ms=self.gate.clock.now_ms(),
            product=request.product,
            transport=request.transport,
            op=request.endpoint.op,
            symbol=request.symbol,
            client_id=request.order_client_id,
            order_id=values.get("orderId", values.get("cancelOrderId", "")),
        )
        self._ledger.requests.append(record)
        return record

    def _occasion(self, request: Request) -> Occasion:
        return Occasion(
            product=request.product,
            account=self._owner(request),
            transport=request.transport,
            op=request.endpoint.op,
            client_id=request.order_client_id,
        )

    def _owner(self, request: Request) -> str:
        """Whose request it claims to be; nothing is verified yet."""
        if request.session is not None and not request.api_key:
            return request.session.account
        for key in self.gate.keys:
            if key.api_key == request.api_key:
                return key.account
        return ""

    def _hold(self, request: Request) -> Callable[[], None]:
        """Whether the account's events wait for the answer."""
        if self._order == "event" or (self._order == "random" and self._random.random() < 0.5):
            return _nothing
        owner = self._owner(request)
        return self._streams.hold(request.product, owner) if owner else _nothing

    def _note(self, record: RequestRecord, request: Request, strike: Strike) -> None:
        record.faults.append(strike.rule.name)
        self._ledger.fault(
            FaultRecord(
                time_ms=self.gate.clock.now_ms(),
                fault=strike.rule.name,
                rule=strike.index,
                product=record.product,
                account=record.account or self._owner(request),
                op=record.op,
                client_id=record.client_id,
                request=record.number,
                executed=record.executed,
            )
        )

    def _modification(self, request: Request) -> tuple[str, str, str, str] | None:
        if request.endpoint.op != "order.modify":
            return None
        name = request.values.get("orderId", "") or request.values.get("origClientOrderId", "")
        return request.product, self._owner(request), request.symbol, name

    # -- time -------------------------------------------------------------------------------------

    async def pause(self, seconds: float) -> None:
        """Wait on the injected clock, or until the venue stops."""
        if self._stopped:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._paused.add(done)
        timer = self._clock.call_later(seconds, _finish, done)
        try:
            await done
        finally:
            timer.cancel()
            self._paused.discard(done)

    def stop(self) -> None:
        """End every wait."""
        self._stopped = True
        for done in list(self._paused):
            _finish(done)


class _Member:
    """While inside, the set has the item (None: nothing)."""

    def __init__(self, items: set[Any], item: Any) -> None:
        self._items = items
        self._item = item

    def __enter__(self) -> None:
        if self._item is not None:
            self._items.add(self._item)

    def __exit__(self, *_: object) -> None:
        self._items.discard(self._item)


def _latency(strike: Strike, where: str) -> bool:
    return isinstance(strike.rule, Latency) and strike.rule.where == where


def _executes(rule: object, product: str) -> bool:
    """Does the request reach the engine in spite of this fault?"""
    if product != "spot" and isinstance(rule, Timeout) and rule.code == -1001:
        return False  # its text, "Internal error ... Please try again.", says failed on futures
    if isinstance(rule, DropReply):
        return True
    if isinstance(rule, Disconnect):
        return rule.when == "after"
    return isinstance(rule, Unavailable | Timeout) and rule.executed


def _finish(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


def _nothing() -> None:
    """Nobody waits for it."""


def _answered(record: RequestRecord, release: Callable[[], None]) -> Callable[[], None]:
    def sent() -> None:
        record.answered = True
        release()

    return sent
