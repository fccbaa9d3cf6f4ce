"""The two ends of the UDP channel: `udp_sender` and `udp_receiver`."""

from __future__ import annotations

import ipaddress
import itertools

from k4.core import wire
from k4.core.config import Address, ReceiverStore, UdpReceiver, UdpTarget
from k4.core.enums import Kind, ProductType
from k4.core.layout import LAYOUTS
from k4.core.loading.document import Section, Value, each, one_of
from k4.core.loading.products import stores
from k4.core.loading.schema import VENUES, market_data_plugins
from k4.core.loading.values import (
    address,
    by_name,
    cores,
    exchange,
    flag,
    integer,
    ip,
    mac_key,
    network,
    symbols,
    text,
)

MIN_MTU = wire.HEADER_SIZE + max(layout.size for layout in LAYOUTS.values()) + wire.TAG_SIZE
SECTIONS = ("spot", "ubase")
PRODUCT_TYPES = {member.name.replace("_", "").lower(): int(member) for member in ProductType}


def senders(value: Value) -> tuple[UdpTarget, ...]:
    """One target or a list of them."""
    found = each(value.items_or_self(), _target)
    if not found and value.raw == []:
        value.fail("lists no target")
    return tuple(found)


def _target(value: Value) -> UdpTarget:
    section = value.section()
    target = UdpTarget(
        ip=section.need("ip", by=ip, default=""),
        port=section.need("port", by=integer(1, 65_535), default=0),
        enabled=section.read("enabled", by=flag, default=False),
        cores=section.read("cpu_affinity", by=cores, default=()),
        mtu=section.read("mtu", by=integer(MIN_MTU, wire.MAX_UDP_PAYLOAD), default=1472),
        key=section.read("key", by=mac_key, default=None),
        multicast_ttl=section.read("multicast_ttl", by=integer(0, 255), default=1),
    )
    section.close()
    return target


def receiver(value: Value, prefix: str) -> UdpReceiver:
    """Everything of a receiver; warned about where anybody could feed it prices."""
    section = value.section()
    found = UdpReceiver(
        listen=_listen(section),
        stores=(*_original_stores(section, prefix), *_stores(section, prefix)),
        cores=section.read("recv_cpu_affinity", by=cores, default=()),
        multicast_interface=section.read("multicast_interface", by=text, default=""),
        allow_from=section.read("allow_from", by=_networks, default=()),
        key=section.read("key", by=mac_key, default=None),
    )
    section.close()
    if not any(key == "stores" or key.endswith(("_symbols", "_shm_name")) for key in section.raw):
        section.problem("fills no store: give spot_symbols, ubase_symbols or stores")
    _check_routes(section, found.stores)
    open_to_all = not found.allow_from and found.key is None
    if open_to_all and not all(_is_loopback(where.ip) for where in found.listen):
        section.findings.warn(
            section.path,
            "anybody who reaches this address can feed prices into the stores: "
            "set allow_from or key",
        )
    return found


def _listen(section: Section) -> tuple[Address, ...]:
    further = section.read("listen", by=lambda v: tuple(each(v.items(), address)), default=())
    own = section.has("ip", "port") or not section.has("listen")
    first: tuple[Address, ...] = ()
    if own:
        where = section.need("ip", by=ip, default="")
        first = (Address(where, section.need("port", by=integer(1, 65_535), default=0)),)
    section.ignore("ip", "port")
    found = first + further
    if len(set(found)) < len(found):
        section.findings.problem(section.at("listen"), "the same address stands here twice")
    if section.raw.get("listen") == [] and not own:
        section.findings.problem(section.at("listen"), "lists no address")
    return found


def _networks(value: Value) -> tuple[str, ...]:
    found = tuple(each(value.items(), network))
    if value.raw == []:
        value.fail("lists nobody, so nothing would be accepted")
    return found


def _original_stores(section: Section, prefix: str) -> list[ReceiverStore]:
    """The `spot_*` stores take product type 0, the `ubase_*` stores any other."""
    found: list[ReceiverStore] = []
    for name in SECTIONS:
        listed = section.read(f"{name}_symbols", by=symbols, default=())
        keys = {
            Kind.BOOKTICKER: (f"{name}_bbo_shm_name",),
            Kind.TRADE: (f"{name}_trade_shm_name",),
            Kind.AGGTRADE: (f"{name}_agg_shm_name", f"{name}_aggtrade_shm_name"),
            Kind.DEPTH5: (f"{name}_depth5_shm_name",),
        }
        names = stores(section, keys, prefix)
        if section.has(f"{name}_symbols") and not names:
            section.problem(f"{name}_symbols has no store: give {name}_bbo_shm_name or another")
        elif names and not section.has(f"{name}_symbols"):
            section.problem(f"{name}_symbols is missing, and {name} has a store")
        if listed and names:
            found.append(
                ReceiverStore(
                    exchange="",
                    product_type=None,
                    section=name,
                    symbols=listed,
                    stores=names,
                    path=section.path,
                )
            )
    return found


def _stores(section: Section, prefix: str) -> list[ReceiverStore]:
    def convert(value: Value) -> list[ReceiverStore]:
        items = value.items()
        if not items:
            value.fail("lists no store")
        return each(items, lambda item: _store(item, prefix))

    return section.read("stores", by=convert, default=[])


def _store(value: Value, prefix: str) -> ReceiverStore:
    section = value.section()
    source = section.need("exchange", by=exchange([*VENUES], market_data_plugins), default="")
    product_type = section.need(
        "product_type", by=by_name(PRODUCT_TYPES, max(ProductType)), default=0
    )
    keys = {
        Kind.BOOKTICKER: ("bbo_shm_name",),
        Kind.TRADE: ("trade_shm_name",),
        Kind.AGGTRADE: ("aggtrade_shm_name", "agg_shm_name"),
        Kind.DEPTH5: ("depth5_shm_name",),
    }
    listed = section.need("symbols", by=symbols, default=())
    before = len(section.findings.problems)
    names = stores(section, keys, prefix)
    if not names and len(section.findings.problems) == before:
        section.problem(f"names no store: give {one_of([key for key, *_ in keys.values()])}")
    section.close()
    return ReceiverStore(
        exchange=source,
        product_type=product_type,
        section="",
        symbols=listed,
        stores=names,
        path=section.path,
    )


def _check_routes(section: Section, entries: tuple[ReceiverStore, ...]) -> None:
    """A record must have one store to go to."""
    taken: dict[tuple[str, int | None, Kind, str], str] = {}
    for entry in (entry for entry in entries if entry.exchange):
        for kind, symbol in itertools.product(entry.stores, entry.symbols):
            route = (entry.exchange, entry.product_type, kind, symbol)
            first = taken.setdefault(route, entry.path)
            if first != entry.path:
                section.findings.problem(
                    entry.path, f"{kind.label} of {entry.exchange} {symbol} goes to {first} already"
                )


def _is_loopback(where: str) -> bool:
    return bool(where) and ipaddress.ip_address(where).is_loopback
