"""Which pool of a frontend serves: thresholds, and the memory that keeps two pools from taking turns. Pure.

A pool is *usable* while at least ``min-up`` of its members are up, not drained, and have a weight above 0. A share is
taken of the members with a weight that no operator took out (drained, disabled, paused) and that have a verdict, and is
rounded up. In the pool that serves, servers without a verdict are left out of it, so a reload that adds servers never
takes a pool out. In the others they count: the first server that is up after a start is not all of its pool.

1. While the pool that served last is usable, a pool of higher priority takes over only if ``resume-up`` of its members
   are up, and have been for ``resume-after``.
2. Otherwise the first usable pool serves.
3. If none is usable, the first pool with any member that is up serves: less than ``min-up`` is more than nothing.

So a pool that was left stays left until it reaches ``resume-up``, while another one is usable. A server that goes up
and down between the two thresholds moves traffic once.

Rules 2 and 3 depend on the states alone, but for shares. Rule 1 and shares need the pool that served last. This room
owns it, for frontends that have such a threshold. It is learned

- at the start from VPP: the pool to whose servers it sends most traffic;
- else from the rule, but not before every server of the earlier pools has a verdict: which server answers first says
  nothing about pools.

A server that VPP serves counts as up here until its first verdict, so ignorance never ends the turn of a pool. A reload
keeps the memory by the names of the pools.

Sources: HAProxy's backup servers with ``nbsrv`` (configuration manual), keepalived's ``quorum`` and ``hysteresis``
(virtual_server), GCP's failover ratio, AWS's minimum healthy targets, PyBal's depool threshold. All of them switch on a
share or a number; the second threshold, for the way back, is keepalived's.

``ext/weights.pyx`` counts and chooses (``choose_pool``); time and memory are here. Times are monotonic nanoseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from maglev.config.model import Frontend
from maglev.judgement.weights import NO_MEMORY, Memory, WeightTable

NONE = -1


@dataclass(slots=True)
class _Past:
    """``pool``: the name of the pool that served last; empty: none is known.

    ``ready_ns``: since when pools of higher priority have had ``resume-up`` members up, by their indexes.
    """

    pool: str = ""
    ready_ns: dict[int, int] = field(default_factory=dict)


class ActivePools:
    """The pool that served last, of each frontend whose pools return late (``Frontend.follows_pools``)."""

    def __init__(self) -> None:
        self._past: dict[str, _Past] = {}
        self._frontends: dict[str, Frontend] = {}
        # Frontends of which a pool waits to take over: few, while all others need not be looked at.
        self._waiting: dict[str, None] = {}
        self._begun = False

    def __contains__(self, frontend: str) -> bool:
        """Whether this frontend has a memory."""
        return frontend in self._past

    def names(self) -> list[str]:
        """The frontends that have a memory, in the order of the file."""
        return list(self._past)

    def apart(self, names: Iterable[str]) -> ActivePools:
        """A copy of the memory of these frontends, to try something out."""
        twin = ActivePools()
        kept = [name for name in names if name in self._past]
        twin._past = {name: replace(past := self._past[name], ready_ns=dict(past.ready_ns)) for name in kept}
        twin._frontends = {name: self._frontends[name] for name in kept}
        twin._waiting = dict.fromkeys(name for name in kept if name in self._waiting)
        twin._begun = self._begun
        return twin

    def configure(self, frontends: Iterable[Frontend]) -> None:
        """Another configuration is in force. ``frontends``: those of it that have a memory from now on."""
        self._frontends = {frontend.name: frontend for frontend in frontends}
        past: dict[str, _Past] = {}
        for name, frontend in self._frontends.items():
            before = self._past.get(name, _Past())
            known = any(pool.name == before.pool for pool in frontend.pools)
            # Indexes of pools may mean others now, so the times start again.
            past[name] = _Past(before.pool if known else "")
        self._past = past
        self._waiting = {}

    def begin(self, serving: Mapping[str, str]) -> None:
        """VPP was read: the name of the pool that it serves, by frontend. Nothing is remembered before. Called once."""
        self._begun = True
        for name, pool in serving.items():
            past = self._past.get(name)
            if past is not None and any(one.name == pool for one in self._frontends[name].pools):
                past.pool = pool

    def memory(self, frontend: Frontend) -> Memory:
        """The pool that served a frontend last, as an index into its pools, which may be of another configuration."""
        past = self._past.get(frontend.name)
        if past is None or not past.pool:
            return NO_MEMORY
        return Memory(next((at for at, pool in enumerate(frontend.pools) if pool.name == past.pool), NONE))

    def restore(self, table: WeightTable) -> None:
        """Enter the memory into a new table of weights."""
        for name, frontend in self._frontends.items():
            table.hold(name, self.memory(frontend).pool)

    def follow(self, name: str, table: WeightTable, now_ns: int) -> bool:
        """Take note of the present states of a frontend; returns whether another pool is remembered now.

        ``table`` has the states, and gets the memory. Called after every change of the states, and when one of them is
        ``due``. A second call with the same states and time changes nothing.
        """
        past = self._past.get(name)
        if past is None or not self._begun:
            return False
        frontend = self._frontends[name]
        chosen, undecided, ready = table.look(name)
        past.ready_ns = {pool: past.ready_ns.get(pool, now_ns) for pool in ready}
        self._waiting.pop(name, None)
        if ready:
            self._waiting[name] = None
        for pool, since_ns in past.ready_ns.items():
            if pool < chosen and now_ns - since_ns >= frontend.pools[pool].resume_after:
                chosen = pool
                break
        if chosen == NONE or frontend.pools[chosen].name == past.pool or (undecided and not past.pool):
            return False
        past.pool = frontend.pools[chosen].name
        past.ready_ns = {pool: since_ns for pool, since_ns in past.ready_ns.items() if pool < chosen}
        table.hold(name, chosen)
        return True

    def due(self) -> dict[str, int]:
        """When frontends are to be looked at again because time has passed, whatever their states do."""
        due: dict[str, int] = {}
        for name in self._waiting:
            pools, ready = self._frontends[name].pools, self._past[name].ready_ns
            if ready:
                due[name] = min(since + pools[pool].resume_after for pool, since in ready.items())
        return due
