"""Takes the facts of a reading: drift is logged and counted, the weights of a lost VIP are remembered."""

from __future__ import annotations

from collections.abc import Sequence

from maglev.base import logs
from maglev.vpp.state.drift import Drift
from maglev.vpp.state.mirror import Fact
from maglev.vpp.sync.rooms import Rooms
from maglev.vpp.wire.messages import VipKey

log = logs.get(__name__)

MOST_TOLD = 5
"""How many differences of one VIP the log names."""


class Reporter:
    """Takes facts from ``Readback`` and the first read, which hold the lock of the dataplane."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    def take(self, fact: Fact) -> None:
        """Act on one fact."""
        if fact.lost is not None and fact.lost.key in self._rooms.announced.current.vips:
            self._rooms.adoption.lose(fact.lost)
        if fact.drift:
            self._drift(fact.key, fact.drift)

    def _drift(self, key: VipKey | None, found: Sequence[Drift]) -> None:
        self._rooms.counters.drift.update(one.kind for one in found)
        words = "; ".join(one.words for one in found[:MOST_TOLD])
        if len(found) > MOST_TOLD:
            words += f"; and {len(found) - MOST_TOLD} more"
        where = f"VIP {key}: " if key is not None else ""
        log.warning(
            "vpp-drift",
            f"somebody else has changed VPP: {where}{words}",
            vip=str(key or ""),
            kinds=" ".join(sorted({one.kind for one in found})),
            differences=len(found),
        )
