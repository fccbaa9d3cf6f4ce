"""Signatures: every published and constructed vector, key files, and any parameters at all."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa
from hypothesis import given
from hypothesis import strategies as st

from k4.core.config import Secret, TradingConfig
from k4.core.trading import KeyRefused
from k4.td.signing import (
    HmacSigner,
    Signer,
    ed25519_signer,
    load_signer,
    rest_query,
    rsa_signer,
    signed_params,
    signed_query,
    ws_payload,
)

DATA: dict[str, Any] = json.loads(
    (Path(__file__).parent / "vectors" / "binance-signature-vectors.json").read_text("utf-8")
)
VECTORS: dict[str, dict[str, Any]] = {entry["id"]: entry for entry in DATA["vectors"]}


def pem_file(folder: Path, der_base64: str, mode: int = 0o600) -> str:
    path = folder / "key.pem"
    path.write_text(
        f"-----BEGIN PRIVATE KEY-----\n{der_base64}\n-----END PRIVATE KEY-----\n", "ascii"
    )
    path.chmod(mode)
    return str(path)


def signer_of(vector: dict[str, Any], folder: Path) -> Signer:
    if vector["algorithm"] == "HMAC-SHA256":
        return HmacSigner(Secret(vector["secret"]))
    owner = VECTORS[vector["key_ref"]] if "key_ref" in vector else vector
    path = pem_file(folder, owner["pkcs8_der_base64"])
    return ed25519_signer(path) if vector["algorithm"] == "Ed25519" else rsa_signer(path)


@pytest.mark.parametrize("name", VECTORS)
def test_every_vector_gives_its_signature(name: str, tmp_path: Path) -> None:
    vector = VECTORS[name]
    payload = vector["payload"].replace("\\x01", "\x01")
    signer = signer_of(vector, tmp_path)
    assert signer.sign(payload.encode()) == vector["signature"]
    if vector["matches_published"]:
        assert vector["signature"] == vector["published_signature"]


@pytest.mark.parametrize("name", [name for name, v in VECTORS.items() if v["transport"] == "REST"])
def test_rest_requests_carry_the_signature_last(name: str, tmp_path: Path) -> None:
    vector = VECTORS[name]
    query, body = vector["query"], vector["body"]
    expected = vector.get("signature_percent_encoded", vector["signature"])
    signed = signed_query(signer_of(vector, tmp_path), query, body)
    assert signed == (f"{query}&signature={expected}" if query else f"signature={expected}")


@pytest.mark.parametrize("name", [name for name, v in VECTORS.items() if v["transport"] == "REST"])
def test_rest_queries_are_encoded_as_the_vectors_are(name: str) -> None:
    vector = VECTORS[name]
    text = vector["query"] or vector["body"]
    pairs = [pair.split("=", 1) for pair in text.split("&")]
    assert rest_query((name, unquote(value)) for name, value in pairs) == text.replace(" ", "%20")


@pytest.mark.parametrize(
    "name", [name for name, v in VECTORS.items() if v["transport"] == "WS-API"]
)
def test_ws_parameters_give_the_payload_and_the_signature(name: str, tmp_path: Path) -> None:
    vector = VECTORS[name]
    assert ws_payload(vector["ws_params"]).decode() == vector["payload"]
    signed = signed_params(signer_of(vector, tmp_path), vector["ws_params"])
    assert signed == {**vector["ws_params"], "signature": vector["signature"]}


@pytest.mark.parametrize("entry", DATA["negative_vectors"], ids=lambda entry: entry["id"])
def test_wrong_payloads_are_never_what_k4_signs(entry: dict[str, Any]) -> None:
    """The wrong signature follows from the wrong payload; what K4 signs of it gives another."""
    signer = HmacSigner(Secret(entry["secret"]))
    wrong = entry["wrong_signature"]
    assert signer.sign(entry["payload"].encode()) == wrong
    if entry["transport"] == "REST":
        signed = signed_query(signer, entry["sent_query"], entry.get("sent_body", ""))
        assert not signed.endswith(wrong)
        return
    pairs = (pair.split("=", 1) for pair in entry["payload"].split("&"))
    params: dict[str, Any] = {name: unquote(value) for name, value in pairs}
    params.setdefault("apiKey", entry["api_key"])
    assert signed_params(signer, params)["signature"] != wrong


def test_published_samples_without_a_key_have_the_documented_shape() -> None:
    for entry in DATA["official_not_recomputable"]:
        text = entry["published_signature"]
        raw = base64.b64decode(text + "=" * (-len(text) % 4))
        assert len(raw) == entry["decoded_signature_bytes"]


def test_ws_payload_prints_values_as_json_does() -> None:
    params: dict[str, str | int | float | bool] = {"b": True, "a": 5, "d": 0.5, "c": "0.010"}
    params["signature"] = "no"
    assert ws_payload(params) == b"a=5&b=true&c=0.010&d=0.5"


TEXT = st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable())
PARAMS = st.dictionaries(TEXT, TEXT | st.integers() | st.booleans(), min_size=1, max_size=8)


@given(PARAMS)
def test_any_rest_query_is_verified_from_its_raw_bytes(params: dict[str, str | int | bool]) -> None:
    signer = HmacSigner(Secret("secret"))
    sent = signed_query(signer, rest_query(params.items()))
    raw, _, signature = sent.rpartition("&signature=")
    assert sent.isascii()
    expected = hmac.new(b"secret", raw.encode("ascii"), hashlib.sha256).hexdigest()
    assert signature == expected
    read = dict(pair.split("=", 1) for pair in raw.split("&"))
    assert {unquote(name): unquote(value) for name, value in read.items()} == {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in params.items()
    }


@given(PARAMS)
def test_any_ws_payload_is_what_a_verifier_makes_of_the_json(
    params: dict[str, str | int | bool],
) -> None:
    params.pop("signature", None)
    signed = signed_params(HmacSigner(Secret("secret")), params)
    received = json.loads(json.dumps(signed))
    given_signature = received.pop("signature")
    printed = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in received.items()
    }
    lines = [f"{name}={printed[name]}" for name in sorted(printed, key=str.encode)]
    payload = "&".join(lines).encode()
    assert hmac.new(b"secret", payload, hashlib.sha256).hexdigest() == given_signature


def test_own_keys_verify_with_their_public_halves(tmp_path: Path) -> None:
    for key in (
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(public_exponent=65537, key_size=2048),
    ):
        der = key.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        path = pem_file(tmp_path, base64.b64encode(der).decode())
        public = key.public_key()
        if isinstance(public, ed25519.Ed25519PublicKey):
            signer: Signer = ed25519_signer(path)
            public.verify(base64.b64decode(signer.sign(b"payload")), b"payload")
            with pytest.raises(InvalidSignature):
                public.verify(base64.b64decode(signer.sign(b"payload")), b"other")
        else:
            signer = rsa_signer(path)
            raw = base64.b64decode(signer.sign(b"payload"))
            public.verify(raw, b"payload", padding.PKCS1v15(), hashes.SHA256())


def test_a_key_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    der = VECTORS["spot-rest-ed25519-ascii"]["pkcs8_der_base64"]
    for mode in (0o640, 0o604, 0o660):
        path = pem_file(tmp_path, der, mode)
        with pytest.raises(KeyRefused, match="chmod 600"):
            ed25519_signer(path)
    assert ed25519_signer(pem_file(tmp_path, der, 0o400)).sessions


def test_files_that_hold_no_usable_key_say_so(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    with pytest.raises(KeyRefused, match="No such file"):
        ed25519_signer(str(path))
    path.write_text("hello")
    path.chmod(0o600)
    with pytest.raises(KeyRefused, match="PKCS #8"):
        rsa_signer(str(path))
    key = ed25519.Ed25519PrivateKey.generate()
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"pass"),
        )
    )
    with pytest.raises(KeyRefused, match="passphrase"):
        ed25519_signer(str(path))
    with pytest.raises(KeyRefused, match="no RSA key"):
        rsa_signer(pem_file(tmp_path, VECTORS["spot-rest-ed25519-ascii"]["pkcs8_der_base64"]))
    with pytest.raises(KeyRefused, match="no Ed25519 key"):
        ed25519_signer(pem_file(tmp_path, VECTORS["spot-rest-rsa"]["pkcs8_der_base64"]))


def test_the_configuration_chooses_the_signer_and_secrets_stay_hidden(tmp_path: Path) -> None:
    base: dict[str, Any] = {"exchange": "binance", "name": "t", "journal": "j"}
    with pytest.raises(KeyRefused, match="neither secret_key nor"):
        load_signer(TradingConfig(**base))
    signer = load_signer(TradingConfig(**base, secret_key=Secret("hush")))
    assert "hush" not in repr(signer)
    path = pem_file(tmp_path, VECTORS["spot-rest-ed25519-ascii"]["pkcs8_der_base64"])
    assert load_signer(TradingConfig(**base, ed25519_key_path=path)).sessions
    path = pem_file(tmp_path, VECTORS["spot-rest-rsa"]["pkcs8_der_base64"])
    assert not load_signer(TradingConfig(**base, rsa_key_path=path)).sessions
    assert os.stat(path).st_mode & 0o777 == 0o600
