"""The cost of the weight rule: everything at once, and one frontend after a transition."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address

from bench.harness import Figure, cpu_ms
from maglev.base.states import State
from maglev.config.model import Backend, Config, Frontend, Panic, PanicAction, Pool, PoolMember, Threshold
from maglev.judgement.weights import StateSource, WeightTable, fill, frontend_weights

QUESTION = "How long does the weight rule take?"

FRONTENDS = 1000
MEMBERS = 50


@dataclass(frozen=True, slots=True)
class View:
    """A backend as the rule sees it."""

    state: State
    drained: bool = False


class Source(StateSource):
    """States from a dictionary, no run-time weights."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._states = {
            name: View(State.DOWN if number % 7 == 0 else State.UP) for number, name in enumerate(config.backends)
        }

    def config(self) -> Config:
        """The configuration."""
        return self._config

    def backend_state(self, name: str) -> View:
        """The state of a backend."""
        return self._states[name]

    def target_state(self, frontend: str, backend: str) -> View:
        """The same for every frontend."""
        return self._states[backend]

    def weight_override(self, frontend: str, pool: str, backend: str) -> int | None:
        """None: the file's weights count."""
        return None


def configuration(*, thresholds: bool = False) -> Config:
    """FRONTENDS frontends with MEMBERS members each, in two pools."""
    backends: dict[str, Backend] = {}
    frontends: dict[str, Frontend] = {}
    for number in range(FRONTENDS):
        members = []
        for index in range(MEMBERS):
            name = f"b{number}-{index}"
            backends[name] = Backend(name, IPv4Address(0x0A000000 + len(backends)))
            members.append(PoolMember(name, 10 * (1 + index % 10)))
        least, again = Threshold(40, percent=True), Threshold(60, percent=True)
        pools = (
            Pool("primary", tuple(members[: MEMBERS // 2]), *((least, again) if thresholds else ())),
            Pool("fallback", tuple(members[MEMBERS // 2 :])),
        )
        panic = Panic(0.5, PanicAction.ALL) if thresholds else None
        frontends[f"f{number}"] = Frontend(
            f"f{number}", IPv4Address(0xC0000000 + number), pools, panic=panic, slow_start=thresholds * 60_000_000_000
        )
    return Config(backends=backends, frontends=frontends)


def filled(config: Config, source: Source) -> WeightTable:
    """The table of a configuration, with the states of a source."""
    table = WeightTable()
    for _ in fill(table, config.frontends.values()):
        pass
    for name in config.backends:
        view = source.backend_state(name)
        table.set_backend(name, view.state, view.drained)
    return table


def run() -> list[Figure]:
    """Targets 10 and 11."""
    config = configuration()
    source = Source(config)
    table = filled(config, source)
    judged = filled(configuration(thresholds=True), source)
    for number in range(FRONTENDS):
        judged.set_shares(f"f{number}", {f"b{number}-0": 25, f"b{number}-1": 75})
    one = next(iter(config.frontends.values()))
    full = cpu_ms({"full": table.compute, "judged": judged.compute}, repeat=20)
    single = cpu_ms(
        {"source": lambda: frontend_weights(one, source), "table": lambda: table.frontend(one.name)}, repeat=1000
    )
    return [
        Figure(f"all: {FRONTENDS * MEMBERS} members, {FRONTENDS} frontends", full["full"], "ms", 2.0),
        Figure("  with thresholds on every pool, panic and slow starts", full["judged"], "ms", 2.0),
        Figure(f"one frontend of {MEMBERS} members", single["table"] * 1000, "us", 20.0),
        Figure("  asked of a source, as while a reload is under way", single["source"] * 1000, "us", 20.0),
    ]
