"""Families of metrics about the daemon itself: each function gives those of one part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from maglev.base import logs
from maglev.base.events import Bus
from maglev.base.version import version
from maglev.checker import Checker
from maglev.daemon.configfile import ConfigFile
from maglev.daemon.listening import Listener
from maglev.daemon.statefile import StateFile
from maglev.daemon.supervise import Supervisor
from maglev.metrics.server import MetricsServer
from maglev.metrics.text import Family, labelled, single
from maglev.rpc.server import RpcServer


def build_families() -> list[Family]:
    """The program."""
    return [
        labelled("maglev_build_info", "gauge", "1; the version.", "version", lambda: {version(): 1}),
    ]


def config_families(config_file: ConfigFile) -> list[Family]:
    """The configuration file and its reloads."""
    return [
        labelled(
            "maglev_config_loads_total",
            "counter",
            "Loads of the configuration file by outcome.",
            "outcome",
            lambda: config_file.outcomes,
        ),
        single(
            "maglev_config_last_success_timestamp_seconds",
            "gauge",
            "When the configuration in force took effect.",
            lambda: config_file.loaded_at_ns / 1e9,
        ),
        single(
            "maglev_config_last_load_successful",
            "gauge",
            "0 when the last load was refused.",
            lambda: int(not config_file.last_error),
        ),
    ]


def task_families(supervisor: Supervisor, failed_callbacks: Callable[[], int]) -> list[Family]:
    """Tasks and callbacks that failed. ``failed_callbacks`` counts those of the event loop itself."""
    return [
        labelled(
            "maglev_task_failures_total",
            "counter",
            "Tasks that ended by an exception.",
            "task",
            lambda: supervisor.failures,
        ),
        single(
            "maglev_callback_failures_total",
            "counter",
            "Callbacks of the event loop that ended by an exception.",
            failed_callbacks,
        ),
    ]


def event_families(bus: Bus, control: logs.LogControl) -> list[Family]:
    """The bus, its watchers and the log."""
    return [
        single("maglev_events_published_total", "counter", "Events on the bus.", lambda: bus.published),
        single("maglev_events_lost_total", "counter", "Events that slow watchers lost.", lambda: bus.lost),
        single("maglev_watchers", "gauge", "Open WatchEvents streams.", lambda: bus.subscribers),
        single("maglev_log_lost_total", "counter", "Log lines that could not be written.", lambda: control.lost),
    ]


def checker_families(checker: Checker) -> list[Family]:
    """Verdicts and settings that the checker dropped."""
    return [
        single(
            "maglev_verdicts_stale_total",
            "counter",
            "Verdicts that came after a change that made them meaningless.",
            lambda: checker.stale_verdicts,
        ),
        single(
            "maglev_overrides_expired_total",
            "counter",
            "Operators' settings that ended by themselves.",
            lambda: checker.counters.expired,
        ),
        single(
            "maglev_backends_held",
            "gauge",
            "Backends that keep their state though their probes say down.",
            checker.held,
        ),
        single(
            "maglev_brakes_active",
            "gauge",
            "Origins of probes whose failures by silence are held.",
            lambda: len(checker.brakes()),
        ),
        single("maglev_brakes_begun_total", "counter", "Brakes that have begun.", lambda: checker.brakes_begun),
    ]


def state_file_families(state: StateFile) -> list[Family]:
    """The state file."""
    return [
        single(
            "maglev_state_file_fallback",
            "gauge",
            "1 when the state file was unreadable at the start and its previous copy was used.",
            lambda: state.fallbacks,
        ),
        single(
            "maglev_state_file_lost",
            "gauge",
            "1 when neither the state file nor its previous copy could be read at the start.",
            lambda: state.unreadable,
        ),
        single(
            "maglev_state_file_taken",
            "gauge",
            "1 when the state file is another daemon's, and nothing survives a restart of this one.",
            lambda: int(bool(state.taken_by)),
        ),
        single(
            "maglev_state_file_unlocked",
            "gauge",
            "1 when no lock keeps a second daemon off the state file.",
            lambda: int(state.unlocked),
        ),
        single(
            "maglev_state_file_write_failures_total",
            "counter",
            "Writes of the state file that failed.",
            lambda: state.failures,
        ),
    ]


def metrics_families(server: MetricsServer) -> list[Family]:
    """The metrics themselves."""
    return [
        labelled(
            "maglev_metrics_refused_total",
            "counter",
            "Requests for metrics that were turned away.",
            "reason",
            lambda: server.refused,
        ),
    ]


def listener_families(listeners: Sequence[Listener]) -> list[Family]:
    """The listeners."""
    return [
        labelled(
            "maglev_listener_up",
            "gauge",
            "1 while the daemon listens there (grpc-unix, grpc-tcp, metrics), 0 while it tries to.",
            "listener",
            lambda: {one.name: int(one.up) for one in listeners},
        ),
    ]


def api_families(api: RpcServer) -> list[Family]:
    """The API."""

    def calls() -> Iterator[str]:
        for (call, status), count in api.calls.items():
            yield f'maglev_grpc_calls_total{{call="{call}",status="{status}"}} {count}\n'

    return [
        single(
            "maglev_grpc_certificate_expiry_timestamp_seconds",
            "gauge",
            "End of validity of the server's certificate; absent without TLS.",
            lambda: api.certificates.expires if api.certificates is not None else None,
        ),
        single(
            "maglev_grpc_certificate_failures_total",
            "counter",
            "Changes of the certificate's files that could not be used; absent without TLS.",
            lambda: api.certificates.failures if api.certificates is not None else None,
        ),
        labelled(
            "maglev_grpc_refused_total",
            "counter",
            "Watches that were turned away for want of room, or dropped because nobody read them.",
            "reason",
            lambda: api.refused,
        ),
        Family("maglev_grpc_calls_total", "counter", "Ended gRPC calls by call and status.", calls),
    ]
