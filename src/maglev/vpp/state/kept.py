"""Weights in the state file: those that VPP alone cannot give back after a restart of the daemon.

Two kinds of VIPs have them. A VIP that is about to be *created again*: it is emptied and deleted first, and a daemon
that is killed in between would find it empty. So its weights are on the disk before the first call, with its *nature*
(encapsulation, table length, stickiness), and a recreation without them does not begin. And every VIP with
``on-all-down: keep``: its last weights have to come back if VPP is restarted while the daemon is down, and every check
fails then. Those are written some seconds after they changed.

Weights in VPP take precedence. A weight from here is used for an AS that VPP lacks (``LostWeights``). Only in a VIP
that still has the nature from before its recreation, the weights here count for all ASes: between its first and its
last call, VPP shows what the recreation has left of it. A VIP of another nature is the new one, and what health has
made of it since must not be undone by an old record.

Owned by the event loop. Weights are on the daemon's scale, in units.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Generator, Mapping

from maglev.base.clock import Clock
from maglev.base.pace import at_once, in_slices
from maglev.config.model import Config, OnAllDown
from maglev.vpp.planning.lost import LostWeights
from maglev.vpp.planning.model import ActualVip, vip_key
from maglev.vpp.state.store import WEIGHTS, Kept, Nature, Store, kept_from_json, kept_to_json
from maglev.vpp.wire.messages import VipKey

KEEP_SECONDS = 3.0
"""How long after a change the weights of VIPs with ``on-all-down: keep`` are written: a failover is many changes."""

OwnScale = Callable[[ActualVip], Mapping[bytes, int]]
"""The weights of a VIP in VPP, on the daemon's scale."""


def nature_of(vip: ActualVip) -> Nature:
    """The properties of a VIP that take a recreation to change."""
    return Nature(vip.encap, vip.length, vip.sticky)


class KeptWeights:
    """The section of the state file, and what of it is on the disk.

    ``recorded``: VIPs whose recreation may begin, or go on: their weights are on the disk, with their nature.
    ``inherited``: those that a daemon before this one has begun. ``watched``: configured VIPs with
    ``on-all-down: keep``. All three are immutable values, replaced on change. ``changed`` is set when there is
    something to write.
    """

    def __init__(self, store: Store) -> None:
        self.changed = asyncio.Event()
        self.watched: frozenset[VipKey] = frozenset()
        self._store = store
        self._kept: dict[VipKey, Kept] = dict(kept_from_json(store.get(WEIGHTS)))
        self.recorded: frozenset[VipKey] = frozenset(key for key, kept in self._kept.items() if kept.nature is not None)
        self.inherited = self.recorded
        self._saving = asyncio.Lock()

    def restore(self, lost: LostWeights) -> None:
        """The daemon starts: VPP has, or had, these weights."""
        for key, kept in self._kept.items():
            if kept.nature is not None:
                lost.recreate(key, kept.weights)
            else:
                lost.lose(key, kept.weights)

    def configure(self, config: Config, vips: Collection[VipKey]) -> None:
        """Only ``vips`` are configured from now on."""
        frontends = config.frontends.values()
        self.watched = frozenset(vip_key(one) for one in frontends if one.on_all_down is OnAllDown.KEEP)
        self._drop([key for key in self._kept if key not in vips])
        self.changed.set()

    def compare(self, read: Mapping[VipKey, ActualVip], lost: LostWeights) -> None:
        """VPP was read: recreations that have come as far as the deletion of the old VIP do not count any more."""
        for key in self.recorded:
            kept, vip = self._kept[key], read.get(key)
            if kept.nature is None or vip is None or not kept.nature.is_of(vip.encap, vip.length, vip.sticky):
                lost.created(key)
        self.changed.set()

    # ------------------------------------------------------------------------------------------------------ recreations

    def has(self, vip: ActualVip, weights: Mapping[bytes, int]) -> bool:
        """Whether a VIP is written down as it is now, with these weights."""
        return self._kept.get(vip.key) == Kept(weights, nature_of(vip))

    async def record(self, vips: Mapping[VipKey, Kept]) -> None:
        """Write down VIPs whose recreation is to begin, and wait for the disk. Raises ``MaglevError``."""
        self._kept.update(vips)
        self.recorded -= frozenset(vips)
        await self._save()
        if self._store.lasting:
            await self._store.saved()
        # An entry that another task has put there meanwhile is newer, and not on the disk yet.
        self.recorded |= {key for key, kept in vips.items() if self._kept.get(key) is kept}

    def settle(self, recreated: Collection[VipKey]) -> None:
        """Only these are being created again: what was written down for others is needed no longer."""
        if over := [key for key in self.recorded if key not in recreated]:
            self._drop(over)
            self.changed.set()

    # ------------------------------------------------------------------------------------------------------ on-all-down

    def update(
        self, actual: Mapping[VipKey, ActualVip], own_scale: OwnScale, lost: LostWeights
    ) -> Generator[None, None, None]:
        """Take the present weights of watched VIPs, VIP by VIP: to be driven in slices.

        A VIP that VPP lacks keeps its last weights, and so does an AS that VPP lacks and is to get its last one.
        """
        for key in self.watched:
            vip = actual.get(key)
            if vip is not None and key not in lost.recreated and key not in self.recorded:
                self._kept[key] = Kept({**lost.weights(key), **own_scale(vip)}, None)
            yield

    async def save(self) -> None:
        """Give all of it to the store."""
        await self._save()

    def save_now(self) -> None:
        """The same, at the end."""
        self._store.set(WEIGHTS, at_once(kept_to_json(self._kept.items())))

    async def _save(self) -> None:
        # One at a time, or an older value could be given last. A copy: entries come and go between two slices.
        async with self._saving:
            self._store.set(WEIGHTS, await in_slices(kept_to_json(list(self._kept.items()))))

    def _drop(self, keys: Collection[VipKey]) -> None:
        for key in keys:
            del self._kept[key]
        self.recorded -= frozenset(keys)
        self.inherited &= self.recorded


async def keep_weights(
    kept: KeptWeights,
    actual: Callable[[], Mapping[VipKey, ActualVip]],
    own_scale: OwnScale,
    lost: LostWeights,
    clock: Clock,
) -> None:
    """Write the weights of watched VIPs down whenever they have changed, until cancelled."""
    while True:
        await kept.changed.wait()
        await clock.sleep(KEEP_SECONDS)
        kept.changed.clear()
        await in_slices(kept.update(actual(), own_scale, lost))
        await kept.save()
