"""What a reload would change: two configurations in, a list of changes in the words of the file out."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from maglev.base.states import CheckType
from maglev.config import schema
from maglev.config.durations import format_duration
from maglev.config.model import Config, Frontend, HealthCheck, Pool, Protocol, TlsParams
from maglev.config.types import Duration, Percent


class ChangeKind(enum.Enum):
    """What happened to a value."""

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
    changes = [*_values("maglev.healthchecker", schema.HEALTHCHECKER, old, new)]
    changes += _values("maglev.vpp.lb", schema.LB, old.lb, new.lb)
    changes += _named("maglev.healthchecks", old.healthchecks, new.healthchecks, _healthcheck, _healthcheck_text)
    changes += _named(
        "maglev.backends",
        old.backends,
        new.backends,
        lambda path, was, now: _values(path, schema.BACKEND, was, now),
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


def _values(path: str, section: schema.Section, old: Any, new: Any) -> Iterator[ConfigChange]:
    for key in section.keys:
        was, now = getattr(old, key.attribute), getattr(new, key.attribute)
        if was != now:
            yield _change(f"{path}.{key.name}", _text(key, was), _text(key, now))


def _change(path: str, was: str, now: str) -> ConfigChange:
    if not was:
        return ConfigChange(path, ChangeKind.ADDED, new=now)
    if not now:
        return ConfigChange(path, ChangeKind.REMOVED, old=was)
    return ConfigChange(path, ChangeKind.CHANGED, was, now)


def _text(key: schema.Key, value: Any) -> str:
    """``value`` as the file would have it; empty for a value that is not set."""
    if value is None:
        return "auto" if key.attribute == "weight_unit" else ""
    if isinstance(key.type, Duration):
        return format_duration(value)
    if isinstance(key.type, Percent):
        return f"{value * 100:g}%"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, IPv4Address | IPv6Address):
        return str(value)
    if key.attribute == "response_codes":
        return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in value)
    if value is Protocol.ANY or (key.attribute == "port" and not value):
        return ""
    if isinstance(value, enum.IntEnum):
        return str(value)
    if isinstance(value, enum.Enum):
        return str(value.value)
    return str(value)


def _healthcheck_text(check: HealthCheck) -> str:
    return f"{check.type} {check.port}" if check.port else str(check.type)


def _healthcheck(path: str, old: HealthCheck, new: HealthCheck) -> Iterator[ConfigChange]:
    for key in schema.HEALTHCHECK.keys:
        if key.name != "params":
            was, now = getattr(old, key.attribute), getattr(new, key.attribute)
            if was != now:
                yield _change(f"{path}.{key.name}", _text(key, was), _text(key, now))
        else:
            was_params, now_params = _params(old), _params(new)
            for name in now_params | was_params:
                was, now = was_params.get(name, ""), now_params.get(name, "")
                if was != now:
                    yield _change(f"{path}.params.{name}", was, now)


def _params(check: HealthCheck) -> dict[str, str]:
    """The parameters of a check as the file would have them, by key; those of its TLS part beside the others."""
    tls: TlsParams | None = getattr(check.params, "tls", None)
    found: dict[str, str] = {}
    for key in schema.PARAMS[check.type].keys:
        if key.name == "tls":
            found[key.name] = "true" if tls is not None else "false"
        elif hasattr(check.params, key.attribute):
            found[key.name] = _text(key, getattr(check.params, key.attribute))
        elif tls is not None:
            found[key.name] = _text(key, getattr(tls, key.attribute))
    if check.type is CheckType.TCP and tls is not None:
        del found["mode"]  # implied
    return found


def _frontend_text(frontend: Frontend) -> str:
    where = f"{frontend.address} {frontend.protocol}"
    return f"{where} {frontend.port}" if frontend.port else where


def _frontend(path: str, old: Frontend, new: Frontend) -> Iterator[ConfigChange]:
    for key in schema.FRONTEND.keys:
        if key.name != "pools":
            was, now = getattr(old, key.attribute), getattr(new, key.attribute)
            if was != now:
                yield _change(f"{path}.{key.name}", _text(key, was), _text(key, now))
    was_pools = {pool.name: pool for pool in old.pools}
    now_pools = {pool.name: pool for pool in new.pools}
    if list(was_pools) != list(now_pools):
        yield _change(f"{path}.pools", ", ".join(was_pools), ", ".join(now_pools))
    empty = Pool("", ())
    for name in now_pools | was_pools:
        was_pool, now_pool = was_pools.get(name, empty), now_pools.get(name, empty)
        yield from _pool(f"{path}.pools.{name}", was_pool, now_pool)


def _pool(path: str, old: Pool, new: Pool) -> Iterator[ConfigChange]:
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
