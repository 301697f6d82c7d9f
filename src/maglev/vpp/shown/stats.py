"""Packet counters of the VIPs, read from VPP's stats segment every few seconds, on a thread of its own.

The segment is shared memory that VPP offers over a socket; vpp_papi reads it. A missing socket, another format or a VPP
that died while writing costs the counters, and nothing else: vpp_papi alone would wait for such a VPP, or
try again what cannot succeed, without end and without a pause.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from vpp_papi.vpp_stats import StatsLock, VPPStats

from maglev.base import logs
from maglev.base.clock import Clock
from maglev.base.errors import Unavailable
from maglev.vpp.sync.reconciler import Reconciler
from maglev.vpp.wire.client import Refused, VppClient
from maglev.vpp.wire.messages import KEEP, ProtocolError, VipKey, pack_route_lookup, unpack_route

log = logs.get(__name__)

INTERVAL = 5.0
"""Seconds between two readings."""

KINDS: Mapping[str, str] = {
    "existing_session": "packet from existing sessions",
    "first_session": "first session packet",
    "untracked": "untracked packet",
    "no_server": "no server configured",
}
"""Our word for each of the plugin's counters, and its name in the segment, which has no leading slash."""

ROUTES = "/net/route/to"
WARN_EVERY_NS = 60 * 1_000_000_000


READING_SECONDS = 0.5
"""How long one reading may take in all; VPP changes the segment within microseconds, and seldom."""


class _Overdue(Exception):
    """A reading took too long. No OSError: vpp_papi takes those for a reason to try again."""


class _Lock(StatsLock):  # type: ignore[misc]
    """vpp_papi's optimistic lock with an end to its patience."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        self.epoch = self.stats.epoch
        while self.stats.in_progress:
            self.stats.in_time("VPP has begun to change it and does not come to an end")
            time.sleep(0.001)
        return True

    def __exit__(self, kind: object = None, error: object = None, trace: object = None) -> None:
        if kind is not None:
            # A failed read is repeated at once, as if the segment had changed meanwhile.
            self.stats.in_time("it makes no sense")
            time.sleep(0.001)
        super().__exit__()


class _Stats(VPPStats):  # type: ignore[misc]
    """vpp_papi's reader with a deadline; ``begin`` sets it, for everything up to the next ``begin``."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.lock = _Lock(self)
        self._deadline = 0.0

    def begin(self) -> None:
        self._deadline = time.monotonic() + READING_SECONDS

    def in_time(self, what: str) -> None:
        if time.monotonic() > self._deadline:
            raise _Overdue(f"given up after {READING_SECONDS:g} s: {what}")


@dataclass(frozen=True, slots=True)
class VipCounters:
    """Packets of one VIP since VPP made it, by what the plugin did with them, and what its route carried."""

    key: VipKey
    existing_session: int = 0
    first_session: int = 0
    untracked: int = 0
    no_server: int = 0
    route_packets: int = 0
    route_bytes: int = 0


class Segment:
    """The stats segment, read from one thread. Every failure closes it; the next reading opens it again."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._stats: Any = None
        self._generation = -1

    def read(self, generation: int, vips: Mapping[VipKey, int], routes: Mapping[VipKey, int]) -> list[VipCounters]:
        """Counters of these VIPs, by their index in VPP. Blocks. Raises OSError without a segment to read.

        ``generation`` changes with every new connection to VPP: a VPP that was restarted has a new segment, while the
        old one stays readable for ever and never moves.
        """
        if generation != self._generation:
            self.close()
            self._generation = generation
        try:
            if self._stats is None:
                stats = _Stats(self._path)
                stats.begin()
                stats.connect()
                self._stats = stats
            self._stats.begin()
            rows = {kind: self._simple(name) for kind, name in KINDS.items()}
            carried = self._stats[ROUTES] if routes else ()
            return [
                VipCounters(
                    key,
                    **{kind: sum(row[index] for row in rows[kind] if index < len(row)) for kind in KINDS},
                    route_packets=self._route(carried, routes.get(key), "packets"),
                    route_bytes=self._route(carried, routes.get(key), "bytes"),
                )
                for key, index in vips.items()
            ]
        except Exception as error:
            # vpp_papi raises bare Exception for a format it does not know, and what struct and mmap raise for garbage.
            self.close()
            raise OSError(f"stats segment {self._path} (--vpp-stats-addr): {error or type(error).__name__}") from error

    def _simple(self, name: str) -> Sequence[Sequence[int]]:
        """One row a worker; nothing while there has been no VIP yet."""
        try:
            rows: Sequence[Sequence[int]] = self._stats[name]
        except KeyError:
            return ()
        return rows

    @staticmethod
    def _route(rows: Sequence[Sequence[Mapping[str, int]]], index: int | None, what: str) -> int:
        if index is None:
            return 0
        return sum(int(row[index][what]) for row in rows if index < len(row))

    def close(self) -> None:
        """Let go of the shared memory."""
        stats, self._stats = self._stats, None
        if stats is not None:
            stats.disconnect()


class StatsPoller:
    """Reads the counters every ``INTERVAL`` seconds.

    ``problem``: why counters are missing. ``read_at_ns``: wall clock of the last reading, 0: none.
    """

    def __init__(self, path: str, client: VppClient, reconciler: Reconciler, clock: Clock) -> None:
        self.read_at_ns = 0
        self.problem = "not read yet"
        self.failures = 0
        self._read: tuple[VipCounters, ...] = ()
        self._path = path
        self._segment = Segment(path)
        self._client = client
        self._reconciler = reconciler
        self._clock = clock
        self._thread: ThreadPoolExecutor | None = None
        self._routes: dict[VipKey, int] = {}
        self._routes_of: tuple[int, frozenset[tuple[VipKey, int]]] = (-1, frozenset())
        self._serving: frozenset[VipKey] = frozenset()
        self._warned: dict[VipKey, int] = {}

    @property
    def vips(self) -> Sequence[VipCounters]:
        """The last reading, of the VIPs that VPP has; empty while VPP is away."""
        actual = self._reconciler.actual
        return () if actual is None else [counters for counters in self._read if counters.key in actual.vips]

    async def run(self) -> None:
        """Read until cancelled. May be run again after an end of any kind."""
        try:
            while True:
                await self.read()
                await self._clock.sleep(INTERVAL)
        finally:
            # The thread may be in the middle of a reading: it closes the segment after that, and no task waits for it.
            thread, self._thread = self._thread, None
            if thread is not None:
                thread.submit(self._segment.close)
                thread.shutdown(wait=False)
            self._segment = Segment(self._path)

    async def read(self) -> None:
        """One reading. Each failure is logged once, and kept in ``problem``."""
        actual = self._reconciler.actual
        if not self._client.usable or actual is None:
            # Asked for while VPP is away, it is the connection that says so; this is what is said right behind.
            self._read, self.problem = (), f"not read yet, as VPP has just come back (within {INTERVAL:g} s)"
            return
        vips = {key: vip.index for key, vip in actual.vips.items() if vip.index is not None}
        generation = self._client.connects
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="vpp-stats")
        try:
            await self._find_routes(generation, vips)
            read = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._segment.read, generation, vips, dict(self._routes)
            )
        except (OSError, Unavailable, ProtocolError, Refused) as error:
            self.failures += 1
            if str(error) != self.problem:
                log.warning("vpp-stats-unreadable", f"no packet counters: {error}")
            self._read, self.problem = (), str(error)
            return
        await self._warn(read)
        self._read, self.problem, self.read_at_ns = tuple(read), "", self._clock.time_ns()

    async def _find_routes(self, generation: int, vips: Mapping[VipKey, int]) -> None:
        """Where the counters of the VIPs' routes are. Asked again when VIPs came or went, not at every reading."""
        present = (generation, frozenset(vips.items()))
        if present == self._routes_of:
            return
        routes: dict[VipKey, int] = {}
        for key in vips:
            try:
                payload = await self._client.call("ip_route_lookup", pack_route_lookup(key.prefix))
            except Refused:
                continue
            _, route = unpack_route(payload)
            if route.stats_index != KEEP:
                routes[key] = route.stats_index
        self._routes, self._routes_of = routes, present

    async def _warn(self, read: Sequence[VipCounters]) -> None:
        """A VIP whose packets find no server, or are not tracked, though it should have had servers all the time."""
        before = {counters.key: counters for counters in self._read}
        served, self._serving = self._serving, await self._reconciler.serving()
        now = self._clock.monotonic_ns()
        for counters in read:
            old = before.get(counters.key)
            if old is None or counters.key not in served or counters.key not in self._serving:
                continue
            lost, untracked = counters.no_server - old.no_server, counters.untracked - old.untracked
            last = self._warned.get(counters.key)
            if max(lost, untracked) <= 0 or (last is not None and now - last < WARN_EVERY_NS):
                continue
            self._warned[counters.key] = now
            log.warning(
                "vpp-vip-packets-lost",
                f"VIP {counters.key} should have servers, but {max(0, lost)} packets found none and {max(0, untracked)}"
                " were not tracked",
                vip=str(counters.key),
                no_server=lost,
                untracked=untracked,
            )
