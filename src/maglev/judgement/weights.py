"""The weight rule's Python face: what each backend of a frontend gets, and why.

``effective_weight`` holds the rule, with the truth table in its docstring; gRPC, metrics, the sync and the
event stream all come here. The arithmetic is compiled (``ext/weights.pyx``).
"""

from __future__ import annotations

from typing import Protocol

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
from maglev.base.states import State
from maglev.config.model import Config

__all__ = [
    "BackendView",
    "FrontendWeights",
    "MemberWeight",
    "StateSource",
    "WeightTable",
    "applied_weight",
    "effective_weight",
    "flush_owed",
    "frontend_weights",
    "programmed_weight",
    "weight_unit",
]


class BackendView(Protocol):
    """What the rule needs to know of a backend."""

    @property
    def state(self) -> State:
        """Its state."""
        ...

    @property
    def drained(self) -> bool:
        """Whether an operator has drained it."""
        ...


class StateSource(Protocol):
    """Where the rule learns what it works on; the checker is one."""

    def config(self) -> Config:
        """The configuration in force."""
        ...

    def backend_state(self, name: str) -> BackendView:
        """The backend of that name; raises ``maglev.base.errors.UnknownName``."""
        ...

    def weight_override(self, frontend: str, pool: str, backend: str) -> int | None:
        """The operator's run-time weight (0..100) of a member; None where the file's counts."""
        ...


def applied_weight(weight: int, unit: int) -> int:
    """What a weight becomes in VPP, on the operator's scale: the programmed weight times the unit.

    It differs from ``weight`` where that is no multiple of the unit, and may then be above 100. Raises ValueError
    for a unit outside 1..100.
    """
    return programmed_weight(weight, unit) * unit
