"""A trading process that a test kills: it places, cancels and amends orders until it dies.

python trading_child.py PORT JOURNAL ACCOUNT SEED
"""

from __future__ import annotations

import asyncio
import random
import sys
from decimal import Decimal
from pathlib import Path

from td_setup import SHORT_WINDOW, TIMING, config, order
from td_venue import FakeVenue

from k4.core.trading import OrderError
from k4.td import TdModule


async def main(port: int, journal: str, account: str, seed: int) -> None:
    addresses = FakeVenue()
    addresses.port = port
    settings = config(
        addresses, Path(journal).parent, (account,), journal=journal, recv_window=SHORT_WINDOW
    )
    module = TdModule(settings, timing=TIMING)
    await module.login(20.0)
    rng = random.Random(seed)
    open_ids: list[str] = []
    while True:
        try:
            step = rng.random()
            if step < 0.6 or not open_ids:
                price = Decimal(rng.choice([90, 95, 101]))  # the last one fills at once
                update = await module.insert_order(order(account, price=price))
                if not update.status.final:
                    open_ids.append(update.client_order_id)
            elif step < 0.8:
                await module.cancel_order(open_ids.pop(rng.randrange(len(open_ids))))
            else:
                key = rng.choice(open_ids)
                await module.amend_order(key, quantity=Decimal(rng.choice(["0.08", "0.09"])))
        except OrderError:
            await asyncio.sleep(0.005)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])))
