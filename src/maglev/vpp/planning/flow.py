"""The server that VPP chooses for a new flow: VPP's flow hash gives the bucket, its table the server. Pure.

VPP looks into its table of sticky flows first, so a flow that is older than the last change of weights may still go to
the server that it had. VPP has no message that lists its sticky flows.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from maglev._flowhash import flow_hash
from maglev._flowtable import build
from maglev.vpp.planning.buckets import padded

TCP, UDP = 6, 17


class Flow(NamedTuple):
    """A flow toward a VIP. ``protocol``: the number of IP; both addresses are of one family."""

    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address
    protocol: int = TCP
    source_port: int = 0
    destination_port: int = 0


def hash_of(flow: Flow, *, sticky: bool) -> int:
    """VPP's 32-bit hash of a flow. ``sticky``: the VIP has ``src-ip-sticky``, which leaves the ports out.

    Of protocols other than TCP and UDP, VPP reads no ports. Raises ValueError for addresses of two families.
    """
    ports = (flow.source_port, flow.destination_port) if flow.protocol in (TCP, UDP) and not sticky else (0, 0)
    return flow_hash(flow.source.packed, flow.destination.packed, *ports)


def table_of(weights: Mapping[bytes, int], length: int) -> list[bytes]:
    """The new-flow table: the packed address for each bucket. Empty where every weight is 0.

    Raises ValueError for a length or a weight that VPP does not have.
    """
    if not any(weights.values()):
        return []
    addresses = list(weights)
    _, table = build(padded(weights), length)
    return [addresses[index] for index in table]
