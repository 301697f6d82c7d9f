"""The log names backends whose probes do not leave this host, the reason, and what helps."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from maglev._probe import UNPROBED
from maglev.checker.engine import BLOCKED_KIND, BLOCKED_SINCE_NS, RECORD, TARGET
from maglev.daemon.unprobed import ADVICE, QUIET_NS, UnprobedWatch
from tests.helpers.checker import FakeClock

KINDS = {name: kind for kind, (name, _) in UNPROBED.items()}


def record(target: int, kind: int) -> bytes:
    values = [0] * len(RECORD.unpack(bytes(RECORD.size)))
    values[TARGET], values[BLOCKED_KIND], values[BLOCKED_SINCE_NS] = target, kind, 1 if kind else 0
    return RECORD.pack(*values)


def backend(name: str, address: str, netns: str | None = None) -> Any:
    check = SimpleNamespace(spec=SimpleNamespace(netns=netns))
    return SimpleNamespace(name=name, address=address, probed=True, check=check)


class Host:
    """Three backends, and the log of what becomes of them."""

    def __init__(self, directory: Path, caplog: pytest.LogCaptureFixture) -> None:
        self.kinds = ["", "", ""]
        self.stats = {f"unprobed_{name}": 0 for name, _ in UNPROBED.values()}
        self.clock = FakeClock()
        self.watch = UnprobedWatch(lambda: self.stats, self._records, self.clock, directory)
        self._caplog = caplog
        self._backends = dict(
            enumerate((backend("a", "192.0.2.1"), backend("b", "192.0.2.2"), backend("c", "2001:db8::1", "edge")))
        )

    def _records(self) -> Any:
        return b"".join(record(at, KINDS.get(kind, 0)) for at, kind in enumerate(self.kinds)), self._backends

    async def become(self, *kinds: str) -> list[str]:
        self.kinds = list(kinds)
        for kind in kinds:
            if kind:
                self.stats[f"unprobed_{kind}"] += 1
        await self.watch.look()
        found = [one.getMessage() for one in self._caplog.records]
        self._caplog.clear()
        return found


@pytest.fixture
def host(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Host:
    return Host(tmp_path, caplog)


async def test_each_namespace_family_and_reason_is_named_once_in_ten_minutes(host: Host) -> None:
    assert await host.become("", "", "") == []
    (line,) = await host.become("route", "route", "")
    assert line.startswith("2 backends cannot be probed, a for one: this host has no route to them")
    (line,) = await host.become("route", "link", "")
    assert line.startswith("a backend cannot be probed, b for one: the outgoing interface is down")
    (line,) = await host.become("route", "link", "link")
    assert line.startswith("a backend cannot be probed, c for one")
    assert await host.become("route", "link", "link") == []
    host.clock.now += QUIET_NS
    assert len(await host.become("route", "link", "link")) == 3


async def test_a_reason_that_has_ended_is_not_named(host: Host) -> None:
    host.stats["unprobed_queue"] += 5
    assert await host.become("", "", "") == []


async def test_a_full_neighbour_table_names_the_sysctl_and_its_value(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "ipv4/neigh/default/gc_thresh3"
    path.parent.mkdir(parents=True)
    path.write_text("1024\n")
    lines = await host.become("neighbours", "", "neighbours")
    assert "net.ipv4.neigh.default.gc_thresh3 (now 1024) above" in lines[0]
    assert "net.ipv6.neigh.default.gc_thresh3 above" in lines[1]


def test_every_reason_has_its_advice() -> None:
    assert {*ADVICE, "neighbours"} == {name for name, _ in UNPROBED.values()}
