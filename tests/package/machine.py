"""A Debian 12 of our own: debootstrap's smallest, in memory, with its systemd as process 1 of its own namespaces.

Units run there under all of their restrictions. Its loopback is its own. ``/run/vpp`` is a directory of ours, so that a
stand-in on this side is the VPP of the machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RELEASE = "bookworm"
MIRROR = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
PACKAGES = (
    "adduser,ca-certificates,init-system-helpers,libcap2-bin,libssl3,libstdc++6,python3,systemd,systemd-sysv,zlib1g"
)
DEADLINE = 60.0

# Becomes process 1 of the machine. Everything is mounted in its own mount namespace, and goes with it.
BOOT = """\
set -eu
root=$1 vpp=$2
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
ln -s /proc/self/fd "$root/dev/fd"
ln -s pts/ptmx "$root/dev/ptmx"
mkdir "$root/dev/shm" "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mkdir "$root/run/vpp"
mount --bind "$vpp" "$root/run/vpp"
ip link set lo up
cd "$root"
pivot_root . mnt
umount -l /mnt
exec env -i container=maglev PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
    /lib/systemd/systemd --system --unit=multi-user.target --show-status=no
"""


def until(what: str, condition: Callable[[], bool], seconds: float = DEADLINE) -> None:
    """Poll until ``condition`` holds. AssertionError: it did not."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain for {what}"
        time.sleep(0.05)


class Machine:
    """The machine; made by ``start``, gone without a trace after ``close``."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="maglev-pkg-"))
        self.root = self.directory / "root"
        self.vpp = self.directory / "vpp"
        self._groups = self.directory / "cgroup"
        self._boot: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._mounted: list[Path] = []

    @property
    def _group(self) -> Path:
        return self._groups / f"maglev-pkg-{os.getpid()}"

    def start(self) -> None:
        """Make the file system and start systemd in it."""
        self.root.mkdir()
        self.vpp.mkdir()
        self.directory.chmod(0o755)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2G,mode=755", "tmpfs", self.root], check=True)
        self._mounted.append(self.root)
        done = subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", RELEASE, self.root, MIRROR],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr
        self.boot()

    def boot(self) -> None:
        """Start systemd and wait until it has started everything."""
        # A mount of our own: where we run, a chroot or a container, there may be none that can be written.
        self._groups.mkdir()
        subprocess.run(["mount", "-t", "cgroup2", "cgroup2", self._groups], check=True)
        self._mounted.append(self._groups)
        group = self._group
        group.mkdir()

        def enter() -> None:
            (group / "cgroup.procs").write_text("0")

        log = (self.directory / "boot.log").open("wb")
        self._boot = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup", "--fork", "--kill-child",
             "sh", "-c", BOOT, "sh", self.root, self.vpp],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=enter,
        )  # fmt: skip
        log.close()
        until("systemd to be process 1", self._find)
        until("the machine to be up", lambda: self.ask("systemctl", "is-system-running") in ("running", "degraded"))

    def _find(self) -> bool:
        assert self._boot is not None
        assert self._boot.poll() is None, (self.directory / "boot.log").read_text()
        children = Path(f"/proc/{self._boot.pid}/task/{self._boot.pid}/children").read_text().split()
        if not children:
            return False
        self._pid = int(children[0])
        with contextlib.suppress(OSError):
            return Path(f"/proc/{self._pid}/comm").read_text().strip() == "systemd"
        return False

    def close(self) -> None:
        """End everything in it and remove it."""
        if self._boot is not None:
            # The end of process 1 is the end of its namespace.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid or self._boot.pid, signal.SIGKILL)
            self._boot.wait(DEADLINE)
        if self._group.exists():
            for path in sorted((path for path in self._group.rglob("*") if path.is_dir()), reverse=True):
                path.rmdir()
            self._group.rmdir()
        for path in reversed(self._mounted):
            subprocess.run(["umount", "--lazy", path], check=False)
        shutil.rmtree(self.directory, ignore_errors=True)

    def command(self, *words: str, user: str = "") -> list[str]:
        """What runs a command in the machine."""
        command = ["nsenter", f"--target={self._pid}", "--all", "--root", "--wdns=/", "env", "-i", "LC_ALL=C.UTF-8"]
        command += ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive"]
        return [*command, *(["runuser", "-u", user, "--"] if user else []), *words]

    def try_(self, *words: str, user: str = "") -> tuple[int, str, str]:
        """Run a command in the machine: status, output, complaints."""
        command = self.command(*words, user=user)
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE, check=False
        )
        return done.returncode, done.stdout, done.stderr

    def run(self, *words: str, user: str = "") -> str:
        """Run a command in the machine; returns its output. AssertionError if it fails."""
        status, output, complaints = self.try_(*words, user=user)
        assert status == 0, f"{' '.join(words)}: status {status}\n{output}{complaints}{self.journal()}"
        return output

    def ask(self, *words: str) -> str:
        """The one line that a command says, however it ends."""
        return self.try_(*words)[1].strip()

    def ask_json(self, *words: str) -> Any:
        """What maglevc shows, as JSON."""
        return json.loads(self.run("maglevc", "--json", *words))

    def journal(self) -> str:
        """What the service has logged."""
        return self.try_("journalctl", "--unit=vpp-maglevd", "--no-pager", "--output=cat", "--lines=40")[1]

    def install(self, *packages: Path) -> None:
        """Install packages as an administrator does from a file."""
        place = self.root / "root"
        for package in packages:
            shutil.copy(package, place)
        try:
            # Not dpkg: where packages have taken files from one another, apt alone knows which one to unpack first.
            names = [f"/root/{package.name}" for package in packages]
            self.run("apt-get", "-q", "-y", "install", "--no-install-recommends", *names)
        finally:
            for package in packages:
                (place / package.name).unlink()

    def service(self, name: str) -> str:
        """A property of the service."""
        return self.ask("systemctl", "show", "--value", f"--property={name}", "vpp-maglevd")

    def files(self) -> set[str]:
        """Every file there is but those that come and go by themselves: databases, logs, caches, back-ups."""
        own = (
            "var/lib/apt",
            "var/lib/dpkg",
            "var/log",
            "var/cache",
            "var/lib/systemd",
            "run",
            "proc",
            "sys",
            "dev",
            "tmp",
            "mnt",
        )
        result: set[str] = set()
        for path, directories, names in os.walk(self.root):
            relative = os.path.relpath(path, self.root)
            if relative in own:
                directories.clear()
                continue
            result.update(os.path.normpath(os.path.join(relative, name)) for name in [*names, *directories])
        return result - {"etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-", "etc/subuid-", "etc/subgid-"}
