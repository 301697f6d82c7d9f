"""A VIP's new-flow table as a value: its length and the weights that it is built of, and its fingerprint. Pure.

VPP builds the table from nothing else, so two VIPs with equal values have equal tables, on whatever node they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import NamedTuple

from maglev._flowtable import build
from maglev.vpp.planning.buckets import padded, predicted
from maglev.vpp.planning.model import ActualAs

KEY = 16
"""Bytes of an address as VPP sorts it: IPv4 is 12 zero bytes, then its four."""
ENTRY = KEY + 1
"""Bytes of a server: its address, then its weight (u8 in VPP's API)."""
FINGERPRINT_BYTES = 8


class Table(NamedTuple):
    """A table of ``length`` buckets. ``servers``: those with a weight above 0, ``ENTRY`` bytes each, by address.

    ``size``: bytes of their addresses in the API, 4 or 16. Packed, since VIPs with thousands of servers keep two.
    """

    length: int
    servers: bytes
    size: int = 4

    @property
    def fingerprint(self) -> int:
        """64 bits over length and servers: BLAKE2b, read as a big-endian number. Equal tables have equal ones."""
        digest = blake2b(self.length.to_bytes(4, "big") + self.servers, digest_size=FINGERPRINT_BYTES)
        return int.from_bytes(digest.digest(), "big")

    def weights(self) -> dict[bytes, int]:
        """The weight of each server, by packed address, in VPP's order."""
        return {
            self.servers[at + KEY - self.size : at + KEY]: self.servers[at + KEY]
            for at in range(0, len(self.servers), ENTRY)
        }

    def buckets(self) -> dict[bytes, int]:
        """The buckets of each server."""
        return predicted(self.weights(), self.length)

    def owner(self, bucket: int) -> bytes | None:
        """The server of one bucket; None where no server has a weight. As costly as all of them."""
        weights = self.weights()
        if not weights:
            return None
        _, table = build(padded(weights), self.length)
        return list(weights)[table[bucket]]

    def owners(self) -> list[bytes]:
        """The server of each bucket; empty where no server has a weight. Takes milliseconds for large tables."""
        weights = self.weights()
        if not weights:
            return []
        servers = list(weights)
        _, table = build(padded(weights), self.length)
        return [servers[index] for index in table]


def table_of(ases: Mapping[bytes, ActualAs], length: int) -> Table:
    """The table of a VIP with these live ASes, all of one family."""
    servers = sorted(
        address.rjust(KEY, b"\0") + bytes((found.weight,)) for address, found in ases.items() if found.weight > 0
    )
    return Table(length, b"".join(servers), len(next(iter(ases), b"\0\0\0\0")))


def fingerprint_text(fingerprint: int) -> str:
    """A fingerprint as it is shown: 16 hexadecimal digits."""
    return f"{fingerprint:016x}"
