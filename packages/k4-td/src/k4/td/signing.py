"""Request signatures: what is signed, and with which key. Pure, but for reading a key file.

Rules (Binance, REST and WebSocket API documentation, July 2026):

- REST: the query as sent and the body as sent, joined with nothing; percent-encoded before signing.
- WebSocket API: every parameter but `signature`, `apiKey` included, sorted by name, `name=value`
  joined with `&`, UTF-8 and not percent-encoded; numbers as the JSON prints them, booleans `true`
  and `false`.
- HMAC-SHA256 in hex; Ed25519 and RSA (PKCS #1 v1.5, SHA-256) in base64.
"""

from __future__ import annotations

import base64
import hmac
import os
import stat
from collections.abc import Iterable, Mapping
from typing import Protocol
from urllib.parse import quote

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa
from nacl.signing import SigningKey

from k4.core.config import Secret, TradingConfig
from k4.core.trading import KeyRefused

Value = str | int | float | bool


class Signer(Protocol):
    """A key. `sessions`: whether the venue accepts `session.logon` with it."""

    sessions: bool

    def sign(self, payload: bytes) -> str:
        """The signature as the venue writes it: hex or plain base64."""
        ...


class HmacSigner:
    """HMAC-SHA256; the key is the secret's text."""

    sessions = False

    def __init__(self, secret: Secret) -> None:
        self._key = secret.reveal().encode()

    def sign(self, payload: bytes) -> str:
        return hmac.digest(self._key, payload, "sha256").hex()

    def __repr__(self) -> str:
        return "HmacSigner(***)"


class Ed25519Signer:
    """Ed25519 over the payload's bytes. libsodium signs in about 25 µs, a third of RSA's cost."""

    sessions = True

    def __init__(self, seed: bytes) -> None:
        self._key = SigningKey(seed)

    def sign(self, payload: bytes) -> str:
        return base64.b64encode(self._key.sign(payload).signature).decode()

    def __repr__(self) -> str:
        return "Ed25519Signer(***)"


class RsaSigner:
    """RSASSA-PKCS1-v1_5 with SHA-256; the venue takes 2048 to 4096 bits."""

    sessions = False

    def __init__(self, key: rsa.RSAPrivateKey) -> None:
        self._key = key

    def sign(self, payload: bytes) -> str:
        signature = self._key.sign(payload, padding.PKCS1v15(), hashes.SHA256())
        return base64.b64encode(signature).decode()

    def __repr__(self) -> str:
        return "RsaSigner(***)"


def load_signer(config: TradingConfig) -> Signer:
    """The signer of one `trading` entry. Raises KeyRefused, which names the file and the remedy."""
    if config.ed25519_key_path:
        return ed25519_signer(config.ed25519_key_path)
    if config.rsa_key_path:
        return rsa_signer(config.rsa_key_path)
    if config.secret_key is None:
        raise KeyRefused(
            "",
            f"{config.path} has neither secret_key nor a key path",
            remedy="give secret_key, ed25519_key_path or rsa_key_path",
        )
    return HmacSigner(config.secret_key)


def ed25519_signer(path: str) -> Ed25519Signer:
    """From a PKCS #8 PEM file."""
    key = _private_key(path)
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise KeyRefused("", f"{path} holds no Ed25519 key", remedy="check ed25519_key_path")
    raw = serialization.Encoding.Raw, serialization.PrivateFormat.Raw
    return Ed25519Signer(key.private_bytes(*raw, serialization.NoEncryption()))


def rsa_signer(path: str) -> RsaSigner:
    """From a PKCS #8 PEM file."""
    key = _private_key(path)
    if not isinstance(key, rsa.RSAPrivateKey) or not 2048 <= key.key_size <= 4096:
        raise KeyRefused(
            "", f"{path} holds no RSA key of 2048 to 4096 bits", remedy="check rsa_key_path"
        )
    return RsaSigner(key)


def _private_key(path: str) -> object:
    try:
        return serialization.load_pem_private_key(_read_private(path), password=None)
    except TypeError:
        problem = "is encrypted with a passphrase"
    except (ValueError, UnsupportedAlgorithm):
        problem = "is no PKCS #8 PEM private key"
    raise KeyRefused(
        "",
        f"{path} {problem}",
        remedy='it must begin with "-----BEGIN PRIVATE KEY-----": openssl pkcs8 -topk8 -nocrypt',
    )


def _read_private(path: str) -> bytes:
    """The file's bytes, if nobody but its owner may touch it. The mode is checked on the open
    file, so that it cannot be exchanged in between."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise KeyRefused(
            "", f"{path}: {error.strerror}", remedy="give the path of a key file of this user"
        ) from None
    with os.fdopen(fd, "rb") as file:
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        if mode & 0o077:
            raise KeyRefused(
                "", f"{path} has mode {mode:04o}: others may read it", remedy=f"chmod 600 {path}"
            )
        return file.read(1 << 16)


def value_text(value: Value) -> str:
    """A parameter as text, as JSON prints it, strings without their quotes."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def rest_query(params: Iterable[tuple[str, Value]]) -> str:
    """`name=value` joined with `&`; names and values are percent-encoded as UTF-8."""
    pairs = ((quote(name, safe=""), quote(value_text(value), safe="")) for name, value in params)
    return "&".join(f"{name}={value}" for name, value in pairs)


def signed_query(signer: Signer, query: str, body: str = "") -> str:
    """`query` with the signature of query and body as its last parameter."""
    signature = quote(signer.sign((query + body).encode("ascii")), safe="")
    return f"{query}&signature={signature}" if query else f"signature={signature}"


def ws_payload(params: Mapping[str, Value]) -> bytes:
    """What a WebSocket API request signs."""
    names = sorted((name for name in params if name != "signature"), key=str.encode)
    return "&".join(f"{name}={value_text(params[name])}" for name in names).encode()


def signed_params(signer: Signer, params: Mapping[str, Value]) -> dict[str, Value]:
    """`params` with their signature."""
    return {**params, "signature": signer.sign(ws_payload(params))}
