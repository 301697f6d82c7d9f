"""Replies of the daemon to verbs, as maglevc prints them, and the events of a restart beside a drained server."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import textwrap
from pathlib import Path

from maglev.pb import maglev_pb2 as pb
from maglev.vppsim.server import StandIn
from tests.helpers.daemon import DaemonProcess, HttpTarget, Watcher, reserved_port


def config(port: int) -> str:
    return textwrap.dedent(f"""\
        maglev:
          vpp:
            lb: {{ipv4-src-address: 192.0.2.1, startup-min-delay: 0s, startup-max-delay: 2s, sync-interval: 1h}}
          healthchecks:
            web: {{type: http, port: {port}, interval: 300ms}}
          backends:
            one: {{address: 127.0.14.1, healthcheck: web}}
            two: {{address: 127.0.14.2, healthcheck: web}}
          frontends:
            www:
              address: 192.0.2.80
              protocol: tcp
              port: 80
              pools: [{{name: primary, backends: {{one: {{}}, two: {{}}}}}}]
            last:
              address: 192.0.2.81
              protocol: tcp
              port: 80
              pools: [{{name: primary, backends: {{one: {{}}}}}}]
            spare:
              address: 192.0.2.82
              protocol: tcp
              port: 80
              pools: [{{name: primary, backends: {{one: {{}}}}}}, {{name: fallback, backends: {{two: {{}}}}}}]
        """)


async def maglevc(daemon: DaemonProcess, *words: str) -> str:
    """Its output; it has to succeed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "maglev.cli.main",
        "--server",
        f"unix:{daemon.socket}",
        *words,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()


async def test_replies_say_what_changed_and_a_restart_tells_of_no_outage(tmp_path: Path) -> None:
    port = reserved_port()
    targets = [HttpTarget(f"127.0.14.{n}", port) for n in (1, 2)]
    vpp = StandIn(tmp_path / "api.sock")
    for target in targets:
        await target.start()
    await vpp.start()
    daemon = DaemonProcess(tmp_path, config(port), f"--vpp-api-addr={tmp_path / 'api.sock'}")
    async with daemon:
        async with daemon.api() as stub:
            await Watcher(stub).states(one="up", two="up")
        assert (
            await maglevc(daemon, "set", "backend", "one", "drain", "reason", "disk", "for", "1h")
        ).splitlines() == [
            "backend one is up, drained",
            "  last: no server left, new flows are dropped",
            "  spare: falls back to pool fallback",
        ]
        lines = (await maglevc(daemon, "set", "backend", "one", "drain", "reason", "fans", "for", "4h")).splitlines()
        assert lines[0] == "backend one is up, drained"
        assert lines[1] == "  reason is now fans, was disk"
        assert re.fullmatch(r"  until is now \S+ \S+ \(.*left\), was \S+ \S+ \(.*left\)", lines[2])
        assert len(lines) == 3
        again = json.loads(await maglevc(daemon, "--json", "set", "backend", "one", "drain"))
        assert not again["changed"]
        assert [one["what"] for one in again["changes"]] == ["reason", "until"]
        assert again["changes"][1]["after"] == ""
        assert "nothing to drain" in await maglevc(daemon, "set", "backend", "one", "drain")
        weight = ("set", "frontend", "spare", "pool", "fallback", "backend", "two", "weight", "0")
        assert "  spare: no server left, new flows are dropped" in await maglevc(daemon, *weight)
        assert "served again" not in await maglevc(daemon, *weight)
        assert "  spare: served again, by pool fallback" in await maglevc(daemon, *weight[:-1], "default")

        await daemon.stop()
        daemon.log.clear()
        await daemon.start()
        async with daemon.api() as stub:
            watcher = Watcher(stub)
            await watcher.states(one="up", two="up")
            await watcher.until(lambda w: w.frontends.get("www") == "up" and w.frontends.get("last") == "down")
            info = await stub.GetFrontend(pb.GetFrontendRequest(name="www"))
            assert info.state == pb.FRONTEND_STATE_UP
        for line in ("frontend www unknown -> up", "frontend spare unknown -> up", "frontend last unknown -> down"):
            await daemon.logged(line)
        moves = [line for line in daemon.log if "event=frontend-transition" in line]
        assert len(moves) == 3, moves
    await vpp.stop()
    for target in targets:
        await target.stop()
