"""Trouble of the prober's own host, in the client's namespace of a ``Pair``: queues, firewall, carrier, neighbours.

Each is a context manager that takes back what it did. Failed neighbour discovery looks like a dead host: where a queue
or the firewall is to be the only trouble, ``permanent`` comes first.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import subprocess
from collections.abc import Callable, Iterator

from tests.helpers.alone import alone
from tests.helpers.netns import CLIENT, CLIENT6, SERVER, SERVER6, Pair, inside, ip

GC_THRESH3 = 1024
"""Neighbours that the kernel keeps at most by default: for each family, on the whole machine."""

_TABLE = "neighbours"


def run(*words: str, text: str | None = None) -> str:
    """A command's output; its complaint is the error."""
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def hardware_address(namespace: str, device: str = "veth0") -> str:
    """The MAC address of an interface."""
    return inside(namespace, lambda: _hardware_address(device))  # type: ignore[no-any-return]


def _hardware_address(device: str) -> str:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((device, 0))
        address: bytes = sock.getsockname()[4]
        return address.hex(":")


def permanent(nets: Pair) -> None:
    """Both ends of the link know each other for good: no neighbour discovery takes part in the test."""
    ends = ((nets.client, nets.server, (SERVER, SERVER6)), (nets.server, nets.client, (CLIENT, CLIENT6)))
    for name, other, addresses in ends:
        for address in addresses:
            ip("-n", name, "neigh", "replace", address, "lladdr", hardware_address(other), "nud", "permanent",
               "dev", "veth0")  # fmt: skip


@contextlib.contextmanager
def queue(namespace: str, *parts: str, device: str = "veth0") -> Iterator[None]:
    """A root qdisc, and perhaps one below it: each part is what ``tc qdisc add dev DEVICE`` is told."""
    for part in parts:
        run("tc", "-n", namespace, "qdisc", "add", "dev", device, *part.split())
    try:
        yield
    finally:
        run("tc", "-n", namespace, "qdisc", "del", "dev", device, "root")


@contextlib.contextmanager
def refusing_queue(namespace: str, device: str = "veth0") -> Iterator[None]:
    """A queue that has no room for any packet: the kernel knows at once, and tells an IPv4 sender nothing."""
    with queue(namespace, "root tbf rate 8kbit burst 1600 limit 1", device=device):
        yield


@contextlib.contextmanager
def silent_queue(namespace: str, target: str = SERVER, device: str = "veth0") -> Iterator[None]:
    """A queue that accepts every packet, and drops it when the next one comes: nobody is told, whatever is asked."""
    parts = ("root handle 1: tbf rate 80bit burst 1600 limit 100000", "parent 1: pfifo_head_drop limit 1")
    with queue(namespace, *parts, device=device):
        inside(namespace, lambda: _fill(target))
        yield


@contextlib.contextmanager
def slow_queue(namespace: str, target: str = SERVER, device: str = "veth0") -> Iterator[None]:
    """A queue in which packets wait for seconds."""
    with queue(namespace, "root tbf rate 100kbit burst 1600 limit 100000", device=device):
        inside(namespace, lambda: _fill(target))
        yield


def _fill(target: str) -> None:
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        for _ in range(40):
            with contextlib.suppress(BlockingIOError, OSError):
                sock.sendto(bytes(1400), socket.MSG_DONTWAIT, (target, 9))


@contextlib.contextmanager
def no_carrier(nets: Pair) -> Iterator[None]:
    """The far end of the link is down."""
    ip("-n", nets.server, "link", "set", "veth0", "down")
    try:
        yield
    finally:
        # An interface that goes down loses its IPv6 addresses.
        ip("-n", nets.server, "addr", "replace", f"{SERVER6}/64", "dev", "veth0", "nodad")
        ip("-n", nets.server, "link", "set", "veth0", "up")


@contextlib.contextmanager
def firewall(namespace: str, rule: str, hook: str = "output", policy: str = "accept") -> Iterator[None]:
    """An nftables rule at one of the ``inet`` hooks."""
    chain = f"type filter hook {hook} priority 0; policy {policy};\n{rule}\n"
    text = f"table inet trouble {{\nchain one {{\n{chain}}}\n}}\n"
    run("ip", "netns", "exec", namespace, "nft", "-f", "-", text=text)
    try:
        yield
    finally:
        run("ip", "netns", "exec", namespace, "nft", "delete", "table", "inet", "trouble")


@contextlib.contextmanager
def neighbour_table_alone() -> Iterator[None]:
    """The kernel's neighbour tables are those of the whole machine: one test at a time may fill them."""
    with alone(_TABLE):
        yield


@contextlib.contextmanager
def neighbour_table_left_alone() -> Iterator[None]:
    """No test fills the kernel's neighbour tables meanwhile; other tests that only want that may run."""
    with alone(_TABLE, shared=True):
        yield


@contextlib.contextmanager
def full_neighbour_table(namespace: str, *, v6: bool = False, device: str = "veth0") -> Iterator[Callable[[str], None]]:
    """No room for another neighbour, on the whole machine: one test at a time. Entries go again at the end.

    Yields what fills it, and makes the kernel forget a neighbour before, so that it finds no room for it any more.
    """
    family, net, wide = ("-6", "2001:db8:99::{:x}:{:x}", "2001:db8:99::/64") if v6 else (
        "-4", "10.99.{}.{}", "10.99.64.0/20"
    )  # fmt: skip
    numbers = itertools.count()

    def another() -> str:
        number = next(numbers)
        name = net.format(64 + number // 250 % 16, number % 250 + 1)
        hardware = f"02:00:00:00:{number >> 8 & 255:02x}:{number & 255:02x}"
        return f"neigh replace {name} lladdr {hardware} dev {device} nud reachable\n"

    def batch(lines: str) -> None:
        # Those beyond the limit are refused, which is what they are for.
        words = ["ip", family, "-n", namespace, "-force", "-batch", "-"]
        subprocess.run(words, input=lines, capture_output=True, text=True, check=False)

    def forget(address: str) -> None:
        # The kernel may give up entries that are five seconds old, so all are made anew.
        batch(f"neigh del {address} dev {device}\n" + "".join(another() for _ in range(GC_THRESH3 + 80)))

    with neighbour_table_alone():
        ip(family, "-n", namespace, "route", "add", wide, "dev", device)
        try:
            yield forget
        finally:
            ip(family, "-n", namespace, "neigh", "flush", "dev", device, "nud", "all")
            ip(family, "-n", namespace, "route", "del", wide, "dev", device)
