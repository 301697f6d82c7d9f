"""The reply to a verb of an operator: every value that it changed, and its effects on frontends.

A ``Reply`` is made before the verb changes anything, and compares when it is done.
"""

from __future__ import annotations

from collections.abc import Callable

from maglev.checker.backend import LiveBackend
from maglev.checker.frontends import Frontends
from maglev.checker.settings import Settings
from maglev.config.model import Frontend
from maglev.views.backends import Override, OverrideKey, ValueChange
from maglev.views.effects import Effects, effects


class Reply:
    """``live``: the backend that a verb is about to change. ``names``: the frontends that it may affect."""

    def __init__(self, live: LiveBackend, names: tuple[str, ...], settings: Settings, frontends: Frontends) -> None:
        self._live = live
        self._names = names
        self._settings = settings
        self._frontends = frontends
        self._state, self._drained = live.state, live.drained
        self._overrides = self._present()
        self._outlook = frontends.outlook(names)

    def values(self) -> tuple[ValueChange, ...]:
        """State and drain of the backend; author, reason and end of its settings, also of those that are new."""
        changes: list[ValueChange] = []
        live = self._live
        if live.state is not self._state:
            changes.append(ValueChange("state", str(self._state), str(live.state)))
        if live.drained is not self._drained:
            changes.append(ValueChange("drained", _yes(self._drained), _yes(live.drained)))
        for key, override in self._present().items():
            changes += _differences(self._overrides.get(key), override)
        return tuple(changes)

    def effects(self, frontend: Callable[[str], Frontend]) -> Effects:
        """The frontends that lose their last server, or are served by another pool."""

        def pools(name: str) -> list[str]:
            return [pool.name for pool in frontend(name).pools]

        def keeps(name: str) -> bool:
            return any(member.keep for member in self._frontends.weights(name).members)

        return effects(self._names, self._outlook, self._frontends.outlook(self._names), pools, keeps)

    def _present(self) -> dict[OverrideKey, Override]:
        return {override.key: override for override in self._settings.of(self._live.name)}


def _differences(before: Override | None, after: Override) -> list[ValueChange]:
    """Reason and end of a setting, and its author if there was another one. A new one has them from nothing."""
    pairs = [
        ("reason", before.reason if before else "", after.reason),
        ("until", _moment(before.until_ns) if before else "", _moment(after.until_ns)),
        ("by", before.by if before else after.by, after.by),
    ]
    return [ValueChange(what, old, new) for what, old, new in pairs if old != new]


def _moment(until_ns: int) -> str:
    return str(until_ns) if until_ns else ""


def _yes(value: bool) -> str:
    return "yes" if value else "no"
