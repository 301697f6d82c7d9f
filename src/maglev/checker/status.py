"""The status of one backend: its state, its settings, and the probe engine's knowledge of it."""

from __future__ import annotations

from operator import itemgetter

from maglev._probe import TargetInfo
from maglev.base.clock import Moments
from maglev.base.states import Code
from maglev.checker.backend import LiveBackend
from maglev.views.backends import BackendStatus

PASSES = (Code.L3OK, Code.L4OK, Code.L6OK, Code.L7OK)
"""The codes of a probe that passed."""

# A list of 50,000 backends asks for both, for each of them.
_CODES = tuple(sorted(Code))  # by number, as the engine gives them
_passed = itemgetter(*map(int, PASSES))  # from the engine's counts by code


def status_of(live: LiveBackend, info: TargetInfo | None, moments: Moments) -> BackendStatus:
    """Everything about one backend. ``info``: None while the engine has no target for it."""
    spec = live.check.spec if live.check is not None else None
    passed = failed = 0
    age: int | None = None
    if info is not None:
        codes = info.codes
        passed = sum(_passed(codes))
        failed = sum(codes) - passed
        if info.last_at_ns:
            # The engine tells moments of the wall clock as it is now. It may be set between its reading and ours.
            age = max(0, moments.now() - info.last_at_ns)
    since, why = _unprobed(live, info)
    return BackendStatus(
        name=live.name,
        address=live.address,
        state=live.state,
        drained=live.drained,
        held=live.held,
        enabled=live.enabled,
        healthcheck=live.healthcheck,
        counter=info.counter if info is not None else 0,
        rise=spec.rise if spec is not None else 0,
        fall=spec.fall if spec is not None else 0,
        last_code=_CODES[info.last_code] if info is not None else Code.NONE if spec else Code.STATIC,
        last_detail=info.last_detail if info is not None else "",
        last_rtt_ns=info.last_rtt_ns if info is not None and info.rtt_count else None,
        last_result_age_ns=age,
        state_since_ns=moments.shown(live.since_ns),
        unprobed_since_ns=since,
        unprobed_reason=why,
        presumed=live.presumed,
        probes_passed=passed,
        probes_failed=failed,
        transitions=live.history,
    )


def _unprobed(live: LiveBackend, info: TargetInfo | None) -> tuple[int, str]:
    """Since when a backend could not be probed, and why; 0 while it can be."""
    if info is not None and info.blocked_since_ns and live.probed:
        return info.blocked_since_ns, info.blocked_reason
    return live.trouble_since_ns, live.trouble
