"""What a reload may do without being forced: pure questions about two configurations."""

from __future__ import annotations

import dataclasses

from maglev.base.pace import Pace
from maglev.config.model import Config, HealthCheck, IPAddress, Protocol

VipKey = tuple[IPAddress, Protocol, int]

GUARD_VIPS = 3
"""A reload that deletes this many VIPs or fewer is never held back."""


def vips(config: Config) -> set[VipKey]:
    """The VIPs of a configuration as VPP knows them: address, protocol, port."""
    return {(frontend.address, frontend.protocol, frontend.port) for frontend in config.frontends.values()}


def refusal(old: Config, new: Config) -> str:
    """Why the step from ``old`` to ``new`` needs force, in words; empty when it does not.

    A file that was cut off or mixed up often still parses. Deleting more than half of the VIPs, and more than
    three, is not done by accident.
    """
    before = vips(old)
    lost = len(before - vips(new))
    if lost > GUARD_VIPS and 2 * lost > len(before):
        return f"this would delete {lost} of {len(before)} VIPs, more than half: force the reload if that is meant"
    return ""


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
