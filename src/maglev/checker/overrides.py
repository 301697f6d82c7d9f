"""The settings of operators at run time: one record per thing that differs from the file, until it is taken back.

Pure bookkeeping without clocks or sockets. The checker decides when a record comes and goes;
``maglev.daemon.statefile`` keeps the records across a restart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import orjson

from maglev.base.limits import MAX_WEIGHT
from maglev.views.backends import Override, OverrideKey, OverrideKind


def enabled_key(backend: str) -> OverrideKey:
    """OverrideKey of a disable or enable."""
    return "enabled", backend, "", ""


def drain_key(backend: str) -> OverrideKey:
    """OverrideKey of a drain."""
    return OverrideKind.DRAIN.value, backend, "", ""


def pause_key(backend: str) -> OverrideKey:
    """OverrideKey of a pause."""
    return OverrideKind.PAUSE.value, backend, "", ""


def weight_key(frontend: str, pool: str, backend: str) -> OverrideKey:
    """OverrideKey of the weight of a pool member."""
    return OverrideKind.WEIGHT.value, backend, frontend, pool


class OverrideStore:
    """All overrides, by key. ``version`` grows with every change, so that a keeper can tell what it has written."""

    def __init__(self) -> None:
        self._items: dict[OverrideKey, Override] = {}
        self._by_backend: dict[str, dict[OverrideKey, Override]] = {}
        # As the state file has them. Each change writes them all, and there may be thousands.
        self._written: dict[OverrideKey, orjson.Fragment] = {}
        # The weights again, as the weight rule asks for them: it asks for every member of every pool.
        self._weights: dict[tuple[str, str, str], int] = {}
        self.version = 0

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Override]:
        return iter(tuple(self._items.values()))

    def __contains__(self, backend: str) -> bool:
        """Whether there is any override of a backend. Most have none, and a reload asks for each."""
        return backend in self._by_backend

    def get(self, key: OverrideKey) -> Override | None:
        """The override of that key."""
        return self._items.get(key)

    def put(self, override: Override) -> None:
        """Add an override, in place of one of the same key."""
        key = override.key
        self._items[key] = override
        self._by_backend.setdefault(override.backend, {})[key] = override
        self._written[key] = orjson.Fragment(orjson.dumps(to_json(override), option=orjson.OPT_SORT_KEYS))
        if override.kind is OverrideKind.WEIGHT:
            self._weights[override.frontend, override.pool, override.backend] = override.weight
        self.version += 1

    def drop(self, key: OverrideKey) -> Override | None:
        """Take an override away; None if there was none."""
        override = self._items.pop(key, None)
        if override is not None:
            del self._written[key]
            others = self._by_backend[override.backend]
            del others[key]
            if not others:
                del self._by_backend[override.backend]
            if override.kind is OverrideKind.WEIGHT:
                del self._weights[override.frontend, override.pool, override.backend]
            self.version += 1
        return override

    def of(self, backend: str) -> list[Override]:
        """The overrides of one backend."""
        found = self._by_backend.get(backend)
        return list(found.values()) if found else []

    def written(self) -> list[orjson.Fragment]:
        """All of them as the state file holds them: what ``to_json`` gives, with its keys in order."""
        return list(self._written.values())

    def weight(self, frontend: str, pool: str, backend: str) -> int | None:
        """The operator's weight of a pool member."""
        if not self._weights:
            return None
        return self._weights.get((frontend, pool, backend))


def to_json(override: Override) -> dict[str, str | int | bool]:
    """An override as the state file holds it; defaults are left out."""
    value: dict[str, str | int | bool] = {
        "kind": override.kind.value,
        "backend": override.backend,
        "address": override.address,
        "since_ns": override.since_ns,
        "file_enabled": override.file_enabled,
    }
    if override.until_ns:
        value["until_ns"] = override.until_ns
    if override.by:
        value["by"] = override.by
    if override.reason:
        value["reason"] = override.reason
    if override.kind is OverrideKind.WEIGHT:
        value["frontend"] = override.frontend
        value["pool"] = override.pool
        value["weight"] = override.weight
        value["file_weight"] = override.file_weight
    return value


LAST_MOMENT_NS = (1 << 63) - 1
"""The latest moment that the API can tell. A later one is taken for it."""


def from_json(value: object) -> Override:
    """The override that ``to_json`` wrote. Moments are limited to ``LAST_MOMENT_NS``, and the file's weight to 100.

    Raises ``ValueError`` for anything else.
    """
    if not isinstance(value, Mapping):
        raise ValueError("an override is not an object")

    def text(key: str, default: str | None = None) -> str:
        item = value.get(key, default)
        if not isinstance(item, str):
            raise ValueError(f"override: {key} is not a text")
        return item

    def number(key: str, default: int | None = None) -> int:
        item = value.get(key, default)
        if not isinstance(item, int) or isinstance(item, bool) or item < 0:
            raise ValueError(f"override: {key} is not a number")
        return item

    kind = OverrideKind(text("kind"))
    weighted = kind is OverrideKind.WEIGHT
    file_enabled = value.get("file_enabled", True)
    if not isinstance(file_enabled, bool):
        raise ValueError("override: file_enabled is not true or false")
    override = Override(
        kind=kind,
        backend=text("backend"),
        address=text("address"),
        since_ns=min(number("since_ns"), LAST_MOMENT_NS),
        until_ns=min(number("until_ns", 0), LAST_MOMENT_NS),
        by=text("by", ""),
        reason=text("reason", ""),
        frontend=text("frontend") if weighted else "",
        pool=text("pool") if weighted else "",
        weight=number("weight") if weighted else 0,
        file_weight=min(number("file_weight"), MAX_WEIGHT) if weighted else 0,
        file_enabled=file_enabled,
    )
    if override.weight > MAX_WEIGHT:
        raise ValueError("override: a weight above 100")
    return override
