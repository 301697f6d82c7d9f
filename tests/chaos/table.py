"""The disturbances, one row each. A row is one function; ``deck`` names what it needs for itself while it runs.

Each pass of a run plays every row once, in an order drawn at random, a few of each deck in a round.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from maglev.vpp.planning.model import parse_vip_key
from maglev.vpp.wire.messages import Prefix, ProtocolError
from maglev.vppsim.inspect import Client
from tests.chaos.layout import ONLINK, ROUTED, TARGETS
from tests.chaos.oracle import DRIFT
from tests.chaos.stage import Stage
from tests.chaos.world import troubles

YEAR = 365.0 * 86400


@dataclass(frozen=True, slots=True)
class Row:
    """One disturbance. ``on`` False: known not to be survived yet; it is left out, and the run says so."""

    name: str
    deck: str
    play: Callable[[Stage], Awaitable[bool]]
    """Returns whether it happened: a kill in the middle of a recreation may come too late."""
    on: bool = True


def _pause(stage: Stage, least: float, most: float) -> Awaitable[None]:
    return asyncio.sleep(stage.chance.uniform(least, most))


# ---- the daemon's life


async def kill_programming(stage: Stage) -> bool:
    """Killed between two weights: its servers fail at the same time, so that there is something to program."""
    async with stage.alone():
        shot = await stage.kill_at("lb_as_set_weight", stage.chance.randint(1, 4))
        free = [target for target in TARGETS if target.kind and target.address not in stage.world.modes]
        await stage.world.fail(stage.chance.sample(free, 12))
        happened = await shot()
        if happened:
            await stage.revive()
        return happened


async def kill_recreation(stage: Stage) -> bool:
    """Killed while a VIP is taken down or built up: after a weight, the deletion, the creation, or a new AS."""
    async with stage.alone():
        call = stage.chance.choice(
            [
                "lb_as_set_weight",
                "lb_add_del_as_v2:del",
                "lb_add_del_vip_v2:del",
                "lb_add_del_vip_v2",
                "lb_add_del_as_v2",
            ]
        )
        shot = await stage.kill_at(call, 1)
        stage.book.edit_tables()
        await stage.book.reload(stage.daemon, stage.book.good(), hup=False)
        happened = await shot()
        if happened:
            await stage.revive()
        return happened


async def kill_reload(stage: Stage) -> bool:
    """Killed at any moment of a reload."""
    async with stage.alone():
        stage.book.edit_weights()
        reload = asyncio.create_task(
            stage.book.reload(stage.daemon, stage.book.good(), hup=stage.chance.random() < 0.5)
        )
        await _pause(stage, 0.0, 0.4)
        stage.daemon.meant = True
        stage.daemon.signal(signal.SIGKILL)
        await reload
        await stage.revive()
        return True


async def kill(stage: Stage) -> bool:
    """Killed at any moment."""
    async with stage.alone():
        await stage.kill()
        return True


async def kill_starting(stage: Stage) -> bool:
    """Killed, and killed again while it starts or warms up."""
    async with stage.alone():
        await stage.kill()
        await _pause(stage, 0.0, 1.5)
        await stage.kill()
        return True


async def terminate(stage: Stage) -> bool:
    """Ended by SIGTERM, and started again."""
    async with stage.alone():
        await stage.kill(signal.SIGTERM)
        return True


async def stop_daemon(stage: Stage) -> bool:
    """Stopped, three times."""
    async with stage.alone():
        for most in (0.5, 1.0, 5.0):
            with stage.disturbed():
                stage.daemon.signal(signal.SIGSTOP)
                await _pause(stage, 0.1, most)
                stage.daemon.signal(signal.SIGCONT)
            await _pause(stage, 0.1, 0.5)
        return True


async def descriptors(stage: Stage) -> bool:
    """It gets no more descriptors for some seconds."""
    async with stage.alone():
        stage.book.starved = True
        stage.daemon.descriptors(stage.chance.randint(1, 4))
        with stage.disturbed():
            await _pause(stage, 1.5, 3.0)
            stage.daemon.descriptors(0)
        async with stage.book.lock:
            stage.book.starved = False
        return True


async def clock(stage: Stage) -> bool:
    """The wall clock is set: years ahead, before all certificates, an hour; and back."""
    for step in stage.chance.sample([20 * YEAR, -20 * YEAR, 3600.0, -3600.0, 5.0, -5.0], 3):
        await stage.up.wait()
        stage.skewed = True
        stage.daemon.set_clock(step)
        await _pause(stage, 0.8, 2.0)
    stage.daemon.set_clock(0)
    return True


# ---- VPP


async def restart_vpp(stage: Stage, number: signal.Signals = signal.SIGTERM) -> bool:
    """VPP ends and comes back empty."""
    async with stage.pipe:
        with stage.disturbed():
            await stage.vpp.end(number)
            await _pause(stage, 0.0, 1.5)
            await stage.vpp.start()
        return True


async def kill_vpp(stage: Stage) -> bool:
    """VPP is killed, and its socket stays behind."""
    return await restart_vpp(stage, signal.SIGKILL)


async def stop_vpp(stage: Stage) -> bool:
    """VPP neither reads nor answers for a while."""
    async with stage.pipe:
        with stage.disturbed():
            stage.vpp.signal(signal.SIGSTOP)
            await _pause(stage, 0.1, 5.0)
            stage.vpp.signal(signal.SIGCONT)
        return True


async def _cut(stage: Stage, side: str) -> bool:
    async with stage.pipe:
        for _ in range(2):
            with stage.disturbed():
                await stage.vpp.tell(f"cut {side} {stage.chance.randint(1, 3000)}")
                await _pause(stage, 0.5, 1.5)
                await stage.vpp.tell("clear")
        return True


async def cut_received(stage: Stage) -> bool:
    """The connection ends in the middle of a request."""
    return await _cut(stage, "received")


async def cut_sent(stage: Stage) -> bool:
    """The connection ends in the middle of an answer."""
    return await _cut(stage, "sent")


async def slow_vpp(stage: Stage) -> bool:
    """Every change takes VPP long."""
    async with stage.pipe:
        with stage.disturbed():
            for call in ("lb_as_set_weight", "lb_add_del_as_v2", "lb_add_del_vip_v2"):
                await stage.vpp.tell(f"delay {call} {stage.chance.uniform(0.005, 0.05):.3f}")
            await _pause(stage, 1.5, 3.0)
            await stage.vpp.tell("clear")
        return True


async def refuse_vpp(stage: Stage) -> bool:
    """VPP refuses a few changes."""
    async with stage.pipe:
        with stage.disturbed():
            for call in ("lb_as_set_weight", "lb_add_del_as_v2", "lb_add_del_vip_v2"):
                await stage.vpp.tell(f"refuse {call} -1 times {stage.chance.randint(1, 3)}")
            await _pause(stage, 1.5, 3.0)
            await stage.vpp.tell("clear")
        return True


async def _drift(stage: Stage, kind: str) -> bool:
    plan = stage.book.plan
    assert plan is not None
    held = {key: one for key, one in stage.oracle.vips.items() if key in plan.vips and one.ases}
    if not held:
        return False
    key = stage.chance.choice(sorted(held))
    vip = parse_vip_key(key)
    values = {"pfx": Prefix(vip.address, vip.prefix_length), "protocol": vip.protocol, "port": vip.port}
    address, weight = stage.chance.choice(sorted(held[key].ases.items()))
    # The new weight is not a multiple of the old one: a VIP whose weights are all one multiple keeps them until a sync.
    other = stage.chance.choice([0, weight + 1] if weight > 1 else [weight + 1])

    def change() -> int:
        packed = Prefix.parse(address).address
        with Client(stage.vpp.socket, DRIFT) as client:
            match kind:
                case "weight":
                    reply = client.call("lb_as_set_weight", **values, as_address=packed, weight=other, is_flush=False)
                case "as":
                    reply = client.call("lb_add_del_as_v2", **values, as_address=packed, is_del=True)
                case _:
                    reply = client.call("lb_add_del_vip_v2", **values, is_del=True, new_flows_table_length=1024)
        return int(reply["retval"])

    stage.facts.drift[key].append(time.monotonic())
    try:
        with stage.disturbed():
            done = await asyncio.to_thread(change)
    except (OSError, ProtocolError):
        return False  # VPP has just ended
    stage.say(f"drift: {kind} of {key} {address} {weight} -> {other}: {done}")
    return done == 0


async def drift_weight(stage: Stage) -> bool:
    """Another client changes weights."""
    return any([await _drift(stage, "weight") for _ in range(3)])


async def drift_as(stage: Stage) -> bool:
    """Another client deletes an AS."""
    return await _drift(stage, "as")


async def drift_vip(stage: Stage) -> bool:
    """Another client deletes a VIP."""
    return await _drift(stage, "vip")


# ---- the configuration file


async def _reload_and_back(stage: Stage, text: str) -> bool:
    await stage.up.wait()
    answered = await stage.book.reload(stage.daemon, text, hup=stage.chance.random() < 0.5)
    await _pause(stage, 0.2, 1.0)
    await stage.up.wait()
    await stage.book.reload(stage.daemon, stage.book.good(), hup=stage.chance.random() < 0.5)
    return answered is not None


async def _start_with(stage: Stage, make: Callable[[], str]) -> bool:
    """Let the next start of the daemon read another file, and put it right after a moment."""
    began = asyncio.Event()

    async def write() -> None:
        async with stage.book.lock:
            stage.book.path.write_text(make())
        began.set()

    stage.while_dead.append(write)
    await began.wait()
    async with stage.pipe:
        # VPP keeps what it has meanwhile. The pause is longer than the warm-up, so that there is a full sync by this
        # file: only that deletes VIPs.
        await stage.up.wait()
        await _pause(stage, 3.0, 4.0)
    await stage.up.wait()
    await stage.book.reload(stage.daemon, stage.book.good(), hup=False, force=stage.chance.random() < 0.5)
    return True


async def cut_reload(stage: Stage) -> bool:
    """The file is cut off at any byte."""
    return await _reload_and_back(stage, stage.book.cut(valid=False))


async def cut_valid_reload(stage: Stage) -> bool:
    """The file is cut off where it is still valid."""
    return await _reload_and_back(stage, stage.book.cut(valid=True))


async def cut_restart(stage: Stage) -> bool:
    """The daemon starts with a file that is cut off at any byte."""
    return await _start_with(stage, lambda: stage.book.cut(valid=False))


async def cut_valid_restart(stage: Stage) -> bool:
    """The daemon starts with a file that is cut off where it is still valid."""
    return await _start_with(stage, lambda: stage.book.cut(valid=True))


async def empty_reload(stage: Stage) -> bool:
    """The file is empty."""
    return await _reload_and_back(stage, "")


async def empty_restart(stage: Stage) -> bool:
    """The daemon starts with an empty file, or with one that has no frontends."""
    nothing = stage.book.good().partition("\n  frontends:")[0] + "\n"
    return await _start_with(stage, lambda: stage.chance.choice(["", nothing]))


async def older_file(stage: Stage) -> bool:
    """An older file is put into force, then the newest."""
    stage.book.edit_weights()
    await stage.up.wait()
    await stage.book.reload(stage.daemon, stage.book.good(), hup=True)
    return await _reload_and_back(stage, stage.chance.choice(stage.book.older))


async def few_vips(stage: Stage) -> bool:
    """A few VIPs leave the file, and come back."""
    return await _reload_and_back(stage, stage.book.without(stage.chance.randint(1, 3)))


async def most_vips_reload(stage: Stage) -> bool:
    """Most VIPs leave the file, or all of them: refused."""
    count = len(stage.book.tree["maglev"]["frontends"])
    return await _reload_and_back(stage, stage.book.without(stage.chance.choice([count - 4, count - 1, count])))


async def most_vips_restart(stage: Stage) -> bool:
    """The daemon starts with a file that lacks most VIPs."""
    count = len(stage.book.tree["maglev"]["frontends"])
    return await _start_with(stage, lambda: stage.book.without(stage.chance.choice([count - 4, count - 1])))


async def weights(stage: Stage) -> bool:
    """Weights change in the file."""
    stage.book.edit_weights()
    await stage.up.wait()
    return bool(await stage.book.reload(stage.daemon, stage.book.good(), hup=True))


async def recreation(stage: Stage) -> bool:
    """Tables and stickiness change in the file, so VIPs are recreated."""
    stage.book.edit_tables()
    await stage.up.wait()
    return bool(await stage.book.reload(stage.daemon, stage.book.good(), hup=False))


# ---- the state file


async def _while_dead(stage: Stage, damage: Callable[[Path], None]) -> bool:
    path = stage.daemon.state / "state.json"
    done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def work() -> None:
        stage.forgetful = True
        # It is missing after a start without one, until there is something to keep.
        there = path.is_file()
        if there:
            await asyncio.to_thread(damage, path)
        done.set_result(there)

    stage.while_dead.append(work)
    return await done


async def state_cut(stage: Stage) -> bool:
    """The state file is cut off."""

    def damage(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: stage.chance.randrange(len(data))])

    return await _while_dead(stage, damage)


async def state_older(stage: Stage) -> bool:
    """An older state file is put in its place."""
    path = stage.daemon.state / "state.json"
    if not path.is_file():
        return False
    older = path.read_bytes()
    await _pause(stage, 0.5, 1.5)

    def damage(path: Path) -> None:
        path.write_bytes(older)

    return await _while_dead(stage, damage)


async def state_removed(stage: Stage) -> bool:
    """The state file is gone, and its previous copy."""

    def damage(path: Path) -> None:
        for name in (path, path.with_name("state.json.prev")):
            name.unlink(missing_ok=True)

    return await _while_dead(stage, damage)


async def state_fifo(stage: Stage) -> bool:
    """A FIFO is in the place of the state file, at a start and for a while after it."""
    path = stage.daemon.state / "state.json"

    def damage(path: Path) -> None:
        path.unlink(missing_ok=True)
        os.mkfifo(path)

    with stage.forgetting():
        happened = await _while_dead(stage, damage)
        await stage.up.wait()
        await _pause(stage, 0.5, 1.5)
        if happened:
            path.unlink()
    return happened


async def state_read_only(stage: Stage) -> bool:
    """Nothing can be made in the state directory for a while."""
    with stage.forgetting():
        await asyncio.to_thread(subprocess.run, ["chattr", "+i", str(stage.daemon.state)], check=True)
        try:
            await _pause(stage, 1.5, 3.0)
        finally:
            await asyncio.to_thread(subprocess.run, ["chattr", "-i", str(stage.daemon.state)], check=True)
    return True


async def state_full(stage: Stage) -> bool:
    """The disk of the state directory is full for a while."""
    filler = stage.daemon.state / "filler"

    def fill() -> None:
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass  # that is what it is for

    with stage.forgetting():
        await asyncio.to_thread(fill)
        await _pause(stage, 1.5, 3.0)
        filler.unlink()
    return True


# ---- the prober's own side


def _host(group: str, trouble: str) -> Callable[[Stage], Awaitable[bool]]:
    async def play(stage: Stage) -> bool:
        await stage.world.break_host(group, trouble)
        await _pause(stage, 2.0, 4.0)
        await stage.world.mend_host(group)
        return True

    return play


HOST_ON = {
    "route": True,
    "link": True,
    "carrier": True,
    "firewall": True,
    "queue": True,
    "source": True,
}

ROWS = (
    Row("kill while programming", "daemon", kill_programming),
    Row("kill in a recreation", "daemon", kill_recreation),
    Row("kill in a reload", "daemon", kill_reload),
    Row("kill at any time", "daemon", kill),
    Row("kill while starting", "daemon", kill_starting),
    Row("SIGTERM", "daemon", terminate),
    Row("SIGSTOP of maglevd", "stall", stop_daemon),
    Row("no descriptors", "stall", descriptors),
    Row("clock set", "clock", clock),
    Row("VPP restart", "vpp", restart_vpp),
    Row("VPP kill", "vpp", kill_vpp),
    Row("SIGSTOP of VPP", "vpp", stop_vpp),
    Row("cut while receiving", "vpp", cut_received),
    Row("cut while sending", "vpp", cut_sent),
    Row("slow VPP", "vpp", slow_vpp),
    Row("VPP refuses", "vpp", refuse_vpp),
    Row("drift: weight", "vpp", drift_weight),
    Row("drift: AS deleted", "vpp", drift_as),
    Row("drift: VIP deleted", "vpp", drift_vip),
    Row("file cut, reload", "file", cut_reload),
    Row("file cut and valid, reload", "file", cut_valid_reload),
    Row("file empty, reload", "file", empty_reload),
    Row("older file, reload", "file", older_file),
    Row("few VIPs leave", "file", few_vips),
    Row("most VIPs leave, reload", "file", most_vips_reload),
    Row("weights change", "file", weights),
    Row("recreation", "file", recreation),
    Row("file cut, restart", "restart", cut_restart),
    Row("file cut and valid, restart", "restart", cut_valid_restart),
    Row("file empty, restart", "restart", empty_restart),
    Row("most VIPs leave, restart", "restart", most_vips_restart),
    Row("state file cut", "state", state_cut),
    Row("state file older", "state", state_older),
    Row("state file removed", "state", state_removed),
    Row("state file a FIFO", "state", state_fifo),
    Row("state directory read-only", "state", state_read_only),
    Row("disk full", "state", state_full),
    *(
        Row(f"{group}: {trouble}", group, _host(group, trouble), HOST_ON[trouble])
        for group in (ROUTED, ONLINK)
        for trouble in troubles(group)
    ),
)


def decks(chance: random.Random, rounds: int, wanted: Sequence[Row]) -> list[list[list[Row]]]:
    """These rows in a pass: for each round the rows of each deck, in a random order."""
    dealt: list[list[list[Row]]] = [[] for _ in range(rounds)]
    for deck in dict.fromkeys(row.deck for row in wanted):
        rows = [row for row in wanted if row.deck == deck]
        chance.shuffle(rows)
        first = chance.randrange(rounds)
        for number in range(rounds):
            share = rows[number * len(rows) // rounds : (number + 1) * len(rows) // rounds]
            if share:
                dealt[(first + number) % rounds].append(share)
    return dealt
