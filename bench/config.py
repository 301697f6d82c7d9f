"""The cost of loading and checking a large configuration, and for how long that holds the event loop."""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

import uvloop
import yaml

from bench.harness import ROUNDS, Figure, cpu_ms
from maglev.config.child import load_in_child
from maglev.config.load import LoadResult, load_text
from maglev.daemon.process import settle_collector

QUESTION = "How long does a configuration of 50,000 backends take?"

FRONTENDS = 1000
MEMBERS = 50


def tree() -> dict[str, object]:
    """FRONTENDS frontends with MEMBERS backends each, checked by HTTP."""
    backends: dict[str, object] = {}
    frontends: dict[str, object] = {}
    for number in range(FRONTENDS):
        members: dict[str, object] = {}
        for index in range(MEMBERS):
            name = f"backend-{number}-{index}"
            backends[name] = {"address": f"10.{number >> 8}.{number & 255}.{index + 1}", "healthcheck": "web"}
            members[name] = {"weight": 10 * (1 + index % 10)}
        frontends[f"frontend-{number}"] = {
            "address": f"192.{number >> 8}.{number & 255}.1",
            "protocol": "tcp",
            "port": 80,
            "new-flows-table-length": 65536,
            "pools": [{"name": "primary", "backends": members}],
        }
    return {
        "maglev": {
            "vpp": {"lb": {"ipv4-src-address": "192.0.2.1"}},
            "healthchecks": {"web": {"type": "http", "port": 80}},
            "backends": backends,
            "frontends": frontends,
        }
    }


def accepted(result: LoadResult) -> None:
    """Raise if what is measured did not work."""
    if result.config is None or result.problems:
        raise RuntimeError(f"the benchmark's configuration is not clean: {result.problems[:3]}")


async def longest_hold(path: Path) -> float:
    """Milliseconds for which the loop was held at most, while a child loads ``path`` and its answer is taken."""
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            began = time.monotonic()
            await asyncio.sleep(0)
            longest = max(longest, time.monotonic() - began)

    watcher = asyncio.create_task(watch())
    accepted(await load_in_child(path))
    watcher.cancel()
    return longest * 1000


def compose(text: str) -> object:
    """The time of PyYAML's C parser alone: nodes with their tags resolved, which the loader does not need."""
    loader = yaml.CSafeLoader(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


def run() -> list[Figure]:
    """Target 17, beside what the parsers alone take."""
    content = tree()
    as_json = json.dumps(content)
    as_yaml = yaml.dump(content, Dumper=yaml.CSafeDumper, sort_keys=False)
    accepted(load_text(as_json, json=True))
    taken = cpu_ms(
        {
            "json": lambda: load_text(as_json, json=True),
            "json alone": lambda: json.loads(as_json),
            "yaml": lambda: load_text(as_yaml),
            "yaml compose": lambda: compose(as_yaml),
        }
    )
    with tempfile.TemporaryDirectory(prefix="maglev-bench-") as directory:
        path = Path(directory) / "maglev.json"
        path.write_text(as_json, encoding="utf-8")
        # Last, and as in the daemon: the collector must not look at everything while a load is under way.
        settle_collector()
        held = statistics.median(uvloop.run(longest_hold(path)) for _ in range(ROUNDS))
    return [
        Figure("JSON, load and check", taken["json"], "ms", 1500.0),
        Figure("JSON, json.loads alone", taken["json alone"], "ms"),
        Figure("YAML, load and check", taken["yaml"], "ms"),
        Figure("YAML, PyYAML's C composer alone", taken["yaml compose"], "ms"),
        Figure("loop held at most while a child loads it", held, "ms"),
    ]
