"""The changes that a reload would make: two configurations in, a list of changes in the words of the file out."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from maglev.config import keys
from maglev.config.model import Config, Frontend, HealthCheck, Panic, Pool
from maglev.kinds.registry import kind_of
from maglev.schema.section import Key, Section


class ChangeKind(enum.Enum):
    """Whether a value is new, gone or another one."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """One change. ``old`` and ``new`` are as the file would have them, defaults included; empty where there is none."""

    path: str
    kind: ChangeKind
    old: str = ""
    new: str = ""

    def __str__(self) -> str:
        if self.kind is ChangeKind.CHANGED:
            return f"{self.path}: {self.old} -> {self.new}"
        return f"{self.path}: {self.kind} {self.new or self.old}".rstrip()


def diff_configs(old: Config, new: Config) -> list[ConfigChange]:
    """The changes from ``old`` to ``new``; empty exactly when a reload would change nothing.

    They come in the order of the file: what was changed or added in the order of the new one, each section's
    removals at its end. A changed order of frontends, backends or checks changes lists only, and is reported as one.
    """
    changes = [*_values("maglev.healthchecker", keys.HEALTHCHECKER, old, new)]
    changes += _values("maglev.vpp.lb", keys.LB, old.lb, new.lb)
    changes += _named("maglev.healthchecks", old.healthchecks, new.healthchecks, _healthcheck, _healthcheck_text)
    changes += _named(
        "maglev.backends",
        old.backends,
        new.backends,
        lambda path, was, now: _values(path, keys.BACKEND, was, now),
        lambda backend: str(backend.address),
    )
    changes += _named("maglev.frontends", old.frontends, new.frontends, _frontend, _frontend_text)
    return changes


def _named(
    path: str, old: Mapping[str, Any], new: Mapping[str, Any], compare: Any, text: Any
) -> Iterator[ConfigChange]:
    for name, item in new.items():
        place = f"{path}.{name}"
        if name not in old:
            yield ConfigChange(place, ChangeKind.ADDED, new=text(item))
        elif old[name] != item:
            yield from compare(place, old[name], item)
    for name, item in old.items():
        if name not in new:
            yield ConfigChange(f"{path}.{name}", ChangeKind.REMOVED, old=text(item))
    yield from _order(path, [name for name in old if name in new], [name for name in new if name in old])


def _order(path: str, old: list[str], new: list[str]) -> Iterator[ConfigChange]:
    """A change of the order of names that are in both: shown from where it begins."""
    for place, (was, now) in enumerate(zip(old, new, strict=True)):
        if was != now:
            shown = slice(place, place + 3)
            yield ConfigChange(
                path, ChangeKind.CHANGED, f"order {', '.join(old[shown])}", f"order {', '.join(new[shown])}"
            )
            return


def _values(path: str, section: Section, old: Any, new: Any) -> Iterator[ConfigChange]:
    for key in section.keys:
        yield from _value(path, key, old, new)


def _value(path: str, key: Key, old: Any, new: Any) -> Iterator[ConfigChange]:
    was, now = getattr(old, key.attribute), getattr(new, key.attribute)
    if was != now:
        yield _change(f"{path}.{key.name}", _text(key, was), _text(key, now))


def _change(path: str, was: str, now: str) -> ConfigChange:
    if not was:
        return ConfigChange(path, ChangeKind.ADDED, new=now)
    if not now:
        return ConfigChange(path, ChangeKind.REMOVED, old=was)
    return ConfigChange(path, ChangeKind.CHANGED, was, now)


def _text(key: Key, value: Any) -> str:
    """``value`` as the file would have it; empty for a value that is not set."""
    return "" if key.attribute == "port" and not value else key.write(value)


def _healthcheck_text(check: HealthCheck) -> str:
    return f"{check.type} {check.port}" if check.port else str(check.type)


def _healthcheck(path: str, old: HealthCheck, new: HealthCheck) -> Iterator[ConfigChange]:
    for key in keys.HEALTHCHECK.keys:
        if key.name != "params":
            yield from _value(path, key, old, new)
        else:
            was_params, now_params = (kind_of(check.type).written(check.params) for check in (old, new))
            for name in now_params | was_params:
                was, now = was_params.get(name, ""), now_params.get(name, "")
                if was != now:
                    yield _change(f"{path}.params.{name}", was, now)


def _frontend_text(frontend: Frontend) -> str:
    where = f"{frontend.address} {frontend.protocol}"
    return f"{where} {frontend.port}" if frontend.port else where


def _frontend(path: str, old: Frontend, new: Frontend) -> Iterator[ConfigChange]:
    for key in keys.FRONTEND.keys:
        if key.name == "panic":
            yield from _panic(f"{path}.panic", old.panic, new.panic)
        elif key.name != "pools":
            yield from _value(path, key, old, new)
    was_pools = {pool.name: pool for pool in old.pools}
    now_pools = {pool.name: pool for pool in new.pools}
    if list(was_pools) != list(now_pools):
        yield _change(f"{path}.pools", ", ".join(was_pools), ", ".join(now_pools))
    empty = Pool("", ())
    for name in now_pools | was_pools:
        was_pool, now_pool = was_pools.get(name, empty), now_pools.get(name, empty)
        yield from _pool(f"{path}.pools.{name}", was_pool, now_pool)


def _panic(path: str, old: Panic | None, new: Panic | None) -> Iterator[ConfigChange]:
    if old is not None and new is not None:
        yield from _values(path, keys.PANIC, old, new)
    elif old is not new:
        yield _change(path, _panic_text(old), _panic_text(new))


def _panic_text(panic: Panic | None) -> str:
    words = (
        [] if panic is None else [f"{key.name} {_text(key, getattr(panic, key.attribute))}" for key in keys.PANIC.keys]
    )
    return ", ".join(words)


def _pool(path: str, old: Pool, new: Pool) -> Iterator[ConfigChange]:
    for key in keys.POOL.keys:
        # A pool that is new or gone is reported by its members.
        if key.name not in ("name", "backends") and old.members and new.members:
            yield from _value(path, key, old, new)
    was = {member.backend: member.weight for member in old.members}
    now = {member.backend: member.weight for member in new.members}
    for name, weight in now.items():
        place = f"{path}.backends.{name}"
        if name not in was:
            yield ConfigChange(place, ChangeKind.ADDED, new=f"weight {weight}")
        elif was[name] != weight:
            yield ConfigChange(f"{place}.weight", ChangeKind.CHANGED, str(was[name]), str(weight))
    for name, weight in was.items():
        if name not in now:
            yield ConfigChange(f"{path}.backends.{name}", ChangeKind.REMOVED, old=f"weight {weight}")
    yield from _order(f"{path}.backends", [name for name in was if name in now], [name for name in now if name in was])
