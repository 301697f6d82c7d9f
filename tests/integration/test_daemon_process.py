"""maglevd and maglevc as processes among others: early signals, stray signals, closed descriptors, lost output."""

from __future__ import annotations

import asyncio
import itertools
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest

from maglev.pb import maglev_pb2 as pb
from tests.helpers.daemon import DEADLINE, DaemonProcess, reserved_port

CONFIG = "maglev: {backends: {one: {address: 127.0.31.1}}}"
DAEMON = [sys.executable, "-m", "maglev.daemon.main"]
CLIENT = [sys.executable, "-m", "maglev.cli.main"]

# A command that learns when the daemon's first module runs: by an entry of its table of modules.
TOLD = """
import os, sys, runpy
class Tell:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.write(1, b"x")
sys.meta_path.insert(0, Tell())
sys.argv[0] = "maglevd"
runpy.run_module("maglev.daemon.main", run_name="__main__")
"""


@pytest.fixture
def daemon(tmp_path: Path) -> DaemonProcess:
    return DaemonProcess(tmp_path, CONFIG, "--vpp-api-addr=")


def arguments(daemon: DaemonProcess) -> list[str]:
    """Flags of a daemon that is started by hand."""
    return [
        f"--config={daemon.config}",
        f"--grpc-socket={daemon.socket}",
        "--grpc-addr=",
        f"--metrics-addr=127.0.0.1:{reserved_port()}",
        f"--state-file={daemon.directory / 'state.json'}",
        "--vpp-stats-addr=",
        "--vpp-api-addr=",
    ]


async def at_import(daemon: DaemonProcess, module: str, *numbers: signal.Signals) -> asyncio.subprocess.Process:
    """A daemon that gets these signals when it is about to import ``module``."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", TOLD.format(module=module), *arguments(daemon)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE):
        assert await process.stdout.readexactly(1) == b"x"
    for number in numbers:
        process.send_signal(number)
    return process


EARLY = ("maglev.daemon.program", "maglev.config.load", "uvloop", "grpc")


@pytest.mark.parametrize("module", EARLY)
async def test_an_early_hangup_becomes_a_reload(daemon: DaemonProcess, module: str) -> None:
    process = await at_import(daemon, module, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    assert process.stderr is not None
    lines: list[str] = []
    async with asyncio.timeout(DEADLINE):
        while not any("by=signal" in line for line in lines):
            line = (await process.stderr.readline()).decode()
            assert line, lines
            lines.append(line)
        process.terminate()
        assert await process.wait() == 0
    assert sum("event=reload-requested" in line for line in lines) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("module", EARLY[::3])
async def test_an_early_end_is_a_clean_one(daemon: DaemonProcess, module: str, number: signal.Signals) -> None:
    process = await at_import(daemon, module, number)
    async with asyncio.timeout(DEADLINE):
        _, said = await process.communicate()
    assert process.returncode == 0, said
    assert b"Traceback" not in said


async def test_stray_signals_do_not_end_the_daemon(daemon: DaemonProcess) -> None:
    async with daemon:
        for number in (
            *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO),
            *(signal.SIGPWR, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGRTMIN, signal.SIGRTMAX),
        ):
            daemon.signal(signal.Signals(number))
        daemon.signal(signal.SIGHUP)
        await daemon.logged("by=signal")
        assert await daemon.stop() == 0


async def test_a_reload_without_a_descriptor_says_nothing_about_the_file(daemon: DaemonProcess) -> None:
    async with daemon, daemon.api() as stub:
        await stub.GetServerInfo(pb.GetServerInfoRequest())
        assert daemon.process is not None
        pid = daemon.process.pid
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        # All of the lowest descriptors are in use.
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (5, before[1]))
        for call in (
            lambda: stub.CheckConfig(pb.CheckConfigRequest()),
            lambda: stub.DiffConfig(pb.DiffConfigRequest()),
            lambda: stub.ReloadConfig(pb.ReloadConfigRequest()),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call()
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "too many open files (raise LimitNOFILE of the service)" in str(caught.value.details())
        daemon.signal(signal.SIGHUP)
        line = await daemon.logged("by=signal")
        assert "was not read, and the configuration in force stays" in line
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        assert (await stub.ReloadConfig(pb.ReloadConfigRequest())).ok
        assert 'maglev_config_loads_total{outcome="not_read"} 2' in await daemon.metrics()


async def test_signals_while_it_ends_change_nothing(daemon: DaemonProcess) -> None:
    async with daemon:
        for _ in range(3):
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1):
                daemon.signal(number)
        assert await daemon.wait() == 0


def child_of(pid: int) -> int:
    """The first child that a process starts from now on."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    deadline = time.monotonic() + DEADLINE
    while not (found := children.read_text(encoding="ascii").split()):
        assert time.monotonic() < deadline
    return int(found[0])


async def test_a_hangup_for_all_processes_does_not_end_the_loading_one(daemon: DaemonProcess) -> None:
    async with daemon:
        assert daemon.process is not None
        pid = daemon.process.pid
        daemon.config.write_text(CONFIG + "\n" + "# a comment\n" * 200_000)
        daemon.signal(signal.SIGHUP)
        child = await asyncio.to_thread(child_of, pid)
        status = await asyncio.to_thread(Path(f"/proc/{child}/status").read_text, "ascii")
        assert int(status.split("SigBlk:")[1].split()[0], 16) & 1 << signal.SIGHUP - 1
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(child, number)
        await daemon.logged("by=signal")
        assert not any("config-refused" in line for line in daemon.log)
        assert await daemon.stop() == 0


SUBSETS = [subset for size in (1, 2, 3) for subset in itertools.combinations((0, 1, 2), size)]


def started(command: Sequence[str], closed: Sequence[int]) -> subprocess.Popen[bytes]:
    """A process with some of its standard descriptors closed."""
    closing = " ".join(f"{number}>&-" for number in closed)
    return subprocess.Popen(
        ["/bin/sh", "-c", f'exec "$@" {closing}', "sh", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.parametrize("closed", SUBSETS, ids=lambda subset: "".join(map(str, subset)))
async def test_closed_descriptors_are_no_sockets(daemon: DaemonProcess, closed: tuple[int, ...]) -> None:
    def close() -> None:
        for number in closed:
            os.close(number)

    await daemon.spawn(close)
    await daemon.notice("READY=1")
    assert daemon.process is not None
    for number in closed:
        assert os.readlink(f"/proc/{daemon.process.pid}/fd/{number}") == "/dev/null"
    assert "maglev_log_lost_total" in await daemon.metrics()
    assert await daemon.stop() == 0
    assert 2 in closed or any("event=ready" in line for line in daemon.log)


@pytest.mark.parametrize("closed", SUBSETS, ids=lambda subset: "".join(map(str, subset)))
@pytest.mark.parametrize("command", [[*DAEMON, "--version"], [*CLIENT, "--version"]], ids=["maglevd", "maglevc"])
def test_a_closed_output_is_an_error_of_its_own(command: list[str], closed: tuple[int, ...]) -> None:
    process = started(command, closed)
    out, err = process.communicate(timeout=DEADLINE)
    if 1 not in closed:
        assert process.returncode == 0
        assert out.startswith(b"maglev")
        return
    assert process.returncode == 74
    if 2 not in closed:
        assert err.endswith(b": cannot write to standard output: Bad file descriptor\n")
        assert err.count(b"\n") == 1


async def finished(command: Sequence[str], redirection: str) -> tuple[int, bytes]:
    """Exit status and standard error of a command whose output goes somewhere (in the shell's words)."""
    process = await asyncio.create_subprocess_exec(
        *("/bin/bash", "-c", f'exec "$@" {redirection}', "bash", *command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    async with asyncio.timeout(DEADLINE):
        _, said = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said


WORDS = (
    "--help",
    "--version",
    "show version",
    "show frontends",
    "show backends",
    "--json show backends",
    "--json show version",
    "show backends one",
    "--complete show b",
    "watch events num 1",
    "set backend one drain",
)


async def test_a_full_disk_behind_the_output_of_the_command_line(daemon: DaemonProcess) -> None:
    async with daemon:
        commands = [[*CLIENT, f"--server=unix:{daemon.socket}", *words.split()] for words in WORDS]
        # A script of commands, and a separate shell for each.
        for many in (commands[:6], commands[6:]):
            for status, said in await asyncio.gather(*(finished(one, ">/dev/full") for one in many)):
                assert (status, said) == (74, b"maglevc: cannot write to standard output: No space left on device\n")
        nobody = [*CLIENT, f"--server=unix:{daemon.socket}", "show", "backends", "nobody"]
        assert await finished(nobody, ">/dev/full 2>/dev/full") == (1, b"")
        assert await finished([*CLIENT, "--nonsense"], "2>/dev/full") == (2, b"")
        assert await finished(commands[4], ">/dev/full 2>/dev/full") == (74, b"")
        assert await finished(commands[4], ">/dev/full 2>&-") == (74, b"")
        # A reader that has had enough is not an error.
        assert await finished(commands[0], "> >(exec true)") == (0, b"")
        assert await daemon.stop() == 0


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--check"], 74),
        (["--check", "--json"], 74),
        (["--help"], 74),
        (["--version"], 74),
        (["--nonsense"], 64),
    ],
    ids=("check", "check-json", "help", "version", "usage"),
)
async def test_a_full_disk_behind_the_output_of_the_daemon(
    daemon: DaemonProcess, words: list[str], status: int
) -> None:
    command = [*DAEMON, f"--config={daemon.config}", *words]
    got, said = await finished(command, ">/dev/full")
    assert got == status
    assert b"Traceback" not in said
    if status == 74:
        assert said.endswith(b"maglevd: cannot write to standard output: No space left on device\n")
    assert await finished(command, ">/dev/full 2>/dev/full") == (status, b"")


@pytest.mark.parametrize(
    ("text", "status"), [("[", 1), ("maglev: {backends: {a: {address: 192.0.2.1, healthcheck: x}}}", 2)]
)
async def test_a_refused_file_keeps_its_status_whatever_cannot_be_written(
    daemon: DaemonProcess, text: str, status: int
) -> None:
    daemon.config.write_text(text)
    command = [*DAEMON, f"--config={daemon.config}", "--check"]
    for redirection in ("2>/dev/full", ">/dev/full 2>/dev/full", "2>&-", ">&- 2>&-"):
        assert await finished(command, redirection) == (status, b""), redirection


async def test_a_daemon_whose_log_cannot_be_written_serves_and_ends_cleanly(daemon: DaemonProcess) -> None:
    def full() -> None:
        os.dup2(os.open("/dev/full", os.O_WRONLY), 2)

    await daemon.spawn(full)
    await daemon.notice("READY=1")
    assert "maglev_log_lost_total 0" not in await daemon.metrics()
    assert await daemon.stop() == 0
