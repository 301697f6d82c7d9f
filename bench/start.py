"""From the daemon's READY to the last first verdict, with 50,000 backends that answer."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from pathlib import Path

from bench._daemon import BACKENDS, daemon, moment, servers
from bench._dataplane import stand_in
from bench._rig import Rig, rig
from bench.harness import Figure

QUESTION = "How long from READY until each of 50,000 backends has its first verdict, at one probe a second?"

ROUNDS = 5
INTERVAL = 1.0


def run() -> list[Figure]:
    """In turn a start that finds an empty VPP, which is programmed meanwhile, and one that finds what that one left."""
    with rig() as one, tempfile.TemporaryDirectory(prefix="maglev-bench-") as directory:
        return asyncio.run(_measure(one, Path(directory)))


async def _measure(one: Rig, directory: Path) -> list[Figure]:
    empty: list[float] = []
    programmed: list[float] = []
    loading, writes = [], []
    with servers(one):
        for _ in range(ROUNDS):
            async with stand_in(directory) as vpp:
                for seconds in (empty, programmed):
                    async with daemon(directory, one.name, vpp) as maglevd:
                        ready = moment(maglevd.records("ready")[0])
                        verdicts = [moment(record) for record in maglevd.records("backend-transition")]
                        assert len(verdicts) == BACKENDS, "a backend has changed its state twice"
                        seconds.append(max(verdicts) - ready)
                        loading.append(ready - moment(maglevd.records("starting")[0]))
                        writes.append(len(maglevd.records("vpp-change")))
    return [
        Figure("VPP programmed before: READY to the last verdict", statistics.median(programmed), "s", INTERVAL + 1),
        Figure("  changes of VPP by such starts", max(writes[1::2]), "calls", 0),
        Figure("empty VPP: READY to the last verdict", statistics.median(empty), "s", INTERVAL + 1),
        Figure("start of the program to READY", statistics.median(loading), "s"),
    ]
