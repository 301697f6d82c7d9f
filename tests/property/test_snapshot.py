"""The weights for VPP, and their difference from those by health: against the rule in words."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from maglev.base.states import State
from maglev.config.model import OnAllDown, Panic, PanicAction
from maglev.judgement.snapshot import NOTHING_PRESUMED, Presumption, judge
from maglev.judgement.weights import frontend_weights
from tests.property.test_weights import Scene, View, scenes


@st.composite
def presumptions(draw: st.DrawFn) -> tuple[Scene, Presumption]:
    scene = draw(scenes())
    panic = draw(st.none() | st.builds(Panic, st.sampled_from([0.3, 0.6]), st.sampled_from(PanicAction)))
    scene = replace(scene, frontend=replace(scene.frontend, panic=panic))
    names = st.sampled_from(list(scene.views))
    unresolved = draw(st.frozensets(names))
    # A backend that serves need not be unknown, nor without a verdict.
    return scene, Presumption(unresolved, draw(st.frozensets(names)), draw(st.frozensets(names)))


def without_verdict(scene: Scene, presumption: Presumption) -> set[str]:
    weights = {m.backend: scene.overrides.get(m.backend, m.weight) for p in scene.frontend.pools for m in p.members}
    return {
        name
        for name, view in scene.views.items()
        if view.state is State.UNKNOWN and not view.drained and weights[name] > 0 and name in presumption.unresolved
    }


@given(presumptions())
def test_programmed_is_the_rule_with_serving_backends_up_and_ignorance_keeping(
    case: tuple[Scene, Presumption],
) -> None:
    scene, presumption = case
    judged = judge(scene.frontend, scene, presumption)
    assert judged.health == frontend_weights(scene.frontend, scene)
    ignorant = without_verdict(scene, presumption)
    up = {name for name in ignorant if name in presumption.serving}
    if not judged.health.usable and scene.frontend.on_all_down is OnAllDown.KEEP:
        up = set()
    views = scene.views | {name: View(State.UP, False) for name in up}
    model = frontend_weights(scene.frontend, Scene(scene.frontend, views, scene.overrides))
    assert judged.programmed.usable == model.usable
    assert judged.programmed.active_pool == model.active_pool
    for member, health, plain in zip(judged.programmed.members, judged.health.members, model.members, strict=True):
        assert (member.state, member.drained, member.weight) == (health.state, health.drained, health.weight)
        yields = health.effective > 0 and plain.effective == 0
        kept = plain.keep or member.backend in ignorant or yields
        if member.keep and not kept:
            # It is down, and there could be panic if nothing else passed its check.
            assert scene.frontend.panic is not None
            assert any(name in presumption.awaited for name in ignorant)
            assert member.effective == 0
            assert member.state in (State.UP, State.DOWN, State.UNKNOWN)
        else:
            assert member.keep == kept
        assert (member.effective, member.programmed) == (plain.effective, plain.programmed)


@given(presumptions())
def test_what_an_operator_took_out_is_never_kept_nor_presumed(case: tuple[Scene, Presumption]) -> None:
    scene, presumption = case
    for member in judge(scene.frontend, scene, presumption).programmed.members:
        if member.drained or member.state in (State.DISABLED, State.REMOVED) or member.weight == 0:
            assert not member.keep
            assert member.programmed == 0


@given(presumptions())
def test_both_answers_are_one_where_every_backend_has_a_verdict(case: tuple[Scene, Presumption]) -> None:
    scene, presumption = case
    known = {
        name: replace(view, state=State.DOWN) if view.state is State.UNKNOWN else view
        for name, view in scene.views.items()
    }
    judged = judge(scene.frontend, Scene(scene.frontend, known, scene.overrides), presumption)
    assert judged.programmed is judged.health
    judged = judge(scene.frontend, scene, NOTHING_PRESUMED)
    assert judged.programmed is judged.health
