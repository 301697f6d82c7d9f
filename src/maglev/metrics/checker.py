"""The families about backends and frontends.

A scrape walks over all backends once per family. Where the engine's figures are needed, one snapshot of all targets
serves the family: asking the engine for 50,000 targets one by one would take fifty times as long.
"""

from __future__ import annotations

from collections.abc import Iterator

from maglev.base.states import Code, FrontendState
from maglev.checker import PASSES, Checker, LiveBackend
from maglev.checker.engine import BLOCKED_SINCE_NS, CODES, COUNTER, RECORD, RTT_COUNT, RTT_SUM_NS, TARGET
from maglev.judgement.weights import PoolCounts, pool_counts
from maglev.metrics.text import Family, labelled

SILENT = 500
"""Things without a line between two yield points."""


class CheckerFamilies:
    """The families about backends and frontends, read from the checker."""

    def __init__(self, checker: Checker) -> None:
        self._checker = checker

    def families(self) -> list[Family]:
        """All of them."""
        return [
            Family("maglev_backend_state", "gauge", "1 for the present state of the backend.", self._states),
            Family("maglev_backend_health", "gauge", "Health counter, 0 to rise+fall-1.", self._health),
            Family("maglev_backend_enabled", "gauge", "0 while the backend is disabled.", self._enabled),
            Family("maglev_backend_drained", "gauge", "1 while the backend is drained.", self._drained),
            Family(
                "maglev_backend_unprobed_since_seconds",
                "gauge",
                "Unix time since which the backend could not be probed for a local reason; absent while it can be.",
                self._unprobed,
            ),
            Family(
                "maglev_backend_transitions_total",
                "counter",
                "Changes of state by the states before and after.",
                self._transitions,
            ),
            Family("maglev_frontend_state", "gauge", "1 for the present state of the frontend.", self._frontends),
            Family(
                "maglev_frontend_active_pool",
                "gauge",
                "The pool that serves a frontend that is up or in panic: 0 for its first, 1 and more for a fallback.",
                self._active_pools,
            ),
            *self._pool_families(),
            Family(
                "maglev_frontend_pool_backend_weight",
                "gauge",
                "Weight of the pool member: the file's, or an operator's.",
                self._weights,
            ),
            Family(
                "maglev_frontend_pool_backend_effective_weight",
                "gauge",
                "What the pool member may receive now: its weight or 0.",
                self._effective_weights,
            ),
            Family("maglev_probe_total", "counter", "Probes by their outcome.", self._probes),
            Family("maglev_probe_rtt_seconds", "summary", "Round-trip time of passed probes.", self._rtt),
            labelled(
                "maglev_overrides",
                "gauge",
                "What operators have set and not taken back, by kind.",
                "kind",
                self._overrides,
            ),
        ]

    def _slow_starts(self) -> Iterator[str]:
        for name in self._frontend_names():
            if self._checker.frontend(name).slow_start:
                slow = sum(1 for member in self._checker.frontend_weights(name).members if member.share < 100)
                yield f'maglev_frontend_slow_starts{{frontend="{name}"}} {slow}\n'
            else:
                yield ""

    def _pool_families(self) -> list[Family]:
        """What pools have and need."""
        return [
            Family(
                "maglev_frontend_pool_up",
                "gauge",
                "Members of the pool that are up, not drained, and have a weight above 0.",
                self._pool_up,
            ),
            Family(
                "maglev_frontend_pool_usable",
                "gauge",
                "1 while as many members of the pool are up as its min-up takes.",
                self._pool_usable,
            ),
            Family(
                "maglev_frontend_slow_starts",
                "gauge",
                "Backends that start slowly; absent for frontends without slow-start.",
                self._slow_starts,
            ),
            Family(
                "maglev_frontend_pool_healthy_ratio",
                "gauge",
                "Share of the pool's weight that is up or has no verdict; absent where operators took out all of it.",
                self._pool_healthy,
            ),
        ]

    def _states(self) -> Iterator[str]:
        for live in self._checker.backends():
            yield (
                f'maglev_backend_state{{backend="{live.name}",address="{live.address}",'
                f'healthcheck="{live.healthcheck}",state="{live.state}"}} 1\n'
            )

    def _records(self) -> Iterator[tuple[LiveBackend, tuple[int, ...]]]:
        """The engine's record of each backend that has one, all of one moment."""
        records, backends = self._checker.probe_records()
        for record in RECORD.iter_unpack(records):
            live = backends.get(record[TARGET])
            if live is not None:
                yield live, record

    def _health(self) -> Iterator[str]:
        for live, record in self._records():
            yield f'maglev_backend_health{{backend="{live.name}"}} {record[COUNTER]}\n'

    def _enabled(self) -> Iterator[str]:
        for live in self._checker.backends():
            yield f'maglev_backend_enabled{{backend="{live.name}"}} {int(live.enabled)}\n'

    def _drained(self) -> Iterator[str]:
        for live in self._checker.backends():
            yield f'maglev_backend_drained{{backend="{live.name}"}} {int(live.drained)}\n'

    def _unprobed(self) -> Iterator[str]:
        head = "maglev_backend_unprobed_since_seconds"
        for at, (live, record) in enumerate(self._records()):
            if record[BLOCKED_SINCE_NS] and live.probed:
                yield f'{head}{{backend="{live.name}"}} {record[BLOCKED_SINCE_NS] / 1e9!r}\n'
            elif at % SILENT == 0:
                yield ""
        for at, live in enumerate(self._checker.backends()):
            if live.target < 0 and live.trouble_since_ns:
                yield f'{head}{{backend="{live.name}"}} {live.trouble_since_ns / 1e9!r}\n'
            elif at % SILENT == 0:
                yield ""

    def _transitions(self) -> Iterator[str]:
        for at, live in enumerate(self._checker.backends()):
            if at % SILENT == 0:
                yield ""
            for (before, after), count in live.transitions.items():
                yield (
                    f'maglev_backend_transitions_total{{backend="{live.name}",from="{before}",to="{after}"}} {count}\n'
                )

    def _frontends(self) -> Iterator[str]:
        for name in self._frontend_names():
            yield f'maglev_frontend_state{{frontend="{name}",state="{self._checker.frontend_state(name)}"}} 1\n'

    def _active_pools(self) -> Iterator[str]:
        for name in self._frontend_names():
            if self._checker.frontend_state(name) in (FrontendState.UP, FrontendState.PANIC):
                pool = self._checker.serving_pool(name)
                called = self._checker.frontend(name).pools[pool].name
                yield f'maglev_frontend_active_pool{{frontend="{name}",pool="{called}"}} {pool}\n'
            else:
                yield ""

    def _pools(self) -> Iterator[tuple[str, PoolCounts]]:
        """Labels of every pool, and its counts."""
        for name in self._frontend_names():
            frontend = self._checker.frontend(name)
            weights = self._checker.weights(frontend)
            for pool, counts in zip(frontend.pools, pool_counts(frontend, weights), strict=True):
                yield f'frontend="{name}",pool="{pool.name}"', counts

    def _pool_up(self) -> Iterator[str]:
        for labels, counts in self._pools():
            yield f"maglev_frontend_pool_up{{{labels}}} {counts.up}\n"

    def _pool_usable(self) -> Iterator[str]:
        for labels, counts in self._pools():
            yield f"maglev_frontend_pool_usable{{{labels}}} {int(counts.usable)}\n"

    def _pool_healthy(self) -> Iterator[str]:
        for labels, counts in self._pools():
            if counts.whole:
                yield f"maglev_frontend_pool_healthy_ratio{{{labels}}} {counts.healthy / counts.whole:.6g}\n"
            else:
                yield ""

    def _frontend_names(self) -> Iterator[str]:
        for name in self._checker.config().frontends:
            # A reload between two slices may have taken it away.
            if name in self._checker.config().frontends:
                yield name

    def _members(self) -> Iterator[tuple[str, int, int]]:
        """Labels, weight and effective weight of every pool member."""
        for name in self._frontend_names():
            for member in self._checker.frontend_weights(name).members:
                labels = f'frontend="{name}",pool="{member.pool}",backend="{member.backend}"'
                yield labels, member.weight, member.effective

    def _weights(self) -> Iterator[str]:
        for labels, weight, _ in self._members():
            yield f"maglev_frontend_pool_backend_weight{{{labels}}} {weight}\n"

    def _effective_weights(self) -> Iterator[str]:
        for labels, _, effective in self._members():
            yield f"maglev_frontend_pool_backend_effective_weight{{{labels}}} {effective}\n"

    def _probes(self) -> Iterator[str]:
        tails = [
            f',result="{"pass" if code in PASSES else "fail"}",code="{Code(code)}"}} '
            for code in range(len(RECORD.unpack(bytes(RECORD.size))) - CODES)
        ]
        for at, (live, record) in enumerate(self._records()):
            if at % SILENT == 0:
                yield ""
            if live.check is None:
                continue
            head = f'maglev_probe_total{{backend="{live.name}",type="{live.check.spec.type}"'
            for tail, count in zip(tails, record[CODES:], strict=True):
                if count:
                    yield f"{head}{tail}{count}\n"

    def _rtt(self) -> Iterator[str]:
        for at, (live, record) in enumerate(self._records()):
            if record[RTT_COUNT]:
                yield (
                    f'maglev_probe_rtt_seconds_sum{{backend="{live.name}"}} {record[RTT_SUM_NS] / 1e9!r}\n'
                    f'maglev_probe_rtt_seconds_count{{backend="{live.name}"}} {record[RTT_COUNT]}\n'
                )
            elif at % SILENT == 0:
                yield ""

    def _overrides(self) -> dict[str, int]:
        counts = dict.fromkeys(("drain", "disable", "enable", "pause", "weight"), 0)
        for override in self._checker.overrides():
            counts[override.kind.value] += 1
        return counts
