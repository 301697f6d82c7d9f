"""Where probes leave from changes under them: namespaces that go or are made anew, and an opener that has to wait."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from maglev._probe import Engine
from maglev.base.states import CheckType, Code, State
from maglev.config.model import HttpParams, TlsParams
from tests.helpers.engine import MS, Probing, check, listener, packed, port_of, probing
from tests.helpers.netns import (
    SERVER,
    SERVER6,
    SILENT,
    SILENT6,
    ends,
    head,
    icmp_packet,
    inside,
    ip,
    pair,
    stranger,
)
from tests.helpers.tls import tls

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
        assert "no route" in p.blocked(lost)
        ip("netns", "del", nets.client)
        many = [p.engine.add_target(slow, packed(f"198.51.100.{n}"), state=State.UP) for n in range(10, 40)]
        for target in many:
            assert "ENOENT" in p.blocked(target)
            assert not p.of(target)
        assert not p.of(first)


def test_sockets_of_a_namespace_that_was_made_anew_are_not_used_again() -> None:
    with pair() as nets, probing() as p, inside(nets.server, lambda: listener(SERVER)) as sock:
        changes = {"netns": nets.client, "fall": 1}
        # A handshake that nobody answers is under way all the time.
        waiting = check("connect", port_of(sock), params=tls(), **changes, **{**MINUTE, "timeout": 5000 * MS})
        late = p.add(waiting, SERVER, state=State.UP)
        good = p.add(check("connect", port_of(sock), **changes, **QUICK), SERVER)
        p.becomes(good, State.UP)
        ip("netns", "del", nets.client)
        assert "ENOENT" in p.blocked(good)
        ip("-n", nets.server, "link", "del", "veth0")
        nets.join()
        p.unblocked(good)
        # Its socket is the old namespace's, from which no way leads anywhere: no verdict, and no use to others.
        p.wait(lambda: p.engine.stats()["repeated"] or p.probes(late))
        assert p.probes(late) == 0
        p.wait_probes(good, 5)
        assert [one.to_state for one in p.of(good)] == [State.UP]


def test_sockets_made_in_another_namespace_than_those_before_are_not_used() -> None:
    with (
        pair() as nets,
        pair() as others,
        probing() as p,
        inside(others.server, lambda: listener(SERVER, backlog=1024)) as sock,
    ):
        waiting = {**MINUTE, "timeout": 1000 * MS, "netns": nets.client, "fall": 1}
        once = p.engine.add_check(check("connect", port_of(sock), **waiting))
        # The only way there ends in silence; a look at the namespace is good for a second.
        ip("-n", nets.server, "addr", "del", f"{SERVER}/24", "dev", "veth0")
        first = p.engine.add_target(once, packed(SERVER), state=State.UP)
        p.wait(lambda: p.engine.stats()["sent_connect"] == 1)
        ip("netns", "del", nets.client)
        name = Path("/run/netns") / nets.client
        name.touch()
        subprocess.run(["mount", "--bind", f"/run/netns/{others.client}", str(name)], check=True)
        # More than there are sockets left: some are made now, in the namespace that has the name now.
        many = [p.engine.add_target(once, packed(SERVER), state=State.UP) for _ in range(100)]
        for target in (first, *many):
            p.wait(partial(p.probes, target))
            assert not p.of(target)


def test_a_reply_that_is_lost_with_its_socket_fails_nobody() -> None:
    with pair() as nets, probing() as p, stranger(nets.server, lambda packet: []) as other:
        source = IPv4Address("192.0.2.50")
        own = [f"{source}/24", "dev", "veth0"]
        ip("-n", nets.client, "addr", "add", *own)
        changes: dict[str, Any] = {"netns": nets.client, "probe_ipv4_src": source, "fall": 1}
        waiting = {**MINUTE, "timeout": 3000 * MS}
        # A failure that is about to be one has the source looked for: the silent host's is not there any more.
        hurried = p.engine.add_check(check("icmp", **changes, **QUICK))
        late = p.engine.add_target(
            p.engine.add_check(check("icmp", **changes, **waiting)), packed(SILENT), state=State.UP
        )
        p.wait(lambda: len(other.seen) == 1)
        ip("-n", nets.client, "addr", "del", *own)
        witness = p.engine.add_target(hurried, packed(SERVER), state=State.UP)
        p.blocked(witness)
        ip("-n", nets.client, "addr", "add", *own)
        p.unblocked(witness)
        p.wait(lambda: len(other.seen) > 1)
        assert p.probes(late) == 0
        assert not p.of(late)


def too_big(probe: bytes) -> list[bytes]:
    """A router's word that a packet does not fit into the link behind it."""
    target, at = ends(probe)[0], head(probe)
    kind, code, router = (3, 4, SERVER) if at == 20 else (2, 0, SERVER6)
    return [icmp_packet(packed(router), target, kind, code, bytes(4) + probe[: at + 8])]


@pytest.mark.parametrize(("address", "way"), [(SILENT, SERVER), (SILENT6, SERVER6)])
@pytest.mark.parametrize(("kind", "code"), [("icmp", Code.L3TOUT), ("syn", Code.L4TOUT)])
def test_a_router_that_finds_every_packet_too_big_is_asked_a_few_times_only(
    kind: str, code: Code, address: str, way: str
) -> None:
    once = {**MINUTE, "timeout": 300 * MS, "fall": 1}
    with pair() as nets, probing() as p, stranger(nets.server, too_big) as router:
        p.becomes(p.add(check("icmp", netns=nets.client, **QUICK), way), State.UP)
        target = p.add(check(kind, 0 if kind == "icmp" else 80, netns=nets.client, **once), address)
        assert p.becomes(target, State.DOWN).code == code
        # Silence counts from 2.5 s after the first look at the link on: until then the probe is repeated.
        assert 1 < len(router.seen) < 20


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
