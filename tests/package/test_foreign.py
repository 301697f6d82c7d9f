"""The packages of the other architecture, in an emulator: versions, a configuration, and a lab without probes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.dataplane import read_weights
from tests.lab.processes import Maglevc, Program, architecture, wait_until
from tests.package.test_install import told

ROOT = Path(__file__).resolve().parent.parent.parent
FOREIGN, EMULATOR = ("amd64", "qemu-x86_64-static") if architecture() == "arm64" else ("arm64", "qemu-aarch64-static")

CONFIG = """\
maglev:
  vpp:
    lb: {ipv4-src-address: 192.0.2.1, startup-min-delay: 0s, startup-max-delay: 5s}
  backends:
    one: {address: 192.0.2.20}
    two: {address: 192.0.2.21}
  frontends:
    www:
      address: 198.51.100.80
      protocol: tcp
      port: 80
      pools:
        - {name: primary, backends: {one: {weight: 100}, two: {weight: 50}}}
"""


@dataclass(frozen=True, slots=True)
class Foreign:
    """The unpacked packages and how to run their programs."""

    directory: Path
    python: Path
    package: Path

    def command(self, program: str, *words: str) -> list[str]:
        """A program of the package in the emulator, with Debian's python3 of that architecture."""
        script = (self.directory / "root" / program).read_text().replace('"/usr/', f'"{self.directory}/root/usr/')
        # What starts python3 anew starts the emulator anew.
        start = f"import sys; sys.executable = {str(self.python)!r}\n"
        place = self.directory / Path(program).name
        place.write_text(start + script)
        return [str(self.python), "-IS", str(place), *words]

    def run(self, program: str, *words: str) -> str:
        """Its output. AssertionError if it fails."""
        done = subprocess.run(
            self.command(program, *words), capture_output=True, text=True, timeout=120, check=False, cwd=self.directory
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def foreign() -> Iterator[Foreign]:
    directory = Path(tempfile.mkdtemp(prefix="maglev-foreign-"))
    system = ROOT / "build" / "pkg" / FOREIGN / "system"
    package = next((ROOT / "build").glob(f"vpp-maglev_*_{FOREIGN}.deb"))
    client = next((ROOT / "build").glob(f"vpp-maglev-client_*_{FOREIGN}.deb"))
    for archive in (client, package):
        subprocess.run(["dpkg-deb", "--extract", archive, directory / "root"], check=True)
    python = directory / "python3"
    python.write_text(f'#!/bin/sh\nexec {EMULATOR} -L {system} {system}/usr/bin/python3 "$@"\n')
    python.chmod(0o755)
    yield Foreign(directory, python, package)
    shutil.rmtree(directory)


def test_programs_tell_the_version(foreign: Foreign) -> None:
    assert told(foreign.package, foreign.run("usr/sbin/maglevd", "--version"))
    assert told(foreign.package, foreign.run("usr/bin/maglevc", "--version"))


def test_a_configuration_is_checked(foreign: Foreign) -> None:
    config = foreign.directory / "maglev.yaml"
    config.write_text(CONFIG)
    assert "1 frontend, 2 backends" in foreign.run("usr/sbin/maglevd", "--check", "--config", str(config))


def test_static_backends_get_their_weights(foreign: Foreign) -> None:
    directory = foreign.directory
    config, api, grpc = directory / "maglev.yaml", directory / "api.sock", directory / "run" / "maglevd.sock"
    config.write_text(CONFIG)
    vppsim: list[str | Path] = [sys.executable, "-m", "maglev.vppsim", "--socket", api]
    stand_in = Program("the stand-in", vppsim, directory / "vppsim.log")
    try:
        stand_in.wait_ready(api.exists)
        flags = ["--config", config, "--grpc-socket", grpc, "--grpc-addr=", "--metrics-addr=", "--vpp-stats-addr="]
        flags += ["--vpp-api-addr", api, "--state-file", directory / "state.json"]
        command = foreign.command("usr/sbin/maglevd", *(str(flag) for flag in flags))
        daemon = Program("maglevd", command, directory / "maglevd.log")
        try:
            daemon.wait_ready(grpc.exists, 120)

            def weights() -> list[int]:
                daemon.expect_running()
                return sorted(weight for vip in read_weights(api).values() for weight in vip.values())

            wait_until("both weights in the stand-in", lambda: weights() == [5, 10], 120)
            assert told(foreign.package, Maglevc(f"unix:{grpc}").ask_json("show", "version")["version"])
            daemon.signal(15)
            assert daemon.wait(30) == 0
        finally:
            daemon.close()
    finally:
        stand_in.close()
