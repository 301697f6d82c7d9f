"""The contents of the packages: their size, stripped objects, no file without use on the target, all licences."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from debian.wheels import needless

ROOT = Path(__file__).resolve().parent.parent.parent
HOME = "usr/lib/vpp-maglev"

# Installed-Size in KiB, with a tenth of room. 16,700 of the client's are gRPC's extension, stripped: machine code of
# its core and of BoringSSL.
LARGEST = {"vpp-maglev-client": 25_000, "vpp-maglev": 6_900}


def archives() -> list[Path]:
    """Every package in build/."""
    return sorted((ROOT / "build").glob("vpp-maglev*.deb"))


@pytest.fixture(scope="module", params=archives(), ids=lambda path: path.name.partition("_")[0] + path.stem[-6:])
def package(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@pytest.fixture(scope="module")
def tree(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The unpacked package."""
    directory = tmp_path_factory.mktemp("package")
    subprocess.run(["dpkg-deb", "--extract", package, directory], check=True)
    yield directory
    subprocess.run(["rm", "-r", directory], check=True)


def field(package: Path, name: str) -> str:
    """A field of a package's control information."""
    done = subprocess.run(["dpkg-deb", "--field", package, name], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_both_packages_of_an_architecture_are_there() -> None:
    made = {(path.name.partition("_")[0], path.stem.rpartition("_")[2]) for path in archives()}
    assert made, "run 'make pkg-deb' first"
    assert made == {(name, arch) for _, arch in made for name in LARGEST}


def test_a_package_is_no_larger_than_it_has_to_be(package: Path) -> None:
    assert int(field(package, "Installed-Size")) <= LARGEST[field(package, "Package")]


def test_every_shared_object_is_stripped(tree: Path) -> None:
    objects = [path for path in tree.rglob("*.so*") if path.is_file()]
    assert objects
    for path in objects:
        sections = subprocess.run(["readelf", "--sections", "--wide", path], capture_output=True, text=True, check=True)
        assert ".dynsym" in sections.stdout, path
        assert ".symtab" not in sections.stdout, path
        assert ".debug_" not in sections.stdout, path


def test_nothing_is_there_that_is_never_read(tree: Path) -> None:
    home = tree / HOME
    found = [path.relative_to(home) for path in home.rglob("*") if path.is_file()]
    assert [path for path in found if path.parts[0] != "maglev" and needless(path)] == []


def test_every_other_s_module_has_its_licence(package: Path, tree: Path) -> None:
    licences = {path.name for path in (tree / "usr/share/doc" / field(package, "Package") / "licenses").iterdir()}
    bundled = {path.name.partition("-")[0] for path in (tree / HOME).glob("*.dist-info")}
    assert bundled
    assert {name.lower() for name in bundled} == {name.lower() for name in licences}
