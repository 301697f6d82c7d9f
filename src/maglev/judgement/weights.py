"""The weight rule's Python face: what each backend of a frontend gets, and why.

``effective_weight`` holds the rule, with the truth table in its docstring; gRPC, metrics, the sync and the
event stream all come here. The arithmetic is compiled (``ext/weights.pyx``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

from maglev._weights import (
    FrontendWeights,
    MemberWeight,
    WeightTable,
    effective_weight,
    flush_owed,
    frontend_weights,
    programmed_weight,
    weight_unit,
)
from maglev._weights import pool_counts as _pool_counts
from maglev.base.states import State
from maglev.config.model import RAMP, Config, Frontend

__all__ = [
    "NO_MEMORY",
    "NO_SHARES",
    "RAMP",
    "FrontendWeights",
    "MemberWeight",
    "Memory",
    "PoolCounts",
    "StateSource",
    "TargetState",
    "WeightTable",
    "applied_weight",
    "effective_weight",
    "fill",
    "flush_owed",
    "frontend_weights",
    "pool_counts",
    "programmed_weight",
    "weight_unit",
]


NO_SHARES: Mapping[str, int] = MappingProxyType({})
"""No backend starts slowly."""


class Memory(NamedTuple):
    """The past of a frontend, as far as its judgement depends on it.

    ``pool``: index of the pool that served last, -1 while none is known (``maglev.judgement.pools``). ``panic``: the
    frontend is in panic until further notice (``maglev.judgement.panic``). ``shares``: the parts of their weights, in
    percent, of backends that start slowly (``maglev.judgement.slowstart``).
    """

    pool: int = -1
    panic: bool = False
    shares: Mapping[str, int] = NO_SHARES


NO_MEMORY = Memory()
"""Nothing is known of the past."""


class TargetState(Protocol):
    """The part of a target that the rule looks at."""

    @property
    def state(self) -> State:
        """Its state."""
        ...

    @property
    def drained(self) -> bool:
        """Whether an operator has drained its backend."""
        ...


class StateSource(Protocol):
    """Configuration, states and run-time weights, on which the rule works; the checker is one source.

    The unit of state is the *target*: a backend on a path, which is the way that the probes of a frontend take to it.
    Today all frontends share one path to a backend, so a backend is one target. Readers ask for the target of a
    frontend's member nevertheless (``target_state``): with a second path, only the source answers differently.

    A class that derives from this one gets ``target_state`` and ``weights`` from the other methods.
    """

    def config(self) -> Config:
        """The configuration in force."""
        ...

    def backend_state(self, name: str) -> TargetState:
        """The backend of that name, on the shared path; raises ``maglev.base.errors.UnknownName``."""
        ...

    def target_state(self, frontend: str, backend: str) -> TargetState:
        """The target by which a member of a frontend is judged; raises ``maglev.base.errors.UnknownName``."""
        return self.backend_state(backend)

    def weight_override(self, frontend: str, pool: str, backend: str) -> int | None:
        """The operator's run-time weight (0..100) of a member; None where the file's counts."""
        ...

    def memory(self, frontend: Frontend) -> Memory:
        """The past of a frontend. It may be of another configuration: pools are the same by their names."""
        return NO_MEMORY

    def unsettled(self, frontend: str) -> bool:
        """Whether a frontend is not to be programmed yet (``maglev.judgement.together``). An event says when it is."""
        return False

    def weights(self, frontend: Frontend) -> FrontendWeights:
        """The weights of a frontend's members by the rule and the present states."""
        return frontend_weights(frontend, self)


def fill(table: WeightTable, frontends: Iterable[Frontend], portion: int = 256) -> Iterator[None]:
    """Fill a table with frontends and their members, of which all backends are unknown.

    Yields after every ``portion`` members at most, about 50 microseconds, so that a caller can stop in between.
    """
    for frontend in frontends:
        table.add(frontend)
        for number, pool in enumerate(frontend.pools):
            for start in range(0, len(pool.members), portion):
                table.add_members(number, pool.members[start : start + portion])
                yield


class PoolCounts(NamedTuple):
    """The counts of a pool: the members that it has, and those that it needs.

    ``up``: members that are up, not drained, and have a weight above 0. ``min_up`` and ``resume_up``: how many of them
    the thresholds take. ``healthy``: the weight of the members that are up or have no verdict. ``whole``: the same with
    those that are down: the base of ``maglev.judgement.panic``.
    """

    up: int
    min_up: int
    resume_up: int
    healthy: int
    whole: int

    @property
    def usable(self) -> bool:
        """Whether as many are up as the pool needs to serve."""
        return self.up >= self.min_up


def pool_counts(frontend: Frontend, weights: FrontendWeights) -> list[PoolCounts]:
    """The counts of each pool of a frontend, from the weights of its members."""
    return [PoolCounts(*counts) for counts in _pool_counts(frontend, weights)]


def applied_weight(weight: int, unit: int) -> int:
    """A weight as VPP will have it, on the operator's scale: the programmed weight times the unit.

    It equals ``weight`` only for multiples of the unit, and may otherwise be above 100. Raises ValueError
    for a unit outside 1..100.
    """
    return programmed_weight(weight, unit) * unit
