"""What is known of VPP: what moves it on, what a reading finds out, and what is in doubt."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from maglev.base.errors import Unavailable
from maglev.vpp.planning.model import Actual, ActualAs, ActualVip
from maglev.vpp.planning.plan import Op, Step
from maglev.vpp.state.drift import Drift
from maglev.vpp.state.mirror import Accepted, Comparison, Mirror
from maglev.vpp.state.reader import VerboseVip
from maglev.vpp.wire.messages import AsDetails, Encap, LbConf, VipDetails, VipKey

WWW = VipKey.parse("192.0.2.1/32", 6, 80)
API = VipKey.parse("192.0.2.1/32", 6, 443)
A, B = b"\x0a\x00\x00\x01", b"\x0a\x00\x00\x02"
CONF = LbConf(b"\xff" * 4, b"\xff" * 16, 1024, 40)
OTHER_CONF = replace(CONF, flow_timeout=50)


@dataclass
class Wire:
    """A connection that a test makes usable or not."""

    usable: bool = True
    excuse: str = "VPP is away"


def vip(key: VipKey = WWW, length: int = 1024, **ases: int) -> ActualVip:
    """``a=1``: 10.0.0.1 with weight 1."""
    addresses = {"a": A, "b": B}
    return ActualVip(key, Encap.GRE4, length, ases={addresses[name]: ActualAs(w) for name, w in ases.items()})


def details(key: VipKey, length: int = 1024) -> VipDetails:
    return VipDetails(key, Encap.GRE4, 0, 0, 0, length)


def an_as(address: bytes, weight: int, *, live: bool = True, key: VipKey = WWW) -> AsDetails:
    return AsDetails(key, address, int(live), 0, weight, 0)


def mirror_of(*vips: ActualVip) -> Mirror:
    mirror = Mirror(Wire())
    mirror.install(Actual(CONF, {one.key: one for one in vips}))
    return mirror


def words(drift: object) -> list[str]:
    assert isinstance(drift, list | tuple)
    return [one.words for one in drift if isinstance(one, Drift)]


def test_nothing_is_known_before_vpp_was_read_and_while_it_is_away() -> None:
    wire = Wire()
    mirror = Mirror(wire)
    with pytest.raises(Unavailable, match="has not been read"):
        mirror.demand()
    assert mirror.find(WWW) is None
    assert mirror.may_serve(WWW, A), "as far as is known"
    mirror.install(Actual(CONF, {WWW: vip(a=1, b=0)}))
    assert mirror.demand().conf == CONF
    assert [mirror.may_serve(WWW, address) for address in (A, B)] == [True, False]
    assert mirror.serves(WWW)
    assert not mirror.serves(API)
    wire.usable = False
    with pytest.raises(Unavailable, match="VPP is away"):
        mirror.demand()


def test_what_vpp_acknowledges_is_no_drift_when_it_is_read() -> None:
    mirror = mirror_of(vip(a=1))
    mirror.acknowledge(Step(Op.SET_WEIGHT, WWW, address=A, old_weight=1, weight=0))
    mirror.acknowledge(Step(Op.ADD_AS, WWW, address=B, weight=5))
    www = mirror.find(WWW)
    assert www is not None
    assert mirror.put_ases(www, [an_as(A, 0), an_as(B, 5)]).drift == []
    assert words(mirror.put_ases(www, [an_as(A, 2)]).drift) == [
        "10.0.0.1 has weight 2 instead of 0",
        "10.0.0.2 is gone",
    ]
    assert mirror.put_ases(www, [an_as(A, 2)]).drift == [], "it is known now"


def test_a_list_without_a_vip_says_that_it_is_lost_and_with_a_new_one_that_it_has_come() -> None:
    mirror = mirror_of(vip(a=1))
    gone, come = mirror.put_list({API: details(API)})
    assert (gone.key, words(gone.drift)) == (WWW, ["it is gone"])
    assert gone.lost is not None
    assert gone.lost.ases == {A: ActualAs(1)}
    assert (come.key, words(come.drift), come.lost) == (API, ["it has come"], None)
    assert mirror.reshuffled
    assert mirror.put_list({API: details(API)}) == []
    api = mirror.find(API)
    assert api is not None
    assert mirror.put_ases(api, [an_as(A, 1, key=API)]).drift == (), "its ASes came with it"


def test_a_vip_that_is_gone_is_not_unconfirmed() -> None:
    """No reading of it would ever come, and it could never be planned."""
    mirror = mirror_of(vip(a=1))
    mirror.defer(WWW, [Accepted("one", Step(Op.SET_WEIGHT, WWW, address=A, weight=0))])
    assert mirror.unconfirmed(WWW)
    mirror.put_list({})
    assert not mirror.unconfirmed(WWW)


def test_a_vip_with_another_length_in_the_list_is_another_vip() -> None:
    mirror = mirror_of(vip(a=1))
    (fact,) = mirror.put_list({WWW: details(WWW, 64)})
    assert words(fact.drift) == ["its table length is 64 instead of 1024"]
    assert not mirror.serves(WWW)


def test_what_a_refused_call_was_about_is_stale_until_it_is_read_and_its_difference_no_drift() -> None:
    mirror = mirror_of(vip(a=1), vip(API, a=1))
    assert mirror.stale([WWW, API]) == []
    mirror.refused([WWW, None])
    assert mirror.stale([WWW, API]) == [WWW]
    www = mirror.find(WWW)
    assert www is not None
    assert mirror.put_ases(www, [an_as(A, 7)]).drift == ()
    assert mirror.stale([WWW]) == []
    assert mirror.put_ases(www, [an_as(A, 8)]).drift != []


def test_vips_are_reshuffled_when_one_comes_behind_others_or_more_lingers_than_is_gone() -> None:
    listed = {WWW: details(WWW), API: details(API)}
    mirror = mirror_of(vip(a=1), vip(API))
    mirror.put_list(listed)
    assert not mirror.reshuffled
    mirror.put_list(dict(reversed(listed.items())))
    assert mirror.reshuffled
    mirror.put_verbose({})
    assert not mirror.reshuffled
    www = mirror.find(WWW)
    assert www is not None
    mirror.put_ases(www, [an_as(A, 1), an_as(B, 0, live=False)])
    assert mirror.reshuffled, "deleted with all it had, and made again"


def test_one_as_that_was_deleted_reshuffles_nothing() -> None:
    mirror = mirror_of(vip(a=1, b=1))
    www = mirror.find(WWW)
    assert www is not None
    mirror.put_ases(www, [an_as(A, 1), an_as(B, 1, live=False)])
    assert not mirror.reshuffled


@pytest.mark.parametrize("op", [Op.CREATE_VIP, Op.DELETE_VIP])
def test_vips_are_reshuffled_when_we_create_or_delete_one_but_its_place_is_no_surprise(op: Op) -> None:
    mirror = mirror_of(vip(a=1))
    mirror.acknowledge(Step(op, API if op is Op.CREATE_VIP else WWW, length=1024, encap=Encap.GRE4))
    assert mirror.reshuffled


def test_only_the_cli_tells_that_a_vip_has_another_stickiness() -> None:
    mirror = mirror_of(vip(a=1))
    assert mirror.put_verbose({WWW: VerboseVip(3, False)}) == []
    (fact,) = mirror.put_verbose({WWW: VerboseVip(4, True)})
    assert words(fact.drift) == ["its src-ip-sticky is True instead of False"]
    www = mirror.find(WWW)
    assert www is not None
    assert (www.index, www.sticky) == (4, True)


def test_the_global_settings_are_drift_once() -> None:
    mirror = mirror_of()
    assert words(mirror.put_conf(OTHER_CONF).drift) == ["the global settings are others"]
    assert mirror.put_conf(OTHER_CONF).drift == []


# ----------------------------------------------------------------------------------------------- over a reconnect


def reread(mirror: Mirror, read: Actual, *, started_ns: int = 0, connected_ns: int = 10) -> Comparison:
    return mirror.compare(read, started_ns=started_ns, connected_ns=connected_ns)


def told(compared: Comparison) -> dict[VipKey | None, list[str]]:
    return {fact.key: words(fact.drift) for fact in compared.facts() if fact.drift}


def lost(compared: Comparison) -> list[VipKey]:
    return [fact.lost.key for fact in compared.facts() if fact.lost is not None]


def connected_once(*vips: ActualVip) -> Mirror:
    mirror = Mirror(Wire())
    read = Actual(CONF, {one.key: one for one in vips})
    assert list(reread(mirror, read).facts()) == [], "before the first nothing was known"
    mirror.install(read)
    mirror.disconnected()
    assert mirror.actual is None
    return mirror


def test_what_was_changed_while_the_connection_was_lost_is_drift() -> None:
    mirror = connected_once(vip(a=1), vip(API, a=1))
    compared = reread(mirror, Actual(OTHER_CONF, {WWW: vip(a=3)}))
    assert not compared.restarted
    assert told(compared) == {
        None: ["the global settings are others"],
        WWW: ["10.0.0.1 has weight 3 instead of 1"],
        API: ["it is gone"],
    }
    assert lost(compared) == [API]


def test_a_vpp_that_was_started_since_has_lost_everything_and_misses_nothing() -> None:
    mirror = connected_once(vip(a=1))
    compared = reread(mirror, Actual(OTHER_CONF, {}), started_ns=11)
    assert compared.restarted
    assert told(compared) == {}
    assert lost(compared) == [WWW]


def test_calls_that_were_open_make_their_vips_and_the_settings_no_drift_once() -> None:
    mirror = Mirror(Wire())
    mirror.install(Actual(CONF, {WWW: vip(a=1)}))
    mirror.left_open([WWW, None])
    mirror.disconnected()
    read = Actual(OTHER_CONF, {WWW: vip(a=0)})
    assert told(reread(mirror, read)) == {}
    mirror.install(read)
    mirror.disconnected()
    assert told(reread(mirror, Actual(read.conf, {WWW: vip(a=2)}))) == {WWW: ["10.0.0.1 has weight 2 instead of 0"]}


def test_a_connection_that_goes_before_what_was_read_is_installed_leaves_it_as_what_was_known() -> None:
    mirror = connected_once(vip(a=1))
    reread(mirror, Actual(CONF, {WWW: vip(a=3)}))
    mirror.disconnected()
    assert told(reread(mirror, Actual(CONF, {WWW: vip(a=3)}))) == {}


def test_another_connection_has_its_settings_seen_to_again_and_nothing_stale() -> None:
    mirror = mirror_of(vip(a=1))
    mirror.primed = True
    mirror.refused([WWW])
    mirror.disconnected()
    assert mirror.stale([WWW]) == []
    mirror.connected()
    assert not mirror.primed


def test_a_vip_has_moved_when_a_call_or_a_reading_may_have_changed_whether_it_serves() -> None:
    mirror = mirror_of(vip(a=1, b=1), vip(API, a=1))
    assert mirror.take_moved() is None, "all of it is new"
    assert mirror.take_moved() == set()
    mirror.acknowledge(Step(Op.SET_WEIGHT, WWW, address=A, old_weight=1, weight=0))
    mirror.acknowledge(Step(Op.SET_CONF, conf=OTHER_CONF))
    assert mirror.take_moved() == {WWW}
    www, api = mirror.find(WWW), mirror.find(API)
    assert www is not None
    assert api is not None
    mirror.put_ases(www, [an_as(A, 1), an_as(B, 3)])
    assert mirror.take_moved() == set(), "it serves as before"
    mirror.put_ases(api, [an_as(A, 0, key=API)])
    assert mirror.take_moved() == {API}
    mirror.put_list({WWW: details(WWW)})
    assert mirror.take_moved() == {API}
    mirror.put_list({WWW: details(WWW), API: details(API)})
    assert mirror.take_moved() == {API}
    mirror.connected()
    mirror.install(Actual(CONF, {}))
    assert mirror.take_moved() is None
