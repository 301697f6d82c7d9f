"""The judgement of a frontend: one answer for every reader. Pure.

Two questions have different answers while little is known. Both answers are made here, from one reading of the states,
so they cannot drift apart:

- *By health* (``Judged.health``): the weights by verdicts, file and operators. The API, the metrics and the frontends'
  states show them. ``StateSource.weights`` gives the same.
- *Programmed* (``Judged.programmed``): the weights that VPP is to be given. They differ for members without a verdict,
  because the daemon's own ignorance takes no traffic away. Members without a verdict are those that are unknown, not
  drained, have a weight above 0, and are in ``Presumption.unresolved``. Rules 1 and 2 are about them, 3 and 4 about the
  other members of their frontend:

  1. each of them keeps the weight that its AS has in VPP (``MemberWeight.keep``);
  2. those that are ``serving`` count as up, so no other pool is started in the place of theirs. Their ``state`` is
     still unknown;
  3. in a frontend that could be in panic if those of them whose verdict is ``awaited`` failed, members that are down
     keep their weight in VPP too (``maglev.judgement.panic``). A verdict is awaited for a limited time;
  4. members that would have a weight by health, and have none because of 2, keep what VPP has. A server that is up
     and serves loses nothing to servers of an earlier pool that are only presumed to serve. VPP has weights in two
     pools where a failover was cut off in the middle, or panic kept them.

  With ``on-all-down: keep`` and nothing usable by health, 2 does not hold: a server that is only presumed to serve must
  not cost another one its weight. It may have been down, and kept, for as long as that other.
"""

from __future__ import annotations

from collections.abc import Container
from typing import NamedTuple

from maglev._weights import presumed_weights
from maglev.config.model import Frontend
from maglev.judgement.weights import FrontendWeights, StateSource


class Presumption(NamedTuple):
    """The dataplane's knowledge of backends without a verdict.

    ``unresolved``: backends that have had no verdict since the daemon started, or since a reload brought them.
    ``serving``: those of them to which VPP sends traffic, or did so before it was emptied. ``awaited``: those of them
    whose first verdict is still awaited.
    """

    unresolved: Container[str] = frozenset()
    serving: Container[str] = frozenset()
    awaited: Container[str] = frozenset()


NOTHING_PRESUMED = Presumption()


class Judged(NamedTuple):
    """Both answers for one frontend. They are the same object wherever nothing is presumed."""

    health: FrontendWeights
    programmed: FrontendWeights


def judge(frontend: Frontend, source: StateSource, presumption: Presumption = NOTHING_PRESUMED) -> Judged:
    """Judge a frontend by the states of ``source``. Raises ``maglev.base.errors.UnknownName`` as the source does."""
    health = source.weights(frontend)
    if presumption is NOTHING_PRESUMED:
        return Judged(health, health)
    memory = source.memory(frontend)
    return Judged(health, presumed_weights(frontend, memory, health, *presumption))
