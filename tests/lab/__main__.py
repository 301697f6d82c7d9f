"""The tour: `make run` shows a failover on this machine, from a probe to a weight in the dataplane.

``python -m tests.lab [--once]``: with ``--once`` it ends after the tour, with status 0 if everything that it showed
was as it should be; without it the lab stays until Ctrl-C, and takes commands that break things. It leaves nothing
behind but the logs, in a directory of their own below build/lab.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tests.lab.console import Console
from tests.lab.events import BackendChange, backend_change
from tests.lab.lab import Lab
from tests.lab.processes import ROOT, LabError, Watch

CONFIGURATION = Path(__file__).with_name("maglev.yaml")
LOGS = ROOT / "build" / "lab"
KEPT_RUNS = 10
"""Directories of logs that are kept, the newest."""

WIDTH = 78
VERDICT_SECONDS = 20.0
"""Deadline of a verdict: three probes of half a second, and patience for a busy machine."""


def say(text: str) -> None:
    """A paragraph of the tour."""
    print("\n" + textwrap.fill(" ".join(text.split()), WIDTH), flush=True)


def show(command: str, output: str) -> None:
    """A command and what it printed, indented."""
    print(f"\n  $ {command}\n" + textwrap.indent(output.rstrip(), "  "), flush=True)


class Tour:
    """The steps of the tour, each of which checks what it shows."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.watch: Watch | None = None

    def close(self) -> None:
        """End the watch."""
        if self.watch is not None:
            self.watch.close()

    def maglevc(self, *words: str) -> str:
        """Run and show a command of maglevc."""
        if words[:2] == ("show", "frontends") and len(words) == 3:
            self.lab.wait_table(words[2], VERDICT_SECONDS)
        output = self.lab.maglevc.ask(*words)
        show(f"maglevc {' '.join(words)}", output)
        return output

    def start(self) -> None:
        """Bring everything up and show it."""
        lab = self.lab
        if lab.real_vpp:
            say(f"A real VPP, at {lab.api_socket}.")
        else:
            say("A VPP without VPP: the stand-in speaks the binary API of the lb plugin on a Unix socket.")
        lab.start_stand_in()
        say("Three web servers, two mail servers and two addresses to ping, on this machine's loopback:")
        for name in ("www1", "www2", "www3", "mx1", "mx2"):
            server = lab.servers[name]
            print(f"    {name:<6} {server.address}:{server.port}")
        for wanted, port in lab.moved_ports.items():
            print(f"    (port {wanted} is taken here, {port} takes its place)")
        say(f"And maglevd with {CONFIGURATION.relative_to(ROOT)}.")
        lab.start_maglevd(dataplane=True)
        self.watch = Watch(lab.maglevc)
        for name in ("www1", "www2", "www3", "mx1", "mx2", "dns1", "dns2"):
            self.expect_backend(name, "up")
        lab.wait_weights("www", {"www1": 100, "www2": 50, "www3": 0}, VERDICT_SECONDS)
        say("Every backend has passed its check:")
        self.maglevc("show", "frontends")
        self.maglevc("show", "frontends", "www")
        say("www3 is up too, and gets nothing as long as the primary pool has a server.")
        self.dataplane("www", {"www1": 10, "www2": 5, "www3": 0})

    def fail(self) -> None:
        """One server fails, then its pool."""
        lab = self.lab
        say("---- www1 stops: its port is closed, connections are refused.")
        self.change(["www1"], "down")
        lab.wait_weights("www", {"www1": 0, "www2": 50, "www3": 0}, VERDICT_SECONDS)
        self.maglevc("show", "frontends", "www")
        self.dataplane("www", {"www1": 0, "www2": 5, "www3": 0})
        say("---- www2 stops as well: the primary pool is empty, the fallback takes over.")
        self.change(["www2"], "down")
        lab.wait_weights("www", {"www1": 0, "www2": 0, "www3": 100}, VERDICT_SECONDS)
        self.maglevc("show", "frontends", "www")
        self.dataplane("www", {"www1": 0, "www2": 0, "www3": 10})

    def recover(self) -> None:
        """Both come back, and the fallback steps back."""
        lab = self.lab
        say("---- Both start again, and after two good probes each the fallback steps back.")
        self.change(["www1", "www2"], "up")
        lab.wait_weights("www", {"www1": 100, "www2": 50, "www3": 0}, VERDICT_SECONDS)
        self.maglevc("show", "frontends", "www")
        self.dataplane("www", {"www1": 10, "www2": 5, "www3": 0})

    def change(self, names: Sequence[str], state: str) -> None:
        """Stop or start servers, and show the transition that follows."""

        def act() -> None:
            for name in names:
                (self.lab.servers.start if state == "up" else self.lab.servers.stop)(name)

        print()
        self.follow(act, names, state)

    def follow(self, act: Callable[[], None], names: Sequence[str], state: str) -> None:
        """Do something, and show the transitions of backends to ``state`` that follow. LabError: one did not come."""
        assert self.watch is not None
        mark = self.watch.mark()
        act()
        for name in names:
            change = self.expect_backend(name, state, mark)
            line = f"{change.name}: {change.before} -> {change.after}  {change.code}  {change.detail}"
            print("  " + line.rstrip(), flush=True)

    def expect_backend(self, name: str, state: str, mark: int = 0) -> BackendChange:
        """The event that says that backend ``name`` is ``state``."""
        assert self.watch is not None
        event = self.watch.wait(
            f"backend {name} is {state}",
            lambda event: (
                (change := backend_change(event)) is not None and (change.name, change.after) == (name, state)
            ),
            VERDICT_SECONDS,
            mark,
        )
        change = backend_change(event)
        assert change is not None
        return change

    def dataplane(self, frontend: str, expected: dict[str, int]) -> None:
        """Wait until the stand-in holds the ``expected`` weights of a frontend, and show them."""
        self.lab.wait_programmed(frontend, expected, VERDICT_SECONDS)
        done = subprocess.run(
            self.lab.show_command(), capture_output=True, text=True, timeout=VERDICT_SECONDS, check=True
        )
        head = f"{self.lab.vips[frontend]}  "
        block = itertools.takewhile(
            lambda line: line.startswith((head, " ")),
            itertools.dropwhile(lambda line: not line.startswith(head), done.stdout.splitlines()),
        )
        show("python -m maglev.vppsim show", "\n".join(block))

    def stay(self) -> None:
        """Print what can be done here, and do it until the lab is ended."""
        lab = self.lab
        shell = " ".join(lab.maglevc.command()).replace(f"{ROOT}/", "")
        say("The lab stays until Ctrl-C. In another terminal:")
        print(f"\n  # the shell; Tab completes, ? helps\n  {shell}")
        print(f"  # what happens, as it happens\n  {shell} watch events")
        print(f"  {' '.join(lab.show_command()).replace(f'{ROOT}/', '')}")
        print(f"  curl http://127.0.0.1:{lab.metrics_port}/metrics")
        print(f"\n  configuration  {lab.config_file}\n  log            {lab.logs / 'maglevd.log'}")
        say("Here, things can be broken and mended:")
        console = Console(self)
        print()
        console.help()
        print(flush=True)
        console.run()


class Ended(BaseException):
    """A signal asks the lab to end. Like KeyboardInterrupt it is nobody's to handle on the way out."""


def ignore_signals() -> None:
    """From here on nothing interrupts."""
    for number in ENDING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end(number: int, frame: FrameType | None) -> NoReturn:
    """Signal handler: leave through every ``finally``, once."""
    ignore_signals()
    raise Ended(signal.Signals(number).name)


def new_logs() -> Path:
    """A directory for the logs of this run; the oldest ones of other runs go."""
    LOGS.mkdir(parents=True, exist_ok=True)
    for old in sorted(LOGS.iterdir())[: -KEPT_RUNS + 1]:
        shutil.rmtree(old, ignore_errors=True)
    return LOGS / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"


ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 the tour went as it should (and was ended, without ``--once``), 1 it did not."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description="vpp-maglev's lab")
    parser.add_argument("--once", action="store_true", help="end after the tour instead of waiting for Ctrl-C")
    parser.add_argument("--vpp", type=Path, help="API socket of a real VPP, to be driven instead of the stand-in")
    options = parser.parse_args(arguments)
    for number in ENDING_SIGNALS:
        signal.signal(number, end)
    toured = False
    logs = new_logs()
    stay = "the VIPs stay in VPP, and " if options.vpp else ""
    left = f"{stay}nothing is left behind but the logs"
    began = time.monotonic()
    try:
        with Lab(CONFIGURATION, options.vpp, logs) as lab, contextlib.closing(Tour(lab)) as tour:
            try:
                tour.start()
                tour.fail()
                tour.recover()
                toured = True
                if not options.once:
                    tour.stay()
                status = lab.stop_maglevd()
                if status != 0:
                    raise LabError(f"maglevd ended with status {status}")
            finally:
                ignore_signals()  # taking down is not interrupted
        say(f"Everything was as it should be; {time.monotonic() - began:.1f} s; {left}.")
        print(f"\n  logs  {logs}")
    except Ended as ended:
        say(f"{ended}: the lab is taken down, {left}.")
        print(f"\n  logs  {logs}")
        return 0 if toured and not options.once else 1
    except (LabError, OSError) as error:
        print(f"\nThe lab failed: {error}\n\n  logs  {logs}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
