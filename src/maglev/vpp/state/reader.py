"""Reads the state of VPP: the list of VIPs, their ASes, the global settings, and from the CLI index and stickiness.

Reading stalls VPP too (a dump of 50,000 ASes for a tenth of a second). So ASes are read VIP by VIP, when the caller
decides, and the CLI only at connect and after VIPs came or went.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
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

_AS_LINE = re.compile(r"\n    (?P<address>[0-9a-fA-F.:]+) weight:[0-9]+ buckets:[0-9]+ flows:(?P<flows>[0-9]+) ")


def parse_verbose(text: str) -> dict[VipKey, VerboseVip]:
    """The live VIPs in the output of ``show lb vips verbose``; what is removed and lingers is left out.

    Lines that are not understood are passed over: another build of VPP may say more. Nearly all are of ASes. Raises
    ProtocolError for numbers that no VIP has.
    """
    text = f"\n{text}\n"
    return {
        key: VerboseVip(number_of(head["index"], 0xFFFFFFFF), "src_ip_sticky" in head["flags"].split())
        for key, head, _ in _sections(text)
    }


def parse_flows(text: str, wanted: Collection[tuple[VipKey, bytes]]) -> dict[tuple[VipKey, bytes], int]:
    """The flows of these ASes in the output of ``show lb vips verbose``; an AS that VPP lacks is left out.

    A deleted AS counts as long as it lingers: VPP still sends it the packets of its flows. Raises ProtocolError for
    numbers that no AS has.
    """
    text = f"\n{text}\n"
    keys = {key for key, _ in wanted}
    found: dict[tuple[VipKey, bytes], int] = {}
    for key, head, end in _sections(text):
        if key not in keys:
            continue
        for line in _AS_LINE.finditer(text, head.end(), end):
            try:
                one = (key, ip_address(line["address"]).packed)
            except ValueError:
                continue
            if one in wanted:
                found[one] = found.get(one, 0) + number_of(line["flows"], (1 << 64) - 1)
    return found


def _sections(text: str) -> Iterator[tuple[VipKey, re.Match[str], int]]:
    """The live VIPs of the output: key, first line, and where the section ends."""
    heads = list(_VIP_LINE.finditer(text))
    ends = [*(head.start() for head in heads[1:]), len(text)]
    for head, end in zip(heads, ends, strict=False):
        if "removed" in head["flags"].split():
            continue
        ported = _PORT_LINE.search(text, head.end(), end)
        protocol, port = ANY_PROTOCOL, 0
        if ported is not None:
            protocol, port = number_of(ported["protocol"], 255), number_of(ported["port"], 65535)
        try:
            yield VipKey.parse(head["prefix"], protocol, port), head, end
        except ValueError:
            continue


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
        return self._understand(partial(parse_verbose, await self.verbose_text()))

    async def verbose_text(self) -> str:
        """The output of ``show lb vips verbose``."""
        return await self._client.cli("show lb vips verbose")

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
