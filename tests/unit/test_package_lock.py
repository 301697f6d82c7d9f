"""The locks of what is bundled and what builds: complete, in range, and obeyed by what makes the packages."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import re
import zipfile
from pathlib import Path

import pytest

from debian import lock
from debian.tools import TARGETS, CannotPackage
from debian.wheels import Staged, client_imports

LOCKS = pytest.mark.parametrize("path", [lock.BUNDLED, lock.BUILD], ids=lambda path: path.name)
AMD64 = TARGETS["amd64"]


def make_wheel(directory: Path, name: str, *, requires: str = "") -> Path:
    """A wheel of one module, version 1.0, with a licence."""
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n" + (
        f"Requires-Dist: {requires}\n" if requires else ""
    )
    files = {
        f"{name}.py": "value = 1\n",
        f"{name}-1.0.dist-info/METADATA": metadata,
        f"{name}-1.0.dist-info/LICENSE": "free\n",
        f"{name}-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = f"{name}-1.0.dist-info/RECORD"
    sums = {
        path: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        for path, text in files.items()
    }
    files[record] = (
        "".join(f"{path},sha256={total},{len(files[path])}\n" for path, total in sums.items()) + f"{record},,\n"
    )
    wheel = directory / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel


def write_lock(path: Path, *wheels: Path) -> Path:
    """A lock of wheels as ``make lock`` writes it."""
    entries = (
        f"{wheel.name.split('-')[0]}==1.0 \\\n    --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"
        for wheel in wheels
    )
    path.write_text("# a comment\n" + "".join(entries))
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is the only place where pip finds wheels."""
    directory = tmp_path / "index"
    directory.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return directory


@LOCKS
def test_a_lock_has_all_that_pyproject_asks_for_in_range(path: Path) -> None:
    assert lock.asked(path)
    assert lock.problems(path) == []


@LOCKS
def test_a_lock_names_no_place_to_download_from(path: Path) -> None:
    assert lock.read(path)
    assert not re.search(r"(?i)https?:|file:|index|find-links|//", path.read_text())


def test_what_builds_does_so_for_the_releases_that_are_bundled() -> None:
    bundled, build = lock.read(lock.BUNDLED), lock.read(lock.BUILD)
    assert {name: build[name] for name in build.keys() & bundled.keys()} == {
        name: bundled[name] for name in build.keys() & bundled.keys()
    }


def test_the_tests_run_with_the_releases_that_are_bundled() -> None:
    locked = {name: release.version for name, release in lock.read(lock.BUNDLED).items()}
    here = {name: importlib.metadata.version(name) for name in locked}
    assert here == locked, "run make"


@pytest.mark.parametrize(
    "line", ["--index-url https://mirror.invalid/simple", "grpcio==1.80.0", "grpcio>=1.70 --hash=sha256:" + "0" * 64]
)
def test_an_option_or_a_release_without_hash_is_no_lock(tmp_path: Path, line: str) -> None:
    path = tmp_path / "requirements.lock"
    path.write_text(f"# a comment\n{line}\n")
    with pytest.raises(lock.BadLock, match=re.escape(line.split()[0])):
        lock.read(path)


def test_a_wheel_with_a_hash_of_the_lock_is_unpacked(index: Path, tmp_path: Path) -> None:
    locked = write_lock(tmp_path / "requirements.lock", make_wheel(index, "honest"))
    staged = Staged.unpack(AMD64, locked, tmp_path / "staged")
    assert staged.versions == {"honest": "1.0"}
    staged.install({"honest"}, tmp_path / "modules", tmp_path / "licences")
    assert (tmp_path / "modules" / "honest.py").exists()
    assert (tmp_path / "licences" / "honest" / "LICENSE").exists()


def test_a_wheel_with_another_hash_makes_no_package(index: Path, tmp_path: Path) -> None:
    wheel = make_wheel(index, "honest")
    locked = write_lock(tmp_path / "requirements.lock", wheel)
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("backdoor.py", "import os\n")
    with pytest.raises(CannotPackage, match=r"(?i)do not match the hashes|no matching distribution"):
        Staged.unpack(AMD64, locked, tmp_path / "staged")
    assert not (tmp_path / "staged" / "backdoor.py").exists()


def test_a_lock_that_lacks_what_a_wheel_needs_makes_no_package(index: Path, tmp_path: Path) -> None:
    locked = write_lock(tmp_path / "requirements.lock", make_wheel(index, "honest", requires="helper>=1"))
    with pytest.raises(CannotPackage, match="honest needs helper>=1; the lock has none"):
        Staged.unpack(AMD64, locked, tmp_path / "staged")


def test_the_client_has_the_command_line_and_no_room_of_the_daemon() -> None:
    imports = client_imports()
    rooms = {path.parts[0] for path in imports.ours}
    assert {"__init__.py", "cli", "pb"} <= rooms
    assert rooms.isdisjoint({"daemon", "rpc", "vpp", "vppsim", "checker", "config", "metrics", "judgement"})
    assert {name.split(".")[0] for name in imports.others} == {"google", "grpc", "orjson", "prompt_toolkit"}
