"""The sockets of checks over TCP: what the kernel keeps in them, and what they may reach."""

from __future__ import annotations

import os
import socket
import struct

from maglev.base.states import State
from tests.helpers.engine import MS, check, listener, port_of, probing
from tests.helpers.netns import SILENT, head, icmp_error, pair, stranger

SO_MEMINFO = 55  # asm-generic/socket.h
TCP = 6


def receive_memory() -> list[int]:
    """Bytes that wait in each TCP socket of this process: received data, and errors too."""
    held = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as sock:
                if sock.proto == TCP and sock.type == socket.SOCK_STREAM:
                    held.append(struct.unpack_from("=I", sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))[0])
        except OSError:
            continue  # closed meanwhile
    return held


def test_a_socket_that_is_used_again_has_no_errors_of_earlier_connections() -> None:
    refuse = lambda packet: [icmp_error(packet)] if packet[head(packet) + 13 :][:1] == b"\x02" else []  # noqa: E731
    with pair() as nets, stranger(nets.server, refuse), probing() as p:
        target = p.add(check("connect", 80, netns=nets.client), SILENT)
        assert p.becomes(target, State.DOWN).detail == "no route to host"
        p.wait_probes(target, 12)
        p.engine.pause_target(target)
        p.wait(lambda: p.engine.stats()["in_flight"] == 0, "the last connection to end")
        assert max(receive_memory(), default=0) == 0


def test_an_ipv4_mapped_address_is_not_reached_over_ipv4() -> None:
    with listener("127.0.0.1") as sock, probing() as p:
        target = p.add(check("connect", port_of(sock), interval=40 * MS), "::ffff:127.0.0.1")
        seen = p.engine.target_info
        p.wait(lambda: p.probes(target) >= 3 or seen(target).blocked_since_ns, "an end of the probes")
        assert State.UP not in {one.to_state for one in p.of(target)}
        assert seen(target).state != State.UP
