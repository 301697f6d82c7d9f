"""What VPP had and shows no longer: what of it counts, for how long, and that it is forgotten."""

from __future__ import annotations

from maglev.vpp.planning.lost import LostWeights
from maglev.vpp.wire.messages import VipKey

WWW = VipKey.parse("192.0.2.1/32", 6, 80)
API = VipKey.parse("192.0.2.1/32", 6, 443)
A, B = b"\x0a\x00\x00\x01", b"\x0a\x00\x00\x02"


def test_after_a_restart_of_vpp_what_it_has_counts_and_what_it_lacks_comes_as_it_was() -> None:
    lost = LostWeights()
    lost.lose(WWW, {A: 3, B: 0})
    assert lost.recall(WWW, A, present=True) is None
    assert lost.recall(WWW, A, present=False) == 3
    assert lost.recall(WWW, B, present=False) == 0
    assert lost.recall(API, A, present=False) is None
    lost.written(WWW, A)
    assert lost.recall(WWW, A, present=False) is None


def test_a_vpp_that_goes_again_before_it_has_all_back_had_what_the_one_before_had() -> None:
    lost = LostWeights()
    lost.lose(WWW, {A: 3})
    lost.lose(WWW, {A: 0, B: 2})
    assert [lost.recall(WWW, address, present=False) for address in (A, B)] == [3, 2]


def test_what_a_vip_shows_halfway_through_its_recreation_does_not_count() -> None:
    lost = LostWeights()
    lost.recreate(WWW, {A: 3})
    lost.written(WWW, A)  # to weight 0
    lost.recreate(WWW, {A: 0})  # planned again
    assert lost.recall(WWW, A, present=True) == 3
    lost.created(WWW)
    assert lost.recall(WWW, A, present=False) == 3
    lost.written(WWW, A)
    assert lost.recall(WWW, A, present=True) is None


def test_a_restart_of_vpp_ends_a_recreation_but_not_the_memory_of_it() -> None:
    lost = LostWeights()
    lost.recreate(WWW, {A: 3})
    lost.restarted()
    lost.lose(WWW, {A: 0})
    assert lost.recall(WWW, A, present=True) is None
    assert lost.recall(WWW, A, present=False) == 3


def test_a_full_sync_ends_the_memory_but_for_what_vpp_refused() -> None:
    lost = LostWeights()
    lost.lose(WWW, {A: 3, B: 2})
    lost.settle({(WWW, B), (API, A)})
    assert [lost.recall(WWW, address, present=False) for address in (A, B)] == [None, 2]
    lost.settle(set())
    assert lost.recall(WWW, B, present=False) is None
    lost.recreate(WWW, {A: 1})
    lost.settle(set())
    assert lost.recall(WWW, A, present=True) == 1, "it was refused halfway"


def test_what_is_no_longer_configured_is_forgotten() -> None:
    lost = LostWeights()
    lost.recreate(WWW, {A: 3})
    lost.lose(API, {A: 2})
    lost.forget_but({API})
    assert not lost.recreated
    assert lost.recall(WWW, A, present=False) is None
    assert lost.recall(API, A, present=False) == 2
