"""The payloads of Binance's JSON streams, typed, and the decoders that read them.

Numbers are quoted on the wire; `strict=False` turns them into floats in C. The constraints keep out
what no record can hold: negative, infinite and NaN figures, ids and times beyond 63 bits. Fields
that come and go (`E`, `T`, `X`) have defaults, those that K4 does not use (`ps`, `st`, `nq`, `M`,
the order ids of old trades) are skipped. Sources: binance-spot-api-docs `web-socket-streams.md`;
captured USD-M and COIN-M frames.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Generic, TypeVar

import msgspec

MICROSECONDS_FROM = 100_000_000_000_000
"""Times of 13 digits are milliseconds, those of 16 (`timeUnit=MICROSECOND`) microseconds."""

MOST_TRADES = 2**31 - 1  # trade_count of a record is an i32

_Id = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Amount = Annotated[float, msgspec.Meta(ge=0.0, le=sys.float_info.max)]  # refuses NaN, too
_Levels = list[tuple[_Amount, _Amount]]
_T = TypeVar("_T")


class Quote(msgspec.Struct, gc=False):
    """bookTicker; spot sends no time."""

    u: _Id
    s: str
    b: _Amount
    B: _Amount
    a: _Amount
    A: _Amount
    E: _Id = 0
    T: _Id = 0


class Deal(msgspec.Struct, gc=False):
    """trade; `X` on futures, `NA` marks a placeholder."""

    t: _Id
    s: str
    p: _Amount
    q: _Amount
    m: bool
    T: _Id = 0
    E: _Id = 0
    X: str = ""


class Aggregate(msgspec.Struct, gc=False):
    """aggTrade."""

    a: _Id
    s: str
    p: _Amount
    q: _Amount
    f: _Id
    l: _Id  # noqa: E741 (the venue's name)
    m: bool
    T: _Id = 0
    E: _Id = 0


class Book(msgspec.Struct, gc=False):
    """depth5 of futures: full sides, best first, under the name of the diff stream."""

    u: _Id
    b: _Levels
    a: _Levels
    s: str = ""
    E: _Id = 0
    T: _Id = 0


class SpotBook(msgspec.Struct, gc=False):
    """depth5 of spot: neither symbol nor time."""

    u: _Id = msgspec.field(name="lastUpdateId")
    b: _Levels = msgspec.field(name="bids")
    a: _Levels = msgspec.field(name="asks")
    s: str = ""
    E: _Id = 0
    T: _Id = 0


class Combined(msgspec.Struct, Generic[_T], gc=False):
    """The wrapper of `/stream` around a payload that names its own symbol."""

    data: _T


class Named(msgspec.Struct, Generic[_T], gc=False):
    """The same wrapper where the stream's name is needed."""

    stream: str
    data: _T


class Codec(msgspec.Struct, frozen=True):
    """Decoders of one form (combined or raw); each gives the wrapper, so that handlers are one."""

    quote: Callable[[bytes], Combined[Quote]]
    deal: Callable[[bytes], Combined[Deal]]
    aggregate: Callable[[bytes], Combined[Aggregate]]


def _decoder(cls: type[_T]) -> Callable[[bytes], _T]:
    return msgspec.json.Decoder(cls, strict=False).decode


def _wrapped(cls: type[_T]) -> Callable[[bytes], Combined[_T]]:
    decode = _decoder(cls)
    return lambda frame: Combined(decode(frame))


COMBINED = Codec(_decoder(Combined[Quote]), _decoder(Combined[Deal]), _decoder(Combined[Aggregate]))
RAW = Codec(_wrapped(Quote), _wrapped(Deal), _wrapped(Aggregate))
COMBINED_SPOT_BOOK = _decoder(Named[SpotBook])
COMBINED_BOOK = _decoder(Named[Book])
RAW_SPOT_BOOK = _decoder(SpotBook)
RAW_BOOK = _decoder(Book)


def reason_of(error: Exception) -> str:
    """The counter of a frame that does not decode: `price` where a figure is out of range."""
    text = str(error)
    figure = "`float` >=" in text or "`float` <=" in text or "Number out of range" in text
    return "price" if figure else "malformed"
