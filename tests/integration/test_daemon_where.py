"""maglevd with checks that leave from different namespaces and addresses, and from such as are not there."""

from __future__ import annotations

import asyncio
import ctypes
import socket
import textwrap
import threading
from pathlib import Path

import pytest

from maglev.pb import maglev_pb2 as pb
from maglev.pb import maglev_pb2_grpc as pb_grpc
from tests.helpers.daemon import DEADLINE, DaemonProcess, Watcher
from tests.helpers.engine import listener, port_of
from tests.helpers.netns import SERVER, SERVER6, Pair, inside, ip, pair

CAP_SYS_ADMIN = 21
PR_CAPBSET_DROP = 24


def config(checks: str, backends: dict[str, tuple[str, str]]) -> str:
    """Backends by name: address and health check."""
    lines = "\n".join(f"{name}: {{address: '{at}', healthcheck: {by}}}" for name, (at, by) in backends.items())
    body = (
        f"healthchecks:\n{textwrap.indent(textwrap.dedent(checks), '  ')}\nbackends:\n{textwrap.indent(lines, '  ')}\n"
    )
    return "maglev:\n" + textwrap.indent(body, "  ")


async def unprobed(stub: pb_grpc.MaglevAsyncStub, name: str) -> str:
    """Wait until the API says why a backend cannot be probed."""
    async with asyncio.timeout(DEADLINE):
        while True:
            info = await stub.GetBackend(pb.GetBackendRequest(name=name))
            if info.unprobed_reason:
                return info.unprobed_reason
            await asyncio.sleep(0.02)  # the API has no event for this


async def test_checks_of_one_daemon_leave_from_different_namespaces(tmp_path: Path) -> None:
    """The same addresses lead to other hosts in each: only the first pair has listeners."""
    with (
        pair() as one,
        pair() as two,
        inside(one.server, lambda: listener(SERVER)) as four,
        inside(one.server, lambda: listener(SERVER6)) as six,
    ):
        checks = f"""\
            here4: {{type: tcp, port: {port_of(four)}, interval: 100ms, netns: {one.client}}}
            here6: {{type: tcp, port: {port_of(six)}, interval: 100ms, netns: {one.client}, params: {{mode: connect}}}}
            there4: {{type: tcp, port: {port_of(four)}, interval: 100ms, netns: {two.client}}}
            there6: {{type: tcp, port: {port_of(six)}, interval: 100ms, netns: {two.client}, params: {{mode: connect}}}}
            ping: {{type: icmp, interval: 100ms, netns: {two.client}}}
            nowhere: {{type: icmp, interval: 100ms}}
        """
        backends = {
            "here4": (SERVER, "here4"),
            "here6": (SERVER6, "here6"),
            "there4": (SERVER, "there4"),
            "there6": (SERVER6, "there6"),
            "ping": (SERVER, "ping"),
            "local": ("127.0.0.1", "nowhere"),
        }
        async with (
            DaemonProcess(tmp_path, config(checks, backends), "--vpp-api-addr=") as daemon,
            daemon.api() as stub,
        ):
            watcher = Watcher(stub)
            await watcher.states(here4="up", here6="up", there4="down", there6="down", ping="up", local="up")


async def test_checks_of_one_daemon_leave_from_different_addresses(tmp_path: Path) -> None:
    peers: set[str] = set()
    heard = threading.Event()
    with pair() as nets:
        for own in ("192.0.2.51/24", "192.0.2.52/24"):
            ip("-n", nets.client, "addr", "add", own, "dev", "veth0")
        ip("-n", nets.client, "addr", "add", "2001:db8::51/64", "dev", "veth0", "nodad")
        with (
            inside(nets.server, lambda: listener(SERVER)) as four,
            inside(nets.server, lambda: listener(SERVER6)) as six,
        ):

            def serve(sock: socket.socket) -> None:
                while True:
                    try:
                        client, peer = sock.accept()
                    except OSError:
                        return
                    with client:
                        client.recv(4096)
                        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                    peers.add(peer[0])
                    heard.set()

            threads = [threading.Thread(target=serve, args=(sock,)) for sock in (four, six)]
            for thread in threads:
                thread.start()
            source6 = "probe-ipv6-src: '2001:db8::51'"
            common = f"interval: 200ms, netns: {nets.client}"
            checks = f"""\
                first: {{type: http, port: {port_of(four)}, probe-ipv4-src: 192.0.2.51, {common}}}
                second: {{type: http, port: {port_of(four)}, probe-ipv4-src: 192.0.2.52, {common}}}
                both: {{type: http, port: {port_of(six)}, probe-ipv4-src: 192.0.2.52, {source6}, {common}}}
                none: {{type: http, port: {port_of(four)}, probe-ipv4-src: 192.0.2.99, {common}}}
            """
            backends = {
                "first": (SERVER, "first"),
                "second": (SERVER, "second"),
                "sixth": (SERVER6, "both"),
                "none": (SERVER, "none"),
            }
            try:
                async with (
                    DaemonProcess(tmp_path, config(checks, backends), "--vpp-api-addr=") as daemon,
                    daemon.api() as stub,
                ):
                    watcher = Watcher(stub)
                    await watcher.states(first="up", second="up", sixth="up", none="unknown")
                    reason = await unprobed(stub, "none")
                    assert reason.startswith("EADDRNOTAVAIL: cannot use the source address")
                    ip("-n", nets.client, "addr", "add", "192.0.2.99/24", "dev", "veth0")
                    await watcher.states(none="up")
            finally:
                for sock in (four, six):
                    sock.shutdown(socket.SHUT_RDWR)
                for thread in threads:
                    thread.join()
    assert peers == {"192.0.2.51", "192.0.2.52", "192.0.2.99", "2001:db8::51"}


@pytest.mark.parametrize("params", ["{}", "{mode: connect}"])
async def test_a_namespace_that_is_not_there_is_named_and_waited_for(tmp_path: Path, params: str) -> None:
    nets = Pair()
    checks = f"""\
        there: {{type: tcp, port: 80, interval: 100ms, netns: {nets.client}, params: {params}}}
        here: {{type: icmp, interval: 100ms}}
    """
    backends = {"there": (SERVER, "there"), "here": ("127.0.0.1", "here")}
    try:
        async with (
            DaemonProcess(tmp_path, config(checks, backends), "--vpp-api-addr=") as daemon,
            daemon.api() as stub,
        ):
            watcher = Watcher(stub)
            await watcher.states(here="up", there="unknown")
            reason = await unprobed(stub, "there")
            assert reason.startswith(f"ENOENT: cannot enter the network namespace '{nets.client}'")
            nets.open()
            with inside(nets.server, lambda: listener(SERVER, 80)):
                await watcher.states(there="up")
    finally:
        nets.close()


async def test_without_the_right_to_enter_namespaces_everything_else_is_probed(tmp_path: Path) -> None:
    def without_sys_admin() -> None:
        # As root: an exec gives what the bounding set still has.
        ctypes.CDLL(None, use_errno=True).prctl(PR_CAPBSET_DROP, CAP_SYS_ADMIN, 0, 0, 0)

    with pair() as nets:
        checks = f"""\
            there: {{type: icmp, interval: 100ms, netns: {nets.client}}}
            here: {{type: icmp, interval: 100ms}}
        """
        backends = {"there": (SERVER, "there"), "here": ("127.0.0.1", "here")}
        daemon = DaemonProcess(tmp_path, config(checks, backends), "--vpp-api-addr=")
        await daemon.spawn(before_exec=without_sys_admin)
        await daemon.notice("READY=1")
        async with daemon.api() as stub:
            await Watcher(stub).states(here="up", there="unknown")
            reason = await unprobed(stub, "there")
            assert reason.startswith(f"EPERM: cannot enter the network namespace '{nets.client}'")
            assert reason.endswith("(needs CAP_SYS_ADMIN)")
        line = await daemon.logged("event=capability-missing")
        assert "health check there needs" in line
        assert "AmbientCapabilities=CAP_SYS_ADMIN" in line
        assert await daemon.stop() == 0
