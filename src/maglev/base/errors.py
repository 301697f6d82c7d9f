"""Errors that an operator can cause. Each has one gRPC status and one exit code (``maglev.rpc``)."""

from __future__ import annotations

from collections.abc import Collection


class MaglevError(Exception):
    """Base of all errors whose text the caller gets as it is."""


class UnknownName(MaglevError):
    """There is nothing of that kind and name (within ``where``): gRPC ``NOT_FOUND``.

    ``among``: the names that there are, for a suggestion; empty where the raiser does not know them.
    """

    def __init__(self, kind: str, name: str, where: str = "", *, among: Collection[str] = ()) -> None:
        super().__init__(f"no {kind} named {name!r}" + (f" in {where}" if where else ""))
        self.kind = kind
        self.name = name
        self.among = among


class BadValue(MaglevError):
    """A value is out of its range: gRPC ``INVALID_ARGUMENT``."""


class NotAllowed(MaglevError):
    """Not possible in the present state: gRPC ``FAILED_PRECONDITION``."""


class HostTrouble(MaglevError):
    """This host lacks what a request takes: descriptors, processes, memory, time. gRPC ``RESOURCE_EXHAUSTED``."""


class Unavailable(MaglevError):
    """VPP is away or cannot be driven: gRPC ``UNAVAILABLE``."""
