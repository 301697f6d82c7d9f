"""Every example of the books, executed as written: on a separate machine, with the daemon and VPP's stand-in."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.helpers.books import BOOKS, Block, blocks, masked, transcript
from tests.helpers.machine import Machine
from tests.lab.lab import table_follows
from tests.lab.processes import ROOT, Maglevc, Watch, architecture, wait_until

SITE = ROOT / "tests" / "data" / "books" / "site.yaml"
DEADLINE = 30.0
# Those of the configurations in the books; on each of them a web server answers.
ADDRESSES = ("192.0.2.1/32", "192.0.2.20/32", "192.0.2.21/32", "2001:db8:1::10/128", "2001:db8:1::11/128")
PROGRAMS = ROOT / "build" / architecture()


class Reader:
    """A reader who carries out a book."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.maglevc = Maglevc(f"unix:{machine.root}/run/vpp-maglev/maglevd.sock")

    def prepare(self) -> None:
        """The setting that a book assumes: the programs, web servers, VPP, and a configured site."""
        machine = self.machine
        (machine.home / "build").symlink_to(ROOT / "build")
        (machine.root / "etc/vpp-maglev").mkdir(exist_ok=True)
        shutil.copy(SITE, machine.root / "etc/vpp-maglev/maglev.yaml")
        machine.run(f"export PATH={PROGRAMS}:$PATH PYTHONPATH={ROOT}:{ROOT}/src; mkdir -p /run/vpp web")
        (machine.home / "web/healthz").write_text("ok\n")
        for address in ADDRESSES[1:]:
            bind = address.partition("/")[0]
            machine.start(f"{sys.executable} -m http.server --bind {bind} --directory web 80")
        machine.start(
            f"{sys.executable} -m maglev.vppsim --socket /run/vpp/api.sock --stats-socket /run/vpp/stats.sock"
        )
        wait_until("VPP listens", lambda: (machine.root / "run/vpp/stats.sock").exists(), DEADLINE)
        # Blocks that only look begin with what the service would have done.
        self.start("maglevd")

    def start(self, command: str) -> None:
        """Start the daemon, and wait until it knows all its backends and VPP has what it should."""
        self.machine.start_daemon(command)
        path = re.search(r"--config (\S+)", command)
        name = path[1] if path is not None else "/etc/vpp-maglev/maglev.yaml"
        file = self.machine.root / name[1:] if name.startswith("/") else self.machine.home / name
        maglev = yaml.safe_load(file.read_text())["maglev"]
        with contextlib.closing(Watch(self.maglevc, "backend")) as watch:
            for backend in maglev["backends"]:
                watch.wait(f"{backend} is up", lambda event, backend=backend: is_up(event, backend), DEADLINE)  # type: ignore[misc]
        if maglev["vpp"]["lb"].get("startup-min-delay") == "0s":
            wait_until("VPP is in sync", self.in_sync, DEADLINE)

    def in_sync(self) -> bool:
        """Whether VPP has every VIP as it should be."""
        answer = self.maglevc.run("--json", "show", "vpp", "lb", "state")
        return answer.status == 0 and all(
            vip["in_sync"] and vip["present"] for vip in json.loads(answer.stdout)["vips"]
        )

    def follows(self, frontend: str) -> bool:
        """Whether VPP has shown a table for the weights of a frontend; it is read back after the writes."""
        answer = self.maglevc.run("--json", "show", "frontends", frontend)
        return answer.status == 0 and table_follows(json.loads(answer.stdout))

    def counted(self) -> bool:
        """Whether VPP's counters have been read; that is done every few seconds."""
        return self.maglevc.run("show", "vpp", "lb", "counters").status == 0

    def do(self, block: Block) -> None:
        """Do what a block says, and compare."""
        if block.language == "yaml":
            name = re.match(r"# (\S+\.yaml)\n", block.text)
            if name is not None or block.text.startswith("maglev:"):
                (self.machine.home / (name[1] if name is not None else "maglev.yaml")).write_text(block.text)
            return
        for command, expected in transcript(block):
            if re.match(r"maglevd(?!.* --(check|version|help))", command):
                self.start(command)
                continue
            if (shown := re.match(r"maglevc show frontends (\S+)$", command)) is not None:
                wait_until("VPP has shown the table", lambda name=shown[1]: self.follows(name), DEADLINE)  # type: ignore[misc]
            if "counters" in command:
                wait_until("the counters are read", self.counted, DEADLINE)
            answer = self.machine.run(command)
            if block.language == "sh":
                assert answer.status == 0, f"{block.place}: {command}:\n{answer.output}"
                continue
            matches = re.fullmatch(masked(expected), masked(answer.output, pattern=False))
            assert matches, f"{block.place}: {command} printed\n{answer.output}"


def is_up(event: dict[str, dict[str, str]], name: str) -> bool:
    """Whether an event of the watch says that a backend is up."""
    told = event.get("backend", {})
    return told.get("name") == name and told.get("to_state") == "up"


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    with Machine(tmp_path, ADDRESSES, hosts=("lb1.example.org",)) as machine:
        one = Reader(machine)
        one.prepare()
        yield one
        machine.stop_daemon()


def test_the_tour_shows_what_the_readme_says() -> None:
    told = next(block for block in blocks(ROOT / "README.md") if "www2: up -> down" in block.text)
    done = subprocess.run(
        [sys.executable, "-m", "tests.lab", "--once"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    shown = masked(done.stdout, pattern=False)
    for part in told.text.split("\n\n"):
        assert re.search(masked(part), shown), f"{part}\n\nis not in\n\n{done.stdout}"


EXECUTED = [book for book in BOOKS if any(block.language in ("sh", "console") for block in blocks(book))]


@pytest.mark.parametrize("book", EXECUTED, ids=lambda book: book.name)
def test_every_example_of_a_book_does_what_it_says(book: Path, reader: Reader) -> None:
    for block in blocks(book):
        if block.language in ("yaml", "sh", "console"):
            reader.do(block)
