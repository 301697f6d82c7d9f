"""Dry runs of changes, through the daemon: the answer is what VPP then gets, and until then it gets nothing."""

from __future__ import annotations

import asyncio
import json
import textwrap
from collections.abc import AsyncIterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import pytest

from maglev.pb import maglev_pb2 as pb
from maglev.pb import maglev_pb2_grpc as pb_grpc
from maglev.vppsim.model import extract
from maglev.vppsim.server import StandIn
from tests.helpers.daemon import DEADLINE, DaemonProcess, HttpTarget, Watcher, reserved_port
from tests.integration.test_daemon_replies import maglevc

ADDRESSES = {"one": "127.0.61.1", "two": "127.0.61.2", "three": "127.0.61.3"}


def config(port: int) -> str:
    return textwrap.dedent(f"""\
        maglev:
          vpp:
            lb: {{ipv4-src-address: 192.0.2.1, startup-min-delay: 0s, startup-max-delay: 0s, sync-interval: 1h}}
          healthchecks:
            web: {{type: http, port: {port}, interval: 100ms}}
          backends:
            one: {{address: {ADDRESSES["one"]}, healthcheck: web}}
            two: {{address: {ADDRESSES["two"]}, healthcheck: web}}
            three: {{address: {ADDRESSES["three"]}, healthcheck: web}}
          frontends:
            www:
              address: 192.0.2.80
              protocol: tcp
              port: 80
              new-flows-table-length: 1024
              pools:
                - {{name: primary, backends: {{one: {{weight: 100}}, two: {{weight: 50}}}}}}
                - {{name: fallback, backends: {{three: {{weight: 20}}}}}}
            last:
              address: 192.0.2.81
              protocol: tcp
              port: 80
              new-flows-table-length: 1024
              pools: [{{name: primary, backends: {{one: {{}}}}}}]
        """)


@dataclass
class Lab:
    """Three servers, the stand-in, and a daemon that has programmed it."""

    vpp: StandIn
    daemon: DaemonProcess
    stub: pb_grpc.MaglevAsyncStub

    def weights(self, name: str) -> list[int]:
        """The weights that VPP has for a server, VIP by VIP."""
        address = ip_address(ADDRESSES[name]).packed
        ases = [one for vip in self.vpp.model.visible_vips() for one in self.vpp.model.ases_of(vip)]
        return [one.weight for one in ases if one.used and extract(one.address) == address]

    async def holds(self, name: str, *weights: int) -> None:
        """Wait until VPP has these weights for a server."""
        async with asyncio.timeout(DEADLINE):
            while self.weights(name) != list(weights):
                await self.vpp.journal.next(lambda entry: True)

    async def away(self) -> None:
        """Wait until the daemon knows that VPP is away."""
        async with asyncio.timeout(DEADLINE):
            while True:
                if not (await self.stub.GetServerInfo(pb.GetServerInfoRequest())).vpp.connected:
                    return
                await asyncio.sleep(0.02)  # the API has no event for this

    async def events(self) -> int:
        """How many events there have been."""
        return (await self.stub.ListEvents(pb.ListEventsRequest(page_size=1))).total


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    port = reserved_port()
    targets = [HttpTarget(address, port) for address in ADDRESSES.values()]
    vpp = StandIn(tmp_path / "api.sock")
    for target in targets:
        await target.start()
    await vpp.start()
    process = DaemonProcess(tmp_path, config(port), f"--vpp-api-addr={tmp_path / 'api.sock'}")
    async with process as daemon, daemon.api() as stub:
        await Watcher(stub).states(one="up", two="up", three="up")
        lab = Lab(vpp, daemon, stub)
        await lab.holds("one", 10, 10)
        await lab.holds("two", 5)
        vpp.journal.clear()
        yield lab
    await vpp.stop()
    for target in targets:
        await target.stop()


def planned(preview: pb.Preview) -> set[tuple[str, int, bool]]:
    """The calls of a plan: address, weight, flush."""
    return {(step.address, step.new_weight, step.flush) for step in preview.plan.steps}


def made(vpp: StandIn) -> set[tuple[str, int, bool]]:
    """The calls that VPP got."""
    return {
        (str(ip_address(extract(entry.values["as_address"]))), entry.values["weight"], bool(entry.values["is_flush"]))
        for entry in vpp.journal.writes()
    }


async def test_a_dry_run_writes_nothing_and_the_change_then_makes_the_same_calls(lab: Lab) -> None:
    one, two, three = ADDRESSES.values()
    stub, vpp = lab.stub, lab.vpp
    state_file = lab.daemon.directory / "state.json"
    kept = state_file.read_bytes()
    before = await lab.events()
    request = pb.ChangeBackendRequest(name="one", reason="disk", dry_run=True)

    tried = await stub.DisableBackend(request)
    await stub.DrainBackend(request)
    weight = pb.SetWeightRequest(frontend="www", pool="primary", backend="two", weight=100, dry_run=True)
    heavier = await stub.SetFrontendPoolBackendWeight(weight)

    assert vpp.journal.writes() == []
    assert await lab.events() == before
    assert state_file.read_bytes() == kept
    assert list((await stub.ListOverrides(pb.ListOverridesRequest())).overrides) == []
    assert (tried.backend.state, tried.preview.no_plan) == (pb.BACKEND_STATE_DISABLED, "")
    assert [effect.text for effect in tried.effects] == ["last: no server left, new flows are dropped"]
    assert {f.frontend: (f.state_before, f.state_after) for f in tried.preview.frontends} == {
        "www": (pb.FRONTEND_STATE_UP, pb.FRONTEND_STATE_UP),
        "last": (pb.FRONTEND_STATE_UP, pb.FRONTEND_STATE_DOWN),
    }
    assert planned(tried.preview) == {(one, 0, True)}
    assert len(tried.preview.plan.steps) == 2
    assert tried.preview.plan.stall_ns > 0
    moved = {vip.frontend: vip for vip in tried.preview.plan.vips}
    assert [(a.buckets_before > a.buckets_after) for a in moved["www"].ases if a.address == one] == [True]
    assert planned(heavier.preview) == {(two, 10, False)}

    request.dry_run = weight.dry_run = False
    done = await stub.DisableBackend(request)
    await lab.holds("one", 0, 0)
    assert made(vpp) == planned(tried.preview)
    assert [effect.text for effect in done.effects] == [effect.text for effect in tried.effects]
    assert not done.HasField("preview")

    vpp.journal.clear()
    drained = await stub.DrainBackend(pb.ChangeBackendRequest(name="two", dry_run=True))
    assert planned(drained.preview) == {(two, 0, False), (three, 2, False)}
    assert [(f.pool_before, f.pool_after) for f in drained.preview.frontends] == [("primary", "fallback")]
    await stub.DrainBackend(pb.ChangeBackendRequest(name="two"))
    await lab.holds("two", 0)
    assert made(vpp) == planned(drained.preview)


async def test_the_command_line_shows_it_and_vpp_may_be_away(lab: Lab) -> None:
    lines = (await maglevc(lab.daemon, "set", "backend", "one", "drain", "dry-run")).splitlines()
    assert lines[:3] == [
        "backend one would be up, drained",
        "  last: no server left, new flows are dropped",
        "  frontend www: up",
    ]
    assert "    one      primary     100      0" in lines
    assert "  frontend last: up -> down, pool primary -> none" in lines
    assert lines[-1] == "nothing was changed"
    assert max(map(len, lines)) <= 80
    again = await maglevc(lab.daemon, "set", "backend", "one", "drain", "dry-run")
    assert again.splitlines() == lines
    shown = json.loads(
        await maglevc(
            lab.daemon,
            "--json",
            "set",
            "frontend",
            "www",
            "pool",
            "primary",
            "backend",
            "one",
            "weight",
            "0",
            "dry-run",
        )
    )
    assert shown["preview"]["plan"]["steps"][0]["new_weight"] == 0
    assert shown["preview"]["frontends"][0]["state_after"] == "up"

    await lab.vpp.stop()
    await lab.away()
    away = (await maglevc(lab.daemon, "set", "backend", "one", "drain", "dry-run")).splitlines()
    assert away[:6] == lines[:6]
    assert away[-2].startswith("in VPP: not known: VPP is away")
    assert (await lab.stub.GetBackend(pb.GetBackendRequest(name="one"))).drained is False
