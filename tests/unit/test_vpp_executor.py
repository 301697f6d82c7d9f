"""The executor: what goes into one write, what is not sent, and what a plan leaves behind."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import cast

import pytest

from maglev.base.errors import Unavailable
from maglev.vpp.planning.plan import NO_REFUSALS, Op, Refusals, Step, refusal_key
from maglev.vpp.sync.commandline import LineMeter
from maglev.vpp.sync.executor import Executor, Outcome, Pacer
from maglev.vpp.wire.client import VppClient
from maglev.vpp.wire.messages import MESSAGES, ProtocolError, VipKey
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
    """Answers every call with 0, but for those that a test refuses. ``writes``: the number of calls in each.

    ``texts``: commands, whose answers are ``answers``, one after another, and then success.
    """

    def __init__(self, refuse: Collection[int] = (), answers: Sequence[tuple[int, str]] = ()) -> None:
        self.texts: list[str] = []
        self.dropped: list[str] = []
        self._answers = list(answers)
        self.connects = 1
        self.writes: list[int] = []
        self.dumps = 0
        self._refuse = refuse
        self._calls = 0

    def still_connected(self, connects: int) -> None:
        if connects != self.connects:
            raise Unavailable("VPP is away")

    def drop(self, why: str) -> None:
        self.dropped.append(why)

    async def send(self, requests: Sequence[Request]) -> list[Reply]:
        if requests[0].name == "cli_inband":
            assert {request.name for request in requests} == {"cli_inband"}
            return [self._command(request) for request in requests]
        self.writes.append(len(requests))
        numbers = range(self._calls, self._calls + len(requests))
        self._calls += len(requests)
        return [Reply(-6 if number in self._refuse else 0, b"") for number in numbers]

    def _command(self, request: Request) -> Reply:
        self.texts.append(MESSAGES["cli_inband"].unpack(request.payload)["cmd"])
        retval, text = self._answers.pop(0) if self._answers else (0, "")
        return Reply(retval, MESSAGES["cli_inband_reply"].pack(retval=retval, reply=text))

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
    assert [one for step in told for one in step.members or (step,)] == outcome.done
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


# --- commands

KNOWN = (-1, "lb as: No AS address provided\n")
GONE = (-1, "lb as: lb_vip_find_index error -6\n")


def commands(old: int, new: int, *numbers: int, vip: VipKey = WWW, guarded: bool = False) -> Step:
    members = tuple(weight(number, old, new, vip=vip, guarded=guarded) for number in numbers)
    return Step(Op.COMMANDS, vip, old_weight=old, weight=new, cost_ns=COST, guarded=guarded, members=members)


async def test_the_first_commands_on_a_connection_are_preceded_by_a_probe_that_changes_nothing() -> None:
    client = FakeClient(answers=[KNOWN])
    first, second = commands(0, 1, 1, 2), commands(1, 0, 3, 4)
    outcome, told = await run(client, [first, second])
    assert client.texts == [
        "lb as 192.0.2.1/32 protocol tcp port 80 weight 0",
        "lb as 192.0.2.1/32 protocol tcp port 80 10.0.0.1 10.0.0.2 del\n"
        "lb as 192.0.2.1/32 protocol tcp port 80 10.0.0.1 10.0.0.2 weight 1",
        "lb as 192.0.2.1/32 protocol tcp port 80 10.0.0.3 10.0.0.4 del\n"
        "lb as 192.0.2.1/32 protocol tcp port 80 10.0.0.3 10.0.0.4 weight 0",
    ]
    assert told == [first, second]
    assert outcome.done == [*first.members, *second.members]
    assert not outcome.rest


@pytest.mark.parametrize("answer", [(0, ""), (-1, "unknown input `lb as'\n"), (0, KNOWN[1])])
async def test_a_cli_that_answers_otherwise_gets_no_command(answer: tuple[int, str]) -> None:
    client = FakeClient(answers=[answer])
    executor = Executor(cast(VppClient, client), Pacer(Clock(), max_stall_ns=PLENTY, max_duty=1.0))
    assert executor.commands_usable
    steps = [weight(9, 1, 2), commands(0, 1, 1, 2), commands(1, 0, 3, 4)]
    outcome = await executor.run(steps, budget_ns=PLENTY, on_done=lambda step: None)
    assert len(client.texts) == 1
    assert not executor.commands_usable
    assert outcome.done == steps[:1]
    assert list(outcome.rest) == steps[1:]
    client.connects += 1
    assert executor.commands_usable


async def test_a_vip_that_is_gone_says_nothing_of_the_cli() -> None:
    client = FakeClient(answers=[GONE])
    step, other = commands(0, 1, 1, 2), commands(0, 1, 1, 2, vip=API)
    outcome, told = await run(client, [step, other])
    assert not told
    assert outcome.broken == [WWW]
    assert list(outcome.rest) == [step, other]


@pytest.mark.parametrize("answer", [(-1, "lb as: lb_vip_del_ass error -6\n"), (0, "surprise\n"), (-1, "")])
async def test_an_error_in_the_answer_ends_the_run_and_leaves_the_rest_to_another_plan(answer: tuple[int, str]) -> None:
    client = FakeClient(answers=[KNOWN, answer])
    steps = [commands(0, 1, 1, 2), commands(0, 1, 1, 2, vip=API), commands(1, 0, 3, 4), weight(5, 1, 0)]
    outcome, told = await run(client, steps)
    # Commands about another VIP shared the write: they are done.
    assert told == [steps[1]]
    assert list(outcome.rest) == [steps[0], *steps[2:]]
    assert outcome.broken == [WWW]
    assert "2 ASes of VIP 192.0.2.1/32 tcp 80" in outcome.failures[0]
    assert not outcome.refused


async def test_commands_about_one_vip_go_out_one_message_at_a_time_and_never_with_calls() -> None:
    writes: list[int] = []

    class Watched(FakeClient):
        async def send(self, requests: Sequence[Request]) -> list[Reply]:
            writes.append(len(requests))
            return await super().send(requests)

    client = Watched(answers=[KNOWN])
    www, api = commands(0, 1, 1, 2), commands(0, 1, 1, 2, vip=API)
    await run(client, [weight(9, 1, 2), www, api, commands(0, 1, 3, 4), weight(8, 1, 2), weight(7, 1, 2)])
    assert writes == [1, 1, 2, 1, 2]


async def test_guarded_commands_wait_for_an_accepted_raise() -> None:
    raises, drops = commands(0, 1, 1, 2), commands(1, 0, 3, 4, guarded=True)
    outcome, told = await run(FakeClient(answers=[KNOWN]), [raises, drops])
    assert told == [raises, drops]
    outcome, told = await run(FakeClient({0}), [weight(1, 0, 1), drops])
    assert outcome.skipped == [drops]
    assert not told


async def test_an_answer_that_is_no_answer_drops_the_connection() -> None:
    class Garbled(FakeClient):
        async def send(self, requests: Sequence[Request]) -> list[Reply]:
            return [Reply(0, b"\0\0\0\0\0\0\0\7x")]

    client = Garbled()
    with pytest.raises(ProtocolError):
        await run(client, [commands(0, 1, 1, 2)])
    assert client.dropped


def test_what_lines_cost_is_learned_from_the_probe_and_from_answers() -> None:
    meter = LineMeter()
    meter.probed(1_100_000)
    assert meter.per_line == 1_000_000
    meter.measured(cost_ns=2_100_000, lines=2, took_ns=200_000)
    assert 10_000 <= meter.per_line < 1_000_000
    per_line = meter.per_line = 40_000.0
    meter.measured(cost_ns=10_080_000, lines=2, took_ns=5_080_000)
    assert meter.factor == pytest.approx(0.85)
    assert meter.per_line == per_line
    meter.measured(cost_ns=10_080_000, lines=2, took_ns=20_080_000)
    assert 0.85 < meter.factor < 0.9
    # A long wait for little work is the socket's, or this side's.
    factor = meter.factor
    meter.measured(cost_ns=900_000, lines=2, took_ns=50_000_000)
    assert meter.factor == factor
