"""VIPs that have left the configuration: those that a full sync may delete, and those that wait for an operator.

A VIP may be deleted where its removal was *agreed* to: a reload took it out of the file, and the reload's guard let
that pass or was forced. All others that a full sync would delete left the file in another way: the daemon was
restarted with another file, its state file was lost, or ``prune: all`` met VIPs of another controller. The reload's own
rule (``maglev.judgement.deletions``) judges them. It counts the VIPs in VPP that are configured or would be deleted. It
also counts those that left the file in the same way and that VPP has lost: an emptied VPP that is filled again must not
let a cut-off file pass. VIPs that pass are deleted. The others *wait*, and forward as they are.

Waiting VIPs stay so, whatever is added to or taken from the file later: the rule is not asked about them again, since
every VIP that is added would make them a smaller share. The wait ends when the VIP is configured again, when VPP has it
no longer, when an operator asks for pruning, or when a reload is forced. Agreements end when VPP no longer has the VIP,
or when it is configured again: the next cut-off file must not find them.

Both sets survive a restart, agreements too: a forced reload while VPP is away is not asked about again.

Owned by the event loop. ``agreed``, ``held`` and ``waiting`` are immutable values, replaced on change: a plan may keep
them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from maglev.judgement.deletions import too_many
from maglev.vpp.state.store import PRUNING, Store, pruning_from_json, pruning_to_json
from maglev.vpp.wire.messages import VipKey

Prunes = Callable[[VipKey], bool]
"""Whether ``prune`` allows a VIP that is not configured to be removed."""

NONE: frozenset[VipKey] = frozenset()


class Review(NamedTuple):
    """The changes of a review.

    ``held``: VIPs that wait, and are not in the log yet; ``lifted``: VIPs that waited; ``gone``: VIPs whose deletion
    was agreed to, and that VPP has no longer.
    """

    held: AbstractSet[VipKey]
    lifted: AbstractSet[VipKey]
    gone: AbstractSet[VipKey] = NONE


def held_back(
    present: Collection[VipKey],
    configured: AbstractSet[VipKey],
    prunes: Prunes,
    *,
    agreed: AbstractSet[VipKey],
    held: AbstractSet[VipKey],
    left: AbstractSet[VipKey] = NONE,
) -> frozenset[VipKey]:
    """The VIPs that must not be deleted without an operator's word, of those that VPP has now (``present``).

    ``left``: VIPs of this daemon that are not configured, whether VPP has them or not.
    """
    leaving = [key for key in present if key not in configured]
    if not leaving:
        return NONE  # the case of nearly every full sync
    stay = {key for key in leaving if key in held}
    asked = [key for key in leaving if key not in stay and key not in agreed and prunes(key)]
    lost = len(asked) + sum(key not in present and key not in agreed for key in left)
    if asked and too_many(lost, len(present) - len(leaving) + lost, len(configured)):
        stay.update(asked)
    return frozenset(stay)


class Pruning:
    """The agreements, and the VIPs that wait.

    ``held``: VIPs that are not deleted. ``waiting``: those of them that ``prune`` would delete at the last review; with
    ``prune: none`` there is nothing to wait for. Before the first review after a start, all of them.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        agreed, held = pruning_from_json(store.get(PRUNING))
        self.agreed: frozenset[VipKey] = frozenset(agreed)
        self.held: frozenset[VipKey] = frozenset(held)
        self.waiting = self.held
        self._told = NONE

    def configure(self, before: AbstractSet[VipKey], after: AbstractSet[VipKey]) -> None:
        """A reload has led from one set of configured VIPs to another; before the first configuration there is none."""
        self._put((self.agreed | (before - after)) - after, self.held - after)

    def agree(self, keys: Iterable[VipKey], configured: AbstractSet[VipKey]) -> None:
        """An operator has agreed that these VIPs, and all that wait, are deleted."""
        self._put((self.agreed | self.held | frozenset(keys)) - configured, NONE)

    def review(
        self,
        present: AbstractSet[VipKey],
        configured: AbstractSet[VipKey],
        prunes: Prunes,
        left: AbstractSet[VipKey] = NONE,
    ) -> Review:
        """A full sync begins, and VPP has these VIPs. Decides about those that it would delete; ``left`` as above."""
        held = held_back(present, configured, prunes, agreed=self.agreed, held=self.held, left=left)
        gone = self.agreed - present - configured
        self._put((self.agreed & present) - configured, held)
        self.waiting = frozenset(key for key in held if prunes(key))
        review = Review(self.waiting - self._told, self._told - self.waiting, gone)
        self._told = self.waiting
        return review

    def _put(self, agreed: frozenset[VipKey], held: frozenset[VipKey]) -> None:
        if (agreed, held) == (self.agreed, self.held):
            return
        self.agreed, self.held = agreed, held
        self.waiting &= held
        self._store.set(PRUNING, pruning_to_json(agreed, held))
