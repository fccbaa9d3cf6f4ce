"""No secret in a log: by value, by the name it goes under, by the places where it travels."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k4.core.config import Secret, TradingConfig
from k4.core.redact import MASK, Redactor

SECRET = "NhqPtmdSJYdKjVHjA7PZj4Mge3R5YNiP1e3UZjInClVN65XAbvqqM6A7H5fATj0j"


@pytest.mark.parametrize(
    "text",
    [
        f"https://api.example/order?symbol=BTCUSDT&signature={SECRET}&recvWindow=5000",
        f"https://api.example/v1/listenKey?listenKey={SECRET}",
        f"wss://stream.example/private/ws/{SECRET}",
        f"wss://stream.example/private/ws/{SECRET}?a=1",
        f'{{"id":1,"params":{{"apiKey":"{SECRET}","side":"BUY"}}}}',
        f"{{'X-MBX-APIKEY': '{SECRET}', 'Host': 'x'}}",
        f"X-MBX-APIKEY: {SECRET}\r\nHost: x",
        f"Authorization: Bearer {SECRET}",
        f"authorization: Basic {SECRET}",
        f"Config(my_api_key='{SECRET}', n=1)",
        f"myApiKey={SECRET}",
        f"secret={SECRET}; passphrase: {SECRET}, token={SECRET}",
        f'b\'{{\\"listenKey\\":\\"{SECRET}\\"}}\'',
        f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----",
        f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}",
    ],
)
def test_secrets_are_masked_where_they_travel(text: str) -> None:
    assert SECRET not in Redactor().text(text)
    assert SECRET not in repr(Redactor().value({"error": [text], "raw": text.encode()}))


@pytest.mark.parametrize(
    "text",
    [
        "binance.spot.json line 2 replaced: stall of 10.2 s",
        "wss://stream.binance.com:9443/stream?streams=btcusdt@trade/ethusdt@trade",
        "wss://fstream.binance.com/public/ws/btcusdt@bookTicker",
        "design=3, tokens=5, keys: a, b",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert Redactor().text(text) == text


def test_the_rest_of_a_url_stays_readable() -> None:
    url = f"https://x/order?symbol=BTCUSDT&signature={SECRET}&recvWindow=5000"
    assert Redactor().text(url) == "https://x/order?symbol=BTCUSDT&signature=***&recvWindow=5000"


@pytest.mark.parametrize(
    "name",
    [
        *("key", "apiKey", "api_key", "bybit_api_key", "secret", "secret_key", "signature"),
        *("listenKey", "X-MBX-APIKEY", "OK-ACCESS-KEY", "OK-ACCESS-PASSPHRASE", "password"),
        *("Cookie", "sign"),
    ],
)
def test_names_of_secrets_hide_what_they_name(name: str) -> None:
    assert Redactor().named(name, SECRET) == MASK
    assert Redactor().value({"deep": [{name: {"x": SECRET}}]}) == {"deep": [{name: MASK}]}


@pytest.mark.parametrize("name", ["symbol", "design", "keys", "monkey_count", "ed25519_key_path"])
def test_other_names_do_not(name: str) -> None:
    assert Redactor().named(name, "x") == "x"


def test_secret_objects_are_masked_anywhere() -> None:
    secret = Secret(SECRET)
    config = TradingConfig(exchange="binance", name="a", journal="j", api_key=secret)
    assert SECRET not in repr(Redactor().value([secret, {"s": secret}, (config,), {secret}]))
    assert SECRET not in f"{secret} {secret!r} {config}"


def test_known_secrets_are_masked_in_any_text() -> None:
    redactor = Redactor([Secret(SECRET), Secret("abc")])
    assert redactor.text(f"the venue says: {SECRET} is unknown") == "the venue says: *** is unknown"
    assert redactor.text("abcdef") == "abcdef", "short secrets would blot out ordinary words"


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def test_odd_values_become_json() -> None:
    odd = [1 << 70, float("nan"), b"\xff", "\ud800", Broken(), {1: {2}}, object]
    for item in odd:
        msgspec.json.encode(Redactor().value(item))
    deep: list[object] = []
    for _ in range(1000):
        deep = [deep]
    msgspec.json.encode(Redactor().value(deep))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(JSON)
def test_any_value_can_be_redacted_and_encoded(value: object) -> None:
    msgspec.json.encode(Redactor([Secret(SECRET)]).value(value))
