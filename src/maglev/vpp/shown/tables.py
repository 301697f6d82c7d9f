"""Frontends' new-flow tables, and the server of a flow. Answers from memory: nothing is read from VPP for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import ip_address

from maglev.base.errors import BadValue, Unavailable, UnknownName
from maglev.config.model import Config, Frontend, IPAddress, Protocol
from maglev.judgement.weights import StateSource
from maglev.views.dataplane import FlowAnswer, FlowQuestion, FlowServer, FrontendTable, VipFingerprint
from maglev.vpp.planning.flow import Flow, has_ports, hash_of
from maglev.vpp.planning.model import vip_key
from maglev.vpp.planning.tables import Table, fingerprint_text
from maglev.vpp.shown.reconciler_api import ReconcilerApi
from maglev.vpp.wire.messages import address_text

EXACT_IN_FLOAT = 53
"""Bits of a number that a sample of Prometheus holds exactly."""
OTHER_PROTOCOL = 1
"""ICMP, for flows of a protocol without ports: VPP hashes all of these alike."""
MOST_PORT = 65535


class TableViews:
    """Tables as the API and the metrics show them."""

    def __init__(self, reconciler: ReconcilerApi, states: StateSource) -> None:
        self._reconciler = reconciler
        self._states = states

    def table(self, name: str, *, with_buckets: bool) -> FrontendTable | None:
        """The table of a frontend; None while VPP is away or has not shown its VIP, and for a name without one."""
        config = self._states.config()
        frontend = config.frontends.get(name)
        reading = self._reconciler.table(vip_key(frontend)) if frontend is not None else None
        if frontend is None or reading is None:
            return None
        buckets: dict[str, int] = {}
        if with_buckets:
            names = _names(config, frontend)
            buckets = {names[one]: many for one, many in reading.table.buckets().items() if one in names}
        return FrontendTable(reading.table.length, fingerprint_text(reading.fingerprint), buckets)

    def fingerprints(self) -> Iterator[VipFingerprint]:
        """The fingerprint of each frontend whose table is known."""
        for name, frontend in self._states.config().frontends.items():
            key = vip_key(frontend)
            reading = self._reconciler.table(key)
            if reading is not None:
                value = reading.fingerprint >> (64 - EXACT_IN_FLOAT)
                yield VipFingerprint(name, str(key.prefix), str(frontend.protocol), frontend.port, value)

    def flow(self, question: FlowQuestion) -> FlowAnswer:
        """The server of a flow.

        Raises ``BadValue`` for addresses or ports that make no flow, ``UnknownName`` where no frontend has the VIP, and
        ``Unavailable`` while VPP is away or has not shown the VIP.
        """
        config = self._states.config()
        frontend, flow = _resolve(question, config.frontends)
        reading = self._reconciler.table(vip_key(frontend))
        if reading is None:
            raise Unavailable(f"VPP is away, or has not shown the VIP of frontend {frontend.name} yet")
        ports = has_ports(flow.protocol, sticky=frontend.src_ip_sticky)
        if ports and question.source_port is None:
            raise BadValue(f"frontend {frontend.name} chooses servers by port too: name the port of the source")
        hashed = hash_of(flow, sticky=frontend.src_ip_sticky)
        names = _names(config, frontend)
        return FlowAnswer(
            frontend=frontend.name,
            vip=str(vip_key(frontend)),
            by_address=not ports,
            hash=hashed,
            bucket=hashed % reading.table.length,
            table_length=reading.table.length,
            server=_server(reading.table, hashed, names),
            server_before=_server(reading.before, hashed, names),
            changed_at_ns=reading.changed_at_ns,
            read_at_ns=reading.read_at_ns,
            fingerprint=fingerprint_text(reading.fingerprint),
        )


def _names(config: Config, frontend: Frontend) -> dict[bytes, str]:
    """Names of a frontend's backends by packed address."""
    members = (member.backend for pool in frontend.pools for member in pool.members)
    return {config.backends[name].address.packed: name for name in members}


def _server(table: Table | None, hashed: int, names: Mapping[bytes, str]) -> FlowServer | None:
    owner = table.owner(hashed % table.length) if table is not None else None
    if owner is None:
        return None
    return FlowServer(address_text(owner), names.get(owner, ""))


def _resolve(question: FlowQuestion, frontends: Mapping[str, Frontend]) -> tuple[Frontend, Flow]:
    """The frontend that gets the flow, and the flow as VPP sees it."""
    source, address = _address("source", question.source), _address("VIP", question.address)
    if source.version != address.version:
        raise BadValue(f"a flow from {source} cannot go to {address}: both addresses are of one family")
    for port in (question.source_port or 0, question.port):
        if not 0 <= port <= MOST_PORT:
            raise BadValue(f"a port is 0 to {MOST_PORT}, not {port}")
    there = {(one.protocol, one.port): one for one in frontends.values() if one.address == address}
    wanted: tuple[Protocol, ...] = (Protocol.TCP, Protocol.UDP)
    if question.protocol is not None:
        wanted = (question.protocol,)
    elif question.source_port is None and not question.port:
        wanted = (Protocol.ANY,)
    for protocol in wanted:
        frontend = there.get((protocol, question.port)) if protocol is not Protocol.ANY else None
        frontend = frontend or there.get((Protocol.ANY, 0))
        if frontend is not None:
            number = OTHER_PROTOCOL if protocol is Protocol.ANY else int(protocol)
            return frontend, Flow(source, address, number, question.source_port or 0, question.port)
    named = question.protocol if question.protocol is not None else "tcp or udp"
    vips = [f"{one.address} {one.protocol} {one.port}" for one in frontends.values()]
    raise UnknownName("VIP", f"{address} {named} {question.port}", among=vips)


def _address(what: str, text: str) -> IPAddress:
    try:
        return ip_address(text)
    except ValueError:
        raise BadValue(f"the {what} is an IP address, not {text[:64]!r}") from None
