"""k4-core and k4-md alone: they import, and `k4.md.connect` delivers, without anything else."""

import asyncio
import importlib.metadata
import importlib.util
import json

from websockets.asyncio.server import ServerConnection, serve

import k4.md

ABSENT = ("k4.td", "k4.runner", "picows", "uvloop", "typer", "rich", "nacl", "cryptography")
UPDATES = 100


async def venue(line: ServerConnection) -> None:
    """As much of Binance's spot stream as one subscription needs."""
    request = json.loads(await line.recv())
    await line.send(json.dumps({"result": None, "id": request["id"]}))
    for update in range(1, UPDATES + 1):
        quote = {"u": update, "s": "BTCUSDT", "b": "100.1", "B": "1", "a": "100.2", "A": "2"}
        await line.send(json.dumps({"stream": "btcusdt@bookTicker", "data": quote}))
    await line.wait_closed()


async def main() -> None:
    async with serve(venue, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        newest = 0
        async with k4.md.connect(
            "binance",
            spot=["BTCUSDT"],
            channels=["bbo"],
            lines=2,
            endpoints={"spot": f"ws://127.0.0.1:{port}/stream"},
        ) as feed:
            async for record in feed:
                assert record.update_id > newest, "backward id"
                assert (record.bid_price, record.ask_price) == (100.1, 100.2)
                newest = record.update_id
                if newest == UPDATES:
                    break


for name in ABSENT:
    assert importlib.util.find_spec(name) is None, f"{name} is installed"
asyncio.run(asyncio.wait_for(main(), 30))
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("k4-core", "k4-md")), "deliver")
