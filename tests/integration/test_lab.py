"""The lab after its tour: things are broken and mended by typing, in a terminal and without one, and the logs stay."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.lab.processes import ROOT

SECONDS = 90.0
"""For a step of the lab; generous, for machines that compile at the same time."""


class LabProcess:
    """``python -m tests.lab``, with a terminal or with pipes; what it prints is collected."""

    def __init__(self, *, terminal: bool) -> None:
        self.text = ""
        self._seen = 0
        self.terminal = terminal
        self._input = -1
        if terminal:
            self._ours, theirs = pty.openpty()
            reads = theirs
        else:
            self._ours, theirs = os.pipe()
            reads, self._input = os.pipe()
        command = [sys.executable, "-u", "-m", "tests.lab"]
        self.process = subprocess.Popen(
            command, cwd=ROOT, start_new_session=True, stdin=reads, stdout=theirs, stderr=theirs
        )
        for descriptor in {reads, theirs}:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        try:
            self.process.wait(SECONDS)
        finally:
            self.process.kill()
            os.close(self._ours)
            if self._input >= 0:
                os.close(self._input)

    def type(self, line: str) -> None:
        """Type a line."""
        os.write(self._ours if self.terminal else self._input, f"{line}\n".encode())

    def end_of_input(self) -> None:
        """Close the pipe that it reads."""
        os.close(self._input)
        self._input = -1

    def read_until(self, pattern: str) -> str:
        """Output from the end of the last call up to and with ``pattern``. AssertionError: it does not come."""
        deadline = time.monotonic() + SECONDS
        while True:
            match = re.search(pattern, self.text[self._seen :])
            if match:
                found = self.text[self._seen : self._seen + match.end()]
                self._seen += match.end()
                return found
            left = deadline - time.monotonic()
            assert left > 0, f"no {pattern!r} in {self.text[self._seen :]!r}"
            if select.select([self._ours], [], [], min(left, 1.0))[0]:
                try:
                    data = os.read(self._ours, 65536)
                except OSError:  # EIO: the process at the other end of the terminal has ended
                    data = b""
                assert data, f"it ended without {pattern!r}: {self.text[self._seen :]!r}"
                self.text += data.decode().replace("\r\n", "\n")


@pytest.fixture(scope="module")
def lab() -> Iterator[LabProcess]:
    """A lab in a terminal, after its tour."""
    with LabProcess(terminal=True) as process:
        process.read_until(r"lab> ")
        yield process


def ask(lab: LabProcess, line: str) -> str:
    """Type a command; what it prints up to the next prompt, without the echo of the line."""
    lab.type(line)
    return lab.read_until(r"\nlab> ").partition("\n")[2]


def test_the_tour_says_where_the_log_is_and_what_can_be_typed(lab: LabProcess) -> None:
    assert re.search(r"log +/.*/build/lab/[-\d]+/maglevd\.log", lab.text)
    for usage in ("stop NAME", "start NAME", "answer NAME STATUS", "status", "help", "quit"):
        assert f"  {usage}" in lab.text


def test_a_server_is_stopped_and_started_with_the_transitions_that_follow(lab: LabProcess) -> None:
    assert "www1: up -> down" in ask(lab, "stop www1")
    assert "stopped: www1\n" in ask(lab, "status")
    assert "www1 is stopped already" in ask(lab, "stop www1")
    assert "www1: down -> up" in ask(lab, "start www1")
    assert "stopped: nothing\n" in ask(lab, "status")


def test_a_web_server_answers_with_an_error_and_well_again(lab: LabProcess) -> None:
    shown = ask(lab, "answer www2 503")
    assert "www2: up -> down" in shown
    assert "503" in shown
    assert "www2 answers 503" in ask(lab, "status")
    assert "www2: down -> up" in ask(lab, "answer www2 200")


def test_vpp_is_lost_and_an_empty_one_is_programmed(lab: LabProcess) -> None:
    assert "what it held is lost" in ask(lab, "stop vpp")
    assert "stopped: vpp\n" in ask(lab, "status")
    assert "mx2: up -> down" in ask(lab, "stop mx2"), "probing goes on"
    assert "programmed its 3 VIPs" in ask(lab, "start vpp")
    assert "mx2: down -> up" in ask(lab, "start mx2")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("break www1", "no command 'break'; there are: stop, start"),
        ("stop", "usage: stop NAME"),
        ("stop dns2", "no server 'dns2'; there are: www1"),
        ("answer mx1 500", "mx1 is no web server"),
        ("answer www1 lots", "'lots' is no HTTP status"),
        ("start vpp", "VPP is running already"),
    ],
)
def test_a_mistake_is_told_and_the_lab_goes_on(lab: LabProcess, line: str, complaint: str) -> None:
    assert complaint in ask(lab, line)


def test_quit_takes_the_lab_down_and_keeps_the_logs(lab: LabProcess) -> None:
    lab.type("quit")
    logs = Path(lab.read_until(r"logs  \S+\n").split()[-1])
    assert lab.process.wait(SECONDS) == 0
    assert logs.is_relative_to(ROOT / "build" / "lab")
    assert "www1" in (logs / "maglevd.log").read_text()
    assert (logs / "vppsim.log").exists()


def test_without_a_terminal_commands_come_by_a_pipe_whose_end_is_not_the_lab_s() -> None:
    with LabProcess(terminal=False) as lab:
        lab.read_until(r"quit +take the lab down\n")
        lab.type("stop www3")
        lab.read_until(r"www3: up -> down")
        lab.type("start www3")
        lab.read_until(r"www3: down -> up")
        lab.end_of_input()
        with pytest.raises(subprocess.TimeoutExpired):
            lab.process.wait(3.0)
        assert "lab> " not in lab.text
        lab.process.send_signal(signal.SIGTERM)
        lab.read_until(r"SIGTERM: the lab is taken down")
        assert lab.process.wait(SECONDS) == 0
