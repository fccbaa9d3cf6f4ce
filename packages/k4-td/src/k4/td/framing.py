"""The order gateway's framing and requests, both ways. Pure: bytes to values and back.

One JSON object a line (UTF-8, LF), at most 64 KiB a line. A line that is too long is skipped to its
end, so that the next one is understood.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from k4.core.trading import Event, GatewayError, OrderError, error_data, event_data

MAX_LINE = 64 * 1024
PROTOCOL = 1
PAGE_BYTES = 48 * 1024


class TooLong(msgspec.Struct, frozen=True):
    """A line of more than 64 KiB, now skipped."""


class Lines:
    """Bytes as they come, lines as they are complete."""

    def __init__(self, limit: int = MAX_LINE) -> None:
        self._limit = limit
        self._rest = bytearray()
        self._skipping = False

    def feed(self, data: bytes) -> list[bytes | TooLong]:
        """Complete lines without their LF; empty ones are left out."""
        self._rest += data
        found: list[bytes | TooLong] = []
        start = 0
        while (end := self._rest.find(b"\n", start)) >= 0:
            line = bytes(self._rest[start:end])
            start = end + 1
            if self._skipping:
                self._skipping = False
            elif len(line) >= self._limit:
                found.append(TooLong())
            elif line.strip():
                found.append(line)
        del self._rest[:start]
        if len(self._rest) >= self._limit:
            if not self._skipping:
                found.append(TooLong())
            self._skipping = True
            self._rest.clear()
        return found


class Request(msgspec.Struct, frozen=True):
    """`{"id": 7, "method": "insert_order", "params": {...}}`"""

    id: int | str
    method: str
    params: dict[str, Any] = {}


class BadLine(ValueError):
    """A line that is no request. `id` is the request's, where it could be read."""

    def __init__(self, message: str, request_id: int | str | None = None) -> None:
        super().__init__(message)
        self.id = request_id


def parse_request(line: bytes) -> Request:
    """Raises BadLine."""
    try:
        data = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadLine(f"no JSON: {error}") from None
    if not isinstance(data, dict):
        raise BadLine("a request is a JSON object")
    found = data.get("id")
    request_id = found if isinstance(found, int | str) and not isinstance(found, bool) else None
    try:
        return msgspec.convert(data, Request)
    except msgspec.ValidationError as error:
        raise BadLine(str(error), request_id) from None


def encode(message: Mapping[str, Any]) -> bytes:
    """One line."""
    return msgspec.json.encode(message) + b"\n"


def answer(request_id: int | str, result: Mapping[str, Any]) -> bytes:
    return encode({"id": request_id, "result": result})


def refusal(request_id: int | str | None, error: OrderError) -> bytes:
    return encode({"id": request_id, "error": error_data(error)})


def event_line(sequence: int, event: Event) -> bytes:
    name, data = event_data(event)
    return encode({"event": name, "seq": sequence, "data": data})


def pages(items: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Items in as many lists as lines need; at least one."""
    found: list[list[dict[str, Any]]] = [[]]
    size = 0
    for item in items:
        length = len(msgspec.json.encode(item)) + 1
        if found[-1] and size + length > PAGE_BYTES:
            found.append([])
            size = 0
        found[-1].append(item)
        size += length
    return found


def text(params: Mapping[str, Any], name: str) -> str:
    """An optional text parameter; a venue's id may be written as a number. Raises GatewayError."""
    value = params.get(name, "")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise GatewayError("params", f"{name} must be text", remedy=f'write {name} as "..."')
    return value


def flag(params: Mapping[str, Any], name: str, default: bool) -> bool:
    value = params.get(name, default)
    if not isinstance(value, bool):
        raise GatewayError(
            "params", f"{name} must be true or false", remedy="a JSON boolean, without quotes"
        )
    return value


def only(params: Mapping[str, Any], *names: str) -> None:
    """Raises GatewayError for a parameter that the method does not have."""
    unknown = sorted(set(params) - set(names))
    if unknown:
        raise GatewayError(
            "params",
            f"unknown parameter {unknown[0][:60]!r}",
            remedy=f"known: {', '.join(names) or 'none'}",
        )
