"""What must not be read in a log: secrets by value, by name and by the places where they travel."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from k4.core.config import Secret

MASK = "***"

_NAME = (
    r"(?:x-mbx-apikey|(?:api|listen|access|secret|private|session)[-_]?key|signature"
    r"|(?<![a-z])sign|secret|pass(?:word|phrase)|token|authorization|cookie|credentials?)"
)
_VALUE = r"""(?:"[^"]*"?|'[^']*'?|(?:Bearer |Basic )?[^\s&,;"'}\])]+)"""
# A name in the place of a key: `apiKey`, `bybit_api_key`, `X-MBX-APIKEY`, plain `key`.
_SECRET_KEY = re.compile(rf"key|.*{_NAME}", re.IGNORECASE)
_PLACES = (
    # signature=… and listenKey=… in URLs and bodies, 'apiKey': '…' in dicts, X-MBX-APIKEY: … in
    # headers, \"listenKey\":\"…\" in the repr of JSON
    (
        re.compile(rf"""({_NAME}\\*["']?\s*[=:]\s*\\*){_VALUE}""", re.IGNORECASE),
        rf"\1{MASK}",
    ),
    # a listen key as the last part of a user-data URL
    (re.compile(r"(/ws/)[A-Za-z0-9]{40,}"), rf"\1{MASK}"),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]+-----|\Z)", re.S), MASK),
)
_SHORTEST_KNOWN = 6  # a shorter secret would blot out ordinary words
_MAX_DEPTH = 8


class Redactor:
    """Replaces secrets by `***` in whatever is about to be logged.

    known: secrets whose text is masked wherever it turns up, such as in an answer that echoes it.
    """

    def __init__(self, known: Iterable[Secret] = ()) -> None:
        texts = {secret.reveal() for secret in known}
        self._known = sorted((t for t in texts if len(t) >= _SHORTEST_KNOWN), key=len, reverse=True)

    def text(self, text: str) -> str:
        """The text without the secrets in it."""
        for known in self._known:
            text = text.replace(known, MASK)
        for pattern, replacement in _PLACES:
            text = pattern.sub(replacement, text)
        return text.encode("utf-8", "backslashreplace").decode()

    def value(self, value: Any, depth: int = 0) -> Any:
        """A JSON-able copy of any value without secrets; what JSON lacks becomes its repr."""
        if value is None or isinstance(value, bool | float):
            return value
        if isinstance(value, int):
            return value if abs(value) < 1 << 63 else str(value)
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Secret):
            return MASK
        if isinstance(value, bytes | bytearray | memoryview):
            return self.text(bytes(value).decode("utf-8", "backslashreplace"))
        if depth < _MAX_DEPTH:
            if isinstance(value, Mapping):
                return {str(k): self.named(str(k), v, depth + 1) for k, v in value.items()}
            if isinstance(value, list | tuple | set | frozenset):
                return [self.value(item, depth + 1) for item in value]
        try:
            return self.text(repr(value))
        except Exception as error:  # a broken __repr__ must not cost the event that carries it
            return f"<{type(value).__name__} without a repr: {type(error).__name__}>"

    def named(self, name: str, value: Any, depth: int = 0) -> Any:
        """As `value`, for a value under this name."""
        return MASK if _SECRET_KEY.fullmatch(name) else self.value(value, depth)
