"""The venue's checks before a product looks at a request: signatures over raw bytes, keys, times,
parameters, in the documented order."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
from trading_client import Desk, RestClient, book, now_ms, sign, trading

from k4.core.errors import ConfigError
from k4.runner.sim.trading.keys import KeyRing, pem
from k4.runner.sim.trading.signatures import rest_payload, ws_payload
from k4.runner.sim.trading.spec import AccountSpec, KeySpec

Json = dict[str, Any]
_FILE = Path(__file__).parent / "data" / "binance-signature-vectors.json"
VECTORS: Json = json.loads(_FILE.read_text())
_ALL = {vector["id"]: vector for vector in VECTORS["vectors"]}
# A space in the timestamp: its digest reproduces, as a request it is broken.
_DEFECTIVE = [name for name, vector in _ALL.items() if vector["status"] == "official-defective"]
REST = [n for n, v in _ALL.items() if v["transport"] == "REST" and n not in _DEFECTIVE]
WS = [n for n, v in _ALL.items() if v["transport"] == "WS-API"]
_PRODUCTS = {"spot": "spot", "usdm": "ubase", "coinm": "cbase"}
_SYMBOLS = {"spot": ("BTCUSDT", "LTCBTC"), "ubase": ("BTCUSDT",), "cbase": ("BTCUSD_PERP",)}


def key_spec(vector: Json) -> KeySpec:
    vector = {**_ALL.get(vector.get("key_ref", ""), {}), **vector}
    if "secret" in vector:
        return KeySpec(api_key=vector["api_key"], secret=vector["secret"])
    algorithm = "rsa" if vector["algorithm"].startswith("RSA") else "ed25519"
    public = pem("PUBLIC KEY", vector["public_spki_der_base64"])
    return KeySpec(algorithm=algorithm, api_key=vector["api_key"], public_pem=public)


def stamp_of(vector: Json) -> int:
    if "ws_params" in vector:
        return int(vector["ws_params"]["timestamp"])
    text = f"{vector.get('sent_query', vector['payload'])}&{vector.get('sent_body', '')}"
    for part in text.split("&"):
        if part.startswith("timestamp="):
            return int(part.removeprefix("timestamp="))
    raise AssertionError(f"no timestamp in {vector['id']}")


def world(vector: Json) -> Any:
    """A venue which knows the vector's key, and whose clock is a little before the vector's time:
    it takes what is up to a second ahead, and some windows are of a tenth of a second."""
    account = AccountSpec(keys=(key_spec(vector), KeySpec(api_key="other", secret="other")))
    offset = stamp_of(vector) - time.time_ns() // 1_000_000 - 900
    return trading(accounts=(account,), symbols=_SYMBOLS, clock_ms=float(offset))


def client(desk: Desk, product: str, vector: Json) -> RestClient:
    rest = desk.rest(product, key_spec(vector).algorithm)
    rest.key = desk.venue.keys.find(vector["api_key"])
    return rest


# -- signatures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REST)
async def test_a_documented_rest_request_is_accepted(name: str) -> None:
    vector = _ALL[name]
    product = _PRODUCTS[vector["product"]]
    signature = vector.get("signature_percent_encoded", vector["signature"])
    query, body = vector["query"], vector["body"]
    query, body = (
        (f"{query}&signature={signature}", body)
        if not body
        else (query, f"{body}&signature={signature}")
    )
    async with world(vector) as desk:
        reply = await client(desk, product, vector).raw("POST", vector["path"], query, body)
        assert reply.code not in (-1021, -1022, -2014, -2015), reply.body
        assert desk.ledger.requests[0].account == "main"


@pytest.mark.parametrize("name", REST)
async def test_a_rest_request_changed_by_one_character_is_refused(name: str) -> None:
    vector = _ALL[name]
    product = _PRODUCTS[vector["product"]]
    signature = vector.get("signature_percent_encoded", vector["signature"])
    query, body = vector["query"], vector["body"]
    text = f"{query or body}&signature={signature}".replace("side=", "side=X", 1)
    mixed = body if query else ""
    async with world(vector) as desk:
        reply = await client(desk, product, vector).raw("POST", vector["path"], text, mixed)
        assert (reply.status, reply.code) == (400, -1022)


@pytest.mark.parametrize("name", WS)
async def test_a_documented_websocket_request_is_accepted(name: str) -> None:
    vector = _ALL[name]
    async with world(vector) as desk:
        socket = await desk.ws(_PRODUCTS[vector["product"]], key_spec(vector).algorithm)
        params = {**vector["ws_params"], "signature": vector["signature"]}
        found = await socket.ask(vector["method"], **params)
        code = found.get("error", {}).get("code")
        assert code not in (-1021, -1022, -2014, -2015), found
        assert desk.ledger.requests[0].account == "main"


@pytest.mark.parametrize("vector", VECTORS["negative_vectors"], ids=lambda vector: vector["id"])
async def test_a_wrongly_signed_request_is_refused(vector: Json) -> None:
    async with world(vector) as desk:
        if vector["transport"] == "REST":
            query, body = vector.get("sent_query", ""), vector.get("sent_body", "")
            tail = f"&signature={vector['wrong_signature']}"
            query, body = (query, body + tail) if body else (query + tail, body)
            reply = await client(desk, "spot", vector).raw("POST", "/api/v3/order", query, body)
            assert reply.code == vector["expect_error_code"]
            return
        pairs = dict(pair.split("=", 1) for pair in vector["payload"].split("&"))
        params: Json = {name: unquote(value) for name, value in pairs.items()}
        params |= {name: int(params[name]) for name in ("timestamp", "recvWindow")}
        params |= {"apiKey": vector["api_key"], "signature": vector["wrong_signature"]}
        found = await (await desk.ws()).ask("order.place", **params)
        assert found["error"]["code"] == vector["expect_error_code"]


@pytest.mark.parametrize("name", [*REST, *_DEFECTIVE])
def test_what_is_signed_is_the_raw_text(name: str) -> None:
    vector = _ALL[name]
    payload, signature = rest_payload(vector["query"] + "&signature=abc", vector["body"])
    assert payload.decode() == vector["payload"]
    assert signature == "abc"
    key = next(iter(KeyRing((AccountSpec(keys=(key_spec(vector),)),), 1)))
    assert key.verifier.accepts(payload, vector["signature"])


@pytest.mark.parametrize("name", WS)
def test_what_is_signed_of_a_frame_is_sorted_and_as_printed(name: str) -> None:
    vector = _ALL[name]
    values = {key: str(value) for key, value in vector["ws_params"].items()}
    assert ws_payload({**values, "signature": "x"}).decode() == vector["payload"]


def test_the_documented_ed25519_logon_of_fix_verifies() -> None:
    vector = _ALL["fix-logon-ed25519"]
    private = pem("PRIVATE KEY", vector["pkcs8_der_base64"])
    key = next(
        iter(KeyRing((AccountSpec(keys=(KeySpec(algorithm="ed25519", private_pem=private),)),), 1))
    )
    assert key.verifier.accepts(vector["payload"].encode(), vector["signature"])
    assert sign(key, vector["payload"].encode()) == vector["signature"]


async def test_hex_may_be_upper_case_and_base64_must_be_percent_encoded() -> None:
    async with trading() as desk:
        for algorithm in ("hmac", "ed25519"):
            rest = desk.rest("spot", algorithm)
            assert rest.key is not None
            codes = []
            for _ in range(
                40
            ):  # until a signature has a plus sign, which a form turns into a space
                text = f"timestamp={now_ms()}&recvWindow=5000"
                signature = sign(rest.key, text.encode())
                sent = signature.upper() if algorithm == "hmac" else signature
                reply = await rest.raw("GET", "/api/v3/account", f"{text}&signature={sent}")
                codes.append(reply.status)
                if algorithm == "hmac" or "+" in signature:
                    break
                time.sleep(0.001)  # noqa: ASYNC251  another millisecond, another signature
            assert codes[-1] == (200 if algorithm == "hmac" else 400)


async def test_numbers_are_signed_as_they_are_printed() -> None:
    """0.010 as a JSON number and "0.010" as text are the same payload; 1e-2 is another."""
    async with trading() as desk:
        book(desk)
        socket = await desk.ws()
        params = {"symbol": "BTCUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "GTC"}
        full = socket.with_signature({**params, "quantity": "0.010", "price": "60000.0"})
        text = json.dumps({"id": 1, "method": "order.place", "params": full})
        await socket.socket.send(text.replace('"0.010"', "0.010"))
        assert (await socket.answer(1))["status"] == 200
        await socket.socket.send(text.replace('"0.010"', "1e-2"))
        assert (await socket.answer(1))["error"]["code"] == -1022


# -- the order of the checks ----------------------------------------------------------------------


async def send(desk: Desk, drop: str = "", key: str | None = None, **changes: str) -> int:
    """Code of an order with several things wrong with it; `drop` leaves a parameter out."""
    rest = desk.rest()
    params = {"symbol": "BTCUSDT", "side": "BUY", "type": "WRONG", "quantity": "1"}
    params |= {"timestamp": str(now_ms()), **changes}
    params.pop(drop, None)
    text = "&".join(f"{name}={quote(value)}" for name, value in params.items())
    if "signature" not in params:
        assert rest.key is not None
        text += f"&signature={sign(rest.key, text.encode())}"
    headers = {} if key is None else {"X-MBX-APIKEY": key}
    reply = await rest.raw("POST", "/api/v3/order", "", text, **headers)
    return reply.code


async def test_checks_come_in_the_documented_order() -> None:
    """Each request has every fault that comes later in the order, too."""
    old, wrong = str(now_ms() - 60_000), "0" * 64
    async with trading() as desk:
        everything = {"timestamp": old, "signature": wrong, "extra": "1"}
        assert await send(desk, drop="side", key="bad key!", **everything) == -2014
        assert await send(desk, drop="side", key="unknown", **everything) == -2015
        assert await send(desk, drop="side", **everything) == -1102
        assert await send(desk, **everything) == -1021
        assert await send(desk, signature=wrong, extra="1") == -1022
        assert await send(desk, extra="1") == -1104
        assert await send(desk) == -1116


async def test_missing_and_unknown_keys_are_401() -> None:
    async with trading() as desk:
        rest = desk.rest()
        reply = await rest.raw("GET", "/api/v3/account", "timestamp=1", **{"X-MBX-APIKEY": ""})
        assert (reply.status, reply.code) == (401, -2014)
        reply = await rest.raw("GET", "/api/v3/account", "timestamp=1", **{"X-MBX-APIKEY": "abc"})
        assert (reply.status, reply.code, reply.msg) == (
            401,
            -2015,
            "Invalid API-key, IP, or permissions for action.",
        )


async def test_a_key_that_may_not_trade_reads_only() -> None:
    account = AccountSpec(keys=(KeySpec(trades=False),))
    async with trading(accounts=(account,)) as desk:
        book(desk)
        assert (await desk.place()).code == -2015
        assert (await desk.rest().signed("GET", "/api/v3/account")).status == 200


async def test_the_firewall_answers_with_a_page() -> None:
    async with trading() as desk:
        reply = await desk.rest().raw("GET", "/api/v3/order", "symbol=1+union+select+2")
        assert reply.status == 403
        assert "<html>" in reply.body


async def test_a_path_that_does_not_exist_is_404() -> None:
    async with trading() as desk:
        for path in ("/api/v3/userDataStream", "/dapi/v2/account", "/fapi/v1/nothing"):
            assert (await desk.rest().raw("POST", path)).status == 404


# -- parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"price": "1e5"}, -1100),
        ({"price": "-1"}, -1100),
        ({"newClientOrderId": ""}, -1105),
        ({"symbol": "NOSUCH"}, -1121),
        ({"symbol": "btcusdt"}, -1100),
        ({"side": "HOLD"}, -1117),
        ({"timeInForce": "GTX"}, -1115),
        ({"timeInForce": None}, -1102),
        ({"price": None}, -1102),
        ({"type": "MARKET", "price": None}, -1106),
        ({"type": "MARKET", "timeInForce": None}, -1106),
        ({"type": "LIMIT_MAKER"}, -1106),
        ({"type": "MARKET", "price": None, "timeInForce": None, "quoteOrderQty": "10"}, -1128),
        (
            {"type": "MARKET", "price": None, "timeInForce": None, "quantity": None},
            -1102,
        ),
        ({"type": "STOP_LOSS"}, -2010),
        ({"icebergQty": "0.001"}, -2010),
        ({"strategyType": "7"}, -1130),
        ({"strategyId": "99999999999999999999"}, -1108),
        ({"selfTradePreventionMode": "SOMETIMES"}, -1130),
        ({"quantity": "0.0100000001"}, -1111),
        ({"recvWindow": "60001"}, -1102),
        ({"recvWindow": "abc"}, -1100),
    ],
)
async def test_a_wrong_parameter_has_its_code(changes: Json, code: int) -> None:
    async with trading() as desk:
        book(desk)
        reply = await desk.place(**changes)
        assert (reply.status, reply.code) == (400, code), reply.body
        assert not desk.ledger.orders()


async def test_a_name_sent_twice_is_refused_and_the_query_wins_over_the_body() -> None:
    async with trading() as desk:
        book(desk)
        rest = desk.rest()
        assert rest.key is not None
        reply = await rest.raw("POST", "/api/v3/order", "symbol=BTCUSDT&symbol=BTCUSDT")
        assert reply.code == -1101
        query = "symbol=BTCUSDT&side=BUY&type=LIMIT&timeInForce=GTC"
        body = f"symbol=NOSUCH&quantity=0.01&price=60000&timestamp={now_ms()}"
        body += f"&signature={sign(rest.key, (query + body).encode())}"
        assert (await rest.raw("POST", "/api/v3/order", query, body)).status == 200


# -- time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("product", ["spot", "ubase"])
async def test_the_window_of_time(product: str) -> None:
    async with trading() as desk:
        book(desk, product)
        for offset, window, code in (
            (-4_000, 5_000, 0),
            (-6_000, 5_000, -1021),
            (-6_000, 10_000, 0),
            (900, 5_000, 0),
            (1_500, 5_000, -1021),
            (-1_000, 0, -1021),
        ):
            stamp = now_ms() + offset
            reply = await desk.place(product, timestamp=stamp, recvWindow=window)
            assert reply.body.get("code", 0) == code, (offset, window)
            if code:
                ahead = "1000ms ahead of the server's time" in reply.msg
                assert ahead == (offset > 0)


async def test_spot_takes_microseconds_and_fractions_of_a_window() -> None:
    async with trading() as desk:
        book(desk)
        stamp = time.time_ns() // 1000
        assert (await desk.place(timestamp=stamp, recvWindow="5000.125")).status == 200


async def test_the_venues_clock_can_be_stepped() -> None:
    async with trading() as desk:
        book(desk)
        assert desk.venue.inject({"fault": "clock_skew", "ms": 30_000}) == ["30000 ms"]
        assert (await desk.place()).code == -1021
        told = (await desk.rest().raw("GET", "/api/v3/time")).body["serverTime"]
        assert abs(told - now_ms() - 30_000) < 1_000
        assert (await desk.place(timestamp=told)).status == 200
        assert [record.fault for record in desk.ledger.faults()] == ["clock_skew"]


@pytest.mark.parametrize(("product", "code"), [("spot", -1021), ("ubase", -5028)])
async def test_a_request_can_be_too_late_at_the_engine_alone(product: str, code: int) -> None:
    """It still counts on the order limit."""
    async with trading() as desk:
        book(desk, product)
        desk.venue.inject({"fault": "clock_skew", "ms": 30_000, "which": "engine"})
        reply = await desk.place(product)
        assert reply.code == code
        assert reply.headers["X-MBX-ORDER-COUNT-10S"] == "1"


# -- keys and files -------------------------------------------------------------------------------


def secret_in(name: str) -> str:
    path = Path(name)
    assert path.stat().st_mode & 0o777 == 0o600
    return path.read_text()


async def test_config_entries_name_urls_and_key_files(tmp_path: Path) -> None:
    async with trading() as desk:
        entry = desk.venue.config_entries("main", tmp_path, "ed25519")
        assert entry["exchange"] == "binance"
        assert entry["ubase_ws_url"].endswith("/private")
        key = desk.key("ed25519")
        assert secret_in(entry["api_key"]["file"]) == key.api_key
        assert secret_in(entry["ed25519_key_path"]) == key.private
        with pytest.raises(ConfigError):
            desk.venue.config_entries("nobody")
        with pytest.raises(ConfigError):
            desk.venue.config_entries("main", tmp_path, "rsa")


def test_generated_keys_come_from_the_seed_and_hide_in_their_repr() -> None:
    accounts = (AccountSpec(),)
    first, again = KeyRing(accounts, 7), KeyRing(accounts, 7)
    assert [key.api_key for key in first] == [key.api_key for key in again]
    assert [key.private for key in first] == [key.private for key in again]
    other = KeyRing(accounts, 8)
    assert {key.api_key for key in first}.isdisjoint(key.api_key for key in other)
    assert all(key.private not in repr(key) for key in first)


async def test_a_key_made_at_random_signs_for_rsa() -> None:
    async with trading(accounts=(AccountSpec(keys=(KeySpec(algorithm="rsa"),)),)) as desk:
        reply = await desk.rest("spot", "rsa").signed("GET", "/api/v3/account")
        assert reply.status == 200
        key = desk.key("rsa")
        assert not key.verifier.accepts(b"x", base64.b64encode(b"0" * 256).decode())
