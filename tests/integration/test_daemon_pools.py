"""maglevd with pools that have thresholds, from servers on real sockets to the weights in the stand-in for VPP."""

from __future__ import annotations

import asyncio
import textwrap
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from maglev.pb import maglev_pb2 as pb
from maglev.vppsim.server import StandIn
from tests.helpers.daemon import DEADLINE, DaemonProcess, HttpTarget, Watcher, reserved_port
from tests.helpers.weights import weights_of

SERVERS = {name: f"127.0.47.{number}" for number, name in enumerate(("a", "b", "c", "d", "x", "y"), 1)}


def config(port: int, frontend: str, *, warmup: str = "0s") -> str:
    """The frontend ``www`` with ``frontend`` as its pools and further keys."""
    text = textwrap.dedent(f"""\
        maglev:
          vpp:
            lb:
              ipv4-src-address: 192.0.2.1
              startup-min-delay: 0s
              startup-max-delay: {warmup}
              sync-interval: 1h
          healthchecks:
            web: {{type: http, port: {port}, interval: 50ms, rise: 1, fall: 2}}
          backends:
        """)
    text += "".join(f"    {name}: {{address: {address}, healthcheck: web}}\n" for name, address in SERVERS.items())
    text += "  frontends:\n    www:\n      address: 192.0.2.80\n      protocol: tcp\n      port: 80\n"
    return text + textwrap.indent(textwrap.dedent(frontend), "      ")


class Lab:
    """Six web servers, a stand-in, and a daemon between them."""

    def __init__(self, directory: Path) -> None:
        self.port = reserved_port()
        self.servers = {name: HttpTarget(address, self.port) for name, address in SERVERS.items()}
        self.vpp = StandIn(directory / "api.sock")
        self.directory = directory

    def daemon(self, frontend: str, *, warmup: str = "0s") -> DaemonProcess:
        text = config(self.port, frontend, warmup=warmup)
        return DaemonProcess(self.directory, text, f"--vpp-api-addr={self.directory / 'api.sock'}")

    def weights(self) -> dict[str, int]:
        """Weights above 0 in VPP, by server."""
        return weights_of(self.vpp, SERVERS)

    async def weigh(self, wanted: Mapping[str, int]) -> None:
        """Wait until VPP has these weights, and no others."""
        async with asyncio.timeout(DEADLINE):
            while self.weights() != wanted:
                await self.vpp.journal.next(lambda entry: True)

    async def up(self, *names: str) -> None:
        for name in names:
            await self.servers[name].start()

    async def down(self, *names: str) -> None:
        for name in names:
            await self.servers[name].stop()


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    lab = Lab(tmp_path)
    await lab.vpp.start()
    try:
        yield lab
    finally:
        for target in lab.servers.values():
            await target.stop()
        await lab.vpp.stop()


POOLS = """\
    pools:
      - {name: main, backends: {a: , b: , c: , d: }, min-up: 2, resume-up: 3, resume-after: 300ms}
      - {name: spare, backends: {x: , y: }}
    """
MAIN = {"a": 10, "b": 10, "c": 10, "d": 10}
SPARE = {"x": 10, "y": 10}


async def test_a_pool_below_min_up_hands_over_and_returns_after_resume_up(lab: Lab) -> None:
    await lab.up(*SERVERS)
    async with lab.daemon(POOLS) as daemon, daemon.api() as stub:
        watcher = Watcher(stub)
        await lab.weigh(MAIN)
        await lab.down("a", "b")
        await lab.weigh({"c": 10, "d": 10})
        await lab.down("c")
        await lab.weigh(SPARE)
        await watcher.log_event("frontend-pool", to="spare")
        info = await stub.GetFrontend(pb.GetFrontendRequest(name="www"))
        main = info.pools[0]
        assert (main.up, main.min_up, main.resume_up, main.usable) == (1, 2, 3, False)
        assert 'maglev_frontend_pool_usable{frontend="www",pool="main"} 0' in await daemon.metrics()
        # Usable again, which is not enough to take over.
        await lab.up("c")
        await watcher.states(c="up")
        assert lab.weights() == SPARE
        await lab.up("b")
        await lab.weigh({"b": 10, "c": 10, "d": 10})
        record = await watcher.log_event("frontend-pool", to="main")
        assert record.fields["cause"] == "time has passed"


async def test_the_last_servers_of_all_serve_where_no_pool_is_usable(lab: Lab) -> None:
    await lab.up(*SERVERS)
    async with lab.daemon(POOLS):
        await lab.weigh(MAIN)
        await lab.down("a", "b", "c")
        await lab.weigh(SPARE)
        await lab.down("x", "y")
        await lab.weigh({"d": 10})


async def test_a_restart_goes_on_with_the_pool_that_vpp_serves(lab: Lab) -> None:
    await lab.up(*SERVERS)
    async with lab.daemon(POOLS, warmup="1s") as daemon:
        async with daemon.api() as stub:
            await lab.weigh(MAIN)
            await lab.down("a", "b", "c")
            await lab.weigh(SPARE)
            await lab.up("b")
            await Watcher(stub).states(b="up")
        await daemon.stop()
        lab.vpp.journal.clear()
        daemon.log.clear()
        daemon.flags += ("--log-level=debug",)
        await daemon.start()
        async with daemon.api() as stub:
            await Watcher(stub).states(b="up", d="up", x="up", y="up")
            await daemon.logged("event=vpp-full-sync")
            assert lab.vpp.journal.writes() == []
            info = await stub.GetFrontend(pb.GetFrontendRequest(name="www"))
            assert info.active_pool == "spare"
            await lab.up("c")
            await lab.weigh({"b": 10, "c": 10, "d": 10})


def panicking(action: str, below: str = "80%") -> str:
    return f"""\
    panic: {{below: {below}, action: {action}}}
    pools:
      - {{name: main, backends: {{a: , b: , c: , d: }}}}
    """


@pytest.mark.parametrize("action", ["all", "keep"])
async def test_in_panic_a_failed_server_keeps_its_weight_and_its_flows(lab: Lab, action: str) -> None:
    """The failure that brings the frontend into panic costs no weight, not even for a moment."""
    await lab.up("a", "b", "c", "d")
    async with lab.daemon(panicking(action)) as daemon, daemon.api() as stub:
        watcher = Watcher(stub)
        await lab.weigh(MAIN)
        lab.vpp.journal.clear()
        await lab.down("a")
        await watcher.until(lambda w: w.frontends.get("www") == "panic")
        assert 'maglev_frontend_state{frontend="www",state="panic"} 1' in await daemon.metrics()
        assert 'maglev_frontend_pool_healthy_ratio{frontend="www",pool="main"} 0.75' in await daemon.metrics()
        await lab.down("b", "c", "d")
        await watcher.states(a="down", b="down", c="down", d="down")
        assert lab.weights() == MAIN
        assert lab.vpp.journal.writes() == []
        info = await stub.GetFrontend(pb.GetFrontendRequest(name="www"))
        assert (info.state, info.panic_below) == (pb.FRONTEND_STATE_PANIC, 0.8)
        # What an operator takes out leaves at once.
        await stub.DrainBackend(pb.ChangeBackendRequest(name="b"))
        await lab.weigh({"a": 10, "c": 10, "d": 10})
        await stub.DisableBackend(pb.ChangeBackendRequest(name="a"))
        await lab.weigh({"c": 10, "d": 10})
        assert [call.values["is_flush"] for call in lab.vpp.journal.calls("lb_as_set_weight")] == [False, True]


async def test_servers_that_failed_before_panic_get_their_weights_back(lab: Lab) -> None:
    await lab.up("a", "b", "c", "d")
    async with lab.daemon(panicking("all", "50%")) as daemon, daemon.api() as stub:
        await lab.weigh(MAIN)
        await lab.down("a", "b")
        await lab.weigh({"c": 10, "d": 10})
        await stub.DrainBackend(pb.ChangeBackendRequest(name="d"))
        # One of three servers that count.
        await lab.weigh({"a": 10, "b": 10, "c": 10})
        await stub.UndrainBackend(pb.ChangeBackendRequest(name="d"))
        await lab.weigh(MAIN)


async def test_a_restart_in_the_middle_of_panic_makes_no_write(lab: Lab) -> None:
    await lab.up("a", "b", "c", "d")
    async with lab.daemon(panicking("all"), warmup="1s") as daemon:
        async with daemon.api() as stub:
            await lab.weigh(MAIN)
            await lab.down("a", "b")
            await Watcher(stub).until(lambda w: w.backends.get("b") == "down" and w.backends.get("a") == "down")
        await daemon.stop()
        lab.vpp.journal.clear()
        daemon.flags += ("--log-level=debug",)
        await daemon.start()
        async with daemon.api() as stub:
            watcher = Watcher(stub)
            await watcher.states(a="down", b="down", c="up", d="up")
            await watcher.until(lambda w: w.frontends.get("www") == "panic")
            await watcher.log_event("vpp-full-sync", reason="warm-up")
        assert lab.vpp.journal.writes() == []
        assert lab.weights() == MAIN


SLOW = """\
    slow-start: 3s
    pools:
      - {name: main, backends: {a: , b: , c: }}
    """


async def test_a_server_that_comes_back_gets_its_weight_in_steps(lab: Lab) -> None:
    await lab.up("a", "b", "c")
    async with lab.daemon(SLOW) as daemon, daemon.api() as stub:
        await lab.weigh({"a": 10, "b": 10, "c": 10})
        assert [call.values["weight"] for call in lab.vpp.journal.calls("lb_as_set_weight")] == [10, 10, 10]
        await lab.down("a")
        await lab.weigh({"b": 10, "c": 10})
        lab.vpp.journal.clear()
        await lab.up("a")
        await lab.weigh({"a": 3, "b": 10, "c": 10})
        info = await stub.GetFrontend(pb.GetFrontendRequest(name="www"))
        assert (info.slow_start_ns, info.pools[0].backends[0].slow_start_percent) == (3_000_000_000, 25)
        assert 'maglev_frontend_slow_starts{frontend="www"} 1' in await daemon.metrics()
        await lab.weigh({"a": 10, "b": 10, "c": 10})
        assert [call.values["weight"] for call in lab.vpp.journal.calls("lb_as_set_weight")] == [3, 5, 8, 10]
        await daemon.logged("event=slow-start")


async def test_a_start_and_a_reload_that_renames_a_server_take_no_weight(lab: Lab) -> None:
    await lab.up("a", "b", "c")
    async with lab.daemon(SLOW, warmup="1s") as daemon:
        await lab.weigh({"a": 10, "b": 10, "c": 10})
        lab.vpp.journal.clear()
        await daemon.stop()
        await daemon.start()
        async with daemon.api() as stub:
            await Watcher(stub).states(a="up", b="up", c="up")
            text = daemon.config.read_text().replace("backends: {a: ,", "backends: {renamed: ,")
            daemon.config.write_text(text.replace("    a: {address", "    renamed: {address"))
            await stub.ReloadConfig(pb.ReloadConfigRequest())
            await Watcher(stub).states(renamed="up")
            await daemon.logged("event=vpp-full-sync")
        assert lab.vpp.journal.writes() == []
