"""Daemons' dataplanes on the VPP under test, and what VPP says of their VIP. Its address is 192.0.2.201."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from maglev.base.states import State
from maglev.config.model import Config, LbConfig, MassChanges
from maglev.vpp.planning.model import vip_key
from maglev.vpp.state.reader import StateReader
from maglev.vpp.wire.messages import MESSAGES, address_text
from maglev.vpp.wire.transport import Request
from tests.helpers.vpp import make_config
from tests.helpers.vpprig import AT_ONCE, Rig

UP, DOWN = State.UP, State.DOWN


def config_of(family: int = 4, *, lb: LbConfig = AT_ONCE, **options: object) -> Config:
    """Two servers and a standby, of one family; the VIP is of the other where ``family`` is 6."""
    base = "10.9.0." if family == 4 else "2001:db8:9::"
    backends = {name: f"{base}{number}" for number, name in enumerate("abc", 1)}
    pools = {"p": {"a": 10, "b": 20}, "fallback": {"c": 10}}
    return make_config(pools, backends=backends, address="192.0.2.201", lb=lb, **options)  # type: ignore[arg-type]


@asynccontextmanager
async def driven(socket: Path, config: Config, **options: object) -> AsyncIterator[Rig]:
    """A rig on the VPP; afterwards VPP is as it was."""
    rig = Rig(socket, config, **options)  # type: ignore[arg-type]
    rig.load()
    async with rig.running():
        await rig.settled()
        try:
            yield rig
        finally:
            rig.load(replace(config, frontends={}, backends={}))
            await rig.settled()


async def held(rig: Rig) -> dict[str, int]:
    """Address -> weight of the live ASes, read from VPP."""
    key = vip_key(rig.states.config().frontends["www"])
    read = await StateReader(rig.client).ases(key)
    return {address_text(one.address): one.weight for one in read if one.live}


async def buckets(rig: Rig) -> dict[str, int]:
    """Address -> buckets of the live ASes, read from VPP."""
    key = vip_key(rig.states.config().frontends["www"])
    return {address_text(one.address): one.num_buckets for one in await StateReader(rig.client).ases(key) if one.live}


def halves(family: int, mass: MassChanges) -> Config:
    """Sixty servers, weights 1 and 3, and sixty standbys."""
    base = "10.9.2." if family == 4 else "2001:db8:9::2:"
    backends = {
        f"{half}{number:02}": f"{base}{number + 60 * (half == 'b')}" for half in "ab" for number in range(1, 61)
    }
    pools: dict[str, dict[str, int]] = {"p": {}, "q": {}}
    for name in backends:
        pools["p" if name[0] == "a" else "q"][name] = 10 if int(name[1:]) % 2 else 30
    # A stall that three lines of VPP's log fit into, which take a millisecond each where no syslog daemon listens: else
    # single calls can be cheaper than a command, and the daemon takes those.
    lb = replace(AT_ONCE, max_stall=6_000_000, mass_changes=mass)
    return make_config(pools, backends=backends, address="192.0.2.201", lb=lb)


def is_change(request: Request) -> bool:
    """The request is a command that changes servers, not a probe or a reading."""
    if request.name != "cli_inband":
        return False
    text = MESSAGES["cli_inband"].unpack(request.payload)["cmd"]
    return "\n" in text
