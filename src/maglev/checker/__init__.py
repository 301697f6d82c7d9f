"""The checker: backends at run time, from the engine's verdicts and the operator's words to events.

``checker`` is the entry, and names the rooms that own the state. ``backend`` is a backend at run time, ``engine`` the
interface to a probe engine. The values of ``maglev.views.backends`` are the checker's view of them for everything else.
"""

from maglev.checker.backend import LiveBackend
from maglev.checker.checker import Checker
from maglev.checker.engine import ProbeEngine
from maglev.checker.status import PASSES

__all__ = ["PASSES", "Checker", "LiveBackend", "ProbeEngine"]
