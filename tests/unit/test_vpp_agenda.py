"""What waits and what comes next: order, admission, and that nothing is overtaken more than once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from maglev.vpp.planning.plan import Op
from maglev.vpp.state.agenda import MOST_MEMBERS, Admission, Agenda, Choice
from maglev.vpp.wire.messages import VipKey

WWW = VipKey.parse("192.0.2.1/32", 6, 80)
API = VipKey.parse("192.0.2.1/32", 6, 443)


def agenda_of(*names: str) -> Agenda:
    agenda = Agenda()
    agenda.again(names)
    return agenda


def sort(agenda: Agenda, unserved: Callable[[str], bool] = lambda name: name.startswith("d")) -> None:
    """Look at VPP for each doubtful frontend; no AS serves those whose names begin with d."""
    for name in agenda.take_doubtful():
        agenda.sort(name, served=not unserved(name))


def overtaking(agenda: Agenda) -> Sequence[str]:
    """The frontends that may come first, once all are sorted."""
    sort(agenda)
    return agenda.overtaking()


def admitted(name: str) -> Admission:
    return Admission.ADMITTED


def choose(
    agenda: Agenda,
    urgent: Iterable[str] = (),
    admission: Callable[[str], Admission] = admitted,
    members: int = MOST_MEMBERS,
) -> Choice:
    """By default a batch holds one frontend."""
    return agenda.choose(urgent, admission, lambda _: members)


def test_what_was_marked_first_comes_first_and_marking_it_again_gives_it_no_other_place() -> None:
    agenda = agenda_of("a", "b", "c")
    agenda.mark("b", WWW)
    agenda.mark("a", WWW)
    assert choose(agenda, members=1).names == ("a", "b", "c")


def test_a_batch_holds_no_more_frontends_than_it_can_plan_for_and_at_least_one() -> None:
    agenda = agenda_of("a", "b", "c")
    assert choose(agenda, members=MOST_MEMBERS // 2).names == ("a", "b")
    assert choose(agenda, members=10 * MOST_MEMBERS).names == ("a",)


def test_the_urgent_come_first_and_only_where_they_are_dirty() -> None:
    agenda = agenda_of("a", "b")
    assert choose(agenda, ["clean", "b"], members=1).names == ("b", "a")


def test_a_choice_changes_nothing() -> None:
    agenda = agenda_of("a", "b")
    assert choose(agenda) == choose(agenda)
    assert agenda.waiting


def test_what_has_to_wait_for_a_reload_stays_where_it_is() -> None:
    agenda = agenda_of("a", "b")
    choice = choose(agenda, admission=lambda name: Admission.LATER if name == "a" else Admission.ADMITTED)
    assert choice == Choice(("b",), ())
    agenda.take(choice.names, ())
    assert choose(agenda).names == ("a",)


def test_what_the_warm_up_holds_is_parked_until_an_event_or_a_new_phase_brings_it_back() -> None:
    agenda = agenda_of("a", "b")
    choice = choose(agenda, ["a"], admission=lambda _: Admission.HELD)
    assert choice == Choice((), ("a", "b"))
    agenda.park(choice.held)
    assert not agenda.waiting
    agenda.mark("b", WWW)
    assert choose(agenda).names == ("b",)
    agenda.take(["b"], ())
    agenda.unpark()
    assert choose(agenda, members=1).names == ("a",)


def test_what_is_marked_while_a_batch_is_under_way_is_dirty_after_it() -> None:
    agenda = agenda_of("a")
    batch = agenda.take(choose(agenda).names, ())
    agenda.mark("a", WWW)  # while something is read: the plan will have it
    agenda.planned(["a"])
    assert not agenda.waiting
    agenda.mark("a", WWW)  # while the plan is carried out: newer than the plan
    agenda.cut_off(["a"], {"a"}, [])
    agenda.done(batch)
    assert agenda.waiting


def test_what_a_budget_cuts_off_comes_first_and_what_got_some_of_it_goes_behind() -> None:
    agenda = agenda_of("a", "b", "c", "d")
    agenda.take(["a", "b", "c"], ())
    agenda.planned(["a", "b", "c"])
    agenda.cut_off(["a", "b", "c"], {"a"}, ["a", "b", "c"])
    assert list(agenda.cut) == ["a", "b", "c"]
    assert choose(agenda, members=1).names == ("a", "b", "c", "d")
    agenda.cut_off(["a", "b", "c"], {"a", "b"}, ["b", "c", "a", ""])
    assert list(agenda.cut) == ["c", "b", "a"], "b has got some again, and c nothing in both"
    agenda.cut_off(["c"], {"c"}, [])
    assert list(agenda.cut) == ["b", "a"]


def test_a_batch_of_nothing_but_the_urgent_is_followed_by_one_without_precedence() -> None:
    agenda = agenda_of("old", "dark")
    assert overtaking(agenda) == ("dark",)
    agenda.done(agenda.take(["dark"], ["dark"]))
    agenda.mark("dark", WWW)
    assert overtaking(agenda) == ()
    agenda.done(agenda.take(["old"], ()))
    assert overtaking(agenda) == ("dark",)


def test_a_batch_of_all_that_waits_overtakes_nothing() -> None:
    agenda = agenda_of("dark")
    agenda.done(agenda.take(["dark"], ["dark"]))
    agenda.mark("dark", WWW)
    assert overtaking(agenda) == ("dark",)


def test_a_batch_that_is_cut_behind_the_urgent_has_overtaken_what_was_cut_off() -> None:
    agenda = agenda_of("old", "dark")
    batch = agenda.take(["dark", "old"], ["dark"])
    agenda.cut_off(["dark", "old"], {"dark"}, ["old"])
    agenda.done(batch)
    agenda.mark("dark", WWW)
    assert overtaking(agenda) == ()
    assert choose(agenda).names == ("old",)


ROUNDS = st.lists(
    st.tuples(
        st.sets(st.sampled_from(["d0", "d1", "d2"])),  # marked, and no AS serves it
        st.sets(st.sampled_from(["w0", "w1", "w2", "w3"])),  # marked, and served
        st.integers(1, 5),  # how many frontends a batch holds
        st.integers(1, 5),  # how many of them get their steps sent before the budget ends
    ),
    min_size=1,
    max_size=6,
)


def test_what_is_cut_off_of_the_urgent_has_no_precedence_over_what_they_have_overtaken() -> None:
    """Else a large VIP that serves nobody would fill each second batch as well."""
    agenda = agenda_of("old", "dark", "dlarge")
    batch = agenda.take(choose(agenda, ["dark", "dlarge"], members=MOST_MEMBERS // 2).names, ["dark", "dlarge"])
    assert batch.names == ("dark", "dlarge")
    agenda.cut_off(batch.names, {"dark"}, ["dlarge"])
    agenda.done(batch)
    assert choose(agenda).names == ("old",)
    agenda.done(agenda.take(["old"], ()))
    assert overtaking(agenda) == ("dlarge",)
    assert choose(agenda).names == ("dlarge",)


@example([(set(), set(), 1, 1), ({"d0", "d1"}, {"w0"}, 2, 1)])
@example([({"d0", "d1", "d2"}, {"w0", "w1", "w2"}, 2, 1)])
@given(ROUNDS)
def test_whatever_waits_is_overtaken_by_one_batch_of_vips_that_serve_nobody_at_most(
    rounds: list[tuple[set[str], set[str], int, int]],
) -> None:
    agenda = Agenda()
    waits: dict[str, int] = {}  # dirty frontends, and how many batches have passed each of them over
    overtaken = False
    for dark, serving, size, sent in rounds * 60:
        for name in (*sorted(serving), *sorted(dark)):
            agenda.mark(name, None)
            waits.setdefault(name, 0)
        urgent = overtaking(agenda)
        choice = agenda.choose(urgent, admitted, lambda _, size=size: -(-MOST_MEMBERS // size))  # type: ignore[misc]
        if not waits:
            assert not choice.names
            continue
        batch = agenda.take(choice.names, urgent)
        agenda.planned(choice.names)
        # As a plan orders its steps: what was cut off, then what no AS serves.
        first = [name for name in batch.first if name in choice.names]
        order = [*first, *sorted(name for name in choice.names if name not in first)]
        done, rest = order[:sent], order[sent:]
        agenda.cut_off(choice.names, set(done), rest)
        agenda.done(batch)
        for name in done:
            del waits[name]
        for name in waits:
            waits[name] += 1
        precedence = bool(urgent) and bool(waits) and all(name.startswith("d") for name in done)
        assert not (overtaken and precedence), f"{waits} were overtaken twice in a row"
        overtaken = precedence
        # At least every other batch goes by age, and finishes one frontend; a frontend waits behind six others at most,
        # once to be planned, and once more where the budget ends before its steps.
        assert max(waits.values(), default=0) <= 2 * 2 * 7, f"{waits}: something starves"


@pytest.mark.parametrize("key", [WWW, None])
def test_what_vpp_refused_is_not_tried_again_before_an_event_of_its_frontend(key: VipKey | None) -> None:
    agenda = Agenda()
    refused = (Op.SET_WEIGHT, WWW, b"\x0a\x00\x00\x01")
    settings = (Op.SET_CONF, None, b"")
    agenda.refuse(refused)
    agenda.refuse(settings)
    agenda.mark("api", API)
    assert agenda.refused == {WWW: {refused}, None: {settings}}
    agenda.mark("www", key)
    assert (WWW in agenda.refused) == (key is None)
    assert None in agenda.refused, "an event is no reason to try the settings again"
    agenda.forget_refusals()
    assert not agenda.refused


def test_what_left_the_configuration_waits_no_longer() -> None:
    agenda = agenda_of("a", "b")
    agenda.cut_off(["a", "b"], set(), ["a", "b"])
    agenda.keep({"b"})
    assert agenda.cut == ("b",)
    assert choose(agenda, members=1).names == ("b",)


def test_a_doubtful_frontend_has_no_precedence() -> None:
    agenda = agenda_of("old", "dark")
    assert agenda.overtaking() == ()
    sort(agenda)
    assert agenda.overtaking() == ("dark",)
    assert agenda.take_doubtful() == ()


def test_a_frontend_is_sorted_again_only_where_vpp_has_changed() -> None:
    agenda = agenda_of("dark", "dusk")
    sort(agenda)
    agenda.mark("dark", WWW)
    assert agenda.take_doubtful() == (), "an event changes nothing in VPP"
    agenda.doubt(["dark", "clean"])
    sort(agenda, lambda _: False)
    assert agenda.overtaking() == ("dusk",)
    agenda.doubt_all()
    assert overtaking(agenda) == ("dark", "dusk")


def test_a_frontend_that_leaves_the_agenda_is_neither_doubtful_nor_first() -> None:
    agenda = agenda_of("dark", "dusk", "dawn", "day")
    sort(agenda)
    agenda.doubt(["dusk", "day"])
    agenda.take(["dark", "dusk"], ())
    agenda.planned(["dawn"])
    agenda.park(["day"])
    assert agenda.overtaking() == ()
    assert agenda.take_doubtful() == ()
    agenda.unpark()
    assert agenda.take_doubtful() == ("day",)


def test_no_more_come_first_than_a_batch_may_hold() -> None:
    agenda = agenda_of(*(f"d{number}" for number in range(2 * MOST_MEMBERS)))
    assert overtaking(agenda) == tuple(f"d{number}" for number in range(MOST_MEMBERS))


def test_after_a_reload_every_frontend_is_doubtful_again() -> None:
    agenda = agenda_of("dark", "dusk")
    sort(agenda)
    agenda.keep({"dusk"})
    assert agenda.overtaking() == ()
    assert overtaking(agenda) == ("dusk",)


def test_a_frontend_that_left_while_the_doubtful_were_sorted_does_not_come_back() -> None:
    agenda = agenda_of("dark", "dusk")
    doubtful = agenda.take_doubtful()
    agenda.take(["dark"], ())
    for name in doubtful:
        agenda.sort(name, served=False)
    assert agenda.overtaking() == ("dusk",)
