"""Where probes leave from changes under them: namespaces that go or are made anew, and an opener that has to wait."""

from __future__ import annotations

import os
import socket
import threading
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from maglev._probe import Engine
from maglev.config.model import HttpParams, TlsParams
from maglev.states import CheckType, State
from tests.helpers.engine import MS, Probing, check, listener, packed, port_of, probing
from tests.helpers.netns import (
    SILENT,
    ip,
    pair,
)

MINUTE = dict.fromkeys(("interval", "fast_interval", "down_interval", "timeout"), 60_000 * MS)
QUICK = dict.fromkeys(("interval", "fast_interval", "down_interval", "timeout"), 200 * MS)


def test_a_namespace_that_goes_away_in_the_middle_of_a_batch_is_no_verdict() -> None:
    with pair() as nets, probing() as p:
        slow = p.engine.add_check(check("syn", 80, netns=nets.client, fall=1, **MINUTE))
        first = p.engine.add_target(slow, packed(SILENT))
        p.wait(lambda: p.engine.stats()["sent_syn"] == 1)
        ip("-n", nets.client, "link", "del", "veth0")
        # There is no way to this one, but the namespace is there: it was just looked for.
        lost = p.engine.add_target(slow, packed(SILENT))
        p.becomes(lost, State.DOWN)
        ip("netns", "del", nets.client)
        many = [p.engine.add_target(slow, packed(f"198.51.100.{n}"), state=State.UP) for n in range(10, 40)]
        for target in many:
            assert "ENOENT" in p.blocked(target)
            assert not p.of(target)
        assert not p.of(first)


def rounds_after(p: Probing, pulse: int) -> bool:
    return p.engine.pulse() > pulse


def test_origins_may_come_and_go_while_the_opener_waits() -> None:
    stuck = Path(f"/run/netns/mgl-{os.getpid()}-stuck")
    stuck.parent.mkdir(exist_ok=True)
    os.mkfifo(stuck)
    try:
        with probing(capacity=2048) as p:
            checks = [
                p.engine.add_check(check("icmp", netns=stuck.name, probe_ipv4_src=IPv4Address(f"127.0.1.{n}")))
                for n in range(200)
            ]
            try:
                for _round in range(14):
                    targets = [p.engine.add_target(one, packed("127.0.0.1")) for one in checks]
                    p.wait(partial(rounds_after, p, p.engine.pulse() + 2))
                    for target in targets:
                        p.engine.remove_target(target)
            finally:
                # Now the opener finds that it is no namespace, again and again.
                end = os.open(stuck, os.O_RDWR)
            p.becomes(p.add(check("icmp"), "127.0.0.1"), State.UP)
            os.close(end)
    finally:
        stuck.unlink()


def test_a_check_that_is_refused_takes_no_place_of_another() -> None:
    engine = Engine(capacity=4)
    first, second = (engine.add_check(check("icmp", name=name)) for name in ("first", "second"))
    engine.remove_check(first)
    bad = check("http", 443, type=CheckType.HTTPS, params=HttpParams(tls=TlsParams(ca_file="")))
    with pytest.raises(ValueError, match="no file name"):
        engine.add_check(bad)
    assert second not in {engine.add_check(check("icmp")), engine.add_check(check("icmp"))}


def test_an_expression_that_takes_its_time_does_not_end_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import re2

    searching, go = threading.Event(), threading.Event()

    class Slow:
        def search(self, body: bytes) -> None:
            searching.set()
            assert go.wait(20)

    monkeypatch.setattr(re2, "compile", lambda *_: Slow())
    with listener() as sock, probing() as p:
        p.add(check("http", port_of(sock), params=HttpParams(response_regexp="x"), **MINUTE), "127.0.0.1")
        client, _ = sock.accept()
        with client:
            client.recv(65536)
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\nx")
            client.shutdown(socket.SHUT_WR)
            assert searching.wait(20)
            stopping = threading.Thread(target=p.engine.stop)
            stopping.start()
            p.wait(lambda: not p.engine.running)
            go.set()
            stopping.join()
