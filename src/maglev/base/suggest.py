"""Names that were probably meant, for an unknown name: bounded in cost whatever the number of names.

First all names that are one edit away (a letter changed, missing, too many, or two swapped): a few thousand lookups,
however many names there are. If there is none, a scan finds names that share a part with it, with substring searches
that take some 0.2 microseconds for each name, and compares a limited number of them in detail.

The work is a generator that yields every fraction of a millisecond: ``maglev.base.pace.in_slices`` drives it on the
event loop, ``at_once`` elsewhere.
"""

from __future__ import annotations

import difflib
import string
from collections.abc import Collection, Generator, Iterator, Mapping, Set
from itertools import islice

MOST = 3
"""Names in a suggestion."""

MAX_LENGTH = 63
"""Characters of a name in the configuration. Longer words were never meant to be one."""

MAX_NAMES = 100_000
"""Names that are scanned."""

MAX_COMPARED = 200
"""Names that are compared in detail, of those that share one part and of those that share more."""

RATIO = 0.75
"""The similarity from which on a name is suggested, as difflib measures it."""

_ALPHABET = string.ascii_letters + string.digits + "._-"
_PORTION = 500


def closest(name: str, among: Collection[str]) -> Generator[None, None, tuple[str, ...]]:
    """At most ``MOST`` names of ``among`` that ``name`` was probably meant to be, the most similar first."""
    if not 0 < len(name) <= MAX_LENGTH:
        return ()
    # A reload may change a table of names between two slices: from here on it is only asked for single names.
    names = among if isinstance(among, (Mapping, Set)) else frozenset(among)
    found: dict[str, None] = {}
    for at, edit in enumerate(_edits(name)):
        if edit in names:
            found[edit] = None
            if len(found) == MOST:
                break
        if at % _PORTION == 0:
            yield
    if found:
        return tuple(found)
    return (yield from _similar(name, list(islice(among, MAX_NAMES))))


def did_you_mean(names: Collection[str]) -> str:
    """``; did you mean 'web0' or 'web1'?``, empty without names."""
    if not names:
        return ""
    *others, last = (repr(name) for name in names)
    return f"; did you mean {', '.join(others)} or {last}?" if others else f"; did you mean {last}?"


def _edits(name: str) -> Iterator[str]:
    """Every text that is one edit away from ``name``: some 130 for each of its letters."""
    splits = [(name[:at], name[at:]) for at in range(len(name) + 1)]
    yield from (head + tail[1] + tail[0] + tail[2:] for head, tail in splits if len(tail) > 1 and tail[0] != tail[1])
    yield from (head + tail[1:] for head, tail in splits if tail)
    yield from (head + letter + tail[1:] for head, tail in splits if tail for letter in _ALPHABET if letter != tail[0])
    yield from (head + letter + tail for head, tail in splits for letter in _ALPHABET)


def _similar(name: str, names: list[str]) -> Generator[None, None, tuple[str, ...]]:
    third = max(1, -(-len(name) // 3))
    parts = [name[at : at + third] for at in range(0, len(name), third)]
    folded = name.casefold()
    few: list[str] = []
    many: list[str] = []
    for at, other in enumerate(names):
        if at % _PORTION == 0:
            yield
        shared = sum(part in other for part in parts)
        if shared > 1 or folded in other.casefold():
            if len(many) < MAX_COMPARED:
                many.append(other)
        elif shared and len(few) < MAX_COMPARED:
            few.append(other)
    # The matcher keeps what it knows of its second sequence.
    matcher = difflib.SequenceMatcher(autojunk=False)
    matcher.set_seq2(folded)
    scores: list[tuple[float, str]] = []
    for at, other in enumerate(many + few):
        if at % 10 == 0:
            yield
        matcher.set_seq1(other.casefold())
        if matcher.real_quick_ratio() >= RATIO and matcher.quick_ratio() >= RATIO and matcher.ratio() >= RATIO:
            scores.append((-matcher.ratio(), other))
    return tuple(other for _, other in sorted(scores)[:MOST])
