"""The /metrics of a daemon that is used in every way: the user guide's tables, no more and no less."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import textwrap
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from maglev.pb import maglev_pb2 as pb
from maglev.vppsim.server import StandIn
from tests.helpers.certs import Authority
from tests.helpers.daemon import DEADLINE, DaemonProcess, HttpTarget, Watcher, reserved_port
from tests.helpers.metrics import documented

ONE = "127.0.13.1"
PROMTOOL = Path(__file__).resolve().parents[2] / "build" / "promtool"
"""Made by ``make alerts``."""


def config(port: int) -> str:
    """One backend of each kind: probed, not to be probed (this host has no such source address), static."""
    return textwrap.dedent(f"""\
        maglev:
          vpp: {{lb: {{ipv4-src-address: 192.0.2.1, startup-min-delay: 0s, startup-max-delay: 0s}}}}
          healthchecks:
            web: {{type: http, port: {port}, interval: 100ms}}
            lost: {{type: tcp, port: {port}, params: {{mode: connect}}, probe-ipv4-src: 198.51.100.1, interval: 100ms}}
          backends:
            one: {{address: {ONE}, healthcheck: web}}
            two: {{address: 127.0.13.2, healthcheck: lost}}
            three: {{address: 127.0.13.3}}
          frontends:
            www:
              address: 192.0.2.80
              protocol: tcp
              port: 80
              slow-start: 3s
              pools: [{{name: primary, backends: {{one: {{}}, two: {{}}, three: {{}}}}}}]
        """)


async def scrape_with(daemon: DaemonProcess, *series: str) -> str:
    """A scrape that has these series, some of which come by and by."""
    async with asyncio.timeout(DEADLINE):
        while True:
            text = await daemon.metrics()
            if all(f"\n{name}{{" in text for name in series):
                return text


async def test_the_user_guide_has_what_a_scrape_has_and_promtool_finds_nothing_to_say(tmp_path: Path) -> None:
    server = Authority(tmp_path / "tls").server()
    port = reserved_port()
    web = HttpTarget(ONE, port)
    await web.start()
    vpp = StandIn(tmp_path / "api.sock", stats_path=tmp_path / "stats.sock")
    await vpp.start()
    flags = [f"--vpp-api-addr={tmp_path / 'api.sock'}", f"--vpp-stats-addr={tmp_path / 'stats.sock'}"]
    flags += [
        f"--grpc-addr=127.0.0.1:{reserved_port()}",
        f"--grpc-tls-cert={server.cert}",
        f"--grpc-tls-key={server.key}",
    ]
    async with DaemonProcess(tmp_path, config(port), *flags) as daemon, daemon.api() as stub:
        watcher = Watcher(stub)
        await watcher.states(one="up", three="up")
        await stub.DrainBackend(pb.ChangeBackendRequest(name="three"))
        daemon.signal(signal.SIGHUP)
        await daemon.notice("READY=1")
        text = await scrape_with(daemon, "maglev_vpp_vip_packets_total", "maglev_backend_unprobed_since_seconds")
        assert await daemon.stop() == 0
    await vpp.stop()
    await web.stop()

    labels: dict[str, set[str]] = {name: set() for name in re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE)}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name if sample.name in labels else family.name
            labels[name] |= sample.labels.keys() - {"le"}
    assert labels == documented()

    lint = await asyncio.create_subprocess_exec(
        PROMTOOL, "check", "metrics", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said, _ = await asyncio.wait_for(lint.communicate(text.encode()), DEADLINE)
    assert (lint.returncode, said.decode()) == (0, "")
