"""ICMP: an echo request on a raw socket; the server's kernel answers it."""

from __future__ import annotations

from dataclasses import dataclass

from maglev.base.states import CheckType
from maglev.kinds.kind import Kind, PortRule
from maglev.kinds.params import Params, param
from maglev.schema.types import Integer


@dataclass(frozen=True, slots=True)
class IcmpParams(Params):
    """Parameters of an ICMP check: payload size in bytes.

    The bounds are the engine's: a payload begins with its 16-byte cookie, and the packet fits an MTU of 1500 with IPv6.
    """

    size: int = param(
        Integer(16, 1452),
        "Bytes of payload of the echo request.",
        default=56,
        example="1400",
        label="payload",
        words=lambda size: f"{size} bytes",
    )


ICMP = Kind(
    check_type=CheckType.ICMP,
    params=IcmpParams,
    message="icmp",
    article="an",
    port=PortRule.REFUSED,
    counters={"sent_icmp": "ICMP echo requests sent."},
)
