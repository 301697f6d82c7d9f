"""Takes the facts of a reading: drift is logged and counted, the weights of a lost VIP are remembered, and changes by
commands are confirmed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from maglev.base import logs
from maglev.vpp.planning.plan import Step
from maglev.vpp.state.drift import Drift
from maglev.vpp.state.mirror import Accepted, Fact
from maglev.vpp.sync.rooms import Rooms
from maglev.vpp.wire.messages import VipKey

log = logs.get(__name__)

MOST_TOLD = 5
"""How many differences of one VIP the log names."""


class Reporter:
    """Takes facts from ``Readback`` and the first read, which hold the lock of the dataplane."""

    def __init__(self, rooms: Rooms, confirm: Callable[[Accepted], None]) -> None:
        """``confirm``: takes each step that a reading confirms."""
        self._rooms = rooms
        self._confirm = confirm

    def take(self, fact: Fact) -> None:
        """Act on one fact."""
        if fact.lost is not None and fact.lost.key in self._rooms.announced.current.vips:
            self._rooms.adoption.lose(fact.lost)
        for accepted in fact.confirmed:
            self._confirm(accepted)
        if fact.missing and fact.key is not None:
            self._unconfirmed(fact.key, len(fact.missing), fact.missing[0].step)
        if fact.drift:
            self._drift(fact.key, fact.drift)

    def _unconfirmed(self, key: VipKey, many: int, first: Step) -> None:
        """VPP accepted commands and does not show their result: another controller was faster, or this CLI differs."""
        self._rooms.agenda.avoid_commands(key)
        self._rooms.counters.commands_failed += 1
        log.warning(
            "vpp-commands-unconfirmed",
            f"VIP {key}: VPP accepted {logs.counted(many, 'change')} that it does not show, {first} first;"
            " single calls repair it",
            vip=str(key),
            changes=many,
        )

    def _drift(self, key: VipKey | None, found: Sequence[Drift]) -> None:
        self._rooms.counters.drift.update(one.kind for one in found)
        words = "; ".join(one.words for one in found[:MOST_TOLD])
        if len(found) > MOST_TOLD:
            words += f"; and {len(found) - MOST_TOLD} more"
        where = f"VIP {key}: " if key is not None else ""
        name = self._rooms.announced.current.names.get(key, "") if key is not None else ""
        self._rooms.trail.drifted(name, where + words)
        log.warning(
            "vpp-drift",
            f"somebody else has changed VPP: {where}{words}",
            vip=str(key or ""),
            kinds=" ".join(sorted({one.kind for one in found})),
            differences=len(found),
        )
