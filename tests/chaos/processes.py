"""The daemon and the stand-in as processes of the run: started, killed, stopped, and with a wall clock of their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import grpc

from maglev.pb import maglev_pb2 as pb
from maglev.pb import maglev_pb2_grpc as pb_grpc
from tests.chaos.facts import Facts
from tests.chaos.oracle import Write

START_SECONDS = 40.0
"""Longest start of a process; far more than it takes on a machine that does nothing else."""

ROOT = Path(__file__).parents[2]


class Ended(Exception):
    """A process ended by itself."""


class StandInProcess:
    """The stand-in. Each start has its own ledger; ``ledgers`` names them, with the time of the start."""

    def __init__(self, directory: Path, facts: Facts) -> None:
        self.directory = directory
        self.socket = directory / "api.sock"
        self.control = directory / "control.sock"
        self.ledgers: list[tuple[Path, float]] = []
        self._facts = facts
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it, empty; it listens when this returns."""
        ledger = self.directory / f"ledger-{len(self.ledgers) + 1}.jsonl"
        ledger.touch()
        moment = time.monotonic()
        with (self.directory / "vppsim.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.chaos.standin", str(self.socket), str(self.control), str(ledger),
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=log,
            )  # fmt: skip
        self._facts.emptied.append(moment)
        self.ledgers.append((ledger, moment))
        assert self.process.stdout is not None
        async with asyncio.timeout(START_SECONDS):
            if not await self.process.stdout.readline():
                raise Ended("the stand-in does not start")

    async def end(self, number: signal.Signals) -> None:
        """End it with a signal, and wait for that."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
            async with asyncio.timeout(START_SECONDS):
                await self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    async def tell(self, line: str) -> str:
        """A command for the stand-in; returns its output."""
        async with asyncio.timeout(START_SECONDS):
            reader, writer = await asyncio.open_unix_connection(str(self.control))
            writer.write(f"{line}\n".encode())
            answer = await reader.read()
            writer.close()
        retval, _, output = answer.decode().partition("\n")
        if retval != "0":
            raise RuntimeError(f"the stand-in does not {line}: {output}")
        return output


class Ledgers:
    """Reads the stand-in's ledgers as they grow. ``calls``: all calls that stand-ins have received."""

    def __init__(self, vpp: StandInProcess) -> None:
        self._vpp = vpp
        self._at = -1
        self._offset = 0
        self._ended = 0
        self._calls = 0
        self._waiting: list[dict[str, object]] = []

    @property
    def calls(self) -> int:
        """Calls received so far."""
        return self._ended + self._calls

    def read(self) -> None:
        """Take what has been written. A line that a killed process left unfinished never happened."""
        while True:
            if self._at >= 0:
                self._read_on()
            if self._at + 1 >= len(self._vpp.ledgers):
                return
            self._at, self._offset = self._at + 1, 0
            self._ended, self._calls = self.calls, 0
            self._waiting.append({"t": self._vpp.ledgers[self._at][1], "call": "start"})

    def _read_on(self) -> None:
        with self._vpp.ledgers[self._at][0].open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            said = json.loads(line)
            self._calls = said.pop("calls", self._calls)
            self._waiting.append(said)

    def take(self, before: float) -> list[Write]:
        """The writes until that time, once each; a start and a connection are among them, without a VIP."""
        index = next((i for i, one in enumerate(self._waiting) if float(str(one["t"])) >= before), len(self._waiting))
        taken, self._waiting = self._waiting[:index], self._waiting[index:]
        return [Write(**{"client": "", **one}) for one in taken]  # type: ignore[arg-type]


class Daemon:
    """maglevd, with a clock that can be set, and a small file system as its state directory.

    ``meant``: the run ends it, or expects its end; any other end fails the run.
    """

    def __init__(self, directory: Path, facts: Facts, config: Path) -> None:
        self.directory = directory
        self.config = config
        self.socket = directory / "run" / "maglevd.sock"
        self.state = directory / "state"
        self.log = directory / "maglevd.log"
        self.process: asyncio.subprocess.Process | None = None
        self.meant = False
        self.spawned = 0.0
        self.starts = 0
        self._facts = facts
        self._step = directory / "clock-step"
        self._channel: grpc.aio.Channel | None = None

    def prepare(self) -> None:
        """Compile the clock, and mount the state directory."""
        source = ROOT / "tests" / "helpers" / "clockstep.c"
        subprocess.run(
            ["cc", "-O2", "-shared", "-fPIC", "-o", str(self.directory / "clockstep"), str(source)], check=True
        )
        self._step.write_bytes(bytes(8))
        self.state.mkdir()
        self.config.parent.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "chaos-state", str(self.state)], check=True)

    def set_clock(self, seconds: float) -> None:
        """Its wall clock is that far from the machine's."""
        with self._step.open("r+b") as file:
            file.write(struct.pack("=q", round(seconds * 1e9)))

    async def spawn(self, vpp: Path, *, meant: bool) -> None:
        """Start the process, and wait for nothing; ``meant``: that it ends by itself.

        The wall clock is right again: a start has no other to compare.
        """
        self.set_clock(0)
        preload = " ".join([os.environ.get("LD_PRELOAD", ""), str(self.directory / "clockstep")]).strip()
        self.spawned = time.monotonic()
        self.starts += 1
        self._facts.started.append(self.spawned)
        self._facts.broken.append(self.spawned)
        with self.log.open("ab") as log:
            log.write(f"---- start {self.starts} at {self.spawned:.3f}\n".encode())
            log.flush()
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "maglev.daemon.main", "--config", str(self.config),
                "--grpc-socket", str(self.socket), "--grpc-addr=", "--metrics-addr=127.0.0.1:9091",
                "--vpp-api-addr", str(vpp), "--vpp-stats-addr=", "--state-file", str(self.state / "state.json"),
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, "LD_PRELOAD": preload, "CLOCKSTEP": str(self._step)},
            )  # fmt: skip
        self.meant = meant

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self.process is not None and self.process.returncode is None

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self.process is not None
        return self.process.pid

    async def ready(self) -> bool:
        """Wait until its API answers. False: it ended instead."""
        assert self.process is not None
        ended = asyncio.create_task(self.process.wait())
        await self._close()
        self._channel = grpc.aio.insecure_channel(
            f"unix:{self.socket}",
            options=[("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 200),
                     ("grpc.initial_reconnect_backoff_ms", 100), ("grpc.min_reconnect_backoff_ms", 100)],
        )  # fmt: skip
        call = asyncio.ensure_future(self._info())
        await asyncio.wait([ended, call], timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done() and not call.done():
            raise Ended("maglevd does not answer")
        if ended.done():
            call.cancel()
            with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
                await call
            return False
        ended.cancel()
        call.result()
        return True

    async def _info(self) -> pb.ServerInfo:
        while True:
            try:
                info: pb.ServerInfo = await self.stub.GetServerInfo(
                    pb.GetServerInfoRequest(), wait_for_ready=True, timeout=START_SECONDS
                )
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.05)  # the socket is that of the process before
                continue
            return info

    @property
    def stub(self) -> pb_grpc.MaglevAsyncStub:
        """Its API, as operator."""
        assert self._channel is not None
        stub: pb_grpc.MaglevAsyncStub = pb_grpc.MaglevStub(self._channel)
        return stub

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it lives."""
        if self.running:
            assert self.process is not None
            self.process.send_signal(number)

    async def gone(self, seconds: float = START_SECONDS) -> bool:
        """Wait for its end. False: it has not ended by then."""
        assert self.process is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.process.wait()
        return not self.running

    def descriptors(self, limit: int) -> int:
        """Set its soft limit of open files; 0: as many as may be. Returns how many are open."""
        _, hard = resource.prlimit(self.pid, resource.RLIMIT_NOFILE)
        opened = len(os.listdir(f"/proc/{self.pid}/fd"))
        resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (opened + limit if limit else hard, hard))
        return opened

    async def _close(self) -> None:
        if self._channel is not None:
            await self._channel.close(None)
            self._channel = None

    async def stop(self) -> None:
        """End it, and unmount its directory."""
        self.meant = True
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        if self.process is not None and not await self.gone(10):
            self.signal(signal.SIGKILL)
            await self.gone()
        await self._close()
        await asyncio.to_thread(subprocess.run, ["umount", "--lazy", str(self.state)], check=False)
