"""VIPs that are taken down and built up again, and those for which that was given up. Pure.

VPP cannot change a VIP's encapsulation, stickiness or table length: the VIP is emptied, deleted and created. Where the
file explains that (its nature changed), it is done once. Where drift explains it, another controller may undo it each
time, and every attempt costs all flows of the VIP: after ``MOST`` within ``WINDOW_NS`` the VIP is left as it is, until
its configuration changes or a sync is forced.

Owned by the event loop; changed by the task that holds the lock of the dataplane, and by a reload. ``frozen`` and
``stuck`` are immutable values, replaced on change: a plan may keep them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from maglev.vpp.planning.desired import DesiredVip
from maglev.vpp.wire.messages import Encap, VipKey

WINDOW_NS = 600 * 1_000_000_000
MOST = 2

Nature = tuple[Encap, bool, int | None]
"""The properties that VPP cannot change: encapsulation, stickiness, table length (None: a VIP keeps its own)."""


class Recreations:
    """How often each VIP was created again without a reason in the file.

    ``frozen``: VIPs whose recreation was given up. ``stuck``: VIPs that VPP has refused to delete since the last full
    sync began.
    """

    def __init__(self) -> None:
        self.frozen: frozenset[VipKey] = frozenset()
        self.stuck: frozenset[VipKey] = frozenset()
        self._natures: dict[VipKey, Nature] = {}
        self._explained: set[VipKey] = set()
        self._times: dict[VipKey, deque[int]] = {}

    def note(self, wanted: Iterable[DesiredVip]) -> None:
        """A plan is made for these. A nature that differs from that of the plan before explains one recreation."""
        for vip in wanted:
            nature = (vip.encap, vip.sticky, vip.length)
            before = self._natures.get(vip.key)
            if before == nature:
                continue
            self._natures[vip.key] = nature
            if before is not None:
                self._explained.add(vip.key)
                self._times.pop(vip.key, None)
                self.frozen -= {vip.key}

    def count(self, key: VipKey, now_ns: int) -> bool:
        """A configured VIP was emptied, to be created again. Returns whether that is given up from now on."""
        if key in self._explained:
            self._explained.discard(key)
            return False
        times = self._times.setdefault(key, deque())
        times.append(now_ns)
        while now_ns - times[0] > WINDOW_NS:
            times.popleft()
        if len(times) < MOST:
            return False
        self.frozen |= {key}
        return True

    def refused(self, key: VipKey) -> None:
        """VPP refused to delete this VIP."""
        self.stuck |= {key}

    def retry(self) -> None:
        """A full sync begins, or a VPP was read for the first time: deletions are tried again."""
        self.stuck = frozenset()

    def forgive(self) -> None:
        """A sync is forced: nothing is given up any longer."""
        self.frozen = frozenset()
        self._times.clear()
