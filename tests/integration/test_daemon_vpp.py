"""maglevd as a process, on real sockets, driving the stand-in for VPP; what VPP holds is read back by vpp_papi."""

from __future__ import annotations

import asyncio
import signal
import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from maglev.pb import maglev_pb2 as pb
from maglev.vppsim.journal import Entry
from maglev.vppsim.server import StandIn
from tests.helpers.daemon import DEADLINE, DaemonProcess, HttpTarget, Watcher, reserved_port

ONE = "127.0.12.1"
TWO = "127.0.12.2"
THREE = "127.0.12.3"


def config(port: int, *, interval: str = "100ms", fall: int = 2, warmup: str = "0s") -> str:
    """www has one and two in its first pool, three in its second; all weights are multiples of 10."""
    return textwrap.dedent(f"""\
        maglev:
          vpp:
            lb:
              ipv4-src-address: 192.0.2.1
              startup-min-delay: 0s
              startup-max-delay: {warmup}
              sync-interval: 1h
          healthchecks:
            web:
              type: http
              port: {port}
              interval: {interval}
              rise: 2
              fall: {fall}
          backends:
            one: {{address: {ONE}, healthcheck: web}}
            two: {{address: {TWO}, healthcheck: web}}
            three: {{address: {THREE}, healthcheck: web}}
          frontends:
            www:
              address: 192.0.2.80
              protocol: tcp
              port: 80
              new-flows-table-length: 1024
              pools:
                - {{name: primary, backends: {{one: {{weight: 100}}, two: {{weight: 50}}}}}}
                - {{name: fallback, backends: {{three: {{weight: 20}}}}}}
        """)


def weight_of(address: str, weight: int) -> Callable[[Entry], bool]:
    """Whether a call gives the AS of ``address`` this weight."""

    def wanted(entry: Entry) -> bool:
        return (
            entry.message in ("lb_as_set_weight", "lb_add_del_as_v2")
            and str(_address(entry.values["as_address"])) == address
            and entry.values["weight"] == weight
        )

    return wanted


def _address(packed: bytes) -> object:
    import ipaddress

    return ipaddress.ip_address(packed)


class Lab:
    """Three web servers, a stand-in, and a daemon between them."""

    def __init__(self, directory: Path) -> None:
        self.port = reserved_port()
        self.one, self.two, self.three = (HttpTarget(address, self.port) for address in (ONE, TWO, THREE))
        self.targets = (self.one, self.two, self.three)
        self.vpp = StandIn(directory / "api.sock")
        self.daemon = DaemonProcess(directory, config(self.port), f"--vpp-api-addr={directory / 'api.sock'}")

    async def weights(self) -> dict[str, int]:
        """Live ASes of the VIP and their weights, as another client of VPP reads them."""
        return await asyncio.to_thread(read_by_papi, self.vpp.path)

    async def restart_daemon(self) -> None:
        """Start the daemon again with a log of everything, from its very beginning."""
        self.daemon.log.clear()
        self.daemon.flags += ("--log-level=debug",)
        await self.daemon.start()

    async def programmed(self, address: str, weight: int) -> None:
        """Wait until the stand-in is told to give an AS this weight, if it was not told so last."""
        calls = [e for e in self.vpp.journal if weight_of(address, e.values.get("weight", -1))(e)]
        if calls and calls[-1].values["weight"] == weight:
            return
        async with asyncio.timeout(DEADLINE):
            await self.vpp.journal.next(weight_of(address, weight))


def read_by_papi(path: str) -> dict[str, int]:
    """Weights of the live ASes by address, read by vpp_papi over the API definitions that the stand-in itself gives."""
    from vpp_papi import VPPApiClient

    client = VPPApiClient(server_address=path, use_socket=True, bootstrapapi=True, read_timeout=10)
    client.connect("test")
    try:
        return {
            str(details.app_srv): int(details.weight) for details in client.api.lb_as_v2_dump() if details.flags == 1
        }
    finally:
        client.disconnect()


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    """All servers up, the daemon ready, VPP programmed."""
    lab = Lab(tmp_path)
    for target in lab.targets:
        await target.start()
    await lab.vpp.start()
    async with lab.daemon:
        async with lab.daemon.api() as stub:
            await Watcher(stub).states(one="up", two="up", three="up")
        await lab.programmed(ONE, 10)
        await lab.programmed(TWO, 5)
        yield lab
    await lab.vpp.stop()
    for target in lab.targets:
        await target.stop()


async def test_weights_reach_vpp_and_follow_health(lab: Lab) -> None:
    assert await lab.weights() == {ONE: 10, TWO: 5, THREE: 0}
    lab.one.status = 500
    await lab.programmed(ONE, 0)
    assert await lab.weights() == {ONE: 0, TWO: 5, THREE: 0}
    await lab.two.stop()
    await lab.programmed(THREE, 2)
    await lab.programmed(TWO, 0)
    assert await lab.weights() == {ONE: 0, TWO: 0, THREE: 2}
    lab.one.status = 200
    await lab.programmed(ONE, 10)
    await lab.programmed(THREE, 0)
    assert await lab.weights() == {ONE: 10, TWO: 0, THREE: 0}


async def test_down_flushes_and_drain_does_not(lab: Lab) -> None:
    def flushed(address: str) -> list[bool]:
        return [
            bool(e.values["is_flush"])
            for e in lab.vpp.journal.calls("lb_as_set_weight")
            if str(_address(e.values["as_address"])) == address and e.values["weight"] == 0
        ]

    async with lab.daemon.api() as stub:
        lab.vpp.journal.clear()
        await stub.DrainBackend(pb.ChangeBackendRequest(name="two"))
        await lab.programmed(TWO, 0)
        lab.one.status = 500
        await lab.programmed(ONE, 0)
        assert flushed(TWO) == [False]
        assert flushed(ONE) == [True]


async def test_disable_flushes_and_enable_brings_it_back_with_its_history(lab: Lab) -> None:
    async with lab.daemon.api() as stub:
        lab.vpp.journal.clear()
        await stub.DisableBackend(pb.ChangeBackendRequest(name="one"))
        await lab.programmed(ONE, 0)
        (call,) = lab.vpp.journal.calls("lb_as_set_weight")
        assert call.values["is_flush"]
        await stub.EnableBackend(pb.ChangeBackendRequest(name="one"))
        await lab.programmed(ONE, 10)
        info = await stub.GetBackend(pb.GetBackendRequest(name="one"))
        words = [
            (pb.BackendState.Name(t.from_state)[14:], pb.BackendState.Name(t.to_state)[14:]) for t in info.transitions
        ]
        assert words == [("UNKNOWN", "UP"), ("UP", "DISABLED"), ("DISABLED", "UNKNOWN"), ("UNKNOWN", "UP")]


async def test_run_time_weight_is_programmed_at_once_and_told_as_rounded(lab: Lab) -> None:
    async with lab.daemon.api() as stub:
        answer = await stub.SetFrontendPoolBackendWeight(
            pb.SetWeightRequest(frontend="www", pool="primary", backend="one", weight=34)
        )
        assert (answer.applied_weight, answer.rounded, answer.unit) == (30, True, 10)
        await lab.programmed(ONE, 3)


async def test_restart_against_a_programmed_vpp_makes_no_write(lab: Lab) -> None:
    lab.daemon.config.write_text(config(lab.port, warmup="1s"))
    assert await lab.daemon.stop() == 0
    lab.vpp.journal.clear()
    await lab.restart_daemon()
    async with lab.daemon.api() as stub:
        watcher = Watcher(stub)
        await watcher.states(one="up", two="up", three="up")
        await lab.daemon.logged("event=vpp-full-sync")
        info = await stub.GetVPPInfo(pb.GetVPPInfoRequest())
        assert info.last_full_sync_changes == 0
    assert lab.vpp.journal.writes() == []
    assert await lab.weights() == {ONE: 10, TWO: 5, THREE: 0}


async def test_restart_with_one_lost_probe_makes_no_write(lab: Lab) -> None:
    lab.daemon.config.write_text(config(lab.port, warmup="1s"))
    assert await lab.daemon.stop() == 0
    lab.vpp.journal.clear()
    lab.one.failures = 1
    await lab.restart_daemon()
    async with lab.daemon.api() as stub:
        watcher = Watcher(stub)
        await watcher.states(one="up", two="up", three="up")
        assert lab.one.failures == 0
        assert "down" not in {
            pb.BackendState.Name(e.backend.to_state)[14:].lower() for e in watcher.events if e.HasField("backend")
        }
        await lab.daemon.logged("event=vpp-full-sync")
    assert lab.vpp.journal.writes() == []


async def test_reload_that_changes_the_interval_of_a_shared_check_makes_no_write(lab: Lab) -> None:
    lab.vpp.journal.clear()
    lab.daemon.config.write_text(config(lab.port, interval="150ms", fall=4))
    async with lab.daemon.api() as stub:
        watcher = Watcher(stub)
        await watcher.states(one="up")
        lab.daemon.signal(signal.SIGHUP)
        await watcher.log_event("config-applied", by="signal")
        await watcher.log_event("vpp-full-sync")
        check = await stub.GetHealthCheck(pb.GetHealthCheckRequest(name="web"))
        assert (check.interval_ns, check.fall) == (150_000_000, 4)
    assert lab.vpp.journal.writes() == []


async def test_vpp_that_restarts_empty_is_programmed_again(lab: Lab) -> None:
    lab.vpp.journal.clear()
    again = lab.vpp.journal.next(weight_of(ONE, 10))
    lab.vpp.control.execute("restart")
    await asyncio.wait_for(again, DEADLINE)
    await lab.programmed(TWO, 5)
    assert (await lab.weights())[ONE] == 10


async def test_without_vpp_everything_else_goes_on(lab: Lab) -> None:
    async with lab.daemon.api() as stub:
        watcher = Watcher(stub)
        await watcher.states(one="up")
        await lab.vpp.stop()
        await watcher.log_event("vpp-disconnected")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.GetVPPInfo(pb.GetVPPInfoRequest())
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        lab.one.status = 500
        await watcher.states(one="down")
        found = {s.name for f in text_string_to_metric_families(await lab.daemon.metrics()) for s in f.samples}
        assert "maglev_vpp_connected" in found
        assert not {"maglev_vpp_info", "maglev_vpp_uptime_seconds", "maglev_vpp_connected_seconds"} & found
        await lab.vpp.start()
        await watcher.log_event("vpp-connected")
        await lab.programmed(ONE, 0)


async def test_sigterm_leaves_vpp_as_it_is_and_says_goodbye(lab: Lab) -> None:
    before = await lab.weights()
    lab.vpp.journal.clear()
    goodbye = lab.vpp.journal.next(lambda entry: entry.message == "sockclnt_delete")
    assert await lab.daemon.stop() == 0
    await asyncio.wait_for(goodbye, DEADLINE)
    assert lab.vpp.journal.writes() == []
    assert await lab.weights() == before


async def test_state_of_vpp_over_the_api(lab: Lab) -> None:
    async with lab.daemon.api() as stub:
        state = await stub.GetVPPLBState(pb.GetVPPLBStateRequest())
        (vip,) = state.vips
        assert (vip.frontend, vip.in_sync, vip.unit) == ("www", True, 10)
        assert {a.backend: (a.vpp_weight, a.programmed_weight) for a in vip.ases} == {
            "one": (10, 10),
            "two": (5, 5),
            "three": (0, 0),
        }
        plan = await stub.SyncVPPLBState(pb.SyncVPPLBStateRequest(dry_run=True))
        assert list(plan.plan.steps) == []


async def test_metrics_about_vpp(lab: Lab) -> None:
    found: dict[str, list[Any]] = {}
    for family in text_string_to_metric_families(await lab.daemon.metrics()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample)
    assert found["maglev_vpp_connected"][0].value == 1
    assert found["maglev_vpp_info"][0].labels["pid"]
    assert found["maglev_vpp_uptime_seconds"][0].value > 0
    sync = {(s.labels["scope"], s.labels["kind"]): s.value for s in found["maglev_vpp_lbsync_total"]}
    assert sum(count for (_, kind), count in sync.items() if kind == "vip_added") == 1
    assert any(s.labels["msg"] == "lb_add_del_as_v2" for s in found["maglev_vpp_api_total"])


async def test_a_daemon_that_is_killed_while_it_creates_a_vip_again_gives_its_weights_back(lab: Lab) -> None:
    """All checks fail, and ``on-all-down: keep`` is all that keeps the frontend served."""
    # With a small stall each call is a separate write; else VPP would have all of them before the end.
    keeping = config(lab.port).replace("new-flows-table-length: 1024", "on-all-down: keep")
    keeping = keeping.replace("sync-interval: 1h", "sync-interval: 1h\n      max-stall: 100us")
    lab.daemon.config.write_text(keeping)
    async with lab.daemon.api() as stub:
        watcher = Watcher(stub)
        await stub.ReloadConfig(pb.ReloadConfigRequest())
        await lab.three.stop()
        await watcher.states(three="down")
        await lab.two.stop()
        await watcher.states(two="down")
        await lab.one.stop()
        await watcher.states(one="down")
    held = await lab.weights()
    assert held == {ONE: 10, TWO: 0, THREE: 0}
    # VPP takes its time with the deletion, and the daemon does not live to see its end.
    lab.vpp.faults.delays["lb_add_del_vip_v2"] = 0.5
    deletion = lab.vpp.journal.next(lambda entry: entry.message == "lb_add_del_vip_v2")
    lab.daemon.config.write_text(keeping.replace("on-all-down: keep", "on-all-down: keep\n      src-ip-sticky: true"))
    lab.daemon.signal(signal.SIGHUP)
    await asyncio.wait_for(deletion, DEADLINE)
    lab.daemon.signal(signal.SIGKILL)
    await lab.daemon.wait()
    lab.vpp.faults.clear()
    assert not any((await lab.weights()).values())
    lab.vpp.journal.clear()
    back = lab.vpp.journal.next(weight_of(ONE, 10))
    await lab.restart_daemon()
    await asyncio.wait_for(back, DEADLINE)
    async with lab.daemon.api() as stub:
        await Watcher(stub).states(one="down", two="down", three="down")
        await stub.SyncVPPLBState(pb.SyncVPPLBStateRequest())
    assert await lab.weights() == held


async def test_flows_of_a_drained_server_over_the_api(lab: Lab) -> None:
    lab.vpp.control.execute("packets 192.0.2.80/32 tcp 80 300")
    async with lab.daemon.api() as stub:
        lab.vpp.journal.clear()
        await stub.DrainBackend(pb.ChangeBackendRequest(name="two"))
        await lab.programmed(TWO, 0)
        found = await stub.GetBackendFlows(pb.GetBackendFlowsRequest(name="two"))
        (one,) = found.frontends
        assert (one.frontend, one.vip, one.vpp_weight) == ("www", "192.0.2.80/32 tcp 80", 0)
        assert (found.drained, found.empty) == (True, False)
        assert 0 < found.flows == one.flows < 300
        assert found.stall_ns > 0
        await stub.DisableBackend(pb.ChangeBackendRequest(name="three"))
        third = await stub.GetBackendFlows(pb.GetBackendFlowsRequest(name="three"))
        assert (third.flows, third.empty, third.drained) == (0, True, False)
