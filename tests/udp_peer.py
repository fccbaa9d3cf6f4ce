"""One part of the end-to-end test of UDP, as a process: the sender, the path, the receiver.

    udp_peer.py send COUNT SESSION IP:PORT...       publishes COUNT records of each kind, then beats
    udp_peer.py path SEED IP:PORT TO_IP:TO_PORT     forwards with loss, duplication and reordering
    udp_peer.py receive COUNTERS PREFIX IP:PORT...  the gateway's `udp` module

Each prints one line when it is ready, and ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import socket
import sys

from k4.core import layout
from k4.core.clock import SystemClock
from k4.core.config import Address, ConnectionConfig, ReceiverStore, UdpReceiver, UdpTarget
from k4.core.counters import CountersWriter
from k4.core.enums import Kind, ProductType, Venue
from k4.core.records import AggTrade, Bookticker, Depth5, Record, Trade
from k4.core.testing.lossy import LossyPath
from k4.core.udp import UdpSender
from k4.md.relay import UdpModule

SYMBOL = "BTCUSDT"
PRODUCT = ProductType.U_MARGIN
BASE_US = 1_790_000_000_000_000


def record(kind: Kind, id: int) -> Record:
    """The record of `kind` with this id, every field a function of it."""
    us, price = BASE_US + id * 10, 100.0 + id
    five, counts = (price, 1.0, 2.0, 3.0, 4.0), (id, 2, 3, 4, 5)
    made: dict[Kind, Record] = {
        Kind.BOOKTICKER: Bookticker(SYMBOL, PRODUCT, us, us, id, price, 1, price, 2, 3, 4, us + 5),
        Kind.TRADE: Trade(SYMBOL, PRODUCT, us, us, id, price, 0.5, id % 2, us + 5),
        Kind.AGGTRADE: AggTrade(SYMBOL, PRODUCT, us, us, id, id, id, price, 0.5, 1, 0, us + 5),
        Kind.DEPTH5: Depth5(
            SYMBOL, PRODUCT, us, us, id, 5, 5, 0.0, five, five, five, five, counts, counts, us + 5
        ),
    }
    return made[kind]


def packed(kind: Kind, id: int) -> memoryview:
    return memoryview(layout.LAYOUTS[kind].pack(record(kind, id)))


def address(text: str) -> Address:
    ip, port = text.rsplit(":", 1)
    return Address(ip, int(port))


async def send(count: int, session: int, *targets: Address) -> None:
    paths = [UdpTarget(ip=to.ip, port=to.port, enabled=True) for to in targets]
    sender = UdpSender(paths, Venue.BINANCE, SystemClock(), session=session)
    sender.open()
    for id in range(1, count + 1):
        for kind in Kind:
            sender.publish(kind, PRODUCT, packed(kind, id))
        if id % 8 == 0:  # an event-loop turn, long enough for the slowest receiver
            await asyncio.sleep(0.001)
    sender.flush()
    print("sent", flush=True)
    await end_of_input()
    sender.close()


async def path(seed: int, listen: Address, to: Address) -> None:
    carrier = LossyPath(seed)
    loop = asyncio.get_running_loop()
    inbound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    inbound.bind((listen.ip, listen.port))
    inbound.setblocking(False)
    outbound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def forward() -> None:
        for datagram in carrier.carry(inbound.recv(65_536)):
            outbound.sendto(datagram, (to.ip, to.port))

    loop.add_reader(inbound.fileno(), forward)
    print("ready", flush=True)
    await end_of_input()
    loop.remove_reader(inbound.fileno())
    inbound.close()
    outbound.close()


async def receive(counters: str, prefix: str, *listen: Address) -> None:
    stores = ReceiverStore(
        exchange="binance",
        product_type=PRODUCT,
        section="",
        symbols=(SYMBOL,),
        stores={kind: prefix + kind.label for kind in Kind},
    )
    config = ConnectionConfig(
        exchange="udp",
        md_size=20_000,
        udp_receiver=UdpReceiver(listen=listen, stores=(stores,)),
    )
    writer = CountersWriter(counters)
    module = UdpModule(config, clock=SystemClock(), counters=writer)
    await module.prepare()
    module.start()
    print("ready", flush=True)
    await end_of_input()
    await module.stop()
    writer.close()


async def end_of_input() -> None:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    await reader.read()
    transport.close()


def main(role: str, *args: str) -> None:
    match role:
        case "send":
            asyncio.run(send(int(args[0]), int(args[1]), *map(address, args[2:])))
        case "path":
            asyncio.run(path(int(args[0]), address(args[1]), address(args[2])))
        case "receive":
            asyncio.run(receive(args[0], args[1], *map(address, args[2:])))


if __name__ == "__main__":
    main(*sys.argv[1:])
