"""The configuration as values: what a loaded file means, with every alias and default resolved.

`k4.core.loading.load` makes a `Config` from the JSON file or raises one `ConfigError` with all
that is wrong. Nothing here opens, asks or guesses.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from k4.core.enums import Kind
from k4.core.errors import Problem


class Secret:
    """A secret's text that never shows itself: not in repr, str, logs or serialized forms."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The secret itself; call it where the bytes leave, nowhere else."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(***)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


class Address(msgspec.Struct, frozen=True):
    ip: str
    port: int


class UdpTarget(msgspec.Struct, frozen=True, kw_only=True):
    """One target of a sender. mtu: bytes of a datagram, tag included. cores: `cpu_affinity`; the
    sender runs on its worker's thread, so these add to the cores that the worker may use.
    """

    ip: str
    port: int
    enabled: bool = False
    cores: tuple[int, ...] = ()
    mtu: int = 1472
    key: Secret | None = None
    multicast_ttl: int = 1


class ReceiverStore(msgspec.Struct, frozen=True, kw_only=True):
    """Stores that a receiver fills. exchange '' and product_type None: the original's split, in
    which `spot` takes product type 0 and `ubase` any other (`section` says which)."""

    exchange: str
    product_type: int | None
    section: str  # "spot", "ubase", or "" for an entry of `stores`
    symbols: tuple[str, ...]
    stores: Mapping[Kind, str]
    path: str = ""


class UdpReceiver(msgspec.Struct, frozen=True, kw_only=True):
    """listen: at least one address. cores: `recv_cpu_affinity`. allow_from: addresses or networks
    in CIDR form. multicast_interface: an address or the name of an interface.
    """

    listen: tuple[Address, ...]
    stores: tuple[ReceiverStore, ...]
    cores: tuple[int, ...] = ()
    multicast_interface: str = ""
    allow_from: tuple[str, ...] = ()
    key: Secret | None = None


class ProductConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One product of a connection: one group of stores.

    name: canonical (`spot`, `ubase`, `cbase`, `swap`, `linear`, `inverse`, `futures`,
    `usdc_futures`, `coin_futures`). lines: redundant lines per stream. cores: where its worker may
    run, empty for anywhere. stores: store name by kind, prefix included; empty for in-process use.
    path: where it stands in the file; symbols_path: where its list of symbols does.
    """

    name: str
    symbols: tuple[str, ...]
    lines: int = 1
    cores: tuple[int, ...] = ()
    stores: Mapping[Kind, str] = {}
    kinds: tuple[Kind, ...] = ()
    headers: Mapping[str, str | Secret] = {}
    feed: str = "auto"  # Binance spot: auto, json, sbe, both
    trades_channel: str = "trades"  # OKX: trades, trades-all
    path: str = ""
    symbols_path: str = ""


class ConnectionConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of `connections`."""

    exchange: str
    products: tuple[ProductConfig, ...] = ()
    path: str = "connections[0]"
    module_name: str = ""
    log_path: str = ""
    md_size: int = 100_000
    shm_mode: int = 0o600
    hb_interval_sec: float = 30.0
    ping_interval_sec: float | None = None  # None: the venue's own
    redun_reset_on_hb: bool = False
    redun_reset_on_threshold: int = 0  # messages; 0 is off
    latency_print_interval_ms: int = 0  # 0 is off
    stall_timeout_sec: float = 10.0
    busy_poll: bool = False
    transport: str = "auto"  # auto, picows, websockets
    metadata: str = "auto"  # auto, off
    ca_file: str = ""
    max_frame_bytes: int = 1 << 20
    endpoints: Mapping[str, tuple[str, ...]] = {}  # overrides only
    udp_sender: tuple[UdpTarget, ...] = ()
    udp_receiver: UdpReceiver | None = None


class RiskLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one account, as decimal text in the venue's unit; '' or 0 where none is set.

    max_bbo_age_ms: always set where `bbo_store` is (1000 unless the file says otherwise), so that
    no collar trusts a price of any age.
    """

    symbols: tuple[str, ...] = ()
    max_order_qty: str = ""
    max_order_notional: str = ""
    max_position: str = ""
    max_open_orders: int = 0
    max_orders_per_sec: float = 0.0
    price_collar_bps: float = 0.0
    bbo_store: str = ""
    max_bbo_age_ms: float = 0.0


class TradingConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of `trading`. accounts: which of spot, ubase, cbase are enabled."""

    exchange: str
    name: str
    journal: str
    path: str = "trading[0]"
    api_key: Secret | None = None
    secret_key: Secret | None = None
    ed25519_key_path: str = ""
    rsa_key_path: str = ""
    accounts: tuple[str, ...] = ()
    rest_url: Mapping[str, str] = {}  # by account
    ws_api_url: Mapping[str, str] = {}  # by account
    ws_url: Mapping[str, str] = {}  # ubase, cbase: user data
    recv_window: float = 5000.0
    listen_key_refresh_secs: float = 1800.0
    socket: str = ""
    cancel_on_disconnect: bool = False
    journal_sync: str = "process"  # process, full
    risk: Mapping[str, RiskLimits] = {}  # by account
    kill_file: str = ""


class MetricsConfig(msgspec.Struct, frozen=True):
    ip: str
    port: int


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """A whole file. processes: per-connection, per-stream or single. warnings: what is accepted
    and had better be changed; log them at start.
    """

    path: str = ""
    module_name: str = "k4"
    log_path: str = ""
    processes: str = "per-connection"
    metrics: MetricsConfig | None = None
    connections: tuple[ConnectionConfig, ...] = ()
    trading: tuple[TradingConfig, ...] = ()
    warnings: tuple[Problem, ...] = ()
