"""Trouble of the daemon's own host reaches no weight in the dataplane; a server that dies does."""

from __future__ import annotations

import asyncio
import contextlib
import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from maglev.pb import maglev_pb2 as pb
from maglev.pb import maglev_pb2_grpc as pb_grpc
from maglev.vppsim.journal import Entry
from maglev.vppsim.server import StandIn
from tests.helpers.conntrack import full_conntrack
from tests.helpers.daemon import DEADLINE, DaemonProcess, Watcher
from tests.helpers.engine import listener, port_of
from tests.helpers.netns import CLIENT, SERVER, SERVER6, Pair, inside, ip, pair
from tests.helpers.trouble import firewall, hardware_address, no_carrier, permanent, refusing_queue
from tests.helpers.web import web
from tests.integration.test_daemon_vpp import read_by_papi
from tests.integration.test_daemon_where import unprobed

BACKENDS = {"c4": SERVER, "h4": "192.0.2.3", "c6": SERVER6, "h6": "2001:db8::3"}


def config(nets: Pair, port: int) -> str:
    common = f"port: {port}, interval: 100ms, timeout: 80ms, rise: 1, fall: 2, netns: {nets.client}"
    return textwrap.dedent(f"""\
        maglev:
          vpp:
            lb:
              ipv4-src-address: 192.0.2.1
              ipv6-src-address: "2001:db8::1"
              startup-min-delay: 0s
              startup-max-delay: 0s
              sync-interval: 1h
          healthchecks:
            connect: {{type: tcp, params: {{mode: connect}}, {common}}}
            web: {{type: http, {common}}}
          backends:
            c4: {{address: {SERVER}, healthcheck: connect}}
            h4: {{address: 192.0.2.3, healthcheck: web}}
            c6: {{address: "{SERVER6}", healthcheck: connect}}
            h6: {{address: "2001:db8::3", healthcheck: web}}
          frontends:
            four:
              address: 203.0.113.80
              protocol: tcp
              port: 80
              new-flows-table-length: 1024
              pools: [{{name: primary, backends: {{c4: {{}}, h4: {{}}}}}}]
            six:
              address: "2001:db8:80::1"
              protocol: tcp
              port: 80
              new-flows-table-length: 1024
              pools: [{{name: primary, backends: {{c6: {{}}, h6: {{}}}}}}]
        """)


@contextlib.contextmanager
def without_routes(nets: Pair) -> Iterator[None]:
    nothing: tuple[str, ...] = ()
    for net in ("192.0.2.0/24", "2001:db8::/64"):
        ip("-n", nets.client, "route", "del", net, "dev", "veth0")
    yield
    for net, source in (("192.0.2.0/24", ("src", CLIENT)), ("2001:db8::/64", nothing)):
        ip("-n", nets.client, "route", "add", net, "dev", "veth0", *source)


@contextlib.contextmanager
def link_down(nets: Pair) -> Iterator[None]:
    ip("-n", nets.client, "link", "set", "veth0", "down")
    yield
    ip("-n", nets.client, "link", "set", "veth0", "up")
    acquainted(nets)


def acquainted(nets: Pair) -> None:
    """Neither neighbour discovery nor the size of the machine's table takes part."""
    permanent(nets)
    for address in ("192.0.2.3", "2001:db8::3"):
        words = ("lladdr", hardware_address(nets.server), "nud", "permanent", "dev", "veth0")
        ip("-n", nets.client, "neigh", "replace", address, *words)


@contextlib.contextmanager
def unplugged(nets: Pair) -> Iterator[None]:
    with no_carrier(nets):
        yield
    acquainted(nets)


def lowered(entry: Entry) -> bool:
    """Whether a call takes weight from a server, or its flows."""
    weighs = entry.message in ("lb_as_set_weight", "lb_add_del_as_v2")
    return (weighs and entry.values["weight"] == 0) or entry.message == "lb_flush_vip"


async def probed_again(stub: pb_grpc.MaglevAsyncStub) -> None:
    """Wait until nothing keeps any backend from being probed."""
    async with asyncio.timeout(DEADLINE):
        for name in BACKENDS:
            while True:
                if not (await stub.GetBackend(pb.GetBackendRequest(name=name))).unprobed_reason:
                    break
                await asyncio.sleep(0.02)  # the API has no event for this


@pytest.mark.machine
async def test_trouble_of_this_host_takes_no_weight_away(tmp_path: Path) -> None:
    with pair() as nets, inside(nets.server, lambda: listener("::", backlog=1024)) as sock, web(sock):
        acquainted(nets)
        for name in (nets.client, nets.server):
            inside(name, lambda: Path("/proc/sys/net/ipv6/conf/veth0/keep_addr_on_down").write_text("1"))
        ip("-n", nets.server, "addr", "add", "192.0.2.3/24", "dev", "veth0")
        ip("-n", nets.server, "addr", "add", "2001:db8::3/64", "dev", "veth0", "nodad")
        port = port_of(sock)
        troubles: dict[str, Callable[[], AbstractContextManager[None]]] = {
            "firewall": lambda: firewall(nets.client, f"tcp dport {port} drop"),
            "firewall ": lambda: full_conntrack(nets, port),
            "firewall  ": lambda: firewall(nets.client, f"tcp dport {port} reject with tcp reset"),
            "own queue dropped it": lambda: refusing_queue(nets.client),
            "no route": lambda: without_routes(nets),
            "link down": lambda: link_down(nets),
            "link down ": lambda: unplugged(nets),
        }
        vpp = StandIn(tmp_path / "api.sock")
        await vpp.start()
        async with (
            DaemonProcess(tmp_path, config(nets, port), f"--vpp-api-addr={tmp_path / 'api.sock'}") as daemon,
            daemon.api() as stub,
        ):
            watcher = Watcher(stub)
            await watcher.states(**dict.fromkeys(BACKENDS, "up"))
            async with asyncio.timeout(DEADLINE):
                while sorted((await asyncio.to_thread(read_by_papi, vpp.path)).values()) != [10] * len(BACKENDS):
                    await vpp.journal.next(lambda entry: entry.message == "lb_as_set_weight")
            begin = len(vpp.journal)
            for words, trouble in troubles.items():
                with trouble():
                    for name in BACKENDS:
                        assert (await unprobed(stub, name)).removeprefix("not probed: ").startswith(words.strip())
                await probed_again(stub)
                assert not any(lowered(entry) for entry in list(vpp.journal)[begin:]), words
            # Nobody is held up: a server that dies loses its weight.
            ip("-n", nets.server, "addr", "del", "192.0.2.3/24", "dev", "veth0")
            falls = vpp.journal.next(lowered)
            await watcher.states(h4="down")
            async with asyncio.timeout(DEADLINE):
                await falls
        await vpp.stop()
