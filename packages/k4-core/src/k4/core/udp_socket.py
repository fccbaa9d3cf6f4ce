"""Sockets for datagrams: addresses, buffers, multicast."""

from __future__ import annotations

import ipaddress
import socket
import struct

from k4.core.config import Address
from k4.core.errors import ConfigError, Problem

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

BUFFER_BYTES = 8 << 20
"""Asked of the kernel for each socket: some 3,000 full datagrams with what the kernel adds."""
# Linux: beyond net.core.rmem_max and wmem_max, for a process that may.
_FORCE = {socket.SO_SNDBUF: 32, socket.SO_RCVBUF: 33}


def ip_address(text: str, what: str) -> IpAddress:
    """`text` as an address. Raises ConfigError; `what` names the setting."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise ConfigError([Problem(what, f"{text!r} is no IP address")]) from None


def sending(ip: str, multicast_ttl: int) -> socket.socket:
    """A non-blocking socket for datagrams to `ip`. Raises ConfigError for what is no address."""
    address = ip_address(ip, "udp_sender.ip")
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setblocking(False)
    _enlarge(sock, socket.SO_SNDBUF)
    if address.is_multicast and family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, multicast_ttl)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
    elif address.is_multicast:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, multicast_ttl)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 1)
    return sock


def listening(address: Address, interface: str) -> socket.socket:
    """A bound, non-blocking socket, joined where the address is a multicast group.

    Raises OSError where the address cannot be had, ConfigError where it is none.
    """
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


def _enlarge(sock: socket.socket, option: int) -> None:
    """Ask for a large buffer; a process without the right to it gets what the system allows."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _FORCE[option], BUFFER_BYTES)
    except OSError:
        sock.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)


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
