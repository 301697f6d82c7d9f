"""``python -m tests.soak [--seconds N] [--targets N] [--lateness 5ms] [--seed N]``: run the soak and say how it went.

For a while, at the same time: servers fail and flap, operators use every verb, the file is edited and reloaded, VPP
restarts, hangs and cuts its connections, clients read slowly or not at all. Then all of that ends, what has failed
stays failed, and three must agree: the model of what should be, what the daemon says, and what the stand-in holds. The
daemon's memory, descriptors and threads must not have grown, and no task of it may have failed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path

import grpc
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from maglev.base.states import State
from maglev.pb import maglev_pb2 as pb
from maglev.pb import maglev_pb2_grpc as pb_grpc
from maglev.schema.durations import format_duration, parse_duration
from maglev.vpp.planning.model import vip_key
from maglev.vpp.wire.messages import address_text
from maglev.vppsim.inspect import Client
from tests.soak.model import Model
from tests.soak.world import World

DEADLINE = 60.0
AGREE_SECONDS = 90.0
"""From the end of all trouble until all agree: a few check intervals, a full sync and what the back-offs add."""

SETTLE_SHARE = 0.4
"""Share of the run after which the daemon has seen everything once: it may not grow from there."""

GROWTH = 1.10
SLACK_MIB = 24
"""How much larger its memory may be at the end than when it had settled: what an allocator keeps, and no leak."""

# A verb, what it does to the model, and how often it is used.
VERBS = ("pause", "resume", "disable", "enable", "drain", "undrain", "weight", "weight default", "sync", "lists")


class Failed(Exception):
    """The soak found something."""


class Soak:
    """The run: the world, the model, the daemon, the stand-in, and those who trouble them."""

    def __init__(self, options: argparse.Namespace, seed: int, directory: Path) -> None:
        self.chance = random.Random(seed)
        self.seconds: float = options.seconds
        self.lateness_ns: int | None = options.lateness
        self.directory = directory
        self.world = World()
        self.model = Model(options.targets, self.chance)
        self.config = directory / "maglev.json"
        self.socket = directory / "maglevd.sock"
        self.metrics_socket = ("127.0.0.1", 9091)
        self.vpp = directory / "api.sock"
        self.control = directory / "control.sock"
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        self.counts: Counter[str] = Counter()
        self.samples: list[tuple[float, float, int, int]] = []
        self.began = 0.0
        self.mix = asyncio.Lock()
        """Held while the model and the daemon are changed together."""

    # ---- processes

    async def _spawn(self, name: str, *command: str | Path, inside: str = "") -> None:
        words = ["ip", "netns", "exec", inside, *command] if inside else list(command)
        with (self.directory / f"{name}.log").open("wb") as log:
            self.processes[name] = await asyncio.create_subprocess_exec(
                *[str(word) for word in words], stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )

    async def start(self) -> None:
        """The world, the stand-in and the daemon, which is ready when this returns."""
        await self.world.start()
        self.config.write_bytes(self.model.file())
        await self._spawn(
            "vppsim", sys.executable, "-m", "maglev.vppsim", "--socket", self.vpp, "--control", self.control
        )
        await self._spawn(
            "maglevd", sys.executable, "-m", "maglev.daemon.main", "--config", self.config,
            "--grpc-socket", self.socket, "--grpc-addr=", "--vpp-api-addr", self.vpp, "--vpp-stats-addr=",
            "--log-format", "json", "--state-file", self.directory / "state.json",
            inside=self.world.pair.client,
        )  # fmt: skip
        self.channel = grpc.aio.insecure_channel(f"unix:{self.socket}")
        self.stub: pb_grpc.MaglevAsyncStub = pb_grpc.MaglevStub(self.channel)
        await self.stub.GetServerInfo(pb.GetServerInfoRequest(), wait_for_ready=True, timeout=DEADLINE)

    async def stop(self) -> list[str]:
        """End all processes, and remove the world; returns which of them did not end as told."""
        found = []
        with contextlib.suppress(AttributeError):
            await self.channel.close(None)
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for name, process in self.processes.items():
            try:
                async with asyncio.timeout(10):
                    status = await process.wait()
            except TimeoutError:
                process.kill()
                status = await process.wait()
            if status:
                found.append(f"{name} ended with status {status}")
        await self.world.stop()
        return found

    async def tell(self, line: str) -> None:
        """Tell the stand-in."""
        async with asyncio.timeout(DEADLINE):
            reader, writer = await asyncio.open_unix_connection(str(self.control))
            writer.write(f"{line}\n".encode())
            answer = await reader.read()
            writer.close()
        if not answer.startswith(b"0\n"):
            raise Failed(f"the stand-in does not {line}: {answer!r}")

    # ---- trouble

    def _some(self, most: int) -> list[str]:
        conf = self.model.config().backends
        names = self.chance.sample(sorted(conf), self.chance.randint(1, most))
        return [str(conf[name].address) for name in names]

    async def servers(self) -> None:
        """Servers fail alone, a rack at a time, and come back; some flap."""
        while True:
            await asyncio.sleep(self.chance.uniform(0.2, 1.0))
            match self.chance.randrange(4):
                case 0:
                    self.world.fail(self._some(50))
                case 1 if self.world.down:
                    # Mostly back, so that at any time a small part is gone.
                    self.world.mend(self.chance.sample(sorted(self.world.down), max(1, len(self.world.down) // 2)))
                case 2:
                    frontend = self.chance.choice(sorted(self.model.config().frontends))
                    pool = self.chance.choice(self.model.config().frontends[frontend].pools)
                    backends = self.model.config().backends
                    self.world.fail([str(backends[member.backend].address) for member in pool.members])
                case _:
                    flapping = self._some(20)
                    for _ in range(3):
                        self.world.fail(flapping)
                        await asyncio.sleep(self.chance.uniform(0.1, 2.0))
                        self.world.mend(flapping)
                        await asyncio.sleep(self.chance.uniform(0.1, 2.0))
            self.counts["server changes"] += 1

    async def operators(self) -> None:
        """Every verb, as fast as a script would."""
        while True:
            await asyncio.sleep(self.chance.uniform(0.02, 0.3))
            async with self.mix:
                await self._whole(self._operate(self.chance.choice(VERBS)))

    @staticmethod
    async def _whole(work: Coroutine[None, None, None]) -> None:
        """Do ``work`` to its end also when the trouble ends meanwhile: the daemon may have done what was asked already,
        and the model has to hear of it.
        """
        task = asyncio.ensure_future(work)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await task
            raise

    async def _operate(self, verb: str) -> None:
        model = self.model
        conf = model.config()
        frontend = self.chance.choice(sorted(conf.frontends))
        pool = self.chance.choice(conf.frontends[frontend].pools)
        name = self.chance.choice(pool.members).backend
        changed = {"resume": model.paused, "enable": model.disabled, "undrain": model.drained}.get(verb)
        if changed and self.chance.random() < 0.9:
            # Mostly undo an earlier change: otherwise no backend would be in service in the end.
            name = self.chance.choice(sorted(changed))
        try:
            match verb:
                case "weight":
                    await self._set_weight(frontend, pool.name, name, self.chance.randint(0, 100))
                case "weight default":
                    await self._set_weight(frontend, pool.name, name, None)
                case "sync":
                    await self.stub.SyncVPPLBState(pb.SyncVPPLBStateRequest(frontend=frontend), timeout=DEADLINE)
                case "lists":
                    await self.stub.ListBackends(pb.ListBackendsRequest(page_size=1000), timeout=DEADLINE)
                    await self.stub.GetVPPLBState(pb.GetVPPLBStateRequest(frontend=frontend), timeout=DEADLINE)
                case _:
                    await self._change_backend(verb, name)
            self.counts[f"operator: {verb}"] += 1
        except grpc.aio.AioRpcError as error:
            expected = {
                # A disabled backend can be neither paused nor resumed.
                grpc.StatusCode.FAILED_PRECONDITION: verb in ("pause", "resume") and name in model.disabled,
                # VPP is away, or did not answer in time.
                grpc.StatusCode.UNAVAILABLE: verb in ("sync", "lists"),
                grpc.StatusCode.DEADLINE_EXCEEDED: verb in ("sync", "lists"),
            }
            if not expected.get(error.code(), False):
                raise Failed(f"{verb} {name}: {error.code().name}: {error.details()}") from error
            self.counts[f"operator: {verb}, refused"] += 1

    async def _change_backend(self, verb: str, name: str) -> None:
        # The model follows only after the daemon has accepted: a refused call raises before the model changes.
        model, stub = self.model, self.stub
        request = pb.ChangeBackendRequest(name=name, reason="soak")
        match verb:
            case "pause":
                await stub.PauseBackend(request, timeout=DEADLINE)
                model.paused.add(name)
            case "resume":
                await stub.ResumeBackend(request, timeout=DEADLINE)
                model.paused.discard(name)
            case "disable":
                await stub.DisableBackend(request, timeout=DEADLINE)
                model.disabled.add(name)
                model.paused.discard(name)
            case "enable":
                await stub.EnableBackend(request, timeout=DEADLINE)
                if name in model.disabled:
                    model.disabled.discard(name)
                    model.paused.discard(name)
            case "drain":
                await stub.DrainBackend(request, timeout=DEADLINE)
                model.drained.add(name)
            case "undrain":
                await stub.UndrainBackend(request, timeout=DEADLINE)
                model.drained.discard(name)
            case _:
                raise ValueError(f"no verb {verb!r}")

    async def _set_weight(self, frontend: str, pool: str, name: str, weight: int | None) -> None:
        # None restores the weight of the file, and flushes.
        request = pb.SetWeightRequest(frontend=frontend, pool=pool, backend=name, weight=weight, flush=weight is None)
        await self.stub.SetFrontendPoolBackendWeight(request, timeout=DEADLINE)
        self.model.set_weight(frontend, pool, name, weight)

    async def editor(self, pause: float) -> None:
        """Edits the file and reloads it."""
        while True:
            await asyncio.sleep(pause)
            async with self.mix:
                await self._whole(self._edit())
            self.counts["reloads"] += 1

    async def _edit(self) -> None:
        done = self.model.edit()
        self.config.write_bytes(self.model.file())
        answer = await self.stub.ReloadConfig(pb.ReloadConfigRequest(), timeout=DEADLINE)
        if not answer.ok:
            raise Failed(f"reload after {done}: {answer.semantic_errors[:3]} {answer.parse_errors[:3]}")

    async def vpp_trouble(self, pause: float) -> None:
        """VPP restarts and comes back empty, hangs, or loses its connection in the middle of a message."""
        while True:
            for line, then in (
                ("restart 1", ""),
                ("hang on", "hang off"),
                (f"cut received {self.chance.randint(1, 20_000)}", "clear"),
                (f"cut sent {self.chance.randint(1, 20_000)}", "clear"),
                ("refuse lb_as_set_weight -1 times 3", "clear"),
            ):
                await asyncio.sleep(pause)
                await self.tell(line)
                self.counts[f"vpp: {line.split()[0]}"] += 1
                if then:
                    await asyncio.sleep(self.chance.uniform(0.5, 3.0))
                    await self.tell(then)

    async def deaf(self) -> None:
        """Subscribes to everything and reads nothing."""
        every = pb.WatchEventsRequest(
            kinds=[pb.EVENT_KIND_BACKEND, pb.EVENT_KIND_FRONTEND, pb.EVENT_KIND_LOG], log_level=pb.LOG_LEVEL_DEBUG
        )
        # A channel of its own: another's window would let more through.
        async with grpc.aio.insecure_channel(
            f"unix:{self.socket}", options=[("grpc.use_local_subchannel_pool", 1), ("grpc.http2.lookahead_bytes", 0)]
        ) as channel:
            calls = [pb_grpc.MaglevStub(channel).WatchEvents(every) for _ in range(3)]
            await asyncio.Event().wait()
            del calls

    async def slow(self) -> None:
        """Reads an event now and then; where the daemon gives up on it, it comes back, as a client should."""
        while True:
            call = self.stub.WatchEvents(pb.WatchEventsRequest(kinds=[pb.EVENT_KIND_BACKEND]))
            self.counts["slow readers"] += 1
            with contextlib.suppress(grpc.aio.AioRpcError):
                async for _ in call:
                    await asyncio.sleep(2)
            await asyncio.sleep(2)

    async def comer(self) -> None:
        """Subscribes, reads the present state and leaves in the middle of it, over and over."""
        while True:
            call = self.stub.WatchEvents(pb.WatchEventsRequest(kinds=[pb.EVENT_KIND_BACKEND]))
            await call.read()
            call.cancel()
            await asyncio.sleep(0.5)
            self.counts["watchers that came and went"] += 1

    async def sitters(self) -> None:
        """Open connections and say nothing, or half of something."""
        while True:
            writers = []
            for word in (b"", b"GET", b"\0" * 100, b"PRI * HTTP/2.0\r\n\r\nSM"):
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_unix_connection(str(self.socket))
                    writer.write(word)
                    writers.append(writer)
            await asyncio.sleep(5)
            for writer in writers:
                writer.close()

    # ---- watching

    def sample(self) -> None:
        """Memory in MiB, descriptors and threads of the daemon."""
        process = Path(f"/proc/{self.processes['maglevd'].pid}")
        status = (process / "status").read_text()
        memory = re.search(r"VmRSS:\s+(\d+)", status)
        threads = re.search(r"Threads:\s+(\d+)", status)
        if memory is None or threads is None:
            raise Failed("maglevd has ended")
        descriptors = len(os.listdir(process / "fd"))
        self.samples.append((time.monotonic() - self.began, int(memory[1]) / 1024, descriptors, int(threads[1])))

    async def watcher(self) -> None:
        """Samples, and sees to it that both processes live."""
        while True:
            self.sample()
            for name, process in self.processes.items():
                if process.returncode is not None:
                    raise Failed(f"{name} ended with status {process.returncode}")
            await asyncio.sleep(2)

    # ---- the end

    async def said(self) -> tuple[dict[str, State], dict[str, dict[str, int]]]:
        """The daemon's view: the state of every backend, and the effective weights of every frontend."""
        states: dict[str, State] = {}
        request = pb.ListBackendsRequest(page_size=1000, omit_transitions=True)
        while True:
            page = await self.stub.ListBackends(request, timeout=DEADLINE)
            for one in page.backends:
                states[one.name] = State[pb.BackendState.Name(one.state).removeprefix("BACKEND_STATE_")]
            request.page_token = page.next_page_token
            if not request.page_token:
                break
        weights: dict[str, dict[str, int]] = {}
        frontends = pb.ListFrontendsRequest(page_size=100)
        while True:
            answer = await self.stub.ListFrontends(frontends, timeout=DEADLINE)
            for frontend in answer.frontends:
                weights[frontend.name] = {m.name: m.programmed_weight for p in frontend.pools for m in p.backends}
            frontends.page_token = answer.next_page_token
            if not frontends.page_token:
                return states, weights

    def held(self) -> dict[str, dict[str, int]]:
        """The stand-in's ASes: VIP -> address -> weight."""
        with Client(self.vpp, "soak") as client:
            vips, ases = client.vips(), client.ases()
        held: dict[str, dict[str, int]] = {str(vip.key): {} for vip in vips}
        for one in ases:
            if one.live:
                # A VIP may have come between the two dumps.
                held.setdefault(str(one.vip), {})[address_text(one.address)] = one.weight
        return held

    async def differences(self) -> list[str]:
        """Where the three do not agree."""
        model = self.model
        model.down = self.world.down
        states, weights = await self.said()
        held = await asyncio.to_thread(self.held)
        found = [
            f"backend {name}: {wanted.name} by the model, {states.get(name, State.REMOVED).name} by maglevd"
            for name, wanted in model.states().items()
            if states.get(name) is not wanted
        ]
        conf = model.config()
        names = {str(backend.address): name for name, backend in conf.backends.items()}
        programmed = await asyncio.to_thread(model.programmed)
        vips = {name: str(vip_key(frontend)) for name, frontend in conf.frontends.items()}
        for frontend, said in weights.items():
            if frontend not in conf.frontends:
                found.append(f"frontend {frontend}: maglevd has it, the file has not")
                continue
            wanted = {names[address]: weight for address, weight in programmed[vips[frontend]].items()}
            found += [
                f"{frontend}/{name}: {wanted.get(name)} by the model, {said.get(name)} by maglevd"
                for name in wanted.keys() | said.keys()
                if wanted.get(name, -1) is not None and wanted.get(name) != said.get(name)
            ]
        for key in programmed.keys() | held.keys():
            wants, has = programmed.get(key), held.get(key)
            if wants is None or has is None:
                found.append(f"VIP {key}: {'not' if wants is None else 'is'} in the model, and the other way in VPP")
                continue
            found += [
                f"VIP {key} {address}: {wants.get(address, 'nothing')} by the model, {has.get(address)} in VPP"
                for address in wants.keys() | has.keys()
                if address not in wants or address not in has or wants[address] not in (None, has[address])
            ]
        return found

    async def agree(self) -> float:
        """Wait until all agree; returns how long that took. ``Failed`` says where they do not."""
        began = time.monotonic()
        while True:
            try:
                found = await self.differences()
            except (OSError, grpc.aio.AioRpcError) as error:
                found = [f"no answer: {error}"]
            if not found:
                return time.monotonic() - began
            if time.monotonic() - began > AGREE_SECONDS:
                listed = "\n  ".join(found[:20])
                raise Failed(
                    f"{len(found)} differences {AGREE_SECONDS:.0f} s after the end of all trouble:\n  {listed}"
                )
            await asyncio.sleep(1)

    async def scrape(self) -> dict[str, float]:
        """The daemon's metrics by series, sums over their labels, from within its namespace."""
        ask = (
            "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9091/metrics', timeout=30).read().decode())"
        )
        command = ["ip", "netns", "exec", self.world.pair.client, sys.executable, "-c", ask]
        # Not by the loop: it would fork, and gRPC's threads are in the middle of something.
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
        text: str = done.stdout
        sums: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for one in family.samples:
                name = f"{one.name} le={one.labels['le']}" if "le" in one.labels else one.name
                sums[name] = sums.get(name, 0.0) + one.value
        return sums

    def grown(self) -> list[str]:
        """What has grown since the daemon had settled."""
        settled = [sample for sample in self.samples if sample[0] >= SETTLE_SHARE * self.seconds]
        first, last = settled[: max(1, len(settled) // 4)], settled[-5:]
        found = []
        for at, (what, factor, slack) in enumerate(
            (("memory in MiB", GROWTH, SLACK_MIB), ("descriptors", 1.0, 64), ("threads", 1.0, 0)), start=1
        ):
            before, after = max(sample[at] for sample in first), min(sample[at] for sample in last)
            print(f"  {what}: {before:.0f} when settled, {after:.0f} at the end")
            if after > before * factor + slack:
                found.append(f"{what} grew from {before:.0f} to {after:.0f}")
        return found

    async def run(self) -> None:
        """The whole soak. ``Failed`` tells what it found."""
        await self.start()
        print(f"up: {self.model.targets} targets in {len(self.model.config().frontends)} frontends", flush=True)
        taken = await self.agree()
        print(f"all agree {taken:.1f} s after that; now {self.seconds:.0f} s of trouble", flush=True)
        self.began = time.monotonic()
        short = self.seconds < 600
        troubles: list[Callable[[], Awaitable[None]]] = [
            self.watcher, self.servers, self.operators, self.deaf, self.slow, self.comer, self.sitters,
            lambda: self.editor(20 if short else 60), lambda: self.vpp_trouble(9 if short else 20),
        ]  # fmt: skip
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.seconds), asyncio.TaskGroup() as group:
                for trouble in troubles:
                    group.create_task(self._endless(trouble))
        await self.tell("hang off")
        await self.tell("clear")
        taken = await self.agree()
        print(f"all agree {taken:.1f} s after the end of it; {len(self.world.down)} servers are down")
        for _ in range(5):
            self.sample()
            await asyncio.sleep(0.5)
        for name, count in sorted(self.counts.items()):
            print(f"  {name}: {count}")
        found = self.grown() + await self.judge()
        if found:
            raise Failed("\n".join(found))

    @staticmethod
    async def _endless(trouble: Callable[[], Awaitable[None]]) -> None:
        await trouble()
        raise Failed("a trouble-maker ended")

    async def judge(self) -> list[str]:
        """What the daemon's own counters say is wrong with it."""
        sums = await self.scrape()
        found = [
            f"{name} is {sums.get(name, 'missing')}"
            for name in ("maglev_callback_failures_total", "maglev_state_file_write_failures_total")
            if sums.get(name) != 0
        ]
        if sums.get("maglev_task_failures_total", 0):
            found.append(f"maglev_task_failures_total is {sums['maglev_task_failures_total']:.0f}")
        lateness = "maglev_engine_send_lateness_seconds"
        total = sums[f"{lateness}_count"]
        bounds = sorted(
            (float(name.partition("le=")[2]), value)
            for name, value in sums.items()
            if name.startswith(f"{lateness}_bucket le=")
        )
        worst = next(bound for bound, value in bounds if value >= 0.99 * total)
        print(f"  probes sent: {total:.0f}; 99 % of them late by at most {worst * 1000:g} ms")
        if self.lateness_ns is not None and round(worst * 1e9) > self.lateness_ns:
            found.append(f"more than 1 % of the probes were late by more than {format_duration(self.lateness_ns)}")
        return found


async def soak(options: argparse.Namespace) -> int:
    """Exit status 0: nothing was found."""
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"soak: seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="maglev-soak-") as name:
        place = Path(name)
        one = Soak(options, seed, place)
        failures: list[str] = []
        try:
            await one.run()
        except* Failed as group:
            failures = [str(failure) for failure in group.exceptions]
        finally:
            log = place / "maglevd.log"
            said = log.read_text(errors="replace").splitlines() if log.exists() else []
            failures += await one.stop()
        if failures:
            print("\n".join(["the last that maglevd said:", *said[-15:]]))
            print("\n".join(f"soak: FAILED (seed {seed}): {failure}" for failure in failures))
            return 1
    print("soak: nothing found")
    return 0


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=1200.0, help="how long the trouble lasts (default: 1200)")
    parser.add_argument("--targets", type=int, default=20_000, help="servers (default: 20000)")
    parser.add_argument(
        "--lateness",
        type=parse_duration,
        help="most by which 99 %% of the probes may be late, on a machine that does nothing else (default: any)",
    )
    parser.add_argument("--seed", type=int, help="of all that is random (default: another each time)")
    return uvloop.run(soak(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
