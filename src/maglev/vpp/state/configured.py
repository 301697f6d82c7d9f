"""One configuration as the dataplane looks things up in it, and the step from one configuration to the next. Pure.

An index is immutable: a reload makes a new one, slice by slice, and the reconciler replaces the old one in a single
assignment. So an event between two slices is still looked up in the old index, as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import NamedTuple

from maglev.config.model import Backend, Config, Frontend
from maglev.vpp.planning.model import vip_key
from maglev.vpp.planning.plan import FlushKey
from maglev.vpp.wire.messages import VipKey


class Use(NamedTuple):
    """A backend in a frontend: what an event about the backend needs, computed once for each configuration."""

    frontend: str
    flush: FlushKey
    flush_on_down: bool


@dataclass(frozen=True, slots=True)
class Configured:
    """The index of one configuration.

    ``uses``: by backend, in the order of the file. ``keys``: VIP by frontend; ``names``: frontend by VIP. ``vips``: all
    configured VIPs. The mappings are not changed after the index is made.
    """

    config: Config = field(default_factory=Config)
    uses: Mapping[str, Sequence[Use]] = field(default_factory=dict)
    keys: Mapping[str, VipKey] = field(default_factory=dict)
    names: Mapping[VipKey, str] = field(default_factory=dict)
    vips: frozenset[VipKey] = frozenset()


@dataclass(frozen=True, slots=True)
class Transition:
    """The step from one configuration (``before``; None: there was none) to another.

    ``flushes``: every AS that the new configuration has. The rest is empty for the first configuration:

    ``joined``: backends with uses that the configuration before did not have. ``moved``: by frontend the old addresses
    of backends that got new ones; an old address may be all that serves for a while. ``rescaled``: VIPs whose weights
    change their scale or their pools. ``inherited``: backends that are new, or new at their address, in a VIP that
    sends traffic to that address, or may do so as far as is known: a server that only got another name.
    """

    before: Configured | None
    after: Configured
    flushes: AbstractSet[FlushKey]
    joined: Sequence[tuple[str, Use]] = ()
    moved: Mapping[str, AbstractSet[bytes]] = field(default_factory=dict)
    rescaled: Sequence[VipKey] = ()
    inherited: AbstractSet[str] = frozenset()


def transition(
    before: Configured | None, new: Config, serves: Callable[[VipKey, bytes], bool]
) -> Generator[None, None, Transition]:
    """The step to configuration ``new``, made member by member.

    A generator, so that the caller can let the event loop run in between: a configuration has tens of thousands of
    members. ``maglev.base.pace`` drives it: ``in_slices`` or ``at_once``.

    ``serves``: whether VPP sends traffic to this address in this VIP, or may do so as far as is known.
    """
    work = _Work(before, new, serves)
    for name, frontend in new.frontends.items():
        yield from work.frontend(name, frontend)
    return work.done()


class _Work:
    """A transition in the making."""

    def __init__(self, before: Configured | None, new: Config, serves: Callable[[VipKey, bytes], bool]) -> None:
        self._before = before
        self._new = new
        self._serves = serves
        self._uses: dict[str, list[Use]] = {}
        self._keys: dict[str, VipKey] = {}
        self._flushes: set[FlushKey] = set()
        self._joined: list[tuple[str, Use]] = []
        self._moved: dict[str, set[bytes]] = {}
        self._rescaled: list[VipKey] = []
        self._inherited: set[str] = set()

    def frontend(self, name: str, frontend: Frontend) -> Generator[None, None, None]:
        """Take in one frontend; yields after each of its members."""
        before = self._before
        key = self._keys[name] = vip_key(frontend)
        old = before.config.frontends.get(name) if before is not None else None
        members = _members(old)
        same_key = before is not None and before.keys.get(name) == key
        for pool in frontend.pools:
            for member in pool.members:
                backend = self._new.backends[member.backend]
                flush = FlushKey(key, backend.address.packed)
                use = Use(name, flush, frontend.flush_on_down)
                self._uses.setdefault(member.backend, []).append(use)
                self._flushes.add(flush)
                if before is not None:
                    was = before.config.backends.get(member.backend)
                    was_member = member.backend in members
                    if was is None or was.address != backend.address:
                        self._came(use, member.backend, was if was_member else None)
                    if not (same_key and was_member):
                        self._may_join(before, use, member.backend)
                yield
        if old is not None and (old.weight_unit, old.pools) != (frontend.weight_unit, frontend.pools):
            self._rescaled.append(key)

    def _came(self, use: Use, backend: str, was: Backend | None) -> None:
        """A member is new at its address. ``was``: the same backend as a member of this frontend before."""
        if was is not None:
            self._moved.setdefault(use.frontend, set()).add(was.address.packed)
        if self._serves(*use.flush):
            self._inherited.add(backend)

    def _may_join(self, before: Configured, use: Use, backend: str) -> None:
        """A member is new in its frontend or VIP. The same AS may have been there under another frontend's name."""
        if all(other.flush != use.flush for other in before.uses.get(backend, ())):
            self._joined.append((backend, use))

    def done(self) -> Transition:
        """All frontends are in."""
        names = {key: name for name, key in self._keys.items()}
        return Transition(
            before=self._before,
            after=Configured(self._new, self._uses, self._keys, names, frozenset(names)),
            flushes=self._flushes,
            joined=self._joined,
            moved=self._moved,
            rescaled=self._rescaled,
            inherited=self._inherited,
        )


def _members(frontend: Frontend | None) -> set[str]:
    """The backends of a frontend; none where there was no such frontend."""
    if frontend is None:
        return set()
    return {member.backend for pool in frontend.pools for member in pool.members}
