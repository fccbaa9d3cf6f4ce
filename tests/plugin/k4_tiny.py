"""Tiny Exchange: quotes and trades of its spot market, JSON over one WebSocket."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from k4.core.config import ConnectionConfig, ProductConfig
from k4.core.enums import Kind, ProductType
from k4.core.limits import Keepalive, Limits
from k4.md.feed import Ack, Channel, Exchange, Feed, Ids, Product, Refused, Reset, Sink, slot_of
from k4.md.figures import UNREADABLE, Amount, Id, Milliseconds, decoder, reason_of

URL = "wss://ws.tiny.example/v1"
LIMITS = Limits(connect_attempts=60, connect_period=60.0, messages=10, topics_per_connection=100)
Symbols = Mapping[tuple[str, str], str]  # (product, configured symbol) to the venue's
TOPICS = {Kind.BOOKTICKER: "quote", Kind.TRADE: "trade"}


class Message(msgspec.Struct, gc=False):
    """Any message of a topic: an answer (`event`), a quote or a trade. seq: counts by topic."""

    topic: str
    event: Literal["", "subscribed", "refused"] = ""
    why: str = ""
    seq: Id = 0
    ms: Milliseconds = 0
    bid: tuple[Amount, Amount] = (0.0, 0.0)
    ask: tuple[Amount, Amount] = (0.0, 0.0)
    price: Amount = 0.0
    size: Amount = 0.0
    taker: Literal["", "buy", "sell"] = ""


read = decoder(Message)


class TinySession:
    """One connection: frames in, values out."""

    def __init__(self, channels: Sequence[Channel]) -> None:
        self._channels = {channel.topic: channel for channel in channels}

    def receive(self, frame: bytes, received_ns: int, out: Sink) -> None:
        try:
            m = read(frame)
        except UNREADABLE as error:
            out.drop(reason_of(error))
            return
        channel, us = self._channels.get(m.topic), m.ms * 1000
        if m.event == "subscribed":
            out.control(Ack(topic=m.topic))
        elif m.event == "refused":
            out.control(Refused("", m.why, topic=m.topic))
        elif channel is None:
            out.drop("symbol")
        elif channel.kind is Kind.BOOKTICKER:
            out.bbo(channel.slot, m.seq, us, us, *m.bid, *m.ask, 0, 0)
        else:
            out.trade(channel.slot, m.seq, m.seq, us, us, m.price, m.size, m.taker == "sell")


def requests(op: str, channels: Sequence[Channel]) -> tuple[bytes, ...]:
    return (msgspec.json.encode({"op": op, "topics": [c.topic for c in channels]}),)


def feeds(config: ConnectionConfig, symbols: Symbols) -> list[Feed]:
    return [_feed(config, product, symbols) for product in config.products]


def _feed(config: ConnectionConfig, product: ProductConfig, symbols: Symbols) -> Feed:
    channels = tuple(
        Channel(
            slot=slot_of(index, kind),  # its place in the stores
            kind=kind,
            symbol=symbol,
            topic=f"{TOPICS[kind]}:{symbols[product.name, symbol]}",
            ids=Ids.NEWEST if kind is Kind.BOOKTICKER else Ids.CONSECUTIVE,
            reset=Reset.NEWER_TIME,
            owes_snapshot=kind is Kind.BOOKTICKER,
        )
        for index, symbol in enumerate(product.symbols)
        for kind in product.kinds
    )
    return Feed(
        name=f"tiny.{product.name}.json",
        group=f"tiny.{product.name}",  # all that writes one set of stores
        product_type=ProductType.SPOT,
        urls=config.endpoints.get("public", (URL,)),
        channels=channels,
        requests=requests,
        acks=len(channels),
        session=lambda: TinySession(channels),
        limits=LIMITS,
        lines=product.lines,
        keepalive=Keepalive(20.0),  # WebSocket pings
    )


def rule(symbol: str) -> str:
    """`BTCUSD` to `BTC/USD`."""
    return f"{symbol[:-3]}/{symbol[-3:]}"


SPOT = Product(name="spot", product_type=ProductType.SPOT, kinds=tuple(TOPICS), rule=rule)
EXCHANGE = Exchange(
    name="tiny", code=5, products=(SPOT,), endpoints={"public": URL}, limits=LIMITS, feeds=feeds
)
