"""The effects that a change would have on frontends, as they are shown before it is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from maglev.base.states import FrontendState


@dataclass(frozen=True, slots=True)
class MemberForecast:
    """One pool member whose weight would be another: effective (0..100) and programmed (in units), before and after.

    ``keeps``: after the change, the weight that VPP has would stay (``on-all-down: keep``, panic).
    """

    pool: str
    backend: str
    effective_before: int
    effective_after: int
    programmed_before: int
    programmed_after: int
    keeps: bool


@dataclass(frozen=True, slots=True)
class FrontendForecast:
    """One frontend whose state, serving pool or weights would be others. A pool is empty while no server is usable."""

    frontend: str
    state_before: FrontendState
    state_after: FrontendState
    pool_before: str
    pool_after: str
    members: Sequence[MemberForecast]
