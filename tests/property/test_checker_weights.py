"""The checker's table of weights repeats what the backends know: it must never differ from them, whatever happens.

Verdicts, verbs, run-time weights and expiries come in any order, also between the slices of a reload. After each of
them, every frontend has the same weights by the table and by the backends themselves.
"""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maglev.base.errors import NotAllowed
from maglev.checker import Checker
from maglev.config.model import Config
from maglev.judgement.weights import frontend_weights
from tests.helpers.checker import config
from tests.unit.test_checker_verbs import Rig

ADDRESSES = {name: f"192.0.2.{number}" for number, name in enumerate("abcde", 1)}
VERBS = ("pause", "resume", "disable", "enable", "drain", "undrain")


def configuration(names: str, moved: bool, heavy: bool) -> Config:
    """Two frontends over these backends: one with a pool for each half, one that has all of them in reverse order."""
    addresses = {name: ADDRESSES[name] for name in names}
    if moved:
        addresses[names[0]] = "192.0.2.99"
    half = (len(names) + 1) // 2
    weight = 100 if heavy else 50
    pools = [dict.fromkeys(names[:half], weight), dict.fromkeys(names[half:], 20)]
    return config(addresses, {"first": [pool for pool in pools if pool], "second": [dict.fromkeys(names[::-1], 10)]})


def agree(checker: Checker) -> None:
    """Every frontend has the same weights both ways. Published states may lag behind, weights may not."""
    for frontend in checker.config().frontends.values():
        assert checker.weights(frontend) == frontend_weights(frontend, checker)


ACTIONS = st.one_of(
    st.tuples(st.just("probe"), st.sampled_from("abcde"), st.booleans()),
    st.tuples(st.just("verb"), st.sampled_from("abcde"), st.sampled_from(VERBS)),
    st.tuples(st.just("weight"), st.sampled_from("abcde"), st.one_of(st.none(), st.integers(0, 100))),
    st.tuples(st.just("expire"), st.just(""), st.integers(1, 3)),
    st.tuples(
        st.just("reload"), st.sampled_from(["ab", "abc", "bcd", "abcde", "e"]), st.tuples(st.booleans(), st.booleans())
    ),
)


class Life:
    """One checker that all of this happens to."""

    def __init__(self) -> None:
        self.rig = Rig()
        self.reloads: list[asyncio.Task[None]] = []

    def act(self, kind: str, name: str, how: object) -> None:
        """Do one thing, which may be refused, and compare."""
        checker = self.rig.checker
        if kind == "reload":
            assert isinstance(how, tuple)
            moved, heavy = how
            self.reloads.append(
                asyncio.create_task(checker.apply(configuration(name, moved, heavy), by="x", force=True))
            )
        elif kind == "expire":
            assert isinstance(how, int)
            self.rig.clock.advance(how)
            checker.expire()
        elif name in checker.config().backends:
            self._one(kind, name, how)
        agree(checker)

    def _one(self, kind: str, name: str, how: object) -> None:
        checker = self.rig.checker
        if kind == "probe":
            address = str(checker.config().backends[name].address)
            if self.rig.engine.is_probed(address):
                self.rig.result(address, bool(how))
        elif kind == "verb":
            lasting = how in ("resume", "enable", "undrain")
            with contextlib.suppress(NotAllowed):
                getattr(checker, str(how))(name, by="x", duration_ns=0 if lasting else 2_000_000_000)
        else:
            assert how is None or isinstance(how, int)
            pool = next(
                p.name for p in checker.config().frontends["first"].pools for m in p.members if m.backend == name
            )
            checker.set_weight("first", pool, name, how, by="x", duration_ns=2_000_000_000)


@pytest.mark.parametrize("slice_ns", [0, 250_000])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=st.lists(st.tuples(ACTIONS, st.integers(0, 12)), max_size=30))
def test_table_of_weights_never_differs_from_the_backends(
    slice_ns: int, monkeypatch: pytest.MonkeyPatch, actions: list[tuple[tuple[str, str, object], int]]
) -> None:
    # With slices of no length, a reload lets others run after every single backend.
    monkeypatch.setattr("maglev.base.pace.SLICE_NS", slice_ns)

    async def live() -> None:
        life = Life()
        await life.rig.checker.apply(configuration("abcd", False, True), by="start")
        for action, turns in actions:
            life.act(*action)
            for _ in range(turns):
                await asyncio.sleep(0)
                agree(life.rig.checker)
        await asyncio.gather(*life.reloads)
        agree(life.rig.checker)
        for name, frontend in life.rig.checker.config().frontends.items():
            assert life.rig.checker.frontend_state(name) is life.rig.checker.weights(frontend).state

    asyncio.run(live())
