"""An exchange from another distribution: nothing but an entry point joins it to K4.

`plugin/` is built to a wheel and installed into a folder of its own; its codec is what the README
shows. The commands find it by the entry point alone.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from plain_gateway import RUNNER, gateway, remove
from plain_reader import read_store
from plain_venue import Client, PlainVenue, ws_frame

from k4.core.config import ConnectionConfig, ProductConfig
from k4.md.exchanges import find
from k4.md.feed import Ack, Refused
from k4.md.sinks import CollectingSink

ROOT = Path(__file__).parents[1]
PLUGIN = ROOT / "tests" / "plugin"
CONTROL = {"ack": Ack, "refused": Refused}
QUOTES, TRADES = 5000, 3000


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which pip installed the plug-in."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(PLUGIN, folder / "source")
    offline = ["--no-index", "--no-build-isolation", "--no-deps"]
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    target = ["--target", str(folder / "site"), str(folder / "source")]
    subprocess.run([*pip, *offline, *target], check=True)
    return folder / "site"


def configuration(**connection: object) -> dict[str, object]:
    names = {f"{kind}_shm_name": f"plugin_{os.getpid()}_{kind}" for kind in ("bbo", "trade")}
    spot = {"symbols": ["BTCUSD", "ETHUSD"], **names}
    return {"exchange": "tiny", "md_size": 8192, "spot": spot, **connection}


def check(folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    file = folder / "tiny.json"
    file.write_text(json.dumps({"connections": [configuration()]}))
    command = [str(RUNNER), "check", str(file), "--json"]
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True)


def test_the_readme_shows_the_plugin_as_it_is() -> None:
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    assert ("python", (PLUGIN / "k4_tiny.py").read_text()) in blocks
    assert ("toml", (PLUGIN / "pyproject.toml").read_text()) in blocks


def test_the_plugin_says_what_its_vectors_say(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(site))
    exchange = find("tiny")
    (product,) = exchange.products
    cases: list[dict[str, Any]] = json.loads((PLUGIN / "vectors.json").read_text())
    for case in cases:
        symbols = tuple(case["symbols"])
        wanted = ProductConfig(name=product.name, symbols=symbols, kinds=product.kinds)
        config = ConnectionConfig(exchange="tiny", products=(wanted,))
        (feed,) = exchange.feeds(config, {(product.name, s): product.rule(s) for s in symbols})
        assert feed.name == case["feed"]
        session, sink = feed.session(), CollectingSink.of(feed)
        for frame in case["frames"]:
            session.receive(frame.encode(), 0, sink)
        assert len(sink.records) == len(case.get("records", []))
        for record, entry in zip(sink.records, case.get("records", []), strict=True):
            for name, value in entry.items():
                if name != "kind":
                    figure = getattr(record, name)
                    assert figure == (float(Decimal(value)) if isinstance(figure, float) else value)
        assert sink.controls == [
            CONTROL[entry.pop("type")](**entry) for entry in case.get("control", [])
        ]
        assert sink.drops == case.get("drops", [])


def test_check_knows_the_exchange_where_its_distribution_is(site: Path, tmp_path: Path) -> None:
    missing = check(tmp_path, {})
    assert missing.returncode == 2
    assert 'not "tiny"' in missing.stderr
    found = check(tmp_path, {"PYTHONPATH": str(site)})
    assert found.returncode == 0, found.stderr
    rows = [json.loads(line) for line in found.stdout.splitlines()]
    (stream,) = (row for row in rows if row["type"] == "stream")
    assert stream["name"] == "tiny.spot.json"
    assert stream["urls"] == ["wss://ws.tiny.example/v1"]
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("k4-tiny")  # it is nowhere else


def answer(client: Client, text: bytes) -> list[bytes]:
    request = json.loads(text)
    assert request["op"] == "subscribe"
    client.topics += request["topics"]
    answers = [{"topic": topic, "event": "subscribed"} for topic in request["topics"]]
    return [json.dumps(message).encode() for message in answers]


def seq(i: int) -> int:
    return 2**53 + 2 * i + 1


def quote(topic: str, i: int) -> dict[str, object]:
    sides = {"bid": [f"{60_000 + i}.25", f"{i}.125"], "ask": [f"{60_001 + i}.5", "0.30"]}
    return {"topic": topic, "seq": seq(i), "ms": 1_790_000_000_000 + i, **sides}


def trade(topic: str, i: int) -> dict[str, object]:
    deal = {"price": f"{60_000 + i}.1", "size": f"0.{i + 1:05d}", "taker": ("buy", "sell")[i % 2]}
    return {"topic": topic, "seq": 700 + i, "ms": 1_790_000_000_000 + i, **deal}


def test_run_fills_its_stores(site: Path, tmp_path: Path) -> None:
    done = threading.Semaphore(0)

    def feed(client: Client) -> None:
        for topic in client.topics:
            make, count = (quote, QUOTES) if topic.startswith("quote") else (trade, TRADES)
            frames = [ws_frame(json.dumps(make(topic, i)).encode()) for i in range(count)]
            client.send(b"".join(frames + frames[-10:]))
        client.settle()
        done.release()

    venue = PlainVenue(feed, answer)
    stores = [f"plugin_{os.getpid()}_{kind}" for kind in ("bbo", "trade")]
    try:
        connection = configuration(endpoints={"public": venue.url("/v1")})
        with gateway(tmp_path, connection, {"PYTHONPATH": str(site)}) as receipts:
            assert done.acquire(timeout=60)
        bbo, trades = map(read_store, stores)
        assert [i.symbol for i in bbo] == [i.symbol for i in trades] == ["BTCUSD", "ETHUSD"]
        for quotes, deals in zip(bbo, trades, strict=True):
            head = (quotes.symbol.encode().ljust(32, b"\0"), 0)
            times = [(1_790_000_000_000 + i) * 1000 for i in range(QUOTES)]
            assert [record[:-1] for record in quotes.records] == [
                (*head, us, us, seq(i), i + 60_000.25, i + 0.125, i + 60_001.5, 0.3, 0, 0)
                for i, us in enumerate(times)
            ]
            assert [record[:-1] for record in deals.records] == [
                (*head, us, us, 700 + i, float(Decimal(f"{60_000 + i}.1")), (i + 1) / 1e5, i % 2)
                for i, us in enumerate(times[:TRADES])
            ]
        (receipt,) = receipts
        assert receipt["name"] == "tiny.spot.json"
        assert receipt["published"] == 2 * (QUOTES + TRADES)
        assert (receipt["duplicates"], receipt["stale"]) == (2 * (10 + 1), 2 * 9)
    finally:
        venue.close()
        remove(stores)
