"""The brake: from servers on real sockets that fall silent together to the weights in the stand-in for VPP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from maglev.pb import maglev_pb2 as pb
from maglev.pb import maglev_pb2_grpc as pb_grpc
from tests.helpers.daemon import DEADLINE, Watcher
from tests.helpers.twenty import MOST, REST, SERVERS, Twenty, twenty


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Twenty]:
    async with twenty(tmp_path) as one:
        yield one


async def held(stub: pb_grpc.MaglevAsyncStub, backends: int) -> None:
    """Wait until so many backends are held."""
    async with asyncio.timeout(DEADLINE):
        while True:
            if (await stub.GetServerInfo(pb.GetServerInfoRequest())).held_backends == backends:
                return
            await asyncio.sleep(0.02)  # the API has no event for this


async def test_most_are_silent_and_go_together_when_the_brake_ends(lab: Twenty) -> None:
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


async def test_a_dry_run_of_the_release_shows_what_goes_and_ends_nothing(lab: Twenty) -> None:
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


async def test_silence_that_ends_in_time_writes_nothing(lab: Twenty) -> None:
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


async def test_servers_that_refuse_are_not_held(lab: Twenty) -> None:
    async with lab.daemon("{at-least: 5, hold: 5m}"):
        await lab.serve(SERVERS)
        await lab.refuse(MOST)
        await lab.serve(REST)


async def test_an_answer_ends_a_hold(lab: Twenty) -> None:
    async with lab.daemon("{at-least: 5, hold: 5m}") as daemon, daemon.api() as stub:
        await lab.serve(SERVERS)
        lab.mute |= set(MOST)
        await Watcher(stub).log_event("brake-begun")
        await lab.refuse(MOST)
        await lab.serve(REST)


async def test_an_operator_releases_the_brake(lab: Twenty) -> None:
    async with lab.daemon("{at-least: 5, hold: 5m}") as daemon, daemon.api() as stub:
        await lab.serve(SERVERS)
        lab.mute |= set(MOST)
        await Watcher(stub).log_event("brake-begun")
        await stub.DrainBackend(pb.ChangeBackendRequest(name=MOST[0]))
        await lab.serve(set(SERVERS) - {MOST[0]})
        await stub.ReleaseBrake(pb.ReleaseBrakeRequest())
        await lab.serve(REST)


async def test_small_frontends_are_held_and_those_with_a_majority_are_not(lab: Twenty) -> None:
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


async def test_a_restart_in_the_middle_of_a_brake_releases_nothing_early(lab: Twenty) -> None:
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
