"""The daemon's own recurring tasks. Each runs for ever on the event loop, under the supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import gc

from maglev.base import logs
from maglev.base.clock import Clock
from maglev.base.errors import HostTrouble, NotAllowed
from maglev.base.states import State
from maglev.checker import Checker
from maglev.daemon.configfile import ConfigFile
from maglev.daemon.descriptors import DescriptorWatch
from maglev.daemon.parts import Parts
from maglev.daemon.receivequeue import ReceiveQueueWatch
from maglev.daemon.unprobed import UnprobedWatch
from maglev.rpc.server import RpcServer

log = logs.get(__name__)

STATUS_SECONDS = 5.0

CERTIFICATE_SECONDS = 60.0
"""Interval at which the files of the certificate are looked at."""

GARBAGE_SECONDS = 600.0
"""Interval at which all objects, old ones too, are searched for cycles that nothing refers to."""


async def reload_on_signal(requested: asyncio.Event, config_file: ConfigFile, api: RpcServer) -> None:
    """Read the certificates and the configuration again whenever ``requested`` is set (SIGHUP)."""
    while True:
        await requested.wait()
        requested.clear()
        log.info("reload-requested", "SIGHUP: the configuration is read again")
        await api.reread_certificates()
        # A refusal is in the log already, and a signal has no caller to answer.
        with contextlib.suppress(HostTrouble, NotAllowed):
            await config_file.reload(force=False, by="signal")


async def watch_certificates(api: RpcServer, clock: Clock) -> None:
    """Read renewed certificates also between handshakes: the metric of their expiry has to be true."""
    while True:
        await clock.sleep(CERTIFICATE_SECONDS)
        await api.reread_certificates(force=False)


async def report_status(parts: Parts, clock: Clock) -> None:
    """Keep systemd's status line true, feed its watchdog, and watch the wall clock.

    The watchdog covers both threads that matter: this task feeds it, so a held event loop starves it, and it feeds only
    while the engine's thread makes rounds.
    """
    notifier, engine = parts.notifier, parts.engine
    watchdog = notifier.watchdog_seconds
    before = -1
    queue = ReceiveQueueWatch(engine.stats, clock)
    descriptors = DescriptorWatch(engine.stats, clock)
    unprobed = UnprobedWatch(engine.stats, parts.checker.probe_records, clock)
    while True:
        queue.look()
        descriptors.look()
        parts.wall_clock.look(engine, parts.checker.clock_moved)
        await unprobed.look()
        if watchdog and (rounds := engine.pulse()) > before:
            before = rounds
            notifier.alive()
        notifier.status(status_line(parts.checker))
        await clock.sleep(min(STATUS_SECONDS, watchdog) if watchdog else STATUS_SECONDS)


async def collect_garbage(clock: Clock) -> None:
    """Search all objects for cycles, rarely. The collector never does so by itself (``process.settle_collector``)."""
    while True:
        await clock.sleep(GARBAGE_SECONDS)
        began = clock.monotonic_ns()
        found = gc.collect()
        took = (clock.monotonic_ns() - began) / 1e6
        log.debug("garbage-collected", f"{found} objects in {took:.1f} ms", objects=found, milliseconds=took)


def status_line(checker: Checker) -> str:
    """``2 frontends; backends: 3 up, 1 down``."""
    counts = checker.state_counts()
    states = ", ".join(f"{counts[state]} {state}" for state in State if state in counts) or "none"
    return f"{len(checker.config().frontends)} frontends; backends: {states}"
