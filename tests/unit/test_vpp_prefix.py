"""The verdicts on the VIPs of a prefix: which stay, which go, which come, and which notes the plan has on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from maglev.config.model import LbConfig, Prune
from maglev.vpp.planning.desired import DesiredVip
from maglev.vpp.planning.model import ActualVip
from maglev.vpp.planning.policy import Policy
from maglev.vpp.planning.prefix import Found, PrefixVerdicts, Wanted, judge_prefix, why_recreate
from maglev.vpp.wire.messages import Encap, VipKey

HTTP = VipKey.parse("192.0.2.1/32", 6, 80)
HTTPS = VipKey.parse("192.0.2.1/32", 6, 443)
DNS = VipKey.parse("192.0.2.1/32", 17, 53)
ANY = VipKey.parse("192.0.2.1/32")


def wanted(key: VipKey, **changed: Any) -> DesiredVip:
    vip = DesiredVip(key, str(key), Encap.GRE4, None, False, 1, usable=True, flush_on_down=True, ases=())
    return replace(vip, **changed)


def found(key: VipKey, encap: int = Encap.GRE4, length: int = 16, *, sticky: bool | None = False) -> ActualVip:
    return ActualVip(key, encap, length, sticky)


def judge(
    group: list[DesiredVip], present: list[ActualVip], *, halfway: frozenset[VipKey] = frozenset(), **policy: Any
) -> PrefixVerdicts:
    group = sorted(group, key=lambda vip: vip.key.sort_key)
    policy.setdefault("configured", frozenset(vip.key for vip in group))
    return judge_prefix(group, {vip.key: vip for vip in present}, halfway, Policy(**policy))


def fates(verdicts: PrefixVerdicts) -> Mapping[VipKey, Found]:
    return {key: verdict.fate for key, verdict in verdicts.found.items()}


def notes(verdicts: PrefixVerdicts) -> list[str]:
    return [verdict.note for verdict in verdicts.found.values() if verdict.note]


LONGER = wanted(HTTP, length=1024)


@pytest.mark.parametrize(
    ("vip", "have", "reason"),
    [
        (wanted(HTTP), found(HTTP), ""),
        (wanted(HTTP), found(HTTP, length=4096), ""),
        (wanted(HTTP, length=16), found(HTTP), ""),
        (wanted(HTTP, sticky=True), found(HTTP, sticky=None), ""),
        (wanted(HTTP), found(HTTP, Encap.GRE6), "encap is gre6 instead of gre4"),
        (wanted(HTTP), found(HTTP, 9), "encap is 9 instead of gre4"),
        (wanted(HTTP, sticky=True), found(HTTP), "src-ip-sticky is false instead of true"),
        (LONGER, found(HTTP), "table length is 16 instead of 1024"),
    ],
)
def test_a_vip_is_created_again_for_what_no_call_changes(vip: DesiredVip, have: ActualVip, reason: str) -> None:
    assert why_recreate(vip, have) == reason


@pytest.mark.parametrize(
    ("policy", "fate", "becomes", "note"),
    [
        ({}, Found.RECREATE, Wanted.RECREATE, ""),
        ({"full": False}, Found.KEEP_UNLIKE, Wanted.UPDATE, "only a full sync creates it again"),
        (
            {"full": False, "halfway": frozenset({HTTP})},
            Found.HALFWAY,
            Wanted.BLOCKED,
            "only a full sync creates it again",
        ),
        ({"halfway": frozenset({HTTP})}, Found.RECREATE, Wanted.RECREATE, ""),
        (
            {"frozen": frozenset({HTTP})},
            Found.KEEP_UNLIKE,
            Wanted.UPDATE,
            "given up, since creating it again did not last twice",
        ),
        ({"frozen": frozenset({HTTP}), "force": True}, Found.RECREATE, Wanted.RECREATE, ""),
        (
            {"stuck": frozenset({HTTP})},
            Found.KEEP_UNLIKE,
            Wanted.UPDATE,
            "VPP refused to delete it, the next full sync tries again",
        ),
        (
            {"stuck": frozenset({HTTP}), "force": True},
            Found.KEEP_UNLIKE,
            Wanted.UPDATE,
            "VPP refused to delete it, the next full sync tries again",
        ),
        (
            {"frozen": frozenset({HTTP}), "full": False, "halfway": frozenset({HTTP})},
            Found.KEEP_UNLIKE,
            Wanted.UPDATE,
            "given up, since creating it again did not last twice",
        ),
    ],
)
def test_a_vip_that_is_wanted_otherwise(policy: dict[str, Any], fate: Found, becomes: Wanted, note: str) -> None:
    verdicts = judge([LONGER], [found(HTTP)], **policy)
    assert fates(verdicts) == {HTTP: fate}
    assert verdicts.wanted == {HTTP: becomes}
    reason = "table length is 16 instead of 1024"
    assert notes(verdicts) == ([f"192.0.2.1/32 tcp 80: {reason}; {note}"] if note else [])
    assert verdicts.found[HTTP].reason == (reason if fate is Found.RECREATE else "")


def test_a_vip_that_is_as_it_is_wanted_is_kept_and_a_missing_one_is_created() -> None:
    verdicts = judge([wanted(HTTP), wanted(HTTPS)], [found(HTTP)])
    assert fates(verdicts) == {HTTP: Found.KEEP}
    assert verdicts.wanted == {HTTP: Wanted.UPDATE, HTTPS: Wanted.CREATE}
    assert judge([wanted(HTTP)], [found(HTTP)]).wanted == {HTTP: Wanted.UPDATE}
    assert judge([wanted(HTTP)], []).wanted == {HTTP: Wanted.CREATE}


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("prune", Prune)
@pytest.mark.parametrize("owned", [True, False])
@pytest.mark.parametrize("configured", [True, False])
@pytest.mark.parametrize("encap", [Encap.GRE4, Encap.GRE6])
def test_a_vip_that_is_not_in_the_plan(full: bool, prune: Prune, owned: bool, configured: bool, encap: Encap) -> None:
    """A full sync removes it if ``prune`` allows that. Otherwise it blocks the wanted VIP if its encap differs."""
    keys = frozenset({HTTP, DNS}) if configured else frozenset({HTTP})
    lb = LbConfig(prune=prune)
    verdicts = judge(
        [wanted(HTTP)],
        [found(DNS, encap)],
        full=full,
        lb=lb,
        configured=keys,
        owned=frozenset({DNS} if owned else ()),
    )
    may_remove = prune is Prune.ALL or (prune is Prune.OWNED and owned)
    if full and may_remove and not configured:
        assert fates(verdicts) == {DNS: Found.REMOVE}
        assert verdicts.found[DNS].reason == "not configured"
        assert verdicts.wanted == {HTTP: Wanted.CREATE}
    elif encap is Encap.GRE4:
        assert fates(verdicts) == {DNS: Found.BESIDE}
        assert verdicts.wanted == {HTTP: Wanted.CREATE}
        assert not notes(verdicts)
    else:
        assert fates(verdicts) == {DNS: Found.IN_THE_WAY}
        assert verdicts.wanted == {HTTP: Wanted.BLOCKED}
        why = "can be removed by a full sync only" if may_remove else f"is not ours to remove (prune: {prune.value})"
        if configured:
            why = "is not in this sync"
        assert notes(verdicts) == [f"192.0.2.1/32 udp 53 (gre6) is in the way of 192.0.2.1/32 tcp 80 and {why}"]


@pytest.mark.parametrize(("group", "there"), [((ANY,), HTTP), ((HTTP, HTTPS), ANY)])
def test_a_vip_with_a_port_and_one_without_do_not_stand_side_by_side(group: tuple[VipKey, ...], there: VipKey) -> None:
    verdicts = judge([wanted(key) for key in group], [found(there)], lb=LbConfig(prune=Prune.NONE))
    assert fates(verdicts) == {there: Found.IN_THE_WAY}
    assert verdicts.wanted == dict.fromkeys(group, Wanted.BLOCKED)


def test_a_present_vip_is_written_though_another_one_hinders_a_missing_vip() -> None:
    verdicts = judge([wanted(HTTP), wanted(HTTPS)], [found(HTTP), found(ANY)], lb=LbConfig(prune=Prune.NONE))
    assert verdicts.wanted == {HTTP: Wanted.UPDATE, HTTPS: Wanted.BLOCKED}


def test_a_new_encap_takes_down_all_ports_of_its_address_together() -> None:
    group = [wanted(HTTP, encap=Encap.GRE6), wanted(HTTPS, encap=Encap.GRE6)]
    verdicts = judge(group, [found(HTTP), found(HTTPS)])
    assert fates(verdicts) == {HTTP: Found.RECREATE, HTTPS: Found.RECREATE}
    assert verdicts.wanted == {HTTP: Wanted.RECREATE, HTTPS: Wanted.RECREATE}


def test_no_vip_is_taken_down_for_a_new_encap_while_another_keeps_the_old_one_there() -> None:
    group = [wanted(HTTP, encap=Encap.GRE6), wanted(HTTPS, encap=Encap.GRE6)]
    verdicts = judge(group, [found(HTTP), found(DNS)], lb=LbConfig(prune=Prune.NONE))
    assert fates(verdicts) == {HTTP: Found.KEEP_UNLIKE, DNS: Found.IN_THE_WAY}
    assert verdicts.wanted == {HTTP: Wanted.BLOCKED, HTTPS: Wanted.BLOCKED}
    assert len(notes(verdicts)) == 1


def test_what_is_not_configured_goes_though_the_encap_of_a_wanted_one_stays() -> None:
    group = [wanted(HTTP, encap=Encap.GRE6)]
    verdicts = judge(group, [found(HTTP), found(DNS)], owned=frozenset({DNS}), frozen=frozenset({HTTP}))
    assert fates(verdicts) == {DNS: Found.REMOVE, HTTP: Found.KEEP_UNLIKE}
    assert verdicts.wanted == {HTTP: Wanted.BLOCKED}


def test_verdicts_come_in_numeric_order() -> None:
    verdicts = judge([wanted(HTTP)], [found(HTTPS), found(DNS), found(HTTP)])
    assert list(verdicts.found) == [HTTP, HTTPS, DNS]
