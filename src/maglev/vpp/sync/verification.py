"""The VIPs that were written and have not been read back yet. Pure.

Owned by the event loop: the programmer notes VIPs that VPP acknowledged calls about, and the task of the batches takes
one at a time while no frontend is dirty. A lost connection empties the list, since everything is read again then.
"""

from __future__ import annotations

from collections.abc import Iterable

from maglev.vpp.wire.messages import VipKey

WINDOW_NS = 600 * 1_000_000_000
"""How long a VIP that did not read back as written is left to the periodic sync, after it was repaired at once."""


class Verification:
    """The VIPs to read back, in the order in which they were written first."""

    def __init__(self) -> None:
        self._written: dict[VipKey, None] = {}
        self._contested: dict[VipKey, int] = {}

    @property
    def due(self) -> bool:
        """Whether anything is to be read back."""
        return bool(self._written)

    def written(self, keys: Iterable[VipKey]) -> None:
        """VPP has acknowledged calls about these."""
        self._written.update(dict.fromkeys(keys))

    def take(self) -> VipKey | None:
        """The next VIP to read back; None: there is none, or none any longer."""
        key = next(iter(self._written), None)
        if key is not None:
            del self._written[key]
        return key

    def forget(self) -> None:
        """The connection is lost."""
        self._written.clear()

    def contest(self, key: VipKey, now_ns: int) -> bool:
        """A VIP read back otherwise than it was written; returns whether it is to be repaired at once.

        At once, but once: two controllers that take turns must not keep VPP busy. The periodic sync does the rest.
        """
        if now_ns < self._contested.get(key, now_ns):
            return False
        self._contested[key] = now_ns + WINDOW_NS
        return True
