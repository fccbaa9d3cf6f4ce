"""One entry of `trading`: an account, its keys and URLs, and its risk limits."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from k4.core.config import RiskLimits, TradingConfig
from k4.core.loading.document import Section, Value, one_of
from k4.core.loading.schema import (
    ACCOUNTS,
    BINANCE_REST,
    BINANCE_USER_DATA,
    BINANCE_WS_API,
    trading_plugins,
)
from k4.core.loading.values import (
    choice,
    decimal,
    exchange,
    filled,
    flag,
    integer,
    key_file,
    module_name,
    number,
    secret,
    store_name,
    symbols,
    text,
    url,
)

SIGNERS = ("secret_key", "ed25519_key_path", "rsa_key_path")
SOCKET_BYTES = 107  # sun_path of Linux, less its NUL
MAX_RECV_WINDOW = 60_000  # milliseconds, Binance's
LISTEN_KEY_LIFE = 3600  # seconds, Binance's
MAX_BBO_AGE_MS = 1000.0


def trading(value: Value) -> TradingConfig:
    section = value.section()
    venue = section.need("exchange", by=exchange(["binance"], trading_plugins), default="")
    urls = _Urls(section, venue == "binance")
    kill_file, risk = section.read("risk", by=_risk, default=("", {}))
    config = TradingConfig(
        exchange=venue,
        name=section.read("name", by=module_name, default=venue or "binance"),
        path=section.path,
        journal=section.need("journal", by=filled, default=""),
        api_key=section.need("api_key", by=secret, default=None),
        secret_key=section.read("secret_key", by=secret, default=None),
        ed25519_key_path=section.read("ed25519_key_path", by=key_file, default=""),
        rsa_key_path=section.read("rsa_key_path", by=key_file, default=""),
        accounts=_accounts(section),
        rest_url=urls.read("rest_url", BINANCE_REST, "http", "https"),
        ws_api_url=urls.read("ws_api_url", BINANCE_WS_API, "ws", "wss"),
        ws_url=urls.read("ws_url", BINANCE_USER_DATA, "ws", "wss"),
        recv_window=section.read("recv_window", by=number(0, MAX_RECV_WINDOW), default=5000.0),
        listen_key_refresh_secs=section.read(
            "listen_key_refresh_secs", by=number(0, LISTEN_KEY_LIFE), default=1800.0
        ),
        socket=section.read("socket", by=_socket, default=""),
        cancel_on_disconnect=section.read("cancel_on_disconnect", by=flag, default=False),
        journal_sync=section.read("journal_sync", by=choice("process", "full"), default="process"),
        risk=risk,
        kill_file=kill_file,
    )
    _check_signers(section)
    _claim(section, config)
    for account in config.accounts:
        if account not in risk:
            section.findings.warn(section.path, f"account {account} trades without risk limits")
    section.close()
    return config


class _Urls:
    """Reads `<account>_<what>`: Binance's own address unless the file gives another."""

    def __init__(self, section: Section, binance: bool) -> None:
        self._section = section
        self._binance = binance

    def read(self, what: str, defaults: Mapping[str, str], *schemes: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for account, default in defaults.items():
            key = f"{account}_{what}"
            own = default if self._binance else ""
            given = self._section.read(key, by=url(*schemes), default=own).rstrip("/")
            if given:
                found[account] = given
            if given and not _is_private(given):
                self._section.findings.warn(
                    self._section.at(key), "sends orders and keys over an unencrypted connection"
                )
        return found


def _is_private(written: str) -> bool:
    """Encrypted, or within this machine."""
    parts = urlsplit(written)
    if parts.scheme in {"https", "wss"} or parts.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


def _accounts(section: Section) -> tuple[str, ...]:
    enabled = {
        account: section.read(f"{account}_enabled", by=flag, default=False) for account in ACCOUNTS
    }
    if not any(enabled.values()):
        keys = one_of([f"{account}_enabled" for account in ACCOUNTS])
        section.problem(f"no account is enabled: set {keys} to true")
    return tuple(account for account in ACCOUNTS if enabled[account])


def _check_signers(section: Section) -> None:
    given = [key for key in section.raw if key in SIGNERS]
    if not given:
        section.problem(f"has nothing to sign with: give {one_of(SIGNERS)}")
    for key in given[1:]:
        section.findings.problem(section.at(key), f"cannot stand beside {given[0]!r}: one key only")


def _claim(section: Section, config: TradingConfig) -> None:
    names = {"trading name": config.name, "journal": config.journal, "socket": config.socket}
    for what, name in names.items():
        key = what.split()[-1]
        if name:
            path = section.at(key) if section.has(key) else section.path
            section.findings.claim(what, name, path)


def _socket(value: Value) -> str:
    path = filled(value)
    if len(path.encode()) > SOCKET_BYTES:
        value.fail(f"is longer than the {SOCKET_BYTES} bytes that a socket's path may have")
    return path


def _risk(value: Value) -> tuple[str, dict[str, RiskLimits]]:
    section = value.section()
    found: dict[str, RiskLimits] = {}
    for account in ACCOUNTS:
        limits = section.read(account, by=_limits, default=None)
        if limits is not None:
            found[account] = limits
    kill_file = section.read("kill_file", by=text, default="")
    section.close()
    return kill_file, found


def _limits(value: Value) -> RiskLimits:
    section = value.section()
    bbo_store = section.read("bbo_store", by=store_name, default="")
    limits = RiskLimits(
        symbols=section.read("symbols", by=symbols, default=()),
        max_order_qty=section.read("max_order_qty", by=decimal, default=""),
        max_order_notional=section.read("max_order_notional", by=decimal, default=""),
        max_position=section.read("max_position", by=decimal, default=""),
        max_open_orders=section.read("max_open_orders", by=integer(1, 1_000_000), default=0),
        max_orders_per_sec=section.read("max_orders_per_sec", by=number(0, 1e6), default=0.0),
        price_collar_bps=section.read("price_collar_bps", by=number(0, 1e6), default=0.0),
        bbo_store=bbo_store,
        max_bbo_age_ms=section.read(
            "max_bbo_age_ms", by=number(0, 8.64e7), default=MAX_BBO_AGE_MS if bbo_store else 0.0
        ),
    )
    if limits.price_collar_bps and not section.has("bbo_store"):
        section.findings.problem(
            section.at("price_collar_bps"),
            "needs 'bbo_store', the store with the best bid and offer",
        )
    section.close()
    return limits
