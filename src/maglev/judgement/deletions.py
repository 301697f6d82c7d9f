"""How many VIPs may leave VPP at once without an operator's word. Pure.

A file that was cut off or mixed up often still parses, and every VIP that it deletes loses its traffic at once. The
same rule guards a reload (``maglev.checker.reload``) and the removals of a full sync (``maglev.vpp.state.pruning``), so
a file that a reload refuses does no harm after a restart either.
"""

from __future__ import annotations

FEW_VIPS = 3
"""This many VIPs or fewer may always be deleted, as long as others are left."""


def too_many(lost: int, before: int, left: int) -> str:
    """Why deleting ``lost`` of ``before`` VIPs takes an operator's word, in a few words; empty where it does not.

    ``left``: VIPs in the configuration afterwards, also those that are new in it.
    """
    if lost > FEW_VIPS and 2 * lost > before:
        return "more than half"
    return "no VIP is left" if lost and not left else ""
