"""From a `Dial` to a connected TCP socket, and from what went wrong to a `Closed`: what the socket
transports share.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable

from k4.core.transport import ABNORMAL, Closed, Dial

LINGER = 0.01  # seconds that a failed connection stays open, so that its close frame gets out
LAST_WORDS = 1.0  # seconds for an orderly end: a peer may neither read nor answer TLS's farewell


async def open_socket(dial: Dial, host: str, port: int) -> socket.socket:
    """A connected, non-blocking socket to the pinned address, else to the host's first that
    answers.

    Raises OSError (gaierror included).
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(dial.address or host, port, type=socket.SOCK_STREAM)
    failure: OSError = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in found:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure


def hang_up(sock: socket.socket | None) -> None:
    """End a socket that a library's transport may own by now: its descriptor stays valid."""
    if sock is not None:
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it is closed or was never connected


def failed(error: BaseException | None) -> Closed:
    """How an attempt ended that never became a connection."""
    match error:
        case None:
            reason = "the peer hung up during the handshake"
        case asyncio.CancelledError():
            reason = "cancelled"
        case ssl.SSLCertVerificationError():
            reason = f"certificate refused: {error.verify_message}"
        case _:
            reason = f"{type(error).__name__}: {error}"
    return Closed(ABNORMAL, reason)


def peer_name(peer: object) -> str:
    """`address:port` of what a transport calls `peername`."""
    match peer:
        case (str(host), int(port), *_):
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return ""


def tell_closed(closed: Callable[[Closed], object], how: Closed) -> None:
    """Say that it is over. What escapes here has no connection left to end: the loop reports it."""
    try:
        closed(how)
    except Exception as error:
        asyncio.get_running_loop().call_exception_handler(
            {"message": "the end of a connection was not handled", "exception": error}
        )
