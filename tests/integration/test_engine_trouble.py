"""Our own trouble is no verdict: a process that is stopped or starved, a clock that is set, too few descriptors, queues
that overflow, an interpreter that is busy."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from maglev._probe import Engine
from maglev.base.states import Code, State
from maglev.daemon.receivequeue import RMEM_MAX, WANTED_BYTES
from tests.helpers.apart import Report, Target, apart, compiled
from tests.helpers.clockstep import ClockStep
from tests.helpers.engine import MS, check, listener, port_of, probing
from tests.helpers.netns import SILENT, echo_reply, flipped, inside, pair, stranger, tcp_reply
from tests.helpers.tls import Certificate, Handshakes, server
from tests.helpers.web import web

# What the kernel answers for has to be quick; servers that are threads of this process share the machine with others.
QUICK = {"interval": 100 * MS, "fast_interval": 100 * MS, "timeout": 50 * MS, "fall": 1}
LOOSE = dict.fromkeys(("interval", "fast_interval", "timeout"), 2000 * MS) | {"fall": 1}


@contextlib.contextmanager
def every_kind(tmp_path: Path, many: int = 40, few: int = 4) -> Iterator[list[Target]]:
    """Good servers of every kind, and targets for them."""
    authority = Certificate(["authority"], ca=True)
    ca = str(authority.write(tmp_path / "ca.pem"))
    context = Certificate(["127.0.0.1"], authority).context(tmp_path)
    with (
        listener("0.0.0.0", backlog=4096) as quiet,
        listener() as plain,
        listener() as secret,
        web(plain),
        web(secret, context),
    ):
        kernel = [("icmp", 0), ("syn", port_of(quiet)), ("connect", port_of(quiet))]
        served = [("http", port_of(plain)), ("https", port_of(secret)), ("tls", port_of(secret))]
        targets = [
            Target(kind, f"127.0.7.{n}", port, first_delay=n * 100 * MS // many, changes=QUICK)
            for kind, port in kernel
            for n in range(1, many + 1)
        ]
        targets += [
            Target(kind, "127.0.0.1", port, ca, first_delay=n * 2000 * MS // few, changes=LOOSE)
            for kind, port in served
            for n in range(few)
        ]
        yield targets


def assert_no_failure(report: Report) -> None:
    assert [(at, codes) for at, codes in enumerate(report.failures) if codes] == []
    assert report.moves == []


def test_a_process_that_was_stopped_wakes_without_a_verdict(tmp_path: Path) -> None:
    with every_kind(tmp_path) as targets, apart(targets) as one:
        one.all_probed_again(1)
        for seconds in (0.3, 0.7, 2.0, 10.0):
            with one.stopped():
                time.sleep(seconds)  # not a wait for an event: the length of the stall
            assert_no_failure(one.all_probed_again(1))
        report = one.ask()
        assert report.stats["stalls"] >= 4
        # Nor is it hidden how late the probes were that the last stop put off.
        assert report.late >= len(targets) // 2


def test_a_wall_clock_that_is_set_changes_no_verdict(tmp_path: Path) -> None:
    clock = ClockStep(tmp_path)
    environment = {**os.environ, **clock.environment}
    with every_kind(tmp_path) as targets, apart(targets, environment=environment) as one:
        before = 0.0
        one.all_probed_again(1)
        for seconds in (3600, -3600, 5, -5, 0.03, -0.03):
            clock.set(seconds)
            report = one.all_probed_again(1)
            assert_no_failure(report)
            assert abs(report.stats["clock_step_ns"] - (seconds - before) * 1e9) < 5e6
            before = seconds
            # The wall clock did move for the process: what people read of the results moved with it.
            assert abs(report.last_at_ns - time.time_ns() - seconds * 1e9) < 1e9 * min(2.0, abs(seconds) / 2 + 1)
        assert report.stats["clock_steps"] == 6


FIN, SYN, RST, ACK = 1, 2, 4, 16
SECOND = dict.fromkeys(("interval", "fast_interval", "timeout"), 1000 * MS)


@pytest.mark.parametrize(("kind", "end"), [("connect", RST), ("http", FIN), ("http", RST)])
def test_a_server_that_gives_up_while_we_are_stopped_is_not_failed(kind: str, end: int) -> None:
    with pair() as nets, stranger(nets.server, lambda p: []) as other:
        target = Target(kind, SILENT, 80, changes={**SECOND, "fall": 1, "netns": nets.client})
        with apart([target]) as one:
            one.until(lambda report: len(other.seen) > 0)
            with one.stopped():
                other.send(tcp_reply(other.seen[0], SYN | ACK))
                other.send(tcp_reply(other.seen[0], end | ACK, sequence=1001))
                time.sleep(0.5)  # not a wait for an event: half of the time that the server had
            assert_no_failure(one.until(lambda report: report.stats["repeated"] > 0))


@pytest.mark.parametrize(
    ("kind", "version"),
    [("https", ssl.TLSVersion.TLSv1_2), ("https", ssl.TLSVersion.TLSv1_3), ("tls", ssl.TLSVersion.TLSv1_2)],
)
def test_a_server_that_gives_up_the_handshake_while_we_are_stopped_is_not_failed(
    kind: str, version: ssl.TLSVersion, tmp_path: Path
) -> None:
    authority = Certificate(["authority"], ca=True)
    ca = str(authority.write(tmp_path / "ca.pem"))
    context = Certificate(["127.0.0.1"], authority).context(tmp_path)
    context.minimum_version = context.maximum_version = version
    good = Handshakes(context)
    asked, go, ended = threading.Event(), threading.Event(), threading.Event()

    def impatient_at_first(client: socket.socket) -> None:
        if ended.is_set():
            good(client)
            return
        client.recv(1, socket.MSG_PEEK)
        asked.set()
        assert go.wait(20)
        client.settimeout(0.5)
        good(client)
        client.close()
        ended.set()

    changes = {**SECOND, "fall": 1}
    with server(impatient_at_first) as one, apart([Target(kind, "127.0.0.1", one.port, ca, changes=changes)]) as other:
        assert asked.wait(20)
        with other.stopped():
            go.set()
            assert ended.wait(20)
        report = other.all_probed_again(1)
        assert_no_failure(report)
        assert report.stats["repeated"] == 1
        assert len(good.failures) == 1


def test_a_process_that_gets_no_cpu_comes_back_without_a_verdict(tmp_path: Path) -> None:
    """Two seconds in which it runs when nobody else wants to, beside twice as many busy processes as there are CPUs."""
    with every_kind(tmp_path) as targets, apart(targets) as one:
        one.all_probed_again(1)
        for task in Path(f"/proc/{one.process.pid}/task").iterdir():
            os.sched_setscheduler(int(task.name), os.SCHED_IDLE, os.sched_param(0))
        script = "import time; end = time.monotonic() + 2\nwhile time.monotonic() < end: pass"
        hogs = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(2 * (os.cpu_count() or 1))]
        for hog in hogs:
            assert hog.wait(60) == 0
        report = one.all_probed_again(1)
        assert_no_failure(report)


def test_a_sender_without_buffers_is_late_and_fails_nobody(tmp_path: Path) -> None:
    """Of three batches the kernel takes one, half of one, and none."""
    shim = compiled("nobuffers", tmp_path, "-shared", "-fPIC")
    preload = " ".join([os.environ.get("LD_PRELOAD", ""), str(shim)]).strip()
    with listener("0.0.0.0", backlog=4096) as sock:
        targets = [
            Target(kind, f"127.0.7.{n}", port, changes=QUICK)
            for kind, port in (("icmp", 0), ("syn", port_of(sock)))
            for n in range(1, 201)
        ]
        with apart(targets, environment={**os.environ, "LD_PRELOAD": preload}) as one:
            report = one.all_probed_again(5)
            assert_no_failure(report)
            assert report.stats["enobufs"] > 10


def test_replies_that_overflow_the_receive_queue_fail_nobody() -> None:
    """What a queue that is full has lost is asked for again; the time-outs are long, so no stall excuses them."""
    answers: list[bool] = []
    slow = dict.fromkeys(("interval", "fast_interval", "timeout"), 6000 * MS)
    with pair() as nets, stranger(nets.server, lambda p: [echo_reply(p)] if answers else []) as other:
        targets = [Target("icmp", SILENT, changes={**slow, "fall": 1, "netns": nets.client})] * 20
        with apart(targets) as one:
            one.until(lambda report: len(other.seen) == len(targets))
            with one.stopped():
                # The kernel doubles what is asked for, and no packet takes less than half a kilobyte of it.
                for _ in range(2 * min(WANTED_BYTES, int(RMEM_MAX.read_text())) // 512):
                    other.send(echo_reply(flipped(other.seen[0], 4)))
                for request in other.seen[:]:
                    other.send(echo_reply(request))
            # The drops are counted before what did not get lost is read.
            report = one.until(lambda report: report.stats["rx_drops"] >= len(targets) and report.stats["forged"] > 0)
            assert report.stats["rx_buffer"] > 0
            answers.append(True)
            report = one.all_probed_again(1)
            assert_no_failure(report)
            assert report.stats["repeated"] >= len(targets)


def test_a_flood_of_strangers_changes_no_verdict(tmp_path: Path) -> None:
    flood = compiled("flood", tmp_path)
    with pair() as nets, inside(nets.client, lambda: listener("0.0.0.0", backlog=4096)) as sock, probing() as p:
        port = port_of(sock)
        quick = {"interval": 300 * MS, "fast_interval": 300 * MS, "timeout": 250 * MS, "netns": nets.client, "fall": 1}
        targets = [
            p.add(check(kind, at, **quick), f"127.1.{n >> 8}.{n & 255}", first_delay=n * 300 * MS // 500)
            for kind, at in (("icmp", 0), ("syn", port))
            for n in range(500)
        ]
        p.wait(lambda: len(p.transitions) == len(targets), "all to be up")
        before = [p.probes(target) for target in targets]
        command = ["ip", "netns", "exec", nets.client, str(flood), "400000", "200000"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            p.wait(lambda: process.poll() is not None, "the flood to end")
            assert process.stdout
            assert int(process.stdout.read()) >= 400000
        p.wait(
            lambda: all(p.probes(target) > old + 2 for target, old in zip(targets, before, strict=True)), "more probes"
        )
        assert [one for one in p.transitions if one.to_state != State.UP] == []
        # Most of it was dropped by the filter; what went to a port of ours was looked at and not believed.
        assert p.engine.stats()["forged"] > 0


def test_too_few_descriptors_make_probes_late_and_never_fail_them() -> None:
    """200 http probes that are never answered hold their descriptors while 200 connect probes want theirs."""
    with listener("0.0.0.0", backlog=4096) as sock:
        targets = [
            Target(kind, f"127.0.7.{n}", port_of(sock), changes={**QUICK, "rise": 1})
            for kind in ("http", "connect")
            for n in range(1, 201)
        ]
        with apart(targets, limit=200) as one:
            one.until(lambda report: report.stats["late_fd"] > 100)
            more = one.ask().stats["sent_connect"] + 500
            report = one.until(lambda report: report.stats["sent_connect"] > more)
            assert not any(report.failures[200:])
            # Each probe that had to wait counts once, however often it was tried: no more than were sent or still wait.
            sent = report.stats["sent_connect"] + report.stats["sent_http"]
            assert report.stats["late_fd"] <= sent + len(targets)


def test_too_few_source_ports_make_probes_late_and_never_fail_them() -> None:
    """With so few descriptors there are 64 ports, one for a second: who wants to probe more often has to wait."""
    with (
        listener("0.0.0.0") as sock,
        apart([Target("syn", "127.0.7.1", port_of(sock), changes=QUICK)], limit=300) as one,
    ):
        report = one.until(lambda report: report.stats["late_port"] >= 2 and report.probes[0] >= 3)
        assert not any(report.failures)
        assert report.stats["late_port"] <= report.probes[0] + 1


def test_probes_go_on_while_python_holds_the_interpreter_lock() -> None:
    import re

    with probing() as p:
        target = p.add(check("icmp", interval=20 * MS, fast_interval=20 * MS), "127.0.0.3")
        p.becomes(target, State.UP)
        before = p.probes(target)
        started = time.monotonic()
        # A regular expression that backtracks keeps the lock to itself from its beginning to its end.
        assert re.fullmatch(r"(a|aa)+b", "a" * 29) is None
        held = time.monotonic() - started
        assert p.probes(target) - before >= held / 0.022 / 2
        assert p.engine.stats()["failed"] == 0


def test_a_full_ring_loses_no_final_state() -> None:
    with listener() as sock, probing(ring=8) as p:
        port = port_of(sock)
        quick = {"interval": 10 * MS, "fast_interval": 10 * MS, "down_interval": 10 * MS, "timeout": 10 * MS}
        a_check = p.engine.add_check(check("syn", port, rise=1, fall=1, **quick))
        targets = [p.engine.add_target(a_check, bytes([127, 0, 0, 1]), state=State.UP) for n in range(50)]
        # Nothing is read while all go down and up and down again.
        counts = [0] * 50

        def all_had(code: Code) -> bool:
            infos = [p.engine.target_info(target) for target in targets]
            return all(info.codes[code] > before for info, before in zip(infos, counts, strict=True))

        def wait_for_all(code: Code) -> None:
            counts[:] = [p.engine.target_info(target).codes[code] for target in targets]
            deadline = time.monotonic() + 20
            while not all_had(code):
                assert time.monotonic() < deadline
                time.sleep(0.005)

        wait_for_all(Code.L4OK)
        sock.close()
        wait_for_all(Code.L4CON)
        with listener(port=port):
            wait_for_all(Code.L4OK)
        wait_for_all(Code.L4CON)
        stats = p.engine.stats()
        assert stats["transitions"] == 8
        assert stats["transitions_deferred"] >= 50
        p.wait(lambda: all(p.of(target) and p.of(target)[-1].to_state == State.DOWN for target in targets), "the rest")
        for target in targets:
            states = [State.UP, *(one.to_state for one in p.of(target))]
            assert [one.from_state for one in p.of(target)] == states[:-1]


def test_an_engine_that_cannot_start_leaves_no_thread_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    before = set(os.listdir("/proc/self/task"))
    engine = Engine(capacity=64)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        engine.start()
    assert set(os.listdir("/proc/self/task")) <= before
    engine.stop()
    del engine
