"""An administrator's year: install, start, reload, upgrade while it runs, remove, purge, install again.

The tests are one story and run in their order, on one machine. They need ``make pkg-deb`` and ``make pkg-deps`` before.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from debian.package import Version
from tests.lab.dataplane import WRITES, read_calls, read_weights
from tests.lab.processes import Program
from tests.package.machine import Machine, until

ROOT = Path(__file__).resolve().parent.parent.parent
CAP_NET_RAW = 1 << 13
NAMES = ("vpp-maglev", "vpp-maglev-client")

CONFIG = """\
maglev:
  vpp:
    lb:
      ipv4-src-address: 192.0.2.1
      startup-min-delay: 0s
      startup-max-delay: 5s
  healthchecks:
    ping: {type: icmp, interval: 200ms}
  backends:
    answers: {address: 127.0.0.2, healthcheck: ping}
    static: {address: 192.0.2.30}
  frontends:
    www:
      address: 198.51.100.80
      protocol: tcp
      port: 80
      pools:
        - {name: primary, backends: {answers: {weight: 100}}}
        - {name: fallback, backends: {static: {}}}
"""


def built(package: str) -> Path:
    """The package of this machine's architecture in build/."""
    arch = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout.strip()
    found = list((ROOT / "build").glob(f"{package}_*_{arch}.deb"))
    assert len(found) == 1, f"{found}: run 'make pkg-deb' first"
    return found[0]


def told(package: Path, words: str) -> bool:
    """Whether the last of ``words`` is the version of that package, with the commit that it is built of."""
    field = subprocess.run(["dpkg-deb", "--field", package, "Version"], capture_output=True, text=True, check=True)
    version = Version(words.split()[-1], "").debian
    return version.startswith(field.stdout.strip()) and "+g" in version


def before_the_split(directory: Path, package: Path, client: Path) -> tuple[Path, Path]:
    """Packages as 0.1.0 had them: the daemon's with the client's files in it, and each in conflict with the other."""
    made = []
    for name, parts, relations in (
        (
            "vpp-maglev",
            (client, package),
            ("Conflicts: vpp-maglev-client", "Replaces: vpp-maglev-client", "Provides: vpp-maglev-client (= 0.1.0)"),
        ),
        ("vpp-maglev-client", (client,), ("Conflicts: vpp-maglev",)),
    ):
        tree = directory / name
        for part in parts:
            shutil.rmtree(tree / "DEBIAN", ignore_errors=True)
            subprocess.run(["dpkg-deb", "--raw-extract", part, tree], check=True)
        control = tree / "DEBIAN" / "control"
        lines = []
        for line in control.read_text().splitlines():
            field, _, value = line.partition(": ")
            if field == "Depends":
                value = ", ".join(one for one in value.split(", ") if not one.startswith("vpp-maglev-client"))
                lines += [f"Depends: {value}", *relations]
            elif field not in ("Breaks", "Replaces"):
                lines.append("Version: 0.1.0" if field == "Version" else line)
        control.write_text("\n".join(lines) + "\n")
        made.append(directory / f"{name}_0.1.0.deb")
        subprocess.run(["dpkg-deb", "-Znone", "--build", tree, made[-1]], check=True, capture_output=True)
        shutil.rmtree(tree)
    return made[0], made[1]


class Story:
    """What the tests share."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.before: set[str] = set()
        self.package = built("vpp-maglev")
        self.client = built("vpp-maglev-client")
        self.both = (self.package, self.client)
        self.older = self.older_client = Path()
        self.calls = self.machine.directory / "calls.jsonl"
        self.socket = self.machine.vpp / "api.sock"
        self.stand_in: Program | None = None

    def start(self) -> None:
        """Make the machine, the stand-in for its VPP, and the packages as they were before the client had its own."""
        self.machine.start()
        self.machine.run("groupadd", "--system", "vpp")
        group = int(self.machine.ask("getent", "group", "vpp").split(":")[2])
        self.stand_in = Program(
            "the stand-in",
            [sys.executable, "-m", "maglev.vppsim", "--socket", self.socket, "--log-calls", self.calls],
            self.machine.directory / "vppsim.log",
        )
        self.stand_in.wait_ready(self.socket.exists)
        os.chown(self.socket, 0, group)
        self.socket.chmod(0o770)
        self.older, self.older_client = before_the_split(self.machine.directory, self.package, self.client)
        self.before = self.machine.files()

    def close(self) -> None:
        """Remove all of it."""
        if self.stand_in is not None:
            self.stand_in.close()
        self.machine.close()

    def weights(self) -> dict[str, int]:
        """What the stand-in holds, by address of the server."""
        return {address: weight for vip in read_weights(self.socket).values() for address, weight in vip.items()}


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    one = Story()
    try:
        one.start()
        yield one
    finally:
        one.close()


@pytest.fixture
def machine(story: Story) -> Machine:
    return story.machine


def test_install_enables_and_does_not_start(story: Story, machine: Machine) -> None:
    machine.install(story.older)
    assert machine.ask("dpkg-query", "--show", "--showformat=${db:Status-Status}", "vpp-maglev-client") != "installed"
    assert machine.ask("systemctl", "is-enabled", "vpp-maglevd") == "enabled"
    assert machine.ask("systemctl", "is-active", "vpp-maglevd") == "inactive"
    assert machine.run("id", "-nG", "maglevd").split() == ["maglevd", "vpp"]
    assert machine.run("maglevd", "--version").split()[0] == "maglevd"
    assert "valid" in machine.run("maglevd", "--check")
    assert machine.run("dpkg", "--verify", "vpp-maglev") == ""
    assert list((machine.root / "usr/lib/vpp-maglev/maglev/daemon/__pycache__").glob("daemon.*.pyc"))


def test_only_its_own_modules_are_used(machine: Machine) -> None:
    # Debian's own modules of the same names must not get in between.
    decoy = machine.root / "usr/lib/python3/dist-packages/grpc.py"
    decoy.write_text("raise SystemExit('the wrong grpc')\n")
    try:
        assert machine.try_("maglevc", "--server", "127.0.0.1:1", "show", "version")[0] == 3
    finally:
        decoy.unlink()


def test_start_under_the_unit_s_restrictions(story: Story, machine: Machine) -> None:
    (machine.root / "etc/vpp-maglev/maglev.yaml").write_text(CONFIG)
    machine.run("systemctl", "start", "vpp-maglevd")
    assert machine.service("ActiveState") == "active"
    assert "1 frontends" in machine.service("StatusText")
    pid = machine.service("MainPID")
    status = dict(
        line.split(":\t", 1) for line in machine.run("cat", f"/proc/{pid}/status").splitlines() if ":\t" in line
    )
    user = machine.ask("id", "-u", "maglevd")
    assert status["Uid"].split() == [user] * 4
    assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {CAP_NET_RAW}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert int(machine.run("cat", f"/proc/{pid}/oom_score_adj")) > 0, "VPP's is 0, and VPP has to die last"
    assert int(machine.service("MemoryMax")) == 2 << 30
    for path, mode in (
        ("/run/vpp-maglev", "750"),
        ("/var/lib/vpp-maglev", "750"),
        ("/run/vpp-maglev/maglevd.sock", "660"),
    ):
        assert machine.ask("stat", "-c", "%a %U %G", path) == f"{mode} maglevd maglevd"
    until("the pinged server to get its weight", lambda: story.weights().get("127.0.0.2", 0) > 0)
    assert machine.ask_json("show", "vpp", "info")["lb_supported"] is True


def test_root_and_the_group_operate_and_others_look(machine: Machine) -> None:
    machine.run("maglevc", "set", "backend", "answers", "drain", "reason", "a test")
    machine.run("maglevc", "set", "backend", "answers", "undrain", user="maglevd")
    machine.run("maglevc", "show", "frontends", user="nobody")
    status, _, complaint = machine.try_("maglevc", "set", "backend", "answers", "drain", user="nobody")
    assert (status, complaint != "") == (1, True)


def test_reload_takes_a_good_file_and_refuses_a_bad_one(machine: Machine) -> None:
    path = machine.root / "etc/vpp-maglev/maglev.yaml"
    pid = machine.service("MainPID")
    path.write_text(CONFIG + "      description: from the reload\n")
    machine.run("systemctl", "reload", "vpp-maglevd")
    until(
        "the new description",
        lambda: machine.ask_json("show", "frontends", "www").get("description") == "from the reload",
    )
    path.write_text("maglev: {frontends: 1}\n")
    assert machine.try_("systemctl", "reload", "vpp-maglevd")[0] != 0
    assert "maglev.frontends" in machine.journal()
    assert machine.ask_json("show", "frontends", "www")["description"] == "from the reload"
    path.write_text(CONFIG)
    machine.run("systemctl", "reload", "vpp-maglevd")
    assert machine.service("MainPID") == pid


def test_upgrade_while_it_runs_changes_no_weight(story: Story, machine: Machine) -> None:
    until("its weight after the drain", lambda: story.weights().get("127.0.0.2", 0) > 0)
    machine.run("maglevc", "set", "backend", "static", "drain", "reason", "survives")
    weights, calls = story.weights(), len(read_calls(story.calls))
    pid = machine.service("MainPID")
    machine.install(*story.both)
    assert machine.service("ActiveState") == "active"
    assert machine.service("MainPID") != pid
    assert told(story.package, machine.run("maglevd", "--version"))
    assert told(story.package, machine.ask_json("show", "version")["version"])
    until("a full sync", lambda: int(machine.ask_json("show", "vpp", "info").get("last_full_sync_at_ns", 0)) > 0)
    assert [call for call in read_calls(story.calls)[calls:] if call.name in WRITES] == []
    assert story.weights() == weights
    assert "survives" in machine.run("maglevc", "show", "overrides")


def test_the_command_line_comes_with_the_client_s_package_alone(machine: Machine) -> None:
    changed = machine.run("dpkg", "--verify", *NAMES).splitlines()
    assert changed == ["??5?????? c /etc/vpp-maglev/maglev.yaml"], "the configuration is ours, and nothing else differs"
    assert machine.run("dpkg", "--search", "/usr/bin/maglevc").startswith("vpp-maglev-client:")
    owned = [set(machine.run("dpkg-query", "--listfiles", name).split("\n")) for name in NAMES]
    shared = {path for path in owned[0] & owned[1] if path and not (machine.root / path[1:]).is_dir()}
    assert shared == set()


# After SIGTERM the daemon ends with status 0. Only `systemctl stop` means it to stay away.
@pytest.mark.parametrize("signal", ["KILL", "TERM"])
def test_a_daemon_that_ended_is_started_again(machine: Machine, signal: str) -> None:
    pid = machine.service("MainPID")
    machine.run("systemctl", "kill", f"--signal={signal}", "vpp-maglevd")
    until(
        "another process",
        lambda: machine.service("ActiveState") == "active" and machine.service("MainPID") not in ("0", pid),
    )


def test_robot_lab_on_the_installed_programs(story: Story, machine: Machine) -> None:
    # On this side's loopback, where the lab's servers are; so without systemd, in a chroot, with the unit's capability.
    places = story.machine.directory / "lab"
    programs = story.machine.directory / "programs"
    inside = machine.root / str(places)[1:]
    for path in (places, programs, inside):
        path.mkdir(parents=True)
    subprocess.run(["mount", "--bind", places, inside], check=True)
    subprocess.run(["mount", "-t", "proc", "proc", machine.root / "proc"], check=True)
    try:
        for name, installed in (("maglevd", "/usr/sbin/maglevd"), ("maglevc", "/usr/bin/maglevc")):
            script = programs / name
            raw = "--bounding-set=-all,+net_raw --inh-caps=-all --no-new-privs"
            script.write_text(f'#!/bin/sh\nexec chroot {machine.root} setpriv {raw} {installed} "$@"\n')
            script.chmod(0o755)
        done = subprocess.run(
            [sys.executable, "-m", "robot", "--outputdir", ROOT / "build/reports/robot-package", "tests/01-maglevd"],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(places), "MAGLEV_PROGRAMS": str(programs)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        subprocess.run(["umount", machine.root / "proc"], check=False)
        subprocess.run(["umount", inside], check=False)
        shutil.rmtree(inside, ignore_errors=True)


def test_remove_keeps_configuration_and_state(story: Story, machine: Machine) -> None:
    weights = story.weights()
    machine.run("dpkg", "--remove", "vpp-maglev")
    assert machine.service("ActiveState") == "inactive"
    assert story.weights() == weights, "VPP goes on as it was"
    for kept in ("etc/vpp-maglev/maglev.yaml", "etc/default/vpp-maglev", "var/lib/vpp-maglev/state.json"):
        assert (machine.root / kept).exists(), kept
    for gone in ("usr/lib/vpp-maglev/maglev/daemon", "usr/lib/vpp-maglev/uvloop", "usr/sbin/maglevd"):
        assert not (machine.root / gone).exists(), gone
    assert machine.try_("getent", "passwd", "maglevd")[0] == 0


def test_client_alone(story: Story, machine: Machine) -> None:
    assert told(story.client, machine.run("maglevc", "--version"))
    assert machine.try_("maglevc", "--server", "127.0.0.1:1", "show", "version")[0] == 3
    assert machine.run("sh", "-c", "echo help | maglevc --server 127.0.0.1:1") != ""
    assert not (machine.root / "usr/sbin/maglevd").exists()
    machine.run("dpkg", "--purge", "vpp-maglev-client")
    assert not (machine.root / "usr/lib/vpp-maglev").exists()


def test_an_older_client_is_upgraded_alone_and_with_the_daemon(story: Story, machine: Machine) -> None:
    machine.install(story.older_client)
    machine.install(story.client)
    assert told(story.client, machine.run("maglevc", "--version"))
    machine.run("dpkg", "--purge", "vpp-maglev-client")
    machine.install(story.older_client)
    machine.install(*story.both)
    assert told(story.package, machine.run("maglevd", "--version"))
    machine.run("dpkg", "--remove", *NAMES)


def test_purge_leaves_nothing(story: Story, machine: Machine) -> None:
    machine.run("dpkg", "--purge", *NAMES)
    assert machine.files() - story.before == set()
    assert machine.try_("getent", "passwd", "maglevd")[0] != 0
    assert machine.try_("getent", "group", "maglevd")[0] != 0


def test_install_again(story: Story, machine: Machine) -> None:
    machine.install(*story.both)
    assert machine.ask("systemctl", "is-enabled", "vpp-maglevd") == "enabled"
    machine.run("systemctl", "start", "vpp-maglevd")
    assert machine.service("ActiveState") == "active"
    machine.run("systemctl", "stop", "vpp-maglevd")
    assert machine.service("Result") == "success"


def instruction(name: str) -> str:
    """The one line of the Dockerfile's last stage that begins with ``name``, continuations and all."""
    text = (ROOT / "Dockerfile").read_text().rpartition("\nFROM ")[2].replace("\\\n", "")
    found: list[str] = re.findall(rf"^{name} (.*)$", text, re.MULTILINE)
    assert len(found) == 1, found
    return found[0]


def test_the_container_s_steps(story: Story, machine: Machine) -> None:
    machine.run("dpkg", "--purge", *NAMES)
    for path in (ROOT / "docker" / "install", *story.both):
        shutil.copy(path, machine.root / "root")
    assert "/src/docker/install /src/build/vpp-maglev*.deb" in instruction("RUN")
    machine.run("sh", "-c", "/root/install /root/vpp-maglev*.deb")
    (machine.root / "etc/vpp-maglev/maglev.yaml").write_text(CONFIG)
    settings = re.findall(r"(\w+)=(\S+)", instruction("ENV"))
    entry = json.loads(instruction("ENTRYPOINT"))
    user, _, group = instruction("USER").partition(":")
    vpp = machine.run("stat", "-c", "%g", "/run/vpp/api.sock").strip()
    identity = ["setpriv", f"--reuid={user}", f"--regid={group}", f"--groups={vpp}"]
    # Where the container is not given the capability, the interpreter does not start.
    status, _, complaint = machine.try_(*identity, "--bounding-set=-net_raw", *entry, "--version")
    assert status != 0
    assert "not permitted" in complaint
    command = [*identity, "--bounding-set=-all,+net_raw", *entry]
    environment = ["env", *("=".join(setting) for setting in settings)]
    daemon = Program("maglevd", machine.command(*environment, *command), machine.directory / "container.log")
    try:
        health = json.loads(instruction("HEALTHCHECK").partition("CMD ")[2])
        daemon.wait_ready(lambda: machine.try_(*identity, *health)[0] == 0)
        until(
            "the pinged server to be up",
            lambda: str(machine.ask_json("show", "backends", "answers")["state"]).lower().endswith("up"),
        )
        assert machine.ask_json("show", "vpp", "info")["lb_supported"] is True
        # Whoever reaches the ports may look, and change nothing.
        grpc, metrics = (f"127.0.0.2{port}" for _, port in settings)
        machine.run("maglevc", "--server", grpc, "show", "frontends", user="nobody")
        status, _, complaint = machine.try_("maglevc", "--server", grpc, "set", "backend", "answers", "drain")
        assert (status, "is for operators" in complaint) == (1, True)
        ask = f"import urllib.request as r; print(r.urlopen('http://{metrics}/metrics', timeout=10).status)"
        assert machine.run("python3", "-c", ask).strip() == "200"
        # An operator has the socket, by `docker exec`.
        machine.run(*identity, "maglevc", "set", "backend", "answers", "drain")
    finally:
        daemon.close()
