"""All families of the daemon, rendered in slices of a few milliseconds.

Everything here runs on the event loop. A scrape is sent as it is made, so that neither the loop nor the memory has to
hold the whole. The families of the process (memory, descriptors, garbage collector) are few: prometheus_client makes
them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, generate_latest

from maglev.metrics.text import Family

SLICE_NS = 4_000_000
"""How long rows are rendered before the loop runs other work."""
CHUNK_BYTES = 64 << 10


class Exposition:
    """All families, rendered piece by piece."""

    def __init__(self) -> None:
        self._families: list[Family] = []
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        self._process = registry

    def add(self, families: Iterable[Family]) -> None:
        """Add families; raises ``ValueError`` for a name that is there already."""
        names = {family.name for family in self._families}
        for family in families:
            if family.name in names:
                raise ValueError(f"two metric families are called {family.name}")
            names.add(family.name)
            self._families.append(family)

    async def render(self) -> AsyncIterator[bytes]:
        """The text in pieces of some 64 KiB; gives the loop a turn every few milliseconds."""
        pieces: list[str] = []
        size = 0
        end = time.monotonic_ns() + SLICE_NS
        for family in tuple(self._families):
            headed = False
            for row in family.rows():
                if row and not headed:
                    headed = True
                    pieces.append(f"# HELP {family.name} {family.help}\n# TYPE {family.name} {family.kind}\n")
                pieces.append(row)
                size += len(row)
                if size >= CHUNK_BYTES or time.monotonic_ns() >= end:
                    yield "".join(pieces).encode()
                    pieces.clear()
                    size = 0
                    await asyncio.sleep(0)
                    end = time.monotonic_ns() + SLICE_NS
        yield "".join(pieces).encode() + generate_latest(self._process)
