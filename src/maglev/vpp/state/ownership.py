"""Which VIPs in VPP are this daemon's, and at which old addresses frontends are held; both survive a restart.

*Owned* is every VIP that was configured or created once and that VPP has not deleted since: ``prune: owned`` removes
those that have left the configuration. *Held* is the old address of a backend that got a new one: its AS stays in
VPP until something else of the frontend serves, for ``startup-max-delay`` at most.

Owned by the event loop. Every change is written to the store at once, which never waits.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping
from collections.abc import Set as AbstractSet

from maglev.vpp.state.store import HELD, VIPS, Store, held_from_json, held_to_json, vips_from_json, vips_to_json
from maglev.vpp.wire.messages import VipKey


class Ownership:
    """Owned VIPs and held addresses. All times are of the monotonic clock, in nanoseconds."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._owned: set[VipKey] = set(vips_from_json(store.get(VIPS)))
        self._configured: frozenset[VipKey] = frozenset()
        self._left: frozenset[VipKey] = frozenset(self._owned)
        self._held: dict[str, dict[bytes, int]] = {}

    # ------------------------------------------------------------------------------------------------------------ VIPs

    def left_by(self, configured: frozenset[VipKey]) -> frozenset[VipKey]:
        """Owned VIPs that are not in ``configured``: what ``prune: owned`` may remove.

        An immutable value. For the configuration that was taken last it is kept, since every plan asks for it.
        """
        if configured is self._configured:
            return self._left
        return frozenset(self._owned - configured)

    def configure(self, configured: frozenset[VipKey]) -> None:
        """These VIPs are configured from now on, and so owned."""
        self._configured = configured
        self.own(configured)
        self._left = frozenset(self._owned - configured)

    def own(self, keys: Collection[VipKey]) -> None:
        """These VIPs are the daemon's: they are configured, or were created."""
        new = [key for key in keys if key not in self._owned]
        if not new:
            return
        self._owned.update(new)
        self._left = self._left.union(key for key in new if key not in self._configured)
        self._save()

    def disown(self, key: VipKey) -> None:
        """VPP has deleted this VIP. One that is configured stays owned: it is to be created again."""
        if key in self._owned and key not in self._configured:
            self._owned.discard(key)
            self._left -= {key}
            self._save()

    def _save(self) -> None:
        self._store.set(VIPS, vips_to_json(self._owned))

    # ------------------------------------------------------------------------------------------------- held addresses

    def held(self, name: str, now_ns: int) -> Iterable[bytes]:
        """Old addresses at which a frontend is held now."""
        held = self._held.get(name)
        if not held:
            return ()
        return [address for address, until in held.items() if until > now_ns]

    def expires_in(self, now_ns: int) -> int | None:
        """Until the next held address expires; None: none is held."""
        return min((max(0, until - now_ns) for held in self._held.values() for until in held.values()), default=None)

    def hold(self, moved: Mapping[str, AbstractSet[bytes]], until_ns: int, frontends: Container[str]) -> None:
        """A reload has moved backends away from these addresses. Only ``frontends`` are configured from now on."""
        held = {name: of_frontend for name, of_frontend in self._held.items() if name in frontends}
        for name, addresses in moved.items():
            held[name] = {**held.get(name, {}), **dict.fromkeys(addresses, until_ns)}
        self._held = held
        self._save_held()

    def hold_again(self, until_ns: int, frontends: Container[str]) -> None:
        """Hold what was held before a restart, as far as it is still configured."""
        for name, address in held_from_json(self._store.get(HELD)):
            if name in frontends:
                self._held.setdefault(name, {})[address] = until_ns
        self._save_held()

    def expire(self, now_ns: int) -> Collection[str]:
        """Drop what is held no longer; returns the frontends that lost an address."""
        changed: list[str] = []
        for name, held in list(self._held.items()):
            left = {address: until for address, until in held.items() if until > now_ns}
            if len(left) == len(held):
                continue
            changed.append(name)
            if left:
                self._held[name] = left
            else:
                del self._held[name]
        if changed:
            self._save_held()
        return changed

    def _save_held(self) -> None:
        self._store.set(HELD, held_to_json(self._held))
