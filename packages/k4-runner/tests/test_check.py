"""What `check` finds before anything is opened."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from k4.core.clock import SystemClock
from k4.core.errors import ConfigError
from k4.runner.check import check, memory, symbols

CONFIGS = Path(__file__).parents[3] / "config"


def write(folder: Path, *connections: dict[str, Any]) -> Path:
    file = folder / "c.json"
    file.write_text(json.dumps({"connections": list(connections)}))
    return file


def binance(**spot: Any) -> dict[str, Any]:
    return {"exchange": "binance", "spot": {"symbols": ["BTCUSDT"], "bbo_shm_name": "b", **spot}}


async def checked(file: Path) -> list[dict[str, Any]]:
    out = io.StringIO()
    await check(file, SystemClock(), out, io.StringIO(), offline=True, as_json=True)
    return [json.loads(line) for line in out.getvalue().splitlines()]


async def test_streams_name_worker_cores_urls_and_topics(tmp_path: Path) -> None:
    file = write(tmp_path, binance(cpu_affinity_conn=[0, 1], redun_conn_count=3))
    stream, store, _ = await checked(file)
    assert (stream["worker"], stream["cores"], stream["lines"]) == ("binance", [0, 1], 3)
    assert stream["urls"] == ["wss://stream.binance.com:9443/stream"]
    assert stream["channels"] == [
        {"kind": "bbo", "symbol": "BTCUSDT", "topic": "btcusdt@bookTicker"}
    ]
    assert (store["name"], store["kind"], store["slots"]) == ("b", "bbo", 100_000)


async def test_the_original_sample_means_three_streams(tmp_path: Path) -> None:
    rows = await checked(CONFIGS / "binance_md.json")
    assert [
        (row["name"], row["worker"], row["cores"]) for row in rows if row["type"] == "stream"
    ] == [
        ("binance.spot.json", "binance.spot", [0, 1, 2]),
        ("binance.ubase.public", "binance.ubase", [3, 4, 5]),
        ("binance.ubase.market", "binance.ubase", [3, 4, 5]),
    ]


async def test_a_receiver_is_shown_and_warned_about(tmp_path: Path) -> None:
    err = io.StringIO()
    out = io.StringIO()
    await check(CONFIGS / "udp_md.json", SystemClock(), out, err, offline=True, as_json=True)
    first = json.loads(out.getvalue().splitlines()[0])
    assert (first["type"], first["listen"], first["key"]) == ("receiver", ["0.0.0.0:9000"], False)
    assert "allow_from" in err.getvalue()


async def test_trading_is_shown_with_its_limits_and_without_its_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("K4_BINANCE_API_KEY", "the-key")
    monkeypatch.setenv("K4_BINANCE_SECRET_KEY", "the-secret")
    rows = await checked(CONFIGS / "binance_td.json")
    (row,) = (row for row in rows if row["type"] == "trading")
    assert (row["worker"], row["signs_with"]) == ("td.main", "hmac")
    assert row["socket"].endswith(".sock")
    spot, ubase = row["accounts"]
    assert (spot["rest_url"], spot["ws_url"]) == ("https://api.binance.com", "")
    assert ubase["ws_url"] == "wss://fstream.binance.com/private"
    assert spot["limits"]["max_order_qty"] == "0.01"
    out = io.StringIO()
    await check(CONFIGS / "binance_td.json", SystemClock(), out, io.StringIO(), offline=True)
    assert "limits: symbols BTCUSDT, max_order_qty 0.01" in out.getvalue()
    assert "the-" not in out.getvalue() + json.dumps(rows)
    assert [r["worker"] for r in rows if r["type"] == "stream"] == ["binance", "binance"]


async def test_problems_of_all_connections_come_together(tmp_path: Path) -> None:
    file = write(
        tmp_path, {**binance(), "exchange": "binanse"}, binance(bbo_shm_name="c", feed="x")
    )
    with pytest.raises(ConfigError) as caught:
        await checked(file)
    assert {problem.path.rpartition(".")[0] for problem in caught.value.problems} <= {
        "connections[0]",
        "connections[1].spot",
    }
    assert caught.value.problems


async def test_stores_that_do_not_fit_are_a_warning(tmp_path: Path) -> None:
    file = write(tmp_path, {**binance(), "md_size": 4_000_000_000})
    err = io.StringIO()
    await check(file, SystemClock(), io.StringIO(), err, offline=True)
    assert "/dev/shm lacks" in err.getvalue()


def test_memory_counts_what_is_there_already() -> None:
    row = memory([{"name": "none-such", "bytes": 1 << 60}])
    assert (row["needed"], row["held"]) == (1 << 60, 0)
    assert row["missing"] == (1 << 60) - row["free"]


async def test_symbols_say_where_their_mapping_comes_from(tmp_path: Path) -> None:
    connection = {**binance(), "metadata": "off"}
    out = io.StringIO()
    await symbols(write(tmp_path, connection), SystemClock(), out, as_json=True)
    assert json.loads(out.getvalue()) == {
        "type": "symbol",
        "exchange": "binance",
        "product": "spot",
        "symbol": "BTCUSDT",
        "venue_symbol": "BTCUSDT",
        "tick": "",
        "lot": "",
        "contract_value": "",
        "source": "rule",
        "date": "",
    }
