"""The operator's view of, and hand on, a running trading module: what `orders`, `positions`,
`balances`, `cancel-all` and `kill` do.

They speak to the worker through its order gateway, as a strategy would. Of the configuration they
read where that socket is and nothing else: keys are not needed here, and a shell in which somebody
wants to stop trading need not have them. `kill` also works where no worker runs, since the kill
switch is in the journal and holds over restarts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import msgspec

from k4.core.errors import ConfigError, K4Error, Problem
from k4.core.trading import (
    AccountType,
    GatewayError,
    JournalError,
    OrderUpdate,
    Position,
    to_wire,
)
from k4.td import TdClient
from k4.td.journal import Journal
from k4.td.kill import KillSwitch, release_offline

CLIENT = "k4-runner"
POSITION_FIELDS = ("symbol", "account_type", "quantity", "entry_price", "unrealized_pnl")

Row = dict[str, Any]


class Risk(msgspec.Struct, frozen=True):
    kill_file: str = ""


class Entry(msgspec.Struct, frozen=True):
    """What an operator needs of one `trading` entry."""

    exchange: str = "binance"
    name: str = ""
    socket: str = ""
    journal: str = ""
    risk: Risk = Risk()

    @property
    def label(self) -> str:
        return self.name or self.exchange


class File(msgspec.Struct, frozen=True):
    trading: tuple[Entry, ...] = ()


class Office:
    """Carries a command out on every chosen entry; one that fails does not keep it from others.

    name: of the entry, '' for all. Raises ConfigError for a file without such entries.
    """

    def __init__(
        self, path: Path, out: TextIO, err: TextIO, *, name: str = "", as_json: bool = False
    ) -> None:
        self._entries = entries(path, name)
        self._out = out
        self._err = err
        self._as_json = as_json

    def orders(self) -> bool:
        """Print open orders; whether every entry could be asked."""
        return self._each(lambda client: self._print(map(to_wire, client.query_open_orders())))

    def positions(self) -> bool:
        return self._each(lambda client: self._print(map(_position, client.query_positions())))

    def balances(self) -> bool:
        return self._each(lambda client: self._print(map(to_wire, client.query_balances())))

    def cancel_all(self) -> bool:
        """Cancel everything and print how each order ended; whether the venues confirmed all."""
        return self._each(lambda client: self._cancelled(client.cancel_all_orders()))

    def kill(self, reason: str) -> bool:
        """Refuse new orders from now on, also over restarts, and cancel everything; whether nothing
        can be open any more."""
        return self._each(
            lambda client: self._cancelled(client.kill(reason)),
            lambda entry: self._kill_offline(entry, reason),
        )

    def release(self) -> bool:
        """Allow new orders again."""

        def released(client: TdClient) -> bool:
            client.kill(release=True)
            return True

        return self._each(released, self._release_offline)

    # Inside.

    def _each(
        self,
        ask: Callable[[TdClient], bool],
        absent: Callable[[Entry], bool] | None = None,
    ) -> bool:
        """Ask every entry's worker; absent: what to do where none runs."""
        done = True
        for entry in self._entries:
            try:
                done = self._ask(entry, ask, absent) and done
            except K4Error as error:
                self._complain(entry, error)
                done = False
        return done

    def _ask(
        self,
        entry: Entry,
        ask: Callable[[TdClient], bool],
        absent: Callable[[Entry], bool] | None,
    ) -> bool:
        try:
            client = TdClient(entry.socket, CLIENT, cancel_on_disconnect=False)
        except GatewayError as error:
            if absent is None or error.code != "gateway.absent":
                raise
            return absent(entry)
        with client:
            return ask(client)

    def _kill_offline(self, entry: Entry, reason: str) -> bool:
        """No worker listens: write it where the next one reads it before anything else."""
        try:
            journal = Journal(entry.journal)
        except JournalError as error:  # a worker has it, and does not listen yet, or no longer
            if entry.risk.kill_file:
                Path(entry.risk.kill_file).touch(mode=0o600)
                self._say(entry, f"{entry.risk.kill_file} is there now: its worker will be killed")
            error.remedy = "its worker is starting or stopping: do it again until it is confirmed"
            raise
        try:
            KillSwitch(journal, entry.risk.kill_file).engage(reason)
            left = [kept.state for kind in AccountType for kept in journal.open_orders(kind)]
        finally:
            journal.close()
        self._say(entry, "no trading module runs; killed in its journal, from its next start on")
        if left:
            names = ", ".join(state.order.client_order_id for state in left)
            self._say(
                entry,
                f"{len(left)} orders may be open at the venue and cannot be canceled from here: "
                f"{names}",
            )
            self._say(entry, "start k4-runner run: it cancels them, and takes no new ones")
        return not left

    def _release_offline(self, entry: Entry) -> bool:
        release_offline(entry.journal, entry.risk.kill_file)
        self._say(entry, "no trading module runs; released in its journal")
        return True

    def _cancelled(self, orders: Sequence[OrderUpdate]) -> bool:
        self._print(map(to_wire, orders))
        open_still = [order for order in orders if not order.status.final]
        for order in open_still:
            named = order.client_order_id or order.order_id
            self._err.write(f"k4-runner: {order.symbol} {named} is {order.status}: not confirmed\n")
        return not open_still

    def _print(self, rows: Iterable[Row]) -> bool:
        for row in rows:
            self._out.write(
                (msgspec.json.encode(row).decode() if self._as_json else _text(row)) + "\n"
            )
        self._out.flush()
        return True

    def _complain(self, entry: Entry, error: K4Error) -> None:
        self._say(entry, error.message)
        if error.remedy:
            self._err.write(f"           {error.remedy}\n")

    def _say(self, entry: Entry, text: str) -> None:
        self._err.write(f"k4-runner: {entry.label}: {text}\n")


def entries(path: Path, name: str = "") -> list[Entry]:
    """The chosen trading entries of a file. Raises ConfigError where one cannot be operated."""
    try:
        file = msgspec.json.decode(path.read_bytes(), type=File)
    except OSError as error:
        text = f"cannot read {str(path)!r}: {error.strerror}"
        raise ConfigError([Problem("", text)]) from error
    except msgspec.DecodeError as error:
        raise ConfigError([Problem("", f"{path}: {error}")]) from error
    problems = list(_problems(file))
    chosen = [entry for entry in file.trading if name in ("", entry.label)]
    if not file.trading:
        problems.append(Problem("trading", "this file has no trading entry"))
    elif not chosen:
        known = ", ".join(entry.label for entry in file.trading)
        problems.append(Problem("trading", f"no entry is called {name!r}; there are {known}"))
    if problems:
        raise ConfigError(problems)
    return chosen


def _problems(file: File) -> Iterator[Problem]:
    for index, entry in enumerate(file.trading):
        if not entry.socket:
            yield Problem(
                f"trading[{index}].socket", "is missing: its worker cannot be reached without one"
            )
        if not entry.journal:
            yield Problem(f"trading[{index}].journal", "is missing")


def _position(position: Position) -> Row:
    row = to_wire(position)
    return {name: row[name] for name in POSITION_FIELDS}


def _text(row: Mapping[str, Any]) -> str:
    if "asset" in row:
        return f"{row['account_type']} {row['asset']}: {row['free']} free, {row['locked']} locked"
    if "entry_price" in row:
        return (
            f"{row['account_type']} {row['symbol']}: {row['quantity']} at {row['entry_price']}, "
            f"unrealized {row['unrealized_pnl']}"
        )
    reason = f" ({row['reason']})" if row["reason"] else ""
    return (
        f"{row['account_type']} {row['symbol']} {row['client_order_id'] or row['order_id']}: "
        f"{row['direction']} {row['quantity']} {row['order_type']} at {row['price']}, "
        f"{row['status']}, {row['filled_quantity']} filled{reason}"
    )
