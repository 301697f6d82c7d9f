"""The state of VPP, as last read and as changed by acknowledged calls since, and its doubtful parts. Pure.

``actual`` is None while VPP has not been read. Only ``acknowledge``, for each step that VPP accepted, and the ``put_*``
methods, for each reading, change it. A reading returns *facts*: this daemon did not write the difference between the
mirror and the reading, so another controller did. The caller decides what follows from a fact, and must take it at
once: the mirror has the new state already, and does not find the difference again.

Doubts: a VIP is *stale* where VPP refused a call about it; it is read before it is written again, and a difference then
does not count as drift. A VIP is *uncertain* where calls were open when the connection was lost: VPP may or may not
have carried them out. VIPs are *reshuffled* where some came or went: their index and stickiness, which only the CLI
shows, must be read again. A VIP is *unconfirmed* where VPP accepted commands about many of its ASes: what they changed
enters the mirror with the next reading of the VIP, together with every call that VPP accepted after them, and counts
as done as far as that reading shows it. Until then the VIP must not be planned.

A VIP has *moved* when a call or a reading changed its ASes: it may serve by now, or no longer. ``take_moved`` tells
which VIPs have, so that a batch need not ask each VIP.

Owned by the event loop. A task that reads into the mirror, or carries out a plan against it, holds the lock of the
dataplane. A connection that comes or goes empties it at any time: after an ``await``, ask again (``demand``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

from maglev.base.errors import Unavailable
from maglev.vpp.planning.model import Actual, ActualVip
from maglev.vpp.planning.plan import Op, Step, acknowledge
from maglev.vpp.state.drift import Drift, ases_drift, conf_drift, drift, vip_drift
from maglev.vpp.state.reader import VerboseVip, describe, fill, new_vip, table_length
from maglev.vpp.wire.messages import AsDetails, LbConf, VipDetails, VipKey


class Link(Protocol):
    """The connection to VPP; ``excuse``: why it is not usable."""

    @property
    def usable(self) -> bool: ...
    @property
    def excuse(self) -> str: ...


class Accepted(NamedTuple):
    """A step that VPP has accepted, and as what it counts (``Extent.scope``)."""

    scope: str
    step: Step


class Fact(NamedTuple):
    """The result of a reading, about one VIP. ``key`` None: about the global settings.

    ``drift``: what another controller has changed. ``lost``: the VIP as it was known, where VPP has it no longer.
    ``differs``: the ASes read otherwise than the mirror had them, whether that counts as drift or not.
    ``confirmed``: steps of an unconfirmed VIP that the reading shows; ``missing``: those that it does not show.
    """

    key: VipKey | None
    drift: Sequence[Drift]
    lost: ActualVip | None = None
    differs: bool = False
    confirmed: Sequence[Accepted] = ()
    missing: Sequence[Accepted] = ()


class Comparison(NamedTuple):
    """A VPP that was just read, beside what was known of VPP before the connection was lost.

    ``restarted``: VPP was restarted in between, so it is expected to be empty.
    """

    known: Actual | None
    read: Actual
    uncertain: Collection[VipKey | None]
    restarted: bool

    def facts(self) -> Iterator[Fact]:
        """The differences, VIP by VIP, most of them empty: a generator, so that it can be done in slices."""
        if self.known is None:
            return
        for key, vip in self.known.vips.items():
            yield Fact(key, (), vip if self.restarted or key not in self.read.vips else None)
        if not self.restarted and self.read.conf is not None and None not in self.uncertain:
            yield Fact(None, conf_drift(self.known.conf, self.read.conf))
        for key, found in drift(self.known, self.read, uncertain=self.uncertain, restarted=self.restarted):
            yield Fact(key, found)


class Mirror:
    """The mirror of one VPP. ``actual`` None: VPP has to be read.

    ``primed``: the global settings of this VPP have been seen to. ``reshuffled``: VIPs came or went since the CLI was
    read last.
    """

    def __init__(self, link: Link) -> None:
        self.actual: Actual | None = None
        self.primed = False
        self.reshuffled = False
        self._link = link
        self._known: Actual | None = None  # the mirror of the connection before
        self._connected_ns = 0
        self._stale: set[VipKey] = set()
        self._uncertain: set[VipKey | None] = set()  # None: the global settings
        self._unconfirmed: dict[VipKey, list[Accepted]] = {}
        self._moved: set[VipKey] = set()
        self._all_moved = True
        self._order: dict[VipKey, None] = {}  # the VIPs in the order of VPP's own list, as read last

    # ------------------------------------------------------------------------------------------------------- questions

    def demand(self) -> Actual:
        """The state of VPP. Raises ``Unavailable`` where it is unknown."""
        if not self._link.usable:
            raise Unavailable(self._link.excuse)
        if self.actual is None:
            raise Unavailable("VPP has not been read yet")
        return self.actual

    def find(self, key: VipKey | None) -> ActualVip | None:
        """One VIP as VPP has it; None: it has none, or that is not known."""
        return self.actual.vips.get(key) if self.actual is not None and key is not None else None

    def serves(self, key: VipKey | None) -> bool:
        """Whether VPP sends new flows to any AS of this VIP."""
        found = self.find(key)
        return found is not None and found.serves

    def may_serve(self, key: VipKey, address: bytes) -> bool:
        """Whether VPP sends traffic to this address in this VIP, or may do so: VPP has not been read."""
        if self.actual is None:
            return True
        found = self.actual.vips.get(key)
        have = found.ases.get(address) if found is not None else None
        raised = (one.step.weight > 0 for one in self._unconfirmed.get(key, ()) if one.step.address == address)
        return (have is not None and have.weight > 0) or any(raised)

    def unconfirmed(self, key: VipKey | None) -> bool:
        """Whether this VIP must be read before it is planned: VPP has accepted commands about it."""
        return key in self._unconfirmed

    def stale(self, keys: Iterable[VipKey]) -> list[VipKey]:
        """Those of ``keys`` that are to be read before they are written."""
        return [key for key in keys if key in self._stale] if self._stale else []

    # ----------------------------------------------------------------------------------------------------- connections

    def connected(self) -> None:
        """There is another connection, perhaps to another VPP."""
        self.forget()
        self.primed = False

    def disconnected(self) -> None:
        """The connection is lost. The mirror is kept for ``compare``, over the next connection."""
        self.forget()
        self._stale.clear()

    def forget(self) -> None:
        """VPP has to be read again."""
        self._known = self.actual or self._known
        self.actual = None
        self._uncertain.update(self._unconfirmed)
        self._unconfirmed.clear()

    def compare(self, read: Actual, *, started_ns: int, connected_ns: int) -> Comparison:
        """Everything was read over a connection that stands since ``connected_ns``, of a VPP started at ``started_ns``.

        From now on ``read`` is what was known, should this connection be lost before ``install`` is called.
        """
        comparison = Comparison(self._known, read, frozenset(self._uncertain), started_ns > self._connected_ns)
        self._known = read
        self._uncertain.clear()
        self._connected_ns = connected_ns
        self._stale.clear()
        return comparison

    def install(self, read: Actual) -> None:
        """``read`` is the state of VPP from now on."""
        self.actual = read
        self._order = dict.fromkeys(read.vips)
        self._all_moved = True

    def take_moved(self) -> Collection[VipKey] | None:
        """VIPs that have moved since the last call; None: any of them may have. Afterwards none has."""
        moved, self._moved = self._moved, set()
        everything, self._all_moved = self._all_moved, False
        return None if everything else moved

    # ----------------------------------------------------------------------------------------------------------- calls

    def acknowledge(self, step: Step) -> None:
        """VPP has accepted a step."""
        if self.actual is not None:
            acknowledge(self.actual, step)
        if step.vip is not None:
            self._moved.add(step.vip)
        if step.op is Op.CREATE_VIP:
            self.reshuffled = True
        elif step.op is Op.DELETE_VIP and step.vip is not None:
            self.reshuffled = True
            self._order.pop(step.vip, None)
            self._unconfirmed.pop(step.vip, None)

    def defer(self, key: VipKey, accepted: Iterable[Accepted]) -> None:
        """VPP has accepted these steps about a VIP; the next reading of it confirms them, or does not."""
        if self.actual is not None:
            self._unconfirmed.setdefault(key, []).extend(accepted)

    def refused(self, keys: Iterable[VipKey | None]) -> None:
        """VPP refused calls about these: they may differ from the mirror."""
        self._stale.update(key for key in keys if key is not None)

    def left_open(self, keys: Iterable[VipKey | None]) -> None:
        """The connection was lost with calls about these under way, None: about the settings."""
        self._uncertain.update(keys)

    # --------------------------------------------------------------------------------------------------------- readings

    def put_conf(self, read: LbConf) -> Fact:
        """The global settings were read."""
        actual = self.demand()
        fact = Fact(None, conf_drift(actual.conf, read))
        actual.conf = read
        return fact

    def put_list(self, listed: Mapping[VipKey, VipDetails]) -> list[Fact]:
        """The list of VIPs was read: new ones come without ASes, vanished ones go."""
        actual = self.demand()
        facts: list[Fact] = []
        for key in [key for key in actual.vips if key not in listed]:
            facts.append(Fact(key, [Drift("vip_missing", "it is gone")], actual.vips.pop(key)))
            # No reading of it will come: it would stay unconfirmed, and could never be planned.
            self._unconfirmed.pop(key, None)
            self.reshuffled = True
            self._moved.add(key)
        for key, details in listed.items():
            found = actual.vips.get(key)
            if found is not None and (found.encap, found.length) == (details.encap, table_length(details)):
                continue
            made = new_vip(details)
            if key not in self._stale:
                changed = [Drift("vip_foreign", "it has come")] if found is None else vip_drift(found, made)
                facts.append(Fact(key, changed))
            actual.vips[key] = made
            self.reshuffled = True
            self._moved.add(key)
            self._stale.add(key)
        # VPP lists a VIP that was deleted and created again last, even if all its properties are the same.
        before, self._order = self._order, dict.fromkeys(listed)
        if [key for key in before if key in listed] != [key for key in listed if key in before]:
            self.reshuffled = True
        return facts

    def put_ases(self, vip: ActualVip, read: Iterable[AsDetails]) -> Fact:
        """The ASes of a VIP of the mirror were read, with those that were deleted and linger."""
        accepted = self._unconfirmed.pop(vip.key, [])
        for _, step in accepted:
            self.acknowledge(step)
        known, lingering, served = vip.ases, vip.lingering, vip.serves
        fill(vip, read)
        if vip.serves is not served:
            self._moved.add(vip.key)
        differing = ases_drift(known, vip.ases)
        found: Sequence[Drift] = ()
        if vip.key not in self._stale:
            found = differing
            # More ASes linger than have gone, or all have gone: it may be another VIP by now, of the same key.
            gone = sum(address not in vip.ases for address in known)
            if vip.lingering - lingering > gone or 0 < len(known) == gone:
                self.reshuffled = True
        self._stale.discard(vip.key)
        confirmed, missing = _confirm(accepted, vip)
        return Fact(vip.key, found, differs=bool(differing), confirmed=confirmed, missing=missing)

    def put_verbose(self, verbose: Mapping[VipKey, VerboseVip]) -> list[Fact]:
        """Index and stickiness were read from the CLI; returns the VIPs whose nature has changed."""
        actual = self.demand()
        known = {key: replace(vip) for key, vip in actual.vips.items()}
        describe(actual.vips, verbose)
        self.reshuffled = False
        facts = (Fact(key, vip_drift(before, actual.vips[key])) for key, before in known.items())
        return [fact for fact in facts if fact.drift]


def _confirm(accepted: Sequence[Accepted], vip: ActualVip) -> tuple[list[Accepted], list[Accepted]]:
    """The steps that a VIP shows as it was just read, and the others.

    Of several steps about one AS, the last one decides for all of them. A flush leaves no trace: it counts if all that
    VPP did before it shows.
    """
    last = {step.address: step for _, step in accepted if step.address}
    shows = {address: _shows(step, vip) for address, step in last.items()}
    confirmed: list[Accepted] = []
    missing: list[Accepted] = []
    for one in accepted:
        shown = shows[one.step.address] if one.step.address else not missing
        (confirmed if shown else missing).append(one)
    return confirmed, missing


def _shows(step: Step, vip: ActualVip) -> bool:
    have = vip.ases.get(step.address)
    if step.op is Op.DELETE_AS:
        return have is None
    return have is not None and have.weight == step.weight
