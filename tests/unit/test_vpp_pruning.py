"""Which VIPs a full sync may delete, and which wait for an operator."""

from __future__ import annotations

import pytest

from maglev.vpp.state.pruning import Pruning, Review, held_back
from maglev.vpp.state.store import PRUNING, MemoryStore
from maglev.vpp.wire.messages import VipKey

NOTHING: frozenset[VipKey] = frozenset()


def vips(*numbers: int) -> frozenset[VipKey]:
    return frozenset(VipKey.parse(f"192.0.2.{number}/32", 6, 80) for number in numbers)


def span(first: int, last: int) -> frozenset[VipKey]:
    return vips(*range(first, last + 1))


def yes(key: VipKey) -> bool:
    return True


@pytest.mark.parametrize(("present", "configured", "waits"), [
    (8, 4, 0),  # half is not more than half
    (8, 3, 5),
    (4, 1, 0),  # three are not more than three
    (5, 1, 4),
    (4, 0, 4),
    (1, 0, 1),  # a file without frontends deletes nothing by itself
    (8, 8, 0),
])  # fmt: skip
def test_a_full_sync_is_judged_as_a_reload_is(present: int, configured: int, waits: int) -> None:
    held = held_back(span(1, present), span(1, configured), yes, agreed=NOTHING, held=NOTHING)
    assert held == span(1, present) - span(1, configured) if waits else held == NOTHING
    assert len(held) == waits


def test_vips_of_a_new_file_do_not_make_the_old_ones_few() -> None:
    """What counts is what VPP has: ten new VIPs in a file that was mixed up do not excuse the loss of eight."""
    assert held_back(span(1, 8), span(11, 20), yes, agreed=NOTHING, held=NOTHING) == span(1, 8)


def test_vips_that_an_emptied_vpp_has_lost_count_too() -> None:
    """A VPP that was filled again halfway has two of ten VIPs that a cut-off file lacks: two alone would pass."""
    assert held_back(span(1, 6), span(1, 4), yes, agreed=NOTHING, held=NOTHING, left=span(5, 14)) == span(5, 6)
    assert held_back(span(1, 6), span(1, 4), yes, agreed=span(7, 14), held=NOTHING, left=span(5, 14)) == NOTHING
    assert held_back(span(1, 4), span(1, 4), yes, agreed=NOTHING, held=NOTHING, left=span(5, 14)) == NOTHING


def test_vips_that_are_gone_as_agreed_are_named() -> None:
    pruning = Pruning(MemoryStore())
    pruning.configure(span(1, 14), span(1, 4))
    assert pruning.review(span(1, 6), span(1, 4), yes, span(5, 14)).gone == span(7, 14)


def test_vips_that_prune_leaves_alone_neither_wait_nor_count() -> None:
    ours = span(1, 5)
    assert held_back(span(1, 50), vips(1), ours.__contains__, agreed=NOTHING, held=NOTHING) == span(2, 5)
    assert held_back(span(1, 50), span(1, 5), ours.__contains__, agreed=NOTHING, held=NOTHING) == NOTHING


def test_reloads_that_delete_one_vip_each_are_agreed_to_however_many_they_are() -> None:
    pruning = Pruning(MemoryStore())
    pruning.configure(NOTHING, span(1, 8))
    for left in range(7, 0, -1):
        pruning.configure(span(1, left + 1), span(1, left))
    assert pruning.review(span(1, 8), vips(1), yes) == Review(NOTHING, NOTHING)
    assert pruning.held == NOTHING


def test_an_agreement_survives_a_restart_and_ends_when_the_vip_is_gone_or_configured_again() -> None:
    store = MemoryStore()
    first = Pruning(store)
    first.configure(NOTHING, span(1, 8))
    first.configure(span(1, 8), span(1, 6))
    first.configure(span(1, 6), span(1, 4))
    again = Pruning(store)
    again.configure(NOTHING, span(1, 4))
    assert again.agreed == span(5, 8)
    again.review(span(1, 6), span(1, 4), yes)
    assert again.agreed == vips(5, 6)
    again.configure(span(1, 4), span(1, 6))
    assert again.agreed == NOTHING
    # A file that is cut off now is judged: what was agreed to before is no excuse.
    last = Pruning(store)
    last.configure(NOTHING, vips(1))
    last.review(span(1, 6), vips(1), yes)
    assert last.waiting == span(2, 6)


def test_a_hold_survives_restarts_and_vips_that_are_added_do_not_end_it() -> None:
    store = MemoryStore()
    for _ in range(2):
        pruning = Pruning(store)
        pruning.configure(NOTHING, vips(1))
        assert pruning.review(span(1, 8), vips(1), yes) == Review(span(2, 8), NOTHING)
        assert pruning.review(span(1, 8), vips(1), yes) == Review(NOTHING, NOTHING)
    grown = vips(1) | span(11, 30)
    pruning.configure(vips(1), grown)
    pruning.review(span(1, 8) | grown, grown, yes)
    assert pruning.waiting == span(2, 8)
    pruning = Pruning(store)
    pruning.configure(NOTHING, grown)
    pruning.review(span(1, 8) | grown, grown, yes)
    assert pruning.waiting == span(2, 8)


def test_a_small_reload_while_vips_wait_deletes_what_it_says_and_nothing_else() -> None:
    pruning = Pruning(MemoryStore())
    pruning.configure(NOTHING, span(7, 8))
    pruning.review(span(1, 8), span(7, 8), yes)
    pruning.configure(span(7, 8), vips(7))
    pruning.review(span(1, 8), vips(7), yes)
    assert (pruning.waiting, pruning.agreed) == (span(1, 6), vips(8))


def test_vips_that_are_configured_again_or_gone_from_vpp_wait_no_longer() -> None:
    store = MemoryStore()
    pruning = Pruning(store)
    pruning.configure(NOTHING, vips(1))
    pruning.review(span(1, 8), vips(1), yes)
    pruning.configure(vips(1), span(1, 5))
    assert pruning.waiting == span(6, 8)
    assert pruning.review(span(1, 7), span(1, 5), yes) == Review(NOTHING, span(2, 5) | vips(8))
    assert pruning.waiting == span(6, 7)
    assert store.get(PRUNING) == {"agreed": [], "waiting": ["192.0.2.6/32 tcp 80", "192.0.2.7/32 tcp 80"]}


def test_an_operators_word_ends_the_wait() -> None:
    pruning = Pruning(MemoryStore())
    pruning.configure(NOTHING, vips(1))
    pruning.review(span(1, 8), vips(1), yes)
    pruning.agree(span(1, 8), vips(1))
    assert (pruning.waiting, pruning.agreed) == (NOTHING, span(2, 8))
    assert pruning.review(span(1, 8), vips(1), yes) == Review(NOTHING, span(2, 8))
    assert pruning.held == NOTHING


def test_with_prune_none_nothing_waits_and_nothing_is_forgotten() -> None:
    pruning = Pruning(MemoryStore())
    pruning.configure(NOTHING, vips(1))
    pruning.review(span(1, 8), vips(1), yes)
    pruning.review(span(1, 8), vips(1), NOTHING.__contains__)
    assert (pruning.waiting, pruning.held) == (NOTHING, span(2, 8))
    pruning.review(span(1, 8), vips(1), yes)
    assert pruning.waiting == span(2, 8)


@pytest.mark.parametrize("value", [7, [], {"agreed": 7}, {"waiting": ["no VIP"]}, {"agreed": None}])
def test_a_section_that_makes_no_sense_is_no_agreement(value: object) -> None:
    store = MemoryStore()
    store.set(PRUNING, value)
    pruning = Pruning(store)
    assert (pruning.agreed, pruning.held) == (NOTHING, NOTHING)
