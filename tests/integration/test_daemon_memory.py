"""An attack on the daemon's memory by callers on TCP that need no identity: memory is bounded, and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.helpers.daemon import DEADLINE, Watcher
from tests.integration.test_daemon_attacked import PREFACE, SETTINGS, Attacked, frame

SECONDS = 30
CONNECTIONS = 400
REFERENCES = 4_000
BOUND = 640 << 20
"""docs/operations.md states it, for a daemon that needs 64 MiB by itself."""

FALLEN = 96 << 20
"""Memory that may stay in use after the attack, above the level before: gRPC keeps some memory of 400 connections."""


def literal(name: bytes, value: bytes, *, indexed: bool = False) -> bytes:
    """A header written out (RFC 7541, section 6.2), which becomes an entry of the dynamic table if ``indexed``."""
    rest = len(value) - 127
    length = bytes([len(value)]) if rest < 0 else bytes([127, rest & 127 | 128, rest >> 7])
    return (b"\x40" if indexed else b"\x00") + bytes([len(name)]) + name + length + value


CALL = (
    b"\x83\x86"  # POST, http
    + literal(b":path", b"/maglev.Maglev/GetServerInfo")
    + literal(b":authority", b"x")
    + literal(b"content-type", b"application/grpc")
    + literal(b"te", b"trailers")
)
ENTRY = CALL + literal(b"a", b"v" * 3_900, indexed=True)
REFER = CALL + b"\xbe" * REFERENCES  # index 62: the newest entry of the dynamic table


class Attacker:
    """Connections that ask without end, acknowledge nothing and read nothing. ``run`` blocks: for a thread."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._selector = selectors.DefaultSelector()
        self._streams: dict[socket.socket, int] = {}
        self._left: dict[socket.socket, bytes] = {}
        self.asked = 0

    def run(self, seconds: float) -> None:
        """Attack for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            while len(self._streams) < CONNECTIONS and self._dial():
                pass
            for key, _ in self._selector.select(0.05):
                assert isinstance(key.fileobj, socket.socket)
                self._ask(key.fileobj)
        for sock in list(self._streams):
            self._close(sock)
        self._selector.close()

    def _dial(self) -> bool:
        sock = socket.socket()
        sock.settimeout(0.2)
        try:
            sock.connect(self._address)
        except OSError:
            sock.close()
            return False
        sock.setblocking(False)
        self._streams[sock], self._left[sock] = 1, PREFACE + SETTINGS + frame(1, 4, 1, ENTRY)
        self._selector.register(sock, selectors.EVENT_WRITE)
        return True

    def _ask(self, sock: socket.socket) -> None:
        try:
            while True:
                if not self._left[sock]:
                    self._streams[sock] += 2
                    self._left[sock] = frame(1, 4, self._streams[sock], REFER)
                    self.asked += 1
                self._left[sock] = self._left[sock][sock.send(self._left[sock]) :]
        except BlockingIOError:
            return
        except OSError:
            self._close(sock)

    def _close(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        del self._streams[sock], self._left[sock]
        sock.close()


@pytest.fixture
async def attacked(tmp_path: Path) -> AsyncIterator[Attacked]:
    """Unlike other attacks, this one leaves errors in the daemon's log."""
    one = Attacked(tmp_path)
    await one.web.start()
    async with one.daemon:
        yield one
        assert await one.daemon.stop() == 0
    await one.web.stop()


async def test_references_to_a_header_take_no_more_memory_than_is_said_and_give_it_back(attacked: Attacked) -> None:
    async with attacked.daemon.api() as stub:
        watcher = Watcher(stub)
        await watcher.states(one="up")
        await attacked.serves(watcher)
        before = attacked.resident()
        attacker = Attacker(("127.0.0.1", attacked.grpc))
        attack = asyncio.create_task(asyncio.to_thread(attacker.run, SECONDS))
        most = before
        while not attack.done():
            await asyncio.wait([attack], timeout=0.02)
            most = max(most, attacked.resident())
        await attack
        assert attacker.asked > 1_000, "this was no attack"
        assert most < BOUND, f"{most >> 20} MiB"
        await attacked.daemon.logged("event=listener-shed listener=grpc-tcp")
        async with asyncio.timeout(DEADLINE):
            while attacked.resident() > before + FALLEN:  # noqa: ASYNC110 - memory has no event
                await asyncio.sleep(0.1)
        # Operators and verdicts go on, and the listener opens again by itself.
        await attacked.serves(watcher)
        assert len(attacked.daemon.log) < 1_000


async def test_operators_are_answered_while_the_attack_lasts(attacked: Attacked) -> None:
    async with attacked.daemon.api() as stub:
        watcher = Watcher(stub)
        await watcher.states(one="up")
        attacker = Attacker(("127.0.0.1", attacked.grpc))
        attack = asyncio.create_task(asyncio.to_thread(attacker.run, 4))
        turns = 0
        while not attack.done():
            await attacked.serves(watcher)
            turns += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(attack), 0.2)
        assert turns > 1
