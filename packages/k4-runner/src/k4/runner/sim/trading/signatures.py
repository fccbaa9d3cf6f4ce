"""Checks request signatures over the text as it was received. Pure.

REST: the raw query and the raw body joined with nothing, less the `signature` pair. WebSocket API:
every member of `params` but `signature`, as `name=value` sorted by name, with the value's JSON text
as it was printed. Sources: Binance REST and WebSocket API documentation (July 2026).

Written for the simulation alone, and on other primitives than K4's own signing, so that a mistake
in one does not hide in the other.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from typing import Protocol
from urllib.parse import unquote_plus

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

_PAIR = "signature="


class Verifier(Protocol):
    """sessions: the kind of key that may log on."""

    sessions: bool

    def accepts(self, payload: bytes, signature: str) -> bool:
        """Is this the signature of the payload? signature: as in JSON, percent-decoded."""
        ...


class HmacVerifier:
    """HMAC-SHA256, hex of either case."""

    sessions = False

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()

    def accepts(self, payload: bytes, signature: str) -> bool:
        wanted = hmac.new(self._secret, payload, hashlib.sha256).hexdigest()
        return hmac.compare_digest(wanted.encode(), signature.lower().encode())


class Ed25519Verifier:
    """Ed25519 over the payload itself, base64."""

    sessions = True

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key

    def accepts(self, payload: bytes, signature: str) -> bool:
        try:
            self._key.verify(base64.b64decode(signature, validate=True), payload)
        except (InvalidSignature, binascii.Error, ValueError):
            return False
        return True


class RsaVerifier:
    """RSASSA-PKCS1-v1_5 with SHA-256, base64."""

    sessions = False

    def __init__(self, key: RSAPublicKey) -> None:
        self._key = key

    def accepts(self, payload: bytes, signature: str) -> bool:
        try:
            raw = base64.b64decode(signature, validate=True)
            self._key.verify(raw, payload, padding.PKCS1v15(), hashes.SHA256())
        except (InvalidSignature, binascii.Error, ValueError):
            return False
        return True


def public_verifier(public_pem: bytes) -> Ed25519Verifier | RsaVerifier:
    """The verifier of a SubjectPublicKeyInfo in PEM. Raises ValueError for another kind of key."""
    key = serialization.load_pem_public_key(public_pem)
    if isinstance(key, Ed25519PublicKey):
        return Ed25519Verifier(key)
    if isinstance(key, RSAPublicKey):
        return RsaVerifier(key)
    raise ValueError(f"keys are Ed25519 or RSA, not {type(key).__name__}")


# -- what is signed -------------------------------------------------------------------------------


def rest_payload(query: str, body: str) -> tuple[bytes, str]:
    """(what is signed, the signature) of a REST request; signature '' where there is none."""
    query, in_query = _without_signature(query)
    body, in_body = _without_signature(body)
    signature = unquote_plus(in_query or in_body)
    return (query + body).encode("utf-8", "surrogateescape"), signature


def _without_signature(text: str) -> tuple[str, str]:
    pairs = text.split("&")
    found = [pair for pair in pairs if pair.startswith(_PAIR)]
    kept = [pair for pair in pairs if not pair.startswith(_PAIR)]
    return "&".join(kept), found[0].removeprefix(_PAIR) if found else ""


def ws_payload(params: Mapping[str, str]) -> bytes:
    """What is signed of `params` (see `ws_values`)."""
    names = sorted((name for name in params if name != "signature"), key=str.encode)
    return "&".join(f"{name}={params[name]}" for name in names).encode()


def ws_values(params: Mapping[str, msgspec.Raw]) -> dict[str, str]:
    """Each value as the text that is signed: strings without quotes, numbers and booleans as they
    were printed in the request. null counts as not sent."""
    found: dict[str, str] = {}
    for name, raw in params.items():
        text = bytes(raw).decode().strip()
        if text.startswith('"'):
            found[name] = msgspec.json.decode(raw, type=str)
        elif text != "null":
            found[name] = text
    return found
