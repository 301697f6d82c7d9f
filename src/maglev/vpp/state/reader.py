"""Reads the state of VPP: the list of VIPs, their ASes, the global settings, and from the CLI index and stickiness.

Reading stalls VPP too (a dump of 50,000 ASes for a tenth of a second). So ASes are read VIP by VIP, when the caller
decides, and the CLI only at connect and after VIPs came or went.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from maglev.base.pace import Pace
from maglev.vpp.planning.model import ActualAs, ActualVip
from maglev.vpp.wire.client import VppClient
from maglev.vpp.wire.messages import (
    ANY_PROTOCOL,
    REPLY_PAYLOAD,
    AsDetails,
    LbConf,
    ProtocolError,
    VipDetails,
    VipKey,
    number_of,
    pack_as_dump,
    pack_vip_dump,
    unpack_as_details,
    unpack_conf,
    unpack_vip_details,
)

T = TypeVar("T")

SLICE = 200
"""Entries that are unpacked between two looks at the clock."""


@dataclass(frozen=True, slots=True)
class VerboseVip:
    """Properties of a VIP that ``show lb vips verbose`` shows and no API message has."""

    index: int
    sticky: bool


# Each with the line break before it: what begins with a fixed text is searched for many times faster.
_VIP_LINE = re.compile(r"\n (?P<kind>\S+) \[(?P<index>[0-9]+)\] (?P<prefix>[0-9a-fA-F.:]+/[0-9]+)(?P<flags>[^\r\n]*)")
_PORT_LINE = re.compile(r"\n  protocol:(?P<protocol>[0-9]+) port:(?P<port>[0-9]+)[ \t]*(?=[\r\n])")


def parse_verbose(text: str) -> dict[VipKey, VerboseVip]:
    """The live VIPs in the output of ``show lb vips verbose``; what is removed and lingers is left out.

    Lines that are not understood are passed over: another build of VPP may say more. Nearly all are of ASes. Raises
    ProtocolError for numbers that no VIP has.
    """
    text = f"\n{text}\n"
    heads = list(_VIP_LINE.finditer(text))
    ends = [*(head.start() for head in heads[1:]), len(text)]
    found: dict[VipKey, VerboseVip] = {}
    for head, end in zip(heads, ends, strict=False):
        flags = head["flags"].split()
        if "removed" in flags:
            continue
        ported = _PORT_LINE.search(text, head.end(), end)
        protocol, port = ANY_PROTOCOL, 0
        if ported is not None:
            protocol, port = number_of(ported["protocol"], 255), number_of(ported["port"], 65535)
        index = number_of(head["index"], 0xFFFFFFFF)
        try:
            key = VipKey.parse(head["prefix"], protocol, port)
        except ValueError:
            continue
        found[key] = VerboseVip(index, "src_ip_sticky" in flags)
    return found


def table_length(details: VipDetails) -> int:
    """The length of the new-flow table: it is u16 on the wire, where 65536 reads as 0."""
    return details.flow_table_length or 65536


class StateReader:
    """Reads from one VPP. Errors of the connection pass through; what VPP answers wrongly drops the connection."""

    def __init__(self, client: VppClient) -> None:
        self._client = client

    async def conf(self) -> LbConf:
        """The global settings."""
        payload = await self._client.call("lb_conf_get")
        return self._understand(partial(unpack_conf, payload))

    async def vips(self) -> dict[VipKey, VipDetails]:
        """The live VIPs. VPP ignores every filter of this dump."""
        bodies = await self._client.dump("lb_vip_dump", pack_vip_dump())
        found: dict[VipKey, VipDetails] = {}
        pace = Pace()
        for body in bodies:
            details = self._understand(partial(unpack_vip_details, body[REPLY_PAYLOAD:]))
            found[details.key] = details
            await pace.breathe()
        return found

    async def ases(self, key: VipKey) -> list[AsDetails]:
        """The ASes of one VIP, with those that were deleted and linger."""
        bodies = await self._client.dump("lb_as_v2_dump", pack_as_dump(key))
        found: list[AsDetails] = []
        keys: dict[bytes, VipKey] = {}
        pace = Pace()
        for start in range(0, len(bodies), SLICE):
            part = bodies[start : start + SLICE]
            found += self._understand(partial(unpack_as_details, part, keys))
            await pace.breathe()
        return [details for details in found if details.vip == key]

    async def verbose(self) -> dict[VipKey, VerboseVip]:
        """Index and stickiness of the live VIPs."""
        output = await self._client.cli("show lb vips verbose")
        return self._understand(partial(parse_verbose, output))

    def _understand(self, unpack: Callable[[], T]) -> T:
        try:
            return unpack()
        except ProtocolError as error:
            self._client.drop(f"VPP sent nonsense: {error}")
            raise


def new_vip(details: VipDetails) -> ActualVip:
    """A VIP as the list of VIPs has it, without its ASes."""
    return ActualVip(details.key, details.encap, table_length(details))


def fill(vip: ActualVip, details: Iterable[AsDetails]) -> None:
    """Put the ASes of a VIP as read into it. An AS that is known to hold no flow stays clean while its weight is 0."""
    before, vip.ases, vip.lingering = vip.ases, {}, 0
    for one in details:
        if not one.live:
            vip.lingering += 1
            continue
        known = before.get(one.address)
        clean = one.weight == 0 and known is not None and known.clean
        vip.ases[one.address] = ActualAs(one.weight, one.num_buckets, clean)
    vip.flushed = vip.flushed and not vip.serves


def describe(vips: Mapping[VipKey, ActualVip], verbose: Mapping[VipKey, VerboseVip]) -> None:
    """Put index and stickiness into the VIPs."""
    for key, vip in vips.items():
        told = verbose.get(key)
        if told is not None:
            vip.index, vip.sticky = told.index, told.sticky
