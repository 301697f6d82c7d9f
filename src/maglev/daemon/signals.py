"""Signals from the first instruction to the last.

SIGTERM, SIGINT and SIGHUP are remembered until the event loop takes them, so that one that comes while the program is
imported is not lost: the daemon ends in an orderly way, or reads its file once more when it is ready. After the daemon
has ended they have no effect.

Python's own handlers are used, and not ``loop.add_signal_handler``: the loop puts the default action back when it
closes, and a second SIGTERM or a late SIGHUP would then kill a process that is about to return its status. uvloop runs
Python's handlers as soon as a signal wakes it.

Other signals whose default action ends a process are ignored, because none of them is a reason to stop driving VPP.
SIGQUIT, SIGABRT, SIGXCPU and the signals of CPU faults keep their action, which includes a core dump. Python ignores
SIGPIPE and SIGXFSZ by itself.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

HELD = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

IGNORED: tuple[int, ...] = (
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGVTALRM,
    signal.SIGPROF,
    signal.SIGIO,
    signal.SIGPWR,
    signal.SIGSTKFLT if hasattr(signal, "SIGSTKFLT") else signal.SIGIO,
    *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
)


class Signals:
    """Remembers the signals of ``HELD`` until there is a taker. For the main thread."""

    def __init__(self) -> None:
        self._remembered: list[int] = []
        self._take: Callable[[int], None] | None = None

    def hold(self) -> None:
        """From now on remember, and ignore those of ``IGNORED``."""
        for number in HELD:
            signal.signal(number, self._caught)
        for other in IGNORED:
            signal.signal(other, signal.SIG_IGN)

    def deliver(self, take: Callable[[int], None]) -> None:
        """Give each signal to ``take``, those first that came before. To be called on the event loop."""
        self._take = take
        remembered, self._remembered = self._remembered, []
        for number in remembered:
            take(number)

    def dismiss(self) -> None:
        """The event loop ends: what comes from now on has no effect, up to the last instruction of the interpreter."""
        for number in HELD:
            signal.signal(number, signal.SIG_IGN)

    def release(self) -> None:
        """Put the default actions back, for a program that ends by itself; what was remembered takes effect now."""
        for number in HELD:
            signal.signal(number, signal.SIG_DFL)
        remembered, self._remembered = self._remembered, []
        for early in remembered:
            signal.raise_signal(early)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        if self._take is not None:
            self._take(number)
        elif number not in self._remembered:
            self._remembered.append(number)
