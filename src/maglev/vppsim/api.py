"""The binary API of the stand-in: a request's values in, its replies' values out. No sockets."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from maglev.vpp.wire.messages import (
    KEEP,
    MESSAGES,
    SOCKCLNT_CREATE_ID,
    SOCKCLNT_CREATE_REPLY_ID,
    WEIGHT_MESSAGES,
    Message,
    Prefix,
    Route,
    Thread,
    VipKey,
)
from maglev.vppsim import definitions
from maglev.vppsim.cli import Cli
from maglev.vppsim.model import (
    ANY_PROTOCOL,
    ENCAP_OF,
    NO_SUCH_ENTRY,
    OK,
    As,
    Conf,
    Model,
    NewVip,
    Vip,
    embed,
    extract,
)

Replies = list[tuple[str, dict[str, Any]]]
"""Messages that answer one call: name and values."""

FIXED_IDS: Final = {"sockclnt_create": SOCKCLNT_CREATE_ID, "sockclnt_create_reply": SOCKCLNT_CREATE_REPLY_ID}
FIRST_ID: Final = 17
_PATH: Final = b"\xff\xff\xff\xff" + bytes(8) + b"\x01" + bytes(154)
"""The one path of a route to the lb plugin: no interface, weight 1 (``vl_api_fib_path_t``, 167 bytes)."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The values that ``show_version`` and similar messages return."""

    version: str = "26.10-rc0~vppsim"
    build_date: str = "2026-08-21T00:00:00"
    build_directory: str = "/usr/src/vpp"
    program: str = "vpe"
    pid: int = 0  # 0: the process's own
    workers: int = 0


class Api:
    """The messages of one simulated VPP.

    ``with_weights`` False makes it a release without the v2 messages, as all were up to 26.06.
    """

    def __init__(
        self,
        model: Model,
        now: Callable[[], float],
        identity: Identity | None = None,
        *,
        with_weights: bool = True,
        first_id: int = FIRST_ID,
        refuse_line: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.model = model
        self.identity = identity or Identity()
        self.cli = Cli(model, self._version_line, now, refuse_line)
        served = [message for message in MESSAGES.values() if with_weights or not _has_weights(message)]
        self.ids: dict[str, int] = {}
        number = first_id
        for message in served:
            if message.name in FIXED_IDS:
                self.ids[message.name] = FIXED_IDS[message.name]
            else:
                self.ids[message.name] = number
                number += 1
        self.requests: dict[int, Message] = {
            self.ids[message.name]: message for message in served if hasattr(self, f"_on_{message.name}")
        }
        self.unused_id = number

    @property
    def table(self) -> list[tuple[int, str]]:
        """The message table of the handshake: id and name_crc."""
        return [(number, MESSAGES[name].name_crc) for name, number in self.ids.items()]

    def call(self, message: Message, values: dict[str, Any], client_index: int) -> Replies:
        """Do what a request asks for. Raises Crash where the real VPP dies."""
        self.model.run_timers()
        replies: Replies = getattr(self, f"_on_{message.name}")(values, client_index)
        return replies

    # --- VPP itself

    def _version_line(self) -> str:
        identity = self.identity
        return f"vpp v{identity.version} built by root on vppsim at {identity.build_date}"

    @property
    def _pid(self) -> int:
        return self.identity.pid or os.getpid()

    def _on_sockclnt_delete(self, values: dict[str, Any], client_index: int) -> Replies:
        return [("sockclnt_delete_reply", {"response": 1})]

    def _on_memclnt_keepalive(self, values: dict[str, Any], client_index: int) -> Replies:
        return []  # VPP asks this question, and does not answer it

    def _on_memclnt_keepalive_reply(self, values: dict[str, Any], client_index: int) -> Replies:
        return []

    def _on_control_ping(self, values: dict[str, Any], client_index: int) -> Replies:
        return [("control_ping_reply", {"retval": OK, "client_index": client_index, "vpe_pid": self._pid})]

    def _on_get_api_json(self, values: dict[str, Any], client_index: int) -> Replies:
        return [("get_api_json_reply", {"retval": OK, "json": definitions.api_json(self.ids)})]

    def _on_show_version(self, values: dict[str, Any], client_index: int) -> Replies:
        identity = self.identity
        return [
            (
                "show_version_reply",
                {
                    "retval": OK,
                    "program": identity.program,
                    "version": identity.version,
                    "build_date": identity.build_date,
                    "build_directory": identity.build_directory,
                },
            )
        ]

    def _on_show_vpe_system_time(self, values: dict[str, Any], client_index: int) -> Replies:
        return [("show_vpe_system_time_reply", {"retval": OK, "vpe_system_time": time.time()})]

    def _on_show_threads(self, values: dict[str, Any], client_index: int) -> Replies:
        threads = [Thread(0, "vpp_main", "", self._pid, 0, 0, 0)]
        for worker in range(self.identity.workers):
            threads.append(Thread(worker + 1, f"vpp_wk_{worker}", "workers", self._pid, worker + 1, worker + 1, 0))
        return [("show_threads_reply", {"retval": OK, "thread_data": threads})]

    def _on_cli_inband(self, values: dict[str, Any], client_index: int) -> Replies:
        retval, output = self.cli.execute(values["cmd"])
        return [("cli_inband_reply", {"retval": retval, "reply": output})]

    def _on_ip_route_lookup(self, values: dict[str, Any], client_index: int) -> Replies:
        address, length = values["prefix"]
        index = None
        if values["table_id"] == 0:
            index = self.model.route_index(embed(address), length + 96 if len(address) == 4 else length)
        if index is None:
            return [("ip_route_lookup_reply", {"retval": NO_SUCH_ENTRY, "route": Route(0, 0, Prefix(bytes(4), 0))})]
        route = Route(0, index, values["prefix"], _PATH, 1)
        return [("ip_route_lookup_reply", {"retval": OK, "route": route})]

    # --- the lb plugin

    def _on_lb_conf(self, values: dict[str, Any], client_index: int) -> Replies:
        buckets, timeout = values["sticky_buckets_per_core"], values["flow_timeout"]
        present = self.model.conf
        return self._answer(
            "lb_conf",
            self.model.set_conf(
                Conf(
                    values["ip4_src_address"],
                    values["ip6_src_address"],
                    present.sticky_buckets_per_core if buckets == KEEP else buckets,
                    present.flow_timeout if timeout == KEEP else timeout,
                )
            ),
        )

    def _on_lb_conf_get(self, values: dict[str, Any], client_index: int) -> Replies:
        conf = self.model.conf
        return [
            (
                "lb_conf_get_reply",
                {
                    "retval": OK,
                    "ip4_src_address": conf.ip4_src_address,
                    "ip6_src_address": conf.ip6_src_address,
                    "sticky_buckets_per_core": conf.sticky_buckets_per_core,
                    "flow_timeout": conf.flow_timeout,
                },
            )
        ]

    def _on_lb_add_del_vip(self, values: dict[str, Any], client_index: int) -> Replies:
        return self._answer("lb_add_del_vip", self._add_del_vip(values, sticky=False))

    def _on_lb_add_del_vip_v2(self, values: dict[str, Any], client_index: int) -> Replies:
        return self._answer("lb_add_del_vip_v2", self._add_del_vip(values, sticky=values["src_ip_sticky"]))

    def _add_del_vip(self, values: dict[str, Any], *, sticky: bool) -> int:
        prefix, length, protocol, port = _key(values)
        if values["is_del"]:
            vip = self.model.find(prefix, length, protocol, port)
            return NO_SUCH_ENTRY if vip is None else self.model.delete_vip(vip)
        retval, _ = self.model.add_vip(
            NewVip(
                prefix,
                length,
                protocol,
                port,
                values["encap"],
                values["new_flows_table_length"],
                sticky,
                values["dscp"] & 0x3F,
                # VPP forgets to swap this one: of the four bytes only the first one arrives.
                values["type"] >> 24,
                values["target_port"],
            )
        )
        return retval

    def _on_lb_add_del_as(self, values: dict[str, Any], client_index: int) -> Replies:
        return self._answer("lb_add_del_as", self._add_del_as(values, weight=100, flush=False))

    def _on_lb_add_del_as_v2(self, values: dict[str, Any], client_index: int) -> Replies:
        retval = self._add_del_as(values, weight=values["weight"], flush=values["is_flush"])
        return self._answer("lb_add_del_as_v2", retval)

    def _add_del_as(self, values: dict[str, Any], *, weight: int, flush: bool) -> int:
        vip = self.model.find(*_key(values))
        if vip is None:
            return NO_SUCH_ENTRY
        addresses = [embed(values["as_address"])]
        if values["is_del"]:
            return self.model.delete_ases(vip, addresses, flush=values["is_flush"])
        return self.model.add_ases(vip, addresses, weight, flush=flush)

    def _on_lb_as_set_weight(self, values: dict[str, Any], client_index: int) -> Replies:
        vip = self.model.find(*_key(values))
        retval = NO_SUCH_ENTRY
        if vip is not None:
            address, weight, flush = embed(values["as_address"]), values["weight"], values["is_flush"]
            retval = self.model.set_weight(vip, address, weight, flush=flush)
        return [("lb_as_set_weight_reply", {"retval": retval})]

    def _on_lb_flush_vip(self, values: dict[str, Any], client_index: int) -> Replies:
        vip = self.model.find(*_key(values))
        # For an unknown VIP the real one uses whatever its stack holds for an index, and says 0 as well.
        return self._answer("lb_flush_vip", OK if vip is None else self.model.flush_vip(vip))

    def _on_lb_vip_dump(self, values: dict[str, Any], client_index: int) -> Replies:
        return [
            (
                "lb_vip_details",
                {
                    "vip": _vip_key(vip),
                    "encap": ENCAP_OF[vip.type],
                    "dscp": vip.encap_low,
                    "srv_type": vip.encap_low << 24,
                    "target_port": vip.target_port,
                    "flow_table_length": vip.table_length & 0xFFFF,
                },
            )
            for vip in self.model.visible_vips()
            if vip.used
        ]

    def _on_lb_as_dump(self, values: dict[str, Any], client_index: int) -> Replies:
        return [("lb_as_details", _as_values(key, server)) for _, key, server in self._dumped(values)]

    def _on_lb_as_v2_dump(self, values: dict[str, Any], client_index: int) -> Replies:
        found: Replies = []
        for vip, key, server in self._dumped(values):
            details = _as_values(key, server)
            details["weight"] = server.weight
            details["num_buckets"] = self.model.buckets(vip).get(server.index, 0)
            found.append(("lb_as_v2_details", details))
        return found

    def _dumped(self, values: dict[str, Any]) -> Iterator[tuple[Vip, VipKey, As]]:
        # The filter is compared with the bytes as VPP holds them; its family and prefix length do not count.
        address = values["pfx"].address.ljust(16, b"\0")
        if any(address):
            vips: Iterable[Vip] = self.model.filtered_vips(address, values["protocol"], values["port"])
        else:
            vips = self.model.visible_vips()
        for vip in vips:
            key = _vip_key(vip)
            for server in self.model.ases_of(vip):
                yield vip, key, server

    @staticmethod
    def _answer(name: str, retval: int) -> Replies:
        return [(f"{name}_reply", {"retval": retval})]


def _has_weights(message: Message) -> bool:
    return message.name.removesuffix("_reply") in WEIGHT_MESSAGES


def _key(values: dict[str, Any]) -> tuple[bytes, int, int, int]:
    # Port 0 means any, and any port means any protocol.
    address, length = values["pfx"]
    if len(address) == 4:
        length += 96
    return embed(address), length & 0xFF, values["protocol"] if values["port"] else ANY_PROTOCOL, values["port"]


def _vip_key(vip: Vip) -> VipKey:
    # The bytes of the prefix alone decide the family; the length counts from the start of the embedded prefix.
    length = vip.length - 96 if vip.is_ip4 else vip.length
    return VipKey(extract(vip.prefix), length, vip.protocol, vip.port)


def _as_values(key: VipKey, server: As) -> dict[str, Any]:
    return {
        "vip": key,
        "app_srv": extract(server.address),
        "flags": int(server.used),
        "in_use_since": server.last_used,
    }
