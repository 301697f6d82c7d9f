"""The state source after a reload that has not taken place: for plans that answer "what would happen"."""

from __future__ import annotations

from dataclasses import dataclass

from maglev.base.errors import UnknownName
from maglev.base.states import State
from maglev.config.model import Config, Frontend
from maglev.judgement.weights import Memory, StateSource, TargetState


@dataclass(frozen=True, slots=True)
class _Standing:
    """A backend that a new configuration brings: it has no history."""

    state: State = State.UNKNOWN
    drained: bool = False


class AfterReload(StateSource):
    """A state source after a reload to ``config``. Servers that stay keep their state; others start without one."""

    def __init__(self, now: StateSource, config: Config) -> None:
        self._now = now
        self._config = config

    def config(self) -> Config:
        """The configuration after the reload."""
        return self._config

    def backend_state(self, name: str) -> TargetState:
        """The state of a backend after the reload. Raises ``UnknownName``."""
        backend = self._config.backends.get(name)
        if backend is None:
            raise UnknownName("backend", name, among=self._config.backends)
        before = self._now.config().backends.get(name)
        if before is not None and before.address == backend.address:
            return self._now.backend_state(name)
        if not backend.enabled:
            return _Standing(State.DISABLED)
        return _Standing(State.UP if backend.healthcheck is None else State.UNKNOWN)

    def weight_override(self, frontend: str, pool: str, backend: str) -> int | None:
        """The operator's weight, which survives a reload."""
        return self._now.weight_override(frontend, pool, backend)

    def memory(self, frontend: Frontend) -> Memory:
        """The memory of a frontend, which survives a reload as well."""
        return self._now.memory(frontend)

    def new(self) -> frozenset[str]:
        """Backends that the reload brings or moves to another address. Traffic that VPP already sends there goes on."""
        before = self._now.config().backends
        return frozenset(
            name
            for name, backend in self._config.backends.items()
            if (was := before.get(name)) is None or was.address != backend.address
        )
