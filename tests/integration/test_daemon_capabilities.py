"""maglevd with and without CAP_NET_RAW: it says what it lacks, and starts if it can do without."""

from __future__ import annotations

import ctypes
import os
import textwrap
from pathlib import Path

from maglev.base.version import version
from tests.helpers.daemon import DaemonProcess, HttpTarget, Watcher, reserved_port

ADDRESS = "127.0.13.1"
CAP_NET_RAW = 13
PR_CAPBSET_DROP = 24


def config(checks: str, names: list[str]) -> str:
    backends = "\n".join(f"    {name}: {{address: {ADDRESS}, healthcheck: {name}}}" for name in names)
    return f"maglev:\n  healthchecks:\n{textwrap.indent(textwrap.dedent(checks), '    ')}  backends:\n{backends}\n"


def without_net_raw() -> None:
    """In the child, before it becomes the daemon: take CAP_NET_RAW out of what an exec can give."""
    libc = ctypes.CDLL(None, use_errno=True)
    # Not permitted means that we are no root, and then there was no CAP_NET_RAW to begin with.
    libc.prctl(PR_CAPBSET_DROP, CAP_NET_RAW, 0, 0, 0)


async def test_a_check_that_needs_it_refuses_the_start_and_names_the_fix(tmp_path: Path) -> None:
    daemon = DaemonProcess(
        tmp_path, config("ping: {type: icmp}\nsyn: {type: tcp, port: 80}\n", ["ping", "syn"]), "--vpp-api-addr="
    )
    await daemon.spawn(before_exec=without_net_raw)
    assert await daemon.wait() == 1
    (line,) = [line for line in daemon.log if "event=start-failed" in line]
    assert "CAP_NET_RAW" in line
    assert "ping, syn" in line
    assert "setcap" in line
    assert "AmbientCapabilities=CAP_NET_RAW" in line


async def test_checks_that_do_not_need_it_are_done_and_the_lack_is_told(tmp_path: Path) -> None:
    port = reserved_port()
    target = HttpTarget(ADDRESS, port)
    await target.start()
    checks = f"""\
        web: {{type: http, port: {port}, interval: 100ms}}
        open: {{type: tcp, port: {port}, interval: 100ms, params: {{mode: connect}}}}
    """
    daemon = DaemonProcess(tmp_path, config(checks, ["web", "open"]), "--vpp-api-addr=")
    await daemon.spawn(before_exec=without_net_raw)
    await daemon.notice("READY=1")
    async with daemon.api() as stub:
        await Watcher(stub).states(web="up", open="up")
    assert f"\r\nUser-Agent: vpp-maglev/{version()} (+https://".encode() in target.last_request
    assert await daemon.stop() == 0
    assert any("event=capability-missing" in line and " warning " in line for line in daemon.log)
    await target.stop()


async def test_every_kind_of_probe_finds_a_server_up_and_one_that_is_not_there_down(tmp_path: Path) -> None:
    """Needs CAP_NET_RAW, as the daemon does."""
    assert os.geteuid() == 0, "run the tests as root, or with CAP_NET_RAW: raw sockets cannot be tried without"
    port, closed = reserved_port(), reserved_port()
    target = HttpTarget(ADDRESS, port)
    await target.start()
    checks = f"""\
        ping: {{type: icmp, interval: 100ms}}
        syn: {{type: tcp, port: {port}, interval: 100ms}}
        syn-closed: {{type: tcp, port: {closed}, interval: 100ms}}
        connect: {{type: tcp, port: {port}, interval: 100ms, params: {{mode: connect}}}}
        connect-closed: {{type: tcp, port: {closed}, interval: 100ms, params: {{mode: connect}}}}
        web: {{type: http, port: {port}, interval: 100ms}}
        web-closed: {{type: http, port: {closed}, interval: 100ms}}
    """
    names = ["ping", "syn", "syn-closed", "connect", "connect-closed", "web", "web-closed"]
    async with DaemonProcess(tmp_path, config(checks, names), "--vpp-api-addr=") as daemon, daemon.api() as stub:
        await Watcher(stub).states(
            ping="up",
            syn="up",
            syn_closed="down",
            connect="up",
            connect_closed="down",
            web="up",
            web_closed="down",
        )
    await target.stop()
