"""Where the lines of a feed connect: its URLs, spread over the addresses that their hosts have.

A host with several addresses gives one dial per address (pinned) and a last one that is not
pinned, so that a link gets through also after the venue moved; the names are asked again from time
to time.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from k4.core.config import ConnectionConfig, Secret
from k4.core.transport import Dial, tls_context
from k4.md.feed import Feed

ASK_TIMEOUT = 3.0  # seconds for all names together


class Dials:
    """The dials of one connection's feeds; `ask` fills in what the names resolve to."""

    def __init__(self, config: ConnectionConfig) -> None:
        self._max_frame_bytes = config.max_frame_bytes
        self._ssl_context = tls_context(config.ca_file)
        self._addresses: dict[str, tuple[str, ...]] = {}

    def __call__(self, feed: Feed) -> Sequence[Dial]:
        """The dials of a feed: first one of every host, then their further addresses."""
        headers = revealed(feed.headers)
        rows = [[*(self._addresses.get(_host(url), ()))] or [""] for url in feed.urls]
        dials = []
        for i in range(max(map(len, rows))):
            for url, row in zip(feed.urls, rows, strict=True):
                if i < len(row):
                    dials.append(self._dial(url, headers, row[i]))
        dials += [
            self._dial(url, headers, "")
            for url, row in zip(feed.urls, rows, strict=True)
            if row != [""]
        ]
        return dials

    async def ask(self, feeds: Sequence[Feed]) -> None:
        """Resolve the hosts of these feeds; a name that does not resolve now keeps what it had."""
        asked = [*feeds, *(feed.fallback for feed in feeds if feed.fallback is not None)]
        hosts = {_host(url): urlsplit(url).port for feed in asked for url in feed.urls}
        names = [host for host in hosts if host and not _is_address(host)]
        if not names:
            return
        loop = asyncio.get_running_loop()
        tasks = {name: loop.create_task(_resolve(name)) for name in names}
        await asyncio.wait(tasks.values(), timeout=ASK_TIMEOUT)
        for name, task in tasks.items():
            if not task.done():
                task.cancel()
            elif task.exception() is None and len(task.result()) > 1:
                self._addresses[name] = task.result()

    def _dial(self, url: str, headers: Mapping[str, str], address: str) -> Dial:
        return Dial(
            url=url,
            headers=headers,
            max_frame_bytes=self._max_frame_bytes,
            ssl_context=self._ssl_context if url.startswith("wss:") else None,
            address=address,
        )


def spread(dials: Sequence[Dial], taken: Sequence[Dial], left: Dial | None = None) -> list[Dial]:
    """The dials in the order in which a new line is to try them: first the one on which the fewest
    lines stand, and rather not that of the line that it replaces. Hosts whose addresses are known
    are dialed by name only after all of these.
    """
    pinned = {dial.url for dial in dials if dial.address}
    places = [dial for dial in dials if dial.address or dial.url not in pinned]
    used = [
        (sum(is_at(dial, other) for other in taken), left is not None and is_at(dial, left))
        for dial in places
    ]
    first = used.index(min(used))
    by_name = [dial for dial in dials if not dial.address and dial.url in pinned]
    return [*places[first:], *places[:first], *by_name]


def is_at(dial: Dial, other: Dial) -> bool:
    return (dial.url, dial.address) == (other.url, other.address)


def revealed(headers: Mapping[str, str | Secret]) -> dict[str, str]:
    """Header values as they go onto the wire."""
    return {
        name: value.reveal() if isinstance(value, Secret) else value
        for name, value in headers.items()
    }


async def _resolve(name: str) -> tuple[str, ...]:
    """Addresses of a host name in the resolver's order. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(name, None, type=1)
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return True
