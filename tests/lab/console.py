"""The commands that break and mend things after the tour: they stop and start the servers and the stand-in for VPP.

The console reads them from standard input, a line each, and each shows its consequences. A terminal gets a prompt, and
Ctrl-D ends the lab there; the end of a file or a pipe does not, so that a lab without a terminal stays until a signal.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tests.lab.dataplane import read_weights
from tests.lab.lab import Lab
from tests.lab.processes import LabError, wait_until

PROMPT = "lab> "
LOOK_SECONDS = 1.0
"""How often the processes are looked at while nothing is typed."""

RECOVERY_SECONDS = 30.0
"""Deadline for an empty VPP to be programmed: the daemon's next attempt to connect, and a full sync."""


class Stage(Protocol):
    """The part of the tour that the console uses."""

    lab: Lab

    def follow(self, act: Callable[[], None], names: Sequence[str], state: str) -> None:
        """Do something, and show the transitions of backends to ``state`` that follow. LabError: one did not come."""


class Misused(Exception):
    """A command that is not understood; the message is for people."""


@dataclass(frozen=True, slots=True)
class Verb:
    """A command: how it is written, what it does, and how many words may follow its name."""

    usage: str
    help: str
    words: int
    run: Callable[..., None]


class Console:
    """Reads commands and carries them out, until `quit` or the end of a terminal."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._lab = stage.lab
        self._ended = False
        self._waiting = b""
        self._verbs = {
            "stop": Verb("stop NAME", "close the port of a server; NAME vpp: end VPP's stand-in", 1, self._stop),
            "start": Verb("start NAME", "open it again; NAME vpp: start an empty stand-in", 1, self._start),
            "answer": Verb("answer NAME STATUS", "let a web server answer with an HTTP status", 2, self._answer),
            "status": Verb("status", "what is stopped", 0, self._status),
            "help": Verb("help", "this list", 0, self.help),
            "quit": Verb("quit", "take the lab down", 0, self._quit),
        }

    def help(self) -> None:
        """The list of commands."""
        width = max(len(verb.usage) for verb in self._verbs.values())
        for verb in self._verbs.values():
            print(f"  {verb.usage:<{width}}  {verb.help}")

    def run(self) -> None:
        """Until `quit`, or Ctrl-D in a terminal. LabError: a process of the lab ended by itself."""
        for line in self._lines():
            self.execute(line)
            if self._ended:
                return

    def execute(self, line: str) -> None:
        """Carry out one command; what is wrong with it, or did not follow from it, is printed."""
        name, *words = line.split() or [""]
        if not name:
            return
        try:
            verb = self._verbs.get(name)
            if verb is None:
                raise Misused(f"no command {name!r}; there are: {', '.join(self._verbs)}")
            if len(words) != verb.words:
                raise Misused(f"usage: {verb.usage}")
            verb.run(*words)
        except (Misused, LabError, OSError) as error:
            print(f"  {error}")

    # -- reading

    def _lines(self) -> Iterator[str]:
        """The lines of standard input as they come, while the processes of the lab are looked at."""
        terminal = sys.stdin.isatty()
        # Not sys.stdin.readline: it reads ahead into a buffer, and select does not see that.
        descriptor: int | None = sys.stdin.fileno()
        while True:
            if terminal and b"\n" not in self._waiting:
                print(PROMPT, end="", flush=True)
            while b"\n" not in self._waiting:
                self._expect_running()
                ready = select.select([descriptor] if descriptor is not None else [], [], [], LOOK_SECONDS)[0]
                if not ready or descriptor is None:
                    continue
                data = os.read(descriptor, 4096)
                if not data and terminal:
                    print()
                    return
                if not data:
                    descriptor = None
                self._waiting += data
            line, _, self._waiting = self._waiting.partition(b"\n")
            yield line.decode(errors="replace")
            sys.stdout.flush()

    def _expect_running(self) -> None:
        for process in (self._lab.daemon, self._lab.stand_in):
            if process is not None:
                process.expect_running()

    # -- commands

    def _server(self, name: str) -> str:
        """The name of a server of the lab. Misused: it is none."""
        names = [server.name for server in self._lab.servers]
        if name not in names:
            raise Misused(f"no server {name!r}; there are: {', '.join([*names, 'vpp'])}")
        return name

    def _stop(self, name: str) -> None:
        if name == "vpp":
            self._stop_vpp()
            return
        if not self._lab.servers[self._server(name)].running:
            raise Misused(f"{name} is stopped already")
        self._stage.follow(lambda: self._lab.servers.stop(name), [name], "down")

    def _start(self, name: str) -> None:
        if name == "vpp":
            self._start_vpp()
            return
        if self._lab.servers[self._server(name)].running:
            raise Misused(f"{name} is running already")
        self._stage.follow(lambda: self._lab.servers.start(name), [name], "up")

    def _answer(self, name: str, status: str) -> None:
        server = self._lab.servers[self._server(name)]
        if not server.http:
            raise Misused(f"{name} is no web server")
        if not (status.isdecimal() and 100 <= int(status) <= 599):
            raise Misused(f"{status!r} is no HTTP status")
        if not server.running:
            raise Misused(f"{name} is stopped: start it first")
        before = server.status
        if (before == 200) == (int(status) == 200):
            self._lab.servers.answer(name, int(status))
            print(f"  {name} answers {status} now, and answered {before} before: nothing follows")
            return
        state = "up" if status == "200" else "down"
        self._stage.follow(lambda: self._lab.servers.answer(name, int(status)), [name], state)

    def _stop_vpp(self) -> None:
        if self._lab.real_vpp:
            raise Misused("a real VPP is not stopped from here")
        if self._lab.stand_in is None:
            raise Misused("VPP's stand-in is stopped already")
        self._lab.stop_stand_in()
        print(
            "  VPP's stand-in has ended, and what it held is lost. maglevd goes on probing.\n"
            "  `start vpp` starts an empty one."
        )

    def _start_vpp(self) -> None:
        lab = self._lab
        if lab.real_vpp or lab.stand_in is not None:
            raise Misused("VPP is running already")
        lab.start_stand_in()

        def programmed() -> bool:
            self._expect_running()
            held = read_weights(lab.api_socket)
            return all(held.get(vip) for vip in lab.vips.values())

        wait_until("all VIPs with their servers in the new VPP", programmed, RECOVERY_SECONDS)
        print(f"  An empty stand-in has started, and maglevd has programmed its {len(lab.vips)} VIPs.")

    def _status(self) -> None:
        lab = self._lab
        stopped = [server.name for server in lab.servers if not server.running]
        answers = [f"{server.name} answers {server.status}" for server in lab.servers if server.status != 200]
        vpp = ["vpp"] if lab.stand_in is None and not lab.real_vpp else []
        print(f"  stopped: {', '.join(stopped + vpp) or 'nothing'}")
        for line in answers:
            print(f"  {line}")

    def _quit(self) -> None:
        self._ended = True
