"""The words of maglevd about an outage: levels, priorities, causes, requesters, and the history."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from maglev.pb import maglev_pb2 as pb
from tests.helpers.daemon import DEADLINE, DaemonProcess, HttpTarget, Watcher, reserved_port

ONE, TWO = "127.0.16.1", "127.0.16.2"


class Lab:
    """One server in the first pool, one in the second, and a daemon without VPP."""

    def __init__(self, directory: Path, *flags: str) -> None:
        port = reserved_port()
        self.one, self.two = HttpTarget(ONE, port), HttpTarget(TWO, port)
        self.daemon = DaemonProcess(
            directory,
            "maglev: {vpp: {lb: {ipv4-src-address: 192.0.2.1}},"
            f" healthchecks: {{web: {{type: http, port: {port}, interval: 100ms, rise: 1, fall: 1}}}},"
            f" backends: {{one: {{address: {ONE}, healthcheck: web}}, two: {{address: {TWO}, healthcheck: web}}}},"
            " frontends: {www: {address: 192.0.2.80, pools: [{name: first, backends: {one: {}}},"
            " {name: second, backends: {two: {}}}]}}}",
            "--vpp-api-addr=",
            *flags,
        )

    async def outage(self, watcher: Watcher) -> None:
        """The first server fails, then the second."""
        await watcher.states(one="up", two="up")
        self.one.status = 500
        await watcher.states(one="down")
        self.two.status = 500
        await watcher.states(two="down")

    async def maglevc(self, *words: str) -> str:
        """The output of a command."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "maglev.cli.main", f"--server=unix:{self.daemon.socket}", *words,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(DEADLINE):
            out, _ = await process.communicate()
        assert process.returncode == 0, out
        return out.decode()


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    one = Lab(tmp_path)
    await one.one.start()
    await one.two.start()
    yield one
    await one.one.stop()
    await one.two.stop()


async def test_an_outage_is_told_at_the_level_that_it_deserves(lab: Lab) -> None:
    async with lab.daemon, lab.daemon.api() as stub:
        await lab.outage(Watcher(stub))
        fallback = await lab.daemon.logged("event=frontend-pool")
        assert " warning " in fallback
        assert "served by pool second, a fallback: backend one down (L7STS: 500)" in fallback
        assert " warning " in await lab.daemon.logged("backend one up -> down")
        assert " warning " in await lab.daemon.logged("frontend www up -> down: backend two down (L7STS: 500)")
        assert " error " in await lab.daemon.logged("event=frontend-without-servers")
        assert " info " in await lab.daemon.logged("backend one unknown -> up")
        text = await lab.daemon.metrics()
        assert "maglev_frontend_active_pool{" not in text, "no pool serves it"
        lab.two.status = 200
        await Watcher(stub).states(two="up")
        assert 'maglev_frontend_active_pool{frontend="www",pool="second"} 1' in await lab.daemon.metrics()
        assert await lab.daemon.stop() == 0


async def test_lines_for_the_journal_have_a_priority(lab: Lab) -> None:
    # The pipe exists when the child runs, and only the child knows which one it has. So a shell sets the variable.
    shell = 'JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) exec "$@"'
    real = asyncio.create_subprocess_exec

    async def through_shell(*words: str, **options: object) -> asyncio.subprocess.Process:
        return await real("/bin/sh", "-c", shell, "sh", *words, **options)  # type: ignore[arg-type]

    monkey = pytest.MonkeyPatch()
    monkey.setattr(asyncio, "create_subprocess_exec", through_shell)
    try:
        async with lab.daemon, lab.daemon.api() as stub:
            monkey.undo()
            await lab.outage(Watcher(stub))
            assert (await lab.daemon.logged("event=frontend-without-servers")).startswith("<3>")
            assert (await lab.daemon.logged("backend one up -> down")).startswith("<4>")
            assert (await lab.daemon.logged("event=ready")).startswith("<6>")
            assert await lab.daemon.stop() == 0
    finally:
        monkey.undo()


async def test_what_happened_is_remembered_with_its_cause_and_who_did_it(lab: Lab) -> None:
    me = f"unix:{pwd.getpwuid(os.getuid()).pw_name}"
    async with lab.daemon, lab.daemon.api() as stub:
        await Watcher(stub).states(one="up", two="up")
        await lab.maglevc("set", "backend", "one", "drain", "reason", "new disk", "for", "4h")
        change = await lab.daemon.logged("event=backend-drained")
        assert f"by={me}" in change
        assert 'reason="new disk"' in change
        shown = await lab.maglevc("show", "events", "last", "1h")
        assert f"drained by {me} for 4h: new disk" in shown
        assert "second" in shown, "the fallback"
        found = json.loads(await lab.maglevc("--json", "show", "events", "backend", "one"))
        (drain,) = [one["event"]["drain"] for one in found if one["event"].get("drain")]
        assert (drain["by"], drain["reason"], drain["duration_ns"]) == (me, "new disk", 4 * 3600 * 10**9)
        assert drain["at"].endswith("Z")
        answer = await stub.ListEvents(pb.ListEventsRequest(page_size=1), timeout=DEADLINE)
        assert answer.next_page_token
        assert answer.total >= len(found)
        assert await lab.daemon.stop() == 0


async def test_a_caller_without_a_proof_has_no_name(lab: Lab) -> None:
    async with lab.daemon, lab.daemon.api() as stub:
        metadata = (("maglev-login", "0" * 32),)
        info = await stub.GetServerInfo(pb.GetServerInfoRequest(), metadata=metadata, timeout=DEADLINE)
        assert info.caller == "unix"
        assert await lab.daemon.stop() == 0


async def test_unknown_names_come_with_a_suggestion(lab: Lab) -> None:
    async with lab.daemon:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "maglev.cli.main", f"--server=unix:{lab.daemon.socket}", "show", "frontends", "wwww",
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, said = await process.communicate()
        assert process.returncode == 1
        assert b"did you mean 'www'?" in said
        assert await lab.daemon.stop() == 0


@pytest.mark.parametrize("level", ["warn", "warning", "WARN"])
async def test_warn_is_a_level(tmp_path: Path, level: str) -> None:
    lab = Lab(tmp_path, f"--log-level={level}")
    async with lab.daemon:
        assert not any(" info " in line for line in lab.daemon.log)
        assert await lab.daemon.stop() == 0
