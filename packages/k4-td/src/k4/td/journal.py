"""The write-ahead journal: what K4 intends is durable before the first byte leaves.

One SQLite file in WAL mode, mode 0600, with one writer (a lock beside it). Any SQLite tool reads it
while K4 runs:

    orders    one row per intent; status and figures as text, `state` for replay
    requests  cancels, amends, replacements, kills: `outcome` empty while not known
    fills     one row per (account, symbol, trade id)
    cursors   up to which trade id every execution is known
    meta      schema, and whether trading is killed

No key, signature or account name is ever written. `process` (synchronous=NORMAL) survives the death
of the process, since the operating system has the pages; `full` (FULL) also survives power loss.
Checkpoints run on a second connection, off the order path: the writer never makes one.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from k4.core.trading import (
    AccountType,
    Fill,
    JournalError,
    decimal_text,
)
from k4.td.state import AMEND, CANCEL, PLACE, OrderState

SCHEMA = "1"
ONE_ID = "one id per intent, never again: the venue refuses only ids of open orders"

_TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS orders (
    account TEXT NOT NULL, client_order_id TEXT NOT NULL, symbol TEXT NOT NULL,
    order_id TEXT NOT NULL, status TEXT NOT NULL, quantity TEXT NOT NULL, price TEXT NOT NULL,
    filled_quantity TEXT NOT NULL, created_us INTEGER NOT NULL, updated_us INTEGER NOT NULL,
    open INTEGER NOT NULL, owner TEXT NOT NULL, cancel_on_disconnect INTEGER NOT NULL,
    reason TEXT NOT NULL, state TEXT NOT NULL,
    PRIMARY KEY (account, client_order_id)
);
CREATE INDEX IF NOT EXISTS orders_open ON orders (account) WHERE open = 1;
CREATE INDEX IF NOT EXISTS orders_venue ON orders (account, symbol, order_id);
CREATE TABLE IF NOT EXISTS requests (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, time_us INTEGER NOT NULL, account TEXT NOT NULL,
    client_order_id TEXT NOT NULL, kind TEXT NOT NULL, detail TEXT NOT NULL,
    outcome TEXT NOT NULL DEFAULT ''
);
CREATE TABLE IF NOT EXISTS fills (
    account TEXT NOT NULL, symbol TEXT NOT NULL, trade_id TEXT NOT NULL,
    client_order_id TEXT NOT NULL, order_id TEXT NOT NULL, direction TEXT NOT NULL,
    price TEXT NOT NULL, quantity TEXT NOT NULL, commission TEXT NOT NULL,
    commission_asset TEXT NOT NULL, is_maker INTEGER NOT NULL, trade_time_us INTEGER NOT NULL,
    PRIMARY KEY (account, symbol, trade_id)
);
CREATE TABLE IF NOT EXISTS cursors (
    account TEXT NOT NULL, symbol TEXT NOT NULL, trade_id INTEGER NOT NULL,
    PRIMARY KEY (account, symbol)
);
CREATE INDEX IF NOT EXISTS requests_open ON requests (account, client_order_id)
    WHERE outcome = '';
CREATE INDEX IF NOT EXISTS fills_order ON fills (account, client_order_id);
"""

_INSERT_ORDER = (
    "INSERT INTO orders (symbol, order_id, status, quantity, price, filled_quantity, updated_us,"
    " open, reason, state, account, client_order_id, created_us, owner, cancel_on_disconnect)"
    " VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
)
_UPDATE_ORDER = (
    "UPDATE orders SET symbol=?, order_id=?, status=?, quantity=?, price=?, filled_quantity=?,"
    " updated_us=?, open=?, reason=?, state=? WHERE account=? AND client_order_id=?"
)
# Which doubt an unanswered request leaves about its order.
_DOUBT = {"cancel": CANCEL, "replace": CANCEL, "amend": AMEND}
# A fill may be heard of before it is known whose it is.
_INSERT_FILL = (
    "INSERT INTO fills VALUES (?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT DO UPDATE"
    " SET client_order_id=excluded.client_order_id WHERE client_order_id=''"
)


class Kept(msgspec.Struct, frozen=True):
    """An order that was not final when the journal was last written."""

    state: OrderState
    owner: str
    cancel_on_disconnect: bool


class Journal:
    """One writer. Every method that fails raises JournalError; none leaves half a change."""

    def __init__(self, path: str, sync: str = "process") -> None:
        self.path = path
        self._checkpointing = threading.Lock()  # a connection must not be closed under its thread
        self._lock = _exclusive(path)
        try:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            self._db = self._open(sync)
            self._side: sqlite3.Connection | None = None
        except (OSError, sqlite3.Error) as error:
            os.close(self._lock)
            raise JournalError(
                "",
                f"journal {path}: {error}",
                remedy="give a path on a local disk that this user may write, or move the file",
            ) from error
        except JournalError:
            os.close(self._lock)
            raise

    def _open(self, sync: str) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        try:
            mode = db.execute("PRAGMA journal_mode=WAL").fetchone()[0]
            if mode != "wal":
                raise JournalError(
                    "",
                    f"journal {self.path}: no WAL mode on this file system",
                    remedy="give a path on a local disk",
                )
            db.execute(f"PRAGMA synchronous={'FULL' if sync == 'full' else 'NORMAL'}")
            db.execute("PRAGMA wal_autocheckpoint=0")
            db.executescript(_TABLES)
            found = db.execute("SELECT value FROM meta WHERE key='schema'").fetchone()
            if found is None:
                db.execute("INSERT INTO meta VALUES ('schema', ?)", (SCHEMA,))
            elif found[0] != SCHEMA:
                raise JournalError(
                    "",
                    f"journal {self.path} has schema {found[0]}, not {SCHEMA}",
                    remedy="it is of another version of K4: give another path",
                )
        except BaseException:
            db.close()
            raise
        return db

    def close(self) -> None:
        """Write everything into the main file and let go. Safe to call twice."""
        if self._lock < 0:
            return
        with self._checkpointing:
            if self._side is not None:
                self._side.close()
            self._db.close()
            os.close(self._lock)
            self._lock = -1

    # Intents.

    def intend_place(
        self, state: OrderState, owner: str = "", cancel_on_disconnect: bool = False
    ) -> None:
        """Make a new order durable. Raises JournalError for a client id that was used before."""
        order = state.order
        try:
            self._db.execute(
                _INSERT_ORDER,
                (
                    *_columns(state),
                    order.account_type.value,
                    order.client_order_id,
                    state.time_us,
                    owner,
                    int(cancel_on_disconnect),
                ),
            )
        except sqlite3.IntegrityError:
            raise JournalError(
                "client_order_id",
                f"client order id {order.client_order_id!r} was used before",
                remedy=ONE_ID,
            ) from None
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def intend_replace(
        self, old: OrderState, new: OrderState, owner: str, cancel_on_disconnect: bool
    ) -> int:
        """Both halves of a cancel-and-replace in one transaction; the number of the request."""
        self._begin()
        try:
            self.intend_place(new, owner, cancel_on_disconnect)
            seq = self.intend(old, "replace", {"by": new.order.client_order_id}, new.time_us)
        except BaseException:
            self._rollback()
            raise
        self._commit()
        return seq

    def intend(self, state: OrderState, kind: str, detail: dict[str, Any], time_us: int) -> int:
        """Make a cancel or an amend durable; the number of the request, for `outcome`."""
        return self._request(state.account, state.order.client_order_id, kind, detail, time_us)

    def intend_cancel_all(self, account: AccountType, symbol: str, time_us: int) -> int:
        return self._request(account, "", "cancel_all", {"symbol": symbol}, time_us)

    def _request(
        self, account: AccountType, client_id: str, kind: str, detail: dict[str, Any], time_us: int
    ) -> int:
        try:
            cursor = self._db.execute(
                "INSERT INTO requests (time_us, account, client_order_id, kind, detail)"
                " VALUES (?,?,?,?,?)",
                (time_us, account.value, client_id, kind, msgspec.json.encode(detail).decode()),
            )
        except sqlite3.Error as error:
            raise self._failed(error) from error
        return cursor.lastrowid or 0

    # Results.

    def outcome(self, seq: int, text: str) -> None:
        """How a request ended: `done`, a refusal, or `unknown: ...`."""
        try:
            self._db.execute("UPDATE requests SET outcome=? WHERE seq=?", (text[:500], seq))
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def settled(self, state: OrderState) -> None:
        """Nothing about the order is in doubt any more, whatever its requests came to."""
        try:
            self._db.execute(
                "UPDATE requests SET outcome='settled' WHERE account=? AND client_order_id=?"
                " AND outcome=''",
                (state.account.value, state.order.client_order_id),
            )
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def save(self, state: OrderState, fills: Sequence[Fill] = ()) -> None:
        """The order as it is known now, and executions that are new; one transaction."""
        if fills:
            self._begin()
        try:
            self._db.execute(
                _UPDATE_ORDER,
                (*_columns(state), state.account.value, state.order.client_order_id),
            )
            self._insert_fills(fills)
        except sqlite3.Error as error:
            if fills:
                self._rollback()
            raise self._failed(error) from error
        if fills:
            self._commit()

    def add_fills(self, fills: Sequence[Fill]) -> None:
        """Executions of orders that are not ours, so that they are asked for once."""
        self._begin()
        try:
            self._insert_fills(fills)
        except sqlite3.Error as error:
            self._rollback()
            raise self._failed(error) from error
        self._commit()

    def _insert_fills(self, fills: Iterable[Fill]) -> None:
        for fill in fills:
            self._db.execute(
                _INSERT_FILL,
                (
                    fill.account_type.value,
                    fill.symbol,
                    fill.trade_id,
                    fill.client_order_id,
                    fill.order_id,
                    fill.direction.value,
                    decimal_text(fill.price),
                    decimal_text(fill.quantity),
                    decimal_text(fill.commission),
                    fill.commission_asset,
                    int(fill.is_maker),
                    fill.trade_time_us,
                ),
            )

    # Replay.

    def open_orders(self, account: AccountType) -> list[Kept]:
        """Orders that are not final, as last known, with their fills. A request that was under way
        when the process died is in doubt."""
        rows = self._rows(
            "SELECT state, owner, cancel_on_disconnect FROM orders WHERE account=? AND open=1",
            (account.value,),
        )
        return [Kept(self._restored(row[0]), row[1], bool(row[2])) for row in rows]

    def find(self, account: AccountType, client_order_id: str) -> OrderState | None:
        """An order of any age."""
        rows = self._rows(
            "SELECT state FROM orders WHERE account=? AND client_order_id=?",
            (account.value, client_order_id),
        )
        return self._restored(rows[0][0]) if rows else None

    def find_by_venue_id(
        self, account: AccountType, symbol: str, order_id: str
    ) -> OrderState | None:
        rows = self._rows(
            "SELECT state FROM orders WHERE account=? AND symbol=? AND order_id=?",
            (account.value, symbol, order_id),
        )
        return self._restored(rows[0][0]) if rows else None

    def activity(self, account: AccountType) -> dict[str, tuple[str, int]]:
        """By symbol with any order: the trade id up to which every execution is known ('' for
        none), and the time from which to ask where there is none: that of the first intent."""
        found = {
            row[0]: ("", int(row[1]))
            for row in self._rows(
                "SELECT symbol, MIN(created_us) FROM orders WHERE account=? GROUP BY symbol",
                (account.value,),
            )
        }
        for symbol, trade in self._rows(
            "SELECT symbol, trade_id FROM cursors WHERE account=?", (account.value,)
        ):
            found[symbol] = (str(trade), found.get(symbol, ("", 0))[1])
        return found

    def advance(self, account: AccountType, heads: Mapping[str, int]) -> None:
        """Every execution up to these trade ids is known. This is not the highest id known: an
        event or an answer may overtake executions that were missed while nobody listened."""
        if not heads:
            return
        self._begin()
        try:
            self._db.executemany(
                "INSERT INTO cursors VALUES (?,?,?) ON CONFLICT DO UPDATE"
                " SET trade_id=MAX(trade_id, excluded.trade_id)",
                [(account.value, symbol, trade) for symbol, trade in heads.items()],
            )
        except sqlite3.Error as error:
            self._rollback()
            raise self._failed(error) from error
        self._commit()

    def killed(self) -> str:
        """Why trading is killed, '' where it is not."""
        rows = self._rows("SELECT value FROM meta WHERE key='killed'", ())
        return str(rows[0][0]) if rows else ""

    def set_killed(self, reason: str) -> None:
        """Sticky until it is set to ''."""
        try:
            if reason:
                self._db.execute("INSERT OR REPLACE INTO meta VALUES ('killed', ?)", (reason,))
            else:
                self._db.execute("DELETE FROM meta WHERE key='killed'")
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def checkpoint(self) -> None:
        """Move the log into the main file. May run in another thread; never blocks the writer."""
        with self._checkpointing:
            if self._lock < 0:
                return
            try:
                if self._side is None:
                    self._side = sqlite3.connect(
                        self.path, isolation_level=None, check_same_thread=False
                    )
                self._side.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            except sqlite3.Error as error:
                raise self._failed(error) from error

    # Inside.

    def _restored(self, text: str) -> OrderState:
        state = msgspec.json.decode(text, type=OrderState)
        identity = state.account.value, state.order.client_order_id
        asked = self._rows(
            "SELECT kind FROM requests WHERE account=? AND client_order_id=? AND outcome=''",
            identity,
        )
        rows = self._rows(
            "SELECT symbol, direction, order_id, trade_id, price, quantity, commission,"
            " commission_asset, is_maker, trade_time_us FROM fills"
            " WHERE account=? AND client_order_id=?",
            identity,
        )
        fills = (_fill(state, row) for row in rows)
        waited = (_DOUBT[row[0]] for row in asked if row[0] in _DOUBT)
        doubts = tuple(dict.fromkeys((*state.doubts, *state.waiting, *waited)))
        return msgspec.structs.replace(
            state,
            fills={fill.trade_id: fill for fill in fills},
            waiting=(),
            doubts=() if state.final else _real_doubts(state, doubts),
        )

    def _rows(self, sql: str, values: tuple[Any, ...]) -> list[Any]:
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def _begin(self) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def _commit(self) -> None:
        try:
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            self._rollback()
            raise self._failed(error) from error

    def _rollback(self) -> None:
        """SQLite has done it by itself where the disk is full or failed."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def _failed(self, error: sqlite3.Error) -> JournalError:
        return JournalError(
            "", f"journal {self.path}: {error}", remedy="free disk space; orders are refused"
        )


def _real_doubts(state: OrderState, doubts: tuple[str, ...]) -> tuple[str, ...]:
    """An order that the venue has reported was placed, whatever the answer would have been."""
    if state.venue is None:
        return doubts
    return tuple(doubt for doubt in doubts if doubt != PLACE)


def _columns(state: OrderState) -> tuple[Any, ...]:
    bare = msgspec.structs.replace(state, fills={})
    return (
        state.order.symbol,
        state.order_id,
        state.status.value,
        decimal_text(state.quantity),
        decimal_text(state.price),
        decimal_text(state.filled),
        state.time_us,
        int(not state.final),
        state.reason,
        msgspec.json.encode(bare).decode(),
    )


def _fill(state: OrderState, row: Sequence[Any]) -> Fill:
    names = ("symbol", "direction", "order_id", "trade_id", "price", "quantity", "commission")
    values = dict(zip(names, row, strict=False))
    return msgspec.convert(
        {
            **values,
            "commission_asset": row[7],
            "is_maker": bool(row[8]),
            "trade_time_us": row[9],
            "account_type": state.account.value,
            "client_order_id": state.order.client_order_id,
        },
        Fill,
    )


def _exclusive(path: str) -> int:
    """The lock that makes this process the only writer. It is on a file of its own: SQLite's locks
    on the database would be lost when any other descriptor of it is closed."""
    try:
        fd = os.open(path + ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise JournalError(
            "", f"journal {path}: {error.strerror}", remedy="give a path in an existing directory"
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise JournalError(
            "",
            f"journal {path} is in use by another process",
            remedy="one trading module per journal: stop the other one",
        ) from None
    return fd
