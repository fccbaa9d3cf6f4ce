"""The server's half of RFC 6455 without I/O: bytes to requests and frames, and back.

Written out here instead of taken from a library because faults need what libraries prevent: raw
and truncated frames, withheld pongs, a socket that stays open and says nothing, and one encoded
frame shared by all connections.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_FINAL = 0x80
_MASKED = 0x80
_ACCEPT_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
HEAD_END = b"\r\n\r\n"
HEAD_LIMIT = 64 << 10
_REASONS = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    418: "I'm a teapot",
    426: "Upgrade Required",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


class ProtocolError(Exception):
    """The client broke RFC 6455; `code` is the close code that says how."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Request(msgspec.Struct, frozen=True):
    """A handshake's request. path: decoded, without query. headers: names in lower case."""

    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    remote: str = ""


class Refusal(msgspec.Struct, frozen=True):
    """An HTTP answer instead of a WebSocket."""

    status: int
    body: str = ""
    headers: Mapping[str, str] = {}

    def encode(self) -> bytes:
        body = self.body.encode()
        head = [f"HTTP/1.1 {self.status} {_REASONS.get(self.status, 'Refused')}"]
        head += [f"{name}: {value}" for name, value in self.headers.items()]
        head += [f"Content-Length: {len(body)}", "Content-Type: text/plain", "Connection: close"]
        return "\r\n".join(head).encode() + HEAD_END + body


def parse_request(head: bytes, remote: str = "") -> Request:
    """The request in `head` (up to and without the empty line). Raises ProtocolError."""
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or words[0] != "GET" or not words[2].startswith("HTTP/1."):
        raise ProtocolError(400, f"not a GET request: {lines[0][:80]!r}")
    target = urlsplit(words[1])
    query = {name: values[-1] for name, values in parse_qs(target.query).items()}
    pairs = (line.partition(":") for line in lines[1:])
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    return Request(unquote(target.path), query, headers, remote)


def accept(request: Request) -> bytes | Refusal:
    """The 101 answer, or the refusal of what is no proper upgrade."""
    key = request.headers.get("sec-websocket-key", "")
    upgrade = request.headers.get("upgrade", "").lower()
    if upgrade != "websocket" or not key:
        return Refusal(426, "WebSocket upgrade required\n", {"Upgrade": "websocket"})
    if request.headers.get("sec-websocket-version") != "13":
        return Refusal(426, "WebSocket version 13 only\n", {"Sec-WebSocket-Version": "13"})
    digest = hashlib.sha1(key.encode() + _ACCEPT_GUID).digest()
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + HEAD_END
    )


def encode(opcode: int, payload: bytes, *, final: bool = True) -> bytes:
    """One unmasked frame, as servers send it."""
    first = opcode | (_FINAL if final else 0)
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 1 << 16:
        return bytes((first, 126)) + size.to_bytes(2, "big") + payload
    return bytes((first, 127)) + size.to_bytes(8, "big") + payload


def decode_own(frame: bytes) -> tuple[int, bytes]:
    """(opcode, payload) of a frame made by `encode`."""
    size = frame[1]
    start = 2 if size < 126 else 4 if size == 126 else 10
    return frame[0] & 0x0F, frame[start:]


def close_payload(code: int, reason: str = "") -> bytes:
    return code.to_bytes(2, "big") + reason.encode()[:123]


class Message(NamedTuple):
    """A whole data message or a control frame from the client."""

    opcode: int
    payload: bytes


class Decoder:
    """The client's bytes, in any portions, to whole messages; fragments are joined."""

    def __init__(self, max_bytes: int = 1 << 20) -> None:
        self._buffer = bytearray()
        self._parts: list[bytes] = []
        self._opcode = 0
        self._max = max_bytes

    def feed(self, data: bytes) -> list[Message]:
        """The messages that `data` completes. Raises ProtocolError."""
        self._buffer += data
        found: list[Message] = []
        while (frame := self._next()) is not None:
            final, opcode, payload = frame
            if opcode >= CLOSE:
                found.append(Message(opcode, payload))
                continue
            self._begin(opcode)
            self._parts.append(payload)
            if sum(map(len, self._parts)) > self._max:
                raise ProtocolError(1009, "message too long")
            if final:
                found.append(Message(self._opcode, b"".join(self._parts)))
                self._opcode, self._parts = 0, []
        return found

    def _begin(self, opcode: int) -> None:
        if (opcode == CONTINUATION) != bool(self._opcode):
            raise ProtocolError(1002, "fragments out of order")
        self._opcode = self._opcode or opcode

    def _next(self) -> tuple[bool, int, bytes] | None:
        buffer = self._buffer
        if len(buffer) < 6:
            return None
        if not buffer[1] & _MASKED:
            raise ProtocolError(1002, "client frame without mask")
        size, start = buffer[1] & 0x7F, 2
        if size >= 126:
            width = 2 if size == 126 else 8
            start += width
            if len(buffer) < start:
                return None
            size = int.from_bytes(buffer[2:start], "big")
            if size > self._max:
                raise ProtocolError(1009, "message too long")
        end = start + 4 + size
        if len(buffer) < end:
            return None
        payload = _unmask(bytes(buffer[start + 4 : end]), bytes(buffer[start : start + 4]))
        first = buffer[0]
        del buffer[:end]
        return bool(first & _FINAL), first & 0x0F, payload


def _unmask(payload: bytes, mask: bytes) -> bytes:
    size = len(payload)
    whole = mask * (size // 4 + 1)
    mixed = int.from_bytes(payload, "big") ^ int.from_bytes(whole[:size], "big")
    return mixed.to_bytes(size, "big")
