"""Logs which backends cannot be probed as their probes do not leave this host, and what helps.

Such a backend keeps its state and its weight. So the operator has to know, and before a server among them dies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

from maglev._probe import UNPROBED
from maglev.base import logs
from maglev.base.clock import Clock
from maglev.checker import LiveBackend
from maglev.checker.engine import BLOCKED_KIND, BLOCKED_SINCE_NS, RECORD, TARGET

log = logs.get(__name__)

QUIET_NS = 600_000_000_000
SLICE = 2000
"""Records between two yield points: about a millisecond."""

SYSCTLS = Path("/proc/sys/net")

ADVICE = {
    "buffer": "the kernel has no buffer for them: compare the MTU of both ends of the link; `tc -s qdisc` counts drops",
    "route": "this host has no route to them, and no other backend passes: see `ip route get ADDRESS`",
    "link": "the outgoing interface is down or has no carrier: see `ip link`",
    "firewall": "a packet filter of this host drops them, or its connection tracking is full: see `nft list ruleset`",
    "queue": "a queue of this host drops or holds them: see `tc -s qdisc`",
}

Records = Callable[[], tuple[bytes, Mapping[int, LiveBackend]]]


class UnprobedWatch:
    """``look`` is called now and then; it logs a reason once in ten minutes for each namespace and family."""

    def __init__(
        self, stats: Callable[[], Mapping[str, int]], records: Records, clock: Clock, sysctls: Path = SYSCTLS
    ) -> None:
        self._stats = stats
        self._records = records
        self._clock = clock
        self._sysctls = sysctls
        self._counted: dict[str, int] = {}
        self._quiet_until: dict[tuple[str, str, int], int] = {}

    async def look(self) -> None:
        """Compare the counters with the last time; where one rose, say whom it concerns."""
        stats = self._stats()
        kinds = set()
        for kind, (name, _) in UNPROBED.items():
            count = stats[f"unprobed_{name}"]
            if count > self._counted.get(name, 0):
                kinds.add(kind)
            self._counted[name] = count
        if not kinds:
            return
        now = self._clock.monotonic_ns()
        self._quiet_until = {group: until for group, until in self._quiet_until.items() if until > now}
        for (netns, family, kind), names in (await self._blocked(kinds)).items():
            if (netns, family, kind) not in self._quiet_until:
                self._quiet_until[netns, family, kind] = now + QUIET_NS
                self._log(netns, family, kind, names)

    async def _blocked(self, kinds: set[int]) -> dict[tuple[str, str, int], list[str]]:
        """Backends that cannot be probed now, by namespace, family and reason."""
        records, backends = self._records()
        found: dict[tuple[str, str, int], list[str]] = {}
        for at, record in enumerate(RECORD.iter_unpack(records)):
            if at % SLICE == SLICE - 1:
                await asyncio.sleep(0)
            if not record[BLOCKED_SINCE_NS] or record[BLOCKED_KIND] not in kinds:
                continue
            live = backends.get(record[TARGET])
            if live is not None and live.probed and live.check is not None:
                family = "ipv6" if ":" in live.address else "ipv4"
                found.setdefault((live.check.spec.netns or "", family, record[BLOCKED_KIND]), []).append(live.name)
        return found

    def _log(self, netns: str, family: str, kind: int, names: list[str]) -> None:
        reason = UNPROBED[kind][0]
        advice = self._neighbours(family) if reason == "neighbours" else ADVICE[reason]
        count = f"{len(names)} backends cannot" if len(names) > 1 else "a backend cannot"
        log.warning(
            "probes-not-sent",
            f"{count} be probed, {names[0]} for one: {advice}; they keep their state",
            reason=reason,
            backends=len(names),
            example=names[0],
            family=family,
            netns=netns,
        )

    def _neighbours(self, family: str) -> str:
        """The limit of the neighbour table is the machine's; only its first namespace shows it."""
        sysctl = f"net.{family}.neigh.default.gc_thresh3"
        try:
            path = self._sysctls / family / "neigh/default/gc_thresh3"
            limit = f" (now {int(path.read_text(encoding='ascii'))})"
        except (OSError, ValueError):
            limit = ""
        return (
            f"the kernel's neighbour table is full: set the sysctl {sysctl}{limit} above all neighbours of the machine"
        )
