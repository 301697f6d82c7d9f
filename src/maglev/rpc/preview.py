"""Changes that are only tried (``dry_run``), as the API answers them: a trial, its forecasts, and the plan for VPP.

The checker makes the trial (``maglev.checker.preview``), the dataplane the plan.
"""

from __future__ import annotations

from maglev.base import errors
from maglev.base.pace import Pace
from maglev.pb import maglev_pb2 as pb
from maglev.rpc import convert
from maglev.rpc.services import Services, TrialApi
from maglev.rpc.turns import bounded

MAX_FRONTENDS = 1000
"""Frontends of one preview that are listed."""

MAX_MEMBERS = 10_000
"""Their members."""


async def preview(services: Services, trial: TrialApi) -> pb.Preview:
    """The forecasts and the plan of the change that was made to ``trial``."""
    answer, pace = pb.Preview(), Pace()
    found = await trial.forecasts()
    left = MAX_MEMBERS
    for forecast in found[:MAX_FRONTENDS]:
        convert.fill_forecast(answer.frontends.add(), forecast, left)
        left -= len(answer.frontends[-1].members)
        await pace.breathe()
        if left <= 0:
            break
    answer.frontends_omitted = len(found) - len(answer.frontends)
    dataplane = services.dataplane
    if dataplane is None:
        answer.no_plan = "the daemon runs without VPP"
        return answer
    try:
        plan = await bounded(dataplane.preview(trial.frontends, trial.checker, trial.events))
        answer.plan.CopyFrom(await convert.plan(plan))
    except errors.Unavailable as error:
        answer.no_plan = str(error)
    return answer
