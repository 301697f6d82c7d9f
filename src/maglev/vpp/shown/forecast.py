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
    return PlanReport(steps, forecasts, plan.stall_ns, notes, [str(key) for key in plan.undecided])


async def forecast(plan: Plan, actual: Actual, backends: Mapping[tuple[VipKey, bytes], str]) -> list[VipForecast]:
    """Buckets before and after, for each VIP that the plan touches. ``backends``: names by VIP and address."""
    steps: dict[VipKey, list[Step]] = {}
    for step in plan.steps:
        if step.vip is not None:
            steps.setdefault(step.vip, []).append(step)
    forecasts: list[VipForecast] = []
    pace = Pace()
    for key, of_vip in steps.items():
        forecasts.append(_forecast_of(key, of_vip, actual.vips.get(key), backends))
        await pace.breathe()
    return forecasts


def _forecast_of(
    key: VipKey, steps: Sequence[Step], found: ActualVip | None, backends: Mapping[tuple[VipKey, bytes], str]
) -> VipForecast:
    """One VIP: as VPP has it (``found``), and as it will be when VPP has acknowledged the steps."""
    after = _after(key, steps, found)
    length = found.length if found is not None else DEFAULT_TABLE_LENGTH
    length_after = after.length if after is not None else length
    before_weights, after_weights = _weights(found), _weights(after)
    before, then = predicted_buckets(before_weights, length), predicted_buckets(after_weights, length_after)
    return VipForecast(
        frontend=next((step.frontend for step in steps if step.frontend), ""),
        vip=str(key),
        moved_share=_moved(before_weights, length, after_weights, length_after),
        stall_ns=sum(step.cost_ns for step in steps),
        ases=[
            AsForecast(address_text(a), backends.get((key, a), ""), before.get(a, 0), then.get(a, 0))
            for a in sorted(set(before_weights) | set(after_weights), key=address_order)
        ],
    )


def _after(key: VipKey, steps: Sequence[Step], found: ActualVip | None) -> ActualVip | None:
    scratch = Actual(None, {})
    if found is not None:
        scratch.vips[key] = ActualVip(key, found.encap, found.length, ases=dict(found.ases))
    for step in steps:
        acknowledge(scratch, step)
    return scratch.vips.get(key)


def _weights(vip: ActualVip | None) -> dict[bytes, int]:
    return {} if vip is None else {address: have.weight for address, have in vip.ases.items()}


def _moved(before: Mapping[bytes, int], length: int, after: Mapping[bytes, int], length_after: int) -> float:
    """The share of buckets that go to another AS. A table of another length is another table altogether."""
    if not any(before.values()) or not any(after.values()):
        return 0.0
    return moved_share(padded(before), padded(after), length) if length == length_after else 1.0
