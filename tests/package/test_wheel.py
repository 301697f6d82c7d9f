"""The wheel as a user meets it: its promise to other machines, and its programs in an environment of their own."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

# Whatever runs it uses what is in the wheel: the directory is no checkout, and nothing names one.
PROBE = """\
import maglev, maglev._probe
engine = maglev._probe.Engine()
engine.start()
engine.stop()
print(maglev.__file__)
print([line.split()[-1] for line in open("/proc/self/maps") if "libssl" in line][0])
"""


@pytest.fixture(scope="module")
def wheel() -> Path:
    """The wheel in build/."""
    found = list((ROOT / "build").glob("vpp_maglev-*.whl"))
    assert len(found) == 1, f"{found}: run 'make wheel' first"
    return found[0]


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean virtual environment in which the wheel and what it needs are installed."""
    place = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    install = [str(place / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", str(wheel)]
    done = subprocess.run(install, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return place


def run(environment: Path, program: str, *words: str) -> str:
    """What a program of the environment says. AssertionError if it fails."""
    command = [str(environment / "bin" / program), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_promises_a_manylinux_and_brings_what_that_has_not(wheel: Path) -> None:
    assert re.search(r"-cp\d+-cp\d+-manylinux_\d+_\d+_\w+\.whl$", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert set(re.findall(r"\.libs/(\w+)-", " ".join(names))) == {"libcrypto", "libssl"}
    ours = set(re.findall(r"maglev/(_\w+)\.cpython", " ".join(names)))
    assert ours == set(re.findall(r'^    "maglev\.(_\w+)": "ext/', (ROOT / "setup.py").read_text(), re.MULTILINE))


def test_its_programs_tell_the_version_with_the_commit(wheel: Path, environment: Path) -> None:
    version = wheel.name.split("-")[1].partition("+")[0]
    for program in ("maglevd", "maglevc"):
        told = run(environment, program, "--version").split()
        assert told[0] == program
        assert told[1].startswith(version)
        assert "+g" in told[1]


def test_it_runs_on_its_own_modules_and_libraries(environment: Path) -> None:
    package, library = run(environment, "python", "-c", PROBE).split()
    assert Path(package).is_relative_to(environment)
    assert Path(library).is_relative_to(environment)
    assert "valid" in run(environment, "maglevd", "--check", "--config", str(ROOT / "debian" / "maglev.yaml"))
