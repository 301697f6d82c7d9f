"""The verdicts that come when holds end: they take effect together. Pure.

A brake that ends lets go of up to thousands of verdicts at one moment. The checker reads them in slices of a
millisecond, and the dataplane may send a batch between two slices. That batch would take weights from the first servers
of a frontend, and flush their flows, although the last ones bring it into panic, or make it keep its weights
(``on-all-down: keep``). Panic would raise them again at once, with their flows gone. So a frontend is *unsettled*, and
is not programmed, until the verdicts of all its servers whose holds have ended are read.

A server that has not failed often enough since its hold began has no verdict to report, and nothing says so. So the
wait ends when all verdicts have come, or when none has come for ``QUIET_NS``, and after ``MOST_NS`` at the latest.

Times are monotonic nanoseconds.
"""

from __future__ import annotations

from collections.abc import Iterable

QUIET_NS = 100_000_000
"""No verdict within this time: none is to come. The probe engine ends a hold at its next tick, within milliseconds."""

MOST_NS = 2_000_000_000
"""The longest wait. The verdicts of 50,000 servers take the checker less than a second."""


class Together:
    """The backends whose holds have just ended, and the frontends that use them."""

    def __init__(self) -> None:
        self._backends: set[str] = set()
        self._frontends: dict[str, None] = {}
        self._quiet_ns = 0
        self._latest_ns = 0

    def __contains__(self, frontend: str) -> bool:
        """Whether a frontend is unsettled."""
        return frontend in self._frontends

    def awaits(self, backend: str) -> bool:
        """Whether a verdict of this backend is to come."""
        return backend in self._backends

    def begin(self, backend: str, frontends: Iterable[str], now_ns: int) -> None:
        """The hold of a backend has ended, which these frontends use."""
        if not self._frontends:
            self._latest_ns = now_ns + MOST_NS
        self._backends.add(backend)
        self._frontends.update(dict.fromkeys(frontends))
        self._quiet_ns = now_ns + QUIET_NS

    def came(self, backend: str, now_ns: int) -> None:
        """The verdict of this backend has come, or none is to come any longer."""
        self._backends.discard(backend)
        self._quiet_ns = now_ns + QUIET_NS

    def settle(self, now_ns: int) -> list[str]:
        """The frontends whose wait has ended by now; afterwards they are settled. Empty while the wait goes on."""
        due = self.due()
        if due is None or (self._backends and now_ns < due):
            return []
        settled = list(self._frontends)
        self._backends.clear()
        self._frontends.clear()
        return settled

    def due(self) -> int | None:
        """When the wait ends, whatever comes; None: there is none."""
        return min(self._quiet_ns, self._latest_ns) if self._frontends else None
