"""How often a VIP may be created again, and what ends that."""

from __future__ import annotations

from maglev.vpp.planning.desired import DesiredVip
from maglev.vpp.state.recreations import WINDOW_NS, Recreations
from maglev.vpp.wire.messages import Encap, VipKey

WWW = VipKey.parse("192.0.2.1/32", 6, 80)
API = VipKey.parse("192.0.2.1/32", 6, 443)


def wanted(key: VipKey = WWW, length: int | None = 1024, *, sticky: bool = False) -> DesiredVip:
    return DesiredVip(key, "www", Encap.GRE4, length, sticky, 1, True, True, ())


def test_a_recreation_that_nothing_explains_is_given_up_at_the_second_time_within_ten_minutes() -> None:
    recreations = Recreations()
    assert not recreations.count(WWW, 0)
    assert not recreations.count(API, 0)
    assert recreations.count(WWW, WINDOW_NS)
    assert recreations.frozen == {WWW}


def test_two_recreations_with_more_than_ten_minutes_between_them_are_none_too_many() -> None:
    recreations = Recreations()
    assert not recreations.count(WWW, 0)
    assert not recreations.count(WWW, WINDOW_NS + 1)
    assert recreations.count(WWW, WINDOW_NS + 2)


def test_a_change_of_the_file_explains_one_recreation_and_ends_that_it_was_given_up() -> None:
    recreations = Recreations()
    recreations.note([wanted()])
    for now in (1, 2):
        recreations.count(WWW, now)
    assert recreations.frozen == {WWW}
    recreations.note([wanted(length=2048)])
    assert not recreations.frozen
    assert not recreations.count(WWW, 3), "explained"
    assert not recreations.count(WWW, 4)
    assert recreations.count(WWW, 5)


def test_what_is_seen_for_the_first_time_or_as_it_was_explains_nothing() -> None:
    recreations = Recreations()
    recreations.note([wanted(), wanted(API, sticky=True)])
    recreations.note([wanted(), wanted(API, sticky=True)])
    for key in (WWW, API):
        assert not recreations.count(key, 1)
        assert recreations.count(key, 2)


def test_a_forced_sync_gives_nothing_up_any_longer_and_counts_from_the_beginning() -> None:
    recreations = Recreations()
    for now in (1, 2):
        recreations.count(WWW, now)
    frozen = recreations.frozen
    recreations.forgive()
    assert not recreations.frozen
    assert frozen == {WWW}, "a plan may keep what it was given"
    assert not recreations.count(WWW, 3)


def test_a_vip_that_vpp_refused_to_delete_is_stuck_until_the_next_full_sync() -> None:
    recreations = Recreations()
    recreations.refused(WWW)
    assert recreations.stuck == {WWW}
    recreations.retry()
    assert not recreations.stuck
