"""A reload: whether it needs force, and the step from the old configuration to the new one.

Pure questions about two configurations, and ``prepare``, which works the step out before anything of it is visible.
``Checker.apply`` then takes the step at once, and brings the backends to it in slices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from maglev.base.pace import Pace
from maglev.base.states import State
from maglev.checker.backend import Check, LiveBackend
from maglev.checker.prober import Spread
from maglev.config.model import Backend, Config, HealthCheck, IPAddress, Protocol
from maglev.judgement.deletions import too_many

VipKey = tuple[IPAddress, Protocol, int]


def vips(config: Config) -> set[VipKey]:
    """The VIPs of a configuration as VPP knows them: address, protocol, port."""
    return {(frontend.address, frontend.protocol, frontend.port) for frontend in config.frontends.values()}


def refusal(old: Config, new: Config) -> str:
    """Why the step from ``old`` to ``new`` needs force, in words; empty when it does not.

    The rule is that of ``maglev.judgement.deletions``, which also guards full syncs.
    """
    before, after = vips(old), vips(new)
    lost = len(before - after)
    why = too_many(lost, len(before), len(after))
    return f"this would delete {lost} of {len(before)} VIPs, {why}: force the reload if that is meant" if why else ""


async def used_checks(config: Config) -> dict[str, HealthCheck]:
    """The health checks that some backend uses, by name, with the default network namespace filled in."""
    pace = Pace()
    used: set[str | None] = set()
    for backend in config.backends.values():
        used.add(backend.healthcheck)
        if pace.due():
            await pace.rest()
    return {
        name: check
        if check.netns is not None or config.netns is None
        else dataclasses.replace(check, netns=config.netns)
        for name, check in config.healthchecks.items()
        if name in used
    }


@dataclasses.dataclass(slots=True)
class Step:
    """The step to a configuration.

    ``backends``: the table of backends, in the order of the file; those that stay are the same objects. ``removed``:
    backends that leave. ``spreads``: delays of the first probes, by check. ``vacated``: addresses that this reload
    takes from a backend which was up: a backend that appears at one of them is the same server under another name.
    """

    config: Config
    checks: Mapping[str, Check]
    backends: dict[str, LiveBackend] = dataclasses.field(default_factory=dict)
    removed: list[LiveBackend] = dataclasses.field(default_factory=list)
    spreads: dict[str, Spread] = dataclasses.field(default_factory=dict)
    vacated: set[str] = dataclasses.field(default_factory=set)

    def check_of(self, conf: Backend) -> Check | None:
        """The check of a backend; None for a static one."""
        return self.checks[conf.healthcheck] if conf.healthcheck is not None else None


async def prepare(config: Config, checks: Mapping[str, Check], table: Mapping[str, LiveBackend], now_ns: int) -> Step:
    """Work out the step from the backends of ``table`` to ``config``. Lets the loop run between slices.

    Verdicts and verbs may come meanwhile: they change the backends of ``table``, and never which ones there are.
    """
    pace = Pace()
    step = Step(config, checks)
    backends = step.backends
    for name, conf in config.backends.items():
        check = step.check_of(conf)
        live = table.get(name)
        if live is None or (live.conf is not conf and live.conf.address != conf.address):
            if check is not None:
                # A first verdict is wanted soon, and all first probes at once would be a burst.
                span = min(check.spec.interval, check.spec.fast_interval)
                step.spreads.setdefault(check.spec.name, Spread(span)).count += 1
            if live is None:
                live = LiveBackend(conf, check, now_ns)
            elif _serves(live):
                step.vacated.add(live.address)
        backends[name] = live
        if pace.due():
            await pace.rest()
    for name, live in table.items():
        if name not in backends:
            step.removed.append(live)
            if _serves(live):
                step.vacated.add(live.address)
        if pace.due():
            await pace.rest()
    return step


def _serves(live: LiveBackend) -> bool:
    return live.state is State.UP or live.presumed
