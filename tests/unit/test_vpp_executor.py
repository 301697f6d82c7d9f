"""The executor: what goes into one write, what is not sent, and what a plan leaves behind."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import cast

import pytest

from maglev.base.errors import Unavailable
from maglev.vpp.planning.plan import NO_REFUSALS, Op, Refusals, Step, refusal_key
from maglev.vpp.sync.executor import Executor, Outcome, Pacer
from maglev.vpp.wire.client import VppClient
from maglev.vpp.wire.messages import VipKey
from maglev.vpp.wire.transport import WINDOW, Reply, Request
from tests.helpers.checker import FakeClock

WWW = VipKey.parse("192.0.2.1/32", 6, 80)
API = VipKey.parse("192.0.2.1/32", 6, 443)
COST = 1_000
PLENTY = 10**12


class Clock(FakeClock):
    """Time that passes while the pacer waits."""

    async def sleep(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)


class FakeClient:
    """Answers every call with 0, but for those that a test refuses. ``writes``: the number of calls in each."""

    def __init__(self, refuse: Collection[int] = ()) -> None:
        self.connects = 1
        self.writes: list[int] = []
        self.dumps = 0
        self._refuse = refuse
        self._calls = 0

    def still_connected(self, connects: int) -> None:
        if connects != self.connects:
            raise Unavailable("VPP is away")

    async def send(self, requests: Sequence[Request]) -> list[Reply]:
        self.writes.append(len(requests))
        numbers = range(self._calls, self._calls + len(requests))
        self._calls += len(requests)
        return [Reply(-6 if number in self._refuse else 0, b"") for number in numbers]

    async def dump(self, name: str, payload: bytes) -> list[bytes]:
        """No VIP at all."""
        assert name == "lb_vip_dump"
        self.dumps += 1
        return []


def weight(number: int, old: int, new: int, *, vip: VipKey = WWW, guarded: bool = False) -> Step:
    return Step(
        Op.SET_WEIGHT, vip, address=bytes((10, 0, 0, number)), old_weight=old, weight=new, cost_ns=COST, guarded=guarded
    )


async def run(
    client: FakeClient,
    steps: Sequence[Step],
    *,
    max_stall_ns: int = PLENTY,
    budget_ns: int = PLENTY,
    skip: Refusals = NO_REFUSALS,
) -> tuple[Outcome, list[Step]]:
    told: list[Step] = []
    pacer = Pacer(Clock(), max_stall_ns=max_stall_ns, max_duty=1.0)
    executor = Executor(cast(VppClient, client), pacer)
    outcome = await executor.run(steps, budget_ns=budget_ns, on_done=told.append, skip=skip)
    assert told == outcome.done
    return outcome, told


async def test_a_write_holds_as_much_estimated_work_as_may_be_and_no_more_calls_than_the_window() -> None:
    steps = [weight(number % 250, 1, 0) for number in range(WINDOW + 3)]
    client = FakeClient()
    await run(client, steps)
    assert client.writes == [WINDOW, 3]
    client = FakeClient()
    await run(client, steps[:7], max_stall_ns=3 * COST)
    assert client.writes == [3, 3, 1]
    client = FakeClient()
    await run(client, steps[:2], max_stall_ns=COST // 2)
    assert client.writes == [1, 1]


async def test_what_exceeds_the_budget_is_left() -> None:
    steps = [weight(number, 1, 0) for number in range(5)]
    outcome, _ = await run(FakeClient(), steps, max_stall_ns=COST, budget_ns=2 * COST)
    assert outcome.done == steps[:2]
    assert outcome.rest == steps[2:]
    outcome, _ = await run(FakeClient(), steps, budget_ns=0)
    assert outcome.rest == steps


@pytest.mark.parametrize("accepted", [True, False])
async def test_a_guarded_drop_is_sent_on_its_own_once_a_raise_was_accepted(accepted: bool) -> None:
    steps = [weight(1, 0, 1), weight(2, 0, 1), weight(3, 1, 0, guarded=True)]
    client = FakeClient({0} if accepted else {0, 1})
    outcome, _ = await run(client, steps)
    assert client.writes == ([2, 1] if accepted else [2])
    assert outcome.skipped == ([] if accepted else steps[2:])
    assert refusal_key(steps[0]) in outcome.refused
    assert not outcome.rest


async def test_a_raise_in_another_vip_does_not_release_a_guarded_drop() -> None:
    drop = weight(3, 1, 0, guarded=True)
    outcome, _ = await run(FakeClient({0}), [weight(1, 0, 1), weight(1, 0, 1, vip=API), drop])
    assert outcome.skipped == [drop]


async def test_a_vip_is_flushed_only_when_vpp_is_known_to_have_it() -> None:
    flush = Step(Op.FLUSH_VIP, WWW, flush=True, cost_ns=COST)
    client = FakeClient()
    outcome, _ = await run(client, [flush])
    assert (client.dumps, client.writes) == (1, [])
    assert outcome.failures == [f"{flush}: not sent, the VIP is gone"]
    assert outcome.refused == {refusal_key(flush)}
    client = FakeClient()
    outcome, _ = await run(client, [weight(1, 1, 0), flush])
    assert (client.dumps, client.writes) == (0, [1, 1])
    assert len(outcome.done) == 2


async def test_a_step_that_was_refused_lately_is_not_sent_again_and_the_others_are() -> None:
    steps = [weight(number, 1, 0) for number in range(3)]
    outcome, _ = await run(FakeClient(), steps, skip={WWW: {refusal_key(steps[1])}})
    assert outcome.done == [steps[0], steps[2]]
    assert not outcome.rest
    assert not outcome.refused


async def test_nothing_of_a_plan_is_sent_to_the_vpp_behind_a_new_connection() -> None:
    class Reconnecting(FakeClient):
        async def send(self, requests: Sequence[Request]) -> list[Reply]:
            self.connects += 1
            return await super().send(requests)

    client = Reconnecting()
    with pytest.raises(Unavailable):
        await run(client, [weight(1, 1, 0), weight(2, 1, 0)], max_stall_ns=COST)
    assert client.writes == [1]


async def test_a_raise_that_is_accepted_in_a_later_pass_releases_the_guarded_drop() -> None:
    drop = weight(3, 1, 0, guarded=True)
    steps = [weight(1, 1, 2), weight(1, 2, 4), drop]
    outcome, _ = await run(FakeClient({0}), steps)
    assert outcome.done == steps[1:]
    assert not outcome.skipped
