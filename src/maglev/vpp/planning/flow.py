"""The bucket of a flow in a VIP's new-flow table, by VPP's own hash. Pure.

The bucket's server gets the flow if it is new. VPP looks into its table of sticky flows first, so a flow that is older
than the last change of weights may still go to the server that it had. VPP has no message that lists its sticky flows.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from maglev._flowhash import flow_hash

TCP, UDP = 6, 17


class Flow(NamedTuple):
    """A flow toward a VIP. ``protocol``: the number of IP; both addresses are of one family."""

    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address
    protocol: int = TCP
    source_port: int = 0
    destination_port: int = 0


def has_ports(protocol: int, *, sticky: bool) -> bool:
    """VPP hashes the ports of TCP and UDP, unless the VIP has ``src-ip-sticky``; of other protocols it reads none."""
    return protocol in (TCP, UDP) and not sticky


def hash_of(flow: Flow, *, sticky: bool) -> int:
    """VPP's 32-bit hash of a flow; modulo the length of a table, it is the bucket. ``sticky``: by source alone.

    Raises ValueError for addresses of two families.
    """
    ports = (flow.source_port, flow.destination_port) if has_ports(flow.protocol, sticky=sticky) else (0, 0)
    return flow_hash(flow.source.packed, flow.destination.packed, *ports)
