"""Failed calls on the wire: the API's own errors, and the gRPC status of each error."""

from __future__ import annotations

import grpc

from maglev.base import errors


class TooMany(errors.MaglevError):
    """No room for another: gRPC ``RESOURCE_EXHAUSTED``."""


class TooSlow(errors.MaglevError):
    """A reader that does not read: gRPC ``RESOURCE_EXHAUSTED``."""


class GoingAway(errors.Unavailable):
    """The daemon ends: gRPC ``UNAVAILABLE``, as for a daemon that is gone."""


STATUS: dict[type[errors.MaglevError], grpc.StatusCode] = {
    errors.UnknownName: grpc.StatusCode.NOT_FOUND,
    errors.BadValue: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotAllowed: grpc.StatusCode.FAILED_PRECONDITION,
    errors.HostTrouble: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    TooMany: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TooSlow: grpc.StatusCode.RESOURCE_EXHAUSTED,
}

MAX_WORDS = 2_000
"""Characters of a status text. It travels in a header, percent-encoded, which can triple it; a client drops the whole
status if its headers exceed 8 KiB."""


def status_of(error: errors.MaglevError) -> grpc.StatusCode:
    """The gRPC status of an error: that of its class, or of the nearest base class that has one."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), grpc.StatusCode.UNKNOWN)


def words(error: errors.MaglevError) -> str:
    """The text of a status, at most ``MAX_WORDS`` long."""
    text = str(error)
    return text if len(text) <= MAX_WORDS else text[:MAX_WORDS] + "..."


def origin(error: errors.MaglevError) -> tuple[tuple[str, str], ...]:
    """Trailing metadata that distinguishes a lost VPP from a lost daemon: both are ``UNAVAILABLE``."""
    if isinstance(error, errors.Unavailable) and not isinstance(error, GoingAway):
        return (("maglev-away", "vpp"),)
    return ()
