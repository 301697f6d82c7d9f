"""Settings of operators: what they want of a backend, their ends, and the reports about them."""

from __future__ import annotations

import dataclasses
from ipaddress import ip_address

import pytest

from maglev.base.states import State
from maglev.checker.backend import LiveBackend
from maglev.checker.overrides import drain_key, enabled_key, pause_key, weight_key
from maglev.checker.settings import Request, Settings, file_weight
from maglev.config.model import SECOND, Backend, Config
from maglev.views.backends import OverrideKind
from tests.helpers.checker import FakeClock, config

ON = Backend("a", ip_address("192.0.2.1"), "ping")
OFF = dataclasses.replace(ON, enabled=False)


class Rig:
    def __init__(self, conf: Backend = ON) -> None:
        self.clock = FakeClock()
        self.reports = 0
        self.settings = Settings(self.clock, self._report)
        self.live = LiveBackend(conf, None, 0)

    def _report(self) -> None:
        self.reports += 1

    def set(self, kind: OverrideKind, seconds: int = 0, by: str = "op", reason: str = "") -> bool:
        return self.settings.set(self.live, kind, Request(by, reason, seconds * SECOND))


@pytest.mark.parametrize(
    ("conf", "kinds", "wanted"),
    [
        (ON, [], None),
        (ON, [OverrideKind.DRAIN], None),
        (ON, [OverrideKind.PAUSE], State.PAUSED),
        (ON, [OverrideKind.DISABLE], State.DISABLED),
        (ON, [OverrideKind.PAUSE, OverrideKind.DISABLE], State.DISABLED),
        (OFF, [], State.DISABLED),
        (OFF, [OverrideKind.ENABLE], None),
        (OFF, [OverrideKind.PAUSE], State.DISABLED),
        (OFF, [OverrideKind.ENABLE, OverrideKind.PAUSE], State.PAUSED),
    ],
)
def test_what_file_and_operators_want_of_a_backend(
    conf: Backend, kinds: list[OverrideKind], wanted: State | None
) -> None:
    rig = Rig(conf)
    for kind in kinds:
        rig.set(kind)
    assert rig.settings.stopped(conf) is wanted
    assert rig.settings.drained("a") is (OverrideKind.DRAIN in kinds)


def test_settings_of_one_backend_are_not_those_of_another() -> None:
    rig = Rig()
    rig.set(OverrideKind.PAUSE)
    rig.set(OverrideKind.DRAIN)
    other = dataclasses.replace(ON, name="b")
    assert rig.settings.stopped(other) is None
    assert not rig.settings.drained("b")
    assert rig.settings.of("b") == []


def test_repeated_the_newest_words_and_end_count_and_the_beginning_stays() -> None:
    rig = Rig()
    assert rig.set(OverrideKind.DRAIN, 60, by="first", reason="one")
    since = rig.clock.time_ns()
    rig.clock.advance(10)
    assert not rig.set(OverrideKind.DRAIN, 60, by="second", reason="two")
    (override,) = rig.settings.all()
    assert (override.by, override.reason, override.since_ns) == ("second", "two", since)
    assert rig.settings.next_end_ns() == 60 * SECOND


def test_enable_takes_the_place_of_disable() -> None:
    rig = Rig()
    assert rig.set(OverrideKind.DISABLE)
    assert rig.set(OverrideKind.ENABLE)
    assert [override.kind for override in rig.settings.all()] == [OverrideKind.ENABLE]


def test_the_next_end_is_the_soonest_and_only_what_is_due_ends() -> None:
    rig = Rig()
    rig.set(OverrideKind.DRAIN, 30)
    rig.set(OverrideKind.PAUSE, 10)
    rig.set(OverrideKind.DISABLE)
    assert rig.settings.next_end_ns() == 10 * SECOND
    assert rig.settings.end_due() == []
    rig.clock.advance(10)
    assert [override.kind for override in rig.settings.end_due()] == [OverrideKind.PAUSE]
    assert rig.settings.next_end_ns() == 20 * SECOND
    assert rig.settings.unset(drain_key("a"))
    assert rig.settings.next_end_ns() is None


def test_without_a_duration_a_repetition_never_ends() -> None:
    rig = Rig()
    rig.set(OverrideKind.DRAIN, 30)
    rig.set(OverrideKind.DRAIN)
    rig.clock.advance(3600)
    assert rig.settings.end_due() == []
    assert rig.settings.next_end_ns() is None


def test_a_change_is_reported_once_and_no_change_never() -> None:
    rig = Rig()
    rig.set(OverrideKind.DRAIN)
    rig.set(OverrideKind.PAUSE)
    rig.settings.report()
    rig.settings.report()
    assert rig.reports == 1
    assert not rig.settings.unset(enabled_key("a"))
    rig.settings.report()
    assert rig.reports == 1
    assert rig.settings.unset(pause_key("a"))
    rig.settings.report()
    assert rig.reports == 2


def test_what_is_restored_is_no_change() -> None:
    rig = Rig()
    rig.set(OverrideKind.DRAIN, 30)
    again = Rig()
    again.settings.restore(rig.settings.all())
    again.settings.report()
    assert again.reports == 0
    assert again.settings.drained("a")
    assert again.settings.next_end_ns() == 30 * SECOND


OLD = config([ON], {"www": [{"a": 100}]})


@pytest.mark.parametrize(
    ("new", "ended"),
    [
        (OLD, []),
        (config([], {}), ["drain", "disable", "weight"]),
        (
            config([dataclasses.replace(ON, address=ip_address("192.0.2.9"))], {"www": [{"a": 100}]}),
            ["drain", "disable", "weight"],
        ),
        (config([OFF], {"www": [{"a": 100}]}), ["disable"]),
        (config([ON], {"www": [{"a": 70}]}), ["weight"]),
        (config([ON], {"other": [{"a": 100}]}), ["weight"]),
        (config([ON], {"www": [{"b": 1}, {"a": 100}]}), ["weight"]),
    ],
    ids=[
        "same file",
        "backend gone",
        "another address",
        "disabled",
        "another weight",
        "frontend gone",
        "pool",
    ],
)
def test_a_setting_ends_when_the_file_says_something_else_of_that_very_item(new: Config, ended: list[str]) -> None:
    rig = Rig()
    rig.set(OverrideKind.DRAIN)
    rig.set(OverrideKind.DISABLE)
    rig.settings.set_weight(rig.live, "www", "pool0", 10, 100, Request("op"))
    found = rig.settings.obsolete(new)
    assert sorted(key[0].replace("enabled", "disable") for key, _ in found) == sorted(ended)
    assert all(why for _, why in found)
    for key, why in found:
        assert rig.settings.end(key, why) is not None
    assert rig.settings.obsolete(new) == []


def test_run_time_weights_are_those_that_are_set() -> None:
    rig = Rig()
    rig.set(OverrideKind.DRAIN)
    assert rig.settings.weight("www", "pool0", "a") is None
    rig.settings.set_weight(rig.live, "www", "pool0", 10, 100, Request("op"))
    assert rig.settings.weight("www", "pool0", "a") == 10
    assert [(one.frontend, one.weight) for one in rig.settings.weights()] == [("www", 10)]
    assert rig.settings.unset(weight_key("www", "pool0", "a"))
    assert rig.settings.weights() == []


def test_weight_of_the_file_is_found_in_its_pool_only() -> None:
    made = config([ON, dataclasses.replace(ON, name="b")], {"www": [{"a": 100}, {"b": 5}]})
    assert file_weight(made, "www", "pool1", "b") == 5
    assert file_weight(made, "www", "pool0", "b") is None
    assert file_weight(made, "nope", "pool0", "a") is None


@pytest.mark.parametrize("step", [20 * 365 * 86400 * SECOND, -2 * 365 * 86400 * SECOND])
def test_a_duration_lasts_as_long_as_it_was_asked_for_when_the_clock_is_set(step: int) -> None:
    rig = Rig()
    rig.set(OverrideKind.DRAIN, 3600)
    rig.clock.epoch += step
    rig.clock.advance(1800)
    (shown,) = rig.settings.all()
    now = rig.clock.time_ns()
    assert (now - shown.since_ns, shown.until_ns - now) == (1800 * SECOND, 1800 * SECOND)
    assert rig.settings.of("a") == [shown]
    rig.settings.rebase()
    assert rig.settings.all() == [shown]
    assert rig.settings.next_end_ns() == 1800 * SECOND
    rig.clock.advance(1800)
    assert [each.kind for each in rig.settings.end_due()] == [OverrideKind.DRAIN]


@pytest.mark.parametrize("step", [20 * 365 * 86400 * SECOND, -2 * 365 * 86400 * SECOND])
def test_a_duration_goes_on_over_a_restart_under_a_clock_that_was_set(step: int) -> None:
    rig = Rig()
    rig.set(OverrideKind.DRAIN, 3600)
    written = rig.settings.all()
    other = Rig()
    other.clock.epoch += step
    other.clock.advance(1800)
    other.settings.restore(written, step)
    assert other.settings.next_end_ns() == 1800 * SECOND
    (shown,) = other.settings.all()
    assert shown.until_ns - other.clock.time_ns() == 1800 * SECOND
