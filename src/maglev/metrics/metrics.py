"""Metrics in Prometheus' text format: families as generators of finished lines, and the HTTP server that sends them.

A scrape of 50,000 backends is some hundred thousand lines. They are made in slices of a few milliseconds and sent as
they are made, so that neither the event loop nor the memory has to hold the whole; prometheus_client serves the
process's own families, which are few.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, generate_latest

from maglev.base import logs
from maglev.base.clock import Clock
from maglev.base.listen import parse_listen
from maglev.base.states import Code
from maglev.checker import PASSES, Checker, LiveBackend
from maglev.checker.engine import BLOCKED_SINCE_NS, CODES, COUNTER, RECORD, RTT_COUNT, RTT_SUM_NS, TARGET
from maglev.kinds.registry import counter_help

log = logs.get(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

SLICE_NS = 4_000_000
SILENT = 500
"""So many things without a line between two empty ones, which let the clock be looked at."""
CHUNK_BYTES = 64 << 10

MAX_REQUEST_BYTES = 8 << 10
MAX_CONNECTIONS = 64
MAX_SCRAPES = 4
REQUEST_SECONDS = 10.0
SCRAPE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Family:
    """One metric family. ``rows`` makes its lines, each with its line break; a family without lines is left out.

    An empty row is none, and lets the loop have its turn where many things have no line.
    """

    name: str
    kind: str
    help: str
    rows: Callable[[], Iterable[str]]


class HistogramView(Protocol):
    """A histogram as the engine gives it: ``counts[i]`` up to ``bounds[i]`` seconds, one more above; not cumulative."""

    @property
    def bounds(self) -> tuple[float, ...]: ...
    @property
    def counts(self) -> tuple[int, ...]: ...
    @property
    def sum_seconds(self) -> float: ...


def escape_label(value: str) -> str:
    """A label's value between its quotes. Configured names and addresses need no escaping, other texts do."""
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def single(name: str, kind: str, text: str, value: Callable[[], float | int | None]) -> Family:
    """A family with one sample and no label; absent while ``value`` gives None."""

    def rows() -> Iterator[str]:
        number = value()
        if number is not None:
            yield f"{name} {number}\n"

    return Family(name, kind, text, rows)


def labelled(name: str, kind: str, text: str, label: str, values: Callable[[], Mapping[str, float | int]]) -> Family:
    """A family with one label."""

    def rows() -> Iterator[str]:
        for key, number in values().items():
            yield f'{name}{{{label}="{escape_label(key)}"}} {number}\n'

    return Family(name, kind, text, rows)


def histogram_rows(name: str, labels: str, view: HistogramView) -> Iterator[str]:
    """The lines of one histogram; ``labels`` like ``type="http"``, or empty."""
    comma = "," if labels else ""
    total = 0
    for bound, count in zip(view.bounds, view.counts, strict=False):
        total += count
        yield f'{name}_bucket{{{labels}{comma}le="{bound!r}"}} {total}\n'
    total += view.counts[len(view.bounds)]
    yield f'{name}_bucket{{{labels}{comma}le="+Inf"}} {total}\n'
    braces = f"{{{labels}}}" if labels else ""
    yield f"{name}_sum{braces} {view.sum_seconds!r}\n"
    yield f"{name}_count{braces} {total}\n"


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

    def _states(self) -> Iterator[str]:
        for live in self._checker.backends():
            yield (
                f'maglev_backend_state{{backend="{live.name}",address="{live.address}",'
                f'healthcheck="{live.healthcheck}",state="{live.state}"}} 1\n'
            )

    def _records(self) -> Iterator[tuple[LiveBackend, tuple[int, ...]]]:
        """What the engine knows of each backend that it knows, all of one moment."""
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
        for override in self._checker.override_records():
            counts[override.kind.value] += 1
        return counts


class EngineView(Protocol):
    """What the metrics read of the probe engine."""

    def stats(self) -> Mapping[str, int]: ...
    def histograms(self) -> Mapping[tuple[str, str], HistogramView]: ...
    def lateness(self) -> HistogramView: ...


ENGINE_COUNTERS: Mapping[str, str] = {
    **counter_help(),
    "passed": "Probes that passed.",
    "failed": "Probes that failed.",
    "late_sends": "Probes sent later than they should have been.",
    "late_fd": "Probes that had to wait for a descriptor.",
    "late_tls": "Probes that had to wait for a TLS connection, as too many were under way.",
    "late_port": "SYN probes that had to wait for a source port not used for their target within a minute.",
    "enobufs": "Sends that the kernel refused for want of a buffer.",
    "local_errors": "Probes that could not be sent, or whose answer could not be read, for a local reason.",
    "repeated": "Probes that were repeated, as something on this side may have spoiled them.",
    "rx_drops": "Packets that were dropped on this host because a receive buffer was full.",
    "stalls": "Times of over 10 ms in which the engine's thread did not get to run.",
    "foreign": "Packets for somebody else on this host.",
    "forged": "Answers that do not fit what was sent.",
    "duplicate": "Answers to what had been answered.",
    "late_replies": "Answers that came after the probe's end.",
    "malformed": "Packets that are cut off or make no sense.",
    "icmp_errors": "ICMP errors that came back for a probe.",
    "transitions": "Verdicts.",
    "transitions_deferred": "Verdicts that had to wait, as the ring to the daemon was full.",
    "results_dropped": "Single probes that a watcher asked for and was not told.",
    "ticks": "Rounds of the engine.",
    "wakeups": "Wake-ups of the engine's thread.",
    "clock_steps": "Times in which somebody set the wall clock.",
    "tls_full": "Full TLS handshakes.",
    "tls_resumed": "TLS handshakes that resumed a session.",
}
ENGINE_GAUGES: Mapping[str, tuple[str, str]] = {
    "targets": ("targets", "Targets that the engine probes."),
    "in_flight": ("in_flight", "Probes that wait for their answer."),
    "waiting_fd": ("waiting_fd", "Probes that wait for a descriptor."),
    "tls_session_bytes": ("tls_session_bytes", "Memory of the TLS sessions that are kept."),
    "rx_buffer": ("rx_buffer_bytes", "Size of the receive buffer that overflowed last; 0: none did."),
}
"""What the engine counts, in words; a gauge's name says its unit."""


class EngineFamilies:
    """The families about the probe engine itself."""

    def __init__(self, engine: EngineView) -> None:
        self._engine = engine

    def families(self) -> list[Family]:
        """All of them; one family for each of the engine's counters."""
        made = [
            Family("maglev_probe_duration_seconds", "histogram", "How long probes took.", self._durations),
            Family(
                "maglev_engine_send_lateness_seconds",
                "histogram",
                "How late probes were sent, against when they were due.",
                lambda: histogram_rows("maglev_engine_send_lateness_seconds", "", self._engine.lateness()),
            ),
        ]
        for key in self._engine.stats():
            if key in ENGINE_GAUGES:
                name, text = ENGINE_GAUGES[key]
                made.append(single(f"maglev_engine_{name}", "gauge", text, self._stat(key)))
            else:
                # A test asks for words for each; want of them is no reason to have no metrics.
                text = ENGINE_COUNTERS.get(key, f"Probe engine: {key}.")
                made.append(single(f"maglev_engine_{key}_total", "counter", text, self._stat(key)))
        return made

    def _stat(self, key: str) -> Callable[[], int]:
        return lambda: self._engine.stats()[key]

    def _durations(self) -> Iterator[str]:
        for (kind, result), view in self._engine.histograms().items():
            labels = f'type="{kind}",result="{result}"'
            yield from histogram_rows("maglev_probe_duration_seconds", labels, view)


class VppInfoView(Protocol):
    """The VPP at the other end; ``problem``: why it is left alone, if it is.

    ``started_ns`` and ``connected_ns`` are moments of the monotonic clock.
    """

    @property
    def version(self) -> str: ...
    @property
    def build_date(self) -> str: ...
    @property
    def pid(self) -> int: ...
    @property
    def problem(self) -> str: ...
    @property
    def started_ns(self) -> int: ...
    @property
    def connected_ns(self) -> int: ...


class VppClientView(Protocol):
    """What the metrics read of the connection. ``api_total``: by message, direction, result."""

    @property
    def api_total(self) -> Mapping[tuple[str, str, str], int]: ...
    @property
    def connects(self) -> int: ...
    def info(self) -> VppInfoView | None: ...


class SyncCounters(Protocol):
    """What the reconciler counts. ``lbsync`` by scope and kind, ``drift`` by kind."""

    @property
    def lbsync(self) -> Mapping[tuple[str, str], int]: ...
    @property
    def drift(self) -> Mapping[str, int]: ...
    @property
    def batches(self) -> int: ...
    @property
    def full_syncs(self) -> int: ...
    @property
    def failed_syncs(self) -> int: ...
    @property
    def suppressed(self) -> int: ...
    @property
    def recreations_given_up(self) -> int: ...
    @property
    def bucket_mismatches(self) -> int: ...


class PacerView(Protocol):
    """What the metrics read of the pace: measured cost against the estimate, and the estimated work so far."""

    @property
    def factor(self) -> float: ...
    @property
    def spent_ns(self) -> int: ...


class ReconcilerView(Protocol):
    """What the metrics read of the reconciler. ``unmanaged``: VIPs in VPP that are not ours."""

    @property
    def counters(self) -> SyncCounters: ...
    @property
    def refusals(self) -> int: ...
    @property
    def unmanaged(self) -> Sized: ...
    @property
    def pacer(self) -> PacerView: ...


class VipCountersView(Protocol):
    """Packet counters of one VIP; ``str(key)`` is its prefix, then protocol and port if it has one."""

    @property
    def key(self) -> object: ...
    @property
    def existing_session(self) -> int: ...
    @property
    def first_session(self) -> int: ...
    @property
    def untracked(self) -> int: ...
    @property
    def no_server(self) -> int: ...
    @property
    def route_packets(self) -> int: ...
    @property
    def route_bytes(self) -> int: ...


class StatsView(Protocol):
    """The counters of all VIPs as last read; empty while VPP is away."""

    @property
    def vips(self) -> Sequence[VipCountersView]: ...


VIP_KINDS = ("existing_session", "first_session", "untracked", "no_server")
LBSYNC_KINDS = ("vip_added", "vip_removed", "as_added", "as_removed", "as_weight_updated")


class VppFamilies:
    """The families about VPP.

    What describes the VPP at the other end is absent while there is none; what we counted of our own calls stays.
    ``frontends`` gives the name of a configured VIP by ``str(key)``.
    """

    def __init__(
        self,
        client: VppClientView,
        reconciler: ReconcilerView,
        clock: Clock,
        stats: StatsView | None = None,
        frontends: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._client = client
        self._reconciler = reconciler
        self._clock = clock
        self._stats = stats
        self._frontends = frontends

    def families(self) -> list[Family]:
        """All of them."""
        counters = self._reconciler.counters
        return [
            single(
                "maglev_vpp_connected",
                "gauge",
                "1 while the daemon is connected to VPP.",
                lambda: int(self._client.info() is not None),
            ),
            single(
                "maglev_vpp_lb_supported",
                "gauge",
                "0: this VPP lacks messages of the lb plugin that are needed, and is left alone.",
                self._supported,
            ),
            single("maglev_vpp_uptime_seconds", "gauge", "How long VPP has been running.", self._uptime),
            single("maglev_vpp_connected_seconds", "gauge", "How long the connection stands.", self._connected),
            Family("maglev_vpp_info", "gauge", "1; the VPP at the other end.", self._info),
            single(
                "maglev_vpp_connects_total", "counter", "Connections to VPP that stood.", lambda: self._client.connects
            ),
            Family("maglev_vpp_api_total", "counter", "API messages by direction and result.", self._api),
            Family("maglev_vpp_lbsync_total", "counter", "Changes made to VPP by scope and kind.", self._lbsync),
            Family(
                "maglev_vpp_vip_packets_total", "counter", "Packets of a VIP by what became of them.", self._vip_packets
            ),
            Family("maglev_vpp_vip_route_packets_total", "counter", "Packets of a VIP's route.", self._route_packets),
            Family("maglev_vpp_vip_route_bytes_total", "counter", "Bytes of a VIP's route.", self._route_bytes),
            labelled(
                "maglev_vpp_drift_total",
                "counter",
                "Changes in VPP that somebody else has made, as they were found.",
                "kind",
                lambda: counters.drift,
            ),
            single("maglev_vpp_batches_total", "counter", "Batches of calls.", lambda: counters.batches),
            single("maglev_vpp_full_syncs_total", "counter", "Full syncs that were done.", lambda: counters.full_syncs),
            single("maglev_vpp_failed_syncs_total", "counter", "Syncs that broke off.", lambda: counters.failed_syncs),
            single(
                "maglev_vpp_suppressed_syncs_total",
                "counter",
                "Syncs that the warm-up suppressed.",
                lambda: counters.suppressed,
            ),
            single(
                "maglev_vpp_recreations_given_up_total",
                "counter",
                "VIPs whose recreation was given up because drift causes it again and again.",
                lambda: counters.recreations_given_up,
            ),
            single(
                "maglev_vpp_bucket_mismatches_total",
                "counter",
                "VIPs read back with other bucket counts than their weights give.",
                lambda: counters.bucket_mismatches,
            ),
            single(
                "maglev_vpp_cost_factor",
                "gauge",
                "What calls cost this VPP, measured, against the formula.",
                lambda: self._reconciler.pacer.factor if self._client.info() is not None else None,
            ),
            single(
                "maglev_vpp_estimated_work_seconds_total",
                "counter",
                "Estimated time that VPP's main thread spent on our calls.",
                lambda: self._reconciler.pacer.spent_ns / 1e9,
            ),
            single(
                "maglev_vpp_refused_calls_total",
                "counter",
                "Calls that VPP refused.",
                lambda: self._reconciler.refusals,
            ),
            single(
                "maglev_vpp_unmanaged_vips",
                "gauge",
                "VIPs in VPP that are not ours and are left alone.",
                lambda: len(self._reconciler.unmanaged) if self._client.info() is not None else None,
            ),
        ]

    def _vips(self) -> Iterator[tuple[str, VipCountersView]]:
        """Labels and counters of every VIP, while VPP is there."""
        if self._stats is None or self._client.info() is None:
            return
        names = self._frontends()
        for vip in self._stats.vips:
            key = str(vip.key)
            prefix, _, rest = key.partition(" ")
            protocol, _, port = rest.partition(" ")
            labels = (
                f'frontend="{names.get(key, "")}",prefix="{prefix}",protocol="{protocol or "any"}",port="{port or 0}"'
            )
            yield labels, vip

    def _vip_packets(self) -> Iterator[str]:
        for labels, vip in self._vips():
            for kind in VIP_KINDS:
                yield f'maglev_vpp_vip_packets_total{{{labels},kind="{kind}"}} {getattr(vip, kind)}\n'

    def _route_packets(self) -> Iterator[str]:
        for labels, vip in self._vips():
            yield f"maglev_vpp_vip_route_packets_total{{{labels}}} {vip.route_packets}\n"

    def _route_bytes(self) -> Iterator[str]:
        for labels, vip in self._vips():
            yield f"maglev_vpp_vip_route_bytes_total{{{labels}}} {vip.route_bytes}\n"

    def _supported(self) -> int | None:
        info = self._client.info()
        return None if info is None else int(not info.problem)

    def _uptime(self) -> float | None:
        info = self._client.info()
        return None if info is None else (self._clock.monotonic_ns() - info.started_ns) / 1e9

    def _connected(self) -> float | None:
        info = self._client.info()
        return None if info is None else (self._clock.monotonic_ns() - info.connected_ns) / 1e9

    def _info(self) -> Iterator[str]:
        info = self._client.info()
        if info is not None:
            version, built = escape_label(info.version), escape_label(info.build_date)
            yield f'maglev_vpp_info{{version="{version}",build_date="{built}",pid="{info.pid}"}} 1\n'

    def _api(self) -> Iterator[str]:
        for (name, direction, result), count in tuple(self._client.api_total.items()):
            yield f'maglev_vpp_api_total{{msg="{name}",direction="{direction}",result="{result}"}} {count}\n'

    def _lbsync(self) -> Iterator[str]:
        counts = dict.fromkeys(((scope, kind) for scope in ("all", "one") for kind in LBSYNC_KINDS), 0)
        counts.update(self._reconciler.counters.lbsync)
        for (scope, kind), count in counts.items():
            yield f'maglev_vpp_lbsync_total{{scope="{scope}",kind="{kind}"}} {count}\n'


class Exposition:
    """All families, rendered piece by piece."""

    def __init__(self) -> None:
        self._families: list[Family] = []
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        self._process = registry

    def add(self, families: Iterable[Family]) -> None:
        """Add families; raises ``ValueError`` for a name that is there already."""
        names = {family.name for family in self._families}
        for family in families:
            if family.name in names:
                raise ValueError(f"two metric families are called {family.name}")
            names.add(family.name)
            self._families.append(family)

    async def render(self) -> AsyncIterator[bytes]:
        """The text in pieces of some 64 KiB; gives the loop a turn every few milliseconds."""
        pieces: list[str] = []
        size = 0
        end = time.monotonic_ns() + SLICE_NS
        for family in tuple(self._families):
            headed = False
            for row in family.rows():
                if row and not headed:
                    headed = True
                    pieces.append(f"# HELP {family.name} {family.help}\n# TYPE {family.name} {family.kind}\n")
                pieces.append(row)
                size += len(row)
                if size >= CHUNK_BYTES or time.monotonic_ns() >= end:
                    yield "".join(pieces).encode()
                    pieces.clear()
                    size = 0
                    await asyncio.sleep(0)
                    end = time.monotonic_ns() + SLICE_NS
        yield "".join(pieces).encode() + generate_latest(self._process)


class MetricsServer:
    """Answers ``GET /metrics``, and nothing else: bounded in request size, connections, scrapes and time.

    Where there is no room for a connection, the oldest makes room that has not asked for anything: who holds many open
    and says nothing does not keep Prometheus out. ``refused`` counts by reason what was turned away.
    """

    def __init__(self, exposition: Exposition) -> None:
        self._exposition = exposition
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        # Those that wait for a request, oldest first.
        self._silent: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._scrapes = 0
        self.scraped = 0
        self.refused: dict[str, int] = dict.fromkeys(("connections", "scrapes", "request", "slow", "broken"), 0)

    async def start(self, address: str) -> None:
        """Listen. Raises ``ValueError`` for a bad address and ``OSError`` when it cannot be listened on."""
        host, port = parse_listen(address)
        self._server = await asyncio.start_server(self._connected, host, port, limit=MAX_REQUEST_BYTES, backlog=128)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop listening and drop what is open."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= MAX_CONNECTIONS:
            self.refused["connections"] += 1
            oldest = next(iter(self._silent), None)
            if oldest is None:
                writer.transport.abort()
                return
            # A task that never ran does not close what it was given.
            self._silent[oldest].transport.abort()
            self._forget(oldest)
            oldest.cancel()
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        self._silent[task] = writer
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._silent.pop(task, None)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            try:
                async with asyncio.timeout(REQUEST_SECONDS):
                    head = await reader.readuntil(b"\r\n\r\n")
                self._silent.pop(task, None)
            except (asyncio.LimitOverrunError, asyncio.IncompleteReadError):
                self.refused["request"] += 1
                await self._answer(writer, 400, "bad request")
                return
            async with asyncio.timeout(SCRAPE_SECONDS):
                await self._respond(writer, head)
        except TimeoutError:
            self.refused["slow"] += 1
            writer.transport.abort()
        except asyncio.CancelledError:
            writer.transport.abort()
            raise
        except OSError:
            self.refused["broken"] += 1
        except Exception as error:
            self.refused["broken"] += 1
            log.exception("metrics-failed", f"a scrape failed: {error}", error)
            writer.transport.abort()
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                async with asyncio.timeout(1.0):
                    await writer.wait_closed()

    async def _respond(self, writer: asyncio.StreamWriter, head: bytes) -> None:
        line = head.split(b"\r\n", 1)[0].split(b" ")
        if len(line) != 3 or line[2] not in (b"HTTP/1.1", b"HTTP/1.0"):
            self.refused["request"] += 1
            await self._answer(writer, 400, "bad request")
            return
        method, path, version = line
        if path.partition(b"?")[0] != b"/metrics":
            await self._answer(writer, 404, "metrics are at /metrics")
        elif method not in (b"GET", b"HEAD"):
            await self._answer(writer, 405, "only GET and HEAD", "Allow: GET, HEAD\r\n")
        elif self._scrapes >= MAX_SCRAPES:
            self.refused["scrapes"] += 1
            await self._answer(writer, 503, "too many scrapes at once")
        else:
            self._scrapes += 1
            try:
                await self._scrape(writer, chunked=version == b"HTTP/1.1", body=method == b"GET")
                self.scraped += 1
            finally:
                self._scrapes -= 1

    async def _scrape(self, writer: asyncio.StreamWriter, *, chunked: bool, body: bool) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {CONTENT_TYPE}\r\nConnection: close\r\n"
        writer.write((head + ("Transfer-Encoding: chunked\r\n\r\n" if chunked else "\r\n")).encode())
        if not body:
            await writer.drain()
            return
        async for piece in self._exposition.render():
            if piece:
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                await writer.drain()
        if chunked:
            writer.write(b"0\r\n\r\n")
        await writer.drain()

    @staticmethod
    async def _answer(writer: asyncio.StreamWriter, status: int, text: str, headers: str = "") -> None:
        reason = {400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}[status]
        writer.write(
            f"HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain\r\nContent-Length: {len(text) + 1}\r\n"
            f"{headers}Connection: close\r\n\r\n{text}\n".encode()
        )
        await writer.drain()
