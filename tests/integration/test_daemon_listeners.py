"""maglevd whose listeners cannot be opened: it drives VPP all the same, says so, and opens them when it can."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from maglev.pb import maglev_pb2 as pb
from maglev.pb.maglev_pb2_grpc import MaglevStub
from maglev.vppsim.server import StandIn
from tests.helpers.certs import Authority
from tests.helpers.daemon import DEADLINE, DaemonProcess, HttpTarget, Watcher, reserved_port
from tests.helpers.vpprig import all_weights

ONE = "127.0.15.1"
ABSENT = "192.0.2.77"
"""An address that this host does not have."""


class Lab:
    """A stand-in, one server, and a daemon that is not started yet."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.vpp = StandIn(directory / "api.sock")
        self.web = HttpTarget(ONE, reserved_port())
        self.port = reserved_port()

    def daemon(self, *flags: str) -> DaemonProcess:
        """A daemon with one backend and one frontend."""
        return DaemonProcess(
            self.directory,
            "maglev: {vpp: {lb: {ipv4-src-address: 192.0.2.1, startup-min-delay: 0s, startup-max-delay: 0s}},"
            f" healthchecks: {{web: {{type: http, port: {self.web.port}, interval: 100ms, rise: 1}}}},"
            f" backends: {{one: {{address: {ONE}, healthcheck: web}}}},"
            " frontends: {www: {address: 192.0.2.80, pools: [{name: p, backends: {one: {}}}]}}}",
            f"--vpp-api-addr={self.vpp.path}",
            *flags,
        )

    async def served(self) -> None:
        """Wait until VPP sends traffic to the backend."""
        async with asyncio.timeout(DEADLINE):
            while not any(all_weights(self.vpp).values()):  # noqa: ASYNC110
                await asyncio.sleep(0.02)  # the stand-in has no event for a write


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    one = Lab(tmp_path)
    await one.vpp.start()
    await one.web.start()
    yield one
    await one.web.stop()
    await one.vpp.stop()


async def up(daemon: DaemonProcess) -> dict[str, pb.ListenerInfo]:
    """The listeners by name, by the API on the Unix socket."""
    async with daemon.api() as stub:
        info = await stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=DEADLINE)
    return {one.name: one for one in info.listeners}


async def test_ports_that_another_process_holds_keep_nothing_from_vpp(lab: Lab) -> None:
    taken = [socket.create_server(("127.0.0.1", port)) for port in (lab.port, 0)]
    metrics = taken[1].getsockname()[1]
    daemon = lab.daemon(f"--grpc-addr=127.0.0.1:{lab.port}", f"--metrics-addr=127.0.0.1:{metrics}")
    async with daemon:
        await lab.served()
        found = await up(daemon)
        assert {name: one.up for name, one in found.items()} == {"grpc-unix": True, "grpc-tcp": False, "metrics": False}
        assert "in use" in found["grpc-tcp"].problem.lower()
        warnings = [line for line in daemon.log if "event=listener-down" in line]
        assert len(warnings) == 2, daemon.log
        for sock in taken:
            sock.close()
        await daemon.logged("event=listener-up listener=grpc-tcp")
        await daemon.logged("event=listener-up listener=metrics")
        assert all(one.up for one in (await up(daemon)).values())
        async with grpc.aio.insecure_channel(f"127.0.0.1:{lab.port}") as channel:
            await MaglevStub(channel).GetServerInfo(pb.GetServerInfoRequest(), timeout=DEADLINE)
        daemon.metrics_port = metrics
        assert 'maglev_listener_up{listener="grpc-tcp"} 1' in await daemon.metrics()
        assert await daemon.stop() == 0


async def test_an_address_that_is_not_there_yet_is_waited_for(lab: Lab) -> None:
    async with lab.daemon(f"--grpc-addr={ABSENT}:{lab.port}") as daemon:
        await lab.served()
        found = (await up(daemon))["grpc-tcp"]
        assert not found.up
        assert "assign" in found.problem
        assert 'maglev_listener_up{listener="grpc-tcp"} 0' in await daemon.metrics()
        assert await daemon.stop() == 0


async def test_the_socket_of_a_process_that_lives_is_not_taken_from_it(lab: Lab) -> None:
    daemon = lab.daemon()
    daemon.socket.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(daemon.socket))
        other.listen(1)
        async with daemon:
            await lab.served()
            line = await daemon.logged("event=listener-down listener=grpc-unix")
            assert "another process answers there" in line
            assert daemon.socket.exists()
            other.close()
            await daemon.logged("event=listener-up listener=grpc-unix")
            assert (await up(daemon))["grpc-unix"].up
            assert await daemon.stop() == 0


@pytest.mark.parametrize("key", ["missing", "fifo", "garbage"])
async def test_a_key_that_cannot_be_read_holds_up_nothing_and_is_read_when_it_can_be(lab: Lab, key: str) -> None:
    pair = Authority(lab.directory / "tls").server("maglevd")
    path = lab.directory / "key.pem"
    if key == "fifo":
        os.mkfifo(path)
    elif key == "garbage":
        path.write_text("no key")
    daemon = lab.daemon(f"--grpc-addr=127.0.0.1:{lab.port}", f"--grpc-tls-cert={pair.cert}", f"--grpc-tls-key={path}")
    async with daemon:
        await lab.served()
        found = (await up(daemon))["grpc-tcp"]
        assert not found.up
        assert str(path) in found.problem
        new = lab.directory / "new.pem"
        os.link(pair.key, new)
        new.replace(path)
        await daemon.logged("event=listener-up listener=grpc-tcp")
        assert await daemon.stop() == 0


async def test_a_daemon_without_any_listener_makes_verdicts_and_ends_in_time(lab: Lab) -> None:
    with socket.create_server(("127.0.0.1", lab.port)):
        daemon = lab.daemon("--grpc-socket=", f"--grpc-addr=127.0.0.1:{lab.port}", "--metrics-addr=")
        async with daemon:
            await lab.served()
            lab.web.status = 500
            await daemon.logged("backend one up -> down")
            assert await daemon.stop() == 0


async def test_a_watcher_stays_when_a_listener_comes_up(lab: Lab) -> None:
    taken = socket.create_server(("127.0.0.1", lab.port))
    async with lab.daemon(f"--grpc-addr=127.0.0.1:{lab.port}") as daemon, daemon.api() as stub:
        watcher = Watcher(stub)
        await watcher.states(one="up")
        taken.close()
        await daemon.logged("event=listener-up listener=grpc-tcp")
        lab.web.status = 500
        await watcher.states(one="down")
        assert await daemon.stop() == 0
