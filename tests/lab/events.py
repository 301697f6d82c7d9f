"""What `maglevc --json` and `maglevc watch events` say about a backend, as one small record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


def short(value: str) -> str:
    """A state or code as people read it: ``BACKEND_STATE_UP`` is ``up``, ``CHECK_CODE_L7OK`` is ``L7OK``."""
    for prefix in ("BACKEND_STATE_", "FRONTEND_STATE_"):
        if value.startswith(prefix):
            return value.removeprefix(prefix).lower()
    code = value.removeprefix("CHECK_CODE_")
    return code if code.startswith("L") else code.lower()


@dataclass(frozen=True, slots=True)
class BackendChange:
    """One transition. ``at_ns``: wall clock, nanoseconds."""

    name: str
    before: str
    after: str
    code: str
    detail: str
    at_ns: int

    @classmethod
    def of(cls, name: str, fields: Mapping[str, Any]) -> Self:
        """From the fields of a `Transition` or `BackendEvent`."""
        return cls(
            name,
            short(fields["from_state"]),
            short(fields["to_state"]),
            short(fields.get("code", "")),
            fields.get("detail", ""),
            int(fields["at_ns"]),
        )


def backend_change(event: Mapping[str, Any]) -> BackendChange | None:
    """The backend's change of state that an event of the stream tells; None: it tells something else."""
    fields = event.get("backend")
    return BackendChange.of(fields["name"], fields) if isinstance(fields, Mapping) else None
