"""The modules that come with us: unpacked from the wheels of the lock, checked, and shared out between the packages.

Both packages install into one directory. The client's package has what ``maglev.cli`` imports, of our own modules and
of the others'. The daemon's package has the rest, and depends on the client's of the same version.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from packaging.requirements import Requirement

from debian import lock
from debian.tools import PYTHON, ROOT, CannotPackage, Target, run

SOURCE = ROOT / "src" / "maglev"

# Only a compiler or a type checker reads these.
NEEDLESS_SUFFIXES = frozenset((".pyx", ".pxd", ".pxi", ".c", ".h", ".pyi", ".pyc", ".typed"))
# Only the authors' tests read these.
NEEDLESS_DIRECTORIES = frozenset(("tests", "testdata"))
# Adapters to frameworks that we do not use, and an extension that Python code replaces.
NEEDLESS_PARTS = (
    "prometheus_client/aiohttp",
    "prometheus_client/bridge",
    "prometheus_client/django",
    "prometheus_client/twisted",
    "prompt_toolkit/contrib",
    # 1.4 MB to measure the width of text faster. Without it wcwidth does that in Python, fast enough for a prompt.
    "wcwidth/_wcwidth_c.",
)

# Shared modules import these within functions that only the daemon calls.
DAEMON_ALONE = frozenset(("re2",))

LICENCE = re.compile(r"(?i)(licen[cs]e|copying|notice|authors)")


# ------------------------------------------------------------------------------------------------------------ imports


@dataclass(slots=True)
class Imports:
    """Imports of a part of our modules: ``ours`` as paths below src/maglev, ``others`` as dotted names."""

    ours: set[Path] = field(default_factory=set)
    others: set[str] = field(default_factory=set)


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything a module may import, also within functions. For `from a import b`: ``a.b``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imported_names(node)


def module_files(name: str) -> set[Path]:
    """The files of ours that an import of the dotted name runs, packages included. CannotPackage: it is compiled."""
    files = set()
    place = Path()
    for part in ["", *name.split(".")[1:]]:
        place = place / part
        if (SOURCE / place / "__init__.py").exists():
            files.add(place / "__init__.py")
        elif (SOURCE / place.with_suffix(".py")).exists():
            files.add(place.with_suffix(".py"))
        elif list(SOURCE.glob(f"{place}.pyi")):
            raise CannotPackage(f"maglevc would import {name}, which is compiled: that is in the daemon's package")
        else:
            # A name within the module before it, or _version, which the build writes.
            break
    return files


def client_imports() -> Imports:
    """Imports of maglevc with their own imports: the command line, its messages, and modules of other rooms."""
    found = Imports()
    waiting = [path.relative_to(SOURCE) for room in ("cli", "pb") for path in (SOURCE / room).rglob("*.py")]
    while waiting:
        path = waiting.pop()
        if path in found.ours:
            continue
        found.ours.add(path)
        for name in imported_names(ast.parse((SOURCE / path).read_bytes())):
            if name.split(".")[0] == "maglev":
                waiting.extend(module_files(name))
            elif name.split(".")[0] not in sys.stdlib_module_names | DAEMON_ALONE:
                found.others.add(name)
    return found


# ------------------------------------------------------------------------------------------------------------- wheels


class Staged:
    """The wheels of the lock for one target, unpacked into a directory of their own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._distributions = {
            lock.canonical(one.name): one for one in importlib.metadata.distributions(path=[str(directory)])
        }

    @classmethod
    def unpack(cls, target: Target, locked: Path, into: Path) -> Staged:
        """Download and unpack. CannotPackage: a wheel is missing or has a hash that is not locked."""
        shutil.rmtree(into, ignore_errors=True)
        run(
            sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
            "--no-compile", "--require-hashes", "--only-binary=:all:", "--implementation=cp",
            f"--python-version={PYTHON}",
            *(f"--abi={abi}" for abi in (f"cp{PYTHON.replace('.', '')}", "abi3", "none")),
            *(f"--platform={platform}" for platform in target.platforms),
            f"--target={into}", f"--requirement={locked}",
        )  # fmt: skip
        staged = cls(into)
        staged.check()
        return staged

    @property
    def versions(self) -> dict[str, str]:
        """Version by name, in the order of names."""
        return {name: one.version for name, one in sorted(self._distributions.items())}

    def _requirements(self, name: str) -> list[Requirement]:
        """The requirements of a distribution on the target."""
        environment = {
            "python_version": PYTHON, "python_full_version": f"{PYTHON}.0", "sys_platform": "linux",
            "platform_system": "Linux", "extra": "",
        }  # fmt: skip
        found = [Requirement(line) for line in self._distributions[name].requires or ()]
        return [one for one in found if one.marker is None or one.marker.evaluate(environment)]

    def check(self) -> None:
        """CannotPackage: a distribution needs another that is not here, or another version of it."""
        for name in self._distributions:
            for wanted in self._requirements(name):
                version = self.versions.get(lock.canonical(wanted.name))
                if version is None or not wanted.specifier.contains(version, prereleases=True):
                    raise CannotPackage(f"{name} needs {wanted}; the lock has {version or 'none'}: make lock")

    def owner(self, module: str) -> str:
        """The distribution that a dotted name is imported from. CannotPackage: none has it."""
        # The whole path and not its first part alone: `google` is a directory of many distributions.
        parts = module.split(".")
        for length in range(len(parts), 0, -1):
            place = "/".join(parts[:length])
            for name, one in self._distributions.items():
                if any(str(path).startswith((f"{place}/__init__.py", f"{place}.")) for path in one.files or ()):
                    return name
        raise CannotPackage(f"maglevc imports {module}, which no distribution of the lock has")

    def closure(self, modules: set[str]) -> set[str]:
        """The distributions that have ``modules``, and all that those need."""
        waiting = {self.owner(module) for module in modules}
        found: set[str] = set()
        while waiting:
            name = waiting.pop()
            found.add(name)
            waiting |= {lock.canonical(wanted.name) for wanted in self._requirements(name)} - found
        return found

    def install(self, names: set[str], modules: Path, licences: Path) -> None:
        """Copy distributions to where they are imported from, and their licences, without which nothing comes."""
        for name in sorted(names):
            texts = 0
            for path in self._distributions[name].files or ():
                if path.parts[0] == "..":
                    continue  # an entry point's script
                if ".dist-info" in path.parts[0] and LICENCE.match(path.name):
                    copy(self.directory / path, licences / name.replace("-", "_") / path.name)
                    texts += 1
                elif not needless(Path(path)):
                    copy(self.directory / path, modules / path)
            if not texts:
                raise CannotPackage(f"{name} comes without a licence")


def needless(path: Path) -> bool:
    """Whether nothing on the target ever reads a file of a wheel. Of pip's own files only METADATA is read."""
    return (
        (path.parts[0].endswith(".dist-info") and path.name != "METADATA")
        or path.suffix in NEEDLESS_SUFFIXES
        or not NEEDLESS_DIRECTORIES.isdisjoint(path.parts[:-1])
        or str(path).startswith(NEEDLESS_PARTS)
    )


def copy(source: Path, destination: Path, mode: int = 0o644) -> None:
    """Copy a file."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, destination)
    destination.chmod(mode)
