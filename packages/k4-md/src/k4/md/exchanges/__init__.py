"""The exchanges that are installed, found through the entry-point group `k4.md.exchanges`.

An entry point names an `Exchange` value (see `k4.md.feed`), so a venue can come from any
distribution.
"""

from __future__ import annotations

import difflib
from importlib.metadata import EntryPoint, entry_points

from k4.core.errors import K4Error
from k4.md.feed import Exchange

GROUP = "k4.md.exchanges"


def _found() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def names() -> tuple[str, ...]:
    """The names that a configuration may use as `exchange`, in alphabetical order."""
    return tuple(sorted(_found()))


def find(name: str) -> Exchange:
    """The exchange of that name. Raises K4Error where none is installed or it cannot be loaded."""
    entry = _found().get(name)
    if entry is None:
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"installed: {', '.join(names())}"
        raise K4Error(f"no exchange {name!r}", remedy=hint)
    try:
        exchange = entry.load()
    except (ImportError, AttributeError) as error:
        raise K4Error(
            f"exchange {name!r} cannot be loaded: {error}",
            remedy=f"reinstall the distribution that provides {entry.value}",
        ) from error
    if not isinstance(exchange, Exchange):
        raise K4Error(f"{entry.value} of exchange {name!r} is no k4.md.feed.Exchange")
    return exchange
