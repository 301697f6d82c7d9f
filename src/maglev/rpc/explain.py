"""``Explain``: why a backend or a frontend is as it is now, in sentences.

The sentences follow from the present states, settings of operators, holds, and the result of the weight rule. They say
for each weight of 0 why it is 0. The causes come from the decision records (``maglev.events.causes``), as far
as these are remembered.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from maglev.base.clock import Clock
from maglev.base.states import FrontendState, State
from maglev.config.model import Frontend
from maglev.events.causes import Cause
from maglev.judgement.weights import FrontendWeights, MemberWeight, PoolCounts, pool_counts
from maglev.rpc.services import CausesApi, CheckerApi
from maglev.schema.durations import format_duration
from maglev.views.backends import BackendStatus, Override, OverrideKind

MOST_FRONTENDS = 8
"""Frontends of a backend that are explained."""

MOST_MEMBERS = 12
"""Members of a frontend that are explained."""

MOST_CAUSES = 5

_SECOND = 1_000_000_000

_SET = {
    OverrideKind.DRAIN: "drained it",
    OverrideKind.DISABLE: "disabled it",
    OverrideKind.ENABLE: "enabled it, against the file",
    OverrideKind.PAUSE: "paused it",
}


def of_backend(checker: CheckerApi, clock: Clock, name: str) -> Iterator[str]:
    """The sentences about a backend. Raises ``UnknownName``."""
    status = checker.backend_status(name)
    now = clock.time_ns()
    yield f"It has been {status.state} for {_span(now - status.state_since_ns)}."
    yield from _probing(status, now)
    for override in checker.overrides_of(name):
        yield _override(override, now)
    users = checker.frontends_of(name)
    for frontend in users[:MOST_FRONTENDS]:
        configured, weights = checker.config().frontends[frontend], checker.frontend_weights(frontend)
        for member in weights.members:
            if member.backend == name:
                yield f"In frontend {frontend}, pool {member.pool}: {_weight(configured, weights, member)}."
    if len(users) > MOST_FRONTENDS:
        yield f"It is a member of {len(users) - MOST_FRONTENDS} more frontends."
    if not users:
        yield "No frontend uses it."


def _probing(status: BackendStatus, now: int) -> Iterator[str]:
    """The state of its probes."""
    if status.unprobed_since_ns:
        yield (
            f"It is {status.unprobed_reason}, for {_span(now - status.unprobed_since_ns)}: that is no verdict, so it"
            " keeps its state."
        )
        return
    if not status.healthcheck:
        yield "It has no health check" + (", so it is up." if status.state is State.UP else ".")
        return
    if status.held:
        yield f"Its probes say down. That verdict is held by the {status.held}."
    if status.presumed:
        yield "VPP served it before the daemon started, so it counts as good until its own probes have decided."
    if status.last_result_age_ns is not None:
        detail = f": {status.last_detail}" if status.last_detail else ""
        yield f"Its last probe, {_span(status.last_result_age_ns)} ago, gave {status.last_code}{detail}."


def _override(override: Override, now: int) -> str:
    who = override.by or "an operator"
    since = f"{_span(now - override.since_ns)} ago"
    if override.kind is OverrideKind.WEIGHT:
        words = (
            f"{who} set its weight in frontend {override.frontend}, pool {override.pool}, to {override.weight} {since}"
            f" (file: {override.file_weight})"
        )
    else:
        words = f"{who} {_SET[override.kind]} {since}"
    if override.until_ns:
        words += f", for {_span(override.until_ns - now)} more"
    return words + (f": {override.reason}." if override.reason else ".")


def of_frontend(checker: CheckerApi, clock: Clock, name: str) -> Iterator[str]:
    """The sentences about a frontend. Raises ``UnknownName``."""
    configured, weights = checker.config().frontends[name], checker.frontend_weights(name)
    counts = pool_counts(configured, weights)
    state = checker.frontend_state(name)
    pool = configured.pools[weights.active_pool].name
    if state is FrontendState.DOWN:
        yield "It is down: no member of any pool can serve."
        if any(member.keep for member in weights.members):
            yield "VPP keeps the last weights (on-all-down: keep)."
    elif state is FrontendState.UNKNOWN:
        yield "It is unknown: the first verdicts are missing."
    else:
        yield f"It is {state}, and pool {pool} serves it."
    if state is FrontendState.PANIC and configured.panic is not None:
        yield f"Too little of pool {pool} is healthy: it is in panic (action: {configured.panic.action.value})."
    for earlier, count in zip(configured.pools[: weights.active_pool], counts, strict=False):
        yield f"Pool {earlier.name} comes before it and does not serve: {_lacks(count)}."
    serves = state not in (FrontendState.DOWN, FrontendState.UNKNOWN)
    out = [member for member in weights.members if _lacking(member, weights.active_pool, serves=serves)]
    for member in out[:MOST_MEMBERS]:
        yield f"Backend {member.backend}: {_weight(configured, weights, member)}."
    if len(out) > MOST_MEMBERS:
        yield f"{len(out) - MOST_MEMBERS} more of its backends have less than their weight."
    if state is FrontendState.UP and not out:
        yield f"All backends of pool {pool} have their weight."


def _lacking(member: MemberWeight, active_pool: int, *, serves: bool) -> bool:
    """Whether a member has less than its weight, and that has to do with the frontend's state.

    In the pool that serves, each of these. In an earlier pool those that keep it from serving, and in any pool if the
    frontend does not serve.
    """
    if member.pool_index == active_pool:
        return member.effective == 0 or member.share < 100
    return (member.pool_index < active_pool or not serves) and (not _serving(member) or member.weight == 0)


def _lacks(count: PoolCounts) -> str:
    if count.usable:
        return f"{count.up} of its backends can serve, and it takes over again once resume-up and resume-after are met"
    return f"{count.up} of its backends can serve, and it needs {count.min_up}"


def _weight(frontend: Frontend, weights: FrontendWeights, member: MemberWeight) -> str:
    """The weight of a member, and what takes it away."""
    words = f"weight {member.effective} of {member.weight}"
    if member.effective > 0:
        if member.share < 100:
            return f"{words}, as it starts slowly ({member.share} %)"
        return words if _serving(member) else f"{words}, though {_reason(frontend, weights, member)}"
    return f"{words}, as {_reason(frontend, weights, member)}"


def _serving(member: MemberWeight) -> bool:
    return member.state is State.UP and not member.drained


def _reason(frontend: Frontend, weights: FrontendWeights, member: MemberWeight) -> str:
    if member.drained:
        return "it is drained"
    if member.state is State.UNKNOWN:
        return "it has no verdict yet"
    if member.state is not State.UP:
        return f"it is {member.state}"
    if member.weight == 0:
        return "that is its weight"
    if member.pool_index != weights.active_pool:
        return f"pool {frontend.pools[weights.active_pool].name} serves"
    return "a mechanism of judgement takes it away"


def causes_of_backend(causes: CausesApi, name: str) -> list[Cause]:
    """The causes that led to the state of a backend, newest first."""
    found = causes.of_backend(name)
    return [found] if found is not None else []


def causes_of_frontend(checker: CheckerApi, causes: CausesApi, name: str) -> list[Cause]:
    """The causes that led to the state of a frontend, newest first: its own, and those of members without weight."""
    out: Iterable[str] = (one.backend for one in checker.frontend_weights(name).members if not _serving(one))
    found = {one.number: one for one in map(causes.of_backend, out) if one is not None}
    if (newest := causes.of_frontend(name)) is not None:
        found[newest.number] = newest
    return [found[number] for number in sorted(found, reverse=True)][:MOST_CAUSES]


def _span(ns: int) -> str:
    """A length of time; to the second above ten seconds."""
    ns = max(ns, 0)
    return format_duration(ns - ns % (_SECOND if ns > 10 * _SECOND else 1_000_000))
