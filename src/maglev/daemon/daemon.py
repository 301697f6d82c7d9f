"""One run of maglevd, from its start to its end within two seconds of a signal.

``parts`` makes and connects what the daemon consists of, ``tasks`` are its own recurring tasks, ``figures`` its
metrics. This module decides the order in which they start and stop.

A task that fails is started again, except the ``reconciler``: without it VPP would silently not be driven any more, so
the daemon ends with status 1 and its service manager starts it again, with a warm-up. The probe engine is a thread,
not a task; if it cannot start, the daemon does not. An exception in a callback of the event loop is logged and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Awaitable
from typing import Any

from maglev.base import logs
from maglev.base.clock import Clock, SystemClock
from maglev.base.errors import HostTrouble
from maglev.base.version import version
from maglev.checker.preview import Previews
from maglev.daemon import figures
from maglev.daemon.exits import EXIT_FAILED, EXIT_OK, CannotStart, exit_status
from maglev.daemon.listening import Listener, Place
from maglev.daemon.memory import MemoryGuard
from maglev.daemon.options import Options
from maglev.daemon.parts import Parts, VppParts, make_parts
from maglev.daemon.process import raise_file_limit, settle_collector
from maglev.daemon.sdnotify import Notifier
from maglev.daemon.signals import Signals
from maglev.daemon.statefile import NotSaved, StateFile
from maglev.daemon.supervise import Supervisor
from maglev.daemon.tasks import collect_garbage, reload_on_signal, report_status, status_line, watch_certificates
from maglev.metrics.checker import CheckerFamilies
from maglev.metrics.dataplane import VppFamilies
from maglev.metrics.engine import EngineFamilies
from maglev.metrics.exposition import Exposition
from maglev.metrics.server import MetricsServer
from maglev.rpc.access import Role
from maglev.rpc.server import TCP, UNIX, RpcServer, ServerOptions
from maglev.rpc.services import Identity, Services
from maglev.rpc.tls import TlsFiles

log = logs.get(__name__)

LISTEN_SECONDS = 2.0
"""How long the start waits for the first attempts to listen."""

END_SECONDS = 1.8
"""From the signal to the end; what has not ended by then is cut off."""


class Daemon:
    """One run of maglevd. ``run`` returns the exit status. To be made on the event loop that it runs on."""

    def __init__(self, options: Options, control: logs.LogControl, clock: Clock, signals: Signals) -> None:
        self._options = options
        self._logs = control
        self._clock = clock
        self._signals = signals
        self._identity = Identity(version(), clock.time_ns(), clock.monotonic_ns())
        self._notifier = Notifier()
        self._supervisor = Supervisor(clock)
        self._loop_errors = 0
        self._ending = asyncio.Event()
        self._ended_by = ""
        self._reload = asyncio.Event()
        self._listeners: list[Listener] = []
        # Undoes the start, in reverse order: the last part to start is the first to stop.
        self._stack = contextlib.AsyncExitStack()

    # ------------------------------------------------------------------------------------------------ start and end

    async def run(self) -> int:
        """From the start to the end. Never raises for what an operator can cause."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._loop_error)
        self._signals.deliver(self._signalled)
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
            self._signals.dismiss()
        log.info("stopped", f"maglevd ends with status {status}", status=status)
        return status

    async def _until_end(self, starting: Awaitable[None]) -> int:
        """Start, then wait for a signal or for a vital task's end; a signal ends the start too."""
        start = asyncio.ensure_future(starting)
        ending = asyncio.ensure_future(self._ending.wait())
        fatal = self._supervisor.fatal
        try:
            await asyncio.wait([start, ending], return_when=asyncio.FIRST_COMPLETED)
            if start.done():
                start.result()
                ends: list[asyncio.Future[Any]] = [ending, fatal]
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if fatal.done():
                log.error("vital-task-failed", f"task {fatal.result()} failed")
                return EXIT_FAILED
            log.info("stopping", f"maglevd ends: {self._ended_by}", signal=self._ended_by)
            return EXIT_OK
        finally:
            for task in (start, ending):
                task.cancel()
            # A failed start was raised above already.
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await start

    def _signalled(self, number: int) -> None:
        if number == signal.SIGHUP:
            self._reload.set()
        else:
            self._end(signal.Signals(number).name)

    def _end(self, why: str) -> None:
        if not self._ending.is_set():
            self._ended_by = why
            self._ending.set()

    def _loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._loop_errors += 1
        error = context.get("exception")
        message = str(context.get("message", "error in a callback"))
        if isinstance(error, BaseException):
            log.exception("callback-failed", f"{message}: {error}", error)
        else:
            log.error("callback-failed", message)

    async def _start(self) -> None:
        options, supervisor = self._options, self._supervisor
        log.info("starting", f"maglevd {version()} starts", version=version(), pid=os.getpid())
        limit = raise_file_limit()
        log.debug("file-limit", f"{limit} open files", limit=limit)

        state_file = StateFile(options.state_file, self._clock)
        await state_file.claim()
        parts = make_parts(
            options, self._logs, self._clock, self._notifier, state_file, self._identity.started_monotonic_ns
        )
        self._stack.push_async_callback(_save, parts.state_file)
        self._stack.callback(parts.engine.stop)
        # The engine's thread makes the eventfd readable; the checker reads its ring on this thread.
        loop = asyncio.get_running_loop()
        loop.add_reader(parts.engine.fileno(), parts.checker.read_engine)
        self._stack.callback(loop.remove_reader, parts.engine.fileno())

        try:
            result = await parts.config_file.start()
        except HostTrouble as error:
            raise CannotStart(f"{options.config} was not read: {error}") from error
        if result.config is None:
            raise CannotStart(f"{options.config} has errors", exit_status(result))
        settle_collector()

        supervisor.start("state-file", parts.state_file.run)
        supervisor.start("expiry", parts.checker.run)
        supervisor.start("judgement", parts.checker.judge)
        api = self._make_api(parts)
        self._listen(api, self._make_metrics(parts, api))
        supervisor.start("reload", lambda: reload_on_signal(self._reload, parts.config_file, api))
        # After the listeners: the engine reserves ports for its SYN probes, and must not take one of theirs. What
        # cannot be listened on is tried again later, and does not hold up the rest.
        await self._tried()
        try:
            parts.engine.start()
        except (RuntimeError, OSError) as error:
            raise CannotStart(f"the probe engine cannot start: {error}") from error
        if parts.vpp is not None:
            self._start_dataplane(parts.vpp)
        self._notifier.ready(status_line(parts.checker))
        supervisor.start("status", lambda: report_status(parts, self._clock))
        supervisor.start("certificates", lambda: watch_certificates(api, self._clock))
        supervisor.start("garbage", lambda: collect_garbage(self._clock))
        log.info("ready", "maglevd is ready", **self._addresses())

    async def _stop(self, status: int) -> None:
        """End everything within ``END_SECONDS``; the process ends then even if something hangs."""
        self._notifier.stopping()
        # Never disarmed: the interpreter waits for its threads at the end, and one may hang in a system call.
        last_resort = threading.Timer(END_SECONDS, os._exit, (status,))
        last_resort.daemon = True
        last_resort.start()
        try:
            async with asyncio.timeout(END_SECONDS - 0.2):
                await self._stack.aclose()
                await self._supervisor.stop_all(0.3)
        except TimeoutError:
            log.error("stop-late", "not everything ended in time")
        except Exception as error:
            log.exception("stop-failed", f"the end was not orderly: {error}", error)
        finally:
            self._notifier.close()

    # ---------------------------------------------------------------------------------------- dataplane and listeners

    def _start_dataplane(self, vpp: VppParts) -> None:
        self._supervisor.start("vpp-client", vpp.client.run)
        # Without it nothing would drive VPP any more, and nothing would show that: better to end and be started again.
        self._supervisor.start("reconciler", vpp.reconciler.run, vital=True)
        if vpp.stats is not None:
            self._supervisor.start("vpp-stats", vpp.stats.run)
        self._stack.push_async_callback(self._stop_dataplane, vpp)

    async def _stop_dataplane(self, vpp: VppParts) -> None:
        """Leave VPP as it is, and close the connection in an orderly way."""
        if vpp.stats is not None:
            await self._supervisor.stop("vpp-stats", 0.1)
        await self._supervisor.stop("reconciler", 0.3)
        await vpp.client.close()
        await self._supervisor.stop("vpp-client", 0.3)

    def _make_api(self, parts: Parts) -> RpcServer:
        options = self._options
        tls = None
        if options.grpc_tls_cert is not None and options.grpc_tls_key is not None:
            tls = TlsFiles(options.grpc_tls_cert, options.grpc_tls_key, options.grpc_client_ca)
        services = Services(
            identity=self._identity,
            clock=self._clock,
            bus=parts.bus,
            checker=parts.checker,
            previews=Previews(parts.checker),
            tracer=parts.checker,
            loader=parts.config_file,
            logs=self._logs,
            events=parts.events,
            causes=parts.causes,
            dataplane=parts.vpp.dataplane if parts.vpp is not None else None,
            keep=parts.state_file.saved,
            listeners=lambda: [one.view() for one in self._listeners],
        )
        return RpcServer(
            services,
            ServerOptions(
                unix_socket=options.grpc_socket,
                tcp_address=options.grpc_addr,
                tcp_role=Role(options.grpc_tcp_role),
                tls=tls,
                reflection=options.reflection,
            ),
        )

    def _make_metrics(self, parts: Parts, api: RpcServer) -> MetricsServer:
        exposition = Exposition()
        server = MetricsServer(exposition)
        exposition.add(CheckerFamilies(parts.checker).families())
        exposition.add(EngineFamilies(parts.engine).families())
        if parts.vpp is not None:
            exposition.add(VppFamilies(parts.vpp.dataplane).families())
        exposition.add(figures.build_families())
        exposition.add(figures.config_families(parts.config_file))
        exposition.add(
            figures.task_families(
                self._supervisor,
                lambda: self._loop_errors + parts.checker.counters.errors + parts.bus.failures,
            )
        )
        exposition.add(figures.event_families(parts.bus, self._logs))
        exposition.add(figures.checker_families(parts.checker))
        exposition.add(figures.state_file_families(parts.state_file))
        exposition.add(figures.metrics_families(server))
        exposition.add(figures.api_families(api))
        exposition.add(figures.listener_families(self._listeners))
        return server

    def _listen(self, api: RpcServer, metrics: MetricsServer) -> None:
        """Start a task for each listener; they end before the server that they open."""
        options = self._options
        self._stack.push_async_callback(api.stop, 0.8)
        self._stack.push_async_callback(metrics.stop)
        places = (
            Place(UNIX, str(options.grpc_socket or ""), api.open_unix),
            Place(TCP, options.grpc_addr, api.open_tcp, api.close_tcp),
            Place("metrics", options.metrics_addr, lambda: metrics.start(options.metrics_addr)),
        )
        for place in places:
            if place.address:
                listener = Listener(place, self._clock)
                self._listeners.append(listener)
                task = f"listener-{place.name}"
                self._supervisor.start(task, listener.run)
                self._stack.push_async_callback(self._supervisor.stop, task, 0.2)
                if place.close is not None:
                    self._supervisor.start("memory", MemoryGuard(listener, self._clock).run)

    async def _tried(self) -> None:
        """Wait for the first attempt of each listener, but not for files on a disk that does not answer."""
        attempts = [asyncio.ensure_future(one.tried.wait()) for one in self._listeners]
        if attempts:
            _, pending = await asyncio.wait(attempts, timeout=LISTEN_SECONDS)
            for attempt in pending:
                attempt.cancel()

    def _addresses(self) -> dict[str, object]:
        options = self._options
        return {
            "grpc_socket": str(options.grpc_socket or ""),
            "grpc_addr": options.grpc_addr,
            "metrics_addr": options.metrics_addr,
            "vpp_api_addr": options.vpp_api_addr,
        }


async def _save(state_file: StateFile) -> None:
    """Wait until the state file is written; a failure is in the log already."""
    with contextlib.suppress(NotSaved):
        await state_file.saved()


async def run(options: Options, control: logs.LogControl, signals: Signals) -> int:
    """One run of the daemon, to its exit status."""
    return await Daemon(options, control, SystemClock(), signals).run()
