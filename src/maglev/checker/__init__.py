"""The checker: backends at run time, from the engine's verdicts and the operator's words to events.

``checker`` holds the rules of a reload and the verbs, ``backend`` a backend at run time, ``engine`` what is needed of
a probe engine. What the checker shows of them are the values of ``maglev.views.backends``.
"""

from maglev.checker.backend import LiveBackend
from maglev.checker.checker import Checker
from maglev.checker.engine import ProbeEngine
from maglev.checker.status import PASSES

__all__ = ["PASSES", "Checker", "LiveBackend", "ProbeEngine"]
