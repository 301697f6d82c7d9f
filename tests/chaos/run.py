"""The run: rounds of disturbances, each followed by a point at which all has to be as it should be; then the table."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence

import grpc

from maglev.pb import maglev_pb2 as pb
from maglev.vpp.planning.model import parse_vip_key
from maglev.vpp.wire.messages import Prefix
from maglev.vppsim.inspect import Client
from tests.chaos.book import Wrong
from tests.chaos.layout import SERVED, TARGETS, Target
from tests.chaos.oracle import DAEMON
from tests.chaos.stage import KNOWN_SECONDS, Failed, Stage
from tests.chaos.table import ROWS, Row, decks

SETTLE_SECONDS = 30.0
"""From the last disturbance of a round until all is as it should be; a machine that does nothing else needs three."""

ROUNDS = 6
"""Rounds of a pass, in which every row of the table is played once."""

TICK = 0.1

QUIET_SECONDS = 30.0
"""How long a server has to be left alone for a lie about it to be beyond doubt."""


class Run:
    """``rows``: those that are played."""

    def __init__(self, stage: Stage, seconds: float, rows: Sequence[Row]) -> None:
        self.stage = stage
        self.seconds = seconds
        self.rows = rows
        self.played: Counter[str] = Counter()
        self.settled: list[float] = []
        self.over = asyncio.Event()

    async def run(self) -> None:
        """The whole run. ``Failed`` and others say what was found."""
        stage = self.stage
        await stage.start()
        await self.settle()
        began = time.monotonic()
        passes = 0
        while passes == 0 or time.monotonic() - began < self.seconds:
            for rows in decks(stage.chance, ROUNDS, self.rows):
                await self.round(rows)
                if passes and time.monotonic() - began >= self.seconds:
                    break
            await self.make_up()
            passes += 1
        await self.quiet_restart()
        await self.lie()

    # ---- a round

    async def round(self, decks_of_round: list[list[Row]]) -> None:
        """Play some rows of each deck at the same time, among failures and operators; then all has to settle."""
        self.over = asyncio.Event()
        async with self._watched():
            async with asyncio.TaskGroup() as group:
                # They end between two actions, never within one: what was begun must be known.
                for others in (self._servers, self._operators, self._deaths):
                    group.create_task(others())
                playing = [group.create_task(self._play(rows)) for rows in decks_of_round]
                await asyncio.wait(playing)
                self.over.set()
            await self.mend()
        await self.settle()

    async def _play(self, rows: list[Row]) -> None:
        for row in rows:
            await asyncio.sleep(self.stage.chance.uniform(0.0, 0.7))
            self.stage.say(f"{row.name}: begins")
            happened = await row.play(self.stage)
            self.stage.say(f"{row.name}: {'ends' if happened else 'did not happen'}")
            self.played[row.name] += happened

    async def _deaths(self) -> None:
        """Restart the daemon for the rows that wait for its death, if no other row kills it."""
        while not self.over.is_set():
            await asyncio.sleep(0.3)
            if self.stage.while_dead and not self.stage.life.locked():
                async with self.stage.alone():
                    if self.stage.while_dead:
                        await self.stage.kill(self.stage.chance.choice([signal.SIGKILL, signal.SIGTERM]))

    async def make_up(self) -> None:
        """Play again what did not happen: a kill that came too late."""
        for _ in range(5):
            missing = [row for row in self.rows if not self.played[row.name]]
            if not missing:
                return
            await self.round([[row] for row in missing])
        raise Failed(f"never happened: {', '.join(row.name for row in missing)}")

    async def _servers(self) -> None:
        stage = self.stage
        probed = [target for target in TARGETS if target.kind]
        while not self.over.is_set():
            await asyncio.sleep(stage.chance.uniform(0.1, 0.5))
            down = [target for target in probed if target.address in stage.world.modes]
            if len(down) > 25 or (down and stage.chance.random() < 0.5):
                await self._mended(stage.chance.sample(down, stage.chance.randint(1, len(down))))
                stage.counts["servers mended"] += 1
                continue
            number = stage.chance.choice([1, 1, 2, 4, 8])
            chosen = stage.chance.sample(probed, number)
            if stage.chance.random() < 0.3:
                # All of a frontend, so that it falls back, or keeps what it has.
                first = stage.chance.choice(probed)
                chosen = [t for t in probed if t.group == first.group and ":" not in t.address][:8]
            await stage.world.fail(chosen)
            stage.say(f"servers fail: {', '.join(target.name for target in chosen)}")
            stage.counts["servers failed"] += len(chosen)
            if stage.chance.random() < 0.3:
                # Too short for a verdict.
                await asyncio.sleep(stage.chance.uniform(0.05, 0.2))
                await self._mended(chosen)

    async def _mended(self, targets: list[Target]) -> None:
        await self.stage.world.mend(targets)
        self.stage.say(f"servers serve: {', '.join(target.name for target in targets)}")

    async def _operators(self) -> None:
        stage = self.stage
        while not self.over.is_set():
            await asyncio.sleep(stage.chance.uniform(0.1, 0.4))
            if stage.life.locked() or stage.book.lock.locked() or stage.book.plan is None:
                continue
            if stage.book.plan.vips:
                await stage.operators.act(stage.daemon.stub, stage.book.plan)

    async def mend(self) -> None:
        """The end of a round: daemon, VPP, file and host are well; a few servers stay down, a few settings stay."""
        stage = self.stage
        for group in list(stage.world.broken):
            await stage.world.mend_host(group)
        if not stage.daemon.running:
            await stage.start_daemon()
        await stage.book.reload(stage.daemon, stage.book.good(), hup=False, force=True)
        down = [target for target in TARGETS if target.address in stage.world.modes]
        await stage.world.mend(down[6:])
        if stage.operators.unsure:
            await stage.reconcile()
        for name, setting in list(stage.operators.settings.items()):
            if setting.duration:
                await stage.operators.undo(stage.daemon.stub, name)

    # ---- judging

    @contextlib.asynccontextmanager
    async def _watched(self) -> AsyncIterator[None]:
        async def watch() -> None:
            while True:
                await asyncio.sleep(TICK)
                self.stage.operators.expire()
                self.stage.judge()
                if not self.stage.daemon.running and not self.stage.daemon.meant:
                    raise Failed("maglevd has ended by itself")

        async with asyncio.TaskGroup() as group:
            watching = group.create_task(watch())
            yield
            watching.cancel()

    async def settle(self, seconds: float = SETTLE_SECONDS) -> None:
        """Wait until VPP, the daemon's own words and the model agree. ``Failed``: they do not in time."""
        stage = self.stage
        began, said = time.monotonic(), ""
        while True:
            await asyncio.sleep(TICK)
            stage.judge(until=time.monotonic() - TICK if not stage.facts.disturbed.holds else None)
            found = stage.differences() or await stage.compared() or await self._said()
            if not found:
                break
            if found[0] != said:
                said = found[0]
                stage.say(f"not settled: {said} ({len(found)} in all)")
            if time.monotonic() - began > seconds:
                listed = "\n  ".join(found[:20])
                raise Failed(
                    f"{len(found)} differences {seconds:.0f} s after the last disturbance:\n  {listed}"
                    f"\n  {stage.known()}"
                )
        self.settled.append(time.monotonic() - began)
        stage.say(f"settled after {self.settled[-1]:.1f} s")
        stage.counts["settled points"] += 1

    async def _said(self) -> list[str]:
        """Where the daemon's own words are not what it has programmed."""
        stage = self.stage
        assert stage.book.plan is not None
        try:
            answer = await stage.daemon.stub.ListFrontends(pb.ListFrontendsRequest(page_size=100), timeout=10)
        except grpc.aio.AioRpcError as error:
            return [f"maglevd does not answer: {error.code().name}"]
        keys = {vip.frontend: vip for vip in stage.book.plan.vips.values()}
        found = []
        for frontend in answer.frontends:
            vip = keys[frontend.name]
            addresses = {member.backend: member.address for _, member in vip.members()}
            held = stage.oracle.vips[vip.key].ases
            if vip.keep and not any(m.programmed_weight for p in frontend.pools for m in p.backends):
                continue
            found += [
                f"{frontend.name}/{member.name}: {held.get(addresses[member.name])} in VPP,"
                f" {member.programmed_weight} by maglevd"
                for pool in frontend.pools
                for member in pool.backends
                if held.get(addresses[member.name]) != member.programmed_weight
            ]
        return found

    async def quiet_restart(self) -> None:
        """A restart under unchanged health and configuration writes nothing."""
        stage = self.stage
        if stage.forgetful or stage.operators.unsure:
            # A daemon that may have forgotten settings has all of them taken back after its start: those are writes.
            async with stage.alone():
                await stage.kill(signal.SIGTERM)
            await self.settle()
        before = sum(stage.oracle.counts[name] for name in ("ASes added", "ASes deleted", "weights set", "VIPs made"))
        async with stage.alone():
            await stage.kill(signal.SIGTERM)
        await asyncio.sleep(6.0)  # not a wait for an event: until after the warm-up nothing may happen
        await self.settle()
        after = sum(stage.oracle.counts[name] for name in ("ASes added", "ASes deleted", "weights set", "VIPs made"))
        if after != before:
            raise Failed(f"{after - before} writes after a restart under unchanged health and configuration")

    # ---- the judge on trial

    async def lie(self) -> None:
        """Lies to the oracle, each of which it has to notice: a judge that never objects proves nothing."""
        stage = self.stage
        while True:
            if self._unchanged():
                break
            await asyncio.sleep(TICK)
        vip, address = self._beyond_doubt()
        key = parse_vip_key(vip)
        values = {"pfx": Prefix(key.address, key.prefix_length), "protocol": key.protocol, "port": key.port}
        packed, weight = Prefix.parse(address).address, stage.oracle.vips[vip].ases[address]

        def write(call: str, **others: object) -> None:
            # Under the daemon's name, and no drift that the facts know.
            with Client(stage.vpp.socket, DAEMON) as client:
                client.call(call, **values, **others)

        for call, others in (
            ("lb_as_set_weight", {"as_address": packed, "weight": 0, "is_flush": False}),
            ("lb_as_set_weight", {"as_address": packed, "weight": weight + 1, "is_flush": False}),
            ("lb_add_del_as_v2", {"as_address": packed, "is_del": True}),
            ("lb_add_del_vip_v2", {"is_del": True, "new_flows_table_length": 1024}),
        ):
            await asyncio.to_thread(write, call, **others)
            await asyncio.sleep(2 * KNOWN_SECONDS)  # not a wait for an event: until the oracle judges this moment
            with contextlib.suppress(Failed):
                stage.judge()
            if not stage.oracle.violations:
                raise Failed(f"the oracle does not notice {call} {others} of {vip} {address}")
            stage.oracle.violations.clear()
            stage.counts["lies noticed"] += 1
            await self.settle()
        # And the other way: a daemon that does nothing about a dead server.
        stage.daemon.signal(signal.SIGSTOP)
        served = [t for t in TARGETS if t.kind and stage.oracle.vips[vip].ases.get(t.address)]
        await stage.world.fail(served[:1])
        with contextlib.suppress(Failed):
            await self.settle(3.0)
            raise Wrong("the oracle does not notice a dead server that keeps its weight")
        stage.counts["lies noticed"] += 1
        stage.daemon.signal(signal.SIGCONT)
        await self.settle()

    def _unchanged(self) -> bool:
        """Whether no older configuration can explain anything any more."""
        now = time.monotonic()
        forces = self.stage.facts.plans(self.stage.facts.since(now), now)
        return all(force.plan == forces[0].plan for force in forces)

    def _beyond_doubt(self) -> tuple[str, str]:
        """A VIP and an address that nothing has spoken against for long."""
        stage, now = self.stage, time.monotonic()
        assert stage.book.plan is not None
        for vip in stage.book.plan.vips.values():
            if vip.least_of(0) > 1:
                continue  # too few others in the pool could explain a weight of 0
            held = stage.oracle.vips[vip.key].ases
            for member in vip.pools[0]:
                quiet = not (
                    stage.facts.bad[member.address].touches(now - QUIET_SECONDS, now)
                    or stage.facts.out[member.backend].touches(now - QUIET_SECONDS, now)
                    or any(s.touches(0, now) for s in stage.facts.weights[vip.key, member.address].values())
                )
                if (
                    quiet
                    and held.get(member.address)
                    and any(t.kind and t.kind not in SERVED for t in TARGETS if t.address == member.address)
                ):
                    return vip.key, member.address
        raise Failed("no server was left alone")

    # ---- the table

    def table(self) -> str:
        """The counts of the run, in lines."""
        stage = self.stage
        counts = stage.oracle.counts
        lines = [f"  {name}: {count}" for name, count in (
            *((row.name, self.played[row.name]) for row in self.rows),
            *sorted(stage.counts.items()),
            *sorted((f"operators: {name}", count) for name, count in stage.operators.counts.items()),
            *sorted(stage.book.counts.items()),
            ("starts of maglevd", stage.daemon.starts),
            ("starts of VPP", len(stage.vpp.ledgers)),
            ("calls received", stage.ledgers.calls),
            *sorted(counts.items()),
            ("wrong weights", len(stage.oracle.violations)),
        )]  # fmt: skip
        left = [row.name for row in ROWS if row not in self.rows]
        if left:
            lines.append(f"  left out: {', '.join(left)}")
        if self.settled:
            lines.append(f"  longest time to settle: {max(self.settled):.1f} s")
        return "\n".join(lines)
