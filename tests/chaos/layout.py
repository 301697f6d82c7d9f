"""The servers, checks and frontends of the run, and their configuration file. Pure."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from tests.chaos.oracle import Pace

HTTP, TCP, HTTPS = 8080, 8081, 8443
LOOP, ROUTED, ONLINK = "loop", "routed", "onlink"
SOURCE, SOURCE6 = "10.82.0.1", "2001:db8:82::1"
"""Source addresses of the probes to the routed servers. They are on the prober's loopback, so a run can remove them."""

LOOP6 = "fd00:81::"

# Verdicts take 0.4 s (three probes of a quick check) to 2 s. Servers in Python get longer, as they share the machine.
QUICK = {"interval": "500ms", "fast-interval": "200ms", "down-interval": "300ms", "timeout": "400ms"}
PATIENT = {"interval": "800ms", "fast-interval": "400ms", "down-interval": "400ms", "timeout": "700ms"}
LEAST = {"icmp": 0.25, "syn": 0.25, "connect": 0.5, "http": 0.5, "https": 0.5}
"""Shortest failure, in seconds, from which a verdict can come: two fast intervals less their jitter, with a margin."""

SERVED = ("http", "https")
"""Kinds that a process answers; the kernel answers the others."""

Tree = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Target:
    """A server: its backend's name, where it is, and how it is checked (empty: static)."""

    name: str
    address: str
    group: str
    kind: str

    @property
    def check(self) -> str:
        """Name of its health check."""
        return f"{self.group}-{self.kind}" if self.kind else ""

    @property
    def port(self) -> int:
        """Where it listens; 0: it answers pings only."""
        return {"http": HTTP, "https": HTTPS, "syn": TCP, "connect": TCP}.get(self.kind, 0)


def _series(prefix: str, group: str, address: str, numbers: range, kinds: tuple[str, ...]) -> list[Target]:
    return [Target(f"{prefix}{n}", address.format(n=n), group, kinds[i % len(kinds)]) for i, n in enumerate(numbers)]


PACKETS = ("icmp", "syn", "http", "connect")
SERIES = {
    "l": _series("l", LOOP, "127.81.0.{n}", range(1, 25), ("http", "syn", "connect", "https")),
    "r": _series("r", ROUTED, "10.81.0.{n}", range(1, 25), PACKETS),
    "rr": _series("rr", ROUTED, "2001:db8:81::{n}", range(1, 13), PACKETS),
    "o": _series("o", ONLINK, "192.0.2.{n}", range(101, 117), PACKETS),
    "oo": _series("oo", ONLINK, "2001:db8::{n}", range(101, 109), PACKETS),
    # On the daemon's loopback too, and not ::1: VPP takes an address that begins with twelve zero bytes for IPv4.
    "ll": _series("ll", LOOP, LOOP6 + "{n}", range(1, 5), ("syn", "http", "connect", "https")),
    "s": _series("s", "", "198.18.0.{n}", range(1, 4), ("",)),
    "ss": _series("ss", "", "2001:db8:18::{n}", range(1, 2), ("",)),
}
TARGETS = [target for series in SERIES.values() for target in series]
GROUPS = (LOOP, ROUTED, ONLINK)


def paces() -> dict[str, Pace]:
    """The oracle's view of the health checks."""
    return {
        target.check: Pace(LEAST[target.kind], target.group, target.kind in SERVED) for target in TARGETS if target.kind
    }


def _frontends() -> dict[str, Tree]:
    def names(series: str, first: int, count: int) -> list[str]:
        return [target.name for target in SERIES[series][first : first + count]]

    plans = [(f"loop{i}", names("l", 8 * i, 5), names("l", 8 * i + 5, 3)) for i in range(3)]
    plans += [(f"routed{i}", names("r", 8 * i, 5), names("r", 8 * i + 5, 3)) for i in range(3)]
    plans += [(f"onlink{i}", names("o", 8 * i, 6), names("o", 8 * i + 6, 2)) for i in range(2)]
    plans += [(f"routed6-{i}", names("rr", 6 * i, 4), names("rr", 6 * i + 4, 2)) for i in range(2)]
    plans += [("onlink6", names("oo", 0, 5), names("oo", 5, 3)), ("loop6", names("ll", 0, 4), ["ss1"])]
    plans += [("mixed", names("l", 0, 3) + names("r", 0, 3), names("o", 0, 3)), ("static", ["s1", "s2"], ["s3"])]
    frontends: dict[str, Tree] = {}
    for number, (name, first, second) in enumerate(plans):
        six = "6" in name
        frontends[name] = {
            # Two frontends each share an address, so that they also share their encap.
            "address": (f"2001:db8:ff::{number // 2 + 1}" if six else f"198.51.100.{number // 2 + 1}"),
            "protocol": "tcp",
            "port": 80 if number % 2 == 0 else 443,
            "flush-on-down": number % 2 == 0,
            "on-all-down": "keep" if number % 3 == 0 else "drain",
            "new-flows-table-length": 2048,
            "src-ip-sticky": False,
            "pools": [
                {
                    "name": "first",
                    "min-up": 2 if number % 4 == 1 else 1,
                    "backends": {name: {"weight": 100 - 10 * (i % 4)} for i, name in enumerate(first)},
                },
                {"name": "second", "backends": {name: {"weight": 50} for name in second}},
            ],
        }
    return frontends


def tree(netns: dict[str, str], authority: str) -> Tree:
    """The configuration. ``netns``: of the probes, by group; ``authority``: file of the https servers' authority."""
    checks: dict[str, Tree] = {}
    for target in TARGETS:
        if not target.kind or target.check in checks:
            continue
        check: Tree = {"type": {"syn": "tcp", "connect": "tcp"}.get(target.kind, target.kind)}
        if target.port:
            check["port"] = target.port
        match target.kind:
            case "connect":
                check["params"] = {"mode": "connect"}
            case "http":
                check["params"] = {"path": "/"}
            case "https":
                check["params"] = {"path": "/", "host": "lb.example.org", "ca-file": authority}
        check |= PATIENT if target.kind in ("http", "https", "connect") else QUICK
        check |= {"rise": 2, "fall": 3}
        if target.group in netns:
            check["netns"] = netns[target.group]
        if target.group == ROUTED:
            check |= {"probe-ipv4-src": SOURCE, "probe-ipv6-src": SOURCE6}
        checks[target.check] = check
    backends = {
        target.name: {"address": target.address} | ({"healthcheck": target.check} if target.kind else {})
        for target in TARGETS
    }
    lb = {
        "ipv4-src-address": "192.0.2.1",
        "ipv6-src-address": "2001:db8::1",
        "sync-interval": "2s",
        "startup-min-delay": "500ms",
        "startup-max-delay": "2s",
    }
    return {
        "maglev": {
            "healthchecker": {"brake": "off"},
            "vpp": {"lb": lb},
            "healthchecks": checks,
            "backends": backends,
            "frontends": _frontends(),
        }
    }


def text(value: Any, depth: int = 0) -> str:
    """A tree as YAML in lines, so that a file that is cut off anywhere can still be one."""
    pad = "  " * depth
    lines = []
    for key, one in value.items():
        if isinstance(one, dict):
            lines.append(f"{pad}{_quoted(key)}:\n{text(one, depth + 1)}")
        elif isinstance(one, list):
            lines.append(f"{pad}{_quoted(key)}:\n")
            for item in one:
                body = text(item, depth + 2)
                lines.append(f"{pad}  - {body.lstrip()}")
        else:
            lines.append(f"{pad}{_quoted(key)}: {_quoted(one)}\n")
    return "".join(lines)


def _quoted(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) and ":" in value else str(value)


def copied(value: Tree) -> Tree:
    """The same tree, to be edited."""
    return copy.deepcopy(value)
