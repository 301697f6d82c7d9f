"""maglevd: puts the parts together, tells systemd and the operator how it goes, and ends within two seconds.

Which task may fail: all but one are started again. The ``reconciler`` is vital: without it VPP would silently not be
driven any more, so the daemon ends with status 1 and is started again by its service manager, behind a warm-up. The
probe engine is a thread and no task; if it cannot start, the daemon does not. An exception in a callback of the event
loop is logged and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import signal
import threading
from pathlib import Path
from typing import Any

from maglev._probe import Engine, missing_capabilities
from maglev.base import logs
from maglev.base.clock import Clock, SystemClock
from maglev.base.errors import NotAllowed
from maglev.base.events import Bus
from maglev.base.states import State
from maglev.base.version import user_agent, version
from maglev.checker import Checker
from maglev.checker.overrides import from_json
from maglev.checker.reload import used_checks
from maglev.config.model import Config
from maglev.daemon.configfile import ConfigFile
from maglev.daemon.exits import EXIT_FAILED, EXIT_OK, exit_status
from maglev.daemon.options import Options
from maglev.daemon.receivequeue import ReceiveQueueWatch
from maglev.daemon.sdnotify import Notifier
from maglev.daemon.statefile import NotSaved, StateFile
from maglev.daemon.supervise import Supervisor
from maglev.metrics.metrics import (
    CheckerFamilies,
    EngineFamilies,
    Exposition,
    Family,
    MetricsServer,
    VppFamilies,
    labelled,
    single,
)
from maglev.vpp.client import VppClient
from maglev.vpp.dataplane import Dataplane
from maglev.vpp.reconciler import Reconciler
from maglev.vpp.stats import StatsPoller

log = logs.get(__name__)

END_SECONDS = 1.8
"""From the signal to the end; what has not ended by then is cut off."""

STATUS_SECONDS = 5.0

YOUNG, MIDDLE, NEVER = 5_000, 4, 1 << 30
"""Objects that come before the collector looks at those; how often it does so before it looks at those that stayed; and
when at all of them. At the default, 700 and 10, it took a tenth of a mass failure; so, it holds the loop for 2 ms."""
GARBAGE_SECONDS = 600.0
"""How often old objects that refer to each other are looked through for those that nobody else needs."""

CAP_NET_RAW = "CAP_NET_RAW"


def capability_help(capability: str) -> str:
    """How the daemon gets a capability."""
    return (
        f"give it to the program (setcap {capability.lower()}+ep on the interpreter of its environment), "
        f"or run it by systemd with AmbientCapabilities={capability}"
    )


class CannotStart(Exception):
    """The daemon cannot start; the text says why. ``status`` is the exit status."""

    def __init__(self, text: str, status: int = EXIT_FAILED) -> None:
        super().__init__(text)
        self.status = status


def has_capability(number: int) -> bool:
    """Whether this process has a capability in effect, by its number (capabilities(7))."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    for line in text.splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False


def raise_file_limit() -> int:
    """Raise the limit of open files to what is allowed, since checks by connect need one each; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as error:
            log.warning("file-limit", f"the limit of open files stays at {soft}: {error}", limit=soft)
            return soft
    return hard


def settle_collector() -> None:
    """What was made so far stays: the collector need not look at it again, which would hold the loop.

    And it looks at the rest of what is old when the daemon says so, not in the middle of a mass failure.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, NEVER)


# ---------------------------------------------------------------------------------------------------------- the daemon


class Daemon:
    """One run of maglevd. ``run`` returns the exit status."""

    def __init__(self, options: Options, log_control: logs.LogControl, clock: Clock) -> None:
        self.options = options
        self.clock = clock
        self.logs = log_control
        self.started_at_ns = clock.time_ns()
        self.started_monotonic_ns = clock.monotonic_ns()
        self.loop_errors = 0
        self._ending = asyncio.Event()
        self._ended_by = ""
        self._reload = asyncio.Event()
        self._stack = contextlib.AsyncExitStack()

    # ------------------------------------------------------------------------------------------------ start and end

    async def run(self) -> int:
        """From the start to the end. Never raises for what an operator can cause."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._loop_error)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, signal.Signals(number).name)
        loop.add_signal_handler(signal.SIGHUP, self._reload.set)
        self.notifier = Notifier()
        self.supervisor = Supervisor(self.clock)
        status = EXIT_FAILED
        try:
            status = await self._until_end(self._start())
        except CannotStart as error:
            log.error("start-failed", str(error))
            status = error.status
        except Exception as error:
            log.exception("start-failed", f"maglevd cannot start: {error}", error)
        finally:
            await self._stop(status)
        log.info("stopped", f"maglevd ends with status {status}", status=status)
        return status

    async def _until_end(self, starting: Any) -> int:
        """Start, then wait for a signal or for a vital task's end; a signal ends the start too."""
        start = asyncio.ensure_future(starting)
        ending = asyncio.ensure_future(self._ending.wait())
        try:
            await asyncio.wait([start, ending], return_when=asyncio.FIRST_COMPLETED)
            if start.done():
                start.result()
                ends: list[asyncio.Future[Any]] = [ending, self.supervisor.fatal]
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if self.supervisor.fatal.done():
                log.error("vital-task-failed", f"task {self.supervisor.fatal.result()} failed")
                return EXIT_FAILED
            log.info("stopping", f"maglevd ends: {self._ended_by}", signal=self._ended_by)
            return EXIT_OK
        finally:
            for task in (start, ending):
                task.cancel()
            # How it failed was raised above, if it did.
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await start

    def _end(self, why: str) -> None:
        if not self._ending.is_set():
            self._ended_by = why
            self._ending.set()

    def _loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.loop_errors += 1
        error = context.get("exception")
        message = str(context.get("message", "error in a callback"))
        if isinstance(error, BaseException):
            log.exception("callback-failed", f"{message}: {error}", error)
        else:
            log.error("callback-failed", message)

    async def _start(self) -> None:
        options = self.options
        log.info("starting", f"maglevd {version()} starts", version=version(), pid=os.getpid())
        limit = raise_file_limit()
        log.debug("file-limit", f"{limit} open files", limit=limit)

        self.bus = Bus()
        self.logs.tap(self.bus, asyncio.get_running_loop())
        self.state_file = StateFile(options.state_file, self.clock)
        self.state_file.load()
        self.engine = Engine(user_agent=user_agent())
        self.checker = Checker(self.engine, self.bus, self.clock, on_overrides=self._keep_overrides)
        self.checker.restore(self._kept_overrides())
        self._make_dataplane()
        self.config_file = ConfigFile(options.config, self.checker, self.notifier, self.clock, before=self._before)
        self._stack.callback(self.engine.stop)

        loop = asyncio.get_running_loop()
        loop.add_reader(self.engine.fileno(), self.checker.read_engine)
        self._stack.callback(loop.remove_reader, self.engine.fileno())

        result = await self.config_file.start()
        if result.config is None:
            raise CannotStart(f"{options.config} has errors", exit_status(result))
        settle_collector()

        self.supervisor.start("state-file", self.state_file.run)
        self.supervisor.start("expiry", self.checker.run)
        await self._start_api()
        await self._start_metrics()
        self.supervisor.start("reload", self._reload_on_signal)
        # Behind the listeners: the engine reserves ports for its SYN probes, and must not take one of theirs.
        try:
            self.engine.start()
        except (RuntimeError, OSError) as error:
            raise CannotStart(f"the probe engine cannot start: {error}") from error
        # Last of all: a daemon that cannot serve, a second one on the same addresses say, must not have touched VPP.
        self._start_dataplane()
        self.notifier.ready(self._status())
        self.supervisor.start("status", self._tell_status)
        self.supervisor.start("garbage", self._collect_garbage)
        log.info("ready", "maglevd is ready", **self._addresses())

    async def _stop(self, status: int) -> None:
        """End everything within ``END_SECONDS``; whatever hangs then, the process ends all the same."""
        self.notifier.stopping()
        # Never disarmed: the interpreter waits for threads at its end, one of which may hang in a call to the system.
        last_resort = threading.Timer(END_SECONDS, os._exit, (status,))
        last_resort.daemon = True
        last_resort.start()
        try:
            async with asyncio.timeout(END_SECONDS - 0.2):
                await self._stack.aclose()
                if hasattr(self, "state_file"):
                    with contextlib.suppress(NotSaved):
                        await self.state_file.saved()
                await self.supervisor.stop_all(0.3)
        except TimeoutError:
            log.error("stop-late", "not everything ended in time")
        except Exception as error:
            log.exception("stop-failed", f"the end was not orderly: {error}", error)
        finally:
            self.notifier.close()

    # -------------------------------------------------------------------------------------------------- the parts

    def _kept_overrides(self) -> list[Any]:
        kept = self.state_file.get("overrides")
        records = []
        for item in kept if isinstance(kept, list) else []:
            try:
                records.append(from_json(item))
            except ValueError as error:
                log.error("override-unreadable", f"state file: {error}")
        return records

    def _keep_overrides(self) -> None:
        self.state_file.set("overrides", self.checker.override_fragments())

    async def _before(self, config: Config) -> None:
        """Look at a configuration before it takes effect: can its checks be done?"""
        lacking: dict[str, list[str]] = {}
        for name, spec in (await used_checks(config)).items():
            for capability in missing_capabilities(spec):
                lacking.setdefault(capability, []).append(name)
        for capability, names in lacking.items():
            shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
            text = f"no {capability}, which health check {shown} needs: {capability_help(capability)}"
            if capability == CAP_NET_RAW and self.config_file.loaded_at_ns == 0:
                raise CannotStart(text)
            log.error("capability-missing", text, capability=capability, healthchecks=len(names))
        if CAP_NET_RAW not in lacking and not has_capability(13) and self.config_file.loaded_at_ns == 0:
            log.warning(
                "capability-missing",
                f"no {CAP_NET_RAW}: icmp and half-open tcp checks cannot be done; {capability_help(CAP_NET_RAW)}",
                capability=CAP_NET_RAW,
            )

    def _make_dataplane(self) -> None:
        """Before the first configuration takes effect: its events are not to be missed."""
        self.client: VppClient | None = None
        self.reconciler: Reconciler | None = None
        self.vpp_stats: StatsPoller | None = None
        self.dataplane: Dataplane | None = None
        if not self.options.vpp_api_addr:
            # Nobody will say what VPP holds.
            self.checker.settle(())
            return
        self.client = VppClient(self.options.vpp_api_addr, self.clock)
        self.reconciler = Reconciler(
            self.client,
            self.bus,
            self.checker,
            self.clock,
            presumption=self.checker,
            store=self.state_file,
            started_ns=self.started_monotonic_ns,
        )
        if self.options.vpp_stats_addr:
            self.vpp_stats = StatsPoller(self.options.vpp_stats_addr, self.client, self.reconciler, self.clock)
        self.dataplane = Dataplane(self.client, self.reconciler, self.checker, self.clock, self.vpp_stats)

    def _start_dataplane(self) -> None:
        if self.client is None or self.reconciler is None:
            return
        self.supervisor.start("vpp-client", self.client.run)
        # Without it VPP would not be driven any more, and nobody would see: better to end and be started again.
        self.supervisor.start("reconciler", self.reconciler.run, vital=True)
        if self.vpp_stats is not None:
            self.supervisor.start("vpp-stats", self.vpp_stats.run)
        self._stack.push_async_callback(self._stop_dataplane)

    async def _stop_dataplane(self) -> None:
        """Leave VPP as it is, and tell it goodbye."""
        assert self.client is not None
        if self.vpp_stats is not None:
            await self.supervisor.stop("vpp-stats", 0.1)
        await self.supervisor.stop("reconciler", 0.3)
        await self.client.close()
        await self.supervisor.stop("vpp-client", 0.3)

    async def _start_api(self) -> None:
        from maglev.rpc.access import Role
        from maglev.rpc.server import CannotListen, RpcServer, ServerOptions
        from maglev.rpc.services import Identity, Services
        from maglev.rpc.tls import TlsFiles

        options = self.options
        tls = None
        if options.grpc_tls_cert is not None and options.grpc_tls_key is not None:
            tls = TlsFiles(options.grpc_tls_cert, options.grpc_tls_key, options.grpc_client_ca)
        services = Services(
            identity=Identity(version(), self.started_at_ns, self.started_monotonic_ns),
            clock=self.clock,
            bus=self.bus,
            checker=self.checker,
            tracer=self.checker,
            loader=self.config_file,
            logs=self.logs,
            dataplane=self.dataplane,
            keep=self.state_file.saved,
        )
        self.api = RpcServer(
            services,
            ServerOptions(
                unix_socket=options.grpc_socket,
                tcp_address=options.grpc_addr,
                tcp_role=Role(options.grpc_tcp_role),
                tls=tls,
                reflection=options.reflection,
            ),
        )
        try:
            await self.api.start()
        except CannotListen as error:
            raise CannotStart(str(error)) from error
        self._stack.push_async_callback(self.api.stop, 0.8)

    async def _start_metrics(self) -> None:
        if not self.options.metrics_addr:
            return
        exposition = Exposition()
        self.metrics = MetricsServer(exposition)
        exposition.add(CheckerFamilies(self.checker).families())
        exposition.add(EngineFamilies(self.engine).families())
        if self.dataplane is not None:
            exposition.add(VppFamilies(self.dataplane).families())
        exposition.add(self._own_families())
        try:
            await self.metrics.start(self.options.metrics_addr)
        except (OSError, ValueError) as error:
            raise CannotStart(f"metrics cannot listen on {self.options.metrics_addr}: {error}") from error
        self._stack.push_async_callback(self.metrics.stop)

    def _own_families(self) -> list[Family]:
        bus, checker, state = self.bus, self.checker, self.state_file
        return [
            labelled("maglev_build_info", "gauge", "1; the version.", "version", lambda: {version(): 1}),
            labelled(
                "maglev_config_loads_total",
                "counter",
                "Loads of the configuration file by outcome.",
                "outcome",
                lambda: self.config_file.outcomes,
            ),
            single(
                "maglev_config_last_success_timestamp_seconds",
                "gauge",
                "When the configuration in force took effect.",
                lambda: self.config_file.loaded_at_ns / 1e9,
            ),
            single(
                "maglev_config_last_load_successful",
                "gauge",
                "0 when the last load was refused.",
                lambda: int(not self.config_file.last_error),
            ),
            labelled(
                "maglev_task_failures_total",
                "counter",
                "Tasks that ended by an exception.",
                "task",
                lambda: self.supervisor.failures,
            ),
            single(
                "maglev_callback_failures_total",
                "counter",
                "Callbacks of the event loop that ended by an exception.",
                lambda: self.loop_errors + checker.counters.errors + bus.failures,
            ),
            single("maglev_events_published_total", "counter", "Events on the bus.", lambda: bus.published),
            single("maglev_events_lost_total", "counter", "Events that slow watchers lost.", lambda: bus.lost),
            single("maglev_watchers", "gauge", "Open WatchEvents streams.", lambda: bus.subscribers),
            single("maglev_log_lost_total", "counter", "Log lines that could not be written.", lambda: self.logs.lost),
            single(
                "maglev_verdicts_stale_total",
                "counter",
                "Verdicts that came after a change that made them meaningless.",
                lambda: checker.counters.stale,
            ),
            single(
                "maglev_overrides_expired_total",
                "counter",
                "Operators' settings that ended by themselves.",
                lambda: checker.counters.expired,
            ),
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
                "maglev_state_file_write_failures_total",
                "counter",
                "Writes of the state file that failed.",
                lambda: state.failures,
            ),
            labelled(
                "maglev_metrics_refused_total",
                "counter",
                "Requests for metrics that were turned away.",
                "reason",
                lambda: self.metrics.refused,
            ),
            single(
                "maglev_grpc_certificate_expiry_timestamp_seconds",
                "gauge",
                "End of validity of the server's certificate; absent without TLS.",
                lambda: self.api.certificates.expires if self.api.certificates is not None else None,
            ),
            single(
                "maglev_grpc_certificate_failures_total",
                "counter",
                "Changes of the certificate's files that could not be used; absent without TLS.",
                lambda: self.api.certificates.failures if self.api.certificates is not None else None,
            ),
            labelled(
                "maglev_grpc_refused_total",
                "counter",
                "Watches that were turned away for want of room, or dropped because nobody read them.",
                "reason",
                lambda: self.api.refused,
            ),
            Family("maglev_grpc_calls_total", "counter", "Ended gRPC calls by call and status.", self._grpc_rows),
        ]

    def _grpc_rows(self) -> list[str]:
        return [
            f'maglev_grpc_calls_total{{call="{call}",status="{status}"}} {count}\n'
            for (call, status), count in self.api.calls.items()
        ]

    # ------------------------------------------------------------------------------------------------------- tasks

    async def _reload_on_signal(self) -> None:
        while True:
            await self._reload.wait()
            self._reload.clear()
            log.info("reload-requested", "SIGHUP: the configuration is read again")
            await self.api.reread_certificates()
            # A refusal is in the log already, and there is no caller to tell.
            with contextlib.suppress(NotAllowed):
                await self.config_file.reload(force=False, by="signal")

    async def _tell_status(self) -> None:
        """The status line, and the watchdog: fed by this loop, and only while the engine's thread makes rounds too."""
        watch = self.notifier.watchdog_seconds
        before = -1
        queue = ReceiveQueueWatch(self.engine.stats, self.clock)
        while True:
            queue.look()
            if watch and (rounds := self.engine.pulse()) > before:
                before = rounds
                self.notifier.alive()
            self.notifier.status(self._status())
            await self.clock.sleep(min(STATUS_SECONDS, watch) if watch else STATUS_SECONDS)

    async def _collect_garbage(self) -> None:
        while True:
            await self.clock.sleep(GARBAGE_SECONDS)
            began = self.clock.monotonic_ns()
            found = gc.collect()
            took = (self.clock.monotonic_ns() - began) / 1e6
            log.debug("garbage-collected", f"{found} objects in {took:.1f} ms", objects=found, milliseconds=took)

    def _status(self) -> str:
        counts = self.checker.state_counts()
        states = ", ".join(f"{counts[state]} {state}" for state in State if state in counts) or "none"
        return f"{len(self.checker.config().frontends)} frontends; backends: {states}"

    def _addresses(self) -> dict[str, object]:
        options = self.options
        return {
            "grpc_socket": str(options.grpc_socket or ""),
            "grpc_addr": options.grpc_addr,
            "metrics_addr": options.metrics_addr,
            "vpp_api_addr": options.vpp_api_addr,
        }


async def run(options: Options, control: logs.LogControl) -> int:
    """One run of the daemon, to its exit status."""
    return await Daemon(options, control, SystemClock()).run()
