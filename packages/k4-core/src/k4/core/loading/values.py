"""Converters: what a single value of the file means (cores, URLs, secrets, store names, decimals).

Each takes a `Value` and returns its meaning or refuses it with a sentence that says what would do.
"""

from __future__ import annotations

import ipaddress
import os
import re
import stat
from collections.abc import Callable, Collection, Mapping
from decimal import Decimal, InvalidOperation
from functools import partial
from urllib.parse import urlsplit

from k4.core.config import Address, Secret
from k4.core.errors import K4Error
from k4.core.layout import encode_symbol
from k4.core.loading.document import Real, Value, attempt, each, nearest
from k4.core.wire import MAX_KEY_BYTES

MAX_CORE = 8191  # NR_CPUS of Linux ends there
MAX_STORE_NAME = 200  # of 255 bytes; the rest is for temporary names beside it
MAX_SECRET = 65_536
_STORE_NAME = re.compile(r"[^/\s\x00-\x1f\x7f]+")
_MODE = re.compile(r"0?[0-7]{3}")
_DECIMAL = re.compile(r"\d{1,40}(\.\d{1,40})?([eE][+-]?\d{1,2})?")
_HEADER = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # a token, RFC 9110 5.6.2
_ENV_NAME = re.compile(r"[A-Z_][A-Z0-9_]{0,60}")
_SECRET_HEADER = re.compile(r"key|secret|token|auth|cookie|passphrase|sign", re.IGNORECASE)


def integer(minimum: int, maximum: int) -> Callable[[Value], int]:
    return lambda value: value.integer(minimum, maximum)


def number(minimum: float, maximum: float) -> Callable[[Value], float]:
    """Above `minimum`, at most `maximum`."""
    return lambda value: value.number(minimum, maximum)


def choice(*options: str) -> Callable[[Value], str]:
    return lambda value: value.choice(options)


def text(value: Value) -> str:
    return value.text()


def filled(value: Value) -> str:
    """Text that says something."""
    return value.text() or value.fail("must not be empty")


def flag(value: Value) -> bool:
    return value.flag()


def cores(value: Value) -> tuple[int, ...]:
    """One core or a list of them; -1, as elsewhere, means none in particular."""
    numbers = [item.integer(-1, MAX_CORE) for item in value.items_or_self()]
    return tuple(sorted({number for number in numbers if number >= 0}))


def exchange(built_in: Collection[str], plugins: Callable[[], list[str]]) -> Callable[[Value], str]:
    """An exchange's name. Plug-ins are looked for only where it is none of those built in."""

    def convert(value: Value) -> str:
        name = value.text()
        return name if name in built_in else value.choice([*built_in, *plugins()])

    return convert


def module_name(value: Value) -> str:
    name = filled(value)
    if "/" in name or len(name.encode()) > 64:
        value.fail("must be at most 64 bytes without '/': logs are named after it")
    return name


def store_name(value: Value) -> str:
    """A store's name without its leading slash; empty where there is none."""
    name = value.text().removeprefix("/")
    if name and not _STORE_NAME.fullmatch(name):
        value.fail("must be a name without slashes and spaces")
    return name


def symbols(value: Value) -> tuple[str, ...]:
    """A list of symbols, each once and in at most 32 bytes."""
    items = value.items()
    if not items:
        value.fail("lists no symbol")
    seen: dict[str, str] = {}
    return tuple(each(items, lambda item: _symbol(item, seen)))


def _symbol(value: Value, seen: dict[str, str]) -> str:
    symbol = filled(value)
    if symbol != symbol.strip() or " " in symbol:
        value.fail("must be a symbol without spaces")
    try:
        encode_symbol(symbol)
    except K4Error as error:
        value.fail(str(error))
    # Venues do not tell btcusdt from BTCUSDT, and one of the two would get the other's prices.
    first = seen.setdefault(symbol.upper(), value.path)
    if first != value.path:
        value.fail(f"symbol {symbol!r} stands at {first} already")
    return symbol


def shm_mode(value: Value) -> int:
    """File mode as octal text. The writer's user must be able to read and write."""
    if not isinstance(value.raw, str) or not _MODE.fullmatch(value.raw):
        value.fail(f'must be an octal mode in quotation marks, such as "0640", not {value.what()}')
    mode = int(value.raw, 8)
    if mode & 0o600 != 0o600 or mode & 0o111:
        value.fail("must let the owner read and write (6 first) and nobody execute")
    if mode & 0o022:
        value.findings.warn(value.path, "lets other users write prices into the stores")
    return mode


def ip(value: Value) -> str:
    address = value.text()
    try:
        ipaddress.ip_address(address)
    except ValueError:
        value.fail(f"must be an IP address, not {value.what()}")
    return address


def network(value: Value) -> str:
    """An address, or a network in CIDR form."""
    written = value.text()
    try:
        ipaddress.ip_network(written, strict=False)
    except ValueError:
        value.fail(f"must be an IP address or a network such as 10.0.0.0/24, not {value.what()}")
    return written


def address(value: Value) -> Address:
    section = value.section()
    found = Address(
        section.need("ip", by=ip, default=""),
        section.need("port", by=integer(1, 65_535), default=0),
    )
    section.close()
    return found


def url(*schemes: str) -> Callable[[Value], str]:
    """A whole URL with one of these schemes, a host, no credentials and no fragment."""

    def convert(value: Value) -> str:
        written = value.text()
        try:
            parts = urlsplit(written)
            fine = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
        except ValueError:
            value.fail("must be a URL; this one cannot be taken apart")
        if not fine or " " in written or not parts.netloc.isascii():
            wanted = " or ".join(f"{scheme}://" for scheme in schemes)
            value.fail(f"must be a URL that begins with {wanted} and a host")
        if parts.username is not None or parts.fragment:
            value.fail("must be a URL without credentials and without a fragment")
        return written

    return convert


def urls(*schemes: str) -> Callable[[Value], tuple[str, ...]]:
    """One URL or a list of them."""

    def convert(value: Value) -> tuple[str, ...]:
        items = value.items_or_self()
        if not items:
            value.fail("lists no URL")
        return tuple(each(items, url(*schemes)))

    return convert


def decimal(value: Value) -> str:
    """A figure above zero as exact decimal text, from a JSON number or from text."""
    raw = value.raw
    if isinstance(raw, Real):
        written = raw.text
    elif isinstance(raw, int) and not isinstance(raw, bool):
        written = str(raw)
    elif isinstance(raw, str):
        written = raw
    else:
        value.fail(f"must be a figure, as a number or as text, not {value.what()}")
    try:
        if not _DECIMAL.fullmatch(written):
            raise InvalidOperation
        exact = Decimal(written)
    except InvalidOperation:
        value.fail(f"must be a decimal figure above zero, not {value.what()}")
    if not exact:
        value.fail("must be above zero; leave it out where there is no limit")
    return format(exact, "f")


def secret(value: Value) -> Secret:
    """`{"env": NAME}` or `{"file": path}`, read at once. Plain text is refused and never shown."""
    if not isinstance(value.raw, dict):
        value.fail('secrets do not belong into this file; write {"env": NAME} or {"file": path}')
    section = value.section()
    if len(section.raw) != 1 or not section.has("env", "file"):
        value.fail('must be {"env": NAME} or {"file": path}, with nothing else')
    source = section.value(next(iter(section.raw)))
    found = _from_env(source) if section.has("env") else _from_file(source)
    if not found:
        source.fail("the secret is empty")
    if any(ord(c) < 32 or ord(c) == 127 or "\ud800" <= c <= "\udfff" for c in found):
        source.fail("the secret is not one line of text")
    return Secret(found)


def mac_key(value: Value) -> Secret:
    """The key of a datagram's tag."""
    found = secret(value)
    if len(found.reveal().encode()) > MAX_KEY_BYTES:
        value.fail(f"must have at most {MAX_KEY_BYTES} bytes")
    return found


def key_file(value: Value) -> str:
    """The path of a private key that only its owner can read. It is opened when trading starts."""
    path = filled(value)
    os.close(_open_private(path, value))
    return path


def headers(value: Value) -> dict[str, str | Secret]:
    """HTTP headers. A value that looks like a credential is a secret also when it is plain text."""
    section = value.section()
    names: dict[str, str] = {}
    found: dict[str, str | Secret] = {}
    for name in section.raw:
        item = section.value(name)
        if not _HEADER.fullmatch(name):
            value.findings.problem(item.path, "is no name of an HTTP header")
            continue
        first = names.setdefault(name.lower(), name)
        if first != name:
            value.findings.problem(item.path, f"is the same header as {first!r}")
            continue
        found[name] = attempt(item, partial(_header, name), "")
    return found


def _header(name: str, value: Value) -> str | Secret:
    if not isinstance(value.raw, str | dict):
        value.fail('must be text, {"env": NAME} or {"file": path}')
    found = secret(value) if isinstance(value.raw, dict) else value.text()
    plain = found.reveal() if isinstance(found, Secret) else found
    if not plain.isascii():
        value.fail("must be ASCII text")
    if isinstance(found, Secret):
        return found
    if not _SECRET_HEADER.search(name):
        return plain
    value.findings.warn(
        value.path, f'{name} stands here in plain text; write {{"env": NAME}} or {{"file": path}}'
    )
    return Secret(plain)


def by_name(options: Mapping[str, int], maximum: int) -> Callable[[Value], int]:
    """A number up to `maximum`, or one of the names for them."""

    def convert(value: Value) -> int:
        if not isinstance(value.raw, str):
            return value.integer(0, maximum)
        plain = value.raw.replace("_", "").replace("-", "").lower()
        if plain not in options:
            value.fail(f"must be 0 to {maximum} or a name{nearest(plain, list(options))}")
        return options[plain]

    return convert


def _from_env(source: Value) -> str:
    name = filled(source)
    found = os.environ.get(name)
    if found is None:
        shown = repr(name) if _ENV_NAME.fullmatch(name) else "of that name"  # a pasted secret
        source.fail(f"the environment has no variable {shown}")
    return found.strip()


def _from_file(source: Value) -> str:
    fd = _open_private(filled(source), source)
    try:
        with open(fd, "rb") as file:
            return file.read(MAX_SECRET).decode().strip()
    except (OSError, UnicodeDecodeError):
        source.fail("the file holds no text")


def _open_private(path: str, value: Value) -> int:
    """A descriptor of a regular file that only its owner can read; the caller closes it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        value.fail(f"cannot be read: {getattr(error, 'strerror', None) or 'no such path'}")
    about = os.fstat(fd)
    loose = stat.S_IMODE(about.st_mode) & 0o177
    if stat.S_ISREG(about.st_mode) and not loose:
        return fd
    os.close(fd)
    if loose and stat.S_ISREG(about.st_mode):
        mode = stat.S_IMODE(about.st_mode)
        value.fail(f"has mode {mode:04o}, which is more than 0600: chmod 600 {path}")
    value.fail("is no regular file")


def path_exists(value: Value) -> str:
    """The path of a file that is there."""
    path = value.text()
    if path and not os.path.isfile(path):
        value.fail("there is no such file")
    return path
