"""What a figure of a venue's JSON may be, so that whatever decodes can be published.

Numbers come quoted; msgspec's `strict=False` turns them into floats and integers in C. The
constraints keep out what no record can hold: negative, infinite and NaN figures, ids beyond 63
bits, times that would leave 64 bits as microseconds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, TypeVar

import msgspec

Id = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=(2**63 - 1) // 1000)]
Amount = Annotated[float, msgspec.Meta(ge=0.0, le=sys.float_info.max)]  # refuses NaN, too
Levels = list[tuple[Amount, Amount]]  # price, volume

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""All that a msgspec decoder raises on hostile bytes (ValidationError is a DecodeError)."""

_T = TypeVar("_T")


def decoder(cls: type[_T]) -> Callable[[bytes], _T]:
    """A decoder that takes quoted numbers as numbers. It raises what is in `UNREADABLE`."""
    return msgspec.json.Decoder(cls, strict=False).decode


def reason_of(error: Exception) -> str:
    """The counter of a frame that does not decode: `price` where a figure is out of range."""
    text = str(error)
    figure = "`float` >=" in text or "`float` <=" in text or "Number out of range" in text
    return "price" if figure else "malformed"
