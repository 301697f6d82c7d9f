"""Decision records: what led to a change of weights, and how far the change has come.

A *cause* is a verdict, an operator's command, a reload, the end of a setting, a mechanism of judgement, drift in VPP,
or a new connection to VPP. It has a number, and its effects are counted under it: backends and frontends that it
concerned, and ASes whose weight changed in VPP because of it, with the time of each stage (planned, accepted by VPP,
read back). Like causes that follow each other closely are one: the failure of a rack is one record, not a thousand.

Effects find their cause by name. A cause is noted for each backend it is about, and for each frontend that uses one of
those. A change of an AS belongs to the newest cause of its backend, if that came after the frontend was last read back
from VPP as it should be. Otherwise it belongs to the newest cause of the frontend (a server of another pool takes
over), or to the newest cause that may concern any frontend (a reload, a connection).

A cause counts a backend, and a frontend, once, however often it concerns them: a server that fails twice within a
second is one. The table of newest causes by name shows whether a name was counted already. A name that went on to
another cause, while others could still join the first, is kept with the first (``_left``).

Memory is bounded: ``MOST`` causes, of each some counters and a few names. No object is made for a single verdict: the
tables by name hold the numbers of the causes.

Everything here runs on the event loop.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterable, Sequence

from maglev.base.clock import Clock
from maglev.base.events import (
    BackendEvent,
    ConfigEvent,
    DrainEvent,
    Event,
    FrontendEvent,
    LogEvent,
    PoolEvent,
    WeightEvent,
)
from maglev.base.states import Code, FrontendState

MOST = 10_000
"""Causes that are remembered."""

FOLD_NS = 1_000_000_000
"""A like cause joins the last one of its kind if it comes within this time of it."""

FOLD_MOST_NS = 30_000_000_000
"""... and within this time of its beginning: a server that flaps for an hour is not one cause."""

MOST_NAMES = 3
"""Names of backends, and of frontends, that a cause keeps."""

MOST_OPEN = 64
"""Kinds of causes that others may join at a time."""

MOST_TEXT = 200
"""Characters of a text that a cause keeps."""

MOST_UNCONFIRMED = 8
"""Causes of one frontend that wait to be read back from VPP."""

EXPIRY = "expiry"
"""The author of an event by which an operator's setting ended."""


class CauseKind(enum.Enum):
    """The kind of a cause."""

    VERDICT = "verdict"
    OPERATOR = "operator"
    RELOAD = "reload"
    EXPIRY = "expiry"
    MECHANISM = "mechanism"
    DRIFT = "drift"
    CONNECTION = "connection"


class Cause:
    """A cause and its effects.

    ``what``: in a word, what happened to the backends or frontends (``down``, ``drained``, ``slow start``). ``code``
    and ``detail``: of the first verdict. ``by`` and ``reason``: an operator's. ``backends`` and ``frontends`` count
    those that it concerned, and ``backend_names`` and ``frontend_names`` have the first few. ``frontends_down`` and
    ``pools_left``: frontends that it left without a server, and that another pool serves because of it.

    ``changes``: changes of ASes that VPP accepted. ``at_ns``, ``last_ns`` (first and last of the folded ones),
    ``planned_ns`` (first), ``accepted_ns`` and ``confirmed_ns`` (last): wall clock; 0: not yet.
    """

    __slots__ = (
        "accepted_ns",
        "at_ns",
        "backend_names",
        "backends",
        "by",
        "changes",
        "code",
        "confirmed_ns",
        "detail",
        "frontend_names",
        "frontends",
        "frontends_down",
        "kind",
        "last_ns",
        "number",
        "planned_ns",
        "pools_left",
        "reason",
        "since_ns",
        "until_ns",
        "what",
    )

    def __init__(self, number: int, kind: CauseKind, what: str, at_ns: int, now_ns: int) -> None:
        self.number = number
        self.kind = kind
        self.what = what
        self.code = Code.NONE
        self.detail = self.by = self.reason = ""
        self.at_ns = self.last_ns = at_ns
        self.since_ns = self.until_ns = now_ns  # monotonic, of the first and the last one
        self.backends = self.frontends = 0
        self.backend_names: tuple[str, ...] = ()
        self.frontend_names: tuple[str, ...] = ()
        self.frontends_down = self.pools_left = 0
        self.changes = 0
        self.planned_ns = self.accepted_ns = self.confirmed_ns = 0

    def __str__(self) -> str:
        match self.kind:
            case CauseKind.VERDICT:
                why = f"{self.code}: {self.detail}" if self.detail and self.backends == 1 else str(self.code)
                objects = _some("backend", self.backends, self.backend_names)
                return f"{objects} {_WENT.get(self.what, self.what)} ({why})"
            case CauseKind.OPERATOR:
                objects = _some("backend", self.backends, self.backend_names)
                return f"{self.by or 'an operator'} {self.what} {objects}" + (f": {self.reason}" if self.reason else "")
            case CauseKind.EXPIRY:
                return f"the time of {_some('setting', self.backends, ())} is over: " + ", ".join(self.backend_names)
            case CauseKind.RELOAD:
                words = "configuration loaded " + _LOADED.get(self.by, f"by {self.by}" if self.by else "anew")
                return words + (f", {_some('backend', self.backends, ())} came or went" if self.backends else "")
            case CauseKind.MECHANISM if self.frontends:
                return f"{self.what}: {_some('frontend', self.frontends, self.frontend_names)}"
            case CauseKind.DRIFT if self.frontends > 1:
                return f"{self.what}, and so of {self.frontends - 1} more"
        return self.what


_WENT = {"down": "went down", "up": "came up"}

_LOADED = {"start": "at the start", "signal": "on SIGHUP"}

_DONE = {
    Code.PAUSED: "paused",
    Code.RESUMED: "resumed",
    Code.DISABLED: "disabled",
    Code.ENABLED: "enabled",
}


def _joinable(cause: Cause, now: int) -> bool:
    return now - cause.until_ns <= FOLD_NS and now - cause.since_ns <= FOLD_MOST_NS


def _some(what: str, many: int, names: Sequence[str]) -> str:
    """``backend web1``, ``3 backends (web1, web2, web3)``, ``5 backends (web1, web2, web3 and 2 more)``."""
    if many == 1:
        return f"{what} {names[0]}" if names else f"1 {what}"
    listed = ", ".join(names) + (f" and {many - len(names)} more" if many > len(names) else "")
    return f"{many} {what}s" + (f" ({listed})" if names else "")


class Trail:
    """Learns from the dataplane how far a change has come. This one follows nothing.

    Frontends and backends have the names that a plan has for them.
    """

    def planned(self, frontends: Iterable[str]) -> None:
        """A plan was made that changes something of these frontends in VPP."""

    def accepted(self, frontend: str, backend: str) -> None:
        """VPP has accepted a change of the AS of ``backend``."""

    def confirmed(self, frontend: str) -> None:
        """The frontend's VIP was read from VPP, and is as it should be. The frontend does not wait to be planned."""

    def drifted(self, frontend: str, words: str) -> None:
        """Another client has changed the frontend's VIP. ``frontend`` empty: a VIP that is not configured."""


NO_TRAIL = Trail()


class Causes(Trail):
    """The last causes.

    ``users``: the frontends that use a backend. ``frontends``: those of the configuration in force.
    """

    def __init__(
        self,
        clock: Clock,
        users: Callable[[str], Sequence[str]],
        frontends: Callable[[], Collection[str]],
        *,
        most: int = MOST,
    ) -> None:
        self._clock = clock
        self._users = users
        self._frontends = frontends
        self._most = most
        self._ring: list[Cause | None] = [None] * most
        self._next = 1
        # The last cause of each key that others may join, in the order in which they began.
        self._open: dict[tuple[object, ...], Cause] = {}
        # By number of each of those: backends, and frontends, that it counted and whose newest cause is another by now.
        self._left: dict[int, tuple[set[str], set[str]]] = {}
        # Numbers of causes: 0 and numbers that are forgotten mean that there is none.
        self._of_backend: dict[str, int] = {}
        self._of_frontend: dict[str, int] = {}
        self._of_all = 0
        # By frontend: the newest cause when it was last read back as it should be.
        self._settled: dict[str, int] = {}
        self._unconfirmed: dict[str, dict[int, None]] = {}

    # ------------------------------------------------------------------------------------------------------ questions

    def __len__(self) -> int:
        """Causes that are remembered."""
        return min(self._next - 1, self._most)

    @property
    def newest(self) -> int:
        """The number of the newest cause; 0 before the first."""
        return self._next - 1

    @property
    def forgotten(self) -> int:
        """Causes since the start that are remembered no longer."""
        return self.newest - len(self)

    def get(self, number: int) -> Cause | None:
        """The cause of that number; None for one that was forgotten or has not happened."""
        return self._ring[number % self._most] if self.forgotten < number < self._next else None

    def age_ns(self, cause: Cause) -> int:
        """How long ago the last of it was."""
        return self._clock.monotonic_ns() - cause.until_ns

    def of_backend(self, name: str) -> Cause | None:
        """The newest cause of a backend; None: there was none, or it is forgotten."""
        return self.get(self._of_backend.get(name, 0))

    def of_frontend(self, name: str) -> Cause | None:
        """The newest cause of a frontend: of a backend of it, or of the frontend itself."""
        return self.get(self._of_frontend.get(name, 0))

    # --------------------------------------------------------------------------------------------------------- events

    def take(self, event: Event) -> int:
        """Note an event of the bus; returns the number of its cause, 0 if it has none."""
        if type(event) is BackendEvent:
            return self._backend(event)
        match event:
            case DrainEvent():
                return self._operated("drained" if event.drained else "undrained", event.name, event)
            case WeightEvent():
                what = "set the file's weight for" if event.to_default else f"set weight {event.new} for"
                what = "" if event.by == EXPIRY else what
                return self._operated(what, event.backend, event, frontends=(event.frontend,))
            case ConfigEvent():
                cause = self._join((CauseKind.RELOAD, event.by), CauseKind.RELOAD, "reload", event.at_ns)
                cause.by = event.by
                self._of_all = cause.number
                self._close([(CauseKind.RELOAD, event.by)])  # another reload is another cause
                self._forget_removed()
                return cause.number
            case FrontendEvent():
                return self._followed(event.name, down=event.to_state is FrontendState.DOWN)
            case PoolEvent():
                return self._followed(event.frontend, fallback=event.fallback)
        return 0

    def _followed(self, frontend: str, *, down: bool = False, fallback: bool = False) -> int:
        """A frontend has another state or pool; returns the number of the cause."""
        cause = self.of_frontend(frontend)
        if cause is None:
            return self._of_all
        cause.frontends_down += down
        cause.pools_left += fallback
        return cause.number

    def notice(self, record: LogEvent) -> int:
        """Note a log record that is remembered as an event; returns the number of its cause, 0 if it has none."""
        if record.event in ("vpp-connected", "vpp-disconnected"):
            cause = self._begin(CauseKind.CONNECTION, record.message[:MOST_TEXT], record.at_ns)
            self._of_all = cause.number
            return cause.number
        if record.event in ("brake-begun", "brake-ended"):
            return self._begin(CauseKind.MECHANISM, record.message[:MOST_TEXT], record.at_ns).number
        return 0

    def judged(self, frontend: str, mechanism: str) -> None:
        """A mechanism of judgement has changed the weights of a frontend by itself, as time has passed."""
        if not mechanism:
            return
        cause = self._join((CauseKind.MECHANISM, mechanism), CauseKind.MECHANISM, mechanism, self._clock.time_ns())
        self._concern(cause, (frontend,))

    def _backend(self, event: BackendEvent) -> int:
        code = event.code
        if event.by == EXPIRY:
            return self._operated(_DONE.get(code, ""), event.name, event)
        if code in (Code.ADDED, Code.REMOVED):
            cause = self._join((CauseKind.RELOAD, event.by), CauseKind.RELOAD, "reload", event.at_ns)
            cause.by = event.by
            if code is Code.ADDED:
                self._note(cause, event.name, self._users(event.name))
            else:
                self._count(cause, event.name)
                self._of_backend.pop(event.name, None)
            return cause.number
        if event.by:
            return self._operated(_DONE.get(code, "changed"), event.name, event)
        return self._verdict(event)

    def _verdict(self, event: BackendEvent) -> int:
        to = event.to_state
        cause = self._join((CauseKind.VERDICT, to, event.code), CauseKind.VERDICT, str(to), event.at_ns)
        if not cause.backends:
            cause.code, cause.detail = event.code, event.detail[:MOST_TEXT]
        self._note(cause, event.name, self._users(event.name))
        return cause.number

    def _operated(
        self,
        what: str,
        backend: str,
        event: BackendEvent | DrainEvent | WeightEvent,
        frontends: Sequence[str] | None = None,
    ) -> int:
        kind = CauseKind.EXPIRY if event.by == EXPIRY else CauseKind.OPERATOR
        cause = self._join((kind, what, event.by, event.reason), kind, what, event.at_ns)
        cause.by, cause.reason = event.by, event.reason[:MOST_TEXT]
        self._note(cause, backend, self._users(backend) if frontends is None else frontends)
        return cause.number

    def _join(self, key: tuple[object, ...], kind: CauseKind, what: str, at_ns: int) -> Cause:
        """The open cause of that key, or a new one."""
        now = self._clock.monotonic_ns()
        cause = self._open.get(key)
        if cause is not None and _joinable(cause, now):
            cause.until_ns, cause.last_ns = now, at_ns
            return cause
        self._close([key for key, one in self._open.items() if not _joinable(one, now)])
        if len(self._open) == MOST_OPEN:
            self._close([next(iter(self._open))])
        self._open[key] = cause = self._begin(kind, what, at_ns)
        self._left[cause.number] = (set(), set())
        return cause

    def _close(self, keys: Iterable[tuple[object, ...]]) -> None:
        """No event joins these causes any more."""
        for key in keys:
            del self._left[self._open.pop(key).number]

    def _begin(self, kind: CauseKind, what: str, at_ns: int) -> Cause:
        cause = Cause(self._next, kind, what, at_ns, self._clock.monotonic_ns())
        self._ring[self._next % self._most] = cause
        self._next += 1
        return cause

    def _note(self, cause: Cause, backend: str, frontends: Iterable[str]) -> None:
        if self._counts(cause.number, self._of_backend, 0, backend):
            self._count(cause, backend)
        self._concern(cause, frontends)

    def _count(self, cause: Cause, backend: str) -> None:
        cause.backends += 1
        if len(cause.backend_names) < MOST_NAMES:
            cause.backend_names = (*cause.backend_names, backend)

    def _concern(self, cause: Cause, frontends: Iterable[str]) -> None:
        number, settled = cause.number, self._settled
        for name in frontends:
            if settled.get(name, 0) >= number:
                # Others have joined the cause since the frontend was read back.
                settled[name] = number - 1
            if self._counts(number, self._of_frontend, 1, name):
                cause.frontends += 1
                if len(cause.frontend_names) < MOST_NAMES:
                    cause.frontend_names = (*cause.frontend_names, name)

    def _counts(self, number: int, newest: dict[str, int], which: int, name: str) -> bool:
        """Make an open cause the newest of ``name``; returns whether the cause has not counted the name before.

        ``newest`` and ``which``: ``_of_backend`` and 0, or ``_of_frontend`` and 1.
        """
        before = newest.get(name, 0)
        if before == number:
            return False
        newest[name] = number
        if (left := self._left.get(before)) is not None:
            left[which].add(name)
        return name not in self._left[number][which]

    def _forget_removed(self) -> None:
        """A reload may have taken frontends away. Looked at once in many reloads, so that the tables stay bounded."""
        frontends = self._frontends()
        if len(self._of_frontend) + len(self._settled) <= 4 * len(frontends) + MOST_OPEN:
            return
        self._of_frontend = {name: number for name, number in self._of_frontend.items() if name in frontends}
        self._settled = {name: number for name, number in self._settled.items() if name in frontends}
        self._unconfirmed = {name: numbers for name, numbers in self._unconfirmed.items() if name in frontends}

    # ------------------------------------------------------------------------------------------------------ the trail

    def planned(self, frontends: Iterable[str]) -> None:
        """See ``Trail``."""
        now = self._clock.time_ns()
        for name in frontends:
            cause = self._pending(name, "")
            if cause is not None and not cause.planned_ns:
                cause.planned_ns = now

    def accepted(self, frontend: str, backend: str) -> None:
        """See ``Trail``."""
        cause = self._pending(frontend, backend)
        if cause is None:
            return
        cause.changes += 1
        cause.accepted_ns = self._clock.time_ns()
        waiting = self._unconfirmed.setdefault(frontend, {})
        waiting[cause.number] = None
        if len(waiting) > MOST_UNCONFIRMED:
            del waiting[next(iter(waiting))]

    def confirmed(self, frontend: str) -> None:
        """See ``Trail``."""
        now = self._clock.time_ns()
        for number in self._unconfirmed.pop(frontend, ()):
            if (cause := self.get(number)) is not None:
                cause.confirmed_ns = now
        self._settled[frontend] = self.newest

    def drifted(self, frontend: str, words: str) -> None:
        """See ``Trail``."""
        what = f"another client changed VPP: {words}"[:MOST_TEXT]
        cause = self._join((CauseKind.DRIFT,), CauseKind.DRIFT, what, self._clock.time_ns())
        if frontend:
            self._concern(cause, (frontend,))

    def _pending(self, frontend: str, backend: str) -> Cause | None:
        """The cause of a change that is made now."""
        settled = self._settled.get(frontend, 0)
        numbers = (self._of_backend.get(backend, 0), self._of_frontend.get(frontend, 0), self._of_all)
        number = next((one for one in numbers if one > settled), 0)
        return self.get(number)
