"""Which groups share a worker, and what a worker may use."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from k4.core.config import Config, Secret
from k4.core.errors import ConfigError
from k4.core.loading import parse
from k4.runner.compose import counters_name, plan, secrets
from k4.runner.control import WorkerPlan


def binance(**more: Any) -> dict[str, Any]:
    return {
        "exchange": "binance",
        "spot": {"symbols": ["BTCUSDT"], "bbo_shm_name": "s", **more.pop("spot", {})},
        "futures": {
            "ubase_symbols": ["BTCUSDT"],
            "cbase_symbols": ["BTCUSD_PERP"],
            "bbo_shm_name": "u",
            "cbase_bbo_shm_name": "c",
            **more.pop("futures", {}),
        },
        **more,
    }


def planned(*connections: dict[str, Any], processes: str = "per-connection") -> list[WorkerPlan]:
    file = {
        "RazorTrade": {"module_name": "md"},
        "runtime": {"processes": processes},
        "connections": list(connections),
    }
    return plan(parse(json.dumps(file).encode()))


def groups(workers: list[WorkerPlan]) -> dict[str, list[tuple[str, ...]]]:
    return {worker.name: [part.products for part in worker.parts] for worker in workers}


def test_a_connection_is_one_worker() -> None:
    assert groups(planned(binance())) == {"binance": [("spot", "ubase", "cbase")]}


def test_groups_with_other_cores_get_their_own() -> None:
    workers = planned(
        binance(
            spot={"cpu_affinity_conn": [0, 1], "cpu_affinity_dedup": 2},
            futures={"cpu_affinity": [3]},
        )
    )
    assert groups(workers) == {
        "binance.spot": [("spot",)],
        "binance.ubase-cbase": [("ubase", "cbase")],
    }
    assert [worker.cores for worker in workers] == [(0, 1, 2), (3,)]


def test_groups_with_the_same_cores_stay_together() -> None:
    workers = planned(binance(spot={"cpu_affinity": [1]}, futures={"cpu_affinity": [1]}))
    assert groups(workers) == {"binance": [("spot", "ubase", "cbase")]}
    assert workers[0].cores == (1,)


def test_per_stream_gives_every_group_a_worker() -> None:
    workers = planned(binance(busy_poll=True), processes="per-stream")
    assert list(groups(workers)) == ["binance.spot", "binance.ubase", "binance.cbase"]
    assert all(worker.busy_poll for worker in workers)


def test_single_takes_everything_into_one_with_all_cores() -> None:
    other = binance(shm_prefix="x_", spot={"cpu_affinity": [5]}, busy_poll=True)
    (worker,) = planned(binance(spot={"cpu_affinity": [0]}), other, processes="single")
    assert worker.name == "md"
    assert [(part.index, part.products) for part in worker.parts] == [
        (0, ("spot",)),
        (0, ("ubase", "cbase")),
        (1, ("spot",)),
        (1, ("ubase", "cbase")),
    ]
    assert (worker.cores, worker.busy_poll) == ((0, 5), True)


def test_two_connections_of_one_exchange_have_two_names() -> None:
    workers = planned(binance(), binance(shm_prefix="x_"))
    assert [worker.name for worker in workers] == ["binance", "binance.2"]


def test_a_receiver_is_a_worker_with_its_core() -> None:
    receiver = {
        "exchange": "udp",
        "udp_receiver": {
            "ip": "127.0.0.1",
            "port": 9000,
            "recv_cpu_affinity": 7,
            "spot_symbols": ["BTCUSDT"],
            "spot_bbo_shm_name": "r",
        },
    }
    (worker,) = planned(receiver)
    assert (worker.parts[0].role, worker.cores) == ("udp", (7,))


def test_the_cores_of_a_sender_are_its_workers() -> None:
    sender = {"ip": "127.0.0.1", "port": 9000, "cpu_affinity": 6}
    spot = {"cpu_affinity": [1]}
    on = planned(binance(spot=spot, udp_sender={**sender, "enabled": True}))
    off = planned(binance(spot=spot, udp_sender=sender))
    assert [worker.cores for worker in on] == [(1, 6), (6,)]
    assert [worker.cores for worker in off] == [(1,), ()]


def account(name: str, **more: Any) -> dict[str, Any]:
    key = {"env": "K4_TEST_KEY"}
    return {
        "exchange": "binance",
        "name": name,
        "journal": f"{name}.db",
        "spot_enabled": True,
        "api_key": key,
        "secret_key": key,
        **more,
    }


def with_trading(*accounts: dict[str, Any], processes: str = "per-connection") -> Config:
    file = {
        "RazorTrade": {"module_name": "all"},
        "runtime": {"processes": processes},
        "connections": [binance()],
        "trading": list(accounts),
    }
    return parse(json.dumps(file).encode())


def test_a_trading_entry_is_a_worker_that_starts_after_market_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("K4_TEST_KEY", "s3cret")
    workers = plan(with_trading(account("a"), account("b")))
    assert [worker.name for worker in workers] == ["binance", "td.a", "td.b"]
    assert [(part.role, part.index) for worker in workers[1:] for part in worker.parts] == [
        ("td", 0),
        ("td", 1),
    ]
    (one,) = plan(with_trading(account("a"), processes="single"))
    assert [part.role for part in one.parts] == ["md", "td"]


def test_a_venue_that_cannot_be_traded_on_is_a_problem_of_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("K4_TEST_KEY", "s3cret")
    config = with_trading(account("a"))
    elsewhere = msgspec.structs.replace(config.trading[0], exchange="nowhere")
    with pytest.raises(ConfigError) as caught:
        plan(msgspec.structs.replace(config, trading=(elsewhere,)))
    assert [problem.path for problem in caught.value.problems] == ["trading[0].exchange"]


def test_an_exchange_that_is_not_installed_is_a_problem_of_the_file() -> None:
    with pytest.raises(ConfigError) as caught:
        planned(binance(), {**binance(shm_prefix="x_"), "exchange": "nowhere"})
    assert [problem.path for problem in caught.value.problems] == ["connections[1].exchange"]


def test_secrets_are_found_wherever_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K4_TEST_KEY", "s3cret")
    headers = {"extra_headers": {"X-MBX-APIKEY": {"env": "K4_TEST_KEY"}}}
    config = parse(json.dumps({"connections": [binance(spot=headers)]}).encode())
    assert list(secrets(config)) == [Secret("s3cret")]


def test_counters_have_names_that_a_file_can_have() -> None:
    assert counters_name("md", "ex/cha nge.spot") == "md.ex_cha_nge.spot"
