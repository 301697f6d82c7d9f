"""What a frontend is judged to be: one answer for everything that reads it. Pure.

Two questions have different answers while little is known, and both answers are made here, so that they cannot drift
apart:

- *By health*: what verdicts, the file and operators say. The API, the metrics and the frontends' states show this.
- *Programmed*: what VPP is to be given. It differs for backends without a verdict (``Presumption``), since the daemon's
  own ignorance takes no traffic away. An AS of such a backend keeps the weight that it has in VPP. If it serves, its
  pool counts as served, so that no other pool is started in its place.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import NamedTuple

from maglev.base.states import State
from maglev.config.model import Config, Frontend, OnAllDown
from maglev.judgement.weights import FrontendWeights, MemberWeight, StateSource, TargetState


class Presumption(NamedTuple):
    """What the dataplane knows of backends without a verdict.

    ``unresolved``: backends that have had no verdict since the daemon started, or since a reload brought them.
    ``serving``: those of them to which VPP sends traffic, or did so before it was emptied.
    """

    unresolved: Container[str] = frozenset()
    serving: frozenset[str] = frozenset()


NOTHING_PRESUMED = Presumption()


class Judged(NamedTuple):
    """Both answers for one frontend. ``health`` is ``programmed``, the same object, wherever nothing is presumed."""

    health: FrontendWeights
    programmed: FrontendWeights
    presumption: Presumption

    def presumed(self, member: MemberWeight) -> bool:
        """Whether a member is taken to serve only because VPP sends traffic to it."""
        return member.backend in self.presumption.serving

    def keeps(self, member: MemberWeight) -> bool:
        """Whether a member of ``programmed`` keeps the weight that its AS has in VPP."""
        if member.keep:
            return True
        if member.weight == 0 or self.presumption is NOTHING_PRESUMED:
            return False
        if self.presumed(member):
            return True
        return member.state is State.UNKNOWN and not member.drained and member.backend in self.presumption.unresolved


def judge(frontend: Frontend, source: StateSource, presumption: Presumption = NOTHING_PRESUMED) -> Judged:
    """Judge a frontend by the states of ``source``. Raises ``maglev.base.errors.UnknownName`` as the source does."""
    health = source.weights(frontend)
    if not presumption.serving:
        return Judged(health, health, presumption)
    # With ``on-all-down: keep`` a server that is only presumed to serve must not cost another one its weight: it may
    # have been down, and kept, for as long as that other.
    if not health.usable and frontend.on_all_down is OnAllDown.KEEP:
        return Judged(health, health, presumption)
    return Judged(health, _Presuming(source, presumption.serving).weights(frontend), presumption)


@dataclass(frozen=True, slots=True)
class _Serving:
    """A backend without a verdict to which VPP sends traffic."""

    state: State = State.UP
    drained: bool = False


_SERVING = _Serving()


class _Presuming(StateSource):
    """A state source in which some backends are up, since VPP sends traffic to them."""

    def __init__(self, source: StateSource, serving: Container[str]) -> None:
        self._source = source
        self._serving = serving

    def config(self) -> Config:
        return self._source.config()

    def backend_state(self, name: str) -> TargetState:
        return _SERVING if name in self._serving else self._source.backend_state(name)

    def target_state(self, frontend: str, backend: str) -> TargetState:
        return _SERVING if backend in self._serving else self._source.target_state(frontend, backend)

    def weight_override(self, frontend: str, pool: str, backend: str) -> int | None:
        return self._source.weight_override(frontend, pool, backend)
