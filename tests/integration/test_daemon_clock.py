"""The daemon under a wall clock that is set: weights, durations, spans that are shown, and a restart."""

from __future__ import annotations

import asyncio
import textwrap
import time
from ipaddress import ip_address
from pathlib import Path

from maglev.pb import maglev_pb2 as pb
from maglev.vppsim.server import StandIn
from tests.helpers.clockstep import YEAR, ClockStep
from tests.helpers.daemon import DEADLINE, DaemonProcess, Watcher
from tests.helpers.tls import Certificate, Talking, server

HOUR = 3600 * 10**9


def config(port: int, ca: Path) -> str:
    return textwrap.dedent(f"""\
        maglev:
          vpp:
            lb:
              ipv4-src-address: 192.0.2.1
              startup-min-delay: 0s
              startup-max-delay: 0s
              sync-interval: 1h
          healthchecks:
            web: {{type: https, port: {port}, params: {{ca-file: {ca}}}, interval: 300ms, fall: 2}}
          backends:
            one: {{address: 127.0.0.1, healthcheck: web}}
            spare: {{address: 127.0.13.1}}
          frontends:
            www:
              address: 192.0.2.80
              protocol: tcp
              port: 443
              pools: [{{name: primary, backends: {{one: {{}}, spare: {{}}}}}}]
        """)


async def test_a_clock_that_is_set_takes_no_traffic_away_and_a_restart_changes_nothing(tmp_path: Path) -> None:
    authority = Certificate(["authority"], ca=True)
    ca = authority.write(tmp_path / "ca.pem")
    clock = ClockStep(tmp_path)
    vpp = StandIn(tmp_path / "api.sock")
    with server(Talking(Certificate(["127.0.0.1"], authority), tmp_path)) as web:
        await vpp.start()
        daemon = DaemonProcess(tmp_path, config(web.port, ca), f"--vpp-api-addr={tmp_path / 'api.sock'}")
        daemon.environment = clock.environment
        async with daemon:
            async with daemon.api() as stub:
                await Watcher(stub).states(one="up")
                await stub.DrainBackend(pb.ChangeBackendRequest(name="spare", duration_ns=HOUR))
                clock.set(20 * YEAR)
                await unprobed(stub, "not probed: clock: ")
                line = await daemon.logged("event=clock-step")
                assert "set by +631152000.0" in line
                await assert_left(stub, 20 * YEAR)
            await daemon.restart()
            async with daemon.api() as stub:
                await Watcher(stub).states(spare="up")
                await unprobed(stub, "not probed: clock: ")
                await assert_left(stub, 20 * YEAR)
                clock.set(0)
                await Watcher(stub).states(one="up")
                await unprobed(stub, "")
                assert all(each.to_state != pb.BACKEND_STATE_DOWN for each in (await one(stub)).transitions)
        told = [entry.values for entry in vpp.journal if entry.message == "lb_as_set_weight"]
        await vpp.stop()
    assert [values["weight"] for values in told if ip_address(values["as_address"]) == ip_address("127.0.0.1")] == [10]


async def one(stub: object) -> pb.BackendInfo:
    return await stub.GetBackend(pb.GetBackendRequest(name="one"))  # type: ignore[attr-defined,no-any-return]


def agrees(reason: str, why: str) -> bool:
    return reason.startswith(why) if why else not reason


async def unprobed(stub: object, why: str) -> None:
    """Wait until a backend is not probed for that reason, or is again; neither is an event."""
    async with asyncio.timeout(DEADLINE):
        while not agrees((await one(stub)).unprobed_reason, why):
            pass


async def assert_left(stub: object, step: float) -> None:
    """An hour, less what the test has taken, is left of the drain; and none of the spans shown is of years."""
    (override,) = (await stub.ListOverrides(pb.ListOverridesRequest())).overrides  # type: ignore[attr-defined]
    now = time.time_ns() + round(step * 1e9)
    assert HOUR - 60e9 < override.until_ns - now <= HOUR
    assert 0 <= now - override.since_ns < 60e9
    info = await one(stub)
    assert 0 <= now - info.state_since_ns < 60e9
    assert 0 <= now - info.unprobed_since_ns < 60e9
