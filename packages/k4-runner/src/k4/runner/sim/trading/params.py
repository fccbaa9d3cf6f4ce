"""Parameters of a request: text in, values out, each fault with the venue's own code."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from urllib.parse import parse_qsl

from k4.runner.sim.trading import errors

_DECIMAL = r"^([0-9]{1,20})(\.[0-9]{1,20})?$"
_INTEGER = r"^[0-9]{1,20}$"
_SYMBOL = r"^[A-Z0-9-_.]{1,20}$"
_LARGEST = 2**63 - 1
_NON_ASCII = re.compile(r"[^\x00-\x7f]")


def rest_values(query: str, body: str) -> dict[str, str]:
    """Names and decoded values; where both have a name the query's counts. Raises the refusal of a
    name that is repeated in one place."""
    found: dict[str, str] = {}
    for text in (body, query):
        pairs = parse_qsl(text, keep_blank_values=True)
        if len({name for name, _ in pairs}) != len(pairs):
            raise errors.duplicate_parameter()
        found.update(pairs)
    return found


def suspicious(text: str) -> bool:
    """Does it look like SQL or markup to the web firewall?"""
    return bool(_ATTACK.search(text))


_ATTACK = re.compile(
    r"(?i)\bunion(\s|\+|%20)+select\b|;(\s|\+|%20)*drop(\s|\+|%20)+table\b|<script|%3cscript"
)


class Params:
    """The values of one request."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def names(self) -> set[str]:
        return set(self._values)

    def text(self, name: str, default: str = "") -> str:
        """Raises the refusal of a name that was sent without a value."""
        value = self._values.get(name)
        if value is None:
            return default
        if not value:
            raise errors.empty(name)
        return value

    def need(self, name: str) -> str:
        value = self._values.get(name, "")
        if not value:
            raise errors.missing(name)
        return value

    def decimal(self, name: str) -> Decimal | None:
        value = self.text(name)
        if not value:
            return None
        if not re.fullmatch(_DECIMAL, value):
            raise errors.illegal(name, _DECIMAL)
        return Decimal(value)

    def need_decimal(self, name: str) -> Decimal:
        self.need(name)
        value = self.decimal(name)
        if value is None:
            raise errors.missing(name)
        return value

    def integer(self, name: str) -> int | None:
        value = self.text(name)
        if not value:
            return None
        if not re.fullmatch(_INTEGER, value):
            raise errors.illegal(name, _INTEGER)
        if int(value) > _LARGEST:
            raise errors.overflowed(name)
        return int(value)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.text(name)
        if not value:
            return default
        if value.lower() not in ("true", "false"):
            raise errors.invalid_data(name)
        return value.lower() == "true"

    def one_of(self, name: str, choices: Sequence[str], default: str = "") -> str:
        value = self.text(name, default)
        if value and value not in choices:
            raise errors.invalid_data(name)
        return value

    def symbol(self, name: str = "symbol") -> str:
        """Symbols with letters beyond ASCII exist; others have the documented characters."""
        value = self.need(name)
        if not _NON_ASCII.search(value) and not re.fullmatch(_SYMBOL, value):
            raise errors.illegal(name, _SYMBOL)
        return value
