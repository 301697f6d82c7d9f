"""When probes are sent: no more often than asked for, at the interval of the state, whatever else the engine does."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from maglev.base.states import CheckType, State
from maglev.config.model import HttpParams, TlsParams
from tests.helpers.engine import MS, Probing, check, listener, packed, port_of, probing

HOUR = 3600 * 1000 * MS


def others_go_on(p: Probing, clock: int) -> None:
    """Wait until a target with a short interval has had twenty further probes: time for many of anybody's."""
    p.wait_probes(clock, 20)


@pytest.mark.parametrize("kind", ["icmp", "syn", "connect"])
def test_probes_are_no_more_frequent_than_their_interval(kind: str) -> None:
    with listener() as sock, probing() as p:
        began = time.monotonic()
        target = p.add(check(kind, port_of(sock), interval=20 * MS, fast_interval=20 * MS), "127.0.0.1")
        p.wait(lambda: p.probes(target) >= 60)
        probes, elapsed = p.probes(target), time.monotonic() - began
        # A tenth of jitter, and the tenth of a second that is caught up with after a stall.
        assert probes <= 1 + (elapsed + 0.1) / 0.018


def test_every_state_has_its_interval() -> None:
    with listener() as sock, probing() as p:
        port = port_of(sock)
        clock = p.add(check("icmp", interval=20 * MS, fast_interval=20 * MS), "127.0.0.9")
        seldom = {"interval": HOUR, "fast_interval": 20 * MS, "down_interval": HOUR, "rise": 3, "fall": 3}
        target = p.add(check("connect", port, **seldom), "127.0.0.1", state=State.DOWN, counter=1)
        p.becomes(target, State.UP)  # by two passes at the fast interval
        had = p.probes(target)
        assert had == 2
        others_go_on(p, clock)
        assert p.probes(target) == had  # fully up: in an hour
        sock.close()
        p.engine.resume_target(target, state=State.UP, counter=4)
        p.becomes(target, State.DOWN)  # by two failures at the fast interval
        had = p.probes(target)
        assert had == 4
        others_go_on(p, clock)
        assert p.probes(target) == had  # fully down: in an hour


def test_fifty_thousand_targets_come_and_go_without_a_pause_for_the_others() -> None:
    with probing(capacity=50_100) as p:
        often = p.engine.add_check(check("icmp", interval=20 * MS, fast_interval=20 * MS))
        others = [p.engine.add_target(often, packed(f"127.5.0.{n}")) for n in range(1, 101)]
        seldom = p.engine.add_check(check("icmp", interval=HOUR, fast_interval=HOUR))
        p.wait(lambda: len(p.transitions) >= len(others))
        before = [p.probes(target) for target in others]
        began = time.monotonic()
        for _ in range(3):
            many = [p.engine.add_target(seldom, packed("127.6.0.1"), first_delay=HOUR) for _ in range(50_000)]
            for target in many:
                p.engine.remove_target(target)
        p.wait(lambda: p.engine.stats()["targets"] == len(others), "the last to be removed")
        elapsed = time.monotonic() - began
        # At least half of the probes that were due meanwhile, each with a result; nobody failed.
        for target, had in zip(others, before, strict=True):
            assert p.probes(target) - had >= elapsed / 0.022 / 2
        assert p.engine.stats()["failed"] == 0


def test_more_tls_connections_than_can_be_wait_their_turn_and_are_counted_once() -> None:
    sockets = [listener(f"127.0.0.{n}", backlog=4096) for n in (1, 2, 3)]
    with probing(capacity=8192) as p:
        for sock in sockets:
            params = HttpParams(tls=TlsParams(None, True, None))
            patient = dict.fromkeys(("interval", "fast_interval", "down_interval", "timeout"), HOUR)
            an_id = p.engine.add_check(
                check("http", port_of(sock), type=CheckType.HTTPS, params=params, name="https", **patient)
            )
            for _ in range(1400):
                p.engine.add_target(an_id, packed(sock.getsockname()[0]))
        p.wait(lambda: p.engine.stats()["waiting_fd"] == 3 * 1400 - 4096, "those beyond 4,096 to wait")
        ticks = p.engine.stats()["ticks"]
        p.wait(lambda: p.engine.stats()["ticks"] > ticks + 100, "that to be tried many times")
        stats = p.engine.stats()
        assert (stats["waiting_fd"], stats["late_tls"], stats["failed"]) == (104, 104, 0)
        for sock in sockets:
            sock.close()
        p.wait(lambda: p.engine.stats()["sent_http"] >= 3 * 1400, "their turn")
        assert p.engine.stats()["late_tls"] == 104


LIMITS = """
import resource
from maglev._probe import Engine
resource.setrlimit(resource.RLIMIT_NOFILE, (300, 900))
engine = Engine(capacity=1)
engine.start()
engine.stop()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_the_descriptor_limit_is_raised_to_the_hard_limit_at_the_start() -> None:
    done = subprocess.run([sys.executable, "-c", LIMITS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["900", "900"]
