"""Packets through the VPP under test: VPP's own packet generator sends them, and captures what ``lb`` forwards.

An interface of the generator for each family carries bare IP packets in and out; the servers' networks are routed to
it. ``pcap`` files in a directory of the test are the packets that VPP sends, and those that it forwarded: VPP reads and
writes them, so it must run on this machine and see that directory. The outer destination of a forwarded packet is the
server, the inner packet the flow.

The generator needs an explicit input node: it looks up the mode of the interface by the number in its name, as if that
were its index, and VPP ends with SIGSEGV where the two differ and packets without an Ethernet header reach Ethernet's
node.
"""

from __future__ import annotations

import asyncio
import re
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from maglev.vpp.planning.flow import TCP, Flow, hash_of
from maglev.vppsim.inspect import Client

DEADLINE = 20.0
MOST_PACKETS = 400_000
"""Bound of one stream, whatever the test does."""
STICKY_BUCKETS = (1 << 16, 1 << 17)
"""Four flows each: so many that no flow of a test stays untracked because others fill its bucket."""
RAW_IP = 101
GRE = 47


class Port(NamedTuple):
    """An interface of the generator, and the network of the servers that it leads to."""

    name: str
    family: int
    servers: str

    @property
    def ip(self) -> str:
        return "ip" if self.family == 4 else "ip6"

    @property
    def node(self) -> str:
        return f"ip{self.family}-input"


PORTS = {4: Port("pg901", 4, "10.9.0.0/16"), 6: Port("pg902", 6, "2001:db8:9::/48")}


class Packet(NamedTuple):
    """A forwarded packet: when (seconds of VPP's clock), which flow, to which server."""

    at: float
    flow: Flow
    server: str


def flows_to(vip: str, count: int, *, protocol: int = TCP, port: int = 80, first: int = 0) -> list[Flow]:
    """Flows toward a VIP, from number ``first`` on: many sources, and several ports of each.

    Fewer than ``count``: no two of them share a bucket of the sticky table, where they would leave less room for flows
    that are flushed.
    """
    destination = ip_address(vip)
    base = int(ip_address("198.18.0.1" if destination.version == 4 else "2001:db8:c::1"))
    make = type(destination)
    found: dict[int, Flow] = {}
    for number in range(first, first + count):
        flow = Flow(make(base + number // 4), destination, protocol, 1024 + number * 7 % 60000, port)
        found.setdefault(hash_of(flow, sticky=False) % min(STICKY_BUCKETS), flow)
    return list(found.values())


# ------------------------------------------------------------------------------------------------------------- packets


def packed(flow: Flow) -> bytes:
    """A packet of the flow. Only the checksum that VPP's input verifies is right: that of the IPv4 header."""
    if flow.protocol == TCP:
        ports = struct.pack("!HHIIBBHHH", flow.source_port, flow.destination_port, 1, 1, 0x50, 0x10, 8192, 0, 0)
    else:
        ports = struct.pack("!HHHH", flow.source_port, flow.destination_port, 8, 0)
    addresses = flow.source.packed + flow.destination.packed
    if flow.source.version == 6:
        return struct.pack("!IHBB", 6 << 28, len(ports), flow.protocol, 64) + addresses + ports
    head = struct.pack("!BBHHHBB", 0x45, 0, 20 + len(ports), 0, 0, 64, flow.protocol)
    return head + struct.pack("!H", _checksum(head + addresses)) + addresses + ports


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def _headers(packet: bytes) -> tuple[int, bytes, bytes, bytes]:
    """Protocol, source, destination, and what follows the IP header."""
    if packet[0] >> 4 == 4:
        return packet[9], packet[12:16], packet[16:20], packet[20:]
    return packet[6], packet[8:24], packet[24:40], packet[40:]


def unpacked(at: float, packet: bytes) -> Packet:
    """A packet as forwarded: GRE around the packet of the flow."""
    protocol, _, server, rest = _headers(packet)
    assert protocol == GRE
    inner, source, destination, segment = _headers(rest[4:])
    ports = struct.unpack_from("!HH", segment)
    return Packet(at, Flow(ip_address(source), ip_address(destination), inner, *ports), str(ip_address(server)))


def write_pcap(path: Path, packets: Iterable[bytes]) -> None:
    """A file for the generator to send."""
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, RAW_IP))
        for packet in packets:
            file.write(struct.pack("<IIII", 0, 0, len(packet), len(packet)) + packet)


def read_pcap(path: Path) -> Iterator[Packet]:
    """The packets that VPP has captured. VPP makes the file with the first packet."""
    if not path.exists():
        return
    data, offset = path.read_bytes(), 24
    while offset < len(data):
        seconds, micros, length, _ = struct.unpack_from("<IIII", data, offset)
        offset += 16
        yield unpacked(seconds + micros / 1e6, data[offset : offset + length])
        offset += length


# ----------------------------------------------------------------------------------------------------------- generator


@dataclass
class Traffic:
    """The flows of a stream, the number of packets sent, and the packets that VPP has forwarded, in order."""

    flows: Sequence[Flow]
    sent: int = 0
    packets: list[Packet] = field(default_factory=list)

    @property
    def lost(self) -> int:
        return self.sent - len(self.packets)

    def servers(self) -> dict[Flow, list[str]]:
        """The servers of each flow in order, one entry for each move; nothing for a flow without a packet."""
        found: dict[Flow, list[str]] = {}
        for packet in self.packets:
            found.setdefault(packet.flow, []).append(packet.server)
        return {flow: [server for server, _ in groupby(servers)] for flow, servers in found.items()}

    def last(self) -> dict[Flow, str]:
        """The server that got the last packet of each flow."""
        return {packet.flow: packet.server for packet in self.packets}


class Generator:
    """VPP's packet generator. Sends one stream at a time."""

    def __init__(self, socket: Path, directory: Path) -> None:
        self._socket = socket
        self._directory = directory
        self._number = 0

    async def cli(self, command: str) -> str:
        """A command's output. A command that fails ends the test."""

        def ask() -> str:
            with Client(self._socket, "traffic") as client:
                reply = client.call("cli_inband", cmd=command)
            assert reply["retval"] == 0, f"{command}: {reply['reply']}"
            return str(reply["reply"])

        return await asyncio.to_thread(ask)

    async def set_up(self) -> None:
        for port in PORTS.values():
            await self.cli(f"create packet-generator interface {port.name} mode ip{port.family}")
            await self.cli(f"set interface state {port.name} up")
            address = "198.19.255.1/32" if port.family == 4 else "2001:db8:ffff::1/128"
            await self.cli(f"set interface ip address {port.name} {address}")
            await self.cli(f"ip route add {port.servers} via {port.name}")

    async def tear_down(self) -> None:
        for port in PORTS.values():
            await self.cli(f"ip route del {port.servers} via {port.name}")
            await self.cli(f"delete packet-generator interface {port.name}")

    async def burst(self, flows: Sequence[Flow]) -> dict[Flow, str]:
        """One packet of each flow; the server of each flow that VPP has forwarded."""
        async with self.stream(flows, rate=200_000, limit=len(flows)) as traffic:
            await self._until(lambda text: " No " in text)
        assert traffic.sent == len(flows)
        return traffic.last()

    @asynccontextmanager
    async def stream(
        self, flows: Sequence[Flow], *, rate: int = 40_000, limit: int = MOST_PACKETS
    ) -> AsyncIterator[Traffic]:
        """Packets of these flows, all of one family, one flow after the other and again, until the block ends.

        The block begins when every flow has had a packet, and after its end each flow gets another one.
        """
        port = PORTS[flows[0].source.version]
        traffic, name, captured = Traffic(flows), f"test{self._number}", self._file("out")
        source = self._file("in")
        self._number += 1
        write_pcap(source, (packed(flow) for flow in flows))
        for one in PORTS.values():
            await self.cli(f"packet-generator capture {one.name} pcap {captured}.{one.family}")
        await self.cli(
            f"packet-generator new name {name} pcap {source} source {port.name} node {port.node} rate {rate}"
            f" limit {limit}"
        )
        try:
            await self.cli(f"packet-generator enable-stream {name}")
            await self._until(lambda text: _count(text, name) >= len(flows))
            yield traffic
            if limit == MOST_PACKETS:
                done = _count(await self.cli("show packet-generator"), name)
                await self._until(lambda text: _count(text, name) >= min(done + len(flows), limit))
        finally:
            await self.cli(f"packet-generator disable-stream {name}")
            traffic.sent = _count(await self.cli("show packet-generator"), name)
            for one in PORTS.values():
                await self.cli(f"packet-generator capture {one.name} disable")
            await self.cli(f"packet-generator delete {name}")
        for family in PORTS:
            traffic.packets += read_pcap(Path(f"{captured}.{family}"))
        assert traffic.sent < MOST_PACKETS, "the stream has ended before the test"

    def _file(self, what: str) -> Path:
        return self._directory / f"{what}{self._number}.pcap"

    async def _until(self, reached: Callable[[str], bool]) -> None:
        """Waits for a state of the generator, which announces nothing."""
        async with asyncio.timeout(DEADLINE):
            while not reached(await self.cli("show packet-generator")):  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    async def counted(self, kind: str) -> int:
        """Packets that the counters of all VIPs have counted as ``kind``."""
        text = await self.cli("show lb vips verbose")
        return sum(int(number) for number in re.findall(rf"{kind}: ([0-9]+)", text))


def _count(text: str, name: str) -> int:
    """Packets that a stream has sent, in the output of ``show packet-generator``."""
    found = re.search(rf"^{name}\s+(?:Yes|No)\s+([0-9]+)", text, re.MULTILINE)
    assert found is not None
    return int(found[1])


@asynccontextmanager
async def generator(socket: Path, directory: Path) -> AsyncIterator[Generator]:
    """The generator with its interfaces, and a table for many flows; afterwards VPP is as it was."""
    made = Generator(socket, directory)
    with Client(socket, "traffic") as client:
        before = client.call("lb_conf_get")
    settings = {name: value for name, value in before.items() if name != "retval"}

    async def configure(buckets: int) -> None:
        with Client(socket, "traffic") as client:
            client.call("lb_conf", **{**settings, "sticky_buckets_per_core": buckets})

    await made.set_up()
    try:
        # VPP makes a table of another size with the next packet, and forgets all flows then. A table of the same size
        # would still have the flows of the test before, in the buckets that the same flows fall into again.
        shown = await made.cli("show lb")
        await configure(next(size for size in STICKY_BUCKETS if f"/ {size + 3}" not in shown))
        yield made
    finally:
        await made.tear_down()
        await configure(settings["sticky_buckets_per_core"])
