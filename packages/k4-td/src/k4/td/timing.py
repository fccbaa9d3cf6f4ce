"""How long things may take: one value that K4 and a simulated venue share."""

from __future__ import annotations

import msgspec


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds.

    answer: to wait for an answer on the order path; longer than the venue's own 10 s, after which
    it says -1007. settle: after a request's window has closed, the venue may still execute it for
    this long (Binance: the backend's 10 s). query_first, query_cap: delays between queries for an
    order whose outcome is not known. silence: within which the venue's stream must tell of one's
    own order. max_life: of a connection; the venue cuts at 24 h. ping: between pings of ours; a
    connection that brings nothing for twice that is dead. drain: for answers under way when a
    connection is replaced or the module stops.
    """

    answer: float = 11.0
    settle: float = 10.0
    query_first: float = 0.2
    query_cap: float = 5.0
    silence: float = 5.0
    max_life: float = 23 * 3600.0
    ping: float = 15.0
    handshake: float = 10.0
    drain: float = 2.0
    retry_base: float = 0.1
    retry_cap: float = 30.0
    clock_refresh: float = 600.0
    symbols_refresh: float = 3600.0
    listen_key_life: float = 3600.0
    checkpoint: float = 5.0
    kill_poll: float = 0.25

    def scaled(self, factor: float) -> Timing:
        """The same with every time divided by `factor`."""
        return Timing(**{name: getattr(self, name) / factor for name in self.__struct_fields__})
