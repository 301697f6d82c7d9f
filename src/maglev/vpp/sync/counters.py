"""Counts of the dataplane's work: the figures behind ``maglev_vpp_lbsync_total`` and other metrics.

Only the event loop counts. Counts never go down.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from maglev.vpp.state.drift import KINDS as DRIFT_KINDS


@dataclass(slots=True)
class Counters:
    """All counts, from 0 at the start of the daemon. ``lbsync`` by (scope ``all`` or ``one``, kind); ``drift`` by kind.

    ``suppressed``: syncs that the warm-up held. ``bucket_mismatches``: VIPs that were read back with other bucket
    counts than their weights give. ``commands_failed``: commands about many ASes that VPP refused, or whose result it
    did not show.
    """

    lbsync: Counter[tuple[str, str]] = field(default_factory=Counter)
    # Every kind starts at 0: an alert on an increase needs a series that exists before the increase.
    drift: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(DRIFT_KINDS, 0)))
    batches: int = 0
    full_syncs: int = 0
    failed_syncs: int = 0
    suppressed: int = 0
    recreations_given_up: int = 0
    bucket_mismatches: int = 0
    commands_failed: int = 0
