"""Tools for tests of code that uses K4: time that stands still, a peer in memory, a real server.

`ManualClock` moves when told; `MemoryTransport` connects links to `MemoryPeer`s without sockets;
`ScriptedServer` is a real WebSocket server on loopback.
"""

from k4.core.testing.clock import ManualClock
from k4.core.testing.memory import MemoryPeer, MemoryTransport
from k4.core.testing.server import ScriptedServer, ServerPeer, stay

__all__ = [
    "ManualClock",
    "MemoryPeer",
    "MemoryTransport",
    "ScriptedServer",
    "ServerPeer",
    "stay",
]
