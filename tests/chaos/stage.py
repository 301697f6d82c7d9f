"""The stage: every part of the run, and what one does with them in several places."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

from maglev.vpp.wire.messages import ProtocolError, address_text
from maglev.vppsim.inspect import Client
from tests.chaos import layout
from tests.chaos.book import Book
from tests.chaos.facts import Facts
from tests.chaos.operators import Operators
from tests.chaos.oracle import DAEMON, Oracle
from tests.chaos.processes import Daemon, Ended, Ledgers, StandInProcess
from tests.chaos.world import World
from tests.helpers.certs import Authority

KNOWN_SECONDS = 1.0
"""After which all facts of a moment are known: what the servers say of themselves comes by a pipe."""


class Failed(Exception):
    """The run found something."""


class Stage:
    """Owns the parts. ``while_dead``: what is to be done while the daemon is dead, by its next death."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory
        self.chance = random.Random(seed)
        self.facts = Facts()
        self.oracle = Oracle(self.facts, layout.paces())
        self.world = World(self.facts, self.chance, directory)
        self.vpp = StandInProcess(directory, self.facts)
        self.ledgers = Ledgers(self.vpp)
        self.operators = Operators(self.facts, self.chance)
        self.daemon = Daemon(directory, self.facts, directory / "etc" / "maglev.yaml")
        self.book = Book(self.daemon.config, self.facts, self.operators, self.chance)
        self.life = asyncio.Lock()
        """Held by whoever ends and starts the daemon."""
        self.up = asyncio.Event()
        """The daemon runs, and answers."""
        self.pipe = asyncio.Lock()
        """Held by whoever ends, starts or stops the stand-in."""
        self.while_dead: list[Callable[[], Awaitable[None]]] = []
        self.counts: Counter[str] = Counter()
        self.forgetful = False
        self.skewed = False
        self._timeline = (directory / "timeline.log").open("w", buffering=1)
        self._hold: float | None = None
        self._forgetting = 0

    # ---- life

    async def start(self) -> None:
        """Everything stands, and the daemon runs."""
        authority = Authority(self.directory / "certs")
        pair = authority.issue("server", "/CN=lb", names="DNS:lb.example.org", days=365)
        both = self.directory / "certs" / "both.pem"
        both.write_bytes(pair.key.read_bytes() + pair.cert.read_bytes())
        await self.world.start(both)
        self.daemon.prepare()
        self.book.begin(layout.tree(self.world.netns, str(authority.ca)))
        await self.vpp.start()
        await self.start_daemon()

    async def stop(self) -> None:
        """Nothing is left of it but the logs."""
        with contextlib.suppress(TimeoutError):
            await self.vpp.end(signal.SIGTERM)
        await self.daemon.stop()
        await self.world.stop()
        self._timeline.close()

    def say(self, text: str) -> None:
        """A line for the timeline."""
        self._timeline.write(f"{time.monotonic():.3f} {text}\n")

    @contextlib.contextmanager
    def forgetting(self) -> Iterator[None]:
        """The daemon cannot keep what operators set meanwhile; the start after that may know something older."""
        self._forgetting += 1
        self.forgetful = True
        try:
            yield
        finally:
            self._forgetting -= 1

    @contextlib.contextmanager
    def disturbed(self) -> Iterator[None]:
        """Daemon or VPP can do nothing meanwhile."""
        end = self.facts.disturbed.opened(time.monotonic())
        try:
            yield
        finally:
            end(time.monotonic())

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Ending and starting the daemon is for the caller alone."""
        async with self.life:
            yield

    async def start_daemon(self) -> None:
        """Start the daemon; if its file is not valid, as it ends by itself, with the good one."""
        self._hold = time.monotonic()
        self.up.clear()
        try:
            with self.disturbed():
                for work in self.while_dead:
                    await work()
                self.while_dead.clear()
                runs = await self.book.start(self.daemon, self.vpp.socket)
                self.say(f"maglevd {'runs' if runs else 'does not start'}, pid {self.daemon.pid}")
                if not runs:
                    self.counts["starts refused"] += 1
                    self.book.path.write_text(self.book.good())
                    if not await self.book.start(self.daemon, self.vpp.socket):
                        raise Ended("maglevd does not start with a good file")
            self.operators.restarted(self.daemon.spawned, skewed=self.skewed)
            self.skewed = False
            if self.forgetful or self.operators.unsure:
                await self.reconcile()
            self.up.set()
        finally:
            self._hold = None

    async def reconcile(self) -> None:
        """Operators take back every setting that the daemon has."""
        assert self.book.plan is not None
        await self.operators.reconcile(self.daemon.stub, self.daemon.spawned, self.book.plan)
        # While the state file is broken, the next start forgets again.
        self.forgetful = self._forgetting > 0
        self.counts["operators began anew"] += 1

    async def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End the daemon, and start it again after a moment."""
        self.daemon.meant = True
        self.say(f"maglevd gets {number.name}")
        self.up.clear()
        self.daemon.signal(number)
        await self.revive()

    async def revive(self) -> None:
        """Start the daemon again after its end. ``Ended``: it does not end."""
        with self.disturbed():
            if not await self.daemon.gone():
                raise Ended("maglevd does not end")
            self.counts["restarts"] += 1
            await asyncio.sleep(self.chance.uniform(0.0, 0.5))
            await self.start_daemon()

    async def kill_at(self, call: str, nth: int) -> Callable[[], Awaitable[bool]]:
        """Kill the daemon when VPP has done the ``nth`` such call; the result waits for that, with a deadline."""
        async with self.pipe:
            self.daemon.meant = True
            await self.vpp.tell(f"arm {call} {nth} {int(signal.SIGKILL)} {self.daemon.pid}")

        async def shot() -> bool:
            if await self.daemon.gone(4.0):
                return True
            async with self.pipe:
                await self.vpp.tell(f"arm - 0 9 {self.daemon.pid}")
            self.daemon.meant = not self.daemon.running
            return self.daemon.meant

        return shot

    # ---- judging

    def judge(self, *, until: float | None = None) -> None:
        """Give the oracle what is known by now. ``Failed``: it cannot explain something."""
        self.ledgers.read()
        before = min(time.monotonic() - KNOWN_SECONDS, self._hold or float("inf"))
        for write in self.ledgers.take(before if until is None else until):
            if write.call == "start":
                self.oracle.emptied()
            elif write.call == "sockclnt_create":
                if write.client == DAEMON:
                    self.facts.broken.append(write.t)
            else:
                self.oracle.write(write)
        if self.oracle.violations:
            one = self.oracle.violations[0]
            more = f" (and {len(self.oracle.violations) - 1} more)" if len(self.oracle.violations) > 1 else ""
            raise Failed(f"at {one.t:.3f}: {one.text}{more}")

    def differences(self) -> list[str]:
        """Where VPP, by its writes, is not what it should be now."""
        assert self.book.plan is not None
        self.operators.expire()
        down = self.world.modes
        return self.oracle.unsettled(
            self.book.plan,
            lambda member: self.operators.usable(member) and member.address not in down,
            self.operators.weight,
            self.operators.kept,
        )

    def known(self) -> str:
        """Failing servers and settings of operators, as the model has them, for a report."""
        settings = [f"{name}: {one.verb} {one.vip} {one.weight}" for name, one in self.operators.settings.items()]
        return f"failing: {dict(sorted(self.world.modes.items()))}; set: {settings}"

    def dump(self) -> dict[str, dict[str, int]]:
        """Read VPP. Raises OSError and ProtocolError."""
        with Client(self.vpp.socket, "chaos") as client:
            vips, ases = client.vips(), client.ases()
        held: dict[str, dict[str, int]] = {str(vip.key): {} for vip in vips}
        for one in ases:
            if one.live and str(one.vip) in held:
                held[str(one.vip)][address_text(one.address)] = one.weight
        return held

    async def compared(self) -> list[str]:
        """Where a dump of VPP is not what the ledger says, while nothing changes."""
        try:
            dump = await asyncio.to_thread(self.dump)
        except (OSError, ProtocolError) as error:
            return [f"VPP does not answer: {error}"]
        return self.oracle.differs(dump)
