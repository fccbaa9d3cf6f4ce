"""What a worker runs: a module with a two-phase start and an orderly stop."""

from __future__ import annotations

from typing import Any, Protocol


class Module(Protocol):
    """A part of the gateway that a worker hosts (market data, UDP relay, trading).

    Phase one, `prepare`, makes everything that can fail before a socket is opened: stores, locks,
    symbols, keys. Only when every module of every worker is prepared is `start` called.
    """

    name: str

    async def prepare(self) -> None:
        """Make ready; raises K4Error where the module cannot run. Opens no venue socket."""
        ...

    def start(self) -> None:
        """Open sockets and go."""
        ...

    async def stop(self) -> None:
        """Close sockets in order, then stores. Safe to call in any state, more than once."""
        ...

    def receipt(self) -> list[dict[str, Any]]:
        """One JSON-able object per stream: what was published, lost, rotated. Valid after
        `stop`.
        """
        ...
