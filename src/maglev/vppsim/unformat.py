"""VPP's ``unformat``: how its CLI reads text. A port of the parts of ``vppinfra/unformat.c`` that the lb plugin uses.

A format matches white space generously and letters literally: before each part of a format any white space may stand,
line ends included, and a literal matches the beginning of a longer word. So ``10 . 0 . 0 . 1`` is an address, and
``10.0.0.1weight 5`` an address and a weight. A format that does not match leaves the input where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

SPACE: Final = " \t\n\r"
_SHOWN: Final = 30
"""Characters of the input that an error message shows."""
_HEX: Final = {digit: value for value, digits in enumerate("0123456789abcdef") for digit in {digits, digits.upper()}}
_U32: Final = 0xFFFFFFFF
_I32: Final = 0x7FFFFFFF
_U64: Final = 0xFFFFFFFFFFFFFFFF

Parser = Callable[["Input"], Any]
"""The function of a ``%U``: reads a value from the input; None if there is none."""


class Input:
    """Text with a position. VPP notices the end of the input only when it reads past the last character."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._over = False  # the end was read

    def get(self) -> str:
        """Take a character; empty at the end."""
        taken = self._text[self._at : self._at + 1]
        self._at += len(taken)
        self._over = not taken
        return taken

    def put(self, taken: str) -> None:
        """Put the character back that was taken last."""
        self._at -= len(taken)

    @property
    def ended(self) -> bool:
        """Whether everything was taken."""
        return self._at >= len(self._text)

    def skip_space(self) -> None:
        """Take white space."""
        while (taken := self.get()) and taken in SPACE:
            pass
        self.put(taken)

    def attempt(self, parser: Parser) -> Any:
        """The value that ``parser`` reads. If it reads none, nothing is taken (``unformat_user``)."""
        mark = self._at
        value = parser(self)
        if value is None and not self._over:
            self._at = mark
        return value

    def scan(self, form: str, *parsers: Parser) -> list[Any] | None:
        """Match a format of literals, ``%d``, ``%u`` and ``%U``; returns the values, or None if it does not match."""
        mark = self._at
        values: list[Any] = []
        readers = iter(parsers)
        position = 0
        while True:
            self.skip_space()
            while position < len(form) and form[position] == " ":
                position += 1
            if position == len(form):
                return values
            if form[position] == "%":
                kind = form[position + 1]
                position += 2
                value = next(readers)(self) if kind == "U" else integer(self, signed=kind == "d")
                if value is None:
                    break
                values.append(value)
                continue
            while position < len(form) and form[position] not in " %":
                if self.get() != form[position]:
                    self._rewind(mark)
                    return None
                position += 1
        self._rewind(mark)
        return None

    def _rewind(self, mark: int) -> None:
        self._at, self._over = mark, False

    def line(self) -> Input | None:
        """Take the rest of the line with its end; None if it is empty (``unformat_line_input``)."""
        end = self._text.find("\n", self._at)
        if end < 0:
            end = len(self._text)
        if end == self._at:
            return None
        line = Input(self._text[self._at : end])
        self._at = min(end + 1, len(self._text))
        return line

    def rest(self) -> str:
        """All that was not taken; it is not taken by this either."""
        return self._text[self._at :]

    def shown(self) -> str:
        """The input from here, as an error message quotes it (``format_unformat_error``)."""
        left = self._text[self._at :]
        words = left[:_SHOWN] if len(left) > _SHOWN else left.rstrip(SPACE)
        words = words.replace("\r", "\\r").replace("\n", "\\n").replace("\t", "\\t")
        return f"{words}..." if len(left) > _SHOWN else words


def integer(source: Input, *, signed: bool) -> int | None:
    """``%d`` or ``%u``: a decimal number of 32 bits, returned without its sign (``unformat_integer``)."""
    value = taken = digits = 0
    negative = False
    while character := source.get():
        if character in "+-" and taken == 0:
            if character == "-" and not signed:
                return None
            negative = character == "-"
        elif character in "0123456789":
            grown = (10 * value + int(character)) & _U64
            if grown < value:
                return None
            value = grown
            digits += 1
        else:
            source.put(character)
            break
        taken += 1
    most = (_I32 + 1 if negative else _I32) if signed else _U32
    if digits == 0 or value > most:
        return None
    return -value & _U32 if negative else value


def end(source: Input) -> bool | None:
    """The end of the input (``unformat_eof``)."""
    return True if source.ended else None


def ip4_address(source: Input) -> bytes | None:
    """Four bytes (``unformat_ip4_address``)."""
    numbers = source.scan("%d.%d.%d.%d")
    return None if numbers is None or max(numbers) > 255 else bytes(numbers)


def ip6_address(source: Input) -> bytes | None:
    """Sixteen bytes (``unformat_ip6_address``). It knows no dotted quads at the end."""
    quads: list[int] = []
    quad = digits = colons = 0
    gap: int | None = None
    while character := source.get():
        digit = _HEX.get(character)
        if digit is None:
            if character != ":" or colons == 2:
                source.put(character)
                break
            colons += 1
        if len(quads) >= 8:
            return None
        if digit is not None:
            if digits >= 4:
                return None
            quad = quad << 4 | digit
            colons = 0
            digits += 1
        if colons == 2:
            if gap is not None:
                return None
            gap = len(quads)
        if colons and digits:
            quads.append(quad)
            quad = digits = 0
    if digits:
        quads.append(quad)
    if gap is not None:
        quads[gap:gap] = [0] * (8 - len(quads))
    return b"".join(quad.to_bytes(2, "big") for quad in quads) if len(quads) == 8 else None


def ip46_address(source: Input) -> bytes | None:
    """An address of either family as VPP holds it: sixteen bytes, IPv4 behind twelve zeros."""
    ip4 = source.scan("%U", ip4_address)
    if ip4 is not None:
        return bytes(12) + bytes(ip4[0])
    ip6 = source.scan("%U", ip6_address)
    return None if ip6 is None else bytes(ip6[0])


def ip46_prefix(source: Input) -> tuple[bytes, int] | None:
    """A prefix: sixteen bytes, and its length counted from the start of them."""
    ip4 = source.scan("%U/%u", ip4_address)
    if ip4 is not None:
        return (bytes(12) + ip4[0], ip4[1] + 96) if ip4[1] <= 32 else None
    ip6 = source.scan("%U/%u", ip6_address)
    return (ip6[0], ip6[1]) if ip6 is not None and ip6[1] <= 128 else None


def braces(source: Input) -> Input | None:
    """The input between braces, if the next word begins with one (``unformat_vlib_cli_sub_input``)."""
    source.skip_space()
    if source.rest()[:1] != "{":
        return None
    words: list[str] = []
    depth = 0
    escaped = False
    while character := source.get():
        keep = True
        if escaped:
            escaped = False
        elif character == "\\":
            escaped, keep = True, False
        elif character == "{":
            keep = depth > 0
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                break
        if keep:
            words.append(character)
    return Input("".join(words))
