"""VIPs that are ours, old addresses that frontends are held at, and that both survive a restart."""

from __future__ import annotations

from maglev.vpp.state.ownership import Ownership
from maglev.vpp.state.store import HELD, VIPS, MemoryStore
from maglev.vpp.wire.messages import VipKey

WWW = VipKey.parse("192.0.2.1/32", 6, 80)
API = VipKey.parse("192.0.2.1/32", 6, 443)
OLD = VipKey.parse("192.0.2.9/32")
A, B = b"\x0a\x00\x00\x01", b"\x0a\x00\x00\x02"


class Counting(MemoryStore):
    """Counts how often it is written."""

    written = 0

    def set(self, section: str, value: object) -> None:
        self.written += 1
        super().set(section, value)


def test_what_was_configured_once_and_is_no_longer_may_be_removed_until_vpp_has_deleted_it() -> None:
    ownership = Ownership(MemoryStore())
    both, www = frozenset({WWW, API}), frozenset({WWW})
    ownership.configure(both)
    assert ownership.left_by(both) == frozenset()
    assert ownership.left_by(www) == {API}, "after a reload that is only looked at"
    ownership.configure(www)
    assert ownership.left_by(www) == {API}
    ownership.disown(API)
    assert ownership.left_by(www) == frozenset()


def test_ownership_survives_a_restart_and_is_written_only_when_it_changes() -> None:
    store = Counting()
    configured = frozenset({WWW})
    ownership = Ownership(store)
    ownership.own([OLD])
    ownership.configure(configured)
    written = store.written
    ownership.own([WWW])
    ownership.configure(configured)
    ownership.disown(WWW)  # deleted, to be created again
    assert store.written == written
    again = Ownership(store)
    again.configure(configured)
    assert again.left_by(configured) == {OLD}
    again.disown(OLD)
    assert store.get(VIPS) == ["192.0.2.1/32 tcp 80"]


def test_what_is_created_without_being_configured_any_longer_is_ours_to_remove() -> None:
    ownership = Ownership(MemoryStore())
    configured = frozenset({WWW})
    ownership.configure(configured)
    before = ownership.left_by(configured)
    ownership.own([API])
    assert ownership.left_by(configured) == {API}
    assert before == frozenset(), "a plan may keep what it was given"


def test_an_old_address_is_held_until_its_time_is_over_and_over_a_restart() -> None:
    store = MemoryStore()
    ownership = Ownership(store)
    ownership.hold({"www": {A}}, 100, {"www"})
    ownership.hold({"www": {B}, "api": {A}}, 200, {"www", "api"})
    assert set(ownership.held("www", 99)) == {A, B}
    assert ownership.expires_in(40) == 60
    assert ownership.expire(99) == []
    assert list(ownership.held("www", 100)) == [B], "also before anybody has looked what expires"
    assert ownership.expire(100) == ["www"]
    assert ownership.expires_in(150) == 50
    again = Ownership(store)
    again.hold_again(50, {"www"})
    assert list(again.held("www", 0)) == [B]
    assert list(again.held("api", 0)) == [], "it left the file while the daemon was away"
    assert again.expire(50) == ["www"]
    assert again.expires_in(50) is None
    assert store.get(HELD) == {}


def test_an_address_is_held_no_longer_when_its_frontend_leaves_the_file() -> None:
    ownership = Ownership(MemoryStore())
    ownership.hold({"www": {A}, "api": {B}}, 100, {"www", "api"})
    ownership.hold({}, 200, {"api"})
    assert list(ownership.held("www", 0)) == []
    assert list(ownership.held("api", 0)) == [B]
    assert list(ownership.held("api", 150)) == [], "and no longer than it was to be"
