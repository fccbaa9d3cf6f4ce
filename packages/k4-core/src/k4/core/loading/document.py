"""A JSON file as a document: every value knows where it stands, every problem is collected.

Reading a value never raises: what is wrong is noted in `Findings` under the value's path, the
default stands in, and reading goes on, so that a user sees all problems at once. Converters take a
`Value` and return what it means, or call `fail`.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

from k4.core.errors import ConfigError, Problem

T = TypeVar("T")
D = TypeVar("D")

MAX_DEPTH = 32
_PLAIN_KEY = re.compile(r"[\w-]{1,64}")
_SHOWN = 40


class Rejected(Exception):
    """A value that its converter refused; never leaves this package."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path
        self.message = message


class Repeated(dict[str, Any]):
    """A JSON object in which a key stood more than once; `keys_again` names those."""

    keys_again: tuple[str, ...] = ()


class Real(float):
    """A JSON number with a fraction or an exponent, and the text that it had in the file."""

    text: str

    @classmethod
    def read(cls, text: str) -> Real:
        number = cls(text)
        number.text = text
        return number


class NotJson:
    """NaN or Infinity: Python reads them, JSON does not have them."""

    def __init__(self, name: str) -> None:
        self.name = name


class Findings:
    """All that is wrong with a document (`problems`) and all that is odd about it (`warnings`)."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []
        self._claims: dict[tuple[str, str], str] = {}

    def problem(self, path: str, message: str) -> None:
        self.problems.append(Problem(path, message))

    def warn(self, path: str, message: str) -> None:
        self.warnings.append(Problem(path, message))

    def claim(self, what: str, name: str, path: str) -> None:
        """Note that `path` uses a name that the file may use only once (`what` says for what)."""
        first = self._claims.setdefault((what, name), path)
        if first != path:
            self.problem(path, f"the {what} {_shown(name)} is already used by {first}")


class Document:
    """A parsed file: its root and the order in which its values stand.

    Raises ConfigError where the bytes are no JSON, with line and column.
    """

    def __init__(self, data: bytes) -> None:
        self.findings = Findings()
        self.root = Value(self.findings, "", _parse(data))
        self._order: dict[str, int] = {}
        for path, depth, raw in _walk(self.root.raw):
            if depth > MAX_DEPTH:
                raise ConfigError([Problem(path, f"nested deeper than {MAX_DEPTH}")])
            self._order[path] = len(self._order)
            self._check(path, raw)

    def raise_problems(self) -> None:
        """Raise one ConfigError with all problems in file order, if there are any."""
        if self.findings.problems:
            raise ConfigError(self.sorted(self.findings.problems))

    def sorted(self, found: Iterable[Problem]) -> tuple[Problem, ...]:
        """In file order, each once. A path that is not in the file counts as its parent's."""
        return tuple(sorted(dict.fromkeys(found), key=lambda problem: self._place(problem.path)))

    def _place(self, path: str) -> int:
        while path and path not in self._order:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self._order.get(path, 0)

    def _check(self, path: str, raw: object) -> None:
        if isinstance(raw, Repeated):
            for key in raw.keys_again:
                self.findings.problem(join(path, key), "this key stands here more than once")
        if isinstance(raw, NotJson):
            self.findings.problem(path, f"{raw.name} is not JSON")
        texts = raw if isinstance(raw, dict) else (raw,)
        if any(isinstance(text, str) and not _is_unicode(text) for text in texts):
            self.findings.problem(path, "holds half of a surrogate pair, which is no text")


class Value:
    """One value of the document. The readers return what it is or refuse it by `fail`."""

    __slots__ = ("findings", "path", "raw")

    def __init__(self, findings: Findings, path: str, raw: object) -> None:
        self.findings = findings
        self.path = path
        self.raw = raw

    def fail(self, message: str) -> NoReturn:
        raise Rejected(self.path, message)

    def text(self) -> str:
        if not isinstance(self.raw, str):
            self.fail(f"must be text, not {self.what()}")
        if not _is_unicode(self.raw) or any(ord(c) < 32 or ord(c) == 127 for c in self.raw):
            self.fail("must be text without control characters")
        return self.raw

    def integer(self, minimum: int, maximum: int) -> int:
        if not isinstance(self.raw, int) or isinstance(self.raw, bool):
            self.fail(f"must be a whole number, not {self.what()}")
        if not minimum <= self.raw <= maximum:
            self.fail(f"must be {minimum} to {maximum}, not {self.what()}")
        return self.raw

    def number(self, minimum: float, maximum: float) -> float:
        """A number in the open-closed range (minimum, maximum]."""
        if not isinstance(self.raw, int | float) or isinstance(self.raw, bool):
            self.fail(f"must be a number, not {self.what()}")
        if not minimum < self.raw <= maximum:
            self.fail(f"must be above {minimum:g} and at most {maximum:g}, not {self.what()}")
        return float(self.raw)

    def flag(self) -> bool:
        if not isinstance(self.raw, bool):
            self.fail(f"must be true or false, not {self.what()}")
        return self.raw

    def choice(self, options: Sequence[str]) -> str:
        text = self.text()
        if text not in options:
            self.fail(f"must be {one_of(options)}, not {self.what()}{nearest(text, options)}")
        return text

    def items(self) -> list[Value]:
        if not isinstance(self.raw, list):
            self.fail(f"must be a list, not {self.what()}")
        return [Value(self.findings, f"{self.path}[{i}]", raw) for i, raw in enumerate(self.raw)]

    def items_or_self(self) -> list[Value]:
        """A list's items, or the value itself where it is no list."""
        return self.items() if isinstance(self.raw, list) else [self]

    def section(self) -> Section:
        if not isinstance(self.raw, dict):
            self.fail(f"must be an object, not {self.what()}")
        return Section(self.findings, self.path, self.raw)

    def what(self) -> str:
        """The value as a message shows it: short, and never the inside of a list or an object."""
        if isinstance(self.raw, dict):
            return "an object"
        if isinstance(self.raw, list):
            return "a list"
        if isinstance(self.raw, Real):
            return _shown(self.raw.text, quoted=False)
        if isinstance(self.raw, NotJson):
            return self.raw.name
        if isinstance(self.raw, int) and not isinstance(self.raw, bool):
            return _shown(str(self.raw), quoted=False)
        return _shown(self.raw) if isinstance(self.raw, str) else json.dumps(self.raw)


class Section:
    """One JSON object. Reading a key makes it known; `close` reports the keys that nobody read."""

    __slots__ = ("_known", "findings", "path", "raw")

    def __init__(self, findings: Findings, path: str, raw: dict[str, Any]) -> None:
        self.findings = findings
        self.path = path
        self.raw = raw
        self._known: list[str] = []

    def at(self, key: str) -> str:
        """The path of one of its keys."""
        return join(self.path, key)

    def has(self, *keys: str) -> bool:
        return any(key in self.raw for key in keys)

    def value(self, key: str) -> Value:
        return Value(self.findings, self.at(key), self.raw[key])

    def read(self, *keys: str, by: Callable[[Value], T], default: D) -> T | D:
        """What `by` makes of the value. Further keys are other names of the first one; two of them
        with different values contradict each other.
        """
        self._known.extend(keys)
        result: T | D = default
        first = ""
        for key in keys:
            if key not in self.raw:
                continue
            before = len(self.findings.problems)
            read = attempt(self.value(key), by, default)
            if len(self.findings.problems) > before:
                return default
            if first and read != result:
                self.findings.problem(self.at(key), f"contradicts {first!r}; both mean the same")
            elif not first:
                result, first = read, key
        return result

    def need(self, *keys: str, by: Callable[[Value], T], default: D) -> T | D:
        """As `read`, and a problem where none of the keys is there."""
        if not self.has(*keys):
            self._known.extend(keys)
            self.problem(f"{keys[0]!r} is missing")
            return default
        return self.read(*keys, by=by, default=default)

    def refuse(self, key: str, reason: str) -> None:
        """Say why a key that is known elsewhere cannot stand here."""
        self._known.append(key)
        if key in self.raw:
            self.findings.problem(self.at(key), reason)

    def ignore(self, *keys: str) -> None:
        self._known.extend(keys)

    def unread(self) -> list[str]:
        """The keys that nobody has read so far, in file order."""
        return [key for key in self.raw if key not in self._known]

    def problem(self, message: str) -> None:
        """Something wrong with the object as a whole."""
        self.findings.problem(self.path, message)

    def close(self) -> None:
        for key in self.unread():
            self.findings.problem(
                self.at(key), f"unknown key{nearest(key, self._known, force=True)}"
            )


def attempt(value: Value, by: Callable[[Value], T], default: D) -> T | D:
    """`by(value)`; where it is refused, the reason is noted and `default` stands in."""
    try:
        return by(value)
    except Rejected as rejected:
        value.findings.problem(rejected.path, rejected.message)
        return default


def each(values: Iterable[Value], by: Callable[[Value], T]) -> list[T]:
    """What `by` makes of every value that it does not refuse; refusals are noted."""
    results: list[T] = []
    for value in values:
        try:
            results.append(by(value))
        except Rejected as rejected:
            value.findings.problem(rejected.path, rejected.message)
    return results


def join(path: str, key: str) -> str:
    """The path of a key below a path."""
    if not _PLAIN_KEY.fullmatch(key):
        key = json.dumps(key[:_SHOWN])
    return f"{path}.{key}" if path else key


def one_of(options: Sequence[str]) -> str:
    """`a, b or c`"""
    *head, last = options
    return f"{', '.join(head)} or {last}" if head else last


def nearest(word: str, known: Sequence[str], *, force: bool = False) -> str:
    """`; did you mean 'x'?`, or nothing where none resembles it; force: name one always."""
    for cutoff in (0.6, 0.0) if force else (0.6,):
        found = difflib.get_close_matches(word[:100], known, 1, cutoff)
        if found and cutoff:
            return f"; did you mean {found[0]!r}?"
        if found:
            return f"; the nearest known is {found[0]!r}"
    return ""


def _parse(data: bytes) -> object:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        message = f"not UTF-8 at line {line} column {column}"
        raise ConfigError([Problem("", message)]) from None
    try:
        return json.loads(
            text, object_pairs_hook=_pairs, parse_float=Real.read, parse_constant=NotJson
        )
    except json.JSONDecodeError as error:
        message = f"not JSON at line {error.lineno} column {error.colno}: {error.msg}"
    except RecursionError:
        message = f"nested deeper than {MAX_DEPTH}"
    except ValueError:  # CPython refuses to read integers of more than 4,300 digits
        message = "holds a number with thousands of digits"
    raise ConfigError([Problem("", message)])


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    seen: set[str] = set()
    again = [key for key, _ in pairs if key in seen or seen.add(key)]  # type: ignore[func-returns-value]
    repeated = Repeated(found)
    repeated.keys_again = tuple(again)
    return repeated


def _walk(root: object) -> Iterator[tuple[str, int, object]]:
    """Every value with its path and depth, in file order; not recursive, for it may be deep."""
    stack: list[tuple[str, int, object]] = [("", 0, root)]
    while stack:
        path, depth, raw = stack.pop()
        yield path, depth, raw
        if isinstance(raw, dict):
            stack.extend((join(path, k), depth + 1, v) for k, v in reversed(raw.items()))
        elif isinstance(raw, list):
            stack.extend((f"{path}[{i}]", depth + 1, raw[i]) for i in range(len(raw) - 1, -1, -1))


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text)


def _shown(text: str, *, quoted: bool = True) -> str:
    short = text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
    return json.dumps(short, ensure_ascii=not _is_unicode(short)) if quoted else short
