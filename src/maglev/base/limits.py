"""Limits of what an operator may ask for, checked where a request comes in and again where it takes effect."""

from __future__ import annotations

from maglev.base.errors import BadValue

MAX_REASON = 255
"""Characters of the reason that an operator gives for a change."""

MAX_DURATION_NS = 366 * 24 * 3600 * 1_000_000_000
"""The longest time after which a change may end by itself: a year, leap years too."""

MAX_WEIGHT = 100
"""The largest weight of a pool member, on the operator's scale."""


def check_reason(text: str) -> str:
    """``text``, if it can be a reason: short, on one line, nothing that a terminal acts upon. Raises ``BadValue``."""
    if len(text) > MAX_REASON or not text.isprintable():
        raise BadValue(f"a reason has at most {MAX_REASON} characters and no control characters")
    return text


def check_duration(duration_ns: int) -> int:
    """``duration_ns``, if a change may last so long; 0 means for ever. Raises ``BadValue``."""
    if not 0 <= duration_ns <= MAX_DURATION_NS:
        raise BadValue("a duration lies between 0 and 366 days")
    return duration_ns


def check_weight(weight: int) -> int:
    """``weight``, if a pool member can have it. Raises ``BadValue``."""
    if not 0 <= weight <= MAX_WEIGHT:
        raise BadValue(f"{weight} is no weight: 0 to {MAX_WEIGHT}")
    return weight
