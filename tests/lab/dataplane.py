"""What the dataplane holds, and what was written to it, seen from beside the daemon.

Both come from the other end of the socket: the weights are read back by a client of its own, from a VPP as well as from
its stand-in; the calls are what the stand-in has written down.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maglev.vpp.wire.messages import VipKey, address_text
from maglev.vppsim.inspect import Client

READER = "lab"
"""The name of our own client, whose calls are nobody's business."""

WRITES = frozenset(
    (
        "lb_conf",
        "lb_add_del_vip",
        "lb_add_del_vip_v2",
        "lb_add_del_as",
        "lb_add_del_as_v2",
        "lb_as_set_weight",
        "lb_flush_vip",
    )
)


def read_weights(path: Path) -> dict[VipKey, dict[str, int]]:
    """Weights of the live ASes of every VIP by address. OSError, ProtocolError: the dataplane does not answer."""
    with Client(path, READER) as client:
        vips, ases = client.vips(), client.ases()
    weights: dict[VipKey, dict[str, int]] = {vip.key: {} for vip in vips}
    for one in ases:
        if one.live and one.vip in weights:
            weights[one.vip][address_text(one.address)] = one.weight
    return weights


@dataclass(frozen=True, slots=True)
class Call:
    """A call that the stand-in has answered."""

    client: str
    name: str
    arguments: Mapping[str, Any]

    @property
    def address(self) -> str:
        """The AS that it names, empty if it names none."""
        return str(self.arguments.get("as_address", ""))


def read_calls(log: Path) -> list[Call]:
    """Every call that a stand-in has written down in ``log``, in order, but our own."""
    if not log.exists():
        return []
    calls = []
    for line in log.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry["client"] != READER:
            calls.append(Call(entry["client"], entry["call"], entry["args"]))
    return calls
