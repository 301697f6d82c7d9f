"""A machine for what stands in a book: a shell with mounts, processes and a network of its own, beside this system's.

There ``/etc`` is a copy, ``/run`` and ``/var/lib`` are empty, and addresses for documentation are on the loopback: so
commands can be typed as they are written, default paths and all, and touch nothing here.
"""

from __future__ import annotations

import os
import re
import select
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

DEADLINE = 30.0
"""Seconds for one command, and for a daemon to be ready; far more than it takes."""

_SETUP = """
# A copy of somebody's network namespace here would keep it alive when he removes it.
umount --recursive --lazy /run/netns 2>/dev/null
set -e
for place in /etc /run /var/lib; do mount --bind "$PWD/root$place" "$place"; done
ip link set lo up
for address in {addresses}; do ip addr add "$address" dev lo nodad 2>/dev/null || ip addr add "$address" dev lo; done
{hosts}
set +e
cd "$PWD/home"
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """The status of a command, and its output on both streams."""

    status: int
    output: str


class Machine:
    """A context manager; with it everything that was started ends."""

    def __init__(self, directory: Path, addresses: Sequence[str], hosts: Sequence[str] = ()) -> None:
        """``directory`` becomes its disk, ``addresses`` are its own, ``hosts`` are names that lead to itself."""
        self._directory = directory
        self._addresses = addresses
        self._hosts = hosts
        self.home = directory / "home"
        self.root = directory / "root"
        self._daemon = 0
        self._started = 0

    def __enter__(self) -> Self:
        self.home.mkdir()
        (self.root / "run").mkdir(parents=True)
        (self.root / "var/lib").mkdir(parents=True)
        subprocess.run(["cp", "-a", "/etc", self.root], check=True, timeout=DEADLINE)
        self._notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notices.bind(str(self._directory / "notify"))
        self._notices.settimeout(DEADLINE)
        keep = {name: value for name, value in os.environ.items() if not name.startswith(("MAGLEV_", "XDG_"))}
        self._shell = subprocess.Popen(
            [
                "unshare", "--mount", "--propagation", "slave", "--net", "--pid", "--fork", "--kill-child",
                "--mount-proc", "bash", "--norc", "--noprofile",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self._directory,
            env={**keep, "HOME": str(self.home), "NO_COLOR": "1"},
        )  # fmt: skip
        hosts = "\n".join(f"echo '127.0.0.1 {name}' >> /etc/hosts" for name in self._hosts)
        ready = self.run(_SETUP.format(addresses=" ".join(self._addresses), hosts=hosts))
        assert ready.status == 0, ready.output
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The shell is process 1 of its namespace: with it all of them go.
        self._shell.kill()
        self._shell.communicate(timeout=DEADLINE)
        self._notices.close()

    def run(self, command: str) -> Answer:
        """Type a command, wait for its end. AssertionError: it does not end in time, or the shell has ended."""
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.write(f"{{ {command}\n}} </dev/null\nprintf '\\036%d\\036' $?\n".encode())
        self._shell.stdin.flush()
        said = b""
        deadline = time.monotonic() + DEADLINE
        while (end := re.search(rb"\x1e(\d+)\x1e$", said)) is None:
            left = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([self._shell.stdout], [], [], left)
            assert ready, f"{command}: does not end; so far it printed:\n{said.decode(errors='replace')}"
            more = os.read(self._shell.stdout.fileno(), 65536)
            assert more, f"{command}: the shell has ended:\n{said.decode(errors='replace')}"
            said += more
        return Answer(int(end[1]), said[: end.start()].decode())

    def start(self, command: str) -> int:
        """Start a command that goes on; its process id. Its output goes to ``log``."""
        self._started += 1
        log = self._directory / f"{self._started}.log"
        return int(self.run(f"{command} >{log} 2>&1 & echo $!").output)

    def log(self) -> str:
        """The output of the command that was started last."""
        return (self._directory / f"{self._started}.log").read_text()

    def start_daemon(self, command: str) -> None:
        """Start maglevd in place of the one before, and wait until it is ready."""
        self.stop_daemon()
        self._daemon = self.start(f"NOTIFY_SOCKET={self._directory}/notify {command}")
        while True:
            try:
                notice = self._notices.recv(4096)
            except TimeoutError:
                raise AssertionError(f"{command}: is not ready:\n{self.log()}") from None
            if b"READY=1" in notice:
                return

    def stop_daemon(self) -> None:
        """End maglevd as its service would. AssertionError: with another status than 0."""
        if self._daemon:
            ended = self.run(f"kill {self._daemon}; wait {self._daemon}")
            assert ended.status == 0, self.log()
            self._daemon = 0
