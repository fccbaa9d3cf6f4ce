"""The seam: what a simulated venue is to the server. This docstring is its specification.

A venue is one module `k4.runner.sim.<name>` that defines `make(hub, spec, seed)`, which returns a
`VenueSim`. The server owns sockets, limits, pings, faults, pace and the ledger; the venue owns its
grammar: which handshakes it admits, how it answers control messages, and which frames a market
event becomes.

How data flows: `make` registers a `Topic` for every (product, symbol, kind) that it serves. The
server calls `Publisher.event` for each market event; the publisher appends the records to its
ledger series (whether or not anybody listens: that is the truth), and for each form that somebody
subscribed encodes one frame and hands it to `Hub.publish`, which sends the same bytes to all.
Channels with a cadence use `Hub.every`; what a new subscriber is owed (a book, recent trades) is
sent with `Hub.send` right after the ack.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Protocol

import msgspec
from aiohttp import web

from k4.core.clock import Clock
from k4.core.enums import Kind
from k4.core.limits import Limits
from k4.runner.sim.ledger import Ledger, Series
from k4.runner.sim.market import Instrument, MarketEvent, Pace
from k4.runner.sim.ws import Refusal, Request

if TYPE_CHECKING:
    from k4.runner.sim.client import Client

Form = int  # how a venue's payload may differ by connection (wrapper, time unit); venue-defined
RestHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class VenueSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One simulated venue. products: symbols by product, in the venue's own spelling or K4's.

    scale: all times of the venue's limits are divided by it; cadence_scale: so are the intervals of
    its timed channels. ports: fixed ports by host name (and
    `rest`), else ephemeral. api_keys: keys that the venue knows; empty: any non-empty key.
    proof_every: seconds between pings beside the venue's own, whose pongs prove what arrived; they
    count against the client's message limit.
    """

    name: str
    products: Mapping[str, tuple[str, ...]] = {}
    pace: Pace = Pace()
    scale: float = 1.0
    cadence_scale: float = 1.0
    ports: Mapping[str, int] = {}
    api_keys: tuple[str, ...] = ()
    proof_every: float = 0.0
    write_limit: int = 8 << 20  # bytes that a slow reader may leave unread before it is closed


class Endpoint(msgspec.Struct, frozen=True):
    """Where a key of the configuration's `endpoints` leads: a host of the venue and a path."""

    host: str
    path: str


class CloseCode(msgspec.Struct, frozen=True):
    code: int
    reason: str


class CloseCodes(msgspec.Struct, frozen=True, kw_only=True):
    """How the venue ends connections that break its rules."""

    messages: CloseCode = CloseCode(1008, "Too many requests")
    pong: CloseCode = CloseCode(1008, "Pong timeout")
    idle: CloseCode = CloseCode(1008, "Idle")
    life: CloseCode = CloseCode(1001, "Connection lifetime reached")
    slow: CloseCode = CloseCode(1008, "Slow reader")
    shutdown: CloseCode = CloseCode(1001, "Going away")


class Verdict(Enum):
    """What the fault script wants with a topic that a client asks for."""

    SERVE = "serve"
    SILENT = "silent"  # ack it, send nothing
    REFUSE = "refuse"


class Topic:
    """One subscribable thing. audience: the clients by the form that they want; replaced, never
    changed, so that a fault may end a connection while it is gone through.
    """

    __slots__ = ("audience", "kind", "name", "product", "series", "symbol")

    def __init__(self, name: str, product: str, symbol: str, kind: Kind, series: Series) -> None:
        self.name = name
        self.product = product
        self.symbol = symbol
        self.kind = kind
        self.series = series
        self.audience: Mapping[Form, Sequence[Client]] = {}


class Hub(Protocol):
    """What the server offers to a venue."""

    clock: Clock
    ledger: Ledger

    @property
    def clients(self) -> Sequence[Client]:
        """The open connections of this venue."""
        ...

    def publish(
        self, topic: Topic, clients: Sequence[Client], frame: bytes, row: int, count: int = 1
    ) -> None:
        """Send one encoded frame (`ws.encode`) that carries rows `row` to `row + count - 1`."""
        ...

    def send(self, topic: Topic, client: Client, frame: bytes, row: int, count: int = 1) -> None:
        """The same to one client."""
        ...

    def join(self, client: Client, topic: Topic, form: Form) -> None:
        """From now on the client gets the topic's frames in that form. Joining twice: once."""
        ...

    def leave(self, client: Client, topic: Topic) -> None: ...

    def verdict(self, client: Client, topic: str, product: str, kind: str) -> Verdict:
        """Ask for every topic of a subscribe request, once."""
        ...

    def every(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call back at that cadence, in event time, while the venue runs."""
        ...


class Publisher(Protocol):
    """What a venue makes of one instrument's events."""

    def event(self, event: MarketEvent) -> None: ...


class VenueSim(Protocol):
    """A simulated venue. hosts: each gets a port; limits by host.

    endpoints: by key of the configuration. instruments: its market. data_is_life: data that the
    venue sends counts against `idle_close`, not only what the client sends.
    """

    name: str
    hosts: tuple[str, ...]
    endpoints: Mapping[str, Endpoint]
    limits: Mapping[str, Limits]
    close_codes: CloseCodes
    data_is_life: bool

    @property
    def instruments(self) -> Sequence[tuple[Instrument, Publisher]]: ...

    def admit(self, host: str, request: Request) -> str | Refusal:
        """The key of the endpoint that the request reaches, or how it is refused."""
        ...

    def opened(self, client: Client) -> None:
        """The handshake is done; `client.request` and `client.endpoint` say which."""
        ...

    def receive(self, client: Client, opcode: int, payload: bytes) -> None:
        """A data message of the client. Answers with `client.send_text`."""
        ...

    def shutdown_notice(self, client: Client) -> bytes | None:
        """The payload that announces the end of a connection, None where the venue has none."""
        ...

    def replayed(self, client: Client, payload: bytes) -> bytes | None:
        """A recorded frame as this client gets it, None when it did not subscribe it."""
        ...

    def routes(self) -> Sequence[tuple[str, str, RestHandler]]:
        """(method, path, handler) of the venue's REST side."""
        ...


MakeVenue = Callable[[Hub, VenueSpec, int], VenueSim]
