"""The brake: from servers on real sockets that fall silent together to the weights in the stand-in for VPP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from ipaddress import ip_address
from pathlib import Path

import pytest

from maglev.pb import maglev_pb2 as pb
from maglev.pb import maglev_pb2_grpc as pb_grpc
from maglev.vppsim.model import extract
from maglev.vppsim.server import StandIn
from tests.helpers.crowd import Crowd
from tests.helpers.daemon import DEADLINE, DaemonProcess, Watcher

SERVERS = {f"s{number:02}": f"127.0.48.{number}" for number in range(1, 21)}
MOST = [f"s{number:02}" for number in range(1, 13)]
"""Twelve of twenty."""


class Lab:
    """Twenty web servers, a stand-in, and a daemon between them."""

    def __init__(self, directory: Path) -> None:
        self.crowd = Crowd(SERVERS)
        self.mute = self.crowd.mute
        self.refuse = self.crowd.refuse
        self.port = self.crowd.port
        self.vpp = StandIn(directory / "api.sock")
        self.directory = directory

    async def start(self) -> None:
        await self.vpp.start()
        await self.crowd.start()

    async def stop(self) -> None:
        await self.crowd.stop()
        await self.vpp.stop()

    def daemon(self, brake: str, *, frontends: dict[str, list[str]] | None = None, warmup: str = "0s") -> DaemonProcess:
        text = f"""\
maglev:
  healthchecker: {{brake: {brake}}}
  vpp: {{lb: {{ipv4-src-address: 192.0.2.1, startup-min-delay: 0s, startup-max-delay: {warmup}, sync-interval: 1h}}}}
  healthchecks:
    web: {{type: http, port: {self.port}, interval: 100ms, timeout: 100ms, rise: 1, fall: 4}}
  backends:
"""
        text += "".join(f"    {name}: {{address: {address}, healthcheck: web}}\n" for name, address in SERVERS.items())
        text += "  frontends:\n"
        for number, (name, members) in enumerate((frontends or {"www": list(SERVERS)}).items()):
            pool = ", ".join(f"{member}: " for member in members)
            text += f"    {name}: {{address: 192.0.2.{80 + number}, pools: [{{name: p, backends: {{{pool}}}}}]}}\n"
        flags = (f"--vpp-api-addr={self.directory / 'api.sock'}", "--log-level=debug")
        return DaemonProcess(self.directory, text, *flags)

    def serving(self) -> set[str]:
        """Servers with a weight in VPP."""
        names = {ip_address(address).packed: name for name, address in SERVERS.items()}
        model = self.vpp.model
        return {
            names[extract(server.address)]
            for vip in model.visible_vips()
            for server in model.ases_of(vip)
            if server.used and server.weight
        }

    async def serve(self, wanted: Iterable[str]) -> None:
        """Wait until VPP has weights for these servers alone."""
        async with asyncio.timeout(DEADLINE):
            while self.serving() != set(wanted):
                await self.vpp.journal.next(lambda entry: True)


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    lab = Lab(tmp_path)
    await lab.start()
    try:
        yield lab
    finally:
        await lab.stop()


REST = set(SERVERS) - set(MOST)


async def held(stub: pb_grpc.MaglevAsyncStub, backends: int) -> None:
    """Wait until so many backends are held."""
    async with asyncio.timeout(DEADLINE):
        while True:
            if (await stub.GetServerInfo(pb.GetServerInfoRequest())).held_backends == backends:
                return
            await asyncio.sleep(0.02)  # the API has no event for this


async def test_most_are_silent_and_go_together_when_the_brake_ends(lab: Lab) -> None:
    async with lab.daemon("{at-least: 5, hold: 2s}") as daemon, daemon.api() as stub:
        watcher = Watcher(stub)
        await lab.serve(SERVERS)
        lab.vpp.journal.clear()
        lab.mute |= set(MOST)
        await watcher.log_event("brake-begun")
        await held(stub, len(MOST))
        backend = await stub.GetBackend(pb.GetBackendRequest(name=MOST[0]))
        assert (backend.state, backend.held) == (pb.BACKEND_STATE_UP, "brake")
        assert "maglev_backends_held 12" in await daemon.metrics()
        assert lab.vpp.journal.writes() == []
        await watcher.log_event("brake-ended")
        await lab.serve(REST)
        assert "maglev_brakes_begun_total 1" in await daemon.metrics()


async def test_a_dry_run_of_the_release_shows_what_goes_and_ends_nothing(lab: Lab) -> None:
    async with lab.daemon("{at-least: 5, hold: 5m}") as daemon, daemon.api() as stub:
        watcher = Watcher(stub)
        await lab.serve(SERVERS)
        lab.vpp.journal.clear()
        lab.mute |= set(MOST)
        await watcher.log_event("brake-begun")
        await held(stub, len(MOST))
        tried = await stub.ReleaseBrake(pb.ReleaseBrakeRequest(dry_run=True))
        (frontend,) = tried.preview.frontends
        assert (tried.released, tried.failing) == (len(MOST), len(MOST))
        assert {one.backend for one in frontend.members if not one.effective_after} == set(MOST)
        dropped = {one.backend for one in tried.preview.plan.steps if not one.new_weight}
        assert dropped == set(MOST) or tried.preview.plan.steps[0].kind == pb.PLAN_STEP_KIND_AS_COMMANDS
        await held(stub, len(MOST))
        assert lab.vpp.journal.writes() == []
        assert (await stub.ReleaseBrake(pb.ReleaseBrakeRequest())).released == len(MOST)
        await lab.serve(REST)


async def test_silence_that_ends_in_time_writes_nothing(lab: Lab) -> None:
    async with lab.daemon("{at-least: 5, hold: 30s}") as daemon, daemon.api() as stub:
        watcher = Watcher(stub)
        await lab.serve(SERVERS)
        lab.vpp.journal.clear()
        lab.mute |= set(SERVERS)
        await watcher.log_event("brake-begun")
        lab.mute.clear()
        await held(stub, 0)
        assert (await stub.ReleaseBrake(pb.ReleaseBrakeRequest())).released == 0
        assert lab.vpp.journal.writes() == []
        assert lab.serving() == set(SERVERS)


async def test_servers_that_refuse_are_not_held(lab: Lab) -> None:
    async with lab.daemon("{at-least: 5, hold: 5m}"):
        await lab.serve(SERVERS)
        await lab.refuse(MOST)
        await lab.serve(REST)


async def test_an_answer_ends_a_hold(lab: Lab) -> None:
    async with lab.daemon("{at-least: 5, hold: 5m}") as daemon, daemon.api() as stub:
        await lab.serve(SERVERS)
        lab.mute |= set(MOST)
        await Watcher(stub).log_event("brake-begun")
        await lab.refuse(MOST)
        await lab.serve(REST)


async def test_an_operator_releases_the_brake(lab: Lab) -> None:
    async with lab.daemon("{at-least: 5, hold: 5m}") as daemon, daemon.api() as stub:
        await lab.serve(SERVERS)
        lab.mute |= set(MOST)
        await Watcher(stub).log_event("brake-begun")
        await stub.DrainBackend(pb.ChangeBackendRequest(name=MOST[0]))
        await lab.serve(set(SERVERS) - {MOST[0]})
        await stub.ReleaseBrake(pb.ReleaseBrakeRequest())
        await lab.serve(REST)


async def test_small_frontends_are_held_and_those_with_a_majority_are_not(lab: Lab) -> None:
    frontends = {
        "one": ["s01"],
        "two": ["s02", "s13"],
        "many": ["s03", "s14", "s15", "s16"],
        "rest": [f"s{number:02}" for number in (*range(4, 13), *range(17, 21))],
    }
    async with lab.daemon("{at-least: 5, hold: 5m}", frontends=frontends) as daemon, daemon.api() as stub:
        watcher = Watcher(stub)
        await lab.serve(SERVERS)
        lab.mute |= set(MOST)
        await watcher.log_event("brake-begun")
        await lab.serve(set(SERVERS) - {"s03"})
        await held(stub, len(MOST) - 1)
        for name in ("s01", "s02"):
            assert (await stub.GetBackend(pb.GetBackendRequest(name=name))).held == "brake"
        assert lab.serving() == set(SERVERS) - {"s03"}


async def test_a_restart_in_the_middle_of_a_brake_releases_nothing_early(lab: Lab) -> None:
    async with lab.daemon("{at-least: 5, hold: 3s}", warmup="1s") as daemon:
        async with daemon.api() as stub:
            await lab.serve(SERVERS)
            lab.mute |= set(MOST)
            await Watcher(stub).log_event("brake-begun")
        await daemon.stop()
        lab.vpp.journal.clear()
        await daemon.start()
        async with daemon.api() as stub:
            watcher = Watcher(stub)
            await watcher.log_event("brake-begun")
            assert lab.vpp.journal.writes() == []
            await watcher.log_event("brake-ended")
            await lab.serve(REST)
