"""Carries out a plan, at a pace that leaves VPP time for packets.

VPP executes all calls that it has read from a socket before anything else runs in its main thread, and the workers
stand still during most of them. So one write to the socket carries at most ``max-stall`` of estimated work (a single
call may exceed that), and the next write waits until the work so far takes at most ``max-duty`` of the time. The first
write after a pause goes out at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from maglev.base import logs
from maglev.base.clock import Clock
from maglev.vpp.planning.plan import NO_REFUSALS, Op, RefusalKey, Refusals, Step, refusal_key
from maglev.vpp.wire.client import VppClient
from maglev.vpp.wire.messages import (
    REPLY_PAYLOAD,
    VipKey,
    WeightCall,
    pack_as_add,
    pack_as_del,
    pack_conf,
    pack_flush_vip,
    pack_vip_add,
    pack_vip_del,
    pack_vip_dump,
    retval_text,
    unpack_vip_details,
)
from maglev.vpp.wire.transport import WINDOW, Reply, Request, set_weight

log = logs.get(__name__)

FACTOR_LEAST, FACTOR_MOST = 1 / 64, 4.0
SHARE_DOWN, SHARE_UP = 0.3, 0.05
"""Weights of a measurement below and above the estimate. One above it may be a delay on this side, and counts less."""
MEANINGFUL_NS = 1_000_000
"""If the estimate is below this, a long wait for replies is due to the socket rather than to the work."""


class Pacer:
    """Spreads work over time: after work that takes ``c``, the next work is due ``c / duty`` later.

    ``factor`` calibrates the estimates against measured reply times. VPP replies after the work is done, so a
    measurement below the estimate always counts. One above it counts only if the estimate is not tiny.
    """

    def __init__(self, clock: Clock, *, max_stall_ns: int, max_duty: float) -> None:
        self.max_stall_ns = max_stall_ns
        self.max_duty = max_duty
        self.factor = 1.0
        self.spent_ns = 0
        self._clock = clock
        self._free_ns = 0

    async def turn(self) -> None:
        """Wait until the next piece of work is due."""
        while (wait := self._free_ns - self._clock.monotonic_ns()) > 0:
            await self._clock.sleep(wait / 1e9)

    def start(self, cost_ns: int) -> int:
        """A piece of work with this estimate starts now; returns the time for ``measured``."""
        now = self._clock.monotonic_ns()
        self._free_ns = max(now, self._free_ns) + int(cost_ns / self.max_duty)
        self.spent_ns += cost_ns
        return now

    def measured(self, cost_ns: int, began_ns: int) -> None:
        """The last reply to the work that ``start`` began has arrived."""
        took = self._clock.monotonic_ns() - began_ns
        if cost_ns <= 0 or (took > cost_ns and cost_ns < MEANINGFUL_NS):
            return
        target = self.factor * took / cost_ns
        self.factor += (SHARE_UP if target > self.factor else SHARE_DOWN) * (target - self.factor)
        self.factor = min(FACTOR_MOST, max(FACTOR_LEAST, self.factor))


@dataclass(slots=True)
class Outcome:
    """The result of a plan.

    ``done``: steps that VPP has acknowledged. ``failures``: refusals in words. ``refused``: the refused steps.
    ``skipped``: guarded drops that were not sent, since no raise before them was accepted. ``rest``: steps that were
    not sent, since the budget was used up.
    """

    done: list[Step] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    refused: set[RefusalKey] = field(default_factory=set)
    skipped: list[Step] = field(default_factory=list)
    rest: Sequence[Step] = ()


class _Run:
    """One plan while it is carried out: its next step, its outcome so far, and the VIPs in which VPP has accepted one.

    A step depends on the steps before it in two cases, and is then not put into one write with them: their replies
    must be in first. A guarded drop needs an accepted raise in its VIP, or it would empty the VIP. ``lb_flush_vip``
    needs proof that VPP has the VIP: for an unknown one, VPP would use an uninitialised index and may crash. An
    accepted step in the VIP is proof; without one, ``exists`` asks VPP.
    """

    def __init__(
        self, steps: Sequence[Step], skip: Refusals, exists: Callable[[VipKey | None], Awaitable[bool]]
    ) -> None:
        self.outcome = Outcome()
        self._steps = steps
        self._position = 0
        self._skip = skip
        self._exists = exists
        self._accepted: set[VipKey | None] = set()
        self._raised: set[VipKey | None] = set()

    @property
    def left(self) -> Sequence[Step]:
        """Steps of which nothing has been decided yet."""
        return self._steps[self._position :]

    async def next_chunk(self, max_stall_ns: int) -> list[Step]:
        """The steps of the next write: at most ``WINDOW``, with at most this estimated work unless it is one step.

        Empty only if no step is left.
        """
        chunk: list[Step] = []
        cost = 0
        while len(chunk) < WINDOW and (step := self._skip_refused()) is not None:
            if chunk and (step.guarded or step.op is Op.FLUSH_VIP or cost + step.cost_ns > max_stall_ns):
                break
            self._position += 1
            if step.guarded and step.vip not in self._raised:
                self._hold(step)
            elif step.op is Op.FLUSH_VIP and step.vip not in self._accepted and not await self._exists(step.vip):
                self.refused(step, f"{step}: not sent, the VIP is gone")
            else:
                chunk.append(step)
                cost += step.cost_ns
        return chunk

    def accepted(self, step: Step) -> None:
        """VPP has accepted a step."""
        self.outcome.done.append(step)
        self._accepted.add(step.vip)
        if step.weight > step.old_weight:
            self._raised.add(step.vip)

    def refused(self, step: Step, why: str) -> None:
        """VPP has refused a step, or would have crashed on it. ``why``: the step and the reason, in words."""
        self.outcome.failures.append(why)
        self.outcome.refused.add(refusal_key(step))

    def _skip_refused(self) -> Step | None:
        """Advance to the next step that VPP has not refused lately."""
        while self._position < len(self._steps):
            step = self._steps[self._position]
            if not self._skip or refusal_key(step) not in self._skip.get(step.vip, ()):
                return step
            self._position += 1
        return None

    def _hold(self, step: Step) -> None:
        """VPP refused every raise before this drop: without it, the VIP still serves."""
        self.outcome.skipped.append(step)
        log.warning("vpp-drop-held", f"not sent, since nothing took over: {step}", vip=str(step.vip))


class Executor:
    """Sends steps."""

    def __init__(self, client: VppClient, pacer: Pacer) -> None:
        self.refusals = 0
        self._client = client
        self._pacer = pacer

    async def run(
        self, steps: Sequence[Step], *, budget_ns: int, on_done: Callable[[Step], None], skip: Refusals = NO_REFUSALS
    ) -> Outcome:
        """Send ``steps`` in order until about ``budget_ns`` of estimated work is done.

        ``on_done`` is called with each step as VPP acknowledges it, in order.

        ``skip``: steps that VPP has refused lately; they are not sent again now. A refusal is logged and counted, and
        does not stop the steps after it. A lost connection raises ``Unavailable``, even if the client has a new one by
        then: that may lead to another VPP than the one that the plan was made for.
        """
        connects = self._client.connects
        run = _Run(steps, skip, self._exists)
        spent = 0
        while spent < budget_ns:
            chunk = await run.next_chunk(self._pacer.max_stall_ns)
            if not chunk:
                break
            cost = sum(step.cost_ns for step in chunk)
            spent += cost
            await self._pacer.turn()
            self._client.still_connected(connects)
            for step, reply in zip(chunk, await self._send(chunk, cost), strict=True):
                if reply.retval == 0:
                    run.accepted(step)
                    on_done(step)
                else:
                    run.refused(step, self._refusal(step, reply.retval))
        run.outcome.rest = run.left
        return run.outcome

    async def _send(self, chunk: Sequence[Step], cost: int) -> Sequence[Reply]:
        requests = [_request(step) for step in chunk]
        began = self._pacer.start(cost)
        replies = await self._client.send(requests)
        self._pacer.measured(cost, began)
        return replies

    def _refusal(self, step: Step, retval: int) -> str:
        """Count and log a refusal; returns it in words."""
        self.refusals += 1
        why = f"{step}: {retval_text(retval)}"
        log.error("vpp-refused", f"VPP refused {why}", msg=step.call, retval=retval, vip=str(step.vip or ""))
        return why

    async def _exists(self, key: VipKey | None) -> bool:
        bodies = await self._client.dump("lb_vip_dump", pack_vip_dump())
        return any(unpack_vip_details(body[REPLY_PAYLOAD:]).key == key for body in bodies)


def _request(step: Step) -> Request:
    if step.op is Op.SET_CONF:
        assert step.conf is not None
        conf = step.conf
        return Request(
            "lb_conf",
            pack_conf(conf.ip4_src_address, conf.ip6_src_address, conf.sticky_buckets_per_core, conf.flow_timeout),
        )
    assert step.vip is not None
    if step.op is Op.SET_WEIGHT:
        return set_weight(WeightCall(step.vip, step.address, step.weight, step.flush))
    if step.op is Op.ADD_AS:
        return Request("lb_add_del_as_v2", pack_as_add(step.vip, step.address, step.weight))
    if step.op is Op.DELETE_AS:
        return Request("lb_add_del_as_v2", pack_as_del(step.vip, step.address, flush=step.flush))
    if step.op is Op.CREATE_VIP:
        payload = pack_vip_add(step.vip, step.encap, step.length, src_ip_sticky=step.sticky)
        return Request("lb_add_del_vip_v2", payload)
    if step.op is Op.DELETE_VIP:
        return Request("lb_add_del_vip_v2", pack_vip_del(step.vip))
    return Request("lb_flush_vip", pack_flush_vip(step.vip))
