"""One simulated venue at work: its ports, its connections, its pace.

The server joins what the other modules know: the venue's grammar, the market's events, the
injector's faults, the ledger's memory. Everything runs on one event loop and one injected clock.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from aiohttp import web

from k4.core.clock import Clock, Timer
from k4.core.errors import ConfigError, Problem
from k4.runner.sim import ws
from k4.runner.sim.client import Client, State
from k4.runner.sim.faults import Rule
from k4.runner.sim.injector import Injector
from k4.runner.sim.ledger import Ledger, frame_key
from k4.runner.sim.market import Instrument, MarketEvent
from k4.runner.sim.pump import Pump
from k4.runner.sim.venue import CloseCodes, Form, MakeVenue, Publisher, Topic, VenueSpec, Verdict
from k4.runner.sim.ws import Refusal

_HOST = "127.0.0.1"


class SimServer:
    """A venue's sockets on loopback. `start` opens them, `stop` closes them; see `venue.Hub`.

    Raises ConfigError from `start` where a fixed port is taken.
    """

    def __init__(
        self,
        make: MakeVenue,
        spec: VenueSpec,
        *,
        clock: Clock,
        ledger: Ledger,
        rules: Sequence[Rule] = (),
        seed: int = 0,
    ) -> None:
        self.name = spec.name
        self.spec = spec
        self.clock = clock
        self.ledger = ledger
        self.seed = seed
        self.write_limit = spec.write_limit
        self.handshake_timeout = 10.0
        self.ports: dict[str, int] = {}
        self.produced = 0
        self.followers: list[Callable[[Instrument, MarketEvent], None]] = []  # of the market
        self._clients: list[Client] = []
        self._sockets: set[Client] = set()
        self._servers: list[asyncio.Server] = []
        self._rest: web.AppRunner | None = None
        self._attempts: dict[tuple[str, str], deque[float]] = {}
        self._cadences: dict[float, list[Callable[[], None]]] = {}
        self._timers: dict[float, Timer] = {}
        self._touched: set[Client] = set()
        self._injector = Injector(self, rules, seed)
        self._venue = make(self, spec, seed)
        self.codes: CloseCodes = self._venue.close_codes
        self.data_is_life = self._venue.data_is_life
        self._limits = {
            host: limits.scaled(spec.scale) for host, limits in self._venue.limits.items()
        }
        self.pump = Pump(self, spec.pace)
        self.finished = asyncio.Event()

    # -- life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        for host in self._venue.hosts:
            port = self.spec.ports.get(host, 0)
            try:
                server = await loop.create_server(partial(Client, self, host), _HOST, port)
            except OSError as error:
                path = f"{self.name}.ports.{host}"
                raise ConfigError([Problem(path, f"cannot listen on {port}: {error}")]) from error
            self._servers.append(server)
            self.ports[host] = server.sockets[0].getsockname()[1]
        await self._start_rest()
        for seconds in self._cadences:
            self._wait_beat(seconds)
        self._injector.start()
        if self.spec.pace.start:
            self.pump.start()

    async def _start_rest(self) -> None:
        app = web.Application()
        for method, path, handler in self._venue.routes():
            app.router.add_route(method, path, handler)
        self._rest = web.AppRunner(app, access_log=None)
        await self._rest.setup()
        site = web.TCPSite(self._rest, _HOST, self.spec.ports.get("rest", 0))
        await site.start()
        self.ports["rest"] = self._rest.addresses[0][1]

    async def stop(self) -> None:
        """Stop the market, end every connection in order, close the ports."""
        self.pump.stop()
        self._injector.stop()
        for timer in self._timers.values():
            timer.cancel()
        for server in self._servers:
            server.close()
        waiting = []
        for client in list(self._sockets):
            if client.state is State.OPEN and not client.mute:
                client.end(self.codes.shutdown, "simulation ended")
                waiting.append(client.ready)
            else:
                client.abort()
                waiting.append(client.ready)
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=1.0)
            for client in list(self._sockets):
                client.abort()
            if late:
                await asyncio.wait(late, timeout=1.0)
        if self._rest is not None:
            await self._rest.cleanup()

    def endpoints(self) -> dict[str, str]:
        """URLs by key of the configuration's `endpoints`, `rest` included."""
        urls = {
            key: f"ws://{_HOST}:{self.ports[end.host]}{end.path}"
            for key, end in self._venue.endpoints.items()
        }
        return {**urls, "rest": f"http://{_HOST}:{self.ports['rest']}"}

    # -- connections ------------------------------------------------------------------------------

    @property
    def clients(self) -> Sequence[Client]:
        return self._clients

    def connected(self, client: Client) -> None:
        self._sockets.add(client)

    def admit(self, client: Client) -> bytes | Refusal | None:
        """The answer to a handshake; None: none, ever."""
        limits = self._limits[client.host]
        if not self._may_connect(client, limits.connect_attempts, limits.connect_period):
            return Refusal(429, "too many connection attempts\n", {"Retry-After": "10"})
        endpoint = self._venue.admit(client.host, client.request)
        if isinstance(endpoint, Refusal):
            return endpoint
        client.endpoint = endpoint
        answer = ws.accept(client.request)
        if isinstance(answer, Refusal):
            return answer
        taken = {other.line for other in self._clients if other.endpoint == endpoint}
        client.line = next(n for n in range(len(taken) + 1) if n not in taken)
        fault = self._injector.handshake(client)
        if isinstance(fault, Refusal):
            return fault
        if fault == "hang":
            return None
        if fault == "drop":
            client.abort()
            return None
        client.limits = limits
        client.log = self.ledger.connection(self.name, endpoint, client.request.path)
        client.log.opened_ns = self.clock.time_ns()
        return answer

    def _may_connect(self, client: Client, attempts: int, period: float) -> bool:
        if not attempts:
            return True
        now = self.clock.monotonic()
        times = self._attempts.setdefault((client.host, client.request.remote), deque())
        while times and times[0] <= now - period:
            times.popleft()
        times.append(now)
        return len(times) <= attempts

    def opened(self, client: Client) -> None:
        self._clients.append(client)
        self._injector.refresh()
        self._venue.opened(client)
        self.flush()

    def received(self, client: Client, opcode: int, payload: bytes) -> None:
        delay = self._injector.ack_delay(client)
        if delay:
            self.clock.call_later(delay, self._answer, client, opcode, payload)
        else:
            self._answer(client, opcode, payload)

    def _answer(self, client: Client, opcode: int, payload: bytes) -> None:
        if client.state is State.OPEN:
            self._venue.receive(client, opcode, payload)
            self.flush()

    def closing(self, client: Client) -> None:
        """No data goes to it any more."""
        client.plain = False
        for topic in client.topics.values():
            if topic is not None:
                self.leave(client, topic)
        if client in self._clients:
            self._clients.remove(client)

    def disconnected(self, client: Client) -> None:
        self.closing(client)
        self._sockets.discard(client)
        self._touched.discard(client)
        self._injector.forget(client)
        if not client.ready.done():
            client.ready.set_result(None)

    # -- for the venue (Hub) ----------------------------------------------------------------------

    def join(self, client: Client, topic: Topic, form: Form) -> None:
        for clients in topic.audience.values():
            if client in clients:
                return
        topic.audience = {**topic.audience, form: [*topic.audience.get(form, ()), client]}
        if client.log is not None:
            client.log.topics.append((topic.name, self.clock.time_ns()))

    def leave(self, client: Client, topic: Topic) -> None:
        kept = {
            form: [other for other in clients if other is not client]
            for form, clients in topic.audience.items()
        }
        topic.audience = {form: clients for form, clients in kept.items() if clients}

    def publish(
        self, topic: Topic, clients: Sequence[Client], frame: bytes, row: int, count: int = 1
    ) -> None:
        key = frame_key(topic.series, row, count)
        for client in clients:
            if client.plain:
                client.queue(frame, key)
            else:
                self._injector.pass_frame(client, topic, frame, key)

    def send(self, topic: Topic, client: Client, frame: bytes, row: int, count: int = 1) -> None:
        self.publish(topic, (client,), frame, row, count)

    def verdict(self, client: Client, topic: str, product: str, kind: str) -> Verdict:
        return self._injector.verdict(client, topic, product, kind)

    def every(self, seconds: float, callback: Callable[[], None]) -> None:
        self._cadences.setdefault(seconds / self.spec.cadence_scale, []).append(callback)

    def _wait_beat(self, seconds: float) -> None:
        self._timers[seconds] = self.clock.call_later(seconds, self._beat, seconds)

    def _beat(self, seconds: float) -> None:
        self._wait_beat(seconds)
        for callback in self._cadences[seconds]:
            callback()
        self.flush()

    def beat(self) -> None:
        """Let every timed channel send what it has, whatever the time."""
        for callbacks in self._cadences.values():
            for callback in callbacks:
                callback()

    # -- for faults, replay and tests -------------------------------------------------------------

    def shutdown_notice(self, client: Client) -> bytes | None:
        return self._venue.shutdown_notice(client)

    def reset_ids(self, product: str = "") -> list[str]:
        """Restart the sequences of a product, or of all; returns which."""
        chosen = [i for i, _ in self._venue.instruments if product in ("", i.spec.product)]
        for instrument in chosen:
            instrument.reset_ids()
        return sorted({instrument.spec.product for instrument in chosen})

    def inject(self, rule: Rule) -> int:
        """Commit a fault now; returns how many connections it concerns."""
        reach = self._injector.inject(rule)
        self._injector.refresh()
        return reach

    def emit(self, events: int) -> None:
        """Let that many things happen at once, over all instruments in turn."""
        self.pump.emit(events)

    def ping_all(self) -> None:
        """Ping every connection: its pong confirms what it was sent."""
        for client in list(self._clients):
            client.ping()

    def touched(self, client: Client) -> None:
        """The client has something to write outside the usual rounds."""
        if not self._touched:
            self.clock.call_later(0.0, self._flush_touched)
        self._touched.add(client)

    def _flush_touched(self) -> None:
        touched, self._touched = self._touched, set()
        for client in touched:
            client.flush()

    def flush(self) -> None:
        """Write what is pending, on every connection."""
        for client in tuple(self._clients):
            if client.pending:
                client.flush()

    def end_slow(self, backlog: int) -> None:
        """End the connections that leave that many bytes unread."""
        for client in tuple(self._clients):
            if client.backlog() >= backlog:
                client.end(self.codes.slow, "slow reader")

    def backlog(self) -> int:
        """The most bytes that any connection has not taken yet."""
        return max((c.backlog() for c in self._clients if not c.mute), default=0)

    def replay_frame(self, payload: bytes) -> int:
        """Send a recorded frame to whoever subscribed it; returns to how many."""
        reached = 0
        for client in tuple(self._clients):
            frame = self._venue.replayed(client, payload)
            if frame is not None:
                client.send_text(frame)
                reached += 1
        return reached

    @property
    def instruments(self) -> Sequence[tuple[Instrument, Publisher]]:
        """The venue's market, in the order in which its turns come."""
        return self._venue.instruments
