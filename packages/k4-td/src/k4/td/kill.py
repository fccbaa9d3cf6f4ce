"""The kill switch: sticky, and the same for every account of a module.

It is engaged by a command, by a signal, or by a file that appears. It is remembered in the journal,
so that neither a restart nor the removal of the file releases it; only `release` does.
"""

from __future__ import annotations

import contextlib
import os

from k4.core.trading import JournalError, RiskRefused
from k4.td.journal import Journal


class KillSwitch:
    """kill_file: '' for none. `reason` is '' while trading is allowed."""

    def __init__(self, journal: Journal, kill_file: str) -> None:
        self._journal = journal
        self._file = kill_file
        self.reason = journal.killed()
        self._written = bool(self.reason)
        self._found = False
        self.poll()

    def poll(self) -> None:
        """Look for the file. One stat, about 2 µs."""
        if self.reason or not self._file or not os.path.exists(self._file):
            return
        self._found = True
        with contextlib.suppress(JournalError):  # told when it is written down, see `remember`
            self.engage(f"the file {self._file} exists")

    def found(self) -> bool:
        """Whether the file has engaged the switch since this was asked last, whoever looked for it:
        what is open has still to be cancelled."""
        self.poll()
        found, self._found = self._found, False
        return found

    def engage(self, reason: str) -> None:
        """Refuse new orders from now on. Holds in memory even if it cannot be written down, which
        raises JournalError."""
        self.reason = self.reason or reason or "killed"
        self._written = False
        if self._file:
            try:
                os.close(os.open(self._file, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            except OSError as error:
                self.reason += f" (kill_file: {error.strerror})"
        self.remember()

    def remember(self) -> None:
        """Write down that trading is killed, if that is still to be done. Raises JournalError."""
        if self.reason and not self._written:
            self._journal.set_killed(self.reason)
            self._written = True

    def release(self) -> None:
        """Allow orders again. Raises JournalError where the file cannot be removed."""
        if self._file:
            try:
                os.unlink(self._file)
            except FileNotFoundError:
                pass
            except OSError as error:
                raise JournalError(
                    "kill_file", f"{self._file}: {error.strerror}", remedy="remove it by hand"
                ) from error
        self._journal.set_killed("")
        self.reason = ""
        self._found = False

    def check(self) -> None:
        """Raise RiskRefused where trading is killed; the file is looked at for every order."""
        self.poll()
        if self.reason:
            raise RiskRefused(
                "kill_switch",
                f"risk.kill_switch: trading is killed: {self.reason}",
                remedy="k4-runner kill --release CONFIG, once you know why",
            )


def release_offline(journal_path: str, kill_file: str) -> None:
    """Release the switch while no trading module runs. Raises JournalError when one does."""
    journal = Journal(journal_path)
    try:
        KillSwitch(journal, kill_file).release()
    finally:
        journal.close()
