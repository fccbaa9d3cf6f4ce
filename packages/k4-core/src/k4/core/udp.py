"""The sending end of market data between hosts: sockets around the datagrams of `wire.py`.

It lives on the event loop of the thread that publishes and never blocks it; the `cores` of a target
are for whoever places the worker. The other end is `udp_receiver.py`.
"""

from __future__ import annotations

import asyncio
import errno
import secrets
import socket
from collections.abc import Callable, Sequence

from k4.core import udp_socket, wire
from k4.core.clock import Clock, Timer
from k4.core.config import Secret, UdpTarget
from k4.core.counters import Counters, Row
from k4.core.enums import Kind

CallSoon = Callable[[Callable[[], None]], object]

TICK = 0.25
IDLE_TICKS = 4  # a channel that was quiet for as many ticks (1 s) sends a heartbeat
PATH_FIELDS = ("sent", "send_dropped", "refused", "failed")

_FULL = frozenset((errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS, errno.ENOMEM))


class Path:
    """One target's socket and what became of the datagrams given to it.

    sent: datagrams that the kernel took. send_dropped: refused because a buffer was full. refused:
    reports that nobody listens there (the datagram after such a report is sent all the same).
    failed: any other error (no route, interface down, too long for it).
    """

    def __init__(self, target: UdpTarget) -> None:
        self.target = target
        self.sent = self.send_dropped = self.refused = self.failed = 0
        self._address = (target.ip, target.port)
        self._socket: socket.socket | None = None
        self._connected = False

    @property
    def name(self) -> str:
        """The target as text, `10.0.0.2:9000`."""
        ip, port = self._address
        return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"

    def open(self) -> None:
        """Make the socket. A route that is missing now may come up later: it is no error here."""
        self._socket = sock = udp_socket.sending(self.target.ip, self.target.multicast_ttl)
        self._connect(sock)

    def _connect(self, sock: socket.socket) -> None:
        """Let ICMP errors reach this socket, so that a target without a listener is seen."""
        try:
            sock.connect(self._address)
            self._connected = True
        except OSError:
            self._connected = False

    def send(self, datagram: memoryview) -> None:
        """Hand one datagram to the kernel, or count why that did not work. Never blocks."""
        sock = self._socket
        if sock is None:
            return
        try:
            if not self._connected:
                self._connect(sock)
            sock.send(datagram)
        except ConnectionRefusedError:
            # The report is about an earlier datagram and took this one's place: once more.
            self.refused += 1
            try:
                sock.send(datagram)
                self.sent += 1
            except OSError as error:
                self._count(error)
        except OSError as error:
            self._count(error)
        else:
            self.sent += 1

    def _count(self, error: OSError) -> None:
        if error.errno in _FULL:
            self.send_dropped += 1
        elif error.errno == errno.ECONNREFUSED:
            self.refused += 1
        else:
            self.failed += 1

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class _Format:
    """Paths whose datagrams are the same to the byte: one mtu, one key."""

    def __init__(self, mtu: int, key: wire.Key | None) -> None:
        self.mtu = mtu
        self.key = key
        self.paths: list[Path] = []


class _Pending:
    """One channel's unsent records in one format; `first` is the sequence of the first of them."""

    __slots__ = ("datagram", "first", "format")

    def __init__(self, channel: int, format: _Format) -> None:
        self.datagram = wire.Datagram(channel, format.mtu, format.key)
        self.format = format
        self.first = 1


class _Channel:
    """next: sequence of the record to come. idle: ticks since something was sent."""

    __slots__ = ("idle", "next", "pending")

    def __init__(self, channel: int, formats: Sequence[_Format]) -> None:
        self.next = 1
        self.idle = 0
        self.pending = tuple(_Pending(channel, format) for format in formats)


class UdpSender:
    """Sends the records that a venue's module publishes to every enabled target.

    All targets get the same records under the same session and sequence numbers, which are given
    out per channel when a record is published, before anything can fail. Targets with the same mtu
    and key get the same datagrams to the byte; others get them cut and sealed as their own mtu
    and key demand, and a receiver of both paths pairs them by sequence all the same.

    A record leaves at the end of the event-loop turn in which it was published, together with what
    else the turn brought, or at once where a datagram is full. Nothing is queued beyond that: what
    the kernel does not take is counted on its `Path` and lost to that path.
    """

    def __init__(
        self,
        targets: Sequence[UdpTarget],
        venue_code: int,
        clock: Clock,
        call_soon: CallSoon | None = None,
        session: int | None = None,
        counters: Counters | None = None,
    ) -> None:
        """call_soon: the event loop's, the running one's by default. session: random by default.
        counters: where a row `udp_sender` for each target goes.

        Raises ConfigError or WireError for a target that cannot work.
        """
        self.venue_code = venue_code
        self.session = secrets.randbits(32) if session is None else session
        self._clock = clock
        self._call_soon = call_soon
        self._formats = _formats(targets)
        self.paths: tuple[Path, ...] = tuple(p for f in self._formats for p in f.paths)
        self._channels: dict[int, _Channel] = {}
        self._scheduled = False
        self._timer: Timer | None = None
        self._counters = counters
        self._rows: list[tuple[Row, Path]] = []
        for format in self._formats:
            for kind in Kind:  # an mtu that cannot carry each kind is found here, not under way
                wire.Datagram(wire.channel_id(venue_code, 0, kind), format.mtu, format.key)

    def open(self) -> None:
        """Make the sockets and begin to watch for idle channels."""
        if self._call_soon is None:
            self._call_soon = asyncio.get_running_loop().call_soon
        for path in self.paths:
            path.open()
            if self._counters is not None:
                labels = {"target": path.name, "session": str(self.session)}
                self._rows.append((self._counters.row("udp_sender", labels, PATH_FIELDS), path))
        self._timer = self._clock.call_later(TICK, self._tick)

    def publish(self, kind: int, product_type: int, record: memoryview) -> None:
        """Send one packed record of `kind`; its bytes are copied before this returns."""
        channel = self._channels.get(product_type << 4 | kind)
        if channel is None:
            channel = self._add_channel(kind, product_type)
        channel.next += 1
        for pending in channel.pending:
            if pending.datagram.append(record):
                self._send(channel, pending)
        if not self._scheduled and self._call_soon is not None:
            self._scheduled = True
            self._call_soon(self.flush)

    def flush(self) -> None:
        """Send what is pending."""
        self._scheduled = False
        for channel in self._channels.values():
            for pending in channel.pending:
                if pending.datagram.count:
                    self._send(channel, pending)

    def close(self) -> None:
        """Send what is pending and close the sockets. Safe to call more than once."""
        self.flush()
        self._call_soon = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for path in self.paths:
            path.close()
        for row, _ in self._rows:
            row.release()
        self._rows.clear()

    def _add_channel(self, kind: int, product_type: int) -> _Channel:
        id = wire.channel_id(self.venue_code, product_type, kind)
        channel = self._channels[product_type << 4 | kind] = _Channel(id, self._formats)
        return channel

    def _send(self, channel: _Channel, pending: _Pending) -> None:
        datagram = pending.datagram.seal(pending.first, self.session, self._clock.time_ns())
        pending.first = channel.next
        channel.idle = 0
        for path in pending.format.paths:
            path.send(datagram)

    def _tick(self) -> None:
        self._timer = self._clock.call_later(TICK, self._tick)
        for channel in self._channels.values():
            channel.idle += 1
            if channel.idle > IDLE_TICKS:
                channel.idle = 1
                self._heartbeat(channel)
        self._report()

    def _report(self) -> None:
        for row, path in self._rows:
            row.write((path.sent, path.send_dropped, path.refused, path.failed))

    def _heartbeat(self, channel: _Channel) -> None:
        for pending in channel.pending:
            if pending.datagram.count:  # published earlier in this turn: data says more
                self._send(channel, pending)
                continue
            beat = pending.datagram.heartbeat(channel.next, self.session, self._clock.time_ns())
            for path in pending.format.paths:
                path.send(beat)


def _formats(targets: Sequence[UdpTarget]) -> list[_Format]:
    formats: dict[tuple[int, Secret | None], _Format] = {}
    for target in targets:
        if not target.enabled:
            continue
        udp_socket.ip_address(target.ip, "udp_sender.ip")
        identity = target.mtu, target.key
        if identity not in formats:
            key = wire.Key(target.key) if target.key else None
            formats[identity] = _Format(target.mtu, key)
        formats[identity].paths.append(Path(target))
    return list(formats.values())
