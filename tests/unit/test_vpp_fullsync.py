"""What a full sync does first, what stays together, and when one is due."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from ipaddress import ip_address

import pytest

from maglev.base.pace import at_once
from maglev.config.model import Config
from maglev.vpp.planning.model import vip_key
from maglev.vpp.sync.fullsync import pieces
from maglev.vpp.sync.timetable import Timetable
from maglev.vpp.wire.messages import VipKey
from tests.helpers.vpp import make_config

SECOND = 1_000_000_000


def config_of(**frontends: tuple[str, int, int]) -> Config:
    """Frontends by name: address, port, and how many pool members."""
    made = []
    backends: dict[str, str] = {}
    for name, (address, port, members) in frontends.items():
        names = [f"{name}{number}" for number in range(members)]
        backends.update({one: f"10.0.{len(backends) // 250}.{len(backends) % 250}" for one in names})
        one = make_config({"p": dict.fromkeys(names, 10)}, backends=dict.fromkeys(names, "10.9.9.9")).frontends["www"]
        made.append(replace(one, name=name, address=ip_address(address), port=port))
    return make_config(backends=backends, frontends=made)


def made(config: Config, serving: Collection[str]) -> list[list[str]]:
    keys = {vip_key(config.frontends[name]) for name in serving}
    return at_once(pieces(config.frontends, config, keys.__contains__))


def test_what_serves_nobody_comes_first_and_then_by_number_whatever_the_order_of_the_file() -> None:
    config = config_of(
        nine=("192.0.2.9", 80, 1), two=("192.0.2.2", 80, 1), six=("2001:db8::1", 80, 1), ten=("192.0.2.10", 80, 1)
    )
    assert made(config, ["nine", "two", "six", "ten"]) == [["two", "nine", "ten", "six"]]
    assert made(config, ["nine", "two", "six"]) == [["ten", "two", "nine", "six"]]


def test_frontends_on_one_address_are_in_one_piece_and_serve_together_or_come_first_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("maglev.vpp.sync.fullsync.PIECE_MEMBERS", 3)
    config = config_of(a=("192.0.2.1", 80, 2), b=("192.0.2.5", 80, 2), c=("192.0.2.5", 443, 2), d=("192.0.2.6", 80, 1))
    assert made(config, config.frontends) == [["a"], ["b", "c"], ["d"]]
    assert made(config, ["a", "b", "d"]) == [["b", "c"], ["a", "d"]]


def test_a_piece_holds_about_so_many_members_and_a_frontend_with_more_is_one_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("maglev.vpp.sync.fullsync.PIECE_MEMBERS", 4)
    config = config_of(a=("192.0.2.1", 80, 2), b=("192.0.2.2", 80, 2), c=("192.0.2.3", 80, 9), d=("192.0.2.4", 80, 1))
    assert made(config, config.frontends) == [["a", "b"], ["c"], ["d"]]
    assert made(config_of(), []) == []


def test_pieces_are_made_frontend_by_frontend() -> None:
    config = config_of(a=("192.0.2.1", 80, 1), b=("192.0.2.2", 80, 1))
    steps = pieces(config.frontends, config, lambda key: isinstance(key, VipKey))
    assert sum(1 for _ in steps) >= 2 * len(config.frontends)


def test_nothing_is_due_before_the_interval_has_passed_unless_it_is_asked_for() -> None:
    table = Timetable(0)
    assert table.due_in(10 * SECOND, 30 * SECOND) == 20 * SECOND
    assert table.take(10 * SECOND, 30 * SECOND, phase_changed=False) == ""
    table.ask("connect")
    table.ask("reload")
    assert table.take(11 * SECOND, 30 * SECOND, phase_changed=True) == "reload"
    assert not table.asked.is_set()
    assert table.take(12 * SECOND, 30 * SECOND, phase_changed=True) == "warm-up"
    assert table.take(30 * SECOND, 30 * SECOND, phase_changed=False) == "periodic"
    assert table.due_in(31 * SECOND, 30 * SECOND) == 29 * SECOND


def test_a_sync_that_is_asked_for_when_the_periodic_one_is_due_stands_for_both() -> None:
    table = Timetable(0)
    table.ask("drift")
    assert table.take(31 * SECOND, 30 * SECOND, phase_changed=False) == "drift"
    assert table.take(32 * SECOND, 30 * SECOND, phase_changed=False) == ""


def test_a_shorter_interval_counts_from_the_last_sync() -> None:
    table = Timetable(0)
    assert table.due_in(10 * SECOND, 5 * SECOND) == 0
