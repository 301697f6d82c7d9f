"""Carries out a plan, at a pace that leaves VPP time for packets.

VPP executes all calls that it has read from a socket before anything else runs in its main thread, and the workers
stand still during most of them. So one write to the socket carries at most ``max-stall`` of estimated work (a single
call may exceed that), and the next write waits until the work so far takes at most ``max-duty`` of the time. The first
write after a pause goes out at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from maglev.base import logs
from maglev.base.clock import Clock
from maglev.vpp.planning.plan import NO_REFUSALS, Op, RefusalKey, Refusals, Step, refusal_key
from maglev.vpp.sync.commandline import (
    FACTOR_LEAST,
    FACTOR_MOST,
    MEANINGFUL_NS,
    CommandLine,
    LineMeter,
    blended,
)
from maglev.vpp.wire.client import VppClient
from maglev.vpp.wire.messages import (
    REPLY_PAYLOAD,
    VipKey,
    WeightCall,
    pack_as_add,
    pack_as_del,
    pack_cli,
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


class Pacer:
    """Spreads work over time: after work that takes ``c``, the next work is due ``c / duty`` later.

    ``factor`` calibrates the estimates against measured reply times. VPP replies after the work is done, so a
    measurement below the estimate always counts. One above it counts only if the estimate is not tiny.
    """

    def __init__(self, clock: Clock, *, max_stall_ns: int, max_duty: float) -> None:
        self.max_stall_ns = max_stall_ns
        self.max_duty = max_duty
        self.factor = 1.0
        self.lines = LineMeter()
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
        self.factor = blended(self.factor, self.factor * took / cost_ns)
        self.factor = min(FACTOR_MOST, max(FACTOR_LEAST, self.factor))

    def commanded(self, cost_ns: int, lines: int, began_ns: int) -> None:
        """The last answer to commands, of so many lines, that ``start`` began has arrived."""
        self.lines.measured(cost_ns, lines, self._clock.monotonic_ns() - began_ns)

    @property
    def clock(self) -> Clock:
        """The clock that measures."""
        return self._clock


@dataclass(slots=True)
class Outcome:
    """The result of a plan.

    ``done``: steps that VPP has acknowledged. ``failures``: refusals in words. ``refused``: the refused steps.
    ``skipped``: guarded drops that were not sent, since no raise before them was accepted. ``rest``: steps that were
    not sent, since the budget was used up, or since commands failed: they wait for another plan. ``broken``: VIPs in
    which commands failed.
    """

    done: list[Step] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    refused: set[RefusalKey] = field(default_factory=set)
    skipped: list[Step] = field(default_factory=list)
    rest: Sequence[Step] = ()
    broken: list[VipKey] = field(default_factory=list)


class _Run:
    """One plan while it is carried out: its next step, its outcome so far, and the VIPs in which VPP has accepted one.

    A step depends on the steps before it in three cases, and is then not put into one write with them: their replies
    must be in first. A guarded drop needs an accepted raise in its VIP, or it would empty the VIP. ``lb_flush_vip``
    needs proof that VPP has the VIP: for an unknown one, VPP would use an uninitialised index and may crash. An
    accepted step in the VIP is proof; without one, ``exists`` asks VPP. And commands that failed change what the later
    steps of their VIP were planned for, so commands about one VIP go out one message at a time. They never share a
    write with calls: the two have a calibration each.
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
        self._unsent: list[Step] = []

    async def next_chunk(self, max_stall_ns: int) -> list[Step]:
        """The steps of the next write: at most ``WINDOW``, with at most this estimated work unless it is one step.

        Empty only if no step is left.
        """
        chunk: list[Step] = []
        cost = 0
        while len(chunk) < WINDOW and (step := self._skip_refused()) is not None:
            if chunk and (_waits(step, chunk) or cost + step.cost_ns > max_stall_ns):
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
        if step.op is Op.COMMANDS:
            self.outcome.done.extend(step.members)
        else:
            self.outcome.done.append(step)
        self._accepted.add(step.vip)
        if step.weight > step.old_weight:
            self._raised.add(step.vip)

    def refused(self, step: Step, why: str) -> None:
        """VPP has refused a step, or would have crashed on it. ``why``: the step and the reason, in words."""
        self.outcome.failures.append(why)
        self.outcome.refused.add(refusal_key(step))

    def broken(self, step: Step, why: str) -> None:
        """Commands have failed, or were not sent. ``why``: in words; empty if that is no failure of VPP."""
        assert step.vip is not None
        if why:
            self.outcome.failures.append(why)
        self.outcome.broken.append(step.vip)
        self.unsent([step])

    def unsent(self, steps: Iterable[Step]) -> None:
        """These steps of the last write must be planned again."""
        self._unsent.extend(steps)

    def end(self) -> Outcome:
        """The outcome. Steps that were not sent, or failed as commands, are its rest."""
        self.outcome.rest = [*self._unsent, *self._steps[self._position :]]
        return self.outcome

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


def _waits(step: Step, chunk: Sequence[Step]) -> bool:
    """Whether a step needs the replies to steps of the write before it, or may not share that write."""
    if step.guarded or step.op is Op.FLUSH_VIP:
        return True
    if step.op is not Op.COMMANDS:
        return chunk[0].op is Op.COMMANDS
    return chunk[0].op is not Op.COMMANDS or any(before.vip == step.vip for before in chunk)


class Executor:
    """Sends steps."""

    def __init__(self, client: VppClient, pacer: Pacer) -> None:
        self.refusals = 0
        self._command_line = CommandLine(client, pacer.clock, pacer.lines)
        self._client = client
        self._pacer = pacer

    @property
    def commands_usable(self) -> bool:
        """Whether many ASes may change by commands: nothing speaks against it on this connection."""
        return self._command_line.usable

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
        while spent < budget_ns and not run.outcome.broken:
            chunk = await run.next_chunk(self._pacer.max_stall_ns)
            if not chunk:
                break
            cost = sum(step.cost_ns for step in chunk)
            spent += cost
            await self._pacer.turn()
            self._client.still_connected(connects)
            if chunk[0].op is Op.COMMANDS:
                await self._command(run, chunk, cost, on_done)
                continue
            for step, reply in zip(chunk, await self._send(chunk, cost), strict=True):
                if reply.retval == 0:
                    run.accepted(step)
                    on_done(step)
                else:
                    run.refused(step, self._refusal(step, reply.retval))
        return run.end()

    async def _send(self, chunk: Sequence[Step], cost: int) -> Sequence[Reply]:
        requests = [_request(step) for step in chunk]
        began = self._pacer.start(cost)
        replies = await self._client.send(requests)
        self._pacer.measured(cost, began)
        return replies

    async def _command(self, run: _Run, chunk: Sequence[Step], cost: int, on_done: Callable[[Step], None]) -> None:
        """Send commands, each about another VIP, and pass on what VPP accepted. A failure ends the run.

        Single calls then do the rest, by a plan that is made from a new reading of the VIP.
        """
        assert chunk[0].vip is not None
        if not await self._command_line.recognised(chunk[0].vip):
            run.broken(chunk[0], "")
            run.unsent(chunk[1:])
            return
        texts = [step.commands for step in chunk]
        began = self._pacer.start(cost)
        replies = await self._client.send([Request("cli_inband", pack_cli(text)) for text in texts])
        self._pacer.commanded(cost, sum(text.count("\n") + 1 for text in texts), began)
        for step, reply in zip(chunk, replies, strict=True):
            error = self._command_line.error_in(reply)
            if error:
                run.broken(step, self._failed(step, error))
            else:
                run.accepted(step)
                on_done(step)

    def _failed(self, step: Step, error: str) -> str:
        """Count and log commands that failed; returns that in words."""
        self.refusals += 1
        why = f"commands about {len(step.members)} ASes of VIP {step.vip}: {error}"
        log.error("vpp-refused", f"VPP refused {why}; single calls follow", msg=step.call, vip=str(step.vip or ""))
        return why

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
