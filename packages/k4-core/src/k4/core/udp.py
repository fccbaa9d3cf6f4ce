"""Market data between hosts: sockets around the datagrams of `wire.py`.

Both ends live on the event loop of the thread that uses them and never block it. There is no
thread of their own: the `cores` of a target and of a receiver are for whoever places the worker.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import secrets
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Protocol

from k4.core import wire
from k4.core.clock import Clock, Timer
from k4.core.config import Address, Secret, UdpTarget
from k4.core.config import UdpReceiver as ReceiverConfig
from k4.core.enums import Kind
from k4.core.errors import ConfigError, K4Error, Problem
from k4.core.log import get_logger
from k4.core.session_window import SessionWindow

CallSoon = Callable[[Callable[[], None]], object]
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

TICK = 0.25
IDLE_TICKS = 4  # a channel that was quiet for as many ticks (1 s) sends a heartbeat
BUFFER_BYTES = 8 << 20
"""Asked of the kernel for each socket: half a second of 10,000 full datagrams a second."""
SO_RCVBUFFORCE = 33  # Linux: beyond net.core.rmem_max, for a process that may
MAX_SESSIONS = 64
SILENT_NS = 5_000_000_000
"""A session that brought nothing for so long, five heartbeats, gives way to a new one."""
MAX_CHANNELS = 256
MAX_SOURCES = 256
DRAIN = 256  # datagrams of one socket before the loop gets its turn
OTHERS = "others"

_log = get_logger("k4.core.udp")
_FULL = frozenset((errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS, errno.ENOMEM))


def ip_address(text: str, what: str) -> IpAddress:
    """`text` as an address. Raises ConfigError; `what` names the setting."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise ConfigError([Problem(what, f"{text!r} is no IP address")]) from None


# -- sender -----------------------------------------------------------------------------------


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

    def open(self) -> None:
        """Make the socket. A route that is missing now may come up later: it is no error here."""
        address = ip_address(self.target.ip, "udp_sender.ip")
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        self._socket = sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.setblocking(False)
        _enlarge(sock, socket.SO_SNDBUF)
        if address.is_multicast:
            hops = self.target.multicast_ttl
            if family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, hops)
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, hops)
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 1)
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
    ) -> None:
        """call_soon: the event loop's, the running one's by default. session: random by default.

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
        for format in self._formats:
            for kind in Kind:  # an mtu that cannot carry each kind is found here, not under way
                wire.Datagram(wire.channel_id(venue_code, 0, kind), format.mtu, format.key)

    def open(self) -> None:
        """Make the sockets and begin to watch for idle channels."""
        if self._call_soon is None:
            self._call_soon = asyncio.get_running_loop().call_soon
        for path in self.paths:
            path.open()
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
        ip_address(target.ip, "udp_sender.ip")
        identity = target.mtu, target.key
        if identity not in formats:
            key = wire.Key(target.key) if target.key else None
            formats[identity] = _Format(target.mtu, key)
        formats[identity].paths.append(Path(target))
    return list(formats.values())


# -- receiver ---------------------------------------------------------------------------------


class SessionSink(Protocol):
    """Where the records of one (channel, session) go."""

    def records(self, sequence: int, records: memoryview, received_ns: int) -> None:
        """First copies, whole records of the channel's kind one after the other.

        sequence: of the first of them; lower than before where they come late. The bytes are
        valid only during the call.
        """
        ...

    def closed(self) -> None:
        """The session was evicted, or the receiver is closing."""
        ...


OpenSession = Callable[[int, int], SessionSink | None]
"""Called with (channel, session) when its first datagram came; None: nobody wants that channel."""


class ReceivedSession:
    """One sender's start on one channel: the window that accounts for it and when it last spoke."""

    __slots__ = ("channel", "last_ns", "session", "sink", "size", "window")

    def __init__(self, channel: int, session: int, size: int, sink: SessionSink) -> None:
        self.channel = channel
        self.session = session
        self.size = size
        self.sink = sink
        self.window = SessionWindow()
        self.last_ns = 0


class Source:
    """Datagrams of one source address that were not used."""

    __slots__ = ("malformed", "unauthorized")

    def __init__(self) -> None:
        self.malformed = 0
        self.unauthorized = 0


class UdpReceiver:
    """Takes datagrams from all its addresses, accounts for them, hands on first copies.

    sessions: by (channel, session). sources: by address, those that sent something unusable;
    beyond `MAX_SOURCES` they share the entry "others". flaws: unusable datagrams by reason.
    unwanted: datagrams of channels that nobody asked for. evicted: sessions that gave way after a
    silence. refused: datagrams of new sessions while all `MAX_SESSIONS` of their channel were
    speaking, and of new channels beyond `MAX_CHANNELS`.
    """

    def __init__(self, config: ReceiverConfig, open_session: OpenSession, clock: Clock) -> None:
        """Raises ConfigError or WireError for settings that cannot work."""
        self._config = config
        self._open_session = open_session
        self._clock = clock
        self._key = wire.Key(config.key) if config.key else None
        self._networks = tuple(map(_network, config.allow_from))
        self._allowed: dict[str, bool] = {}
        self._sockets: list[socket.socket] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._buffer = memoryview(bytearray(1 << 16))
        self._per_channel: dict[int, int] = {}
        self.sessions: dict[tuple[int, int], ReceivedSession] = {}
        self.sources: dict[str, Source] = {}
        self.flaws: dict[wire.Flaw, int] = {}
        self.unwanted = 0
        self.evicted = 0
        self.refused = 0

    def bind(self) -> tuple[Address, ...]:
        """Bind all addresses; returns them with the ports that they got (port 0: any).

        Raises K4Error where an address cannot be had.
        """
        for address in self._config.listen:
            try:
                self._sockets.append(_listening(address, self._config.multicast_interface))
            except OSError as error:
                self.close()
                raise K4Error(
                    f"cannot receive datagrams on {address.ip} port {address.port}: {error}",
                    remedy="stop what uses the port, or set another ip, port or "
                    "multicast_interface in udp_receiver",
                ) from error
        self._warn_if_open()
        return tuple(Address(*sock.getsockname()[:2]) for sock in self._sockets)

    def start(self) -> None:
        """Begin to read, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        for sock in self._sockets:
            self._loop.add_reader(sock.fileno(), self._drain, sock)

    def close(self) -> None:
        """Close sockets and sessions. Safe to call more than once; the counts stay."""
        for sock in self._sockets:
            if self._loop is not None:
                self._loop.remove_reader(sock.fileno())
            sock.close()
        self._sockets.clear()
        if not self._closed:
            self._closed = True
            for session in self.sessions.values():
                session.sink.closed()

    def take(self, datagram: memoryview, address: str, received_ns: int) -> None:
        """One datagram from `address`. Whatever its bytes, this counts and does not raise."""
        if self._networks and not self._is_allowed(address):
            self._reject(address, wire.Flaw.SOURCE)
            return
        header = wire.parse(datagram, self._key, received_ns)
        if isinstance(header, wire.Flaw):
            self._reject(address, header)
            return
        session = self.sessions.get((header.channel, header.session))
        if session is None:
            session = self._admit(header.channel, header.session, received_ns)
            if session is None:
                return
        session.last_ns = received_ns
        if header.kind == wire.HEARTBEAT:
            session.window.expect(header.sequence)
            return
        for start, end in session.window.take(header.sequence, header.records):
            at = wire.HEADER_SIZE + (start - header.sequence) * session.size
            records = datagram[at : at + (end - start) * session.size]
            session.sink.records(start, records, received_ns)

    def _drain(self, sock: socket.socket) -> None:
        buffer = self._buffer
        time_ns = self._clock.time_ns
        for _ in range(DRAIN):
            try:
                length, source = sock.recvfrom_into(buffer)
            except BlockingIOError:
                return
            except OSError:  # an error of the interface, reported once; the socket lives on
                continue
            self.take(buffer[:length], source[0], time_ns())

    def _admit(self, channel: int, session: int, now_ns: int) -> ReceivedSession | None:
        if not self._has_room(channel, now_ns):
            self.refused += 1
            return None
        sink = self._open_session(channel, session)
        if sink is None:
            self.unwanted += 1
            return None
        added = ReceivedSession(channel, session, wire.record_size(channel), sink)
        self.sessions[channel, session] = added
        self._per_channel[channel] = self._per_channel.get(channel, 0) + 1
        return added

    def _has_room(self, channel: int, now_ns: int) -> bool:
        held = self._per_channel.get(channel, 0)
        if not held:
            return len(self._per_channel) < MAX_CHANNELS
        if held < MAX_SESSIONS:
            return True
        oldest = min(
            (s for s in self.sessions.values() if s.channel == channel), key=lambda s: s.last_ns
        )
        if now_ns - oldest.last_ns < SILENT_NS:
            return False
        self._evict(oldest)
        return True

    def _evict(self, session: ReceivedSession) -> None:
        del self.sessions[session.channel, session.session]
        self._per_channel[session.channel] -= 1
        self.evicted += 1
        session.sink.closed()

    def _is_allowed(self, address: str) -> bool:
        known = self._allowed.get(address)
        if known is None:
            if len(self._allowed) >= MAX_SOURCES:
                self._allowed.clear()
            ip = ipaddress.ip_address(address)
            known = self._allowed[address] = any(ip in network for network in self._networks)
        return known

    def _reject(self, address: str, flaw: wire.Flaw) -> None:
        source = self.sources.get(address)
        if source is None:
            if len(self.sources) >= MAX_SOURCES:
                address = OTHERS
            source = self.sources.setdefault(address, Source())
        if flaw.unauthorized:
            source.unauthorized += 1
        else:
            source.malformed += 1
        self.flaws[flaw] = self.flaws.get(flaw, 0) + 1

    def _warn_if_open(self) -> None:
        if self._key or self._networks:
            return
        for address in self._config.listen:
            if not ipaddress.ip_address(address.ip).is_loopback:
                _log.warning(
                    "udp_receiver takes prices from anybody who can reach it",
                    ip=address.ip,
                    port=address.port,
                    remedy="set udp_receiver.key, or udp_receiver.allow_from",
                )


def _network(text: str) -> IpNetwork:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ConfigError(
            [Problem("udp_receiver.allow_from", f"{text!r} is no IP address or network")]
        ) from None


def _enlarge(sock: socket.socket, option: int) -> None:
    """Ask for a large buffer; a process without the right to it gets what the system allows."""
    try:
        force = SO_RCVBUFFORCE if option == socket.SO_RCVBUF else SO_RCVBUFFORCE - 1
        sock.setsockopt(socket.SOL_SOCKET, force, BUFFER_BYTES)
    except OSError:
        sock.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)


def _listening(address: Address, interface: str) -> socket.socket:
    """A bound socket, joined where the address is a multicast group."""
    ip = ip_address(address.ip, "udp_receiver.ip")
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        _enlarge(sock, socket.SO_RCVBUF)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if ip.is_multicast:  # several receivers of a host may share a group and port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address.ip, address.port))
        if ip.is_multicast:
            _join(sock, ip, interface)
    except BaseException:
        sock.close()
        raise
    return sock


def _join(sock: socket.socket, group: IpAddress, interface: str) -> None:
    """Join on `interface`: a name, an IPv4 address of it, or '' for the system's choice."""
    index = 0
    local = b"\0\0\0\0"
    if interface:
        try:
            local = ipaddress.IPv4Address(interface).packed
        except ValueError:
            index = socket.if_nametoindex(interface)
    if group.version == 4:
        membership = group.packed + local + struct.pack("@i", index)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    else:
        membership = group.packed + struct.pack("@I", index)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, membership)
