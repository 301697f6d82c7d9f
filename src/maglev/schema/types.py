"""The types of the configuration's values: text in, value out, with a message for the operator if it does not fit.

A value of the wrong type is a parse error, and reading returns ``BAD``. A value of the right type that is out of its
range is a semantic error; reading returns it nevertheless, so that rules which refer to it can still be checked. Every
type describes itself: the configuration guide and the JSON schema are made from these descriptions.
"""

from __future__ import annotations

import enum
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final, Protocol

from maglev.schema.addresses import IPAddress, may_be_refused, refusal
from maglev.schema.durations import format_duration, parse_duration
from maglev.schema.problems import Path, Report, quote


class Number(str):
    """A number of a JSON file, as it was written: the type of the key decides what to make of it."""

    __slots__ = ()


class Bad(enum.Enum):
    """Marks a value that could not be read; why is in the report."""

    BAD = 0


BAD: Final = Bad.BAD


class Type(Protocol):
    """One type of value."""

    # ``write`` is the inverse of ``read``: the guide's defaults and the changes that a reload would make are shown in
    # the words of the file. Its argument is Any because a table of keys holds types of every kind of value.

    def read(self, value: object, path: Path, report: Report) -> Any:
        """The typed value, or BAD when a parse error was reported."""
        ...

    def write(self, value: Any) -> str:
        """``value`` as a file has it; empty for a value that means "not set"."""
        ...

    def rule(self) -> str:
        """The permitted values, in words."""
        ...

    def json_schema(self) -> dict[str, object]:
        """The permitted values, as JSON schema."""
        ...


# C0, DEL and C1; the line and paragraph separators; what turns the direction of text, with which a log line can be
# made to read as another; surrogates, which no UTF-8 can carry.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,18})")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,63}")


def check_name(name: str, path: Path, report: Report) -> None:
    """Report a name that is none: 1 to 63 characters of ``[A-Za-z0-9._-]``."""
    if _NAME.fullmatch(name) is None:
        report.semantic(
            path, f"{quote(name)} is no name: 1 to 63 letters, digits, dots, underscores and dashes", at_key=True
        )


@dataclass(frozen=True, slots=True)
class Text:
    """Free text without control characters, ``longest`` characters at most; ``pattern`` with ``what`` restricts it."""

    longest: int = 1024
    pattern: str | None = None
    what: str = "text"

    def read(self, value: object, path: Path, report: Report) -> str | Bad:
        """The text."""
        if type(value) is not str:
            report.parse(path, f"expected {self.what}, got {quote(value)}")
            return BAD
        if len(value) > self.longest:
            report.semantic(path, f"longer than {self.longest} characters")
        elif _CONTROL.search(value):
            report.semantic(path, f"{quote(value)} has a control character")
        elif self.pattern is not None and re.fullmatch(self.pattern, value) is None:
            report.semantic(path, f"{quote(value)} is not {self.what}")
        return value

    def write(self, value: str) -> str:
        """``value`` as a file has it."""
        return value

    def rule(self) -> str:
        """The permitted values, in words."""
        return f"{self.what}, at most {self.longest} characters"

    def json_schema(self) -> dict[str, object]:
        """The permitted values, as JSON schema."""
        schema: dict[str, object] = {"type": "string", "maxLength": self.longest}
        if self.pattern is not None:
            schema["pattern"] = f"^(?:{self.pattern})$"
        return schema


@dataclass(frozen=True, slots=True)
class Name:
    """The name of an object; ``of`` names its class, for messages. A later check looks the object up."""

    of: str

    def read(self, value: object, path: Path, report: Report) -> str | Bad:
        """The name."""
        if type(value) is not str:
            report.parse(path, f"expected the name of a {self.of}, got {quote(value)}")
            return BAD
        if _NAME.fullmatch(value) is None or (self.of == "network namespace" and value in (".", "..")):
            report.semantic(path, f"{quote(value)} is no name: 1 to 63 letters, digits, dots, underscores and dashes")
        return value

    def write(self, value: str) -> str:
        """``value`` as a file has it."""
        return value

    def rule(self) -> str:
        """The permitted values, in words."""
        return f"name of a {self.of}"

    def json_schema(self) -> dict[str, object]:
        """The permitted values, as JSON schema."""
        return {"type": "string", "pattern": f"^{_NAME.pattern}$"}


@dataclass(frozen=True, slots=True)
class Integer:
    """A decimal number from ``low`` to ``high``; with ``power_of_two`` only those."""

    low: int
    high: int
    power_of_two: bool = False

    def read(self, value: object, path: Path, report: Report) -> int | Bad:
        """The number."""
        # In JSON "80" is a string and no number; in YAML everything is text.
        if not isinstance(value, str) or (report.numbers_are_typed and type(value) is not Number):
            report.parse(path, f"expected a whole number, got {quote(value)}")
            return BAD
        if _INTEGER.fullmatch(value) is None:
            report.parse(path, f"{quote(value)} is not a whole number")
            return BAD
        number = int(value)
        if not self.low <= number <= self.high or (self.power_of_two and number & (number - 1)):
            report.semantic(path, f"{number} is not {self.rule()}")
        return number

    def write(self, value: int) -> str:
        """``value`` as a file has it."""
        return str(value)

    def rule(self) -> str:
        """The permitted values, in words."""
        return f"a {'power of two' if self.power_of_two else 'whole number'} from {self.low} to {self.high}"

    def json_schema(self) -> dict[str, object]:
        """The permitted values, as JSON schema."""
        if self.power_of_two:
            return {"enum": [1 << n for n in range(self.high.bit_length()) if self.low <= 1 << n <= self.high]}
        return {"type": "integer", "minimum": self.low, "maximum": self.high}


@dataclass(frozen=True, slots=True)
class Boolean:
    """``true`` or ``false``; in YAML also ``yes``, ``no``, ``on`` and ``off``."""

    def read(self, value: object, path: Path, report: Report) -> bool | Bad:
        """The truth."""
        if isinstance(value, bool):
            return value
        if type(value) is str and not report.numbers_are_typed:
            truth = _TRUTHS.get(value.lower())
            if truth is not None:
                return truth
        report.parse(path, f"expected true or false, got {quote(value)}")
        return BAD

    def write(self, value: bool) -> str:
        """``value`` as a file has it."""
        return "true" if value else "false"

    def rule(self) -> str:
        """The permitted values, in words."""
        return "`true` or `false`"

    def json_schema(self) -> dict[str, object]:
        """The permitted values, as JSON schema."""
        return {"type": "boolean"}


_TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass(frozen=True, slots=True)
class Duration:
    """A duration in Go's form, from ``low`` to ``high`` nanoseconds, in whole multiples of ``step``."""

    low: int
    high: int
    step: int = 1

    def read(self, value: object, path: Path, report: Report) -> int | Bad:
        """Nanoseconds."""
        if type(value) is not str:
            report.parse(path, f"expected a duration such as 200ms or 1m30s, got {quote(value)}")
            return BAD
        try:
            duration = parse_duration(value)
        except ValueError:
            report.parse(path, f"{quote(value)} is no duration; one is written as 200ms, 5s or 1m30s")
            return BAD
        if not self.low <= duration <= self.high or duration % self.step:
            report.semantic(path, f"{value} is not {self.rule()}")
        return duration

    def write(self, value: int) -> str:
        """``value`` as a file has it."""
        return format_duration(value)

    def rule(self) -> str:
        """The permitted values, in words."""
        what = "a duration" if self.step == 1 else f"a multiple of {format_duration(self.step)}"
        return f"{what} from {_short(self.low)} to {_short(self.high)}"

    def json_schema(self) -> dict[str, object]:
        """The permitted values, as JSON schema."""
        return {"type": "string", "pattern": r"^(?:0|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:ns|us|µs|μs|ms|s|m|h))+$"}


def _short(duration: int) -> str:
    # 1h rather than Go's 1h0m0s.
    return re.sub(r"(?<=[hm])0[ms](?:0s)?$", "", format_duration(duration))


_HOST = re.compile(r"(?=.*[A-Za-z_])[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?")


@dataclass(frozen=True, slots=True)
class Address:
    """An IP address. ``family`` 4 or 6 makes one of the other family a semantic error."""

    family: int = 0

    def read(self, value: object, path: Path, report: Report) -> IPAddress | Bad:
        """The address."""
        if type(value) is not str:
            report.parse(path, f"expected an IP address, got {quote(value)}")
            return BAD
        address: IPAddress
        # inet_pton is ten times faster than ipaddress, and as strict.
        try:
            if ":" in value:
                packed = socket.inet_pton(socket.AF_INET6, value)
                address = IPv6Address(packed)
            else:
                packed = socket.inet_pton(socket.AF_INET, value)
                address = IPv4Address(packed)
        except (OSError, ValueError):
            report.parse(path, _not_an_address(value))
            return BAD
        refused = refusal(address, value) if may_be_refused(packed) else None
        if refused is not None:
            report.semantic(path, refused)
        elif self.family and address.version != self.family:
            report.semantic(path, f"{address} is not an IPv{self.family} address")
        return address

    def write(self, value: IPAddress) -> str:
        """``value`` as a file has it."""
        return str(value)

    def rule(self) -> str:
        """The permitted values, in words."""
        return f"an IPv{self.family} address" if self.family else "an IPv4 or IPv6 address"

    def json_schema(self) -> dict[str, object]:
        """The permitted values, as JSON schema."""
        if self.family:
            return {"type": "string", "format": f"ipv{self.family}"}
        return {"type": "string", "anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]}


def _not_an_address(value: str) -> str:
    shown = quote(value)
    if _HOST.fullmatch(value) and len(value) < 256:
        return f"{shown} is a host name; an IP address belongs here (names are not looked up)"
    if "/" in value:
        return f"{shown} is not an IP address; write it without a prefix length"
    if "%" in value:
        return f"{shown} has a zone; an address that is reached without one belongs here"
    if value.startswith("[") or re.fullmatch(r"[0-9.]+:[0-9]+", value):
        return f"{shown} is not an IP address; write it without brackets and port"
    return f"{shown} is not an IP address"


@dataclass(frozen=True, slots=True)
class Choice:
    """One word of a few, with what each means."""

    words: Mapping[str, object]

    def read(self, value: object, path: Path, report: Report) -> Any:
        """The meaning of the word."""
        if type(value) is str and value in self.words:
            return self.words[value]
        report.parse(path, f"expected {self._listed()}, got {quote(value)}")
        return BAD

    def _listed(self) -> str:
        words = list(self.words)
        return f"{', '.join(words[:-1])} or {words[-1]}"

    def write(self, value: object) -> str:
        """The word that means ``value``; empty for a meaning without one (a frontend for any protocol)."""
        return next((word for word, meaning in self.words.items() if meaning == value), "")

    def rule(self) -> str:
        """The permitted values, in words."""
        return ", ".join(f"`{word}`" for word in self.words)

    def json_schema(self) -> dict[str, object]:
        """The permitted values, as JSON schema."""
        return {"enum": list(self.words)}


_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,3})?)%")


@dataclass(frozen=True, slots=True)
class Percent:
    """A share, written in percent; ``low`` and ``high`` in percent too."""

    low: int
    high: int

    def read(self, value: object, path: Path, report: Report) -> float | Bad:
        """The share, 0..1."""
        match = _PERCENT.fullmatch(value) if type(value) is str else None
        if match is None:
            report.parse(path, f"expected a share such as 50%, got {quote(value)}")
            return BAD
        share = float(match[1])
        if not self.low <= share <= self.high:
            report.semantic(path, f"{value} is not {self.rule()}")
        return share / 100

    def write(self, value: float) -> str:
        """``value`` as a file has it."""
        return f"{value * 100:g}%"

    def rule(self) -> str:
        """The permitted values, in words."""
        return f"a share from {self.low}% to {self.high}%"

    def json_schema(self) -> dict[str, object]:
        """The permitted values, as JSON schema."""
        return {"type": "string", "pattern": f"^{_PERCENT.pattern}$"}


@dataclass(frozen=True, slots=True)
class Threshold:
    """How many members a pool needs: a number (``value``), or with ``percent`` that many in a hundred."""

    value: int
    percent: bool = False

    def __str__(self) -> str:
        return f"{self.value}%" if self.percent else str(self.value)


@dataclass(frozen=True, slots=True)
class Members:
    """A ``Threshold``: a whole number from 1, or whole percent such as ``40%``."""

    def read(self, value: object, path: Path, report: Report) -> Threshold | Bad:
        """The threshold."""
        text = value if isinstance(value, str) else ""
        percent, digits = text.endswith("%"), text.removesuffix("%")
        if _INTEGER.fullmatch(digits) is None:
            report.parse(path, f"expected a number of backends or a share such as 40%, got {quote(value)}")
            return BAD
        found = Threshold(int(digits), percent)
        if not 1 <= found.value <= (100 if percent else _MOST_MEMBERS):
            report.semantic(path, f"{value} is not {self.rule()}")
        return found

    def write(self, value: Threshold) -> str:
        """``value`` as a file has it."""
        return str(value)

    def rule(self) -> str:
        """The permitted values, in words."""
        return f"a whole number from 1 to {_MOST_MEMBERS}, or whole percent from 1% to 100%"

    def json_schema(self) -> dict[str, object]:
        """The permitted values, as JSON schema."""
        return {"anyOf": [Integer(1, _MOST_MEMBERS).json_schema(), {"type": "string", "pattern": _WHOLE_PERCENT}]}


_MOST_MEMBERS = 100_000
_WHOLE_PERCENT = "^(?:[1-9][0-9]?|100)%$"


@dataclass(frozen=True, slots=True)
class WeightUnit:
    """``auto`` (None) or a number 1..100."""

    def read(self, value: object, path: Path, report: Report) -> int | Bad | None:
        """The unit."""
        if type(value) is str and value == "auto":
            return None
        if not isinstance(value, str) or _INTEGER.fullmatch(value) is None:
            report.parse(path, f"expected auto or a whole number, got {quote(value)}")
            return BAD
        return Integer(1, 100).read(value, path, report)

    def write(self, value: int | None) -> str:
        """``value`` as a file has it."""
        return "auto" if value is None else str(value)

    def rule(self) -> str:
        """The permitted values, in words."""
        return "`auto` or a whole number from 1 to 100"

    def json_schema(self) -> dict[str, object]:
        """The permitted values, as JSON schema."""
        return {"anyOf": [{"const": "auto"}, Integer(1, 100).json_schema()]}
