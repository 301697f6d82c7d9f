"""Writes the flushes that are owed to the store, so that a restart of the daemon does not lose them."""

from __future__ import annotations

from maglev.base.clock import Clock
from maglev.base.pace import at_once, in_slices
from maglev.vpp.state.debts import Debts
from maglev.vpp.state.store import FLUSHES, Store, owed_to_json

KEEP_SECONDS = 3.0
"""How long a flush is owed before it is written down: nearly all are acknowledged before that, and so never written."""


async def keep_flushes(debts: Debts, store: Store, clock: Clock) -> None:
    """Write down what is owed whenever that has changed, until cancelled."""
    while True:
        await debts.changed.wait()
        await clock.sleep(KEEP_SECONDS)
        debts.changed.clear()
        # A copy: debts come and go between two slices.
        store.set(FLUSHES, await in_slices(owed_to_json(list(debts.owed.items()))))


def keep_flushes_now(debts: Debts, store: Store) -> None:
    """Write down what is owed, at the end."""
    store.set(FLUSHES, at_once(owed_to_json(debts.owed.items())))
