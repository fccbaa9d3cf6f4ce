"""What redundancy buys is measured right: the account of ports against the law of the delays.

N lines bring every update after independent exponential delays of rate l. The first copy wins; the
minimum of the N-1 remaining delays is then exponential with rate (N-1) l, whoever won and whenever
(no memory). So the waits must have mean 1/((N-1) l), median ln 2 and 99th percentile ln 100 of it.
"""

from __future__ import annotations

from math import log, sqrt

import numpy as np
import pytest

from k4.core.enums import Kind
from k4.core.latency import Histogram
from k4.core.limits import Limits
from k4.core.ring import RingWriter
from k4.md.arbiter import Arbiter
from k4.md.feed import Channel, Ids, Reset
from k4.md.port import Port

UPDATES = 500_000
MEAN_NS = 10_000_000
SPACING_NS = 2_000_000_000  # an update has arrived everywhere before the next is made
START = 1_790_000_000_000_000_000


def arbiter_of(lines: int) -> tuple[Arbiter, list[Port]]:
    channel = Channel(
        slot=Kind.TRADE,
        kind=Kind.TRADE,
        symbol="BTCUSDT",
        topic="btcusdt@trade",
        ids=Ids.CONSECUTIVE,
        reset=Reset.SILENCE,
    )
    arbiter = Arbiter(
        product_type=0,
        symbols=["BTCUSDT"],
        channels=[channel],
        rings={Kind.TRADE: RingWriter.in_memory(Kind.TRADE, ["BTCUSDT"], 16)},
        limits=Limits(),
        shared=True,
        now_ns=START,
    )
    ports = [arbiter.port(f"line{i}", lambda event: None) for i in range(lines)]
    for port in ports:
        port.serving_ns = START
    return arbiter, ports


def bring(ports: list[Port], delays: np.ndarray, lost: np.ndarray | None = None) -> None:
    """Every update to every line in the order of arrival; `lost` marks copies that never come."""
    order = np.argsort(delays, axis=1).tolist()
    arrivals = delays.astype(np.int64)
    arrivals += START + 1 + np.arange(len(delays))[:, None] * SPACING_NS
    gone = lost.tolist() if lost is not None else None
    for id, (turns, times) in enumerate(zip(order, arrivals.tolist(), strict=True), 1):
        for line in turns:
            if gone is None or not gone[id - 1][line]:
                port = ports[line]
                port.now = times[line]
                us = times[line] // 1000
                port.trade(Kind.TRADE, id, id, us, us, 1.0, 1.0, False)


@pytest.mark.parametrize("lines", [2, 4])
def test_the_wait_until_the_second_copy_is_exponential(lines: int) -> None:
    rng = np.random.default_rng(lines)
    arbiter, ports = arbiter_of(lines)
    bring(ports, rng.exponential(MEAN_NS, (UPDATES, lines)))
    arbiter.tick(START + (UPDATES + 100) * SPACING_NS)

    waits = Histogram()
    for port in ports:
        waits.merge(port.wait)
    found, mean = waits.summary(), MEAN_NS / (lines - 1)
    assert found.count == UPDATES
    assert found.mean == pytest.approx(mean, rel=0.01)
    assert found.p50 == pytest.approx(mean * log(2), rel=0.01)
    assert found.p99 == pytest.approx(mean * log(100), rel=0.02)

    share = 1 / lines
    error = sqrt(share * (1 - share) / UPDATES)
    assert sum(port.wins for port in ports) == UPDATES
    for port in ports:
        assert port.wins / UPDATES == pytest.approx(share, abs=5 * error)
        assert port.wait.mean == pytest.approx(mean, rel=0.02)
        assert port.lag.count == UPDATES - port.wins
        assert (port.missed, port.alone) == (0, 0)


def test_what_only_one_line_brought_is_counted_with_loss() -> None:
    lines, updates = 3, 100_000
    rng = np.random.default_rng(7)
    lost = rng.random((updates, lines)) < 0.2
    arbiter, ports = arbiter_of(lines)
    bring(ports, rng.exponential(MEAN_NS, (updates, lines)), lost)
    arbiter.tick(START + (updates + 100) * SPACING_NS)

    came = ~lost
    copies = came.sum(axis=1)
    for line, port in enumerate(ports):
        assert port.alone == int((came[:, line] & (copies == 1)).sum())
        assert port.missed == int((lost[:, line] & (copies > 0)).sum())
        assert port.duplicates + port.wins == int(came[:, line].sum())
    assert sum(port.wins for port in ports) == int((copies > 0).sum())
    assert sum(port.wait.count for port in ports) == int((copies > 1).sum())
    gaps = arbiter.live_slots()[0].gaps
    assert gaps is not None
    inner = copies[np.argmax(copies > 0) : len(copies) - np.argmax(copies[::-1] > 0)]
    assert gaps.lost == int((inner == 0).sum())
