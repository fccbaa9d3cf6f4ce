"""Where a venue's list of instruments comes from: its public REST interface, else the disk.

A list that was fetched is kept under the user's cache directory (`$XDG_CACHE_HOME` or `~/.cache`,
`k4/symbols`), one file for each venue, product and base URL, so that a testnet's list never stands
in for the venue's.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
from collections.abc import Coroutine, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import msgspec

from k4.core.clock import Clock
from k4.core.errors import K4Error
from k4.core.transport import tls_context
from k4.md.feed import Instrument, Metadata

MOST_BYTES = 64 << 20  # of one page
MOST_PAGES = 100

_K = TypeVar("_K")
_T = TypeVar("_T")


class Listing(msgspec.Struct, frozen=True):
    """What a venue lists for one product. fetched_ns: when, wall clock."""

    rest: str
    fetched_ns: int
    instruments: tuple[Instrument, ...]

    @property
    def date(self) -> str:
        """The day and minute of the list, UTC."""
        when = datetime.fromtimestamp(self.fetched_ns / 1e9, UTC)
        return f"{when:%Y-%m-%d %H:%M} UTC"


class ListingError(K4Error):
    """A list that could not be had; the message says why."""


# -- the venue -------------------------------------------------------------------------------------


async def fetch(
    http: aiohttp.ClientSession, rests: tuple[str, ...], metadata: Metadata, clock: Clock
) -> Listing:
    """The venue's list, from the first of `rests` that gives one. Raises ListingError."""
    refusals = []
    for rest in rests:
        try:
            instruments = await _pages(http, rest, metadata)
        except ListingError as error:
            refusals.append(error.message)
        else:
            return Listing(rest, clock.time_ns(), tuple(instruments))
    raise ListingError("; ".join(refusals))


async def _pages(http: aiohttp.ClientSession, rest: str, metadata: Metadata) -> list[Instrument]:
    found: list[Instrument] = []
    path = metadata.path
    for _ in range(MOST_PAGES):
        body = await _get(http, rest.rstrip("/") + path)
        try:
            page, path = metadata.parse(body)
        except (ValueError, RecursionError) as error:
            raise ListingError(f"{rest} sent no list of instruments: {error}") from error
        found += page
        if not path and not found:
            raise ListingError(f"{rest} lists no instruments at all")
        if not path:
            return found
    raise ListingError(f"{rest} sent more than {MOST_PAGES} pages of instruments")


async def _get(http: aiohttp.ClientSession, url: str) -> bytes:
    try:
        async with http.get(url) as response:
            if response.status != 200:
                raise ListingError(f"{url} answered HTTP {response.status}")
            body = bytearray()
            async for chunk in response.content.iter_chunked(1 << 16):
                body += chunk
                if len(body) > MOST_BYTES:
                    raise ListingError(f"{url} sent more than {MOST_BYTES} bytes")
            return bytes(body)
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise ListingError(f"{url}: {type(error).__name__} {error}") from error


def http_session(ca_file: str) -> aiohttp.ClientSession:
    """A client without timers of its own; the caller's deadline holds. Raises K4Error (ca_file)."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=tls_context(ca_file)),
        timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None),
    )


async def within(
    clock: Clock, seconds: float, jobs: Mapping[_K, Coroutine[Any, Any, _T]]
) -> dict[_K, _T | ListingError]:
    """What the jobs gave, side by side; a ListingError for those that failed or took too long."""
    loop = asyncio.get_running_loop()
    tasks = {key: loop.create_task(job) for key, job in jobs.items()}
    if not tasks:
        return {}

    def late() -> None:
        for task in tasks.values():
            task.cancel()

    timer = clock.call_later(seconds, late)
    try:
        await asyncio.wait(tasks.values())
    finally:
        timer.cancel()
        late()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
    return {key: _outcome(task, seconds) for key, task in tasks.items()}


def _outcome(task: asyncio.Task[_T], seconds: float) -> _T | ListingError:
    if task.cancelled():
        return ListingError(f"no answer within {seconds:g} s")
    error = task.exception()
    if isinstance(error, ListingError):
        return error
    return task.result()


# -- the disk --------------------------------------------------------------------------------------


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/k4/symbols`, or the same below `~/.cache`.

    A user without a home gets a path that cannot be written, which is a warning, no error.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        base = os.path.expanduser("~/.cache")
    return Path(base if os.path.isabs(base) else os.devnull) / "k4" / "symbols"


def cache_file(folder: Path, venue: str, product: str, rest: str) -> Path:
    """The file of one venue, product and base URL."""
    tag = hashlib.blake2b(rest.encode(), digest_size=4).hexdigest()
    return folder / f"{venue}.{product}.{tag}.json"


def keep(file: Path, listing: Listing) -> None:
    """Write a list so that a reader sees the old one or the new one, whole. Raises OSError."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(dir=file.parent, prefix=file.name, suffix=".new")  # mode 0600
    try:
        with os.fdopen(fd, "wb") as out:
            out.write(msgspec.json.encode(listing))
        os.replace(name, file)
    except BaseException:
        os.unlink(name)
        raise


def kept(file: Path) -> Listing | None:
    """The list in a file, None where there is none or it is not readable as one."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Listing)
    except (OSError, ValueError, RecursionError):
        return None
