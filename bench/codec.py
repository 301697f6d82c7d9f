"""The cost of writing and reading VPP's binary API, beside vpp_papi's codec doing the same."""

from __future__ import annotations

import ipaddress
from typing import Any

from vpp_papi import VPPApiJSONFiles

from bench.harness import Figure, cpu_ms
from maglev.vpp.wire.messages import (
    MESSAGES,
    Decoder,
    VipKey,
    WeightCall,
    pack_weight_calls,
    reply,
    unpack_as_details,
)
from maglev.vppsim import definitions

QUESTION = "How fast are weight calls packed, and the details of a dump read?"

MANY = 20_000
FEW = 500
"""vpp_papi is measured over fewer messages: it needs its time."""


def run() -> list[Figure]:
    """Microseconds a message; at most 2 are 500,000 messages a second and core."""
    vip = VipKey.parse("192.0.2.1/32", 6, 80)
    calls = [WeightCall(vip, (0x0A000000 + number).to_bytes(4, "big"), number % 101, False) for number in range(MANY)]
    details = MESSAGES["lb_as_v2_details"]
    stream = b"".join(
        reply(300, 7, details.pack(vip=vip, app_srv=call.address, flags=1, weight=call.weight, num_buckets=9))
        for call in calls
    )
    papi: dict[str, Any] = VPPApiJSONFiles.process_json_array_str(definitions.api_json(MESSAGES))[0]
    set_weight, as_details = papi["lb_as_set_weight"], papi["lb_as_v2_details"]
    bodies = Decoder().feed(stream)

    def papi_packs() -> None:
        for call in calls[:FEW]:
            set_weight.pack(
                {
                    "_vl_msg_id": 300,
                    "client_index": 1,
                    "context": 7,
                    "pfx": "192.0.2.1/32",
                    "protocol": 6,
                    "port": 80,
                    "as_address": ipaddress.IPv4Address(call.address),
                    "weight": call.weight,
                    "is_flush": False,
                }
            )

    def papi_reads() -> None:
        for body in bodies[:FEW]:
            as_details.unpack(body)

    taken = cpu_ms(
        {
            "pack": lambda: pack_weight_calls(300, 1, 0, calls),
            "papi packs": papi_packs,
            "read": lambda: unpack_as_details(Decoder().feed(stream)),
            "papi reads": papi_reads,
        }
    )
    return [
        Figure("weight call packed", taken["pack"] / MANY * 1e3, "us", 2.0),
        Figure("weight call packed, vpp_papi", taken["papi packs"] / FEW * 1e3, "us"),
        Figure("details cut out of the stream and read", taken["read"] / MANY * 1e3, "us"),
        Figure("details read, vpp_papi", taken["papi reads"] / FEW * 1e3, "us"),
    ]
