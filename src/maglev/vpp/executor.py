"""Carries out a plan: few calls in flight by their estimated cost, over time no more than VPP can spare.

VPP works off what it has read from a socket without letting anything else run, packets included. So a write holds at
most ``max-stall`` of estimated work (one call may always go), and the next one waits until the work so far is at most
``max-duty`` of the time. The first write after a pause goes out at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from maglev.base import logs
from maglev.base.clock import Clock
from maglev.vpp.client import VppClient
from maglev.vpp.messages import (
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
from maglev.vpp.plan import Op, Step
from maglev.vpp.transport import WINDOW, Request, set_weight

log = logs.get(__name__)

FACTOR_LEAST, FACTOR_MOST = 1 / 64, 4.0
SHARE_DOWN, SHARE_UP = 0.3, 0.05
"""How much a measurement counts. One above the estimate may as well be a delay on this side: those count little."""
MEANINGFUL_NS = 1_000_000
"""Below this estimate a long wait for replies says more about the socket than about the work."""


class Pacer:
    """Spreads work over time: after work of ``c`` nothing is due for ``c / duty``.

    ``factor`` is the calibration of the estimates against measured reply times. A reply cannot come before the work is
    done, so a measurement below the estimate always counts; one above it only where the estimate is not tiny.
    """

    def __init__(self, clock: Clock, *, max_stall_ns: int, max_duty: float) -> None:
        self.max_stall_ns = max_stall_ns
        self.max_duty = max_duty
        self.factor = 1.0
        self.spent_ns = 0
        self._clock = clock
        self._free_ns = 0

    async def turn(self) -> None:
        """Wait until the next piece of work may go."""
        while (wait := self._free_ns - self._clock.monotonic_ns()) > 0:
            await self._clock.sleep(wait / 1e9)

    def start(self, cost_ns: int) -> int:
        """A piece of work of this estimate goes now; returns the moment for ``measured``."""
        now = self._clock.monotonic_ns()
        self._free_ns = max(now, self._free_ns) + int(cost_ns / self.max_duty)
        self.spent_ns += cost_ns
        return now

    def measured(self, cost_ns: int, began_ns: int) -> None:
        """Its last reply is in."""
        took = self._clock.monotonic_ns() - began_ns
        if cost_ns <= 0 or (took > cost_ns and cost_ns < MEANINGFUL_NS):
            return
        target = self.factor * took / cost_ns
        self.factor += (SHARE_UP if target > self.factor else SHARE_DOWN) * (target - self.factor)
        self.factor = min(FACTOR_MOST, max(FACTOR_LEAST, self.factor))


RefusalKey = tuple[Op, VipKey | None, bytes]
Refusals = Mapping[VipKey | None, Collection[RefusalKey]]
NO_REFUSALS: Refusals = {}


def refusal_key(step: Step) -> RefusalKey:
    """The key by which a refused step is found again."""
    return (step.op, step.vip, step.address)


@dataclass(slots=True)
class Outcome:
    """The outcome of a plan. ``rest``: steps that were not sent, since the budget was used up."""

    done: list[Step] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    refused: set[RefusalKey] = field(default_factory=set)
    skipped: list[Step] = field(default_factory=list)
    rest: Sequence[Step] = ()


class Executor:
    """Sends steps."""

    def __init__(self, client: VppClient, pacer: Pacer) -> None:
        self.refusals = 0
        self.calls = 0
        self._client = client
        self._pacer = pacer

    async def run(
        self, steps: Sequence[Step], *, budget_ns: int, on_done: Callable[[Step], None], skip: Refusals = NO_REFUSALS
    ) -> Outcome:
        """Send ``steps`` in order until about ``budget_ns`` of estimated work is done.

        ``on_done`` is called with each step as VPP acknowledges it, in order.
        ``skip``: what was refused lately and is not to be tried again now. A refusal is logged, counted, and does not
        stop the rest; a lost connection raises ``Unavailable``, also if there is another one by then: what was planned
        for one VPP is not sent to the next.
        """
        outcome = Outcome()
        connects = self._client.connects
        accepted: set[VipKey | None] = set()  # VIPs of which VPP has accepted a step of this plan
        raised: set[VipKey | None] = set()
        spent = position = 0
        while position < len(steps):
            if spent >= budget_ns:
                outcome.rest = steps[position:]
                break
            chunk: list[Step] = []
            cost = 0
            while position < len(steps) and len(chunk) < WINDOW:
                step = steps[position]
                if refusal_key(step) in skip.get(step.vip, ()):
                    position += 1
                    continue
                if chunk and (
                    step.guarded or step.op is Op.FLUSH_VIP or cost + step.cost_ns > self._pacer.max_stall_ns
                ):
                    break
                if step.guarded and step.vip not in raised:
                    # Every raise before it was refused: this drop would leave the VIP without a live AS.
                    outcome.skipped.append(step)
                    log.warning("vpp-drop-held", f"not sent, since nothing took over: {step}", vip=str(step.vip))
                    position += 1
                    continue
                if step.op is Op.FLUSH_VIP and step.vip not in accepted and not await self._exists(step.vip):
                    # VPP would use an uninitialised index.
                    outcome.failures.append(f"{step}: not sent, the VIP is gone")
                    outcome.refused.add(refusal_key(step))
                    position += 1
                    continue
                chunk.append(step)
                cost += step.cost_ns
                position += 1
            if not chunk:
                continue
            spent += cost
            await self._pacer.turn()
            self._client.still_connected(connects)
            await self._send(chunk, cost, outcome, on_done)
            for step in chunk:
                if refusal_key(step) not in outcome.refused:
                    accepted.add(step.vip)
                    if step.weight > step.old_weight:
                        raised.add(step.vip)
        return outcome

    async def _send(self, chunk: Sequence[Step], cost: int, outcome: Outcome, on_done: Callable[[Step], None]) -> None:
        requests = [_request(step) for step in chunk]
        began = self._pacer.start(cost)
        replies = await self._client.send(requests)
        self._pacer.measured(cost, began)
        self.calls += len(chunk)
        for step, reply in zip(chunk, replies, strict=True):
            if reply.retval == 0:
                outcome.done.append(step)
                on_done(step)
                continue
            self.refusals += 1
            why = f"{step}: {retval_text(reply.retval)}"
            outcome.failures.append(why)
            outcome.refused.add(refusal_key(step))
            log.error(
                "vpp-refused",
                f"VPP refused {why}",
                msg=step.call,
                retval=reply.retval,
                vip=str(step.vip or ""),
            )

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
