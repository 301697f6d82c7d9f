"""The step of a reload, worked out before anything of it is visible."""

from __future__ import annotations

import asyncio
import dataclasses
from ipaddress import ip_address

import pytest

from maglev.base.states import State
from maglev.checker import reload
from maglev.checker.backend import Check, LiveBackend
from maglev.config.model import SECOND, Backend, Config
from tests.helpers.checker import check, config

NOW = 7


async def step_to(new: Config, table: dict[str, LiveBackend] | None = None) -> reload.Step:
    checks = {name: Check(spec) for name, spec in (await reload.used_checks(new)).items()}
    return await reload.prepare(new, checks, table or {}, NOW)


async def table_of(made: Config, state: State = State.UNKNOWN) -> dict[str, LiveBackend]:
    table = (await step_to(made)).backends
    for live in table.values():
        live.state = state
    return table


async def test_backends_that_stay_are_the_same_objects_in_the_order_of_the_new_file() -> None:
    table = await table_of(config({"a": "192.0.2.1", "b": "192.0.2.2"}))
    step = await step_to(config({"c": "192.0.2.3", "b": "192.0.2.2", "a": "192.0.2.1"}), table)
    assert list(step.backends) == ["c", "b", "a"]
    assert step.backends["a"] is table["a"]
    assert step.backends["c"].state is State.REMOVED
    assert step.backends["c"].since_ns == NOW
    assert step.removed == []


async def test_preparing_changes_nothing_of_the_backends() -> None:
    table = await table_of(config({"a": "192.0.2.1"}), State.UP)
    conf = table["a"].conf
    step = await step_to(config({"a": "192.0.2.9"}), table)
    assert table["a"].conf is conf
    assert table["a"].address == "192.0.2.1"
    assert step.backends["a"] is table["a"]


async def test_backends_that_leave_are_removed() -> None:
    table = await table_of(config({"a": "192.0.2.1", "b": "192.0.2.2"}))
    step = await step_to(config({"b": "192.0.2.2"}), table)
    assert step.removed == [table["a"]]


@pytest.mark.parametrize(
    ("state", "presumed", "vacated"),
    [
        (State.UP, False, True),
        (State.UNKNOWN, True, True),
        (State.UNKNOWN, False, False),
        (State.DOWN, False, False),
        (State.PAUSED, False, False),
    ],
)
@pytest.mark.parametrize("new", [{"b": "192.0.2.1"}, {"a": "192.0.2.9"}], ids=["backend gone", "address changed"])
async def test_only_an_address_where_a_server_was_up_is_known_under_another_name(
    new: dict[str, str], state: State, presumed: bool, vacated: bool
) -> None:
    table = await table_of(config({"a": "192.0.2.1"}), state)
    table["a"].presumed = presumed
    assert (await step_to(config(new), table)).vacated == ({"192.0.2.1"} if vacated else set())


async def test_first_probes_of_what_is_new_are_spread_by_check_over_its_shorter_interval() -> None:
    table = await table_of(config({"a": "192.0.2.1", "b": "192.0.2.2"}))
    slow = check("slow", interval=60 * SECOND, fast_interval=2 * SECOND)
    backends = [
        Backend("a", ip_address("192.0.2.1"), "ping"),
        Backend("b", ip_address("192.0.2.9"), "ping"),
        Backend("c", ip_address("192.0.2.3"), "slow"),
        Backend("d", ip_address("192.0.2.4"), "slow"),
        Backend("e", ip_address("192.0.2.5")),
    ]
    step = await step_to(config(backends, checks=[slow]), table)
    assert {name: (spread.span_ns, spread.count) for name, spread in step.spreads.items()} == {
        "ping": (SECOND, 1),
        "slow": (2 * SECOND, 2),
    }


async def test_a_static_backend_has_no_check() -> None:
    step = await step_to(config([Backend("a", ip_address("192.0.2.1"), "ping"), Backend("s", ip_address("192.0.2.2"))]))
    checked, static = step.config.backends.values()
    assert step.check_of(checked) is step.checks["ping"]
    assert step.check_of(static) is None


async def test_unused_checks_are_left_out_and_the_default_namespace_is_filled_in() -> None:
    inside = check("inside", netns="own")
    backends = [Backend("a", ip_address("192.0.2.1"), "ping"), Backend("b", ip_address("192.0.2.2"), "inside")]
    made = dataclasses.replace(config(backends, checks=[inside, check("unused")]), netns="default")
    used = await reload.used_checks(made)
    assert {name: spec.netns for name, spec in used.items()} == {"ping": "default", "inside": "own"}


async def test_a_verdict_in_the_middle_is_seen_where_it_is_not_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maglev.base.pace.SLICE_NS", 0)
    table = await table_of(config({"a": "192.0.2.1", "b": "192.0.2.2"}))
    preparing = asyncio.ensure_future(step_to(config({"c": "192.0.2.3"}), table))
    await asyncio.sleep(0)
    table["b"].state = State.UP
    assert (await preparing).vacated == {"192.0.2.2"}
