"""The families about the probe engine itself: one for each of its counters, and its histograms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from maglev._probe import Histogram
from maglev.kinds.registry import counter_help
from maglev.metrics.text import Family, histogram_rows, single


class EngineFiguresSource(Protocol):
    """Questions of the metrics to the probe engine (``maglev._probe.Engine``)."""

    def stats(self) -> Mapping[str, int]: ...
    def histograms(self) -> Mapping[tuple[str, str], Histogram]: ...
    def lateness(self) -> Histogram: ...


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
    "unprobed_buffer": "Probes without a verdict, as the kernel had no buffer for the packet.",
    "unprobed_route": "Probes without a verdict, as this host had no route while no other target passed.",
    "unprobed_link": "Probes without a verdict, as the outgoing interface was down or had no carrier.",
    "unprobed_firewall": "Probes without a verdict, as a packet filter of this host refused them.",
    "unprobed_neighbours": "Probes without a verdict, as the kernel's neighbour table was full (gc_thresh3).",
    "unprobed_queue": "Probes without a verdict, as a queue of this host dropped or held the packet.",
    "clock_steps": "How often the wall clock was set, by more than 10 ms.",
    "dates_doubted": "Probes without a verdict, as a certificate's date was refused by a clock that may be wrong.",
    "dates_unsure": "Certificates refused for their date while the kernel called its clock unsynchronised.",
    "tls_full": "Full TLS handshakes.",
    "tls_resumed": "TLS handshakes that resumed a session.",
}
ENGINE_GAUGES: Mapping[str, tuple[str, str]] = {
    "targets": ("targets", "Targets that the engine probes."),
    "in_flight": ("in_flight", "Probes that wait for their answer."),
    "waiting_fd": ("waiting_fd", "Probes that wait for a descriptor."),
    "tls_session_bytes": ("tls_session_bytes", "Memory of the TLS sessions that are kept."),
    "clock_step_ns": ("clock_step_seconds", "By how much the wall clock was set when it was set last."),
    "rx_buffer": ("rx_buffer_bytes", "Size of the receive buffer that overflowed last; 0: none did."),
}
"""Help texts of the engine's counters and gauges; a gauge's name says its unit."""


class EngineFamilies:
    """The families about the probe engine itself."""

    def __init__(self, engine: EngineFiguresSource) -> None:
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
                ask = self._seconds(key) if name.endswith("_seconds") else self._stat(key)
                made.append(single(f"maglev_engine_{name}", "gauge", text, ask))
            else:
                # A test requires a text for every counter. A counter without one is exposed too.
                text = ENGINE_COUNTERS.get(key, f"Probe engine: {key}.")
                made.append(single(f"maglev_engine_{key}_total", "counter", text, self._stat(key)))
        return made

    def _stat(self, key: str) -> Callable[[], int]:
        return lambda: self._engine.stats()[key]

    def _seconds(self, key: str) -> Callable[[], float]:
        return lambda: self._engine.stats()[key] / 1e9

    def _durations(self) -> Iterator[str]:
        for (kind, result), view in self._engine.histograms().items():
            labels = f'type="{kind}",result="{result}"'
            yield from histogram_rows("maglev_probe_duration_seconds", labels, view)
