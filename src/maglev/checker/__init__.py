"""The checker: backends at run time, from the engine's verdicts and the operator's words to events.

``checker`` holds the rules of a reload and the verbs, ``backend`` a backend at run time and its views, ``engine``
what is needed of a probe engine.
"""

from maglev.checker.backend import (
    BackendStatus,
    Change,
    LiveBackend,
    OverrideStatus,
    WeightChange,
)
from maglev.checker.checker import PASSES, Checker
from maglev.checker.engine import ProbeEngine

__all__ = [
    "PASSES",
    "BackendStatus",
    "Change",
    "Checker",
    "LiveBackend",
    "OverrideStatus",
    "ProbeEngine",
    "WeightChange",
]
