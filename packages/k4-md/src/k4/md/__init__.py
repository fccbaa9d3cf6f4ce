"""Market data from exchange WebSockets: codecs, line arbitration, publication."""

from k4.md.connect import Connection, connect

__all__ = ["Connection", "connect"]
