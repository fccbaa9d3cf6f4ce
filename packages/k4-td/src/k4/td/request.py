"""One request under way, from the moment its intent is durable to its outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING

from k4.core.trading import JournalError, OrderError

if TYPE_CHECKING:
    from k4.td.account import Account


class Request:
    """One request under way. If it ends by anything but an answer (cancellation, a defect), its
    outcome is in doubt."""

    def __init__(self, account: Account, key: str, request: str, seq: int = 0) -> None:
        self._account = account
        self._key = key
        self._what = request
        self._seq = seq

    def __enter__(self) -> Request:
        self._account.entered()
        return self

    def outcome(self, text: str) -> None:
        if not self._seq:
            return  # its intent could not be written either
        try:
            self._account.journal.outcome(self._seq, text)
        except JournalError as error:
            self._account.complain(error.code, error.message, error.remedy, self._key)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._account.left()
        waiting = self._what in self._account.book.known(self._key).waiting
        if waiting and kind is not None and not issubclass(kind, OrderError):
            self._account.doubt(self._key, self._what, f"interrupted: {kind.__name__}")
