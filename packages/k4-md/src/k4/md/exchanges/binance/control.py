"""What Binance says about a connection itself: acks, refusals, notice of a shutdown.

The grammar is the same on spot, SBE, USD-M and COIN-M, and bare even in combined mode. Errors are
documented flat (`{"code":0,"msg":"…","id":7}`) and seen nested under `error`; both are read.
Source: binance-spot-api-docs, `web-socket-streams.md` and `sbe-market-data-streams.md`.
"""

from __future__ import annotations

import msgspec

from k4.md.feed import Ack, Control, Notice, Refused, Sink

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""All that a msgspec decoder raises on hostile bytes (ValidationError is a DecodeError)."""

SHUTDOWN = "serverShutdown"


class ErrorBody(msgspec.Struct):
    code: int | str = ""
    msg: str = ""


class Envelope(msgspec.Struct):
    """The outermost object of any text frame, market data unread.

    `stream` and `data` are the combined wrapper, `e`, `B` and `lastUpdateId` tell raw payloads
    apart, the rest are answers to requests.
    """

    stream: str = ""
    data: msgspec.Raw = msgspec.Raw()
    e: str = ""
    B: msgspec.Raw = msgspec.Raw()
    lastUpdateId: msgspec.Raw = msgspec.Raw()
    result: msgspec.Raw = msgspec.Raw()
    error: ErrorBody | None = None
    code: int | str | None = None
    msg: str = ""
    id: int | str | None = None


read_envelope = msgspec.json.Decoder(Envelope).decode


def control_of(envelope: Envelope) -> Control | None:
    """The event that the frame announces, None where it is none."""
    request = "" if envelope.id is None else str(envelope.id)
    if envelope.error is not None:
        return Refused(str(envelope.error.code), envelope.error.msg, request=request)
    if envelope.code is not None:
        return Refused(str(envelope.code), envelope.msg, request=request)
    if bytes(envelope.result):
        return Ack(request=request)
    if envelope.e == SHUTDOWN or envelope.stream == f"!{SHUTDOWN}":
        return Notice(SHUTDOWN)
    return None


def receive_text(frame: bytes, out: Sink) -> None:
    """A text frame of a socket on which only control traffic is text (SBE)."""
    try:
        event = control_of(read_envelope(frame))
    except UNREADABLE:
        out.drop("malformed")
        return
    if event is None:
        out.drop("unknown")
    else:
        out.control(event)
