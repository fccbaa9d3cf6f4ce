"""Binance's REST APIs over aiohttp: one request, one answer, never sent twice."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from k4.core.clock import Clock
from k4.core.config import Secret
from k4.core.trading import AccountType, NotReady, OutcomeUnknown
from k4.core.waiting import within
from k4.td.exchanges.binance.errors import UNKNOWN_REMEDY, interpret
from k4.td.exchanges.binance.pacer import Pacer
from k4.td.exchanges.binance.protocol import Call, Product, server_time
from k4.td.exchanges.binance.reports import Malformed, error_body, server_time_ms
from k4.td.limits import header_counts
from k4.td.signing import Signer, rest_query, signed_query
from k4.td.timing import Timing

CLOCK_SAMPLES = 5
REST_REMEDY = "check that the REST URL is the venue's; it is tried again"
_FORM = "application/x-www-form-urlencoded"


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def good(self) -> bool:
        return 200 <= self.status < 300

    @property
    def retry_after(self) -> float:
        """Seconds that the venue wants to be left alone, 0 where it does not say."""
        for name, value in self.headers:
            if name.lower() == "retry-after" and value.isdecimal():
                return float(value)
        return 0.0


class Http:
    """The connection pool that the accounts of one module share. Made on the first use, since it
    belongs to the running loop."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._users = 0

    def join(self) -> Http:
        """One more account uses it."""
        self._users += 1
        return self

    @property
    def session(self) -> aiohttp.ClientSession:
        """Raises NotReady when the last account has left."""
        if self._users <= 0:
            raise NotReady("stopped", "the module is stopping", remedy="start it again")
        if self._session is None:
            # Deadlines are kept on K4's clock; cookies and redirects are no part of these APIs.
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
            # aiohttp sends PUT and DELETE again by itself when a connection breaks, also after the
            # venue has executed them. There is no public switch; a test holds this one.
            self._session._retry_connection = False
        return self._session

    async def leave(self) -> None:
        """One account is done with it; the last one closes it, and with it what is under way."""
        self._users -= 1
        if self._session is not None and self._users <= 0:
            await self._session.close()


class Rest:
    """One product's REST API."""

    def __init__(
        self,
        product: Product,
        base: str,
        http: Http,
        key: Secret | None,
        signer: Signer,
        pacer: Pacer,
        clock: Clock,
        timing: Timing,
    ) -> None:
        self._product = product
        self._base = base.rstrip("/")
        self._http = http
        self._key = key
        self._signer = signer
        self._pacer = pacer
        self._clock = clock
        self._timing = timing

    @property
    def account(self) -> AccountType:
        return self._product.account

    async def call(self, call: Call) -> bytes:
        """The body of a 2xx answer. Raises what the answer means (`errors.interpret`), NotReady
        where no connection could be made, OutcomeUnknown where the answer was lost."""
        return self.result(await self.exchange(call))

    async def exchange(self, call: Call) -> Answer:
        """The answer, whatever it says. Raises as `call` where there is none."""
        ticket = await self._pacer.admit(call)
        try:
            answer = await self._send(call)
        except BaseException:
            self._pacer.limiter.settle(ticket)
            raise
        self._pacer.counted(ticket, header_counts(answer.headers))
        return answer

    def result(self, answer: Answer) -> bytes:
        """The body of a good answer. Raises what any other means."""
        if answer.good:
            return answer.body
        failure = error_body(answer.body)
        error = interpret(
            self.account, answer.status, failure.code, failure.msg, answer.retry_after
        )
        self._pacer.blocked(answer.status, error)
        raise error

    async def sync_clock(self) -> None:
        """Sample the venue's clock; the tightest of a few samples is kept."""
        self._pacer.server.begin()
        for _ in range(CLOCK_SAMPLES):
            sent = self._clock.time_ns()
            body = await self.call(server_time(self._product))
            received = self._clock.time_ns()
            try:
                self._pacer.server.sample(sent, received, server_time_ms(body))
            except Malformed as error:
                raise NotReady(
                    "clock", f"the venue told no time: {error}", remedy=REST_REMEDY
                ) from None

    async def _send(self, call: Call) -> Answer:
        query, body = self._encode(call)
        url = URL(f"{self._base}{call.path}{'?' + query if query else ''}", encoded=True)
        headers: dict[str, str] = {}
        if call.keyed and self._key is not None:
            headers["X-MBX-APIKEY"] = self._key.reveal()
        if body:
            headers["Content-Type"] = _FORM
        try:
            return await within(
                self._clock, self._timing.answer, self._exchange(call.verb, url, headers, body)
            )
        except aiohttp.ClientConnectorError as error:
            raise NotReady(
                "unreachable",
                f"{urlsplit(self._base).netloc} cannot be reached: {error.strerror or error}",
                remedy="check the network and the URLs in the configuration",
            ) from None
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            what = "no answer in time" if isinstance(error, TimeoutError) else "connection lost"
            raise OutcomeUnknown(
                "", f"{call.verb} {call.path}: {what}", remedy=UNKNOWN_REMEDY
            ) from None

    async def _exchange(self, verb: str, url: URL, headers: dict[str, str], body: str) -> Answer:
        async with self._http.session.request(
            verb, url, headers=headers, data=body.encode() or None, allow_redirects=False
        ) as response:
            return Answer(response.status, list(response.headers.items()), await response.read())

    def _encode(self, call: Call) -> tuple[str, str]:
        """(query, body): what reads goes into the query, what changes something into the body, so
        that logs of proxies on the way hold no orders. The timestamp is taken here, after any
        waiting."""
        text = rest_query([*call.params.items(), *self._pacer.stamp(call).items()])
        if call.signed:
            text = signed_query(self._signer, text)
        return ("", text) if call.verb in ("POST", "PUT") else (text, "")
