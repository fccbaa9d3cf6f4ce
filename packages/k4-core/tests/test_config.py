"""The configuration: what a file means, and every way in which it can be wrong, all at once."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from k4.core.config import Address, Config, ProductConfig, Secret
from k4.core.enums import Kind
from k4.core.errors import ConfigError
from k4.core.loading import load, parse

SAMPLES = Path(__file__).parents[3] / "config"
ORIGINALS = ["binance_md", "bitget_md", "bybit_md", "okx_md", "udp_md"]
KEY = "vmPUZE6mv9SD5VNHk4HlWFsOr6aKE2zvsw0MuIgwCIPy6utIco14y7Ju91duEh8A"

SPOT: dict[str, Any] = {"symbols": ["BTCUSDT", "ETHUSDT"], "bbo_shm_name": "spot_bbo"}
RECEIVER: dict[str, Any] = {
    "ip": "127.0.0.1",
    "port": 9000,
    "spot_symbols": ["BTCUSDT"],
    "spot_bbo_shm_name": "udp_bbo",
}
TRADING: dict[str, Any] = {
    "exchange": "binance",
    "api_key": {"env": "K4_TEST_KEY"},
    "secret_key": {"env": "K4_TEST_KEY"},
    "spot_enabled": True,
    "journal": "/tmp/k4.journal",
    "risk": {"spot": {"max_order_qty": "1"}},
}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K4_TEST_KEY", KEY)
    for name in ("K4_UDP_KEY", "K4_BINANCE_SBE_KEY", "K4_BINANCE_API_KEY", "K4_BINANCE_SECRET_KEY"):
        monkeypatch.setenv(name, KEY)


def read(document: Any) -> Config:
    return parse(json.dumps(document).encode())


def problems(document: Any) -> list[str]:
    """What is wrong with a document (or with bytes), as text."""
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    with pytest.raises(ConfigError) as caught:
        parse(data)
    return [str(problem) for problem in caught.value.problems]


def spot(**changes: Any) -> dict[str, Any]:
    """A file with one product: Binance spot."""
    return connection(spot={**SPOT, **changes})


def connection(**keys: Any) -> dict[str, Any]:
    return {"connections": [{"exchange": "binance", **keys}]}


def receiver(**changes: Any) -> dict[str, Any]:
    return {"connections": [{"exchange": "udp", "udp_receiver": {**RECEIVER, **changes}}]}


def trading(**changes: Any) -> dict[str, Any]:
    entry = {**TRADING, **changes}
    return {"trading": [{key: value for key, value in entry.items() if value is not None}]}


def product(document: Any, index: int = 0) -> ProductConfig:
    return read(document).connections[0].products[index]


# -- samples --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_every_sample_loads(path: Path) -> None:
    config = load(path)
    assert config.path == str(path)
    assert config.connections


def test_the_originals_are_among_the_samples() -> None:
    assert {path.stem for path in SAMPLES.glob("*.json")} >= set(ORIGINALS)


def test_original_binance_sample_means_what_it_meant() -> None:
    config = load(SAMPLES / "binance_md.json")
    (entry,) = config.connections
    assert (config.module_name, config.log_path) == ("binance_md", "/tmp/k4_logs")
    assert (entry.md_size, entry.hb_interval_sec) == (100_000, 30.0)
    assert (entry.redun_reset_on_hb, entry.redun_reset_on_threshold) == (True, 10_000)
    first, second = entry.products
    assert first == ProductConfig(
        name="spot",
        symbols=("BTCUSDT", "ETHUSDT"),
        lines=2,
        cores=(0, 1, 2),
        stores={
            Kind.BOOKTICKER: "binance_spot_bbo",
            Kind.TRADE: "binance_spot_trade",
            Kind.AGGTRADE: "binance_spot_aggtrade",
            Kind.DEPTH5: "binance_spot_depth5",
        },
        kinds=(Kind.BOOKTICKER, Kind.TRADE, Kind.AGGTRADE, Kind.DEPTH5),
        path="connections[0].spot",
        symbols_path="connections[0].spot.symbols",
    )
    assert (second.name, second.lines, second.cores) == ("ubase", 2, (3, 4, 5))
    assert second.symbols_path == "connections[0].futures.ubase_symbols"
    (target,) = entry.udp_sender
    assert (target.ip, target.port, target.enabled, target.cores) == (
        "127.0.0.1",
        9000,
        False,
        (6,),
    )


def test_original_udp_sample_means_what_it_meant() -> None:
    config = load(SAMPLES / "udp_md.json")
    udp = config.connections[0].udp_receiver
    assert udp is not None
    assert (udp.listen, udp.cores) == ((Address("0.0.0.0", 9000),), (7,))
    assert [store.section for store in udp.stores] == ["spot", "ubase"]
    assert udp.stores[1].stores[Kind.AGGTRADE] == "udp_ubase_aggtrade"
    assert [str(warning) for warning in config.warnings] == [
        "connections[0].udp_receiver: anybody who reaches this address can feed prices into the "
        "stores: set allow_from or key"
    ]


@pytest.mark.parametrize(
    ("name", "products"),
    [
        ("bitget_md", ["spot", "futures"]),
        ("bybit_md", ["spot", "linear"]),
        ("okx_md", ["spot", "swap"]),
        (
            "all_venues_md",
            [
                *("spot", "ubase", "cbase", "spot", "swap"),
                *("spot", "futures", "usdc_futures", "coin_futures"),
                *("spot", "linear", "inverse"),
            ],
        ),
    ],
)
def test_sections_become_products(name: str, products: list[str]) -> None:
    config = load(SAMPLES / f"{name}.json")
    assert [p.name for entry in config.connections for p in entry.products] == products


def test_binance_futures_is_two_products() -> None:
    futures = {
        "symbols": ["BTCUSDT"],
        "conn_count": 3,
        "cbase_symbols": ["BTCUSD_PERP"],
        "cbase_conn_count": 2,
        "bbo_shm_name": "u",
        "cbase_bbo_shm_name": "c",
        "cpu_affinity_conn": 3,
        "extra_headers": {"X-Test": "1"},
    }
    ubase, cbase = read(connection(futures=futures)).connections[0].products
    assert (ubase.name, ubase.symbols, ubase.lines) == ("ubase", ("BTCUSDT",), 3)
    assert (cbase.name, cbase.symbols, cbase.lines) == ("cbase", ("BTCUSD_PERP",), 2)
    assert (ubase.stores, cbase.stores) == ({Kind.BOOKTICKER: "u"}, {Kind.BOOKTICKER: "c"})
    assert ubase.cores == cbase.cores == (3,)
    assert ubase.headers == cbase.headers == {"X-Test": "1"}


def test_binance_coin_futures_may_stand_alone() -> None:
    futures = {"cbase_symbols": ["BTCUSD_PERP"], "cbase_trade_shm_name": "c"}
    (cbase,) = read(connection(futures=futures)).connections[0].products
    assert (cbase.name, cbase.kinds) == ("cbase", (Kind.TRADE,))


# -- defaults, aliases and the meaning of single values -------------------------------------------


def test_defaults_are_the_documented_ones() -> None:
    config = read(spot())
    (entry,) = config.connections
    assert (config.processes, config.metrics, config.warnings) == ("per-connection", None, ())
    assert (entry.md_size, entry.shm_mode, entry.hb_interval_sec) == (100_000, 0o600, 30.0)
    assert (entry.ping_interval_sec, entry.stall_timeout_sec) == (None, 10.0)
    assert (entry.transport, entry.metadata, entry.max_frame_bytes) == ("auto", "auto", 1 << 20)
    assert (entry.busy_poll, entry.endpoints, entry.udp_sender) == (False, {}, ())
    (only,) = entry.products
    assert (only.lines, only.cores, only.feed, only.trades_channel) == (1, (), "auto", "trades")


@pytest.mark.parametrize(
    "keys",
    [{"md_size": 7}, {"shm_block_num": 7}, {"md_size": 7, "shm_block_num": 7}],
)
def test_aliases_mean_the_same(keys: dict[str, int]) -> None:
    assert read(connection(spot=SPOT, **keys)).connections[0].md_size == 7


@pytest.mark.parametrize("key", ["redun_conn_count", "conn_count"])
def test_lines_have_two_names(key: str) -> None:
    assert product(spot(**{key: 4})).lines == 4


def test_affinities_are_one_set_of_cores() -> None:
    changes: dict[str, Any] = {
        "cpu_affinity": [4, 2],
        "cpu_affinity_sbe": 5,
        "cpu_affinity_dedup": 2,
        "cpu_affinity_dedup_sbe": [7, -1],
    }
    assert product(spot(**changes)).cores == (2, 4, 5, 7)
    assert product(spot(cpu_affinity_conn=-1)).cores == ()


def test_prefix_stands_before_every_store() -> None:
    assert product(connection(shm_prefix="a_", spot=SPOT)).stores == {Kind.BOOKTICKER: "a_spot_bbo"}
    document = receiver()
    document["connections"][0]["shm_prefix"] = "b_"
    udp = read(document).connections[0].udp_receiver
    assert udp is not None
    assert udp.stores[0].stores == {Kind.BOOKTICKER: "b_udp_bbo"}


def test_leading_slash_of_a_store_is_no_part_of_its_name() -> None:
    assert product(spot(bbo_shm_name="/x")).stores == {Kind.BOOKTICKER: "x"}


def test_empty_store_name_turns_the_kind_off() -> None:
    assert product(spot(trade_shm_name="")).kinds == (Kind.BOOKTICKER,)


def test_names_of_a_connection_stand_over_the_files() -> None:
    document = connection(spot=SPOT, RazorTrade={"module_name": "own"})
    document["RazorTrade"] = {"module_name": "whole", "log_path": "/tmp/x"}
    config = read(document)
    assert (config.module_name, config.log_path) == ("whole", "/tmp/x")
    assert (config.connections[0].module_name, config.connections[0].log_path) == ("own", "/tmp/x")


def test_lib_path_is_ignored_whatever_it_is() -> None:
    for value in ("x.so", 3, None, {"a": 1}):
        read(connection(spot=SPOT, lib_path=value))


def test_endpoints_are_one_url_or_several() -> None:
    endpoints = {"spot": "ws://127.0.0.1:8080/ws", "rest": ["http://[::1]:1", "https://x/y"]}
    assert read(connection(spot=SPOT, endpoints=endpoints)).connections[0].endpoints == {
        "spot": ("ws://127.0.0.1:8080/ws",),
        "rest": ("http://[::1]:1", "https://x/y"),
    }


def test_fractions_of_seconds_are_accepted() -> None:
    entry = read(connection(spot=SPOT, stall_timeout_sec=0.25, ping_interval_sec=1.5)).connections[
        0
    ]
    assert (entry.stall_timeout_sec, entry.ping_interval_sec) == (0.25, 1.5)


def test_symbols_need_not_be_ascii() -> None:
    assert product(spot(symbols=["币安人生USDT"])).symbols == ("币安人生USDT",)


def test_sender_may_be_a_list() -> None:
    target = {"ip": "10.0.0.1", "port": 1, "enabled": True, "key": {"env": "K4_TEST_KEY"}}
    both = read(connection(spot=SPOT, udp_sender=[target, {**target, "ip": "::1", "mtu": 9000}]))
    one, two = both.connections[0].udp_sender
    assert (one.ip, one.mtu, one.multicast_ttl, one.key) == ("10.0.0.1", 1472, 1, Secret(KEY))
    assert (two.ip, two.mtu) == ("::1", 9000)


def test_receiver_takes_named_product_types_and_more_addresses() -> None:
    store = {"exchange": "okx", "product_type": "UMargin", "symbols": ["A"], "agg_shm_name": "o"}
    document = receiver(
        listen=[{"ip": "::", "port": 2}],
        stores=[store],
        allow_from=["10.0.0.0/8"],
        recv_cpu_affinity=[1, 2],
    )
    config = read(document)
    udp = config.connections[0].udp_receiver
    assert udp is not None
    assert udp.listen == (Address("127.0.0.1", 9000), Address("::", 2))
    assert (udp.stores[1].exchange, udp.stores[1].product_type) == ("okx", 2)
    assert udp.stores[1].stores == {Kind.AGGTRADE: "o"}
    assert (udp.allow_from, udp.cores, config.warnings) == (("10.0.0.0/8",), (1, 2), ())


@pytest.mark.parametrize(
    "addition", [{"allow_from": ["10.0.0.1"]}, {"key": {"env": "K4_TEST_KEY"}}]
)
def test_open_receiver_is_warned_about(addition: dict[str, Any]) -> None:
    assert [w.path for w in read(receiver(ip="0.0.0.0")).warnings] == [
        "connections[0].udp_receiver"
    ]
    assert read(receiver(ip="0.0.0.0", **addition)).warnings == ()


# -- secrets --------------------------------------------------------------------------------------


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(KEY + "\n")
    path.chmod(0o600)
    return path


def headers(value: Any) -> dict[str, Any]:
    return spot(extra_headers={"X-MBX-APIKEY": value})


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_secrets_come_from_the_environment_or_a_private_file(key_file: Path, mode: int) -> None:
    key_file.chmod(mode)
    for source in ({"env": "K4_TEST_KEY"}, {"file": str(key_file)}):
        config = read(headers(source))
        found = config.connections[0].products[0].headers["X-MBX-APIKEY"]
        assert found == Secret(KEY)
        assert KEY not in repr(config)
        assert config.warnings == ()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o700])
def test_file_that_others_can_read_is_refused(key_file: Path, mode: int) -> None:
    key_file.chmod(mode)
    assert problems(headers({"file": str(key_file)})) == [
        "connections[0].spot.extra_headers.X-MBX-APIKEY.file: "
        f"has mode {mode:04o}, which is more than 0600: chmod 600 {key_file}"
    ]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"env": "K4_TEST_ABSENT"}, "the environment has no variable 'K4_TEST_ABSENT'"),
        ({"env": KEY}, "the environment has no variable of that name"),
        ({"env": ""}, "must not be empty"),
        ({"env": 3}, "must be text, not 3"),
        ({"file": "/nowhere/at/all"}, "cannot be read: No such file or directory"),
        ({"file": "/dev/null"}, "is no regular file"),
        ({"file": "/tmp"}, "is no regular file"),
        ({"file": "a\0b"}, "must be text without control characters"),
        ({}, 'must be {"env": NAME} or {"file": path}, with nothing else'),
        ({"env": "A", "file": "b"}, 'must be {"env": NAME} or {"file": path}, with nothing else'),
        ({"enw": "A"}, 'must be {"env": NAME} or {"file": path}, with nothing else'),
    ],
)
def test_secrets_that_cannot_be_had(source: Any, message: str) -> None:
    (problem,) = problems(headers(source))
    assert problem.startswith("connections[0].spot.extra_headers.X-MBX-APIKEY")
    assert problem.endswith(f": {message}")


@pytest.mark.parametrize("content", [b"", b" \n", b"two\nlines", b"\xff\xfe"])
def test_file_without_a_usable_secret(key_file: Path, content: bytes) -> None:
    key_file.write_bytes(content)
    (problem,) = problems(headers({"file": str(key_file)}))
    assert problem.startswith("connections[0].spot.extra_headers.X-MBX-APIKEY.file: the ")


def test_plain_key_in_a_header_is_a_warning_and_stays_hidden() -> None:
    config = read(headers(KEY))
    (warning,) = config.warnings
    assert warning.path == "connections[0].spot.extra_headers.X-MBX-APIKEY"
    assert config.connections[0].products[0].headers["X-MBX-APIKEY"] == Secret(KEY)
    assert KEY not in repr(config)


def test_plain_header_is_just_a_header() -> None:
    config = read(spot(extra_headers={"User-Agent": "me"}))
    assert config.connections[0].products[0].headers == {"User-Agent": "me"}
    assert config.warnings == ()


@pytest.mark.parametrize("key", ["api_key", "secret_key"])
@pytest.mark.parametrize("value", [KEY, [KEY], {"env": "K4_TEST_KEY", "x": KEY}, {"text": KEY}])
def test_plain_secret_is_refused_and_never_shown(key: str, value: Any) -> None:
    (problem,) = problems(trading(**{key: value}))
    assert problem.startswith(f"trading[0].{key}: ")
    assert KEY not in problem


def test_key_of_datagrams_has_at_most_64_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K4_TEST_KEY", "x" * 65)
    assert problems(receiver(key={"env": "K4_TEST_KEY"})) == [
        "connections[0].udp_receiver.key: must have at most 64 bytes"
    ]


# -- what is wrong --------------------------------------------------------------------------------

CASES: list[tuple[Any, str]] = [
    # the file
    (b"", "not JSON at line 1 column 1: Expecting value"),
    (b'{"a": 1,\n  b}', "not JSON at line 2 column 3: "),
    (b'{"a":\n "\xff"}', "not UTF-8 at line 2 column 3"),
    (b"[" * 100_000, "nested deeper than 32"),
    (b'{"connections": ' + b"[" * 40 + b"]" * 40 + b"}", "nested deeper than 32"),
    (b"1" * 5000, "holds a number with thousands of digits"),
    ([], "the file must be an object, not a list"),
    ({}, "has nothing to do: give connections or trading"),
    ({"connections": []}, "has nothing to do: give connections or trading"),
    ({"connections": {}}, "connections: must be a list, not an object"),
    ({"connections": [1]}, "connections[0]: must be an object, not 1"),
    ({**spot(), "conections": []}, "conections: unknown key; did you mean 'connections'?"),
    ({**spot(), "xyz": 1}, "xyz: unknown key; the nearest known is '"),
    ({**spot(), 'a"b': 1}, '"a\\"b": unknown key'),
    ({**spot(), "RazorTrade": 3}, "RazorTrade: must be an object, not 3"),
    ({**spot(), "RazorTrade": {"module_name": "a/b"}}, "RazorTrade.module_name: must be at most"),
    ({**spot(), "runtime": {"processes": "double"}}, "runtime.processes: must be per-connection,"),
    ({**spot(), "runtime": {"metrics": {}}}, "runtime.metrics: 'port' is missing"),
    ({**spot(), "runtime": {"metrics": {"port": 0}}}, "runtime.metrics.port: must be 1 to 65535"),
    # a connection
    ({"connections": [{"spot": SPOT}]}, "connections[0]: 'exchange' is missing"),
    (
        {"connections": [{"exchange": "binanse", "spot": SPOT}]},
        'connections[0].exchange: must be binance, okx, bitget, bybit or udp, not "binanse"; '
        "did you mean 'binance'?",
    ),
    (connection(), "connections[0]: has no product section, so it would do nothing: give spot or"),
    (
        connection(swap=SPOT, spot=SPOT),
        "connections[0].swap: binance has no section 'swap'; it has",
    ),
    (connection(spot=[]), "connections[0].spot: must be an object, not a list"),
    (connection(spot=SPOT, md_size=1), "connections[0].md_size: must be 2 to 4294967295, not 1"),
    (connection(spot=SPOT, md_size=9.5), "connections[0].md_size: must be a whole number, not 9.5"),
    (connection(spot=SPOT, md_size=True), "connections[0].md_size: must be a whole number, not tr"),
    (connection(spot=SPOT, md_size=None), "connections[0].md_size: must be a whole number, not nu"),
    (
        connection(spot=SPOT, md_size=5, shm_block_num=6),
        "connections[0].shm_block_num: contradicts 'md_size'; both mean the same",
    ),
    (connection(spot=SPOT, busy_poll=1), "connections[0].busy_poll: must be true or false, not 1"),
    (connection(spot=SPOT, stall_timeout_sec=0), "connections[0].stall_timeout_sec: must be above"),
    (
        connection(spot=SPOT, hb_interval_sec=10**400),
        "connections[0].hb_interval_sec: must be abov",
    ),
    (connection(spot=SPOT, transport="curl"), "connections[0].transport: must be auto, picows or"),
    (connection(spot=SPOT, shm_mode=384), "connections[0].shm_mode: must be an octal mode in quot"),
    (connection(spot=SPOT, shm_mode="0400"), "connections[0].shm_mode: must let the owner read an"),
    (connection(spot=SPOT, shm_mode="4600"), "connections[0].shm_mode: must be an octal mode in q"),
    (connection(spot=SPOT, ca_file="/no/ca"), "connections[0].ca_file: there is no such file"),
    (connection(spot=SPOT, shm_prefix="a/b"), "connections[0].shm_prefix: must be a name without"),
    (
        connection(spot=SPOT, udp_receiver={}),
        'connections[0].udp_receiver: needs "exchange": "udp"',
    ),
    # endpoints
    (
        connection(spot=SPOT, endpoints={"spots": "ws://x"}),
        "connections[0].endpoints.spots: unknown key; did you mean 'spot'?",
    ),
    (
        connection(spot=SPOT, endpoints={"spot": "http://x"}),
        "connections[0].endpoints.spot: must be a URL that begins with ws:// or wss:// and a host",
    ),
    (
        connection(spot=SPOT, endpoints={"spot": ["ws://x", "ws://"]}),
        "connections[0].endpoints.spot[1]: must be a URL that begins with ws:// or wss:// and a h",
    ),
    (connection(spot=SPOT, endpoints={"rest": "ws://x"}), "connections[0].endpoints.rest: must be"),
    (connection(spot=SPOT, endpoints={"spot": []}), "connections[0].endpoints.spot: lists no URL"),
    (
        connection(spot=SPOT, endpoints={"spot": "ws://x:99999"}),
        "connections[0].endpoints.spot: mu",
    ),
    (connection(spot=SPOT, endpoints={"spot": "ws://[x"}), "connections[0].endpoints.spot: must"),
    (
        connection(spot=SPOT, endpoints={"spot": "ws://a:b@x"}),
        "connections[0].endpoints.spot: must",
    ),
    # a product
    (connection(spot={"bbo_shm_name": "x"}), "connections[0].spot: 'symbols' is missing"),
    (spot(symbols=[]), "connections[0].spot.symbols: lists no symbol"),
    (spot(symbols="BTCUSDT"), 'connections[0].spot.symbols: must be a list, not "BTCUSDT"'),
    (spot(symbols=["A", 7]), "connections[0].spot.symbols[1]: must be text, not 7"),
    (
        spot(symbols=["A", "B", "A"]),
        "connections[0].spot.symbols[2]: symbol 'A' stands at connections[0].spot.symbols[0]",
    ),
    (spot(symbols=["BTC", "btc"]), "connections[0].spot.symbols[1]: symbol 'btc' stands at"),
    (
        spot(symbols=["币" * 11]),
        "connections[0].spot.symbols[0]: symbol '币币币币币币币币币币币' must",
    ),
    (spot(symbols=["A", ""]), "connections[0].spot.symbols[1]: must not be empty"),
    (spot(symbols=["A B"]), "connections[0].spot.symbols[0]: must be a symbol without spaces"),
    (spot(bbo_shm_name=""), "connections[0].spot: spot names no store, so it would do nothing: gi"),
    (spot(bbo_shm_name="a b"), "connections[0].spot.bbo_shm_name: must be a name without slashes"),
    (
        spot(bbo_shm_name=".x"),
        "connections[0].spot.bbo_shm_name: must not begin with '.' or 'k4c.'",
    ),
    (spot(bbo_shm_name="k4c.x"), "connections[0].spot.bbo_shm_name: must not begin with '.' or"),
    (spot(bbo_shm_name="x" * 201), "connections[0].spot.bbo_shm_name: is longer than 200 bytes"),
    (
        spot(trade_shm_name="/spot_bbo"),
        'connections[0].spot.trade_shm_name: the shm name "spot_bbo" is already used by '
        "connections[0].spot.bbo_shm_name",
    ),
    (spot(redun_conn_count=0), "connections[0].spot.redun_conn_count: must be 1 to 256, not 0"),
    (spot(redun_con_count=2), "connections[0].spot.redun_con_count: unknown key; did you mean 're"),
    (spot(cpu_affinity=[0, "1"]), "connections[0].spot.cpu_affinity[1]: must be a whole number"),
    (spot(cpu_affinity_conn=[1], cpu_affinity=[2]), "connections[0].spot.cpu_affinity: contradict"),
    (spot(feed="fix"), 'connections[0].spot.feed: must be auto, json, sbe or both, not "fix"'),
    (spot(feed="both"), "connections[0].spot.feed: 'both' needs an API key: give"),
    (spot(trades_channel="trades"), "connections[0].spot.trades_channel: only okx has a choice"),
    (spot(extra_headers={"a b": "c"}), 'connections[0].spot.extra_headers."a b": is no name of'),
    (spot(extra_headers={"a": "1", "A": "2"}), "connections[0].spot.extra_headers.A: is the same"),
    (spot(extra_headers={"a": "x\r\ny"}), "connections[0].spot.extra_headers.a: must be text with"),
    (spot(extra_headers={"a": 1}), "connections[0].spot.extra_headers.a: must be text, "),
    (
        {"connections": [{"exchange": "okx", "spot": {**SPOT, "aggtrade_shm_name": "x"}}]},
        "connections[0].spot.aggtrade_shm_name: okx has no aggtrade; only binance has",
    ),
    (
        {"connections": [{"exchange": "okx", "spot": {**SPOT, "feed": "json"}}]},
        "connections[0].spot.feed: only spot of binance has a choice of feeds",
    ),
    (
        {"connections": [{"exchange": "bybit", "spot": SPOT, "linear": SPOT}]},
        "connections[0].linear: is the section 'futures' here",
    ),
    # Binance futures
    (
        connection(futures={"bbo_shm_name": "x"}),
        "connections[0].futures: 'ubase_symbols' is missing, and so is 'cbase_symbols'",
    ),
    (
        connection(futures={**SPOT, "cbase_bbo_shm_name": "x"}),
        "connections[0].futures.cbase_bbo_shm_name: has a store and no 'cbase_symbols'",
    ),
    (
        connection(futures={**SPOT, "cbase_symbols": ["A"]}),
        "connections[0].futures: cbase names no store, so it would do nothing: give cbase_bbo",
    ),
    (
        connection(
            futures={"cbase_symbols": ["A"], "cbase_bbo_shm_name": "x", "bbo_shm_name": "y"}
        ),
        "connections[0].futures.bbo_shm_name: has a store and no 'ubase_symbols'",
    ),
    (
        connection(futures={**SPOT, "ubase_symbols": ["A"]}),
        "connections[0].futures.symbols: contradicts 'ubase_symbols'; both mean the same",
    ),
    # UDP
    (connection(spot=SPOT, udp_sender=[]), "connections[0].udp_sender: lists no target"),
    (connection(spot=SPOT, udp_sender={"ip": "1.1.1.1"}), "connections[0].udp_sender: 'port' is m"),
    (
        connection(spot=SPOT, udp_sender=[{"ip": "venue.example", "port": 1}]),
        'connections[0].udp_sender[0].ip: must be an IP address, not "venue.example"',
    ),
    (
        connection(spot=SPOT, udp_sender={"ip": "1.1.1.1", "port": 1, "mtu": 335}),
        "connections[0].udp_sender.mtu: must be 336 to 65507, not 335",
    ),
    (
        connection(spot=SPOT, udp_sender={"ip": "1.1.1.1", "port": 1, "key": KEY}),
        "connections[0].udp_sender.key: secrets do not belong into this file",
    ),
    ({"connections": [{"exchange": "udp"}]}, "connections[0]: 'udp_receiver' is missing"),
    (receiver(ip=None), "connections[0].udp_receiver.ip: must be text, not null"),
    (receiver(port=65536), "connections[0].udp_receiver.port: must be 1 to 65535, not 65536"),
    (receiver(spot_symbols=[]), "connections[0].udp_receiver.spot_symbols: lists no symbol"),
    (receiver(spot_bbo_shm_name=""), "connections[0].udp_receiver: spot_symbols has no store"),
    (receiver(ubase_bbo_shm_name="x"), "connections[0].udp_receiver: ubase_symbols is missing"),
    (receiver(ubase_agg_shm_name="udp_bbo", ubase_symbols=["A"]), "connections[0].udp_receiver.ub"),
    (receiver(allow_from=["10.0.0"]), "connections[0].udp_receiver.allow_from[0]: must be an IP"),
    (receiver(allow_from=[]), "connections[0].udp_receiver.allow_from: lists nobody, so nothing"),
    (
        receiver(listen=[{"ip": "127.0.0.1", "port": 9000}]),
        "connections[0].udp_receiver.listen: th",
    ),
    (receiver(listen=[{"ip": "::1"}]), "connections[0].udp_receiver.listen[0]: 'port' is missing"),
    (receiver(stores=[]), "connections[0].udp_receiver.stores: lists no store"),
    (
        receiver(stores=[{"product_type": 0, **SPOT}]),
        "connections[0].udp_receiver.stores[0]: 'exchange' is missing",
    ),
    (
        receiver(stores=[{"exchange": "udp", "product_type": 0, **SPOT}]),
        "connections[0].udp_receiver.stores[0].exchange: must be binance, okx, bitget or bybit",
    ),
    (
        receiver(stores=[{"exchange": "okx", "product_type": 8, **SPOT}]),
        "connections[0].udp_receiver.stores[0].product_type: must be 0 to 7, not 8",
    ),
    (
        receiver(
            stores=[
                {"exchange": "okx", "product_type": 1, **SPOT},
                {"exchange": "okx", "product_type": 1, "symbols": ["BTCUSDT"], "bbo_shm_name": "x"},
            ]
        ),
        "connections[0].udp_receiver.stores[1]: bbo of okx BTCUSDT goes to "
        "connections[0].udp_receiver.stores[0] already",
    ),
    (
        {"connections": [{"exchange": "udp", "udp_receiver": {"ip": "::1", "port": 1}}]},
        "connections[0].udp_receiver: fills no store: give spot_symbols, ubase_symbols or stores",
    ),
    (
        {"connections": [{"exchange": "udp", "udp_receiver": RECEIVER, "spot": SPOT}]},
        "connections[0].spot: exchange udp has no products; its stores are in udp_receiver",
    ),
    # trading
    ({"trading": []}, "has nothing to do: give connections or trading"),
    (trading(journal=None), "trading[0]: 'journal' is missing"),
    (trading(journal=""), "trading[0].journal: must not be empty"),
    (trading(exchange="okx"), 'trading[0].exchange: must be binance, not "okx"'),
    (trading(api_key=None), "trading[0]: 'api_key' is missing"),
    (
        trading(secret_key=None),
        "trading[0]: has nothing to sign with: give secret_key, ed25519_key",
    ),
    (
        trading(spot_enabled=False),
        "trading[0]: no account is enabled: set spot_enabled, ubase_enab",
    ),
    (trading(secret_key=None, ed25519_key_path="/no/key"), "trading[0].ed25519_key_path: cannot b"),
    (trading(recv_window=60_001), "trading[0].recv_window: must be above 0 and at most 60000"),
    (trading(listen_key_refresh_secs=3601), "trading[0].listen_key_refresh_secs: must be above 0"),
    (trading(journal_sync="none"), 'trading[0].journal_sync: must be process or full, not "none"'),
    (trading(socket="/tmp/" + "x" * 103), "trading[0].socket: is longer than the 107 bytes"),
    (trading(spot_rest_url="wss://x"), "trading[0].spot_rest_url: must be a URL that begins with"),
    (trading(spot_ws_url="wss://x"), "trading[0].spot_ws_url: unknown key; did you mean 'spot_"),
    (trading(risk={"margin": {}}), "trading[0].risk.margin: unknown key; "),
    (
        trading(risk={"spot": {"max_order_qty": 0}}),
        "trading[0].risk.spot.max_order_qty: must be ab",
    ),
    (
        trading(risk={"spot": {"max_order_qty": "-1"}}),
        "trading[0].risk.spot.max_order_qty: must be",
    ),
    (
        trading(risk={"spot": {"max_order_qty": "1,5"}}),
        "trading[0].risk.spot.max_order_qty: must b",
    ),
    (
        trading(risk={"spot": {"max_order_qty": "NaN"}}),
        "trading[0].risk.spot.max_order_qty: must b",
    ),
    (trading(risk={"spot": {"max_order_qty": [1]}}), "trading[0].risk.spot.max_order_qty: must be"),
    (trading(risk={"spot": {"max_open_orders": 0}}), "trading[0].risk.spot.max_open_orders: must"),
    (
        trading(risk={"spot": {"price_collar_bps": 5}}),
        "trading[0].risk.spot.price_collar_bps: need",
    ),
    (
        {"trading": [TRADING, {**TRADING, "journal": "/tmp/other"}]},
        'trading[1]: the trading name "binance" is already used by trading[0]',
    ),
    (
        {"trading": [TRADING, {**TRADING, "name": "b"}]},
        'trading[1].journal: the journal "/tmp/k4.journal" is already used by trading[0].journal',
    ),
]


@pytest.mark.parametrize(("document", "start"), CASES, ids=[case[1][:60] for case in CASES])
def test_what_is_wrong_is_named_once(document: Any, start: str) -> None:
    found = problems(document)
    assert len(found) == 1, found
    assert start in found[0]
    assert found[0].startswith(start) or start.startswith("nested")


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity"])
def test_numbers_that_json_lacks_are_refused(number: bytes) -> None:
    data = json.dumps(connection(spot=SPOT, stall_timeout_sec=5)).encode()
    found = problems(data.replace(b": 5", b": " + number))
    assert f"connections[0].stall_timeout_sec: {number.decode()} is not JSON" in found


def test_number_beyond_floats_is_refused() -> None:
    data = json.dumps(connection(spot=SPOT, stall_timeout_sec=5)).encode()
    (problem,) = problems(data.replace(b": 5", b": 1e999"))
    assert problem.startswith("connections[0].stall_timeout_sec: must be above 0 and at most 3600")


def test_half_a_surrogate_pair_is_no_text() -> None:
    data = json.dumps(spot(symbols=["ABC"])).encode().replace(b"ABC", b"\\ud800")
    assert "connections[0].spot.symbols[0]: holds half of a surrogate pair, which is no text" in (
        problems(data)
    )


def test_key_that_stands_twice_is_refused() -> None:
    data = b'{"connections": [{"exchange": "binance", "exchange": "okx", "spot": {}}]}'
    assert problems(data)[0] == "connections[0].exchange: this key stands here more than once"


def test_two_signing_keys_are_one_too_many(key_file: Path) -> None:
    assert problems(trading(rsa_key_path=str(key_file))) == [
        "trading[0].rsa_key_path: cannot stand beside 'secret_key': one key only"
    ]


def test_key_file_must_be_private(key_file: Path) -> None:
    document = trading(secret_key=None, ed25519_key_path=str(key_file))
    assert read(document).trading[0].ed25519_key_path == str(key_file)
    key_file.chmod(0o640)
    assert problems(document) == [
        f"trading[0].ed25519_key_path: has mode 0640, which is more than 0600: chmod 600 {key_file}"
    ]


def test_all_problems_come_at_once_in_file_order() -> None:
    document = {
        "RazorTrade": {"module_nam": "x"},
        "connections": [
            {"exchange": "okx", "swap": {"symbols": ["A", "A"], "bbo_shm_name": "x"}, "md_size": 1},
            {
                "md_size": "big",
                "exchange": "binance",
                "spot": {"symbols": ["A"], "bbo_shm_name": "x", "colour": "red"},
            },
        ],
        "trading": [{}],
    }
    assert [problem.split(": ")[0] for problem in problems(document)] == [
        "RazorTrade.module_nam",
        "connections[0].swap.symbols[1]",
        "connections[0].md_size",
        "connections[1].md_size",
        "connections[1].spot.bbo_shm_name",
        "connections[1].spot.colour",
        *["trading[0]"] * 5,
    ]


def test_same_store_in_two_connections_is_refused() -> None:
    document = {
        "connections": [
            {"exchange": "binance", "spot": {**SPOT, "bbo_shm_name": "a_x"}},
            {"exchange": "udp", "shm_prefix": "a_", "udp_receiver": copy.deepcopy(RECEIVER)},
        ]
    }
    document["connections"][1]["udp_receiver"]["spot_bbo_shm_name"] = "x"  # type: ignore[index]
    assert problems(document) == [
        'connections[1].udp_receiver.spot_bbo_shm_name: the shm name "a_x" is already used by '
        "connections[0].spot.bbo_shm_name"
    ]


def test_world_writable_stores_are_warned_about() -> None:
    config = read(connection(spot=SPOT, shm_mode="0666"))
    assert config.connections[0].shm_mode == 0o666
    assert [warning.path for warning in config.warnings] == ["connections[0].shm_mode"]


def test_sbe_without_key_is_fine_at_a_venue_of_ones_own() -> None:
    document = connection(spot={**SPOT, "feed": "sbe"}, endpoints={"spot_sbe": "ws://127.0.0.1:1"})
    assert product(document).feed == "sbe"


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.json", tmp_path, Path("a\0b")):
        with pytest.raises(ConfigError, match="cannot read"):
            load(path)


def test_byte_order_mark_is_accepted() -> None:
    parse(b"\xef\xbb\xbf" + json.dumps(spot()).encode())


# -- trading --------------------------------------------------------------------------------------


def test_trading_alone_is_a_configuration() -> None:
    for document in (trading(), {**trading(), "connections": []}):
        (entry,) = read(document).trading
        assert (entry.exchange, entry.name, entry.accounts) == ("binance", "binance", ("spot",))
        assert (entry.api_key, entry.secret_key) == (Secret(KEY), Secret(KEY))
        assert (entry.recv_window, entry.listen_key_refresh_secs) == (5000.0, 1800.0)
        assert (entry.journal_sync, entry.cancel_on_disconnect) == ("process", False)
        assert entry.rest_url["ubase"] == "https://fapi.binance.com"
        assert entry.ws_api_url["spot"] == "wss://ws-api.binance.com:443/ws-api/v3"
        assert entry.ws_url == {
            "ubase": "wss://fstream.binance.com/private",
            "cbase": "wss://dstream.binance.com",
        }


def test_trading_urls_can_be_replaced() -> None:
    config = read(
        trading(spot_rest_url="http://127.0.0.1:1/", ubase_ws_url="ws://10.0.0.1:2/private/")
    )
    entry = config.trading[0]
    assert entry.rest_url["spot"] == "http://127.0.0.1:1"
    assert entry.ws_url["ubase"] == "ws://10.0.0.1:2/private"
    assert [warning.path for warning in config.warnings] == ["trading[0].ubase_ws_url"]


@pytest.mark.parametrize(
    ("written", "exact"),
    [
        ("5", "5"),
        ("0.10", "0.10"),
        ('"0.10"', "0.10"),
        ("1e-8", "0.00000001"),
        ('"1.9e-07"', "0.00000019"),
        ("0.1000000000000000055511151231257827", "0.1000000000000000055511151231257827"),
        ("123456789012345678901234567890.5", "123456789012345678901234567890.5"),
        ("2E3", "2000"),
    ],
)
def test_figures_stay_exact(written: str, exact: str) -> None:
    document = trading(risk={"spot": {"max_position": "FIGURE"}})
    data = json.dumps(document).replace('"FIGURE"', written).encode()
    assert parse(data).trading[0].risk["spot"].max_position == exact


def test_collar_never_trusts_a_price_of_any_age() -> None:
    limits = {"price_collar_bps": 50, "bbo_store": "/bbo"}
    for age, expected in (({}, 1000.0), ({"max_bbo_age_ms": 250}, 250.0)):
        risk = read(trading(risk={"spot": {**limits, **age}})).trading[0].risk["spot"]
        assert (risk.bbo_store, risk.max_bbo_age_ms) == ("bbo", expected)


def test_account_without_limits_is_warned_about() -> None:
    config = read(trading(ubase_enabled=True, risk={"spot": {}, "kill_file": "/tmp/kill"}))
    assert config.trading[0].kill_file == "/tmp/kill"
    assert [str(warning) for warning in config.warnings] == [
        "trading[0]: account ubase trades without risk limits"
    ]


# -- plug-ins -------------------------------------------------------------------------------------


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution that brings the exchange `kraken`; importing it would fail."""
    about = tmp_path / "k4_kraken-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: k4-kraken\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[k4.md.exchanges]\nkraken = no_such_module:EXCHANGE\n")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("plugin")
def test_plugins_are_known_by_name_and_not_imported() -> None:
    document = {
        "connections": [
            {
                "exchange": "kraken",
                "margin": {"symbols": ["XBTUSD"], "aggtrade_shm_name": "k"},
                "endpoints": {"anything": "wss://x", "rest": "https://y"},
            }
        ]
    }
    (entry,) = read(document).connections
    assert [(p.name, p.symbols, p.kinds) for p in entry.products] == [
        ("margin", ("XBTUSD",), (Kind.AGGTRADE,))
    ]
    assert set(entry.endpoints) == {"anything", "rest"}


@pytest.mark.usefixtures("plugin")
def test_plugins_are_among_the_nearest_names() -> None:
    (problem,) = problems({"connections": [{"exchange": "krakn", "spot": SPOT}]})
    assert problem.endswith("udp or kraken, not \"krakn\"; did you mean 'kraken'?")


# -- any input ------------------------------------------------------------------------------------

NAME = st.text(max_size=8)
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
FULL = [json.loads(path.read_text()) for path in sorted(SAMPLES.glob("*.json"))]
relaxed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def tried(data: bytes) -> Config | ConfigError:
    """The outcome; any exception but ConfigError is the failure that the properties look for."""
    try:
        return parse(data)
    except ConfigError as error:
        outcome = error
    assert outcome.problems
    assert all(problem.message for problem in outcome.problems)
    assert str(outcome).encode()
    return outcome


@relaxed
@given(st.binary(max_size=200))
def test_any_bytes_give_a_config_or_a_config_error(data: bytes) -> None:
    assert isinstance(tried(data), ConfigError)


@relaxed
@given(ANY)
def test_any_json_gives_a_config_or_a_config_error(value: Any) -> None:
    assert isinstance(tried(json.dumps(value).encode()), ConfigError)


@relaxed
@given(st.data())
def test_a_sample_with_one_thing_changed_gives_a_config_or_a_config_error(
    data: st.DataObject,
) -> None:
    document = copy.deepcopy(data.draw(st.sampled_from(FULL)))
    node: Any = document
    while True:
        key = data.draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
        deeper = isinstance(node[key], dict | list) and node[key]
        if not deeper or data.draw(st.booleans()):
            break
        node = node[key]
    change = data.draw(st.sampled_from(["replace", "remove", "add"]))
    if change == "replace" or isinstance(node, list):
        node[key] = data.draw(ANY)
    elif change == "remove":
        del node[key]
    else:
        node[data.draw(st.text(max_size=20))] = data.draw(ANY)
    tried(json.dumps(document).encode())


@given(st.data())
@relaxed
def test_truncated_samples_are_no_json(data: st.DataObject) -> None:
    text = json.dumps(data.draw(st.sampled_from(FULL))).encode()
    cut = data.draw(st.integers(0, len(text) - 1))
    error = tried(text[:cut])
    assert isinstance(error, ConfigError)
    assert error.problems[0].message.startswith("not JSON at line 1 column ")
