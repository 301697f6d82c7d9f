"""The new-flow table of each VIP as VPP showed it last, and before its last change.

Each reading of a VIP's ASes enters here, and nothing else does: an acknowledged call changes the mirror at once, and
this memory when its VIP is read back, which is done while there is nothing to write. So a batch of calls is one change,
as is the work of another controller. The memory outlives a lost connection: the first reading after it shows whether
the table has changed meanwhile.

Owned by the event loop. Answers are valid while VPP is connected and has the VIP; the caller asks the mirror.
"""

from __future__ import annotations

from collections.abc import Container
from typing import NamedTuple

from maglev.base.clock import Clock
from maglev.vpp.planning.model import ActualVip
from maglev.vpp.planning.tables import Table, table_of
from maglev.vpp.wire.messages import VipKey


class Reading(NamedTuple):
    """A VIP's table as it was read at ``read_at_ns`` (wall clock), with its fingerprint.

    ``before``: the table before the last change, which a reading at ``changed_at_ns`` showed; None: the daemon has
    seen no change.
    """

    table: Table
    fingerprint: int
    read_at_ns: int
    before: Table | None = None
    changed_at_ns: int = 0


class Tables:
    """The tables of all VIPs, two of each at most: 17 bytes a server and table."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._readings: dict[VipKey, Reading] = {}

    def read(self, vip: ActualVip) -> None:
        """The ASes of a VIP have just been read."""
        now = self._clock.time_ns()
        table, known = table_of(vip.ases, vip.length), self._readings.get(vip.key)
        if known is None:
            self._readings[vip.key] = Reading(table, table.fingerprint, now)
        elif table == known.table:
            self._readings[vip.key] = known._replace(read_at_ns=now)
        else:
            self._readings[vip.key] = Reading(table, table.fingerprint, now, known.table, now)

    def keep(self, keys: Container[VipKey]) -> None:
        """The list of VIPs was read: forget those that VPP has no longer."""
        for key in [key for key in self._readings if key not in keys]:
            del self._readings[key]

    def find(self, key: VipKey) -> Reading | None:
        """The last reading of a VIP; None: it has not been read yet."""
        return self._readings.get(key)
