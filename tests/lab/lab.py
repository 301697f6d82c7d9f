"""One lab: a private directory with a copy of a configuration, real servers for it, the stand-in and the daemon.

The servers follow from the configuration: every backend with an http or tcp check gets one on its own address; ping
targets are answered by the kernel, static backends need nobody. Ports are kept if they are free.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from maglev.vpp.wire.messages import ANY_PROTOCOL, VipKey
from tests.lab.dataplane import Call, read_calls, read_weights
from tests.lab.processes import LabError, Maglevc, Program, program, wait_until
from tests.lab.servers import LoopThread, Servers, free_port

# `<name> weight <configured> effective <effective>`, then `[disabled]`, `[drained]` where it is.
MEMBER = re.compile(
    r"^\s*(?P<name>[A-Za-z0-9._-]+) weight (?P<weight>\d+) effective (?P<effective>\d+)"
    r"(?P<flags>(?: \[[a-z]+\])*)",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Member:
    """A pool member as `maglevc show frontends NAME` prints it."""

    name: str
    weight: int
    effective: int
    flags: tuple[str, ...]


def members(text: str) -> dict[str, Member]:
    """The pool members in the output of `maglevc show frontends NAME`, by name."""
    found = {}
    for match in MEMBER.finditer(text):
        flags = tuple(re.findall(r"\[([a-z]+)\]", match["flags"]))
        found[match["name"]] = Member(match["name"], int(match["weight"]), int(match["effective"]), flags)
    return found


def table_follows(info: dict[str, Any]) -> bool:
    """A frontend of ``show frontends NAME`` in JSON: VPP has shown a table for the weights that its members have."""
    members = [one for pool in info["pools"] for one in pool["backends"]]
    return bool(info["fingerprint"]) and all((one["buckets"] > 0) == (one["effective_weight"] > 0) for one in members)


class Lab:
    """Everything of one lab; a context manager that ends and removes it all."""

    def __init__(self, configuration: Path, vpp: Path | None = None, logs: Path | None = None) -> None:
        """With ``vpp``, the API socket of a real VPP, there is no stand-in: ``start_stand_in`` only looks at it.

        ``logs``: a directory for the programs' output, which stays; without it the output goes with the lab.
        """
        self.real_vpp = vpp is not None
        self.directory = Path(tempfile.mkdtemp(prefix="maglev-lab-"))
        self.logs = logs or self.directory
        self.logs.mkdir(parents=True, exist_ok=True)
        self._thread = LoopThread()
        self.servers = Servers(self._thread)
        self.stand_in: Program | None = None
        self.daemon: Program | None = None
        self.config_file = self.directory / "maglev.yaml"
        self.api_socket = vpp or self.directory / "api.sock"
        self.stats_socket = self.directory / "stats.sock"
        self.call_log = self.directory / "calls.jsonl"
        self.grpc_socket = self.directory / "maglevd.sock"
        self.state_file = self.directory / "state.json"
        self.metrics_port = 0
        self.moved_ports: dict[int, int] = {}
        self._closed = False
        self.names: dict[str, str] = {}  # address -> backend
        self.vips: dict[str, VipKey] = {}  # frontend -> VIP
        try:
            self.maglevc = Maglevc(f"unix:{self.grpc_socket}")
            self._settle(configuration.read_text(encoding="utf-8"))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes, stop the servers, remove the directory; doing it twice is harmless."""
        for process in (self.daemon, self.stand_in):
            if process is not None:
                process.close()
        if not self._closed:
            self._closed = True
            self.servers.close()
            self._thread.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _settle(self, text: str) -> None:
        """Start the servers of the configuration in ``text`` and write it with the ports that they got."""
        # Every scalar is text to this loader, as it is to maglevd: a backend may be called `no`.
        maglev: dict[str, Any] = yaml.load(text, Loader=yaml.BaseLoader)["maglev"]
        checks: dict[str, Any] = maglev.get("healthchecks", {})
        targets: dict[int, list[tuple[str, str, bool]]] = {}
        for name, backend in maglev["backends"].items():
            check = checks.get(backend.get("healthcheck", ""), {})
            if check.get("type") in ("http", "tcp"):
                target = (name, backend["address"], check["type"] == "http")
                targets.setdefault(int(check["port"]), []).append(target)
            self.names[backend["address"]] = name
        for name, frontend in maglev["frontends"].items():
            protocol = {"tcp": 6, "udp": 17}.get(frontend.get("protocol", ""), ANY_PROTOCOL)
            self.vips[name] = VipKey.parse(frontend["address"], protocol, int(frontend.get("port", 0)))
        for wanted, group in targets.items():
            port = free_port([address for _, address, _ in group], wanted)
            for name, address, http in group:
                self.servers.add(name, address, port, http=http)
            if port != wanted:
                self.moved_ports[wanted] = port
                text = re.sub(rf"^(\s+port: ){wanted}\b", rf"\g<1>{port}", text, flags=re.MULTILINE)
        self.config_file.write_text(text, encoding="utf-8")

    # -- the stand-in for VPP

    def start_stand_in(self) -> None:
        """Start an empty stand-in. LabError: it does not come up."""
        if self.real_vpp:
            read_weights(self.api_socket)
            return
        self.stand_in = Program(
            "the stand-in",
            [
                sys.executable, "-m", "maglev.vppsim",
                "--socket", self.api_socket,
                "--stats-socket", self.stats_socket,
                "--log-calls", self.call_log,
            ],
            self.logs / "vppsim.log",
        )  # fmt: skip
        self.stand_in.wait_ready(self._stand_in_answers)

    def _stand_in_answers(self) -> bool:
        try:
            read_weights(self.api_socket)
        except OSError:
            return False
        return True

    def stop_stand_in(self) -> None:
        """End the stand-in; what it held is lost, as when VPP ends."""
        if self.stand_in is not None:
            self.stand_in.close()
            self.stand_in = None

    def show_command(self) -> list[str]:
        """The command that shows what the dataplane holds."""
        return [sys.executable, "-m", "maglev.vppsim", "show", "--socket", str(self.api_socket)]

    def calls(self) -> list[Call]:
        """Every call of the daemon that the stand-in has answered so far, in order."""
        return read_calls(self.call_log)

    def programmed(self, frontend: str) -> dict[str, int]:
        """Weights that the stand-in holds for the VIP of a frontend, by the name of the backend.

        Addresses that no backend has stand for themselves; without the VIP there are none.
        """
        weights = read_weights(self.api_socket).get(self.vips[frontend], {})
        return {self.names.get(address, address): weight for address, weight in weights.items()}

    def wait_programmed(self, frontend: str, expected: dict[str, int], seconds: float) -> None:
        """Wait for the weights that the stand-in holds. LabError: they are others."""
        self._wait_weights(f"weights of {frontend} in VPP", lambda: self.programmed(frontend), expected, seconds)

    # -- the daemon

    def daemon_command(self, *, dataplane: bool, config: Path | None = None) -> list[str]:
        """Command line of the daemon in this lab, with the stand-in or without VPP."""
        return [
            str(program("maglevd")),
            "--config", str(config or self.config_file),
            "--grpc-socket", str(self.grpc_socket),
            "--grpc-addr", "",
            "--metrics-addr", f"127.0.0.1:{self.metrics_port}",
            "--vpp-api-addr", str(self.api_socket) if dataplane else "",
            "--vpp-stats-addr", str(self.stats_socket) if dataplane and not self.real_vpp else "",
            "--state-file", str(self.state_file),
            "--log-level", "info",
        ]  # fmt: skip

    def start_maglevd(self, *, dataplane: bool) -> None:
        """Start the installed maglevd and wait until it answers. LabError: it does not."""
        self.metrics_port = free_port(["127.0.0.1"])
        self.daemon = Program("maglevd", self.daemon_command(dataplane=dataplane), self.logs / "maglevd.log")
        self.daemon.wait_ready(self._maglevd_answers)

    def _maglevd_answers(self) -> bool:
        return self.grpc_socket.exists() and self.maglevc.run("show", "version").status == 0

    def stop_maglevd(self, number: int = signal.SIGTERM) -> int:
        """Exit status of the daemon after a signal. LabError: it runs on, or was not there."""
        if self.daemon is None:
            raise LabError("maglevd is not running")
        daemon, self.daemon = self.daemon, None
        daemon.expect_running()
        daemon.signal(number)
        try:
            return daemon.wait()
        finally:
            daemon.close()

    # -- looking

    def show(self, frontend: str) -> dict[str, Member]:
        """Pool members of a frontend, as maglevc shows them."""
        return members(self.maglevc.ask("show", "frontends", frontend))

    def wait_table(self, frontend: str, seconds: float) -> None:
        """Wait until VPP has shown the table of a frontend, which the daemon reads back behind its writes."""

        def follows() -> bool:
            return table_follows(json.loads(self.maglevc.ask("--json", "show", "frontends", frontend)))

        wait_until(f"the table of {frontend} to follow its weights", follows, seconds)

    def wait_weights(self, frontend: str, expected: dict[str, int], seconds: float) -> None:
        """Wait for the effective weights of a frontend. LabError: they are others."""

        def effective() -> dict[str, int]:
            return {member.name: member.effective for member in self.show(frontend).values()}

        self._wait_weights(f"effective weights of {frontend}", effective, expected, seconds)

    @staticmethod
    def _wait_weights(what: str, read: Callable[[], dict[str, int]], expected: dict[str, int], seconds: float) -> None:
        last: dict[str, int] = {}

        def as_expected() -> bool:
            nonlocal last
            last = read()
            return last == expected

        try:
            wait_until(f"{what} to be {expected}", as_expected, seconds)
        except LabError as error:
            raise LabError(f"{error}; they are {last}") from error
