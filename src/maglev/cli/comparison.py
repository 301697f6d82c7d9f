"""The tables of several daemons' VPPs side by side. Pure.

A VIP is the same one on all nodes by address, protocol and port; its frontends may have different names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from maglev.cli.render import endpoint
from maglev.pb import maglev_pb2 as pb


def comparison(servers: Sequence[str], frontends: Sequence[Iterable[pb.FrontendInfo]]) -> pb.Comparison:
    """Each VIP whose table is not known to be the same on all ``servers``; ``frontends``: of each, in their order.

    A server *differs* where its table is not that of the most servers; between equally many, that of the first one
    counts.
    """
    vips: dict[str, dict[int, pb.FrontendInfo]] = {}
    for at, listed in enumerate(frontends):
        for info in listed:
            vips.setdefault(endpoint(info.address, info.protocol, info.port), {})[at] = info
    differences = [
        pb.VipDifference(vip=vip, tables=_tables(servers, found))
        for vip, found in vips.items()
        if not _equal(found, len(servers))
    ]
    return pb.Comparison(servers=servers, vips=len(vips), equal=not differences, differences=differences)


def _equal(found: dict[int, pb.FrontendInfo], servers: int) -> bool:
    prints = {info.fingerprint for info in found.values()}
    return len(found) == servers and len(prints) == 1 and "" not in prints


def _tables(servers: Sequence[str], found: dict[int, pb.FrontendInfo]) -> list[pb.ServerTable]:
    tables = [
        pb.ServerTable(server=server, frontend=found[at].name, fingerprint=found[at].fingerprint)
        if at in found
        else pb.ServerTable(server=server)
        for at, server in enumerate(servers)
    ]
    # Of equally many, Counter has the first one first.
    most = Counter(one.fingerprint for one in tables if one.fingerprint).most_common(1)
    for one in tables:
        one.differs = not one.fingerprint or one.fingerprint != most[0][0]
    return tables
