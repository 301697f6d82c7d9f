"""What should be: the configuration file, what operators have set, and which servers answer; then the rule of weights.

It shares with the daemon the reading of the file and the rule, and nothing of how the daemon gets there.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import orjson

from maglev.base.errors import UnknownName
from maglev.base.states import State
from maglev.config.load import load_text
from maglev.config.model import Config
from maglev.judgement.weights import StateSource, applied_weight, weight_unit
from maglev.vpp.planning.model import vip_key
from tests.soak.world import PORT_CONNECT, PORT_HTTP, PORT_SYN, address_of

MEMBERS, FALLBACK = 40, 10
"""Backends of a frontend: in its first pool and in its second."""

PACE = {"interval": "5s", "fast-interval": "1s", "timeout": "900ms", "rise": 2, "fall": 2}


@dataclass(frozen=True, slots=True)
class View:
    """A backend as the rule sees it."""

    state: State
    drained: bool
    enabled: bool = True


class Model(StateSource):
    """The truth, and the source of states for the rule."""

    def __init__(self, targets: int, chance: random.Random) -> None:
        self._chance = chance
        self.targets = targets
        self.tree = self._tree(targets)
        self.drained: set[str] = set()
        self.disabled: set[str] = set()
        self.paused: set[str] = set()
        self.overrides: dict[tuple[str, str, str], int] = {}
        self.down: Collection[str] = ()
        self._config = self._load()

    # ---- the file

    @staticmethod
    def _check(number: int) -> str:
        # Pings and half-open connections take a packet; the others a descriptor each.
        return "http" if number % 40 == 0 else "connect" if number % 40 == 1 else "syn" if number % 2 else "ping"

    def _tree(self, targets: int) -> dict[str, Any]:
        checks = {
            "ping": {"type": "icmp", **PACE},
            "syn": {"type": "tcp", "port": PORT_SYN, **PACE},
            "connect": {"type": "tcp", "port": PORT_CONNECT, "params": {"mode": "connect"}, **PACE},
            "http": {"type": "http", "port": PORT_HTTP, "params": {"path": "/"}, **PACE},
        }
        backends = {f"b{n}": {"address": address_of(n), "healthcheck": self._check(n)} for n in range(targets)}
        frontends = {}
        each = MEMBERS + FALLBACK
        for number in range(targets // each):
            names = [f"b{n}" for n in range(number * each, (number + 1) * each)]
            frontends[f"f{number}"] = {
                "address": f"198.18.{number // 250}.{number % 250 + 1}",
                "protocol": "tcp",
                "port": 80,
                "new-flows-table-length": 1024,
                "flush-on-down": number % 2 == 0,
                "on-all-down": "keep" if number % 3 == 0 else "drain",
                "pools": [
                    {"name": "first", "backends": {name: {"weight": 100} for name in names[:MEMBERS]}},
                    {"name": "second", "backends": {name: {"weight": 50} for name in names[MEMBERS:]}},
                ],
            }
        lb = {
            "ipv4-src-address": "192.0.2.1",
            "sync-interval": "15s",
            "startup-min-delay": "1s",
            "startup-max-delay": "10s",
        }
        return {
            "maglev": {
                "healthchecker": {"brake": "off"},
                "vpp": {"lb": lb},
                "healthchecks": checks,
                "backends": backends,
                "frontends": frontends,
            }
        }

    def _load(self) -> Config:
        result = load_text(orjson.dumps(self.tree), json=True)
        if result.config is None:
            raise ValueError(f"the model's own file: {result.problems[:3]}")
        return result.config

    def edit(self) -> str:
        """Change the file as people do; returns what was done."""
        maglev = self.tree["maglev"]
        frontends: dict[str, Any] = maglev["frontends"]
        done = []
        for name in self._chance.sample(sorted(frontends), 5):
            pool = self._chance.choice(frontends[name]["pools"])
            member = self._chance.choice(sorted(pool["backends"]))
            pool["backends"][member]["weight"] = self._chance.randint(0, 10) * 10
            done.append(f"weight {name}/{pool['name']}/{member}")
        # A member leaves its frontend, or is back in it: its backend stays.
        for name in self._chance.sample(sorted(frontends), 5):
            pool = frontends[name]["pools"][0]["backends"]
            if len(pool) == MEMBERS:
                del pool[self._chance.choice(sorted(pool))]
            else:
                number = int(name[1:]) * (MEMBERS + FALLBACK)
                for missing in {f"b{n}" for n in range(number, number + MEMBERS)} - set(pool):
                    pool[missing] = {"weight": 100}
            done.append(f"members {name}")
        # A backend gets another address: another server.
        name = f"b{self._chance.randrange(self.targets)}"
        spare = address_of(self.targets + int(name[1:]))
        backend = maglev["backends"][name]
        backend["address"] = spare if backend["address"] != spare else address_of(int(name[1:]))
        done.append(f"address {name}")
        # A check changes its pace.
        check = self._chance.choice(sorted(maglev["healthchecks"]))
        maglev["healthchecks"][check]["interval"] = self._chance.choice(["4s", "5s", "6s"])
        done.append(f"check {check}")
        # A frontend goes, and is there again after the next edit.
        gone = self.tree.setdefault("gone", {})
        for name in list(gone):
            frontends[name] = gone.pop(name)
        name = self._chance.choice(sorted(frontends))
        gone[name] = frontends.pop(name)
        done.append(f"frontend {name}")
        del self.tree["gone"]
        before, self._config = self._config, self._load()
        self.tree["gone"] = gone
        self._forget(before, self._config)
        return ", ".join(done)

    def file(self) -> bytes:
        """The configuration file."""
        return orjson.dumps({"maglev": self.tree["maglev"]})

    def _forget(self, before: Config, now: Config) -> None:
        """What operators have set ends where the file's own value for it changes, or where it means another thing."""

        def values(config: Config, frontend: str) -> dict[tuple[str, str, str], int]:
            return {
                (frontend, pool.name, member.backend): member.weight
                for pool in (config.frontends[frontend].pools if frontend in config.frontends else ())
                for member in pool.members
            }

        for key in list(self.overrides):
            old, new = values(before, key[0]).get(key), values(now, key[0]).get(key)
            if new is None or (old is not None and old != new):
                del self.overrides[key]
        for name in [*self.drained, *self.disabled, *self.paused]:
            if before.backends[name].address != now.backends[name].address:
                for names in (self.drained, self.disabled, self.paused):
                    names.discard(name)
                for key in [key for key in self.overrides if key[2] == name]:
                    del self.overrides[key]

    # ---- what operators do

    def set_weight(self, frontend: str, pool: str, backend: str, weight: int | None) -> None:
        """A run-time weight; None: the file's."""
        conf = self._config.frontends[frontend]
        file = {m.backend: m.weight for p in conf.pools if p.name == pool for m in p.members}[backend]
        became = file if weight is None else min(100, applied_weight(weight, weight_unit(conf)))
        if file in (weight, became):
            self.overrides.pop((frontend, pool, backend), None)
        else:
            self.overrides[frontend, pool, backend] = became

    # ---- the source of states

    def config(self) -> Config:
        """The configuration that should be in force."""
        return self._config

    def backend_state(self, name: str) -> View:
        """What a backend should be, once all is quiet."""
        conf = self._config.backends.get(name)
        if conf is None:
            raise UnknownName("backend", name)
        if name in self.disabled:
            return View(State.DISABLED, name in self.drained, enabled=False)
        if name in self.paused:
            return View(State.PAUSED, name in self.drained)
        return View(State.DOWN if str(conf.address) in self.down else State.UP, name in self.drained)

    def weight_override(self, frontend: str, pool: str, backend: str) -> int | None:
        """The operator's weight of a member."""
        return self.overrides.get((frontend, pool, backend))

    def states(self) -> dict[str, State]:
        """What every backend of a frontend should be."""
        used = {m.backend for f in self._config.frontends.values() for p in f.pools for m in p.members}
        return {name: self.backend_state(name).state for name in used}

    def programmed(self) -> dict[str, dict[str, int | None]]:
        """What VPP should hold: weight by address of the server, by VIP. None: whatever it has stays."""
        wanted: dict[str, dict[str, int | None]] = {}
        for frontend in self._config.frontends.values():
            weights = self.weights(frontend)
            wanted[str(vip_key(frontend))] = {
                str(self._config.backends[member.backend].address): None if member.keep else member.programmed
                for member in weights.members
            }
        return wanted
