"""The receiving end of market data between hosts: sockets around the datagrams of `wire.py`.

It lives on the event loop of the thread that uses it and never blocks it; the configuration's
`cores` are for whoever places the worker.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from typing import Protocol

from k4.core import udp_socket, wire
from k4.core.clock import Clock
from k4.core.config import Address
from k4.core.config import UdpReceiver as ReceiverConfig
from k4.core.errors import ConfigError, K4Error, Problem
from k4.core.log import get_logger
from k4.core.session_window import SessionWindow

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_SESSIONS = 64
SILENT_NS = 5_000_000_000
"""A session that brought nothing for so long, five heartbeats, gives way to a new one."""
MAX_CHANNELS = 256
MAX_SOURCES = 256
DRAIN = 256  # datagrams of one socket before the loop gets its turn
OTHERS = "others"

_log = get_logger("k4.core.udp")


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
                self._sockets.append(
                    udp_socket.listening(address, self._config.multicast_interface)
                )
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
