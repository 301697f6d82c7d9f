"""Readings of VPP for the API: one at a time, and the last one again where a caller may get one that is older."""

from __future__ import annotations

from dataclasses import dataclass

from maglev.base.clock import Clock
from maglev.rpc.access import Role
from maglev.rpc.services import DataplaneApi
from maglev.rpc.turns import Turnstile, bounded
from maglev.views.dataplane import LbState

VIEWER_NS = 1_000_000_000
"""Age of a reading that a viewer may get, so that viewers cannot make the daemon read VPP without end."""

PAGED_NS = 60_000_000_000
"""How long further pages of a reading are served from that reading."""


@dataclass(frozen=True, slots=True)
class _Reading:
    frontend: str | None
    at_ns: int
    state: LbState


class Readings:
    """Reads VPP, and remembers the last reading. A new one costs VPP's main thread time, so readings are queued."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._turns = Turnstile("a reading of VPP")
        self._last: _Reading | None = None

    async def read(self, dataplane: DataplaneApi, frontend: str | None, role: Role, *, further_page: bool) -> LbState:
        """A reading of ``frontend`` (None: of everything), new or as old as the role and the page allow."""
        age_ns = PAGED_NS if further_page else 0
        if not age_ns and role is Role.VIEWER:
            age_ns = VIEWER_NS

        async def read() -> LbState:
            # Looked up after the turnstile: another caller may have read while this one waited.
            last = self._last
            if last is not None and last.frontend == frontend and self._clock.monotonic_ns() - last.at_ns <= age_ns:
                return last.state
            state = await dataplane.lb_state(frontend)
            self._last = _Reading(frontend, self._clock.monotonic_ns(), state)
            return state

        return await bounded(self._turns.run(role, read))
