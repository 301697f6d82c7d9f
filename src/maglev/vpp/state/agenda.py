"""The frontends that wait to be programmed, and which of them come next. Pure.

A frontend waits in one of three places. *Dirty*: something about it has changed since the states were last looked at.
*Parked*: the warm-up holds it; an event of its backends or a new phase brings it back. *Cut off*: it is dirty, and the
budget of an earlier batch ended before its steps.

Some dirty frontends are *unserved*: no AS in VPP serves them. A frontend that becomes dirty is *doubtful* until the
task that programs has looked at VPP's state and said whether it is served (``sort``), and again when that state
changes (``doubt``). So a batch looks at what has changed since the last batch, and not at every frontend that waits:
20,000 of them wait after a failure of a whole site.

Order: frontends that no AS in VPP serves come first, then those that were cut off, then those that wait longest.
Fairness: after a batch that put the first kind before a waiting frontend, the next batch gives them no precedence, nor
to those of them that were cut off. So no frontend waits without end, however often the others are marked again. Within
a batch, steps that an earlier budget cut off still come first: a large VIP can use up the budgets of two batches before
the frontend that it overtook.

Owned by the event loop. Events mark at any time; the task that holds the lock of the dataplane takes, plans and cuts
off. Invariant: a frontend that is marked after a plan was made is dirty after that plan was carried out. ``take`` and
``planned`` remove marks from before the plan, and nothing removes later ones.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from maglev.vpp.planning.plan import RefusalKey, Refusals
from maglev.vpp.wire.messages import VipKey

MOST_MEMBERS = 200
"""About how many pool members one batch plans for: few milliseconds of the loop."""


class Admission(enum.Enum):
    """Whether a frontend may be programmed now."""

    ADMITTED = "admitted"
    LATER = "later"  # a reload is under way that changes its backends, or verdicts are to come: it stays dirty
    HELD = "held"  # the warm-up holds it: it is to be parked


@dataclass(frozen=True, slots=True)
class Choice:
    """``names``: what one batch would program, in order. ``held``: frontends that the warm-up holds, to be parked."""

    names: Sequence[str]
    held: Sequence[str]


@dataclass(frozen=True, slots=True)
class Batch:
    """Frontends that were taken. ``urgent``: frontends that no AS serves had precedence.

    ``first``: frontends whose steps come before all others of the batch, since they were cut off before.
    """

    names: Sequence[str]
    urgent: bool
    first: Sequence[str]


class Agenda:
    """The frontends that wait, and the calls that VPP refused and that are not tried again for now.

    ``singly``: VIPs in which commands about many ASes failed: single calls repair them. An immutable value, replaced on
    change: a plan may keep it. It ends when every call may be tried again.
    """

    def __init__(self) -> None:
        # Dictionaries keep the order of the first mark.
        self._dirty: dict[str, None] = {}
        self._parked: dict[str, None] = {}
        self._cut: dict[str, None] = {}
        self._doubtful: dict[str, None] = {}  # dirty, and not sorted
        self._unserved: dict[str, None] = {}  # dirty, and sorted: no AS serves them
        self._overtaken = False  # the last batch put ``_leaders`` before frontends that still wait
        self._leaders: frozenset[str] = frozenset()
        self._refused: dict[VipKey | None, set[RefusalKey]] = {}
        self.singly: frozenset[VipKey] = frozenset()

    # ------------------------------------------------------------------------------------------------------- questions

    @property
    def waiting(self) -> bool:
        """Whether any frontend is dirty, even if none of them can be programmed now."""
        return bool(self._dirty)

    def waits(self, name: str) -> bool:
        """Whether this frontend is dirty."""
        return name in self._dirty

    @property
    def cut(self) -> Sequence[str]:
        """Frontends that budgets have cut off, in the order in which they come."""
        return tuple(self._cut)

    @property
    def refused(self) -> Refusals:
        """Calls that VPP refused, by VIP (None: the settings). An event or a full sync tries them again."""
        return self._refused

    def overtaking(self) -> Sequence[str]:
        """Unserved frontends, which may come before older ones: as many as one batch may hold.

        Empty after a batch of only such. Doubtful frontends are not among them.
        """
        return () if self._overtaken else tuple(islice(self._unserved, MOST_MEMBERS))

    def choose(
        self, urgent: Iterable[str], admission: Callable[[str], Admission], members: Callable[[str], int]
    ) -> Choice:
        """The frontends that a batch would program now, ``urgent`` ones first: about ``MOST_MEMBERS`` members at most.

        ``admission`` is asked for each frontend that is looked at; ``members`` how many pool members one has.
        """
        names: dict[str, None] = {}
        held: dict[str, None] = {}
        total = 0
        for name in self._order(urgent):
            if name in names or name in held or name not in self._dirty:
                continue
            admitted = admission(name)
            if admitted is Admission.HELD:
                held[name] = None
            elif admitted is Admission.ADMITTED:
                names[name] = None
                total += members(name)
                if total >= MOST_MEMBERS:
                    break
        return Choice(tuple(names), tuple(held))

    def _order(self, urgent: Iterable[str]) -> Iterator[str]:
        """The order of a batch. Names may come twice, or not be dirty."""
        if not self._overtaken:
            return chain(urgent, self._cut, self._dirty)
        leaders = self._leaders
        overtaken = (name for name in chain(self._cut, self._dirty) if name not in leaders)
        return chain(overtaken, self._cut, self._dirty)

    # --------------------------------------------------------------------------------------------------------- changes

    def mark(self, name: str, key: VipKey | None) -> None:
        """A frontend has changed. Calls that VPP refused in its VIP ``key`` may be tried again."""
        self._add(name)
        self._parked.pop(name, None)
        if self._refused and key is not None:
            self._refused.pop(key, None)

    def again(self, names: Iterable[str]) -> None:
        """These could not be programmed, or only in part: they are dirty, or stay so."""
        for name in names:
            self._add(name)

    def doubt(self, names: Iterable[str]) -> None:
        """VPP's state of these has changed: those that are dirty may be served by now, or no longer."""
        for name in names:
            if name in self._dirty:
                self._unserved.pop(name, None)
                self._doubtful[name] = None

    def doubt_all(self) -> None:
        """All of VPP's state may have changed."""
        self._unserved.clear()
        self._doubtful = dict(self._dirty)

    def take_doubtful(self) -> Sequence[str]:
        """The doubtful frontends, in the order in which they became so; the caller sorts them. Afterwards none is."""
        doubtful, self._doubtful = self._doubtful, {}
        return tuple(doubtful)

    def sort(self, name: str, *, served: bool) -> None:
        """Whether an AS in VPP serves this frontend, if it is still dirty."""
        if served:
            self._unserved.pop(name, None)
        elif name in self._dirty:
            self._unserved[name] = None

    def _add(self, name: str) -> None:
        if name not in self._dirty:
            self._dirty[name] = self._doubtful[name] = None

    def _remove(self, name: str) -> None:
        del self._dirty[name]
        self._doubtful.pop(name, None)
        self._unserved.pop(name, None)

    def park(self, names: Iterable[str]) -> None:
        """The warm-up holds these."""
        for name in names:
            self._remove(name)
            self._parked[name] = None

    def unpark(self) -> None:
        """Parked frontends may have been released."""
        self.again(self._parked)
        self._parked.clear()

    def keep(self, configured: Container[str]) -> None:
        """After a reload: frontends that left the configuration no longer wait."""
        self._dirty = {name: None for name in self._dirty if name in configured}
        self._cut = {name: None for name in self._cut if name in configured}
        self.doubt_all()  # a frontend may have moved to another VIP

    def take(self, names: Sequence[str], urgent: Sequence[str]) -> Batch:
        """A batch of these begins; ``urgent`` as it was given to ``choose``."""
        for name in names:
            self._remove(name)
        # The urgent ones may be marked again as fast as batches go.
        self._leaders = frozenset(urgent)
        self._overtaken = bool(urgent) and bool(self._dirty) and set(names).issubset(urgent)
        return Batch(names, bool(urgent), tuple(name for name in self._cut if not urgent or name in self._leaders))

    def planned(self, names: Iterable[str]) -> None:
        """A plan holds the newest state of these: only marks from now on are newer."""
        for name in names:
            if name in self._dirty:
                self._remove(name)

    def cut_off(self, planned: Iterable[str], sent: Container[str], rest: Iterable[str]) -> None:
        """A budget ended in a plan for ``planned``: of ``sent`` a step was sent, steps of ``rest`` were not.

        Frontends without a step sent keep their position; partly sent ones go last.
        """
        cut = dict.fromkeys(name for name in rest if name)
        for name in planned:
            if name not in cut or name in sent:
                self._cut.pop(name, None)
        self._cut.update(cut)
        self.again(cut)

    def done(self, batch: Batch) -> None:
        """A batch has ended. One that began with the urgent and was cut has overtaken what was cut off."""
        if batch.urgent and self._cut:
            self._overtaken = True

    def refuse(self, refusal: RefusalKey) -> None:
        """VPP refused this call."""
        self._refused.setdefault(refusal[1], set()).add(refusal)

    def avoid_commands(self, key: VipKey) -> None:
        """Commands about this VIP failed."""
        self.singly |= {key}

    def forget_refusals(self) -> None:
        """Every call may be tried again."""
        self._refused.clear()
        self.singly = frozenset()
