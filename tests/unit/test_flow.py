"""The flow hash and the server of a flow: against the choices of a real VPP, and its refusals."""

from __future__ import annotations

import json
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from maglev._flowhash import flow_hash
from maglev.vpp.planning.flow import TCP, UDP, Flow, hash_of
from maglev.vpp.planning.model import ActualAs
from maglev.vpp.planning.tables import table_of

RECORDED = [json.loads(line) for line in (Path(__file__).parent.parent / "data" / "flows.jsonl").open()]
"""Which server a VPP 26.10 chose for each flow: packets of its packet generator, one recording a VIP."""

ICMP = 1
A, B = ip_address("198.51.100.7"), ip_address("192.0.2.1")


def test_recordings_are_there() -> None:
    assert {(ip_address(vip["vip"]).version, vip["sticky"]) for vip in RECORDED} == {
        (4, False),
        (4, True),
        (6, False),
        (6, True),
    }
    assert {flow[2] for vip in RECORDED for flow in vip["flows"]} == {TCP, UDP}
    assert sum(len(vip["flows"]) for vip in RECORDED) > 300


@pytest.mark.parametrize("vip", RECORDED, ids=range(len(RECORDED)))
def test_each_flow_goes_where_vpp_sent_it(vip: dict[str, Any]) -> None:
    ases = {ip_address(one).packed: ActualAs(weight) for one, weight in vip["weights"].items()}
    table = table_of(ases, vip["length"]).owners()
    for source, port, protocol, destination_port, server in vip["flows"]:
        flow = Flow(ip_address(source), ip_address(vip["vip"]), protocol, port, destination_port)
        assert table[hash_of(flow, sticky=vip["sticky"]) % len(table)] == ip_address(server).packed


def test_ports_count_for_tcp_and_udp_without_stickiness_only() -> None:
    def hashed(protocol: int, sticky: bool, port: int) -> int:
        return hash_of(Flow(A, B, protocol, port, 80), sticky=sticky)

    for protocol in (TCP, UDP):
        assert hashed(protocol, False, 1) != hashed(protocol, False, 2)
        assert hashed(protocol, True, 1) == hashed(protocol, True, 2)
    assert hashed(ICMP, False, 1) == hashed(ICMP, False, 2)
    assert hashed(TCP, False, 1) == hashed(UDP, False, 1)


@pytest.mark.parametrize(
    ("source", "destination"), [(b"", b""), (b"1234", b"1" * 16), (b"12345", b"12345"), (b"1" * 16, b"1234")]
)
def test_addresses_of_other_lengths_or_two_families_are_refused(source: bytes, destination: bytes) -> None:
    with pytest.raises(ValueError, match="both addresses have 4 bytes, or both have 16"):
        flow_hash(source, destination, 1, 2)


@pytest.mark.parametrize("ports", [(-1, 0), (0, 65536)])
def test_ports_out_of_range_are_refused(ports: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="a port is 0 to 65535"):
        flow_hash(A.packed, B.packed, *ports)


def test_none_is_no_address() -> None:
    with pytest.raises(TypeError):
        flow_hash(None, B.packed)  # type: ignore[arg-type]
