"""The lock files: which releases the packages and the image are made of, each file of them by its SHA-256.

``requirements.lock`` has what the packages bundle, ``build.lock`` what builds them. ``make lock`` resolves both from
pyproject.toml. Packages and image are built with pip's ``--require-hashes``, which refuses a file whose hash is not
listed. A lock names releases and hashes, and no place to download them from: the machine that builds knows one.

This module needs the standard library alone, except ``problems``: ``--pins`` runs before anything is installed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUNDLED = ROOT / "debian" / "requirements.lock"
BUILD = ROOT / "debian" / "build.lock"
PYTHON = "3.11"
"""The oldest Python that the locks have to serve: Debian 12's, for which the packages are made."""

HEAD = """\
# Made by `make lock` from pyproject.toml: {what}. Not edited by hand.
# For pip --require-hashes. Every file of a release is listed, so the same lock serves all architectures and Pythons.
"""

ENTRY = re.compile(
    r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;\\]+)(?: ; [^\\]+)?"
    r"(?P<hashes>(?:\s*\\\n\s+--hash=sha256:[0-9a-f]{64})+)$",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Release:
    """One locked release; ``hashes`` are the SHA-256 sums of its files, in hexadecimal."""

    name: str
    version: str
    hashes: frozenset[str]


class BadLock(Exception):
    """A lock file has a line that is not understood, or is missing something; the message names it."""


def canonical(name: str) -> str:
    """A distribution's name as PEP 503 compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read(path: Path) -> dict[str, Release]:
    """The releases of a lock by canonical name. BadLock: a line is neither a comment nor a release with hashes."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = {}
    for match in ENTRY.finditer(text):
        name = canonical(match["name"])
        found[name] = Release(name, match["version"], frozenset(re.findall(r"sha256:(\w+)", match["hashes"])))
    # Neither an option, such as --index-url, which names a place to download from, nor a release without hashes.
    rest = [line for line in ENTRY.sub("", text).splitlines() if line.strip()]
    if rest:
        raise BadLock(f"{path.name}: {rest[0].strip()!r} is no release with hashes")
    return found


def asked(path: Path) -> list[str]:
    """The requirements of pyproject.toml that a lock has to satisfy, as they are written there."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    lines: list[str] = project["project"]["dependencies"] if path == BUNDLED else project["build-system"]["requires"]
    return lines


def problems(path: Path) -> list[str]:
    """Requirements of pyproject.toml that the lock does not satisfy, one line each; empty: it satisfies all."""
    from packaging.requirements import Requirement

    locked = read(path)
    found = []
    for line in asked(path):
        requirement = Requirement(line)
        release = locked.get(canonical(requirement.name))
        if release is None:
            found.append(f"{path.name} has no {requirement.name}: make lock")
        elif not requirement.specifier.contains(release.version, prereleases=True):
            found.append(f"{path.name} has {release.name} {release.version}, pyproject.toml wants {line}: make lock")
    return found


def resolve(path: Path, *, keep: bool) -> None:
    """Resolve and write a lock. With ``keep``, releases that still satisfy pyproject.toml stay as they are."""
    what = "what the packages bundle" if path == BUNDLED else "what builds them"
    with tempfile.TemporaryDirectory() as directory:
        wanted, output = Path(directory) / "pyproject.toml", Path(directory) / path.name
        # As a requirements file it would be named in every comment by its temporary path.
        wanted.write_text("[project]\nname = 'pyproject'\nversion = '0'\ndependencies = " + repr(asked(path)) + "\n")
        if keep and path.exists():
            output.write_bytes(path.read_bytes())
        command = [
            Path(sys.executable).with_name("uv"), "pip", "compile", "--quiet", "--no-config", "--no-header",
            "--universal", f"--python-version={PYTHON}", "--generate-hashes", "--no-annotate", "--no-emit-index-url",
            f"--output-file={output}", *([] if keep else ["--upgrade"]),
            # The tools generate code for the bundled releases, which were resolved first.
            *([f"--constraint={BUNDLED}"] if path == BUILD else []), wanted,
        ]  # fmt: skip
        subprocess.run([str(word) for word in command], cwd=directory, check=True)
        path.write_text(HEAD.format(what=what) + output.read_text(encoding="utf-8"), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0: the locks are written; with ``--pins``, the locked versions are printed as pip's constraints."""
    parser = argparse.ArgumentParser(prog="python -m debian.lock", description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", action="store_true", help="change only what pyproject.toml no longer allows")
    parser.add_argument("--pins", action="store_true", help="print name==version lines, write nothing")
    options = parser.parse_args(arguments)
    if not options.pins:
        for path in (BUNDLED, BUILD):
            resolve(path, keep=options.keep)
    pins = {release.name: release.version for path in (BUNDLED, BUILD) for release in read(path).values()}
    for name, version in sorted(pins.items()):
        print(f"{name}=={version}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
