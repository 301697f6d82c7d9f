"""The flushes that VPP has not acknowledged yet: owed by a transition, or by a drop that had to go without.

They stay owed over lost connections and restarts of either side, and are settled once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping

from maglev.vpp.planning.plan import Cause, FlushKey, Op, Owed, Plan, Step
from maglev.vpp.wire.messages import VipKey


class Debts:
    """At most one for each configured AS. ``changed`` is set when there is another one, or one less."""

    def __init__(self, kept: Iterable[tuple[FlushKey, Owed]] = ()) -> None:
        """``kept``: what was owed before a restart."""
        self.changed = asyncio.Event()
        self._owed: dict[FlushKey, Owed] = {}
        self._serial = 0
        for key, debt in kept:
            self._put(key, debt)
        self.changed.clear()

    @property
    def owed(self) -> Mapping[FlushKey, Owed]:
        """The flushes that are owed now."""
        return self._owed

    def owe(self, key: FlushKey, cause: Cause) -> None:
        """A transition owes this flush. It is a new debt even where one is being settled."""
        before = self._owed.get(key)
        if before is not None and before.cause is Cause.OPERATOR:
            cause = Cause.OPERATOR
        self._put(key, Owed(cause))

    def note(self, plan: Plan) -> None:
        """Take over the debts that a plan settles, puts off and incurs by itself."""
        for key in plan.settled:
            self._drop(key)
        for key in plan.waiting:
            if (debt := self._owed.get(key)) is not None and not debt.waited:
                self._owed[key] = debt._replace(waited=True)
        for key, debt in plan.incurred.items():
            if key not in self._owed:
                self._put(key, debt)

    def acknowledged(self, step: Step) -> None:
        """VPP has accepted a step: it has flushed, or what was owed went with the AS or the VIP."""
        for key, serial in step.settles:
            debt = self._owed.get(key)
            if debt is not None and debt.serial == serial:
                self._drop(key)
        if step.vip is None:
            return
        if step.op is Op.DELETE_AS:
            self._drop(FlushKey(step.vip, step.address))
        elif step.op is Op.DELETE_VIP:
            self._drop_all(step.vip)

    def forget_but(self, configured: Collection[FlushKey]) -> None:
        """Only these are configured: what leaves is deleted with a flush."""
        for key in [key for key in self._owed if key not in configured]:
            self._drop(key)

    def _drop_all(self, vip: VipKey) -> None:
        for key in [key for key in self._owed if key.vip == vip]:
            self._drop(key)

    def _put(self, key: FlushKey, debt: Owed) -> None:
        self._serial += 1
        self._owed[key] = debt._replace(serial=self._serial)
        self.changed.set()

    def _drop(self, key: FlushKey) -> None:
        if self._owed.pop(key, None) is not None:
            self.changed.set()
