"""API keys: whose they are, what they may do, and how their signatures are checked."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from k4.core.errors import ConfigError, Problem
from k4.runner.sim.trading import errors
from k4.runner.sim.trading.signatures import HmacVerifier, Verifier, public_verifier
from k4.runner.sim.trading.spec import AccountSpec, KeySpec

_FORMAT = re.compile(r"[A-Za-z0-9_-]{1,128}")
_PRIVATE = serialization.PrivateFormat.PKCS8
_PUBLIC = serialization.PublicFormat.SubjectPublicKeyInfo
_PEM = serialization.Encoding.PEM


class Key:
    """A key at the venue. Its private half is here only so that a client can be configured."""

    def __init__(
        self, spec: KeySpec, account: str, api_key: str, private: str, verifier: Verifier
    ) -> None:
        self.algorithm = spec.algorithm
        self.account = account
        self.api_key = api_key
        self.trades = spec.trades
        self.revoked = False
        self.verifier = verifier
        self.private = private  # HMAC secret, or PKCS#8 in PEM; '' where it is not known here

    def __repr__(self) -> str:
        return f"Key({self.account}, {self.algorithm}, revoked={self.revoked})"

    def write(self, folder: Path) -> dict[str, object]:
        """Write the key into files of mode 0600; returns the entries of the configuration that name
        them. Raises ConfigError where the private half is not known."""
        if not self.private:
            raise ConfigError([Problem("keys", "the simulation knows only this key's public half")])
        stem = f"{self.account}-{self.algorithm}"
        _write(folder / f"{stem}.key", self.api_key)
        entry: dict[str, object] = {"api_key": {"file": str(folder / f"{stem}.key")}}
        if self.algorithm == "hmac":
            _write(folder / f"{stem}.secret", self.private)
            entry["secret_key"] = {"file": str(folder / f"{stem}.secret")}
        else:
            _write(folder / f"{stem}.pem", self.private)
            entry[f"{self.algorithm}_key_path"] = str(folder / f"{stem}.pem")
        return entry


class KeyRing:
    """All keys of the venue."""

    def __init__(self, accounts: Sequence[AccountSpec], seed: int) -> None:
        self._keys: dict[str, Key] = {}
        for index, account in enumerate(accounts):
            for at, spec in enumerate(account.keys):
                path = f"accounts[{index}].keys[{at}]"
                key = _make(spec, account.name, f"{seed}/{account.name}/{at}", path)
                if key.api_key in self._keys:
                    raise ConfigError([Problem(f"{path}.api_key", "appears twice")])
                self._keys[key.api_key] = key

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys.values())

    def find(self, api_key: str) -> Key:
        """The key as it was sent. Raises what the venue answers."""
        if not _FORMAT.fullmatch(api_key):
            raise errors.key_format()
        key = self._keys.get(api_key)
        if key is None or key.revoked:
            raise errors.key_rejected()
        return key

    def of(self, account: str, algorithm: str) -> Key:
        """Raises KeyError."""
        for key in self:
            if key.account == account and key.algorithm == algorithm:
                return key
        raise KeyError(f"{account} has no key of {algorithm}")


def _make(spec: KeySpec, account: str, seed: str, path: str) -> Key:
    digest = hashlib.sha256(f"{seed}/{spec.algorithm}".encode()).digest()
    api_key = spec.api_key or hashlib.sha256(b"key" + digest).hexdigest()
    if spec.algorithm == "hmac":
        secret = spec.secret or hashlib.sha256(b"secret" + digest).hexdigest()
        return Key(spec, account, api_key, secret, HmacVerifier(secret))
    private = spec.private_pem or ("" if spec.public_pem else _generate(spec.algorithm, digest))
    try:
        public = spec.public_pem.encode() if spec.public_pem else _public(private)
        return Key(spec, account, api_key, private, public_verifier(public))
    except ValueError as error:
        raise ConfigError([Problem(path, f"no key: {error}")]) from error


def _generate(algorithm: str, digest: bytes) -> str:
    if algorithm == "ed25519":
        made: Ed25519PrivateKey | rsa.RSAPrivateKey = Ed25519PrivateKey.from_private_bytes(digest)
    else:
        made = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return made.private_bytes(_PEM, _PRIVATE, serialization.NoEncryption()).decode()


def _public(private: str) -> bytes:
    key = serialization.load_pem_private_key(private.encode(), None)
    return key.public_key().public_bytes(_PEM, _PUBLIC)


def pem(label: str, der_base64: str) -> str:
    """The PEM of a DER body in base64, for keys that are published as such."""
    body = base64.b64encode(base64.b64decode(der_base64)).decode()
    lines = [body[at : at + 64] for at in range(0, len(body), 64)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""])


def _write(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
