"""One entry of `connections`: the settings of an exchange's connection, then its products."""

from __future__ import annotations

from functools import partial

import msgspec

from k4.core.config import ConnectionConfig, ProductConfig
from k4.core.loading.channels import receiver, senders
from k4.core.loading.document import Section, Value, one_of
from k4.core.loading.products import Setting, products
from k4.core.loading.schema import ALL_KINDS, SECTIONS, UDP, VENUES, market_data_plugins
from k4.core.loading.values import (
    choice,
    flag,
    integer,
    module_name,
    number,
    path_exists,
    shm_mode,
    store_name,
    text,
    urls,
)
from k4.core.loading.values import (
    exchange as exchange_name,
)

U32_MAX = (1 << 32) - 1
HOUR = 3600.0
DAY = 24 * HOUR

Endpoints = dict[str, tuple[str, ...]]


def logging(section: Section, name: str, log_path: str) -> tuple[str, str]:
    """`RazorTrade {module_name, log_path}` of a file or of a connection; the defaults given."""

    def convert(value: Value) -> tuple[str, str]:
        inner = value.section()
        found = (
            inner.read("module_name", by=module_name, default=name),
            inner.read("log_path", by=text, default=log_path),
        )
        inner.close()
        return found

    return section.read("RazorTrade", by=convert, default=(name, log_path))


def connection(value: Value, name: str, log_path: str) -> ConnectionConfig:
    """The whole entry. name, log_path: the file's, where the entry has none of its own."""
    section = value.section()
    name, log_path = logging(section, name, log_path)
    known = exchange_name([*VENUES, UDP], market_data_plugins)
    exchange = section.need("exchange", by=known, default="")
    prefix = section.read("shm_prefix", by=store_name, default="")
    config = _settings(section, exchange, name, log_path)
    setting = Setting(
        exchange=exchange,
        kinds=VENUES[exchange].kinds if exchange in VENUES else ALL_KINDS,
        prefix=prefix,
        endpoints=config.endpoints,
    )
    return _with_products(section, config, setting)


def _settings(section: Section, exchange: str, name: str, log_path: str) -> ConnectionConfig:
    section.ignore("lib_path")
    read = section.read
    return ConnectionConfig(
        exchange=exchange,
        path=section.path,
        module_name=name,
        log_path=log_path,
        md_size=read("md_size", "shm_block_num", by=integer(2, U32_MAX), default=100_000),
        shm_mode=read("shm_mode", by=shm_mode, default=0o600),
        hb_interval_sec=read("hb_interval_sec", by=number(0, DAY), default=30.0),
        ping_interval_sec=read("ping_interval_sec", by=number(0, DAY), default=None),
        redun_reset_on_hb=read("redun_reset_on_hb", by=flag, default=False),
        redun_reset_on_threshold=read(
            "redun_reset_on_threshold", by=integer(0, U32_MAX), default=0
        ),
        latency_print_interval_ms=read(
            "latency_print_interval_ms", by=integer(0, U32_MAX), default=0
        ),
        stall_timeout_sec=read("stall_timeout_sec", by=number(0, HOUR), default=10.0),
        busy_poll=read("busy_poll", by=flag, default=False),
        transport=read("transport", by=choice("auto", "picows", "websockets"), default="auto"),
        metadata=read("metadata", by=choice("auto", "off"), default="auto"),
        ca_file=read("ca_file", by=path_exists, default=""),
        max_frame_bytes=read("max_frame_bytes", by=integer(1, 1 << 30), default=1 << 20),
        endpoints=_endpoints(section, exchange),
        udp_sender=read("udp_sender", by=senders, default=()),
    )


def _endpoints(section: Section, exchange: str) -> Endpoints:
    if exchange == UDP:
        section.refuse("endpoints", "exchange udp asks no venue, so it has no endpoints")
        return {}
    if not exchange:
        section.ignore("endpoints")
        return {}

    def convert(value: Value) -> Endpoints:
        inner = value.section()
        found: Endpoints = {}
        for key in VENUES[exchange].endpoints if exchange in VENUES else tuple(inner.raw):
            schemes = ("http", "https") if key == "rest" else ("ws", "wss")
            given = inner.read(key, by=urls(*schemes), default=())
            if given:
                found[key] = given
        inner.close()
        return found

    return section.read("endpoints", by=convert, default={})


def _with_products(
    section: Section, config: ConnectionConfig, setting: Setting
) -> ConnectionConfig:
    if config.exchange == UDP:
        received = section.need(
            "udp_receiver", by=lambda v: receiver(v, setting.prefix), default=None
        )
        config = msgspec.structs.replace(config, udp_receiver=received)
        for name in SECTIONS:
            section.refuse(name, "exchange udp has no products; its stores are in udp_receiver")
        if any(target.enabled for target in config.udp_sender):
            section.refuse("udp_sender", "exchange udp receives; it does not send on")
    elif config.exchange:
        section.refuse("udp_receiver", 'needs "exchange": "udp"')
        found = _products(section, config.exchange, setting)
        config = msgspec.structs.replace(config, products=tuple(found))
    else:
        section.ignore("udp_receiver", *SECTIONS)
    section.close()
    return config


def _products(section: Section, exchange: str, setting: Setting) -> list[ProductConfig]:
    names = dict(VENUES[exchange].sections) if exchange in VENUES else {}
    if not names:  # a plug-in: every object that means nothing else is a product of its own name
        names = {key: key for key in section.unread() if isinstance(section.raw[key], dict)}
    for name in SECTIONS:
        if name not in names and exchange in VENUES:
            section.refuse(name, f"{exchange} has no section {name!r}; it has {one_of([*names])}")
    for name, product in names.items():
        if product not in names:
            section.refuse(product, f"is the section {name!r} here")
    given = [name for name in section.raw if name in names]
    if not given:
        wanted = f": give {one_of([*names])}" if names else ""
        section.problem(f"has no product section, so it would do nothing{wanted}")
    section.ignore(*names)
    found: list[ProductConfig] = []
    for name in given:
        read = partial(_section_products, names[name], setting)
        found += section.read(name, by=read, default=[])
    return found


def _section_products(name: str, setting: Setting, value: Value) -> list[ProductConfig]:
    return products(value.section(), name, setting)
