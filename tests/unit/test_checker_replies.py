"""The reply to a verb: every value that it changed, and the frontends that it costs a server."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest

from maglev.config.model import SECOND, OnAllDown
from maglev.views.backends import Change, WeightChange
from tests.helpers.checker import config
from tests.unit.test_checker_verbs import A, B, Rig


@pytest.fixture
async def rig() -> Rig:
    rig = Rig()
    await rig.checker.apply(config({"a": A, "b": B}, {"www": [{"a": 100}, {"b": 50}]}), by="start")
    rig.checker.settle(())
    return rig


def told(change: Change | WeightChange) -> list[tuple[str, str, str]]:
    return [(one.what, one.before, one.after) for one in change.values]


def until(rig: Rig, seconds: int) -> str:
    return str(rig.clock.time_ns() + seconds * SECOND)


@pytest.mark.parametrize("verb", ["drain", "disable", "pause"])
async def test_a_repeated_verb_tells_what_it_changed(rig: Rig, verb: str) -> None:
    rig.result(A, True)
    call = getattr(rig.checker, verb)
    first = call("a", by="ann", reason="disk", duration_ns=3600 * SECOND)
    state = {
        "drain": ("drained", "no", "yes"),
        "disable": ("state", "up", "disabled"),
        "pause": ("state", "up", "paused"),
    }
    assert told(first) == [state[verb], ("reason", "", "disk"), ("until", "", until(rig, 3600))]
    assert told(call("a", by="ann", reason="disk", duration_ns=3600 * SECOND)) == []
    longer = call("a", by="bob", reason="disk", duration_ns=4 * 3600 * SECOND)
    assert not longer.changed
    assert told(longer) == [("until", until(rig, 3600), until(rig, 4 * 3600)), ("by", "ann", "bob")]
    assert told(call("a", by="bob", reason="fans")) == [
        ("reason", "disk", "fans"),
        ("until", until(rig, 4 * 3600), ""),
    ]
    assert told(call("a", by="bob", reason="fans")) == []


async def test_a_repeated_weight_tells_what_it_changed(rig: Rig) -> None:
    call = partial(rig.checker.set_weight, "www", "pool0", "a", by="op")
    assert told(call(0, duration_ns=60 * SECOND)) == [("weight", "100", "0"), ("until", "", until(rig, 60))]
    assert told(call(0, duration_ns=60 * SECOND)) == []
    assert told(call(0, reason="disk")) == [("reason", "", "disk"), ("until", until(rig, 60), "")]
    assert told(call(None)) == [("weight", "0", "100")]
    assert told(call(None)) == []


async def test_a_verb_tells_the_frontends_that_lose_their_last_server_or_fall_back() -> None:
    rig = Rig()
    pools = {"last": [{"a": 100}], "spare": [{"a": 100}, {"b": 50}], "both": [{"a": 100, "b": 100}], "no": [{"b": 1}]}
    await rig.checker.apply(config({"a": A, "b": B}, pools), by="start")
    rig.result(A, True)
    rig.result(B, True)

    def effects(change: Change | WeightChange) -> list[str]:
        assert change.effects.omitted == 0
        return [str(effect) for effect in change.effects.listed]

    lost = ["last: no server left, new flows are dropped", "spare: falls back to pool pool1"]
    for verb in ("drain", "pause", "disable"):
        assert effects(getattr(rig.checker, verb)("a", by="op")) == lost, verb
        assert effects(getattr(rig.checker, verb)("a", by="op")) == []
        back = {"drain": "undrain", "pause": "resume", "disable": "enable"}[verb]
        change = getattr(rig.checker, back)("a", by="op")
        if verb == "drain":
            assert effects(change) == ["last: served again, by pool pool0", "spare: goes back to pool pool0"]
        else:
            assert effects(change) == []  # it has no verdict yet
            rig.result(A, True)
    assert effects(rig.checker.set_weight("last", "pool0", "a", 0, by="op")) == lost[:1]
    assert effects(rig.checker.set_weight("spare", "pool0", "a", 0, by="op")) == lost[1:]
    assert effects(rig.checker.set_weight("both", "pool0", "a", 0, by="op")) == []
    # Nothing is lost with a server that is none.
    rig.result(A, False, times=3)
    assert effects(rig.checker.disable("a", by="op")) == []


async def test_a_frontend_that_keeps_weights_says_so() -> None:
    rig = Rig()
    made = config({"a": A, "b": B}, {"www": [{"a": 100, "b": 100}]})
    kept = dataclasses.replace(made.frontends["www"], on_all_down=OnAllDown.KEEP)
    await rig.checker.apply(dataclasses.replace(made, frontends={"www": kept}), by="start")
    rig.result(A, True)
    rig.result(B, False, times=3)
    (effect,) = rig.checker.drain("a", by="op").effects.listed
    assert str(effect) == "www: no server left, the others keep the weights that VPP has"


async def test_the_effects_on_thousands_of_frontends_are_counted_and_the_worst_listed() -> None:
    rig = Rig()
    pools = {f"f{n}": [{"a": 100}, {"b": 1}] if n < 2000 else [{"a": 100}] for n in range(2030)}
    await rig.checker.apply(config({"a": A, "b": B}, pools), by="start")
    rig.result(A, True)
    rig.result(B, True)
    change = rig.checker.disable("a", by="op")
    assert [effect.frontend for effect in change.effects.listed] == [f"f{n}" for n in range(2000, 2020)]
    assert change.effects.omitted == 2010
