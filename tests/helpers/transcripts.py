"""The recordings of a real VPP in ``tests/data/transcripts``: one file a scenario, one JSON line a call."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maglev.vpp.wire.messages import Message, Prefix, VipKey

DIRECTORY = Path(__file__).resolve().parent.parent / "data" / "transcripts"
SCENARIOS = sorted(path.stem for path in DIRECTORY.glob("*.jsonl"))


@dataclass(frozen=True, slots=True)
class Reply:
    """One recorded answer; ``payload`` is its body without message id and context."""

    message: str
    fields: dict[str, Any]
    payload: bytes


@dataclass(frozen=True, slots=True)
class Call:
    """One recorded call; ``payload`` is its body without message id, client index and context."""

    message: str
    args: dict[str, Any]
    payload: bytes
    replies: tuple[Reply, ...]


def calls(scenario: str) -> Iterator[Call]:
    """The calls of one recording, in order."""
    with (DIRECTORY / f"{scenario}.jsonl").open() as lines:
        for line in lines:
            entry = json.loads(line)
            yield Call(
                entry["call"],
                entry["args"],
                bytes.fromhex(entry["request"]),
                tuple(Reply(r["message"], r["fields"], bytes.fromhex(r["body"])) for r in entry["replies"]),
            )


def definitions() -> dict[str, dict[str, Any]]:
    """Name -> its ``name_crc`` and fields, as that VPP listed them."""
    loaded: dict[str, dict[str, Any]] = json.loads((DIRECTORY / "messages.json").read_text())
    return loaded


def values(message: Message, args: dict[str, Any]) -> dict[str, Any]:
    """Recorded arguments, where addresses are text, as ``message`` wants them."""
    kinds = {field.name: field.type for field in message.fields}
    return {name: _value(kinds[name], value) for name, value in args.items()}


def _value(kind: str, value: Any) -> Any:
    if kind == "vl_api_lb_vip_t":
        return VipKey.parse(value["pfx"], value["protocol"], value["port"])
    if "prefix" in kind:
        return Prefix.parse(value)
    if "address" in kind:
        return ipaddress.ip_address(value).packed
    return value
