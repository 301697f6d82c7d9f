"""Namespaces, links and servers: what the daemon probes, and how it is broken, on either side.

``routed``: servers behind a router, in a separate namespace, which a veth pair joins to that of their probes.
``onlink``: servers on the link itself. ``loop``: servers on the daemon's own loopback. ``fail`` and ``mend`` concern
servers, and are facts for the oracle. ``break_host`` and ``mend_host`` concern the prober's side: no weight may fall.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path

from tests.chaos.facts import Facts
from tests.chaos.layout import GROUPS, LOOP, ONLINK, ROUTED, SOURCE, SOURCE6, TARGETS, Target
from tests.helpers.netns import CLIENT, CLIENT6, SERVER, SERVER6, Pair, ip

DEADLINE = 20.0
MARGIN = 0.3
"""Seconds after an answer from which a server surely fails: a listener closes a little later than it says."""

HOST_TROUBLES = ("route", "link", "carrier", "firewall", "queue", "source")

_SERVER_RULES = """\
table inet chaos {
  set dead4 { type ipv4_addr; }
  set dead6 { type ipv6_addr; }
  chain in { type filter hook input priority 0; ip daddr @dead4 drop; ip6 daddr @dead6 drop; }
}
"""

_FIREWALL = """\
table inet broken {
  chain out {
    type filter hook output priority 0
    oifname veth0 icmpv6 type nd-neighbor-solicit accept
    oifname veth0 VERDICT
  }
}
"""


class ServerProcess:
    """The servers of one group."""

    def __init__(self, group: str, namespace: str, facts: Facts, log: Path) -> None:
        self.group, self.namespace = group, namespace
        self._facts, self._log = facts, log
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._done: asyncio.Queue[float] = asyncio.Queue()
        self._turn = asyncio.Lock()

    async def start(self, certificate: Path) -> None:
        """Start them; they serve when this returns."""
        described = [
            [t.address, t.port, {"syn": "tcp", "connect": "tcp"}.get(t.kind, t.kind),
             str(certificate) if t.kind == "https" else ""]
            for t in TARGETS
            if t.group == self.group and t.port
        ]  # fmt: skip
        words = ["ip", "netns", "exec", self.namespace] if self.namespace else []
        # In front of everything else that runs here: a server that is late has failed.
        words += ["nice", "-n", "-10", sys.executable, "-m", "tests.chaos.servers", json.dumps(described)]
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *words, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log
            )
        self._reader = asyncio.create_task(self._read(self._process))
        async with asyncio.timeout(DEADLINE):
            await self._done.get()

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            said = json.loads(line)
            if "slow" in said:
                self._facts.slow[self.group].add(*said["slow"])
            else:
                self._done.put_nowait(said["done"])

    async def tell(self, addresses: Collection[str], mode: str) -> None:
        """These are like that now."""
        if not addresses:
            return
        assert self._process is not None
        assert self._process.stdin is not None
        async with self._turn:
            self._process.stdin.write(json.dumps([[list(addresses), mode]]).encode() + b"\n")
            async with asyncio.timeout(DEADLINE):
                await self._done.get()

    async def stop(self) -> None:
        """End them."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        if self._reader is not None:
            await self._reader


class World:
    """All of it. ``modes``: how the servers that fail do so, by address."""

    def __init__(self, facts: Facts, chance: random.Random, directory: Path) -> None:
        self._facts = facts
        self._chance = chance
        self._pairs = {ROUTED: Pair(), ONLINK: Pair()}
        self.modes: dict[str, str] = {}
        self.broken: dict[str, str] = {}
        self._turn = asyncio.Lock()
        self._servers = {
            group: ServerProcess(
                group, self._pairs[group].server if group in self._pairs else "", facts, directory / "servers.log"
            )
            for group in GROUPS
        }

    @property
    def netns(self) -> dict[str, str]:
        """The namespaces of the probes, by group."""
        return {group: pair.client for group, pair in self._pairs.items()}

    async def start(self, certificate: Path) -> None:
        """Make it; all servers serve when this returns."""
        await asyncio.to_thread(self._make)
        for server in self._servers.values():
            await server.start(certificate)

    def _make(self) -> None:
        for pair in self._pairs.values():
            pair.open()
            for name in (pair.client, pair.server):
                # After a link was down, the kernel would look for twins of its link-local address for two seconds,
                # and drop its own neighbour solicitations meanwhile: that looks like dead servers.
                words = ["net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.veth0.accept_dad=0"]
                # Addresses of IPv6 outlive a link that is down, as those of IPv4 do.
                words += ["net.ipv6.conf.all.keep_addr_on_down=1", "net.ipv6.conf.veth0.keep_addr_on_down=1"]
                _run("ip", "netns", "exec", name, "sysctl", "-q", "-w", *words)
            _nft(pair.server, _SERVER_RULES)
        pair = self._pairs[ROUTED]
        ip("-n", pair.server, "route", "add", SOURCE, "via", CLIENT)
        ip("-n", pair.server, "-6", "route", "add", SOURCE6, "via", CLIENT6)
        for target in TARGETS:
            if target.group in self._pairs:
                self._address("add", target)
            elif target.group == LOOP and ":" in target.address:
                ip("addr", "add", f"{target.address}/128", "dev", "lo", "nodad")
        for group, pair in self._pairs.items():
            self._mend_host(group)
            for name in (pair.client, pair.server):
                # The links were up before duplicates were ruled out.
                _wait(f"addresses in {name}", ["ip", "-n", name, "-6", "addr", "show", "tentative"], "")

    def _address(self, verb: str, target: Target) -> None:
        six = ":" in target.address
        device = "lo" if target.group == ROUTED else "veth0"
        length = (128 if six else 32) if target.group == ROUTED else (64 if six else 24)
        words = ["addr", verb, f"{target.address}/{length}", "dev", device]
        ip("-n", self._pairs[target.group].server, *words, *(["nodad"] if six and verb == "add" else []))

    async def stop(self) -> None:
        """Remove it."""
        for server in self._servers.values():
            await server.stop()
        for pair in self._pairs.values():
            await asyncio.to_thread(pair.close)

    # ---- servers

    def ways(self, target: Target) -> tuple[str, ...]:
        """How a server can fail."""
        ways = {"http": ("refuse", "error", "silent"), "https": ("refuse", "error", "silent")}.get(
            target.kind, ("refuse",) if target.port else ()
        )
        return ways + {ROUTED: ("dropped",), ONLINK: ("dropped", "gone")}.get(target.group, ())

    async def fail(self, targets: Collection[Target]) -> None:
        """These servers fail, each in a way that is drawn for it."""
        async with self._turn:
            await self._fail(targets)

    async def _fail(self, targets: Collection[Target]) -> None:
        chosen = [(t, self._chance.choice(self.ways(t))) for t in targets if t.address not in self.modes and t.kind]
        for target, mode in chosen:
            self.modes[target.address] = mode
            self._facts.bad[target.address].begin(time.monotonic())
        await self._apply(chosen)
        done = time.monotonic() + MARGIN
        for target, _ in chosen:
            self._facts.dead[target.address].begin(done)

    async def mend(self, targets: Collection[Target]) -> None:
        """These servers serve again."""
        async with self._turn:
            await self._mend(targets)

    async def _mend(self, targets: Collection[Target]) -> None:
        chosen = [(t, "ok" if self.modes[t.address] in ("refuse", "error", "silent") else self.modes[t.address])
                  for t in targets if t.address in self.modes]  # fmt: skip
        for target, _ in chosen:
            self._facts.dead[target.address].end(time.monotonic())
        await self._apply(chosen, back=True)
        done = time.monotonic()
        for target, _ in chosen:
            del self.modes[target.address]
            self._facts.bad[target.address].end(done)

    async def _apply(self, chosen: list[tuple[Target, str]], *, back: bool = False) -> None:
        for group, server in self._servers.items():
            mine = [(target, mode) for target, mode in chosen if target.group == group]
            for mode in ("ok", "refuse", "error", "silent"):
                await server.tell([target.address for target, wanted in mine if wanted == mode], mode)
            dropped = [target.address for target, wanted in mine if wanted == "dropped"]
            if dropped:
                await asyncio.to_thread(self._drop, group, dropped, back)
            for target, wanted in mine:
                if wanted == "gone":
                    await asyncio.to_thread(self._address, "add" if back else "del", target)

    def _drop(self, group: str, addresses: list[str], back: bool) -> None:
        verb = "delete" if back else "add"
        lines = [
            f"{verb} element inet chaos {'dead6' if ':' in address else 'dead4'} {{ {address} }}"
            for address in addresses
        ]
        _nft(self._pairs[group].server, "\n".join(lines) + "\n")

    # ---- the prober's own side

    async def break_host(self, group: str, trouble: str) -> None:
        """No probe leaves for this group any more."""
        self._facts.blind[group].begin(time.monotonic())
        self.broken[group] = trouble
        await asyncio.to_thread(self._break_host, group, trouble)

    async def mend_host(self, group: str) -> None:
        """Probes leave again."""
        await asyncio.to_thread(self._mend_host, group)
        self.broken.pop(group, None)
        self._facts.blind[group].end(time.monotonic())

    def _routes(self, group: str) -> list[list[str]]:
        if group == ROUTED:
            return [
                ["10.81.0.0/24", "via", SERVER, "src", SOURCE],
                ["2001:db8:81::/64", "via", SERVER6, "src", SOURCE6],
            ]
        return [["192.0.2.0/24", "dev", "veth0", "src", CLIENT], ["2001:db8::/64", "dev", "veth0", "metric", "256"]]

    def _break_host(self, group: str, trouble: str) -> None:
        pair = self._pairs[group]
        match trouble:
            case "route":
                for words in self._routes(group):
                    ip("-n", pair.client, *(["-6"] if ":" in words[0] else []), "route", "del", words[0])
            case "link":
                ip("-n", pair.client, "link", "set", "veth0", "down")
            case "carrier":
                ip("-n", pair.server, "link", "set", "veth0", "down")
            case "firewall":
                # Neighbour solicitations leave: without them every server would look dead, and nothing would tell why.
                verdict = self._chance.choice(["drop", "reject"])
                _nft(pair.client, _FIREWALL.replace("VERDICT", verdict))
            case "queue":
                words = ["qdisc", "add", "dev", "veth0", "root", "tbf", "rate", "8kbit", "burst", "1600", "limit", "1"]
                _run("tc", "-n", pair.client, *words)
            case "source":
                for words in ([f"{SOURCE}/32"], [f"{SOURCE6}/128"]):
                    ip("-n", pair.client, "addr", "del", *words, "dev", "lo")
            case _:
                raise ValueError(trouble)

    def _mend_host(self, group: str) -> None:
        """Repair the prober's side, whatever is broken, and the other end of its link."""
        pair = self._pairs[group]
        with contextlib.suppress(RuntimeError):
            _run("tc", "-n", pair.client, "qdisc", "del", "dev", "veth0", "root")
        _nft(pair.client, "table inet broken\ndelete table inet broken\n")
        for name, four, six in ((pair.client, CLIENT, CLIENT6), (pair.server, SERVER, SERVER6)):
            ip("-n", name, "link", "set", "veth0", "up")
            ip("-n", name, "addr", "replace", f"{four}/24", "dev", "veth0")
            ip("-n", name, "addr", "replace", f"{six}/64", "dev", "veth0", "nodad")
        if group == ROUTED:
            for words in ([f"{SOURCE}/32"], [f"{SOURCE6}/128", "nodad"]):
                ip("-n", pair.client, "addr", "replace", words[0], "dev", "lo", *words[1:])
            # A far end that was down has lost its route to the source, and its addresses of IPv6.
            ip("-n", pair.server, "route", "replace", SOURCE, "via", CLIENT)
            ip("-n", pair.server, "-6", "route", "replace", SOURCE6, "via", CLIENT6)
        else:
            for target in TARGETS:
                if target.group == group and ":" in target.address and self.modes.get(target.address) != "gone":
                    words = ["addr", "replace", f"{target.address}/64", "dev", "veth0", "nodad"]
                    ip("-n", pair.server, *words)
        for words in self._routes(group):
            ip("-n", pair.client, *(["-6"] if ":" in words[0] else []), "route", "replace", *words)
        for name in (pair.client, pair.server):
            # The kernel notices a carrier up to a second late, and drops what is sent until then.
            _wait(f"the link in {name}", ["ip", "-n", name, "link", "show", "veth0", "up"], "state UP")


def troubles(group: str) -> tuple[str, ...]:
    """The troubles of the prober's side for a group: only probes to the routed servers have a configured source."""
    return () if group == LOOP else HOST_TROUBLES if group == ROUTED else HOST_TROUBLES[:-1]


def _wait(what: str, words: list[str], wanted: str) -> None:
    """Run a command until its output has the word; an empty one: until the output is empty."""
    deadline = time.monotonic() + DEADLINE
    while True:
        output = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        if wanted in output and (wanted or not output.strip()):
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} do not settle: {output}")
        time.sleep(0.02)


def _nft(namespace: str, rules: str) -> None:
    _run("ip", "netns", "exec", namespace, "nft", "-f", "-", text=rules)


def _run(*words: str, text: str = "") -> None:
    done = subprocess.run(list(words), input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
