"""What Binance says about a connection itself: acks, refusals, notice of a shutdown.

The grammar is the same on spot, SBE, USD-M and COIN-M, and bare even in combined mode. Errors are
documented flat (`{"code":0,"msg":"…","id":7}`) and seen nested under `error`; both are read. An
answer names its request by the id alone, so ids say what was asked: see `Requests`.
Source: binance-spot-api-docs, `web-socket-streams.md` and `sbe-market-data-streams.md`.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from k4.md.feed import Ack, Channel, Control, Heartbeat, Notice, Refused, Sink

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


class Requests:
    """The requests of one connection: how they are written, and what their answers are about.

    Those that subscribe all channels, the hello, have the ids 1, 2, 3 … A request of one topic has
    SINGLE plus its slot, any other one OTHER plus its number. Every request is acked.
    """

    SINGLE = 1_000_000
    OTHER = 2_000_000

    def __init__(
        self, channels: Sequence[Channel], per_request: int, *, set_combined: bool = False
    ) -> None:
        self._all = tuple(channels)
        self._per_request = per_request
        self._set_combined = set_combined
        begin = 2 if set_combined else 1
        self._hello = {
            str(id): self._all[at : at + per_request]
            for id, at in enumerate(range(0, len(self._all), per_request), begin)
        }
        self._single = {str(self.SINGLE + channel.slot): channel for channel in self._all}

    def __call__(self, op: str, channels: Sequence[Channel]) -> tuple[bytes, ...]:
        """`Feed.requests`."""
        topics = [channel.topic for channel in channels]
        if op == "subscribe" and len(channels) == len(self._all):
            first = 2 if self._set_combined else 1
        else:
            first = self.SINGLE + channels[0].slot if len(channels) == 1 else self.OTHER
        calls: list[tuple[str, list[str | bool], int]] = []
        if first == 2:
            calls.append(("SET_PROPERTY", ["combined", True], 1))
        calls += [
            (op.upper(), [*topics[at : at + self._per_request]], id)
            for id, at in enumerate(range(0, len(topics), self._per_request), first)
        ]
        return tuple(
            msgspec.json.encode({"method": method, "params": params, "id": id})
            for method, params, id in calls
        )

    def control_of(self, envelope: Envelope) -> Control | None:
        """The event that a frame announces, None where it is none."""
        request = "" if envelope.id is None else str(envelope.id)
        if envelope.error is not None:
            return self._refused(str(envelope.error.code), envelope.error.msg, request)
        if envelope.code is not None:
            return self._refused(str(envelope.code), envelope.msg, request)
        if bytes(envelope.result):
            # What was asked after the hello is no part of it, but an answer is a sign of life.
            return Heartbeat() if request in self._single else Ack(request=request)
        if envelope.e == SHUTDOWN or envelope.stream == f"!{SHUTDOWN}":
            return Notice(SHUTDOWN)
        return None

    def _refused(self, code: str, text: str, request: str) -> Refused:
        asked = self._hello.get(request, ())
        if len(asked) > 1:
            alone = tuple(channel.slot for channel in asked)
            return Refused(code, text, request=request, alone=alone)
        channel = asked[0] if asked else self._single.get(request)
        return Refused(code, text, request=request, topic=channel.topic if channel else "")

    def receive_text(self, frame: bytes, out: Sink) -> None:
        """A text frame of a socket on which only control traffic is text (SBE)."""
        try:
            event = self.control_of(read_envelope(frame))
        except UNREADABLE:
            out.drop("malformed")
            return
        if event is None:
            out.drop("unknown")
        else:
            out.control(event)
