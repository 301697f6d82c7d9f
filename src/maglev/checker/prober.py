"""Commands to the probe engine, and the backends that its answers are about.

Owns the health checks as the engine knows them, the table from a target to its backend, and the traces. It decides
nothing about states: ``backends`` says when a backend is to be probed, in which state, and what a verdict means.

Everything runs on the event loop. The engine runs in another thread and applies commands at its next tick, so it may
still report what it found before a command. Such a report carries an older generation and is dropped (``backend_of``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from maglev._probe import Result, TargetInfo, Transition
from maglev.base import logs
from maglev.base.clock import Clock
from maglev.base.events import LogEvent
from maglev.base.states import Code, State
from maglev.checker.backend import Check, LiveBackend
from maglev.checker.engine import ProbeEngine
from maglev.config.model import HealthCheck

log = logs.get(__name__)


@dataclass(slots=True)
class Spread:
    """Spreads the first probes of a check's targets evenly over ``span_ns``; all at once would be a burst."""

    span_ns: int
    count: int = 0
    given: int = 0

    def next(self) -> int:
        """The delay of the next target's first probe, in nanoseconds."""
        delay = self.span_ns * self.given // max(1, self.count)
        self.given += 1
        return min(delay, self.span_ns)


class Prober:
    """The engine as the checker uses it. A backend has a target while it is probed or paused (``LiveBackend.target``).

    If the engine refuses a backend or its check, the backend keeps its state, and ``trouble`` says why it is not
    probed: that is trouble on this host, and no verdict.
    """

    def __init__(self, engine: ProbeEngine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        self._targets: dict[int, LiveBackend] = {}
        self._checks: Mapping[str, Check] = {}
        self._retired: list[Check] = []
        self._traced: dict[str, int] = {}

    # ------------------------------------------------------------------------------------------------------- checks

    @property
    def checks(self) -> Mapping[str, Check]:
        """The checks of the configuration in force, by name."""
        return self._checks

    def checks_for(self, specs: Mapping[str, HealthCheck]) -> dict[str, Check]:
        """The checks of another configuration, by name. A check that did not change stays the same object."""
        checks: dict[str, Check] = {}
        for name, spec in specs.items():
            known = self._checks.get(name)
            checks[name] = known if known is not None and known.spec == spec else Check(spec)
        return checks

    def use(self, checks: Mapping[str, Check]) -> None:
        """These are in force now. Backends may still use the old ones, until ``release_old_checks``."""
        self._retired = [check for name, check in self._checks.items() if checks.get(name) is not check]
        self._checks = checks

    def release_old_checks(self) -> None:
        """Every backend has its new check: the engine forgets the old ones."""
        for check in self._retired:
            if check.id >= 0:
                self._engine.remove_check(check.id)
                check.id = -1
        self._retired = []

    def reread_authorities(self) -> None:
        """Read the files of certificate authorities again: one may have changed though its name has not."""
        self._engine.reread_authorities()

    def _id_of(self, check: Check) -> int:
        """The engine's number of a check, which it is given at the first use; -1 if the engine refuses it."""
        if check.id < 0 and not check.problem:
            try:
                check.id = self._engine.add_check(check.spec)
            except (ValueError, RuntimeError, OSError, MemoryError) as error:
                check.problem = f"health check {check.spec.name}: {error}"
                log.error(
                    "healthcheck-refused",
                    f"the probe engine refuses health check {check.spec.name}: {error}",
                    healthcheck=check.spec.name,
                )
        return check.id

    # ------------------------------------------------------------------------------------------------------ targets

    def start(self, live: LiveBackend, check: Check, delay_ns: int) -> None:
        """Probe a backend from unknown. A target that was paused is used again, with its counts."""
        if live.target >= 0:
            self._engine.resume_target(live.target, state=State.UNKNOWN, first_delay=delay_ns)
        else:
            self._join(live, check, State.UNKNOWN, delay_ns)

    def halt(self, live: LiveBackend, *, forget: bool) -> None:
        """Send no more probes. The target stays with its counts, unless it is to ``forget`` them."""
        if live.target >= 0:
            if forget:
                self.stop(live)
            elif live.probed:
                self._engine.pause_target(live.target)
        _no_trouble(live)

    def change_check(self, live: LiveBackend, check: Check, spread: Spread | None) -> None:
        """Go on with another check in the present state."""
        if live.target < 0:
            # It was static, or the engine did not take its check before.
            self._join(live, check, live.state, spread.next() if spread is not None else 0)
            return
        check_id = self._id_of(check)
        if check_id >= 0:
            _no_trouble(live)
            self._engine.change_check(live.target, check_id)
        else:
            self.stop(live)
            self._has_trouble(live, check.problem)

    def stop(self, live: LiveBackend) -> None:
        """Probe a backend no longer, and give its target back."""
        if live.target >= 0:
            self._engine.remove_target(live.target)
            del self._targets[live.target]
            live.target = -1

    def presume(self, live: LiveBackend, good: bool) -> None:
        """While a backend is unknown: presume it good, so that ``fall`` failures bring it down, or take that back."""
        if live.target >= 0:
            live.presumed = good
            self._engine.presume(live.target, good)

    def _join(self, live: LiveBackend, check: Check, state: State, delay_ns: int) -> None:
        check_id = self._id_of(check)
        if check_id < 0:
            self._has_trouble(live, check.problem)
            return
        try:
            live.target = self._engine.add_target(check_id, live.conf.address.packed, state=state, first_delay=delay_ns)
        except (RuntimeError, MemoryError, OSError) as error:
            self._has_trouble(live, f"the probe engine cannot take it: {error}")
            return
        self._targets[live.target] = live
        _no_trouble(live)
        if live.name in self._traced:
            self._engine.trace(live.target, True)

    def _has_trouble(self, live: LiveBackend, why: str) -> None:
        if not live.trouble:
            live.trouble_since_ns = self._clock.time_ns()
        live.trouble = why

    # ------------------------------------------------------------------------------------------------ what it reports

    def backend_of(self, transition: Transition) -> LiveBackend | None:
        """The backend that a verdict is about; None if a command has made the verdict obsolete meanwhile."""
        live = self._targets.get(transition.target)
        if live is None or not live.probed or self._engine.generation(transition.target) != transition.generation:
            return None
        return live

    def info(self, live: LiveBackend) -> TargetInfo | None:
        """The engine's knowledge of a backend; None while it has no target."""
        return self._engine.target_info(live.target) if live.target >= 0 else None

    def records(self) -> tuple[bytes, Mapping[int, LiveBackend]]:
        """The engine's records of all targets at one moment (``engine.RECORD``), and their backends by target."""
        return self._engine.snapshot(), dict(self._targets)

    # ------------------------------------------------------------------------------------------------------- traces

    def trace(self, live: LiveBackend, current: Callable[[str], LiveBackend | None]) -> Callable[[], None]:
        """Have the engine report every probe of a backend; the returned function ends that.

        Counted by name: two traces of one backend end with the second, and a trace goes on over a reload that removes
        the backend and one that brings it back. ``current``: the backend of a name at the end of the trace.
        """
        name = live.name
        self._traced[name] = self._traced.get(name, 0) + 1
        if self._traced[name] == 1 and live.target >= 0:
            self._engine.trace(live.target, True)
        ended = False

        def end() -> None:
            nonlocal ended
            if ended:
                return
            ended = True
            self._traced[name] -= 1
            if self._traced[name]:
                return
            del self._traced[name]
            now = current(name)
            if now is not None and now.target >= 0:
                self._engine.trace(now.target, False)

        return end

    def traced(self, result: Result) -> LogEvent | None:
        """The log record of a single probe; None if the trace has ended meanwhile."""
        live = self._targets.get(result.target)
        if live is None or live.name not in self._traced:
            return None
        outcome = "pass" if result.passed else "fail"
        code = Code(result.code)
        return LogEvent(
            level="debug",
            event="probe",
            message=f"probe of {live.name}: {outcome} {code}",
            at_ns=result.at_ns,
            fields={
                "backend": live.name,
                "address": live.address,
                "result": outcome,
                "code": str(code),
                "detail": result.detail,
                "rtt_ns": str(result.rtt_ns),
                "state": str(State(result.state)),
                "counter": str(result.counter),
            },
        )


class Spectator(Prober):
    """The prober of a checker that only tries something out: no command reaches the engine."""

    def __init__(self, prober: Prober) -> None:
        super().__init__(prober._engine, prober._clock)
        self._checks = prober._checks

    def start(self, live: LiveBackend, check: Check, delay_ns: int) -> None:
        """Nothing is probed."""

    def halt(self, live: LiveBackend, *, forget: bool) -> None:
        """Nothing is probed."""

    def change_check(self, live: LiveBackend, check: Check, spread: Spread | None) -> None:
        """Nothing is probed."""

    def stop(self, live: LiveBackend) -> None:
        """The copy of the backend has no target any longer; the engine goes on."""
        live.target = -1

    def presume(self, live: LiveBackend, good: bool) -> None:
        """The copy of the backend is presumed good, or no longer."""
        live.presumed = good


def _no_trouble(live: LiveBackend) -> None:
    live.trouble = ""
    live.trouble_since_ns = 0
