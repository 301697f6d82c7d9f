"""Weights in the stand-in, by the names of servers."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address

from maglev.vppsim.model import extract
from maglev.vppsim.server import StandIn


def weights_of(vpp: StandIn, servers: Mapping[str, str]) -> dict[str, int]:
    """Weights above 0 in VPP, by server. ``servers``: addresses by name, each in one VIP at most."""
    names = {ip_address(address).packed: name for name, address in servers.items()}
    return {
        names[extract(server.address)]: server.weight
        for vip in vpp.model.visible_vips()
        for server in vpp.model.ases_of(vip)
        if server.used and server.weight
    }
