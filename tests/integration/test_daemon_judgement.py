"""All mechanisms of judgement together, from a hundred servers on real sockets to the weights in the stand-in for VPP.

The servers fail by silence, which the brake looks at. Most tests restart the daemon in the middle of a mechanism.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from ipaddress import ip_address
from pathlib import Path

import pytest

from maglev.pb import maglev_pb2 as pb
from maglev.pb import maglev_pb2_grpc as pb_grpc
from maglev.vppsim.server import StandIn
from tests.helpers.crowd import Crowd
from tests.helpers.daemon import DEADLINE, DaemonProcess, Watcher
from tests.helpers.weights import weights_of

SERVERS = {f"s{number:03}": f"127.0.49.{number}" for number in range(1, 105)}
MAIN = [f"s{number:03}" for number in range(1, 101)]
SPARE = [f"s{number:03}" for number in range(101, 105)]
MOST = MAIN[:60]
"""Sixty of a hundred."""
REST = MAIN[60:]


def ten(names: Iterable[str]) -> dict[str, int]:
    """Whole weights for these servers."""
    return dict.fromkeys(names, 10)


class Lab:
    """A hundred web servers and four in reserve, a stand-in, and a daemon between them.

    ``served``: the servers that had a weight when it was last waited for.
    """

    def __init__(self, directory: Path) -> None:
        self.crowd = Crowd(SERVERS)
        self.vpp = StandIn(directory / "api.sock")
        self.directory = directory
        self.served: set[str] = set()

    def daemon(
        self,
        pools: Mapping[str, Iterable[str]],
        keys: str = "",
        *,
        thresholds: str = "",
        brake: str = "off",
        warmup: str = "1s",
    ) -> DaemonProcess:
        """``keys``: of the frontend; ``thresholds``: of its first pool."""
        used = [name for members in pools.values() for name in members]
        text = f"""\
maglev:
  healthchecker: {{brake: {brake}}}
  vpp: {{lb: {{ipv4-src-address: 192.0.2.1, startup-min-delay: 0s, startup-max-delay: {warmup}, sync-interval: 1h}}}}
  healthchecks:
    web: {{type: http, port: {self.crowd.port}, interval: 150ms, timeout: 150ms, rise: 1, fall: 3}}
  backends:
"""
        for name in used:
            text += f"    {name}: {{address: {SERVERS[name]}, healthcheck: web}}\n"
        text += f"  frontends:\n    www:\n      address: 192.0.2.80\n{keys}      pools:\n"
        for number, (pool, members) in enumerate(pools.items()):
            listed = ", ".join(f"{member}: " for member in members)
            own = f", {thresholds}" if thresholds and not number else ""
            text += f"        - {{name: {pool}, backends: {{{listed}}}{own}}}\n"
        flags = (f"--vpp-api-addr={self.directory / 'api.sock'}", "--log-level=debug")
        return DaemonProcess(self.directory, text, *flags)

    def weights(self) -> dict[str, int]:
        """Weights above 0 in VPP, by server."""
        return weights_of(self.vpp, SERVERS)

    def disturbed(self) -> set[str]:
        """The servers that were written to, without flushes of those that failed and had no weight any more."""
        names = {ip_address(address).packed: name for name, address in SERVERS.items()}
        written: set[str] = set()
        for entry in self.vpp.journal.writes():
            if entry.retval:
                continue  # a refused command, by which the daemon learns what this VPP understands
            if entry.message == "lb_as_set_weight":
                touched, flushed = [entry.values["as_address"]], entry.values["is_flush"]
            elif entry.message == "cli_inband":
                # lb as VIP A B C ... del flush, and then the same servers once more with their weight
                words = entry.values["cmd"].split()
                touched = [
                    ip_address(word).packed
                    for word in words[3:]
                    if word[0].isdigit() and "." in word and "/" not in word
                ]
                flushed = " flush" in entry.values["cmd"]
            else:
                touched, flushed = [], False
            changed = {names[address] for address in touched}
            written |= changed if not flushed else changed & self.served
            if not touched:
                written.add(entry.message)
        return written

    async def weigh(self, wanted: Mapping[str, int]) -> None:
        """Wait until VPP has these weights, and no others. ``disturbed`` counts from then on."""
        try:
            async with asyncio.timeout(DEADLINE):
                while self.weights() != wanted:
                    await self.vpp.journal.next(lambda entry: True)
        except TimeoutError:
            raise AssertionError(f"{self.weights()} in VPP, not {dict(wanted)}") from None
        self.served = set(wanted)
        self.vpp.journal.clear()

    def silence(self, names: Iterable[str]) -> None:
        """These servers answer no longer."""
        self.crowd.mute |= set(names)

    def speak(self) -> None:
        """All servers answer."""
        self.crowd.mute.clear()


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    lab = Lab(tmp_path)
    await lab.vpp.start()
    await lab.crowd.start()
    try:
        yield lab
    finally:
        await lab.crowd.stop()
        await lab.vpp.stop()


PANIC = "      panic: {below: 50%, action: all}\n"
SLOW = "      slow-start: 60s\n"
BRAKE = "{hold: 2s}"


async def held(stub: pb_grpc.MaglevAsyncStub, backends: int) -> None:
    """Wait until so many backends are held."""
    async with asyncio.timeout(DEADLINE):
        while True:
            if (await stub.GetServerInfo(pb.GetServerInfoRequest())).held_backends == backends:
                return
            await asyncio.sleep(0.02)  # the API has no event for this


async def judged(daemon: DaemonProcess, **states: str) -> None:
    """Wait until a daemon that has just started has these states, and its warm-up is over."""
    async with daemon.api() as stub:
        watcher = Watcher(stub)
        await watcher.states(**states)
        await watcher.log_event("vpp-full-sync", reason="warm-up")


async def test_sixty_of_a_hundred_are_held_go_together_and_come_back(lab: Lab) -> None:
    async with lab.daemon({"main": MAIN}, brake=BRAKE) as daemon, daemon.api() as stub:
        watcher = Watcher(stub)
        await lab.weigh(ten(MAIN))
        lab.silence(MOST)
        await watcher.log_event("brake-begun")
        await held(stub, len(MOST))
        assert lab.disturbed() == set()
        await watcher.log_event("brake-ended")
        await lab.weigh(ten(REST))
        lab.speak()
        await lab.weigh(ten(MAIN))
        # The brake rests for ten minutes.
        lab.silence(MOST)
        await lab.weigh(ten(REST))
        assert "maglev_brakes_begun_total 1" in await daemon.metrics()


async def test_a_restart_in_the_middle_of_the_brake_holds_again_and_then_lets_all_sixty_go(lab: Lab) -> None:
    async with lab.daemon({"main": MAIN}, brake=BRAKE) as daemon:
        await lab.weigh(ten(MAIN))
        async with daemon.api() as stub:
            lab.silence(MOST)
            await held(stub, len(MOST))
        await daemon.restart()
        async with daemon.api() as stub:
            await held(stub, len(MOST))
            assert lab.disturbed() == set()
        await lab.weigh(ten(REST))
        # Of those that are down already, nothing is held after the next restart.
        await daemon.restart()
        await judged(daemon, s001="down", s100="up")
        assert "maglev_brakes_begun_total 0" in await daemon.metrics()
        assert lab.disturbed() == set()
        lab.speak()
        await lab.weigh(ten(MAIN))


async def test_with_brake_and_panic_sixty_silent_servers_lose_nothing_and_the_operators_servers_get_nothing(
    lab: Lab,
) -> None:
    """Four servers are out by an operator, each in another way, before most of the others fall silent."""
    served = ten(MAIN[4:])
    async with lab.daemon({"main": MAIN}, PANIC + SLOW, brake=BRAKE) as daemon:
        async with daemon.api() as stub:
            watcher = Watcher(stub)
            await lab.weigh(ten(MAIN))
            await stub.DrainBackend(pb.ChangeBackendRequest(name="s001"))
            await stub.DisableBackend(pb.ChangeBackendRequest(name="s002"))
            await stub.PauseBackend(pb.ChangeBackendRequest(name="s003"))
            await stub.SetFrontendPoolBackendWeight(
                pb.SetWeightRequest(frontend="www", pool="main", backend="s004", weight=0)
            )
            await lab.weigh(served)
            lab.silence(MOST)
            await watcher.log_event("brake-begun")
            await watcher.log_event("brake-ended")
            await watcher.until(lambda w: w.frontends.get("www") == "panic")
            await watcher.until(lambda w: sum(state == "down" for state in w.backends.values()) == len(MOST) - 2)
        for _ in range(2):
            await daemon.restart()
            async with daemon.api() as stub:
                watcher = Watcher(stub)
                await watcher.until(lambda w: w.frontends.get("www") == "panic")
                await watcher.until(lambda w: sum(state == "down" for state in w.backends.values()) == len(MOST) - 2)
            assert lab.disturbed() == set()
            assert lab.weights() == served
        lab.speak()
        async with daemon.api() as stub:
            await Watcher(stub).states(s001="up", s002="disabled", s003="paused", s004="up", s005="up", s060="up")
            assert lab.disturbed() == set()
            # In panic nothing starts slowly.
            await stub.EnableBackend(pb.ChangeBackendRequest(name="s002"))
            await lab.weigh(served | ten(["s002"]))


async def test_a_hundred_of_a_hundred_keep_their_weights_when_the_brake_ends(lab: Lab) -> None:
    """`on-all-down: keep` counts once nothing is usable: with verdicts one by one, the last server alone would stay."""
    async with lab.daemon({"main": MAIN}, "      on-all-down: keep\n", brake=BRAKE) as daemon:
        await lab.weigh(ten(MAIN))
        lab.silence(MAIN)
        async with daemon.api() as stub:
            watcher = Watcher(stub)
            await watcher.log_event("brake-begun")
            await watcher.log_event("brake-ended")
            await watcher.until(lambda w: w.frontends.get("www") == "down")
        for _ in range(2):
            assert lab.disturbed() == set()
            await daemon.restart()
            await judged(daemon)
        assert lab.weights() == ten(MAIN)


async def test_a_restart_ends_slow_starts_and_lowers_no_weight(lab: Lab) -> None:
    async with lab.daemon({"main": MAIN}, SLOW, brake=BRAKE) as daemon:
        await lab.weigh(ten(MAIN))
        lab.silence(MOST)
        await lab.weigh(ten(REST))
        lab.speak()
        await lab.weigh(dict.fromkeys(MOST, 3) | ten(REST))
        await daemon.restart()
        await lab.weigh(ten(MAIN))
        await judged(daemon, s001="up", s100="up")
        assert lab.weights() == ten(MAIN)
        assert "maglev_brakes_begun_total 0" in await daemon.metrics()


async def test_a_restart_takes_the_weight_of_a_server_that_starts_slowly_and_alone_for_no_scale(lab: Lab) -> None:
    first, second = MAIN[:2]
    async with lab.daemon({"main": [first, second]}, SLOW) as daemon:
        await lab.weigh(ten([first, second]))
        lab.silence([first])
        await lab.weigh(ten([second]))
        lab.speak()
        await lab.weigh({first: 3, second: 10})
        async with daemon.api() as stub:
            await stub.DrainBackend(pb.ChangeBackendRequest(name=second))
        await lab.weigh({first: 3})
        await daemon.restart()
        await lab.weigh(ten([first]))
        async with daemon.api() as stub:
            await stub.UndrainBackend(pb.ChangeBackendRequest(name=second))
        await lab.weigh(ten([first, second]))


async def test_restarts_in_the_middle_of_a_failover_stay_with_the_pool_that_serves(lab: Lab) -> None:
    """The brake begins, and holds no backend, as another pool can serve."""
    pools = {"main": MAIN, "spare": SPARE}
    thresholds = "min-up: 50%, resume-up: 80%"
    async with lab.daemon(pools, PANIC, thresholds=thresholds, brake="{hold: 5m}") as daemon:
        await lab.weigh(ten(MAIN))
        lab.silence(MOST)
        await lab.weigh(ten(SPARE))
        await daemon.restart()
        await judged(daemon, s001="down", s100="up", s104="up")
        assert lab.disturbed() == set()
        # 79 of a hundred are up, and the spare pool serves still.
        lab.crowd.mute -= set(MOST[21:])
        async with daemon.api() as stub:
            await Watcher(stub).until(lambda w: sum(state == "up" for state in w.backends.values()) == 79 + len(SPARE))
        await daemon.restart()
        await judged(daemon, s001="down", s060="up", s104="up")
        assert lab.disturbed() == set()
        lab.speak()
        await lab.weigh(ten(MAIN))
