"""Twenty web servers and a stand-in for VPP, for tests in which most servers fail at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from maglev.vppsim.server import StandIn
from tests.helpers.crowd import Crowd
from tests.helpers.daemon import DEADLINE, DaemonProcess
from tests.helpers.weights import weights_of

SERVERS = {f"s{number:02}": f"127.0.48.{number}" for number in range(1, 21)}
MOST = [f"s{number:02}" for number in range(1, 13)]
"""Twelve of twenty."""

REST = set(SERVERS) - set(MOST)


class Twenty:
    """Twenty web servers, a stand-in, and a daemon between them."""

    def __init__(self, directory: Path) -> None:
        self.crowd = Crowd(SERVERS)
        self.mute = self.crowd.mute
        self.refuse = self.crowd.refuse
        self.port = self.crowd.port
        self.vpp = StandIn(directory / "api.sock")
        self.directory = directory

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
        return set(weights_of(self.vpp, SERVERS))

    async def serve(self, wanted: Iterable[str]) -> None:
        """Wait until VPP has weights for these servers alone."""
        async with asyncio.timeout(DEADLINE):
            while self.serving() != set(wanted):
                await self.vpp.journal.next(lambda entry: True)


@contextlib.asynccontextmanager
async def twenty(directory: Path) -> AsyncIterator[Twenty]:
    """The servers and the stand-in, running."""
    one = Twenty(directory)
    await one.vpp.start()
    await one.crowd.start()
    try:
        yield one
    finally:
        await one.crowd.stop()
        await one.vpp.stop()
