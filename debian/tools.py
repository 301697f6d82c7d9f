"""Shared by the parts of the packaging: places, the two architectures, and running a program."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "debian"
WORK = ROOT / "build" / "pkg"

PYTHON = "3.11"
"""Debian 12's."""

HOME = "usr/lib/vpp-maglev"
"""Where our modules are, and those that come with them. Both packages have files there, and no file is in both."""

DOC = "usr/share/doc"


@dataclass(frozen=True, slots=True)
class Target:
    """An architecture as Debian, the compilers and the wheels call it."""

    arch: str
    triplet: str
    machine: str

    @property
    def platforms(self) -> tuple[str, ...]:
        """Tags of the wheels that Debian 12 (glibc 2.36) can use."""
        newest = tuple(f"manylinux_2_{minor}_{self.machine}" for minor in range(36, 16, -1))
        return (*newest, f"manylinux2014_{self.machine}")


TARGETS = {
    "amd64": Target("amd64", "x86_64-linux-gnu", "x86_64"),
    "arm64": Target("arm64", "aarch64-linux-gnu", "aarch64"),
}


class CannotPackage(Exception):
    """The packages cannot be built; the message says why."""


def run(*command: str | Path, env: dict[str, str] | None = None, cwd: Path = ROOT) -> str:
    """Run a command; returns its output. CannotPackage, with all that it said, if it fails."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise CannotPackage(f"{words[0]} is not installed: make pkg-deps") from None
    if done.returncode:
        raise CannotPackage(f"{' '.join(words[:4])} ...: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout
