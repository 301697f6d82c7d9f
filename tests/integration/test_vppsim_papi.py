"""vpp_papi, VPP's own Python client, against the stand-in; and its codec as the judge of ours."""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vpp_papi import VPPApiClient, VPPApiJSONFiles

from maglev.vpp.wire import messages
from maglev.vpp.wire.messages import MESSAGES, Envelope, Prefix, Route, Thread, VipKey
from maglev.vppsim import definitions
from tests.helpers import transcripts
from tests.helpers.vppsim import DEADLINE, connected, stand_in


@pytest.fixture(scope="module")
def papi() -> dict[str, Any]:
    """vpp_papi's codec of every message, made of the definitions that the stand-in hands out."""
    found, _ = VPPApiJSONFiles.process_json_array_str(definitions.api_json(MESSAGES))
    return dict(found)


def _body(name: str, payload: bytes) -> bytes:
    # Message id 0x1234, client index 0x01020304, context 0x0a0b0c0d, as far as the message has them.
    envelope = MESSAGES[name].envelope
    if name == "sockclnt_create" or envelope is Envelope.REPLY:
        return bytes.fromhex("1234 0a0b0c0d") + payload
    return bytes.fromhex("1234 01020304 0a0b0c0d") + payload


def _papi_value(value: Any) -> Any:
    if isinstance(value, Prefix):
        return str(value)
    if isinstance(value, VipKey):
        return {"pfx": str(value.prefix), "protocol": value.protocol, "port": value.port}
    if isinstance(value, bytes):
        return str(ipaddress.ip_address(value))
    return value


V4, V6 = Prefix.parse("192.0.2.0/24"), Prefix.parse("2001:db8::/32")
A4, A6 = ipaddress.ip_address("10.1.2.3").packed, ipaddress.ip_address("2001:db8::7").packed
KEY4, KEY6 = VipKey.parse("192.0.2.1/32", 6, 443), VipKey.parse("2001:db8::1/128", 17, 53)

SAMPLES: list[tuple[str, dict[str, Any]]] = [
    ("sockclnt_create", {"name": "maglevd"}),
    ("sockclnt_delete", {"index": 77}),
    ("sockclnt_delete_reply", {"response": 1}),
    ("control_ping", {}),
    ("control_ping_reply", {"retval": 0, "client_index": 0x01020304, "vpe_pid": 4711}),
    ("memclnt_keepalive", {}),
    ("memclnt_keepalive_reply", {"retval": -1}),
    ("get_api_json", {}),
    ("get_api_json_reply", {"retval": 0, "json": '[{"a": 1}]'}),
    (
        "show_version_reply",
        {"retval": 0, "program": "vpe", "version": "26.10", "build_date": "today", "build_directory": "/usr/src"},
    ),
    ("show_vpe_system_time_reply", {"retval": 0, "vpe_system_time": 1755734400.25}),
    ("cli_inband", {"cmd": "show lb vips verbose"}),
    ("cli_inband_reply", {"retval": -1, "reply": "lb vip: parse error\n"}),
    ("ip_route_lookup", {"table_id": 1, "exact": 1, "prefix": V4}),
    ("ip_route_lookup", {"table_id": 0, "exact": 0, "prefix": V6}),
    ("lb_conf", {"ip4_src_address": A4, "ip6_src_address": A6, "sticky_buckets_per_core": 1 << 16, "flow_timeout": 40}),
    ("lb_conf", {"ip4_src_address": A4, "ip6_src_address": A6}),
    (
        "lb_conf_get_reply",
        {
            "retval": 0,
            "ip4_src_address": A4,
            "ip6_src_address": A6,
            "sticky_buckets_per_core": 1024,
            "flow_timeout": 40,
        },
    ),
    ("lb_add_del_vip", {"pfx": V4, "protocol": 6, "port": 80, "encap": 1, "dscp": 3, "is_del": True}),
    (
        "lb_add_del_vip_v2",
        {
            "pfx": V6,
            "protocol": 17,
            "port": 53,
            "encap": 4,
            "type": 1,
            "target_port": 8053,
            "node_port": 30053,
            "new_flows_table_length": 65536,
            "src_ip_sticky": True,
        },
    ),
    ("lb_add_del_as", {"pfx": V4, "protocol": 6, "port": 80, "as_address": A6, "is_flush": True}),
    ("lb_add_del_as_v2", {"pfx": V6, "protocol": 6, "port": 80, "as_address": A4}),
    ("lb_add_del_as_v2", {"pfx": V6, "protocol": 6, "port": 80, "as_address": A4, "weight": 7, "is_del": True}),
    ("lb_as_set_weight", {"pfx": V4, "protocol": 6, "port": 80, "as_address": A4, "weight": 0, "is_flush": True}),
    ("lb_flush_vip", {"pfx": V4, "protocol": 6, "port": 80}),
    ("lb_vip_dump", {}),
    (
        "lb_vip_details",
        {"vip": KEY6, "encap": 2, "dscp": 46, "srv_type": 1, "target_port": 99, "flow_table_length": 16384},
    ),
    ("lb_as_dump", {"pfx": V4, "protocol": 6, "port": 80}),
    ("lb_as_details", {"vip": KEY4, "app_srv": A6, "flags": 1, "in_use_since": 5}),
    ("lb_as_v2_dump", {}),
    (
        "lb_as_v2_details",
        {"vip": KEY4, "app_srv": A4, "flags": 0, "in_use_since": 5, "weight": 100, "num_buckets": 70000},
    ),
]


@pytest.mark.parametrize(("name", "values"), SAMPLES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_message_has_the_bytes_that_vpp_papi_makes_of_it(
    papi: dict[str, Any], name: str, values: dict[str, Any]
) -> None:
    ours = MESSAGES[name].pack(**values)
    theirs = {key: _papi_value(value) for key, value in values.items()}
    envelope = {"_vl_msg_id": 0x1234, "client_index": 0x01020304, "context": 0x0A0B0C0D}
    assert bytes(papi[name].pack({**envelope, **theirs})) == _body(name, ours)
    unpacked, size = papi[name].unpack(_body(name, ours))
    assert size == len(_body(name, ours))
    unconverted, _ = papi[name].unpack(_body(name, ours), ntc=True)
    for key, value in theirs.items():
        found = getattr(unconverted if isinstance(value, float) else unpacked, key)
        if isinstance(value, dict):
            assert {"pfx": str(found.pfx), "protocol": found.protocol, "port": found.port} == value
        else:
            assert (str(found) if isinstance(value, str) else found) == value
    back = MESSAGES[name].unpack(ours)
    assert {key: back[key] for key in values} == values


def test_vpp_papi_reads_the_handshake_threads_and_routes(papi: dict[str, Any]) -> None:
    table = [(15, "sockclnt_create_455fb9c4"), (300, "lb_conf_56cd3261")]
    (body,) = messages.Decoder().feed(messages.pack_handshake_reply(9, 124, 0, table))
    shaken, _ = papi["sockclnt_create_reply"].unpack(body)
    assert [(entry.index, entry.name) for entry in shaken.message_table] == table
    threads = [Thread(0, "vpp_main", "", 1, 0, 0, 0), Thread(1, "vpp_wk_0", "workers", 1, 1, 1, 0)]
    payload = MESSAGES["show_threads_reply"].pack(retval=0, thread_data=threads)
    found, _ = papi["show_threads_reply"].unpack(_body("show_threads_reply", payload))
    assert [(thread.id, thread.name, thread.type) for thread in found.thread_data] == [
        (0, "vpp_main", ""),
        (1, "vpp_wk_0", "workers"),
    ]
    assert messages.unpack_threads(payload) == threads
    payload = MESSAGES["ip_route_lookup_reply"].pack(retval=0, route=Route(0, 12, V4))
    route, _ = papi["ip_route_lookup_reply"].unpack(_body("ip_route_lookup_reply", payload))
    assert (route.route.stats_index, str(route.route.prefix)) == (12, str(V4))
    assert messages.unpack_route(payload) == (0, Route(0, 12, V4))


def test_the_definitions_handed_out_are_the_recorded_ones() -> None:
    recorded = transcripts.definitions()
    for module in json.loads(definitions.api_json(MESSAGES)):
        for name, *fields, options in module["messages"]:
            if name in recorded:
                assert f"{name}_{options['crc'][2:]}" == recorded[name]["name_crc"]
                # The recording names a fixed string's size or a default; both say the same thing in the same place.
                assert fields == recorded[name]["fields"]


def _client(path: Path, **options: Any) -> Any:
    return VPPApiClient(server_address=str(path), read_timeout=int(DEADLINE), async_thread=False, **options)


async def _in_thread(work: Callable[[], None]) -> None:
    async with asyncio.timeout(2 * DEADLINE):
        await asyncio.to_thread(work)


def _drive(client: Any) -> None:
    client.connect_sync("papi")
    try:
        api = client.api
        assert api.show_version().version.startswith("26.10")
        vip = {"pfx": "192.0.2.1/32", "protocol": 6, "port": 80}
        added = api.lb_add_del_vip_v2(**vip, encap=0, new_flows_table_length=1024, src_ip_sticky=False, is_del=False)
        assert added.retval == 0
        for number, weight in ((1, 1), (2, 3)):
            address = f"10.0.0.{number}"
            assert api.lb_add_del_as_v2(**vip, as_address=address, weight=weight, is_del=False).retval == 0
        assert api.lb_as_set_weight(**vip, as_address="10.0.0.1", weight=0, is_flush=True).retval == 0
        assert api.lb_as_set_weight(**vip, as_address="10.0.0.9", weight=0, is_flush=True).retval == -6
        (details,) = api.lb_vip_dump()
        assert (str(details.vip.pfx), details.vip.port, details.flow_table_length) == ("192.0.2.1/32", 80, 1024)
        servers = api.lb_as_v2_dump(pfx="0.0.0.0/0", protocol=0, port=0)
        assert [(str(one.app_srv), one.weight, one.num_buckets) for one in servers] == [
            ("10.0.0.1", 0, 0),
            ("10.0.0.2", 3, 1024),
        ]
        assert api.lb_conf_get().flow_timeout == 40
        assert "10.0.0.2 weight:3 buckets:1024" in api.cli_inband(cmd="show lb vips verbose").reply
        assert api.ip_route_lookup(table_id=0, exact=1, prefix="192.0.2.1/32").route.n_paths == 1
    finally:
        client.disconnect()


async def test_vpp_papi_learns_the_api_from_the_stand_in_and_drives_it(tmp_path: Path) -> None:
    async with stand_in(tmp_path / "api.sock") as server:
        await _in_thread(lambda: _drive(_client(tmp_path / "api.sock", bootstrapapi=True)))
        assert [entry.message for entry in server.journal.writes()].count("lb_as_set_weight") == 2


async def test_vpp_papi_drives_it_with_definitions_from_files(tmp_path: Path) -> None:
    async with stand_in(tmp_path / "api.sock") as server, connected(server.path) as client:
        answer = await client.values("get_api_json")
        files = []
        for module in json.loads(answer["json"]):
            files.append(tmp_path / f"{module['module']}.api.json")
            files[-1].write_text(json.dumps(module))
        await _in_thread(lambda: _drive(_client(tmp_path / "api.sock", apifiles=[str(file) for file in files])))


async def test_a_release_without_weights_has_none_of_the_new_messages(tmp_path: Path) -> None:
    def look() -> None:
        client = _client(tmp_path / "api.sock", bootstrapapi=True)
        client.connect_sync("papi")
        try:
            assert not hasattr(client.api, "lb_as_set_weight")
            assert not hasattr(client.api, "lb_as_v2_dump")
            assert client.api.lb_add_del_vip_v2(pfx="192.0.2.1/32", protocol=6, port=80).retval == 0
        finally:
            client.disconnect()

    async with stand_in(tmp_path / "api.sock", with_weights=False) as server:
        await _in_thread(look)
        for name in messages.WEIGHT_MESSAGES:
            assert name not in server.api.ids
