"""The cost of calls for a real VPP's main thread: the tables from which the cost formula comes."""

from __future__ import annotations

import itertools
from ipaddress import ip_address

from bench._dataplane import run as on_loop
from bench._vpp import SOCKET, Vpp, connected
from bench.harness import Figure
from maglev.vpp.planning.cost import CostModel
from maglev.vpp.planning.plan import Op, Step
from maglev.vpp.wire.messages import Encap, VipKey

QUESTION = "What do a weight call, a flush and a read cost VPP's main thread? (VPP_SOCKET=...; nothing without)"

MEMBERS = (10, 100, 1000)
WEIGHTS = (1, 100)
LENGTHS = (1024, 16384, 65536)
CALLS = 200
KEY = VipKey.parse("192.0.2.1/32", 6, 80)


def run() -> list[Figure]:
    """Each call sets the weight that the AS has already, which builds the table all the same."""
    if not SOCKET:
        return []
    return on_loop(_measure)


async def _measure() -> list[Figure]:
    figures = []
    async with connected() as vpp:
        for length in LENGTHS:
            for members in MEMBERS:
                figures += await _vip(vpp, length, [(ip_address("10.0.0.1") + n).packed for n in range(members)])
    return figures


async def _vip(vpp: Vpp, length: int, addresses: list[bytes]) -> list[Figure]:
    figures = []
    await vpp.send([Step(Op.CREATE_VIP, KEY, encap=Encap.GRE4, length=length)])
    try:
        await vpp.send([Step(Op.ADD_AS, KEY, address=address) for address in addresses])
        for weight in WEIGHTS:
            await vpp.send([Step(Op.SET_WEIGHT, KEY, address=address, weight=weight) for address in addresses])
            turns = itertools.islice(itertools.cycle(addresses), CALLS)
            again = [Step(Op.SET_WEIGHT, KEY, address=address, weight=weight) for address in turns]
            words = f"{len(addresses)} ASes at {weight}, length {length}"
            cost = await vpp.send(again) / CALLS
            figures.append(Figure(f"weight call: {words}", cost * 1e3, "ms"))
            formula = CostModel().rebuild(length, weight * len(addresses)) / 1e9
            figures.append(Figure("  by the formula", formula * 1e3, "ms"))
        flushed = [step._replace(flush=True) for step in again]
        flush = await vpp.send(flushed) / CALLS - cost
        figures.append(Figure("  a flush on top of it, 1,024 sticky buckets", flush * 1e3, "ms"))
        before = vpp.cpu_ns()
        for _ in range(CALLS):
            await vpp.reader.ases(KEY)
        read = (vpp.cpu_ns() - before) / CALLS / 1e6
        figures.append(Figure(f"read: {len(addresses)} ASes, length {length}", read, "ms"))
        figures.append(Figure("  by the formula", CostModel().read(length, len(addresses)) / 1e6, "ms"))
    finally:
        await vpp.send(
            [
                *(Step(Op.SET_WEIGHT, KEY, address=address) for address in addresses),
                *(Step(Op.DELETE_AS, KEY, address=address) for address in addresses),
                Step(Op.DELETE_VIP, KEY),
            ]
        )
    return figures
