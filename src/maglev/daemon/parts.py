"""The parts of a daemon, and how they are connected. Nothing here runs: ``daemon`` starts and stops what is made here.

Order matters in two places. The dataplane listens on the bus before the first configuration takes effect, since it must
not miss an event. The checker gets what operators had set before its first configuration.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from maglev._probe import Engine
from maglev.base import logs
from maglev.base.clock import Clock
from maglev.base.events import Bus
from maglev.base.version import user_agent
from maglev.checker import Checker
from maglev.checker.overrides import from_json
from maglev.daemon.capabilities import require_capabilities
from maglev.daemon.configfile import ConfigFile
from maglev.daemon.options import Options
from maglev.daemon.sdnotify import Notifier
from maglev.daemon.statefile import StateFile
from maglev.daemon.wallclock import WallClock
from maglev.events.causes import Causes
from maglev.events.notices import is_notice
from maglev.events.ring import EventRing
from maglev.views.backends import Override
from maglev.vpp.shown.dataplane import Dataplane
from maglev.vpp.shown.stats import StatsPoller
from maglev.vpp.sync.reconciler import Reconciler
from maglev.vpp.wire.client import VppClient

log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class VppParts:
    """The parts that drive VPP. ``stats`` None: packet counters are turned off."""

    client: VppClient
    reconciler: Reconciler
    dataplane: Dataplane
    stats: StatsPoller | None


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything between the engine and the listeners. ``vpp`` None: the daemon runs without VPP."""

    notifier: Notifier
    bus: Bus
    state_file: StateFile
    wall_clock: WallClock
    engine: Engine
    checker: Checker
    config_file: ConfigFile
    vpp: VppParts | None
    events: EventRing
    causes: Causes


def make_parts(
    options: Options,
    control: logs.LogControl,
    clock: Clock,
    notifier: Notifier,
    state_file: StateFile,
    started_ns: int,
) -> Parts:
    """Make and connect all parts, on the event loop's thread. Reads the state file, and nothing else.

    ``state_file``: claimed and not read yet.
    ``started_ns``: the start of the daemon by the monotonic clock, from which the warm-up counts.
    """
    bus = Bus()
    loop = asyncio.get_running_loop()
    control.tap(bus, loop)
    causes = Causes(clock, lambda name: checker.frontends_of(name), lambda: checker.config().frontends)
    ring = EventRing(clock, causes)
    control.keep(is_notice, ring.notice, loop)
    state_file.load()
    wall_clock = WallClock(state_file, clock)
    engine = Engine(user_agent=user_agent(), clock_anchor=wall_clock.kept_anchor)

    def keep_overrides() -> None:
        state_file.set("overrides", checker.override_fragments())

    checker = Checker(engine, bus, clock, on_overrides=keep_overrides)
    checker.restore(_kept_overrides(state_file), wall_clock.moved_ns)
    vpp = _vpp_parts(options, bus, checker, causes, state_file, clock, started_ns)
    if vpp is None:
        # No dataplane will say which backends VPP already sends traffic to: none is presumed good.
        checker.settle(())
    config_file = ConfigFile(options.config, checker, notifier, clock, before=require_capabilities)
    # After the dataplane: an event is remembered once its work for VPP is queued.
    bus.listen(ring.take)
    bus.listen_judgements(causes.judged)
    return Parts(notifier, bus, state_file, wall_clock, engine, checker, config_file, vpp, ring, causes)


def _vpp_parts(
    options: Options,
    bus: Bus,
    checker: Checker,
    causes: Causes,
    state_file: StateFile,
    clock: Clock,
    started_ns: int,
) -> VppParts | None:
    if not options.vpp_api_addr:
        return None
    client = VppClient(options.vpp_api_addr, clock)
    reconciler = Reconciler(
        client, bus, checker, clock, presumption=checker, trail=causes, store=state_file, started_ns=started_ns
    )
    stats = StatsPoller(options.vpp_stats_addr, client, reconciler, clock) if options.vpp_stats_addr else None
    return VppParts(client, reconciler, Dataplane(client, reconciler, checker, clock, stats), stats)


def _kept_overrides(state_file: StateFile) -> list[Override]:
    kept = state_file.get("overrides")
    records: list[Override] = []
    if kept is not None and not isinstance(kept, list):
        log.error("override-unreadable", "state file: the overrides are not a list")
        state_file.distrust()
    for item in kept if isinstance(kept, list) else []:
        try:
            records.append(from_json(item))
        except ValueError as error:
            log.error("override-unreadable", f"state file: {error}")
            # It is not in the next file: the whole of this one is kept for whoever understands it.
            state_file.distrust()
    return records
