"""maglevd on a host in trouble: what VPP holds stays as it is, and a server that dies meanwhile goes to weight 0."""

from __future__ import annotations

import asyncio
import contextlib
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from maglev.pb import maglev_pb2 as pb
from maglev.pb import maglev_pb2_grpc as pb_grpc
from maglev.vppsim.server import StandIn
from tests.helpers.apart import compiled
from tests.helpers.daemon import DEADLINE, DaemonProcess, Watcher
from tests.helpers.engine import listener, port_of
from tests.helpers.netns import SERVER, SERVER6, Pair, inside, ip, pair
from tests.helpers.trouble import (
    firewall,
    full_neighbour_table,
    neighbour_table_alone,
    permanent,
    refusing_queue,
    silent_queue,
)
from tests.helpers.vpprig import all_weights

BEYOND, BEYOND6 = "198.51.100.20", "2001:db8:7::20"
OTHER, OTHER6 = "198.18.0.2", "2001:db8:18::2"
SPANS = "interval: 100ms, timeout: 80ms, fall: 2"

Backends = dict[str, tuple[str, str]]


def config(nets: Pair, port: int, backends: Backends, warmup: str = "0s", size: int = 64) -> str:
    """One frontend for each address family; every backend by name, with its address and ``icmp`` or ``syn``."""
    lines = [f"{name}: {{address: '{at}', healthcheck: {kind}}}" for name, (at, kind) in backends.items()]
    pools = {
        family: ", ".join(f"{name}: {{weight: 10}}" for name, (at, _) in backends.items() if (":" in at) == family)
        for family in (False, True)
    }
    frontends = "".join(
        f"    {name}: {{address: '{at}', protocol: tcp, port: 80, new-flows-table-length: 1024,"
        f" pools: [{{name: primary, backends: {{{pools[family]}}}}}]}}\n"
        for name, at, family in (("four", "203.0.113.4", False), ("six", "2001:db8:f::6", True))
        if pools[family]
    )
    lb = (
        "ipv4-src-address: 192.0.2.1, ipv6-src-address: '2001:db8::1', sync-interval: 1h,"
        f" startup-min-delay: 0s, startup-max-delay: {warmup}"
    )
    return (
        "maglev:\n"
        f"  vpp: {{lb: {{{lb}}}}}\n"
        "  healthchecks:\n"
        f"    icmp: {{type: icmp, {SPANS}, netns: {nets.client}, params: {{size: {size}}}}}\n"
        f"    syn: {{type: tcp, port: {port}, {SPANS}, netns: {nets.client}}}\n"
        f"  backends:\n{textwrap.indent(chr(10).join(lines), '    ')}\n"
        f"  frontends:\n{frontends}"
    )


class Host:
    """A daemon whose probes leave from one of two joined namespaces, and the stand-in that it drives."""

    def __init__(self, directory: Path, backends: Backends, text: str) -> None:
        self.backends = backends
        self.vpp = StandIn(directory / "api.sock")
        self.daemon = DaemonProcess(directory, text, f"--vpp-api-addr={directory / 'api.sock'}")

    async def serving(self, **other: int) -> None:
        """Wait until every backend has weight 1 in VPP, or what ``other`` says of it by name."""
        wanted = {at: other.get(name, 1) for name, (at, _) in self.backends.items()}
        async with asyncio.timeout(DEADLINE):
            while all_weights(self.vpp) != wanted:  # noqa: ASYNC110
                await asyncio.sleep(0.02)  # the stand-in has no event for the last of several writes

    async def reasons(self, stub: pb_grpc.MaglevAsyncStub, *names: str) -> set[str]:
        """Wait until these backends, all by default, cannot be probed; returns why."""
        found: dict[str, str] = {}
        async with asyncio.timeout(DEADLINE):
            for name in names or self.backends:
                while name not in found:
                    info = await stub.GetBackend(pb.GetBackendRequest(name=name))
                    if info.unprobed_reason:
                        found[name] = info.unprobed_reason
                    else:
                        await asyncio.sleep(0.02)  # the API has no event for this
        return set(found.values())


@contextlib.asynccontextmanager
async def host(directory: Path, backends: Backends, text: str) -> AsyncIterator[tuple[Host, pb_grpc.MaglevAsyncStub]]:
    """All backends up and in VPP."""
    one = Host(directory, backends, text)
    await one.vpp.start()
    try:
        async with one.daemon, one.daemon.api() as stub:
            await Watcher(stub).states(**dict.fromkeys(backends, "up"))
            await one.serving()
            one.vpp.journal.clear()
            yield one, stub
    finally:
        await one.vpp.stop()


@pytest.fixture
def nets() -> Iterator[Pair]:
    with pair() as one:
        ip("-n", one.server, "-6", "route", "del", "blackhole", "2001:db8:7::/64")
        for address, _ in ROUTED.values():
            ip("-n", one.server, "addr", "add", address, "dev", "lo", *(["nodad"] if ":" in address else []))
        yield one


@pytest.fixture
def port(nets: Pair) -> Iterator[int]:
    with inside(nets.server, lambda: listener("::")) as sock:
        yield port_of(sock)


ROUTED: Backends = {
    "p4": (BEYOND, "icmp"),
    "p6": (BEYOND6, "icmp"),
    "s4": (BEYOND[:-1] + "1", "syn"),
    "s6": (BEYOND6[:-1] + "1", "syn"),
}


def lose_routes(nets: Pair) -> None:
    ip("-4", "-n", nets.client, "route", "del", "198.51.100.0/24")
    ip("-6", "-n", nets.client, "route", "del", "2001:db8:7::/64")


def lose_link(nets: Pair) -> None:
    ip("-n", nets.client, "link", "set", "veth0", "down")


def find_routes(nets: Pair) -> None:
    ip("-n", nets.client, "link", "set", "veth0", "up")
    ip("-n", nets.client, "addr", "replace", "2001:db8::1/64", "dev", "veth0", "nodad")
    ip("-4", "-n", nets.client, "route", "replace", "198.51.100.0/24", "via", SERVER)
    ip("-6", "-n", nets.client, "route", "replace", "2001:db8:7::/64", "via", SERVER6)


@pytest.mark.parametrize(("lose", "reason"), [(lose_routes, "route"), (lose_link, "link")])
async def test_a_lost_way_changes_nothing_in_vpp_also_over_a_restart(
    nets: Pair, port: int, tmp_path: Path, lose: Callable[[Pair], None], reason: str
) -> None:
    words = {"route": "no route", "link": "link down"}[reason]
    async with host(tmp_path, ROUTED, config(nets, port, ROUTED, warmup="1s")) as (one, stub):
        lose(nets)
        assert await one.reasons(stub) == {f"not probed: {words}: ENETUNREACH"}
        assert f"maglev_engine_unprobed_{reason}_total 0\n" not in await one.daemon.metrics()
        assert await one.daemon.stop() == 0
        one.daemon.log.clear()
        one.daemon.flags += ("--log-level=debug",)
        await one.daemon.start()
        async with one.daemon.api() as again:
            assert await one.reasons(again) == {"not probed: no route: ENETUNREACH"}
            await one.daemon.logged("event=vpp-full-sync")
            assert one.vpp.journal.writes() == []
            find_routes(nets)
            await Watcher(again).states(**dict.fromkeys(ROUTED, "up"))
        assert one.vpp.journal.writes() == []


async def test_a_route_that_is_withdrawn_takes_its_server_out_while_others_pass(
    nets: Pair, port: int, tmp_path: Path
) -> None:
    backends: Backends = {**ROUTED, "o4": (SERVER, "icmp"), "o6": (SERVER6, "icmp")}
    async with host(tmp_path, backends, config(nets, port, backends)) as (one, _):
        lose_routes(nets)
        await one.serving(**dict.fromkeys(ROUTED, 0))


@pytest.mark.machine
@pytest.mark.parametrize("v6", [False, True])
async def test_a_full_neighbour_table_changes_nothing_in_vpp(nets: Pair, port: int, tmp_path: Path, v6: bool) -> None:
    address = SERVER6 if v6 else SERVER
    backends: Backends = {"ping": (address, "icmp")}
    async with host(tmp_path, backends, config(nets, port, backends)) as (one, stub):
        with contextlib.ExitStack() as stack:
            # Another run of these tests may hold the table. The stand-in answers meanwhile.
            forget = await asyncio.to_thread(stack.enter_context, full_neighbour_table(nets.client, v6=v6))
            found = asyncio.create_task(one.reasons(stub))
            while not found.done():
                forget(address)
                await asyncio.wait([found], timeout=0.5)
            (reason,) = await found
            assert f"net.{'ipv6' if v6 else 'ipv4'}.neigh.default.gc_thresh3" in reason
            # After some seconds the kernel finds entries that it may give up.
            warned = asyncio.create_task(one.daemon.logged("event=probes-not-sent"))
            while not warned.done() and not v6:
                forget(address)
                await asyncio.wait([warned], timeout=0.5)
            assert v6 or "net.ipv4.neigh.default.gc_thresh3" in warned.result()
            warned.cancel()
        await Watcher(stub).until(lambda watcher: watcher.backends.get("ping") == "up")
        assert one.vpp.journal.writes() == []


async def test_a_packet_that_fits_no_link_hides_no_other_server_that_dies(
    nets: Pair, port: int, tmp_path: Path
) -> None:
    ip("-n", nets.client, "link", "add", "veth1", "type", "veth", "peer", "name", "veth1", "netns", nets.server)
    for name, last in ((nets.client, 1), (nets.server, 2)):
        ip("-n", name, "link", "set", "veth1", "up")
        ip("-n", name, "addr", "add", f"198.18.0.{last}/24", "dev", "veth1")
        ip("-n", name, "addr", "add", f"2001:db8:18::{last}/64", "dev", "veth1", "nodad")
    backends: Backends = {
        "a4": (SERVER, "icmp"), "a6": (SERVER6, "icmp"), "b4": (OTHER, "icmp"), "b6": (OTHER6, "icmp"),
    }  # fmt: skip
    async with host(tmp_path, backends, config(nets, port, backends, size=1452)) as (one, stub):
        ip("-n", nets.server, "link", "set", "veth0", "mtu", "1300")
        assert await one.reasons(stub, "a4", "a6") == {"not probed: no buffer: ENOBUFS"}
        with firewall(nets.server, 'iifname "veth1" meta l4proto { icmp, ipv6-icmp } drop', "input"):
            await one.serving(b4=0, b6=0)
        await one.serving()


@pytest.mark.machine
async def test_four_hundred_dead_servers_on_our_link_take_no_live_one_out(
    nets: Pair, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_PRELOAD", str(compiled("smallbuffers", tmp_path, "-shared", "-fPIC")))
    ip("-n", nets.client, "addr", "add", "198.18.0.1/16", "dev", "veth0")
    live: Backends = {"s4": (SERVER, "syn"), "s6": (SERVER6, "syn"), "t4": (BEYOND, "syn")}
    dead: Backends = {f"d{n}": (f"198.18.{n >> 8}.{n & 255}", "syn") for n in range(2, 402)}
    with neighbour_table_alone():
        one = Host(tmp_path, {**live, **dead}, config(nets, port, {**live, **dead}))
        await one.vpp.start()
        try:
            async with one.daemon, one.daemon.api() as stub:
                await Watcher(stub).states(**dict.fromkeys(live, "up"), **dict.fromkeys(dead, "down"))
                await one.serving(**dict.fromkeys(dead, 0))
                one.vpp.journal.clear()
                # One of the live ones dies among them, and is found out; the others stay.
                ip("-n", nets.server, "addr", "del", BEYOND, "dev", "lo")
                await one.serving(t4=0, **dict.fromkeys(dead, 0))
        finally:
            await one.vpp.stop()


@pytest.mark.parametrize("trouble", [refusing_queue, silent_queue])
async def test_a_queue_that_drops_from_the_start_on_takes_no_server_out(
    nets: Pair, port: int, tmp_path: Path, trouble: Callable[[str], contextlib.AbstractContextManager[None]]
) -> None:
    """No probe has passed yet, so that only the driver can say that its stamps are to be believed."""
    async with host(tmp_path, ROUTED, config(nets, port, ROUTED, warmup="1s")) as (one, _):
        permanent(nets)
        assert await one.daemon.stop() == 0
        with trouble(nets.client):
            await one.daemon.start()
            async with one.daemon.api() as stub:
                assert await one.reasons(stub) <= {"not probed: own queue dropped it", "not probed: no buffer: ENOBUFS"}
                assert one.vpp.journal.writes() == []
        async with one.daemon.api() as stub:
            await Watcher(stub).states(**dict.fromkeys(ROUTED, "up"))
        assert one.vpp.journal.writes() == []


async def test_servers_that_are_dead_from_the_start_on_go_out(nets: Pair, port: int, tmp_path: Path) -> None:
    async with host(tmp_path, ROUTED, config(nets, port, ROUTED, warmup="1s")) as (one, _):
        permanent(nets)
        assert await one.daemon.stop() == 0
        with firewall(nets.server, "drop", hook="input"):
            await one.daemon.start()
            await one.serving(**dict.fromkeys(ROUTED, 0))
