"""The files that the packages install: the unit by systemd's own judgement, the rest against the code."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from debian import manpages
from maglev.cli.grammar import usage
from maglev.cli.main import FLAGS as CLIENT_FLAGS
from maglev.config import docs
from maglev.config.load import load_file, load_text
from maglev.daemon.options import FLAGS
from maglev.schema.problems import ProblemKind

ROOT = Path(__file__).resolve().parent.parent.parent
DEBIAN = ROOT / "debian"
UNIT = "vpp-maglevd.service"
WORST_EXPOSURE = 25
"""Tenths of systemd's exposure level (0 to 10): below this it says OK."""


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """The part of a file system that systemd looks at: this machine's units, ours, and what ours starts."""
    units = tmp_path / "usr" / "lib" / "systemd" / "system"
    shutil.copytree("/usr/lib/systemd/system", units, symlinks=True)
    shutil.copy(DEBIAN / UNIT, units / UNIT)
    for program in ("usr/sbin/maglevd", "bin/sh"):
        path = tmp_path / program
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    return tmp_path


def analyze(*words: str) -> tuple[int, str]:
    """Run systemd-analyze; returns its status and all that it says."""
    done = subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def exposure(root: Path) -> tuple[int, str]:
    """Status 0 where the exposure is below the worst that we allow, and the table."""
    return analyze("security", "--offline=yes", f"--threshold={WORST_EXPOSURE}", f"--root={root}", UNIT)


def test_systemd_finds_nothing_wrong_with_the_unit(system: Path) -> None:
    assert analyze("verify", "--man=no", f"--root={system}", UNIT) == (0, "")


def test_systemd_finds_the_unit_hardened(system: Path) -> None:
    status, said = exposure(system)
    assert status == 0, said
    assert "OK" in said.splitlines()[-1]


def test_the_drop_in_for_namespaces_adds_what_setns_takes(system: Path) -> None:
    place = system / "etc" / "systemd" / "system" / f"{UNIT}.d"
    place.mkdir(parents=True)
    shutil.copy(DEBIAN / "examples" / "netns.conf", place)
    assert analyze("verify", "--man=no", f"--root={system}", UNIT) == (0, "")
    _, said = exposure(system)
    rows = {line.split()[1]: line[0] for line in said.splitlines() if line.startswith(("✓", "✗"))}
    assert rows["CapabilityBoundingSet=~CAP_SYS_ADMIN"] == "✗", "the unit has the capability now"
    assert rows["RestrictNamespaces=~net"] == "✗"
    assert rows["RestrictNamespaces=~user"] == "✓", "and no other namespace"
    assert rows["CapabilityBoundingSet=~CAP_NET_ADMIN"] == "✓"


def settings(path: Path) -> configparser.RawConfigParser:
    """A unit or a drop-in, with the case of its keys."""
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(path)
    return unit


def test_the_unit_starts_us_as_promised() -> None:
    unit = settings(DEBIAN / UNIT)
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert service["AmbientCapabilities"] == service["CapabilityBoundingSet"] == "CAP_NET_RAW"
    assert service["EnvironmentFile"] == "-/etc/default/vpp-maglev"
    directory = {flag.name: Path(flag.default).parent for flag in FLAGS if flag.default.startswith("/")}
    assert directory["grpc-socket"] == Path("/run") / service["RuntimeDirectory"]
    assert directory["state-file"] == Path("/var/lib") / service["StateDirectory"]
    assert "vpp.service" in unit["Unit"]["After"].split()


def test_the_unit_comes_back_from_every_end_without_a_limit_of_starts() -> None:
    unit = settings(DEBIAN / UNIT)
    assert unit["Service"]["Restart"] == "always"
    assert unit["Service"]["RestartSec"] == "2s"
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"


def test_the_unit_dies_before_vpp_and_long_before_the_machine_is_out_of_memory() -> None:
    service = settings(DEBIAN / UNIT)["Service"]
    assert int(service["OOMScoreAdjust"]) > 0, "VPP's unit leaves it at 0"
    assert service["MemoryMax"] == "2G"
    assert service["OOMPolicy"] == "continue"


@pytest.mark.parametrize(
    ("example", "unit", "key"),
    [("memory.conf", UNIT, "MemoryMax"), ("vpp-oom.conf", "vpp.service", "OOMScoreAdjust")],
)
def test_an_example_is_a_drop_in_that_systemd_understands(system: Path, example: str, unit: str, key: str) -> None:
    if unit != UNIT:
        (system / "usr/lib/systemd/system" / unit).write_text("[Service]\nExecStart=/bin/sh\n")
    place = system / "etc" / "systemd" / "system" / f"{unit}.d"
    place.mkdir(parents=True)
    shutil.copy(DEBIAN / "examples" / example, place)
    assert analyze("verify", "--man=no", f"--root={system}", unit) == (0, "")
    assert key in settings(place / example)["Service"]


def test_the_environment_file_tells_every_variable_with_its_default() -> None:
    text = (DEBIAN / "vpp-maglev.default").read_text()
    told = dict(re.findall(r"^#(MAGLEV_\w+)=(.*)$", text, re.MULTILINE))
    assert told == {flag.env: flag.default for flag in FLAGS if flag.env}
    assert re.findall(r"^[^#\n].*", text, re.MULTILINE) == ["MAGLEVD_OPTS="]


@pytest.mark.parametrize("limit", ["rmem_max", "wmem_max"])
def test_the_sysctl_file_allows_the_buffer_that_the_engine_asks_for(limit: str) -> None:
    source = "".join(path.read_text() for path in sorted((ROOT / "ext" / "probe").glob("*.pyx")))
    asked = re.search(r"int space = (\d+) << (\d+)", source)
    assert asked is not None
    allowed = re.search(rf"^net\.core\.{limit} = (\d+)$", (DEBIAN / "vpp-maglev.sysctl").read_text(), re.MULTILINE)
    assert allowed is not None
    assert int(allowed[1]) >= int(asked[1]) << int(asked[2])


def test_the_example_for_many_servers_names_limits_that_the_kernel_has_in_ascending_order() -> None:
    text = (DEBIAN / "examples" / "many-servers.conf").read_text()
    limits = {name: int(value) for name, value in re.findall(r"^-?([\w.]+) = (\d+)$", text, re.MULTILINE)}
    for family in ("ipv4", "ipv6"):
        thresholds = [f"net.{family}.neigh.default.gc_thresh{number}" for number in (1, 2, 3)]
        for name in thresholds:
            assert Path("/proc/sys", *name.split(".")).exists(), name
        first, second, last = (limits[name] for name in thresholds)
        assert 50_000 <= first < second < last


def test_the_first_configuration_is_valid_and_so_is_its_example() -> None:
    path = DEBIAN / "maglev.yaml"
    empty = load_file(path)
    assert empty.config is not None
    assert len(empty.config.frontends) == 0
    # Valid, and nothing is served with it: the one warning of a file that has not been edited yet.
    assert [(one.kind, one.path) for one in empty.problems] == [(ProblemKind.WARNING, "maglev.frontends")]
    example = "".join(line[1:] + "\n" for line in path.read_text().splitlines() if re.match(r"#( {2}|maglev:)", line))
    shown = load_text(example)
    assert shown.problems == ()
    assert shown.config is not None
    assert list(shown.config.frontends) == ["www"]


def test_the_man_pages_have_every_flag_command_key_and_exit_status() -> None:
    pages = {name: text.replace("\\-", "-") for name, text in manpages.render("1.0", "2026-01-01").items()}
    bold = {name: re.findall(r"^\.B (.+)$", text, re.MULTILINE) for name, text in pages.items()}
    assert {f"--{flag.name}" for flag in FLAGS} <= {term.split()[0] for term in bold["maglevd.8"]}
    assert {syntax for syntax, _ in usage()} <= set(bold["maglevc.1"])
    for section in docs.sections().values():
        assert {key.name for key in section.keys} <= set(bold["maglev.yaml.5"])
    for page, statuses in (
        ("maglevd.8", ["0", "1", "2", "64", "74", "75"]),
        ("maglevc.1", ["0", "1", "2", "3", "74", "130"]),
    ):
        told = pages[page].partition(".SH EXIT STATUS\n")[2].partition(".SH ")[0]
        assert re.findall(r"^\.B (\d+)$", told, re.MULTILINE) == statuses
    assert not any(re.search(r"@[A-Z]+@|`", text) for text in pages.values()), "a mark or a quote was left"


def test_the_example_in_the_man_page_is_a_configuration() -> None:
    page = manpages.render("1.0", "2026-01-01")["maglev.yaml.5"]
    loaded = load_text(page.partition(".EX\n")[2].partition(".EE")[0].replace("\\-", "-"))
    assert loaded.config is not None
    assert loaded.problems == ()


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_completion_offers_every_flag_of_maglevc_and_asks_it_for_the_words(shell: str) -> None:
    text = (DEBIAN / f"maglevc.{shell}-completion").read_text()
    flags = {re.split(r"[ \[]", flag)[0] for flag, _ in CLIENT_FLAGS}
    assert set(re.findall(r"--[a-z][a-z-]*", text)) == flags
    assert "--complete" in flags
