"""What a venue allows and expects of one connection: one value that K4 and the simulated venue
share.
"""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a venue allows and how long it waits: one value for K4 and for the simulated venue.

    Times in seconds; a count or a time of 0 means that the venue has no such rule.
    """

    connect_attempts: int = 300  # per host and address in connect_period
    connect_period: float = 300.0
    messages: int = 5  # client's messages on one connection in messages_period
    messages_period: float = 1.0
    pings_count: bool = True  # pings, pongs and keepalive texts are among those messages
    requests: int = 0  # subscribe and unsubscribe requests on one connection in requests_period
    requests_period: float = 3600.0
    topics_per_connection: int = 1024
    topics_per_request: int = 0
    request_bytes: int = 0  # length of one subscribe request's args
    connection_bytes: int = 0  # length of all args of a connection
    server_ping: float = 0.0
    pong_deadline: float = 0.0
    idle_close: float = 0.0  # without data, or without the client's ping where keepalive is owed
    max_life: float = 0.0
    handshake_timeout: float = 10.0
    ack_timeout: float = 10.0
    reset_wait: float = 2.0  # promise P5
    trade_window: float = 30.0  # promise P3
    rotation_deadline: float = 60.0

    def scaled(self, factor: float) -> Limits:
        """The same limits with every time divided by `factor` (tests; the rates stay true)."""
        times = (
            "connect_period",
            "messages_period",
            "requests_period",
            "server_ping",
            "pong_deadline",
            "idle_close",
            "max_life",
            "handshake_timeout",
            "ack_timeout",
            "reset_wait",
            "trade_window",
            "rotation_deadline",
        )
        return msgspec.structs.replace(
            self, **{name: getattr(self, name) / factor for name in times}
        )


class Keepalive(msgspec.Struct, frozen=True):
    """What the client must send by itself. `text` None: a WebSocket ping; else that text message.

    interval: seconds between two. idle_only: only when nothing arrived for that long (OKX).
    """

    interval: float
    text: bytes | None = None
    idle_only: bool = False
