"""Every error that K4 raises, as one short tree.

    K4Error                     anything K4 has to say; `remedy` tells what to do next
    ├── ConfigError             the configuration: carries every `Problem` found, each with its path
    ├── StoreError              shared memory
    │   ├── StoreBusy           another live writer holds the store; carries its pid
    │   ├── StoreMissing        no store of that name
    │   ├── StoreForeign        the object belongs to another user, or is no K4 store
    │   ├── StoreFull           /dev/shm has no room for it
    │   └── StoreClosed         the writer replaced or removed the object: reopen it
    ├── SymbolError             a symbol that the venue does not list; carries the nearest ones
    ├── WireError               a datagram that cannot be encoded
    └── TradingError            orders and accounts; the trading package refines it

What goes wrong on one connection is no error: a lost or refused connection is made again, a refused
subscription is logged and counted, and a hostile or malformed frame is counted and dropped where it
is found.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class K4Error(Exception):
    """Base of the tree. `remedy` is one sentence that tells the user what to do, or empty."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} ({self.remedy})" if self.remedy else self.message


class Problem(msgspec.Struct, frozen=True):
    """One thing wrong with a configuration: where (`connections[0].spot.symbols[2]`) and what."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ConfigError(K4Error):
    """The configuration cannot be used. All problems at once, in file order."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


class StoreError(K4Error):
    """Something about a shared-memory store; `name` is the store's."""

    def __init__(self, name: str, message: str, *, remedy: str = "") -> None:
        super().__init__(f"store {name!r}: {message}", remedy=remedy)
        self.name = name


class StoreBusy(StoreError):
    """A second writer. `pid` is the first one's, 0 if it could not be read."""

    def __init__(self, name: str, pid: int) -> None:
        super().__init__(
            name,
            f"process {pid} is writing to it",
            remedy="stop that process, or give this one another shm name or shm_prefix",
        )
        self.pid = pid


class StoreMissing(StoreError):
    """There is no object of that name."""


class StoreForeign(StoreError):
    """The object is not ours to use: another owner, or not a K4 store."""


class StoreFull(StoreError):
    """/dev/shm cannot hold the object."""


class StoreClosed(StoreError):
    """The object was replaced or removed by its writer; opening the name again finds the new
    one.
    """


class SymbolError(K4Error):
    """The venue does not list the symbol. `nearest` holds the most similar that it does."""

    def __init__(self, symbol: str, venue: str, nearest: Sequence[str]) -> None:
        hint = f"nearest: {', '.join(nearest)}" if nearest else ""
        super().__init__(f"{venue} lists no symbol {symbol!r}", remedy=hint)
        self.symbol = symbol
        self.venue = venue
        self.nearest = tuple(nearest)


class WireError(K4Error):
    """Records that cannot be put into a datagram."""


class TradingError(K4Error):
    """Orders and accounts. The trading package refines it by cause."""
