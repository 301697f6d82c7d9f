"""``maglevc`` as operators run it: a separate process, against a real server whose states the test sets by hand."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import re
import select
import shutil
import socket
import subprocess
import sys
import termios
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import pyte
import pytest

from maglev.base.states import Code, State
from maglev.cli.client import Client
from maglev.cli.docs import PRINTS
from maglev.cli.errors import CommandError
from maglev.cli.jsonout import twin
from maglev.config.load import LoadResult
from maglev.config.model import Protocol
from maglev.pb import maglev_pb2 as pb
from maglev.rpc.server import RpcServer, ServerOptions
from maglev.schema.problems import Problem, ProblemKind
from maglev.views.dataplane import FlowQuestion
from tests.helpers.rpc import FakeDaemon, fake_daemon, large_config, small_config

LOGIN = pwd.getpwuid(os.getuid()).pw_name
"""The caller, as the kernel knows it."""

DEADLINE = 30.0
COMMAND = [sys.executable, "-m", "maglev.cli.main"]
ROOT = Path(__file__).resolve().parent.parent.parent

T = TypeVar("T")


@dataclass
class Answer:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Served:
    """A server on a loop in a separate thread; the test stays free to wait for processes."""

    def __init__(self, directory: Path, make: Callable[[], FakeDaemon] = fake_daemon) -> None:
        self.socket = directory / "run" / "maglevd.sock"
        self.home = directory
        self._make = make
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.daemon, self.server = self.do(self._start)

    async def _start(self) -> tuple[FakeDaemon, RpcServer]:
        daemon = self._make()
        server = RpcServer(
            daemon.services, ServerOptions(unix_socket=self.socket, tcp_address="127.0.0.1:0", reflection=False)
        )
        await server.start()
        return daemon, server

    def do(self, work: Callable[[], Any]) -> Any:
        """Run something on the server's loop and wait for it."""

        async def run() -> Any:
            result = work()
            return await result if asyncio.iscoroutine(result) else result

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(DEADLINE)

    def stop(self) -> None:
        self.do(lambda: self.server.stop(0.3))

    def restart(self) -> None:
        self.daemon, self.server = self.do(self._start)

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE)
        self._loop.close()

    def environment(self) -> dict[str, str]:
        keep = {name: value for name, value in os.environ.items() if not name.startswith(("MAGLEV_", "XDG_"))}
        return {**keep, "XDG_STATE_HOME": str(self.home / "state"), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}

    def run(self, line: str, *flags: str, server: str = "", stdin: str | None = None) -> Answer:
        """One command, given as a line."""
        done = subprocess.run(
            [*COMMAND, "--server", server or f"unix:{self.socket}", *flags, *line.split()],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            env=self.environment(),
        )
        return Answer(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    one = Served(tmp_path)
    checker = one.daemon.checker
    one.do(lambda: checker.move("web0", State.UP, Code.L7OK))
    one.do(lambda: checker.move("web1", State.DOWN, Code.L7STS, detail="\x1b[31m503"))
    yield one
    one.close()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("show version", "maglevd 1.2.3"),
        ("show frontends", "www       192.0.2.80 tcp 80"),
        (
            "show frontends www",
            "  fingerprint    0123456789abcdef\n"
            "  pool primary (active)\n"
            "    web0 weight 100 effective 100 share 75.0%\n"
            "    web1 weight 50 effective 0\n",
        ),
        ("flow 198.51.100.7:4711 192.0.2.80:80", "  server         web0 (10.0.0.1)\n"),
        ("show frontend state up match w", "www"),
        ("show backends", "web0     10.0.0.1"),
        ("show backends web1", "unknown -> down  L7STS (\\x1b[31m503)"),
        ("show backends state down", "web1"),
        ("show backends healthcheck web state up", "web0     10.0.0.1"),
        ("show backends drained match web", "BACKEND"),
        ("show healthchecks", "web          http    80"),
        ("show healthchecks web", "GET /healthz"),
        ("show overrides", "BACKEND"),
        ("show vpp info", "VPP 26.10-rc0"),
        ("show vpp lb state", "vip 192.0.2.80/32 tcp 80 (frontend www)"),
        ("show vpp lb state dns", "vip 2001:db8::53/128"),
        ("show vpp lb counters", "www      1000     10          1          0     1011  64000"),
        ("set backend web0 pause", "backend web0 is paused"),
        ("set backend web0 resume", "backend web0 is unknown"),
        ("set backend web0 disable", "backend web0 is disabled"),
        ("set backend web0 enable", "nothing to enable: backend web0 is up"),
        ("set backend web0 drain reason disk for 1h", "backend web0 is up, drained"),
        ("set backend web0 undrain", "backend web0 is up"),
        ("set frontend www pool primary backend web0 weight 40 flush", "web0 weight 40 effective 40"),
        ("set frontend www pool primary backend web0 weight 33", "rounded to 30 in VPP"),
        ("set frontend www pool primary backend web0 weight default", "web0 weight 100 effective 100"),
        ("set backend web0 drain dry-run", "backend web0 would be up, drained"),
        ("set backend web0 drain dry-run", "  frontend www: up -> down, pool primary -> fallback"),
        ("set backend web0 drain dry-run", "    web0     primary     100      0\n"),
        ("set backend web0 drain dry-run", "2.0 % of the other flows' buckets move"),
        ("set frontend www pool primary backend web0 weight 40 dry-run", "web0 weight 40 effective 40"),
        ("set frontend www pool primary backend web0 weight 40 dry-run", "nothing was changed"),
        ("brake release dry-run", "no backend is held: there is nothing to release"),
        ("sync vpp lb state", "1 call, workers stalled for 350us"),
        ("sync vpp lb state www dry-run", "2.0 % of the other flows' buckets move"),
        ("config check", "/etc/vpp-maglev/maglev.yaml is valid"),
        ("config diff", "~ maglev.backends.web0.address: 192.0.2.1 -> 192.0.2.2"),
        ("config reload", "/etc/vpp-maglev/maglev.yaml is in force"),
        ("help", "set backend NAME pause"),
    ],
)
def test_each_command(served: Served, line: str, expected: str) -> None:
    answer = served.run(line)

    assert expected in answer.out
    assert answer.status == 0, answer.err
    assert "\x1b" not in answer.out


@pytest.mark.parametrize(
    ("line", "status", "words"),
    [
        ("show bogus", 2, "'bogus' is not expected here"),
        ("show frontends www surplus", 2, "'surplus' is not expected here"),
        ("set backend web0", 2, "incomplete"),
        ("set frontend www pool primary backend web0 weight 101", 2, "'101' is no weight"),
        ("show frontends nil", 1, "no frontend named 'nil'"),
        ("show backends nil", 1, "no backend named 'nil'"),
        ("show healthchecks nil", 1, "no health check named 'nil'"),
        ("set backend nil pause", 1, "no backend named 'nil'"),
        ("set frontend www pool nil backend web0 weight 1", 1, "web0"),
        ("show backends match (", 1, "'(' is no regular expression: missing ): ("),
        ("watch events backend nil", 1, "no backend named 'nil'"),
    ],
)
def test_refusals_have_their_status_and_words(served: Served, line: str, status: int, words: str) -> None:
    answer = served.run(line)

    assert answer.status == status
    assert words in answer.err
    assert answer.err.startswith("maglevc: ")


def test_pause_of_a_disabled_backend_is_refused(served: Served) -> None:
    served.do(lambda: served.daemon.checker.move("web0", State.DISABLED, Code.DISABLED))

    answer = served.run("set backend web0 pause")

    assert answer.status == 1
    assert "disabled" in answer.err


def test_a_viewer_is_refused(served: Served) -> None:
    answer = served.run("set backend web0 pause", server=f"127.0.0.1:{served.server.port}")

    assert answer.status == 1
    assert "viewer" in answer.err


def test_vpp_away_is_a_refusal_and_a_server_away_is_unreachable(served: Served) -> None:
    served.daemon.dataplane.lose()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{closed.getsockname()[1]}"

    away = served.run("show vpp info")
    gone = served.run("show version", server=nobody)
    missing = served.run("show version", server=f"unix:{served.home}/nil.sock")

    assert (away.status, gone.status, missing.status) == (1, 3, 3)
    assert "VPP is away" in away.err
    assert gone.err.endswith(f"cannot reach {nobody}: Connection refused\n")
    assert missing.err.endswith("nil.sock: No such file or directory\n")


def test_a_server_that_says_nothing_is_unreachable(served: Served) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        answer = served.run("show version", server=f"127.0.0.1:{silent.getsockname()[1]}")

    assert answer.status == 3
    assert answer.err


def test_who_lacks_a_right_is_told_which_way_was_closed(served: Served) -> None:
    client = Client(f"127.0.0.1:{served.server.port}", instead="/run/x.sock: Permission denied")
    try:
        with pytest.raises(CommandError, match=r"is viewer \(not asked: /run/x.sock: Permission denied\)$"):
            client.call(client.stub.DrainBackend, pb.ChangeBackendRequest(name="web0"))
    finally:
        client.close()


def test_a_broken_file_is_refused_with_all_its_errors(served: Served) -> None:
    served.daemon.loader.result = LoadResult(
        None,
        (
            Problem(ProblemKind.PARSE, "maglev.x", "unknown key", 2, 3),
            Problem(ProblemKind.SEMANTIC, "maglev.y", "no such backend"),
        ),
    )
    for line in ("config check", "config diff", "config reload"):
        answer = served.run(line)
        assert answer.status == 1
        assert "maglev.yaml:2:3: maglev.x: unknown key [parse error]" in answer.out
        assert "maglev.y: no such backend [semantic error]" in answer.out
        assert "has errors" in answer.err


def test_frontends_say_that_vpp_does_not_have_their_weights(served: Served) -> None:
    assert "VPP" not in served.run("show frontends").out
    served.daemon.dataplane.lose("connection refused")
    lines = served.run("show frontends").out.splitlines()
    assert lines[0].startswith("VPP is away since ")
    assert lines[0].endswith("(connection refused): states and weights are what it will get")
    assert lines[1].startswith("FRONTEND ")
    one = served.run("show frontends www").out
    assert "VPP is away or left alone since " in one
    for command in ("show frontends", "show frontends www"):
        parsed = json.loads(served.run(command, "--json").out)
        found = parsed[0] if isinstance(parsed, list) else parsed
        assert found["vpp_away_since_ns"] > 0
    assert "VPP is away" in served.run("set backend web0 drain").err


def test_flows_of_a_drained_backend_and_waiting_for_none(served: Served) -> None:
    one = served.run("show backends web0 flows")
    assert "backend web0 (10.0.0.1, drained): 1 flows at most" in one.out
    assert "www       192.0.2.80/32 tcp 80       0      1" in one.out
    last = served.run("show backends web0 flows wait")
    assert (last.status, "no flow left: VPP sends it nothing" in last.out) == (0, True)
    parsed = json.loads(served.run("show backends web0 flows", "--json").out)
    assert (parsed["empty"], parsed["frontends"][0]["flows"]) == (True, 0)
    assert served.run("show backends nil flows").status == 1


def test_vips_that_wait_for_an_operator_are_shown_and_pruned(served: Served) -> None:
    served.daemon.dataplane.waiting = 7
    assert "7 VIPs wait for an operator before deletion" in served.run("show version").out
    assert json.loads(served.run("show version", "--json").out)["waiting_vips"] == 7
    assert served.run("sync vpp lb state prune dry-run").status == 0
    assert served.run("sync vpp lb state www prune").status == 2
    assert served.daemon.dataplane.waiting == 7
    assert served.run("sync vpp lb state prune").status == 0
    assert "wait for an operator" not in served.run("show version").out


def test_a_dangerous_reload_needs_force(served: Served) -> None:
    served.daemon.loader.dangerous = True

    assert served.run("config reload").status == 1
    assert served.run("config reload force").status == 0
    assert served.daemon.loader.reloads == [(True, f"unix:{LOGIN}")]


# How a command of the book is written to be run.
WRITTEN = {
    "show frontends NAME": "show frontends www",
    "flow SOURCE:PORT VIP:PORT": "flow 198.51.100.7:4711 192.0.2.80:80",
    "compare SERVER SERVER...": "compare SOCKET unix:SOCKET",
    "show backends NAME": "show backends web0",
    "show backends NAME flows": "show backends web0 flows",
    "show healthchecks NAME": "show healthchecks web",
    "show vpp lb state [NAME]": "show vpp lb state",
    "show vpp lb counters [NAME]": "show vpp lb counters",
    "why backend NAME": "why backend web0",
    "why frontend NAME": "why frontend www",
    "set backend NAME ...": "set backend web0 drain",
    "set frontend NAME ...": "set frontend www pool primary backend web0 weight 40",
}


@pytest.mark.parametrize("command", [command for command in PRINTS if command != "watch events"])
def test_every_command_prints_the_json_that_the_book_tells(served: Served, command: str) -> None:
    served.do(lambda: served.daemon.checker.set_weight("www", "primary", "web1", 7, flush=False, by="ann"))

    answer = served.run(WRITTEN.get(command, command).replace("SOCKET", str(served.socket)), "--json")

    assert answer.status == 0, answer.err
    prints: Any = PRINTS[command]
    message = prints[0] if isinstance(prints, tuple) else prints
    objects = answer.json if isinstance(prints, tuple) else [answer.json]
    assert objects
    for one in objects:
        keys = [key for field in message.DESCRIPTOR.fields for key in (field.name, twin(field)) if key]
        assert list(one) == keys


def test_json_of_lists_is_an_array_over_all_pages(tmp_path: Path) -> None:
    served = Served(tmp_path, lambda: fake_daemon(large_config(2_500, 5)))
    try:
        names = [one["name"] for one in served.run("show backends", "--json").json]
        rows = served.run("show backends").out.splitlines()
        none = served.run("show backends match ^nothing$", "--json").json
    finally:
        served.close()

    assert names == [f"b{at:05}" for at in range(2_500)]
    assert len(rows) == 2_501
    assert none == []


def test_a_frontend_says_why_its_backends_are_out_of_service(served: Served) -> None:
    served.do(lambda: served.daemon.checker.move("spare", State.DISABLED, Code.DISABLED, by="ann", reason="disk"))

    answer = served.run("show frontends www")

    assert answer.out.partition("  out of service\n")[2].splitlines() == [
        "    web1 down for 0ns  L7STS (\\x1b[31m503)",
        "    spare disabled for 0ns  disabled by ann: disk",
    ]
    assert "out of service" not in served.run("show frontends www", "--json").out


def test_a_frontend_of_many_that_are_out_of_service_says_how_many_more(tmp_path: Path) -> None:
    served = Served(tmp_path, lambda: fake_daemon(large_config(50, 1)))
    try:
        answer = served.run("show frontends f0000")
    finally:
        served.close()

    lines = answer.out.partition("  out of service\n")[2].splitlines()
    assert lines[0].startswith("    b00000 unknown for ")
    assert len(lines) == 21
    assert lines[20] == "    ... and 30 more"


def test_servers_with_other_tables_are_named(served: Served, tmp_path: Path) -> None:
    other = Served(tmp_path / "other")
    try:
        line = f"compare unix:{served.socket} unix:{other.socket}"
        equal = served.run(line)
        other.daemon.dataplane.table_now = replace(other.daemon.dataplane.table_now, fingerprint="fedcba9876543210")
        differs, as_json = served.run(line), served.run(line, "--json")
        other.daemon.dataplane.lose()
        unknown = served.run(line)
    finally:
        other.close()
    gone, twice = served.run(line), served.run("compare a:1 b:1 a:1")

    assert (equal.status, equal.out) == (0, "2 VIPs on 2 servers: all tables are equal\n")
    assert differs.status == 1
    assert differs.out.splitlines()[1].split() == [
        *("192.0.2.80", "tcp", "80", f"unix:{served.socket}", "www", "0123456789abcdef")
    ]
    assert differs.out.splitlines()[2].split()[3:] == [f"unix:{other.socket}", "www", "fedcba9876543210", "differs"]
    assert as_json.status == 1
    assert [one["differs"] for one in as_json.json["differences"][0]["tables"]] == [False, True]
    assert unknown.status == 1
    assert "not known: VPP is away" in unknown.out
    assert gone.status == 3
    assert f"cannot reach unix:{other.socket}" in gone.err
    assert (twice.status, "a:1 is named twice" in twice.err) == (2, True)


def test_a_flow_is_asked_for_as_it_is_written(served: Served) -> None:
    assert served.run("flow 198.51.100.7:4711 192.0.2.80:80").status == 0
    assert served.run("flow 2001:db8::7 [2001:db8::80]:53 udp").status == 1
    assert served.run("flow 198.51.100.7 192.0.2.80 any").status == 0
    assert served.daemon.dataplane.questions == [
        FlowQuestion("198.51.100.7", 4711, "192.0.2.80", 80),
        FlowQuestion("2001:db8::7", None, "2001:db8::80", 53, Protocol.UDP),
        FlowQuestion("198.51.100.7", None, "192.0.2.80", 0, Protocol.ANY),
    ]
    served.daemon.dataplane.lose()
    away = served.run("flow 198.51.100.7:4711 192.0.2.80:80")
    assert (away.status, away.err) == (1, "maglevc: VPP is away (/run/vpp/api.sock)\n")


def test_colours_when_asked_and_not_in_a_pipe(served: Served) -> None:
    assert "\x1b[32m" in served.run("show backends", "--color").out
    assert "\x1b" not in served.run("show backends", "-color=false").out
    assert "\x1b" not in served.run("show backends").out


@pytest.mark.parametrize(
    ("environment", "words", "coloured"),
    [
        ({}, (), True),
        ({"NO_COLOR": "1"}, (), False),
        ({"NO_COLOR": ""}, (), True),
        ({"TERM": "dumb"}, (), False),
        ({"NO_COLOR": "1"}, ("--color",), True),
    ],
)
def test_a_terminal_has_colours_unless_the_environment_says_no(
    terminal: Callable[..., Terminal], environment: dict[str, str], words: tuple[str, ...], coloured: bool
) -> None:
    shown = terminal(*words, "show", "backends", environment=environment)

    assert shown.end() == 0
    assert (b"\x1b[32mup" in shown.written) is coloured


def test_tables_fit_a_narrow_terminal_and_a_pipe_gets_rows(served: Served, terminal: Callable[..., Terminal]) -> None:
    narrow = terminal("--color=false", "show", "backends", columns=40)

    assert narrow.end() == 0
    lines = [line for line in narrow.shown if line]
    assert lines[:2] == ["BACKEND  ADDRESS         STATE    CHECK", "  LAST  RTT  FOR  DETAIL"]
    assert max(map(len, lines)) <= 40
    assert len(served.run("show backends").out.splitlines()) == 5


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("help", 0),
        ("--help", 0),
        ("show version", 0),
        ("sync vpp lb state dry-run", 0),
        ("set backend web0 drain dry-run", 0),
        ("config diff", 0),
        ("config check", 0),
        ("show bogus", 2),
        ("set backend web0 drain reason several words", 2),
        ("--bogus", 2),
    ],
)
def test_a_terminal_breaks_no_word_that_fits_it(
    served: Served, terminal: Callable[..., Terminal], line: str, status: int
) -> None:
    warning = Problem(
        ProblemKind.WARNING,
        "maglev.healthchecks.web",
        "its interval is less than a round trip through the network takes",
        7,
        5,
    )
    served.daemon.loader.result = LoadResult(small_config(), (warning,))
    shown = terminal("--color=false", *line.split(), columns=36)

    assert shown.end() == status
    # The terminal would go on in the middle of a word.
    answer = served.run(line, "--color=false")
    told = re.findall(r"(?<!\S)[a-z]+(?!\S)", answer.out + answer.err)
    assert len(told) > 2
    assert Counter(told) - Counter(" ".join(shown.shown).split()) == Counter()


def test_json_is_as_it_is_on_a_terminal_too(served: Served, terminal: Callable[..., Terminal]) -> None:
    shown = terminal("--json", "show", "version", columns=36)

    assert shown.end() == 0
    assert json.loads(shown.written)["version"] == "1.2.3"
    assert shown.written.replace(b"\r\n", b"\n").count(b"\n") == served.run("show version", "--json").out.count("\n")


def test_an_abbreviation_that_is_a_live_name_is_the_name(served: Served) -> None:
    answer = served.run("sync vpp lb state d")

    assert answer.status == 0
    # "d" is not a frontend, so it is dry-run; nothing was synced.
    assert served.daemon.dataplane.syncs == []


def test_version_and_help_need_no_server() -> None:
    for flags, words in ((["--version"], "maglevc "), (["--help"], "show frontends NAME"), (["-version"], "maglevc ")):
        done = subprocess.run([*COMMAND, *flags], capture_output=True, text=True, timeout=DEADLINE, check=True)
        assert words in done.stdout
    bad = subprocess.run([*COMMAND, "--bogus"], capture_output=True, text=True, timeout=DEADLINE)
    assert bad.returncode == 2


def test_commands_from_a_pipe_are_all_run(served: Served) -> None:
    answer = served.run(
        "", stdin="show frontends www\n\n# a comment\nshow bogus\nset backend web0 drain reason 'a b'\n"
    )

    assert "web0 weight 100" in answer.out
    assert "bogus" in answer.err
    assert served.daemon.checker.asked == [("drain", "web0", f"unix:{LOGIN}", "a b", 0)]
    assert answer.status == 2


def test_a_closed_pipe_is_no_error(served: Served) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--server", f"unix:{served.socket}", "watch", "events"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env=served.environment(),
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    served.do(lambda: served.daemon.checker.move("web0", State.DOWN, Code.L4CON))
    _, err = process.communicate(timeout=DEADLINE)

    assert process.returncode == 0
    assert err == b""


# -------------------------------------------------------------------------------------------------------- watch


def test_watch_prints_json_lines_and_ends_after_some(served: Served) -> None:
    answer = served.run("watch events num 6")
    events = [json.loads(line) for line in answer.out.splitlines()]

    assert answer.status == 0
    assert [next(iter(event)) for event in events] == ["backend"] * 4 + ["frontend"] * 2
    assert (events[0]["backend"]["name"], events[0]["backend"]["to_state"]) == ("web0", "up")
    assert events[1]["backend"]["detail"] == "\x1b[31m503"


def test_watch_passes_its_filters_on(served: Served) -> None:
    answer = served.run("watch events num 1 backend web1")

    assert json.loads(answer.out)["backend"]["name"] == "web1"


def test_watch_ends_as_unreachable_when_the_server_ends(served: Served) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--server", f"unix:{served.socket}", "watch", "events"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env=served.environment(),
    )
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["backend"]["name"] == "web0"
    served.stop()
    _, err = process.communicate(timeout=DEADLINE)
    served.restart()

    assert process.returncode == 3
    assert "on its way out" in err


# -------------------------------------------------------------------------------------------------------- shell


class Terminal:
    """The shell in a terminal, which is emulated: what a line editor writes is only what differs on the screen.

    setsid(1) makes the terminal the shell's own; forking here would fork gRPC's threads, too. Who runs the tests in the
    background has interrupts ignored for all of them, which env(1) takes back.
    """

    def __init__(
        self,
        served: Served,
        *words: str,
        columns: int = 200,
        lines: int = 500,
        environment: Mapping[str, str] = MappingProxyType({}),
        command: Sequence[str] = (),
    ) -> None:
        """``words`` for maglevc; or another ``command`` in its place."""
        # As it came, escape sequences and all.
        self.written = b""
        self._master, terminal = os.openpty()
        # Unless a test says otherwise, so many lines that nothing ever scrolls away.
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        termios.tcsetwinsize(self._master, (lines, columns))
        self._process = subprocess.Popen(
            [
                "setsid",
                "--ctty",
                "--wait",
                "env",
                "--default-signal=INT",
                *(command or [*COMMAND, "--server", f"unix:{served.socket}", *words]),
            ],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env={**served.environment(), **environment},
        )
        os.close(terminal)
        self._row = 0

    def _read(self, deadline: float) -> bool:
        """Take in what was written; False once everything is closed."""
        left = max(0.0, deadline - time.monotonic())
        if not select.select((self._master,), (), (), left)[0]:
            raise TimeoutError
        try:
            data = os.read(self._master, 65536)
        except OSError:
            # EIO: the terminal is closed.
            return False
        self.written += data
        self._stream.feed(data)
        return True

    def expect(self, text: str) -> None:
        """Wait until ``text`` stands on the screen, at or below the line that was typed last."""
        deadline = time.monotonic() + DEADLINE
        while not any(text in line for line in self._screen.display[self._row :]):
            try:
                going_on = self._read(deadline)
            except TimeoutError:
                going_on = False
            if not going_on:
                shown = "\n".join(line.rstrip() for line in self._screen.display[self._row :]).rstrip()
                raise AssertionError(f"{text!r} does not show:\n{shown}")

    @property
    def shown(self) -> list[str]:
        """The text on the screen."""
        return [line.rstrip() for line in self._screen.display]

    def press(self, keys: str) -> None:
        """Press keys that no line is made of."""
        os.write(self._master, keys.encode())

    def type(self, text: str) -> None:
        """Press keys."""
        self._row = self._screen.cursor.y
        os.write(self._master, text.encode())

    def end(self) -> int:
        """Wait for the end; the exit status."""
        deadline = time.monotonic() + DEADLINE
        while self._read(deadline):
            pass
        return self._process.wait(DEADLINE)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(DEADLINE)
        # The shell itself gets SIGHUP with its terminal.
        os.close(self._master)


@pytest.fixture
def terminal(served: Served) -> Iterator[Callable[..., Terminal]]:
    """Opens terminals, and closes them with the test."""
    opened: list[Terminal] = []

    def begin(*words: str, **options: Any) -> Terminal:
        opened.append(Terminal(served, *words, **options))
        return opened[-1]

    yield begin
    for one in opened:
        one.close()


@pytest.fixture
def shell(terminal: Callable[..., Terminal]) -> Terminal:
    shell = terminal("--color=false")
    shell.expect("up, 1 down")
    return shell


def test_shell_completes_words_and_live_names(shell: Terminal) -> None:
    shell.type("sh fro\t")
    shell.expect("]> sh frontends")
    shell.type("w\t")
    shell.expect("]> sh frontends www")
    shell.type("\r")
    shell.expect("web0 weight 100 effective 100")
    shell.expect("spare weight 10 effective 0")
    shell.type("set fr www po pri\t")
    shell.expect("po primary")
    shell.type("ba web1 wei 7\r")
    shell.expect("web1 weight 7 effective 0")
    shell.type("quit\r")

    assert shell.end() == 0


def test_the_prompt_of_a_narrow_terminal_has_the_state_alone(terminal: Callable[..., Terminal]) -> None:
    shell = terminal("--color=false", columns=40)
    shell.expect("[up, 1 down]>")
    assert not any("maglevc" in line for line in shell.shown)
    shell.type("show backends web0\r")
    shell.expect("  address       10.0.0.1")
    shell.type("quit\r")
    assert shell.end() == 0


def test_shell_shows_what_can_follow(shell: Terminal) -> None:
    shell.type("set backend web0 ?")
    shell.expect("  drain    no new flows; flows and probing stay")
    shell.type("\x15")
    shell.type("set backend web0 drain reason 'why?'\r")
    shell.expect("backend web0 is up, drained")
    shell.type("\x04")

    assert shell.end() == 0


def test_what_can_follow_fits_a_narrow_terminal(terminal: Callable[..., Terminal]) -> None:
    shell = terminal("--color=false", columns=36)
    shell.expect("[up, 1 down]>")
    shell.type("config ?")
    shell.expect("          file")
    shell.type("\x15")
    shell.type("show nothing ?")
    shell.expect("'nothing' is not expected here:")
    shell.type("\x15")
    shell.type("quit\r")

    assert shell.end() == 0


def test_shell_survives_errors_and_a_lost_server(shell: Terminal, served: Served) -> None:
    shell.type("show bogus\r")
    shell.expect("'bogus' is not expected here")
    served.stop()
    shell.expect("[away]>")
    shell.type("show version\r")
    shell.expect("cannot reach")
    served.restart()
    shell.expect("[up]>")
    shell.type("show version\r")
    shell.expect("maglevd 1.2.3")
    shell.type("exit\r")

    assert shell.end() == 0


def test_shell_keeps_its_history_on_disk(shell: Terminal, served: Served, terminal: Callable[..., Terminal]) -> None:
    shell.type("show overrides\r")
    shell.expect("REASON")
    shell.type("quit\r")
    assert shell.end() == 0

    path = served.home / "state" / "vpp-maglev" / "maglevc_history"
    assert "+show overrides" in path.read_text().splitlines()
    assert path.stat().st_mode & 0o077 == 0
    again = terminal("--color=false")
    again.expect("]>")
    again.type("\x1b[A")
    again.expect("]> quit")
    again.type("\x1b[A")
    again.expect("]> show overrides")
    again.type("\r")
    again.expect("REASON")
    again.type("quit\r")
    assert again.end() == 0


def test_a_key_or_an_interrupt_ends_a_watch(shell: Terminal, terminal: Callable[..., Terminal]) -> None:
    for key in ("x", "\x03"):
        shell.type("watch events\r")
        shell.expect("any key ends")
        shell.type(key)
        shell.expect("]>")
    shell.type("show version\r")
    shell.expect("maglevd 1.2.3")
    shell.type("quit\r")
    assert shell.end() == 0

    alone = terminal("watch", "events")
    alone.expect("any key ends")
    alone.type("q")
    assert alone.end() == 0


def test_proto_enums_and_words_of_the_tree_agree() -> None:
    for state in ("up", "down", "unknown", "paused", "disabled"):
        assert pb.BackendState.Value(f"BACKEND_STATE_{state.upper()}")
    for level in ("debug", "info", "warning", "error"):
        assert pb.LogLevel.Value(f"LOG_LEVEL_{level.upper()}")


# ------------------------------------------------------------------------------------------------------ completion


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["sh"], ["show"]),
        (["sho", "ba"], ["backends"]),
        (["show", "backends", ""], ["web0", "web1"]),
        (["show", "backends", "web1"], ["web1"]),
        (["set", "backend", "web0", "dr"], ["drain"]),
        (["nonsense", ""], []),
        (["show", "backends", "nobody"], []),
    ],
)
def test_words_and_live_names_are_offered_to_other_shells(served: Served, words: list[str], offered: list[str]) -> None:
    done = subprocess.run(
        [*COMMAND, "--server", f"unix:{served.socket}", "--complete", *words],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        env=served.environment(),
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = done.stdout.splitlines()
    assert [word for word in offered if word not in found] == []
    assert [word for word in found if not word.startswith(words[-1])] == []
    assert bool(found) == bool(offered)


# What makes a shell that has read no file of this system complete maglevc, with the files of the package.
SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], ". /usr/share/bash-completion/bash_completion; . {}/maglevc"),
    "zsh": (["zsh", "-f", "-i"], "fpath=({} $fpath); autoload -Uz compinit; compinit -u -D"),
}


@pytest.mark.parametrize("name", list(SHELLS))
def test_other_shells_complete_words_live_names_and_flags(
    served: Served, terminal: Callable[..., Terminal], name: str
) -> None:
    command, setup = SHELLS[name]
    files = served.home / "completion"
    files.mkdir()
    shutil.copy(ROOT / "debian" / "maglevc.bash-completion", files / "maglevc")
    shutil.copy(ROOT / "debian" / "maglevc.zsh-completion", files / "_maglevc")
    shell = terminal(command=command)
    shell.type(f"PS1='ready> '; cd {served.home}; {setup.format(files)}; maglevc() {{ {' '.join(COMMAND)} \"$@\"; }}\r")
    shell.expect("ready> ")
    # Of bash's own words a colon is one.
    for typed, completed in (
        (f"maglevc --server unix:{served.socket} set ba\t", " set backend "),
        ("web1\t", " set backend web1 "),
        ("und\t", " web1 undrain "),
        ("\x15maglevc --vers\t", "maglevc --version "),
        ("\x15maglevc --tls-ca comp\t", "--tls-ca completion/"),
    ):
        shell.type(typed)
        shell.expect(completed)
    shell.type("\x15exit\r")
    assert shell.end() == 0


def test_question_mark_shows_live_names(shell: Terminal) -> None:
    shell.type("show frontends ?")
    shell.expect("  NAME     one frontend with the weights of its members")
    shell.expect("    www  dns")
    # The line that was being written is still there.
    shell.type("www\r")
    shell.expect("active pool")


# ------------------------------------------------------------------------------------------------ live on a terminal


def test_watch_is_readable_on_a_terminal(served: Served, terminal: Callable[..., Terminal]) -> None:
    watch = terminal("--color=false", "watch", "events")
    watch.expect("  backend web1  is down  L7STS (\\x1b[31m503)")
    watch.expect("-- backends 2 unknown, 1 up, 1 down; frontends 1 up, 1 unknown; any key ends --")
    assert not any("web0" in line for line in watch.shown), "what is as it should be is only counted"
    served.do(lambda: served.daemon.checker.move("web0", State.DOWN, Code.L4CON, detail="\x1b[31mrefused"))
    watch.expect("  backend web0  up -> down  L4CON (\\x1b[31mrefused)")
    served.do(lambda: served.daemon.checker.drain("web1", by="ann", reason="disk"))
    watch.expect("  backend web1  drained by ann: disk")
    watch.press(" ")
    assert watch.end() == 0


def test_watch_prints_json_on_a_terminal_when_asked(terminal: Callable[..., Terminal]) -> None:
    watch = terminal("--json", "watch", "events", "num", "1")
    assert watch.end() == 0
    assert json.loads("".join(watch.shown))["backend"]["name"] == "web0"


def test_top_follows_what_happens_on_a_small_screen(served: Served, terminal: Callable[..., Terminal]) -> None:
    top = terminal("--color=false", "top", columns=80, lines=24)
    top.expect("backends 4: ")
    top.expect("www       192.0.2.80 tcp 80")
    top.expect("web1 0 down, web0 100")
    assert top.shown[1] == "backends 4: 2 unknown, 1 up, 1 down"
    assert top.shown[23].startswith("q quit")
    served.do(lambda: served.daemon.checker.move("web0", State.DOWN, Code.L4CON))
    top.expect("backend web0  up -> down  L4CON")
    top.expect("web0 0 down, web1 0")
    top.expect("transitions 3 in 60 s")  # with those from before

    served.stop()
    top.expect("maglevd away: ")
    served.restart()
    top.expect("backends 4: 4 unknown")
    served.do(lambda: served.daemon.checker.move("web1", State.UP, Code.L7OK))
    top.expect("backend web1  unknown -> up  L7OK")
    top.press("q")
    assert top.end() == 0


def test_top_needs_a_terminal(served: Served) -> None:
    answer = served.run("top")
    assert (answer.status, answer.out) == (1, "")
    assert "needs a terminal" in answer.err
