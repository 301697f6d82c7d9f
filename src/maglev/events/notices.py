"""Log records that are remembered as events: facts that no event of the bus reports, and that explain others.

A record is remembered by its event name, at info level and above, whatever the level of the daemon's own log is.
"""

from __future__ import annotations

NOTICES = frozenset(
    (
        "brake-begun",
        "brake-ended",
        "config-not-read",
        "config-refused",
        "override-ended",
        "ready",
        "vpp-connected",
        "vpp-disconnected",
        "vpp-sync-requested",
        "vpp-unsupported",
        "vpp-vip-recreated",
    )
)

CLOCK = "clock-"
"""Records about the machine's clock begin with this: a step of it explains odd times of other events."""


def is_notice(event: str) -> bool:
    """Whether records of that event name are remembered."""
    return event in NOTICES or event.startswith(CLOCK)
