"""The generated text about ``--json``: the message that each command prints, and its keys, from the API's definition.

``python -m maglev.cli.docs FILE`` rewrites what stands between the marks in the user guide. A test holds the guide to
it: a key that goes, or gets another name, goes from the book too, and a command is run to see that it prints what is
said here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from maglev.cli.jsonout import twin
from maglev.pb import maglev_pb2 as pb

# Command -> message that it prints; in a list: an array of them.
PRINTS: Mapping[str, type | tuple[type]] = {
    "show version": pb.ServerInfo,
    "show frontends": (pb.FrontendInfo,),
    "show frontends NAME": pb.FrontendInfo,
    "flow SOURCE:PORT VIP:PORT": pb.FlowInfo,
    "compare SERVER SERVER...": pb.Comparison,
    "show backends": (pb.BackendInfo,),
    "show backends NAME": pb.BackendInfo,
    "show backends NAME flows": pb.BackendFlows,
    "show healthchecks": (pb.HealthCheckInfo,),
    "show healthchecks NAME": pb.HealthCheckInfo,
    "show overrides": (pb.Override,),
    "show events": (pb.PastEvent,),
    "why backend NAME": pb.Explanation,
    "why frontend NAME": pb.Explanation,
    "show vpp info": pb.VPPInfo,
    "show vpp lb state [NAME]": pb.GetVPPLBStateResponse,
    "show vpp lb counters [NAME]": (pb.VPPVipCounters,),
    "set backend NAME ...": pb.ChangeBackendResponse,
    "set frontend NAME ...": pb.SetWeightResponse,
    "sync vpp lb state": pb.SyncVPPLBStateResponse,
    "brake release": pb.ReleaseBrakeResponse,
    "config check": pb.CheckConfigResponse,
    "config diff": pb.DiffConfigResponse,
    "config reload": pb.ReloadConfigResponse,
    "watch events": pb.Event,
}
_MARK = re.compile(r"(<!-- json -->\n).*?(<!-- end -->)", re.DOTALL)


def tables() -> str:
    """Two Markdown tables: what each command prints, and the keys of every object in it."""
    lines = ["| command | prints |", "|---|---|"]
    seen: list[Any] = []
    for command, prints in PRINTS.items():
        message: Any = prints[0] if isinstance(prints, tuple) else prints
        what = "one object a line of" if message is pb.Event else "an array of" if isinstance(prints, tuple) else "one"
        lines.append(f"| `{command}` | {what} {message.DESCRIPTOR.name} |")
        _reach(message.DESCRIPTOR, seen)
    lines += ["", "| object | keys |", "|---|---|"]
    lines += [f"| {descriptor.name} | {', '.join(_keys(descriptor))} |" for descriptor in seen]
    return "\n".join(lines) + "\n"


def _reach(descriptor: Any, seen: list[Any]) -> None:
    if descriptor in seen or descriptor.GetOptions().map_entry:
        return
    seen.append(descriptor)
    for field in descriptor.fields:
        if field.message_type is not None:
            _reach(field.message_type, seen)


def _keys(descriptor: Any) -> Iterator[str]:
    for field in descriptor.fields:
        of = field.message_type
        if of is None:
            yield f"`{field.name}`" + (" (array)" if field.is_repeated else "")
            beside = twin(field)
            if beside is not None:
                yield f"`{beside}`"
        elif of.GetOptions().map_entry:
            yield f"`{field.name}` (by name)"
        else:
            yield f"`{field.name}` ({'array of ' if field.is_repeated else ''}{of.name})"


def guide(text: str) -> str:
    """The guide, with the text between its marks generated again."""
    return _MARK.sub(lambda match: f"{match[1]}{tables()}{match[2]}", text)


def main(arguments: list[str]) -> int:
    """Rewrite the guide in the file named by the one argument."""
    if len(arguments) != 1:
        print("usage: python -m maglev.cli.docs FILE", file=sys.stderr)
        return 2
    path = Path(arguments[0])
    path.write_text(guide(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
