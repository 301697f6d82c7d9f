"""Plans as they are shown, with their effect on the buckets of each AS.

The forecast is exact: it builds the new-flow table with VPP's own algorithm (``maglev._flowtable``), before and after.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from maglev._flowtable import moved_share
from maglev.base.pace import Pace
from maglev.views.plans import AsForecast, PlanReport, PlanStep, VipForecast
from maglev.vpp.planning.buckets import padded
from maglev.vpp.planning.buckets import predicted as predicted_buckets
from maglev.vpp.planning.model import DEFAULT_TABLE_LENGTH, Actual, ActualVip, address_order
from maglev.vpp.planning.plan import Plan, Step, acknowledge
from maglev.vpp.wire.messages import VipKey, address_text


async def plan_report(plan: Plan, forecasts: Sequence[VipForecast]) -> PlanReport:
    """A plan as it is shown, with the forecasts for its VIPs."""
    pace = Pace()
    steps: list[PlanStep] = []
    for step in plan.steps:
        steps.append(
            PlanStep(
                kind=step.op.value,
                frontend=step.frontend,
                vip=str(step.vip or ""),
                backend=step.backend,
                address=address_text(step.address) if step.address else "",
                old_weight=step.old_weight,
                new_weight=step.weight,
                flush=step.flush,
                stall_ns=step.cost_ns,
                text=str(step),
            )
        )
        await pace.breathe()
    notes = [*plan.notes, *(f"VIP {key} is not configured, and left alone" for key in plan.unmanaged)]
    return PlanReport(steps, forecasts, plan.stall_ns, notes)


async def forecast(plan: Plan, actual: Actual, backends: Mapping[tuple[VipKey, bytes], str]) -> list[VipForecast]:
    """Buckets before and after, for each VIP that the plan touches."""
    steps: dict[VipKey, list[Step]] = {}
    for step in plan.steps:
        if step.vip is not None:
            steps.setdefault(step.vip, []).append(step)
    forecasts: list[VipForecast] = []
    pace = Pace()
    for key, of_vip in steps.items():
        found = actual.vips.get(key)
        scratch = Actual(None, {})
        if found is not None:
            scratch.vips[key] = ActualVip(key, found.encap, found.length, ases=dict(found.ases))
        for step in of_vip:
            acknowledge(scratch, step)
        after = scratch.vips.get(key)
        before_weights = {} if found is None else {a: have.weight for a, have in found.ases.items()}
        after_weights = {} if after is None else {a: have.weight for a, have in after.ases.items()}
        before_length = found.length if found is not None else DEFAULT_TABLE_LENGTH
        after_length = after.length if after is not None else before_length
        before, then = predicted_buckets(before_weights, before_length), predicted_buckets(after_weights, after_length)
        moved = 0.0
        if any(before_weights.values()) and any(after_weights.values()):
            moved = 1.0
            if before_length == after_length:
                moved = moved_share(padded(before_weights), padded(after_weights), after_length)
        forecasts.append(
            VipForecast(
                frontend=next((step.frontend for step in of_vip if step.frontend), ""),
                vip=str(key),
                moved_share=moved,
                stall_ns=sum(step.cost_ns for step in of_vip),
                ases=[
                    AsForecast(address_text(a), backends.get((key, a), ""), before.get(a, 0), then.get(a, 0))
                    for a in sorted(set(before_weights) | set(after_weights), key=address_order)
                ],
            )
        )
        await pace.breathe()
    return forecasts
