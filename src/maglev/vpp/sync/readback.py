"""Reads VPP into the mirror, at the pace that forwarding can stand.

A read stalls VPP too, so ASes are read VIP by VIP, each when the pacer admits it. Each fact goes to ``report`` as soon
as the mirror has the reading: a later read may fail, and the fact would be lost.

Every method but ``cost`` needs the lock of the dataplane, and raises ``Unavailable`` where VPP goes away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from maglev.vpp.planning.cost import CostModel
from maglev.vpp.planning.model import Actual, ActualVip
from maglev.vpp.state.mirror import Fact, Mirror
from maglev.vpp.state.reader import StateReader, describe, fill, new_vip
from maglev.vpp.state.tables import Tables
from maglev.vpp.sync.executor import Pacer
from maglev.vpp.wire.client import VppClient
from maglev.vpp.wire.messages import AsDetails, VipKey


class Readback:
    """Owns no state: the mirror and the tables do."""

    def __init__(
        self, client: VppClient, mirror: Mirror, tables: Tables, pacer: Pacer, report: Callable[[Fact], None]
    ) -> None:
        self._client = client
        self._mirror = mirror
        self._tables = tables
        self._pacer = pacer
        self._report = report
        self._reader = StateReader(client)

    def cost(self) -> CostModel:
        """The cost of calls on this VPP."""
        info = self._client.info()
        actual = self._mirror.actual
        conf = actual.conf if actual is not None else None
        return CostModel(
            sticky_buckets=conf.sticky_buckets_per_core if conf is not None else 1024,
            workers=info.workers if info is not None else 1,
            factor=self._pacer.factor,
            line_factor=self._pacer.lines.factor,
            per_line=self._pacer.lines.per_line,
        )

    async def everything(self) -> Actual:
        """Read the whole state after connecting. The mirror does not have it yet."""
        conf = await self._reader.conf()
        actual = Actual(conf, {key: new_vip(details) for key, details in (await self._reader.vips()).items()})
        for vip in actual.vips.values():
            fill(vip, await self._ases_of(vip))
            self._tables.read(vip)
        if actual.vips:
            describe(actual.vips, await self._reader.verbose())
        return actual

    async def settings(self) -> None:
        """Read the global settings."""
        self._mirror.demand()
        self._report(self._mirror.put_conf(await self._reader.conf()))

    async def vips(self) -> None:
        """Read the list of VIPs, and their index and stickiness if it shows that VIPs came or went."""
        self._mirror.demand()
        for fact in self._mirror.put_list(await self._reader.vips()):
            self._report(fact)
        self._tables.keep(self._mirror.demand().vips)
        if self._mirror.reshuffled:
            await self.verbose()

    async def ases(self, keys: Iterable[VipKey]) -> bool:
        """Read the ASes of these VIPs, as far as VPP has them; returns whether any read otherwise than expected."""
        actual = self._mirror.demand()
        differs = False
        for key in keys:
            vip = actual.vips.get(key)
            if vip is not None:
                fact = self._mirror.put_ases(vip, await self._ases_of(vip))
                self._tables.read(vip)
                self._report(fact)
                differs = differs or fact.differs
        return differs

    async def doubtful(self, keys: Iterable[VipKey]) -> None:
        """Read again those of these VIPs about which a call was refused, and those that are unconfirmed."""
        keys = list(keys)
        stale = self._mirror.stale(keys)
        if stale:
            await self.vips()
        if doubtful := [*stale, *(key for key in keys if self._mirror.unconfirmed(key) and key not in stale)]:
            await self.ases(doubtful)

    async def verbose(self) -> bool:
        """Read index and stickiness from the CLI; returns whether the nature of a VIP has changed."""
        actual = self._mirror.demand()
        facts = self._mirror.put_verbose(await self._reader.verbose() if actual.vips else {})
        for fact in facts:
            self._report(fact)
        return bool(facts)

    async def _ases_of(self, vip: ActualVip) -> list[AsDetails]:
        connects = self._client.connects
        await self._pacer.turn()
        self._client.still_connected(
            connects
        )  # Otherwise a VPP that was restarted meanwhile would be taken for the one in the mirror.
        read = await self._reader.ases(vip.key)
        self._pacer.start(self.cost().read(vip.length, len(read)))
        return read
