"""Takes over configurations: the first in one go, each later one prepared in slices while verdicts go on.

``Reloads.run`` is a task. Taking over happens in one turn of the loop, in which every room is brought from one
configuration to the next: no event sees half of it.
"""

from __future__ import annotations

from maglev.base import logs
from maglev.base.clock import Clock
from maglev.base.pace import let_go
from maglev.base.states import State
from maglev.judgement.weights import flush_owed
from maglev.vpp.planning.plan import Cause
from maglev.vpp.state.announced import outdated
from maglev.vpp.state.configured import Transition
from maglev.vpp.sync.executor import Pacer
from maglev.vpp.sync.rooms import Rooms, wait_for

log = logs.get(__name__)

LOOK_AGAIN_SECONDS = 0.1
"""How often a task that waits for the end of a reload looks whether that is overdue."""


class Reloads:
    """Brings the rooms to the configuration that counts."""

    def __init__(self, rooms: Rooms, pacer: Pacer, clock: Clock) -> None:
        self._rooms = rooms
        self._pacer = pacer
        self._clock = clock
        self._forced = False  # a reload that has not been taken over was forced

    def announced(self, *, forced: bool) -> None:
        """A configuration took effect, as an event says: the first is taken over at once, others by the task.

        ``forced``: by an operator. That of the first has no meaning: nothing is there to compare it with.
        """
        if self._rooms.announced.begun:
            self._forced = self._forced or forced
            self._rooms.announced.news.set()
        else:
            self.configure()

    def configure(self) -> None:
        """Take over the configuration in force, in one go."""
        self._take_over(self._rooms.announced.step(self._rooms.mirror.may_serve))

    def heed(self) -> None:
        """Use a configuration that is in force and whose announcement is overdue."""
        if self._rooms.announced.watch():
            log.warning("vpp-config-unannounced", "a configuration is in force that was not announced; it is used now")
            self.configure()

    async def over(self) -> None:
        """Wait for the end of a reload that is under way; no longer than a reload may take."""
        announced = self._rooms.announced
        self.heed()
        while announced.reloading:
            announced.taken.clear()
            await wait_for(announced.taken, LOOK_AGAIN_SECONDS, self._clock)
            self.heed()

    async def run(self) -> None:
        """Take over reloads until cancelled. Verdicts are programmed by the old configuration meanwhile."""
        announced, signals = self._rooms.announced, self._rooms.signals
        while True:
            await announced.news.wait()
            announced.news.clear()
            if not announced.reloading:
                # The same configuration again, or one that an overdue look has taken over already.
                self._agree()
                self._rooms.request_full_sync("reload")
                signals.progress.set()
                continue
            step = await announced.step_in_slices(self._rooms.mirror.may_serve)
            if step is not None:
                self._take_over(step)
                signals.progress.set()
                left = outdated(step)
                del step
                await let_go(left)

    def _take_over(self, step: Transition) -> None:
        """Another configuration counts from now on."""
        rooms = self._rooms
        rooms.announced.take(step)
        config, state_of = step.after.config, rooms.announced.state_of
        lb = config.lb
        self._pacer.max_stall_ns, self._pacer.max_duty = lb.max_stall, lb.max_duty
        rooms.ownership.configure(step.after.vips)
        rooms.pruning.configure(step.before.vips if step.before is not None else frozenset(), step.after.vips)
        self._agree()
        if step.before is None:
            rooms.adoption.begin(config, state_of)
            rooms.ownership.hold_again(rooms.adoption.started_ns + lb.startup_max_delay, config.frontends)
        else:
            rooms.adoption.reload(config.backends, step.inherited, step.rescaled, state_of)
            until = self._clock.monotonic_ns() + lb.startup_max_delay
            rooms.ownership.hold(step.moved, until, config.frontends)
        rooms.adoption.lost.forget_but(step.after.vips)
        rooms.kept.configure(config, step.after.vips)
        self._owe(step)
        rooms.agenda.unpark()
        rooms.agenda.keep(config.frontends)
        rooms.agenda.forget_refusals()
        rooms.recreations.retry()
        rooms.request_full_sync("start" if step.before is None else "reload")

    def _agree(self) -> None:
        """If the reload was forced: what is not in the file may be deleted, as far as it is known by now."""
        if not self._forced:
            return
        self._forced = False
        rooms = self._rooms
        configured, actual = rooms.announced.current.vips, rooms.mirror.actual
        present = actual.vips.keys() if actual is not None else ()
        rooms.pruning.agree((*present, *rooms.ownership.left_by(configured)), configured)

    def _owe(self, step: Transition) -> None:
        """Debts are of configured ASes only. A use that joined may owe a flush by its state, without a transition."""
        debts = self._rooms.debts
        debts.forget_but(step.flushes)
        for backend, use in step.joined:
            # Its AS may be there since an earlier reload, with flows: what was owed to it left the file with it.
            state = self._rooms.announced.state_for(use.frontend, backend)
            if flush_owed(state, flush_on_down=use.flush_on_down):
                debts.owe(use.flush, Cause.DOWN if state is State.DOWN else Cause.OPERATOR)
