"""The installed programs as processes: maglevd, maglevc and the stand-in for VPP, run as an operator runs them.

Every wait has a deadline; whoever starts a process here gets it ended by ``close`` (SIGTERM, then SIGKILL).
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent

START_SECONDS = 20.0
"""Deadline for a program to be ready; generous, for machines that compile at the same time."""

STOP_SECONDS = 10.0
CALL_SECONDS = 15.0
POLL_SECONDS = 0.05

Event = dict[str, Any]


class LabError(AssertionError):
    """Something did not happen, or not as it should; the message is for people."""


def architecture() -> str:
    """Debian's name of this machine's architecture, which names the build directory."""
    try:
        return subprocess.run(
            ["dpkg", "--print-architecture"], capture_output=True, text=True, check=True, timeout=CALL_SECONDS
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return platform.machine()


def program(name: str) -> Path:
    """Path of an installed program; MAGLEV_PROGRAMS names another directory of them. LabError: it is not there."""
    path = Path(os.environ.get("MAGLEV_PROGRAMS", ROOT / "build" / architecture())) / name
    if not path.exists():
        raise LabError(f"{path} is not there: run 'make' first")
    return path


def wait_until(what: str, condition: Callable[[], bool], seconds: float) -> None:
    """Poll ``condition`` until it holds. LabError: it did not within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            raise LabError(f"waited {seconds:g} s in vain for: {what}")
        time.sleep(POLL_SECONDS)


class Program:
    """A process with its output in a file. It has a session of its own: Ctrl-C in a terminal does not reach it."""

    def __init__(self, name: str, command: Sequence[str | Path], log: Path) -> None:
        self.name = name
        self.log = log
        self.command = [str(word) for word in command]
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=ROOT,
            )

    def output(self) -> str:
        """Everything it has printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def expect_running(self) -> None:
        """LabError, with the end of its output, if it has ended."""
        status = self.process.poll()
        if status is not None:
            tail = "\n".join(self.output().splitlines()[-20:])
            raise LabError(f"{self.name} ended with status {status}; its last words:\n{tail}")

    def wait_ready(self, condition: Callable[[], bool], seconds: float = START_SECONDS) -> None:
        """Poll ``condition`` while the process runs. LabError: it ended, or took too long."""

        def ready() -> bool:
            self.expect_running()
            return condition()

        try:
            wait_until(f"{self.name} to be ready", ready, seconds)
        except LabError as error:
            if self.process.poll() is None:
                tail = "\n".join(self.output().splitlines()[-20:])
                raise LabError(f"{error}; its last words:\n{tail}") from error
            raise

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """Exit status. LabError: it did not end within ``seconds``."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise LabError(f"{self.name} did not end within {seconds:g} s") from error

    def close(self) -> None:
        """End it, the hard way if need be; doing it twice is harmless."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(LabError):
                self.wait()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(STOP_SECONDS)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a maglevc command printed and how it ended."""

    status: int
    stdout: str
    stderr: str


class Maglevc:
    """The installed command line, talking to one daemon."""

    def __init__(self, server: str) -> None:
        self.server = server
        self.path = program("maglevc")

    def command(self, *words: str) -> list[str]:
        """The command line for ``words``, as an operator would type it."""
        return [str(self.path), "--server", self.server, *words]

    def run(self, *words: str, seconds: float = CALL_SECONDS) -> Answer:
        """Run one command, whatever its exit status. LabError: no answer within ``seconds``."""
        try:
            done = subprocess.run(
                self.command(*words),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise LabError(f"maglevc {' '.join(words)}: no answer within {seconds:g} s") from error
        return Answer(done.returncode, done.stdout, done.stderr)

    def ask(self, *words: str) -> str:
        """Output of a command that has to succeed. LabError: it did not."""
        answer = self.run(*words)
        if answer.status != 0:
            raise LabError(
                f"maglevc {' '.join(words)}: exit status {answer.status}\n{answer.stdout}{answer.stderr}".rstrip()
            )
        return answer.stdout

    def ask_json(self, *words: str) -> Any:
        """The same with ``--json``, parsed."""
        return json.loads(self.ask("--json", *words))


class Watch:
    """``maglevc watch events`` in the background: every event that came, in order."""

    def __init__(self, maglevc: Maglevc, *words: str) -> None:
        self._process = subprocess.Popen(
            maglevc.command("watch", "events", *words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._news = threading.Condition()
        self._events: list[Event] = []
        self._bad: list[str] = []
        self._ended = False
        self._reader = threading.Thread(target=self._read, name="watch", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._news:
                try:
                    event = json.loads(line)
                except ValueError:
                    event = None
                if isinstance(event, dict):
                    self._events.append(event)
                else:
                    self._bad.append(line)
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def mark(self) -> int:
        """A place in the stream: ``wait`` and ``since`` look at what came after it."""
        with self._news:
            return len(self._events)

    def since(self, mark: int = 0) -> list[Event]:
        """The events after ``mark``."""
        with self._news:
            return self._events[mark:]

    def wait(self, what: str, matches: Callable[[Event], bool], seconds: float, mark: int = 0) -> Event:
        """The first event after ``mark`` that ``matches``.

        LabError: none within ``seconds``, the stream ended, or a line was no JSON object.
        """
        deadline = time.monotonic() + seconds
        with self._news:
            while True:
                if self._bad:
                    raise LabError(f"watch events printed a line that is no JSON object: {self._bad[0]!r}")
                for index in range(mark, len(self._events)):
                    if matches(self._events[index]):
                        return self._events[index]
                mark = len(self._events)
                left = deadline - time.monotonic()
                if self._ended:
                    raise LabError(f"watch events ended before: {what}\n{self._errors()}".rstrip())
                if left <= 0:
                    raise LabError(f"no event within {seconds:g} s: {what}")
                self._news.wait(left)

    def _errors(self) -> str:
        return self._process.stderr.read() if self._process.stderr is not None else ""

    def end(self, seconds: float = STOP_SECONDS) -> int:
        """Exit status of a watch that ends by itself. LabError: it did not within ``seconds``."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise LabError(f"watch events did not end within {seconds:g} s") from error

    def close(self) -> None:
        """End it as Ctrl-C would; doing it twice is harmless."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(STOP_SECONDS)
        self._reader.join(STOP_SECONDS)
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
