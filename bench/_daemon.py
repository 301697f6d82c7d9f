"""The daemon as it is installed, with 50,000 backends that answer, and a stand-in for VPP beside it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench import _flipper
from bench._rig import Rig, addresses, stop
from tests.helpers.daemon import DaemonProcess

BACKENDS = 50_000
FRONTENDS = 1_000
FLIPPERS = 200
"""Backends that come and go; each is in a separate frontend, with others that stay."""
PORT, FLIP_PORT = 8080, 8081
PATIENCE = 300.0


def tree(namespace: str, *, history: int = 5, weight: int = 100) -> dict[str, Any]:
    """BACKENDS half-open TCP checks, each once a second, in a network namespace.

    Those that come and go change with one result. ``history`` and the ``weight`` of all members, which VPP is given in
    units of itself, are what tells one version of the file from another.
    """
    each = BACKENDS // FRONTENDS
    flippers = [_flipper.address(index) for index in range(FLIPPERS)]
    stay = iter(addresses(BACKENDS - FLIPPERS))
    backends: dict[str, Any] = {}
    frontends: dict[str, Any] = {}
    for number in range(FRONTENDS):
        members: dict[str, Any] = {}
        for place in range(each):
            name = f"b{number}-{place}"
            flips = place == 0 and number < FLIPPERS
            address = flippers[number] if flips else next(stay)
            backends[name] = {"address": address, "healthcheck": "flips" if flips else "stays"}
            members[name] = {"weight": weight}
        frontends[f"f{number}"] = {
            "address": f"10.0.{number >> 8}.{number & 255}",
            "protocol": "tcp",
            "port": 80,
            "pools": [{"name": "p", "backends": members}],
        }
    check = {"type": "tcp", "interval": "1s"}
    return {
        "maglev": {
            "healthchecker": {"netns": namespace, "transition-history": history},
            "vpp": {
                "lb": {
                    "ipv4-src-address": "192.0.2.1",
                    "startup-min-delay": "0s",
                    "startup-max-delay": "0s",
                    "sync-interval": "5s",
                }
            },
            "healthchecks": {
                "stays": {**check, "port": PORT},
                "flips": {**check, "port": FLIP_PORT, "rise": 1, "fall": 1},
            },
            "backends": backends,
            "frontends": frontends,
        }
    }


class Daemon(DaemonProcess):
    """Its log is JSON, and is waited for here."""

    def __init__(self, directory: Path, namespace: str, vpp: Path) -> None:
        self._namespace = namespace
        super().__init__(directory, json.dumps(tree(namespace)), f"--vpp-api-addr={vpp}", "--log-format=json")
        self._versions = {"value": self._version(history=6), "members": self._version(weight=50)}

    def _version(self, **changed: int) -> Path:
        path = self.directory / f"{'-'.join(changed)}.json"
        path.write_text(json.dumps(tree(self._namespace, **changed)), encoding="utf-8")
        return path

    def rewrite(self, what: str) -> None:
        """Change one ``value`` of the file, or all ``members``. It costs nothing: what takes time is the daemon's."""
        spare = self._versions[what]
        kept = self.config.rename(spare.with_suffix(".kept"))
        spare.rename(self.config)
        kept.rename(spare)

    def records(self, event: str, start: int = 0) -> list[dict[str, Any]]:
        """The log records of this name, from a line on."""
        mark = f'"event":"{event}"'
        return [json.loads(line) for line in self.log[start:] if mark in line]

    async def came(self, event: str, count: int = 1, start: int = 0) -> None:
        """Wait until so much was logged under this name."""
        mark = f'"event":"{event}"'
        async with asyncio.timeout(PATIENCE):
            while count > 0:
                await asyncio.sleep(0.1)
                end = len(self.log)
                count -= sum(mark in line for line in self.log[start:end])
                start = end

    async def quiet(self, event: str, seconds: float) -> None:
        """Wait until nothing was logged under this name for so long."""
        while True:
            seen = len(self.log)
            await asyncio.sleep(seconds)
            if not self.records(event, seen):
                return


def moment(record: dict[str, Any]) -> float:
    """When a record was made, in seconds."""
    return datetime.datetime.fromisoformat(record["time"]).timestamp()


@contextlib.contextmanager
def servers(one: Rig) -> Iterator[subprocess.Popen[str]]:
    """The backends: a process that learns on its standard input which of them come and go."""
    words = ["-m", "bench._flipper", str(FLIPPERS), str(PORT), str(FLIP_PORT)]
    process = one.popen([sys.executable, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("the servers did not start")
        yield process
    finally:
        stop(process)


@asynccontextmanager
async def daemon(directory: Path, namespace: str, vpp: Path) -> AsyncIterator[Daemon]:
    """A daemon whose backends all have had their first verdict, with VPP programmed."""
    one = Daemon(directory, namespace, vpp)
    try:
        await one.start()
        await one.came("backend-transition", BACKENDS)
        await one.quiet("vpp-change", 3)
        yield one
    finally:
        if one.process is not None and one.process.returncode is None:
            await one.stop()
