"""maglevd as a process, started again with a file that has lost its VIPs; what VPP holds is read at the stand-in."""

from __future__ import annotations

import json
import signal
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from maglev.pb import maglev_pb2 as pb
from maglev.vpp.wire.messages import VipKey
from maglev.vppsim.server import StandIn
from tests.helpers.daemon import DaemonProcess, Watcher
from tests.helpers.vpprig import eventually, stand_in, vip_of, weights

EIGHT = range(1, 9)

HEAD = textwrap.dedent("""\
    maglev:
      vpp:
        lb: {ipv4-src-address: 192.0.2.250, startup-min-delay: 0s, startup-max-delay: 0s, sync-interval: 1h}
      backends:
        one: {address: 10.0.0.1}
    """)


def config(*numbers: int) -> str:
    """One static backend and these VIPs. Without any the file ends before ``frontends:``."""
    if not numbers:
        return HEAD
    rows = [
        f"    f{n}: {{address: 192.0.2.{n}, protocol: tcp, port: 80, pools: [{{name: p, backends: {{one: {{}}}}}}]}}"
        for n in numbers
    ]
    return HEAD + "  frontends:\n" + "\n".join(rows) + "\n"


def there(server: StandIn) -> set[int]:
    """VIPs in VPP with a server, by the last byte of their address."""
    keys = {number: VipKey.parse(f"192.0.2.{number}/32", 6, 80) for number in range(1, 20)}
    return {n for n, key in keys.items() if vip_of(server, key) is not None and any(weights(server, key).values())}


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[tuple[StandIn, DaemonProcess]]:
    """Eight VIPs are programmed, and the daemon has ended."""
    async with stand_in(tmp_path / "api.sock") as server:
        daemon = DaemonProcess(tmp_path, config(*EIGHT), f"--vpp-api-addr={tmp_path / 'api.sock'}")
        async with daemon:
            await eventually(lambda: there(server) == set(EIGHT))
        yield server, daemon


async def waiting(daemon: DaemonProcess) -> tuple[int, str]:
    """Waiting VIPs, as ``GetServerInfo`` and the metrics have them."""
    async with daemon.api() as stub:
        info = await stub.GetServerInfo(pb.GetServerInfoRequest())
    (line,) = [line for line in (await daemon.metrics()).splitlines() if line.startswith("maglev_vpp_waiting_vips ")]
    return info.waiting_vips, line.rpartition(" ")[2]


@pytest.mark.parametrize("text", [HEAD, "maglev:\n", config(1)], ids=["before frontends", "after maglev", "one of 8"])
async def test_a_restart_with_a_file_that_was_cut_off_deletes_no_vip(
    lab: tuple[StandIn, DaemonProcess], text: str
) -> None:
    server, daemon = lab
    left = {1} if text == config(1) else set()
    daemon.config.write_text(text)
    # A file without settings has the default warm-up of 5 s, so it is started once only.
    for signalled in (signal.SIGTERM, signal.SIGKILL)[text == "maglev:\n" :]:
        daemon.log.clear()
        await daemon.start()
        line = await daemon.logged("event=vpp-prune-held")
        assert " error " in line
        assert there(server) == set(EIGHT)
        assert await waiting(daemon) == (8 - len(left), str(8 - len(left)))
        daemon.signal(signalled)
        await daemon.wait()
    # The whole file ends it, and nothing has happened to the traffic.
    daemon.config.write_text(config(*EIGHT))
    server.journal.clear()
    daemon.log.clear()
    daemon.flags += ("--log-level=debug",)  # the full sync is to change nothing
    async with daemon:
        await daemon.logged("event=vpp-full-sync")
        assert await waiting(daemon) == (0, "0")
    assert not server.journal.writes()


async def test_a_reload_that_was_refused_is_not_made_up_for_by_a_restart(lab: tuple[StandIn, DaemonProcess]) -> None:
    server, daemon = lab
    async with daemon:
        daemon.config.write_text(config(1))
        async with daemon.api() as stub:
            with pytest.raises(grpc.aio.AioRpcError, match="7 of 8 VIPs"):
                await stub.ReloadConfig(pb.ReloadConfigRequest())
    async with daemon:
        await daemon.logged("event=vpp-prune-held")
        assert there(server) == set(EIGHT)
        async with daemon.api() as stub:
            await stub.SyncVPPLBState(pb.SyncVPPLBStateRequest(force=True))
            assert there(server) == set(EIGHT)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.SyncVPPLBState(pb.SyncVPPLBStateRequest(frontend="f1", prune=True))
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            dry = await stub.SyncVPPLBState(pb.SyncVPPLBStateRequest(dry_run=True))
            assert list(dry.plan.waiting_vips) == [f"192.0.2.{n}/32 tcp 80" for n in range(2, 9)]
            state = await stub.GetVPPLBState(pb.GetVPPLBStateRequest())
            assert [vip.waiting for vip in state.vips] == [False] + [True] * 7
            await stub.SyncVPPLBState(pb.SyncVPPLBStateRequest(prune=True))
            assert there(server) == {1}
        assert await daemon.stop() == 0
    state_file = json.loads((daemon.directory / "state.json").read_text())["state"]
    assert state_file["vips"] == ["192.0.2.1/32 tcp 80"]
    assert state_file["pruning"]["waiting"] == []


async def test_a_forced_reload_of_the_file_that_is_in_force_deletes_what_waits(
    lab: tuple[StandIn, DaemonProcess],
) -> None:
    server, daemon = lab
    daemon.config.write_text(config(1))
    async with daemon:
        await daemon.logged("event=vpp-prune-held")
        async with daemon.api() as stub:
            watcher = Watcher(stub)
            await stub.ReloadConfig(pb.ReloadConfigRequest())
            await watcher.log_event("config-applied", by="unix")
            assert there(server) == set(EIGHT)
            await stub.ReloadConfig(pb.ReloadConfigRequest(force=True))
            await eventually(lambda: there(server) == {1})
