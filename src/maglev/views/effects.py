"""The effects of a change on frontends: which lose their last server, and which are served by another pool.

Pure: an outlook before and one after, both from the weight rule, whether the change was made or only tried. A backend
may be a member of thousands of frontends, so an outlook is a number for each, and only the first effects become
objects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

MOST_EFFECTS = 20
"""Effects that are listed; further ones are counted."""

NO_POOL = -1
"""Outlook of a frontend without a usable server."""


@dataclass(frozen=True, slots=True)
class FrontendEffect:
    """The effect on one frontend: the pools that serve it, before and after; empty: it has no usable server.

    ``back``: the new pool comes before the old one in the file. ``keeps``: the last usable server is lost, and
    others keep the weights that VPP has (``on-all-down: keep``).
    """

    frontend: str
    pool_before: str
    pool_after: str
    back: bool = False
    keeps: bool = False

    def __str__(self) -> str:
        if not self.pool_after:
            what = "the others keep the weights that VPP has" if self.keeps else "new flows are dropped"
            return f"{self.frontend}: no server left, {what}"
        if not self.pool_before:
            return f"{self.frontend}: served again, by pool {self.pool_after}"
        return f"{self.frontend}: {'goes' if self.back else 'falls'} back to pool {self.pool_after}"


@dataclass(frozen=True, slots=True)
class Effects:
    """The listed effects, the worst ones first, and how many more there are."""

    listed: tuple[FrontendEffect, ...] = ()
    omitted: int = 0


NO_EFFECTS = Effects()
"""No frontend is affected."""


def effects(
    names: Sequence[str],
    before: Sequence[int],
    after: Sequence[int],
    pools: Callable[[str], Sequence[str]],
    keeps: Callable[[str], bool],
) -> Effects:
    """The effects on the frontends ``names`` of a change, from their outlooks before and after it.

    An outlook is the index of the active pool, or ``NO_POOL`` (``WeightTable.outlook``). ``pools``: the names of the
    pools of a frontend. ``keeps``: whether a member of
    a frontend keeps the weight that VPP has, after the change.
    """
    if before == after:
        return NO_EFFECTS
    moved = [at for at, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
    # Frontends without a server first, then those that fall back, then the good news; else in the order of the file.
    moved.sort(key=lambda at: (after[at] != NO_POOL, before[at] == NO_POOL or after[at] < before[at]))
    listed: list[FrontendEffect] = []
    for at in moved[:MOST_EFFECTS]:
        name, old, new = names[at], before[at], after[at]
        known = pools(name)
        listed.append(
            FrontendEffect(
                frontend=name,
                pool_before="" if old == NO_POOL else known[old],
                pool_after="" if new == NO_POOL else known[new],
                back=NO_POOL < new < old,
                keeps=new == NO_POOL and keeps(name),
            )
        )
    return Effects(tuple(listed), len(moved) - len(listed))
