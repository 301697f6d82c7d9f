"""The configuration file of the run: edited, damaged, reloaded; and which configuration is in force by the contract."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from pathlib import Path

import grpc

from maglev.pb import maglev_pb2 as pb
from tests.chaos import layout
from tests.chaos.facts import Facts, Force
from tests.chaos.operators import CALL_SECONDS, Operators
from tests.chaos.plan import Plan, guarded, read
from tests.chaos.processes import Daemon


class Wrong(Exception):
    """The daemon did with a file what the contract forbids."""


class Book:
    """Owns the file. ``lock`` is held while it is written and read, so that every start reads a known one.

    ``plan``: the configuration in force, None before the first; while the daemon reads a file, also that one may be.
    """

    def __init__(self, path: Path, facts: Facts, operators: Operators, chance: random.Random) -> None:
        self.path = path
        self.lock = asyncio.Lock()
        self.tree: layout.Tree = {}
        self.plan: Plan | None = None
        self.counts: Counter[str] = Counter()
        self.older: list[str] = []
        self.starved = False
        """The daemon has no descriptors now: it may be unable to read a file."""
        self._facts = facts
        self._operators = operators
        self._chance = chance

    # ---- the file

    def begin(self, tree: layout.Tree) -> None:
        """The first file."""
        self.tree = tree
        self.path.write_text(layout.text(tree))

    def good(self) -> str:
        """The file as it should be."""
        return layout.text(self.tree)

    def edit_weights(self) -> None:
        """Other weights, for members that no operator has given one."""
        frontends = self.tree["maglev"]["frontends"]
        for name in self._chance.sample(sorted(frontends), 4):
            pool = self._chance.choice(frontends[name]["pools"])
            free = sorted(member for member in pool["backends"] if member not in self._operators.settings)
            if free:
                pool["backends"][self._chance.choice(free)] = {"weight": 10 * self._chance.randint(3, 10)}

    def edit_tables(self) -> None:
        """Two VIPs have to be recreated."""
        frontends = self.tree["maglev"]["frontends"]
        first, second = self._chance.sample(sorted(frontends), 2)
        length = "new-flows-table-length"
        frontends[first][length] = 4096 if frontends[first][length] == 2048 else 2048
        frontends[second]["src-ip-sticky"] = not frontends[second]["src-ip-sticky"]

    def without(self, count: int) -> str:
        """The file without that many frontends."""
        tree = layout.copied(self.tree)
        frontends = tree["maglev"]["frontends"]
        for name in self._chance.sample(sorted(frontends), count):
            del frontends[name]
        return layout.text(tree)

    def cut(self, *, valid: bool) -> str:
        """The file, cut off at any byte; ``valid``: where it still is one, which is the more dangerous kind."""
        whole = self.good()
        while True:
            start = whole.index("\n  frontends:") if valid else 1
            text = whole[: self._chance.randrange(start, len(whole) - 1)]
            if not valid or read(text) is not None:
                return text

    # ---- into force

    async def reload(self, daemon: Daemon, text: str, *, hup: bool, force: bool = False) -> bool | None:
        """Write the file and reload; returns whether the daemon took it, None where it gave no answer.

        ``Wrong``: it should have done otherwise.

        A daemon that dies meanwhile leaves it open what is in force: its next start reads the file.
        """
        async with self.lock:
            self.older.append(self.path.read_text())
            self.path.write_text(text)
            plan = read(text)
            expected = plan is not None and not self._guarded(plan, force)
            pending = self._facts.propose(plan, time.monotonic()) if plan is not None and expected else None
            if hup:
                daemon.signal(signal.SIGHUP)
            try:
                answer = await daemon.stub.ReloadConfig(pb.ReloadConfigRequest(force=force), timeout=CALL_SECONDS)
                taken = answer.ok
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                    self._unanswered("reloads without an answer")
                    return None
                taken = False
            if expected and not taken and self.starved:
                self._unanswered("reloads without a descriptor")
                return None
            if taken != expected:
                raise Wrong(f"a reload of {len(text)} bytes was {'taken' if taken else 'refused'}: {self.path}")
            self.counts["reloads taken" if taken else "reloads refused"] += 1
            if pending is not None:
                self._accept(pending)
            return taken

    def _unanswered(self, why: str) -> None:
        # It may be in force by the signal, or by a call that had its answer cut off: what comes next decides.
        self.counts[why] += 1
        self._operators.unsure = True

    def _guarded(self, plan: Plan, force: bool) -> bool:
        return not force and guarded(self.plan.vips if self.plan else (), plan.vips)

    def _accept(self, force: Force) -> None:
        now = time.monotonic()
        self._facts.accept(force, now)
        if self.plan is not None:
            self._operators.accepted(self.plan, force.plan, now)
        self.plan = force.plan

    async def start(self, daemon: Daemon, vpp: Path) -> bool:
        """Start the daemon with the file as it is; returns whether it runs. Only a file that is not valid ends it."""
        async with self.lock:
            plan = read(self.path.read_text())
            pending = None
            if plan is not None:
                owned = set(self.plan.vips) if self.plan is not None else set()
                # VIPs that the guard protects stay in VPP until a reload is forced.
                prunes = bool(plan.vips) and not guarded(owned, plan.vips)
                pending = self._facts.propose(plan, time.monotonic(), prunes=prunes)
            await daemon.spawn(vpp, meant=pending is None)
            runs = await daemon.ready()
            if pending is None:
                if runs:
                    raise Wrong(f"maglevd runs with a file that is not valid: {self.path}")
                return False
            if not runs:
                self._facts.refuse(pending, time.monotonic())
                return False
            self._accept(pending)
            return True
