"""VIPs and ASes as VPP holds them: the nouns that the planner, the reader and the reconciler share.

Addresses are packed bytes (4 or 16), as on the wire. ``address_order`` and ``VipKey.sort_key`` are the one order used
everywhere: IPv4 before IPv6, then numeric.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from maglev.config.model import Frontend, Protocol
from maglev.vpp.wire.messages import ANY_PROTOCOL, LbConf, VipKey

DEFAULT_TABLE_LENGTH = 16384
"""New-flow table length of a VIP that we create and whose configuration names none."""

MAX_WEIGHT = 255
"""The weight is a u8 on the wire; VPP stores values above 100 as they are."""


def address_order(address: bytes) -> tuple[int, bytes]:
    """Sort key of an address: IPv4 before IPv6, then numeric."""
    return (len(address), address)


def vip_key(frontend: Frontend) -> VipKey:
    """The key of a configured frontend in VPP: always a host prefix."""
    address = frontend.address.packed
    if frontend.protocol is Protocol.ANY or frontend.port == 0:
        return VipKey(address, len(address) * 8)
    return VipKey(address, len(address) * 8, int(frontend.protocol), frontend.port)


def parse_vip_key(text: str) -> VipKey:
    """The inverse of ``str(VipKey)``, for keys that were kept in a file. Raises ValueError for any other text."""
    prefix, *rest = text.split(" ")
    if not rest:
        return VipKey.parse(prefix)
    if len(rest) != 2:
        raise ValueError(f"{text!r} names no VIP")
    protocol = {"tcp": 6, "udp": 17, "any": ANY_PROTOCOL}.get(rest[0])
    number, port = int(rest[0]) if protocol is None else protocol, int(rest[1])
    if not 0 <= number <= 255 or not 0 <= port <= 65535:
        raise ValueError(f"{text!r} names no VIP")
    return VipKey.parse(prefix, number, port)


class ActualAs(NamedTuple):
    """A live AS as VPP has it.

    ``clean``: known to hold no flow, because we added it at weight 0, or flushed it at 0, and it had none since.
    """

    weight: int
    buckets: int = 0
    clean: bool = False


@dataclass(slots=True)
class ActualVip:
    """A VIP as VPP has it. ``ases`` holds the live ones by address; ``lingering`` counts the deleted that still show.

    ``sticky`` and ``index`` come from the CLI only and are None where that has not been read. ``flushed``: we had every
    flow evicted while all weights were 0, and they were so whenever we looked since.
    """

    key: VipKey
    encap: int
    length: int
    sticky: bool | None = None
    index: int | None = None
    ases: dict[bytes, ActualAs] = field(default_factory=dict)
    lingering: int = 0
    flushed: bool = False

    @property
    def serves(self) -> bool:
        """Whether any AS takes new flows."""
        for found in self.ases.values():  # noqa: SIM110 - asked of every VIP that changes, before each batch
            if found.weight > 0:
                return True
        return False


@dataclass(slots=True)
class Actual:
    """All that VPP holds of the plugin, as last read and as changed by acknowledged calls since."""

    conf: LbConf | None = None
    vips: dict[VipKey, ActualVip] = field(default_factory=dict)
