"""API definitions in the JSON that VPP's compiler makes of .api files, as ``get_api_json`` returns them.

Messages come from the codec's table; the types they use are defined here. A client without definitions (vpp_papi with
``bootstrapapi``) can decode and encode every message with them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Any, Final

from maglev.vpp.wire.messages import MESSAGES, Envelope, Field, Message

_MODULES: Final = {
    "memclnt": ("sockclnt_", "memclnt_", "control_ping", "get_api_json"),
    "vlib": ("cli_inband", "show_threads"),
    "vpe": ("show_version", "show_vpe_system_time"),
    "ip": ("ip_",),
    "lb": ("lb_",),
}

_ENUMS: Final[dict[str, list[Any]]] = {
    "address_family": [["ADDRESS_IP4", 0], ["ADDRESS_IP6", 1], {"enumtype": "u8"}],
    "ip_proto": [
        ["IP_API_PROTO_HOPOPT", 0],
        ["IP_API_PROTO_ICMP", 1],
        ["IP_API_PROTO_TCP", 6],
        ["IP_API_PROTO_UDP", 17],
        ["IP_API_PROTO_ICMP6", 58],
        ["IP_API_PROTO_RESERVED", 255],
        {"enumtype": "u8"},
    ],
    "ip_dscp": [[f"IP_API_DSCP_CS{cs}", cs * 8] for cs in range(8)] + [["IP_API_DSCP_EF", 46], {"enumtype": "u8"}],
    "lb_encap_type": [
        ["LB_API_ENCAP_TYPE_GRE4", 0],
        ["LB_API_ENCAP_TYPE_GRE6", 1],
        ["LB_API_ENCAP_TYPE_L3DSR", 2],
        ["LB_API_ENCAP_TYPE_NAT4", 3],
        ["LB_API_ENCAP_TYPE_NAT6", 4],
        {"enumtype": "u32"},
    ],
    "lb_srv_type": [["LB_API_SRV_TYPE_CLUSTERIP", 0], ["LB_API_SRV_TYPE_NODEPORT", 1], {"enumtype": "u32"}],
    "fib_path_type": [["FIB_API_PATH_TYPE_NORMAL", 0], ["FIB_API_PATH_TYPE_LOCAL", 1], {"enumtype": "u32"}],
    "fib_path_flags": [["FIB_API_PATH_FLAG_NONE", 0], {"enumtype": "u32"}],
    "fib_path_nh_proto": [["FIB_API_PATH_NH_PROTO_IP4", 0], ["FIB_API_PATH_NH_PROTO_IP6", 1], {"enumtype": "u32"}],
}
_ALIASES: Final[dict[str, dict[str, Any]]] = {
    "ip4_address": {"type": "u8", "length": 4},
    "ip6_address": {"type": "u8", "length": 16},
    "address_with_prefix": {"type": "vl_api_prefix_t"},
    "timestamp": {"type": "f64"},
}
_UNIONS: Final[dict[str, list[list[Any]]]] = {
    "address_union": [["vl_api_ip4_address_t", "ip4"], ["vl_api_ip6_address_t", "ip6"]],
}
_TYPES: Final[dict[str, list[list[Any]]]] = {
    "address": [["vl_api_address_family_t", "af"], ["vl_api_address_union_t", "un"]],
    "prefix": [["vl_api_address_t", "address"], ["u8", "len"]],
    "prefix_matcher": [["u8", "le"], ["u8", "ge"]],
    "lb_vip": [["vl_api_address_with_prefix_t", "pfx"], ["vl_api_ip_proto_t", "protocol"], ["u16", "port"]],
    "message_table_entry": [["u16", "index"], ["string", "name", 64]],
    "thread_data": [
        ["u32", "id"],
        ["string", "name", 64],
        ["string", "type", 64],
        *([["u32", name] for name in ("pid", "cpu_id", "core", "cpu_socket")]),
    ],
    "fib_mpls_label": [["u8", "is_uniform"], ["u32", "label"], ["u8", "ttl"], ["u8", "exp"]],
    "fib_path_nh": [
        ["vl_api_address_union_t", "address"],
        ["u32", "via_label"],
        ["u32", "obj_id"],
        ["u32", "classify_table_index"],
    ],
    "fib_path": [
        ["u32", "sw_if_index"],
        ["u32", "table_id"],
        ["u32", "rpf_id"],
        ["u8", "weight"],
        ["u8", "preference"],
        ["vl_api_fib_path_type_t", "type"],
        ["vl_api_fib_path_flags_t", "flags"],
        ["vl_api_fib_path_nh_proto_t", "proto"],
        ["vl_api_fib_path_nh_t", "nh"],
        ["u8", "n_labels"],
        ["vl_api_fib_mpls_label_t", "label_stack", 16],
    ],
    "ip_route": [
        ["u32", "table_id"],
        ["u32", "stats_index"],
        ["vl_api_prefix_t", "prefix"],
        ["u8", "n_paths"],
        ["vl_api_fib_path_t", "paths", 0, "n_paths"],
    ],
}

_HEADS: Final = {
    Envelope.REQUEST: [["u16", "_vl_msg_id"], ["u32", "client_index"], ["u32", "context"]],
    Envelope.REPLY: [["u16", "_vl_msg_id"], ["u32", "context"]],
    Envelope.CREATE_REPLY: [["u16", "_vl_msg_id"], ["u32", "client_index"], ["u32", "context"]],
}


def api_json(served: Collection[str]) -> str:
    """The definitions of the messages named, one module for each of VPP's .api files."""
    modules = []
    for module, prefixes in _MODULES.items():
        messages = [message for name, message in MESSAGES.items() if name in served and name.startswith(prefixes)]
        modules.append(_module(module, messages))
    return json.dumps(modules, indent=1)


def _module(name: str, messages: list[Message]) -> dict[str, Any]:
    definitions = [_message(message) for message in messages]
    needed: dict[str, None] = {}
    for definition in definitions:
        for one in definition[1:-1]:
            _need(one[0], needed)
    return {
        "module": name,
        "types": [[kind, *_TYPES[kind]] for kind in needed if kind in _TYPES],
        "messages": definitions,
        "unions": [[kind, *_UNIONS[kind]] for kind in needed if kind in _UNIONS],
        "enums": [[kind, *_ENUMS[kind]] for kind in needed if kind in _ENUMS],
        "enumflags": [],
        "services": {message.name: _service(message) for message in messages if message.reply},
        "options": {"version": "1.0.0"},
        "aliases": {kind: _ALIASES[kind] for kind in needed if kind in _ALIASES},
        "imports": [],
        "counters": [],
        "paths": [],
    }


def _message(message: Message) -> list[Any]:
    fields = [one for field in message.fields for one in _field(field)]
    return [message.name, *_HEADS[message.envelope], *fields, {"crc": f"0x{message.crc}", "options": {}}]


def _field(field: Field) -> Iterator[list[Any]]:
    if field.counter:
        kind, name = field.counter.split()
        yield [kind, name]
        yield [field.type, field.name, 0, name]
    elif field.type == "string":
        yield ["string", field.name, field.size]
    elif field.default is not None:
        yield [field.type, field.name, {"default": field.default}]
    else:
        yield [field.type, field.name]


def _service(message: Message) -> dict[str, Any]:
    return {"reply": message.reply, "stream": True} if message.stream else {"reply": message.reply}


def _need(kind: str, needed: dict[str, None]) -> None:
    """Note a type, behind all those that it is made of."""
    name = kind.removeprefix("vl_api_").removesuffix("_t")
    if kind == name or name in needed:
        return
    if name in _ALIASES:
        _need(_ALIASES[name]["type"], needed)
    for part in _TYPES.get(name, _UNIONS.get(name, [])):
        _need(part[0], needed)
    needed[name] = None
