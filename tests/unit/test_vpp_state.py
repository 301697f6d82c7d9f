"""What is read back from VPP, the pace, and the warm-up: their rules without a socket."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maglev.base.states import State
from maglev.config.model import Frontend
from maglev.vpp.planning.model import ActualAs, ActualVip
from maglev.vpp.state.reader import VerboseVip, describe, fill, new_vip, parse_verbose
from maglev.vpp.state.warmup import Phase, WarmUp
from maglev.vpp.sync.commandline import FACTOR_LEAST, FACTOR_MOST
from maglev.vpp.sync.executor import Pacer
from maglev.vpp.wire.messages import AsDetails, VipDetails, VipKey
from tests.helpers.checker import FakeClock
from tests.helpers.vpp import make_config

WWW = VipKey.parse("192.0.2.1/32", 6, 80)
TRANSCRIPTS = Path(__file__).parents[1] / "data" / "transcripts"
MS = 1_000_000
SECOND = 1_000_000_000


def verbose_outputs() -> list[tuple[str, str, set[VipKey]]]:
    """Each recorded ``show lb vips verbose`` with the live VIPs that the API listed at that time."""
    found: list[tuple[str, str, set[VipKey]]] = []
    for file in sorted(TRANSCRIPTS.glob("*.jsonl")):
        listed: set[VipKey] = set()
        for line in file.read_text().splitlines():
            call = json.loads(line)
            if call["call"] == "lb_vip_dump":
                vips = [reply["fields"]["vip"] for reply in call["replies"]]
                listed = {VipKey.parse(vip["pfx"], vip["protocol"], vip["port"]) for vip in vips}
            elif call["call"] == "cli_inband":
                found.append((file.stem, call["replies"][0]["fields"]["reply"], listed))
    return found


@pytest.mark.parametrize(
    ("name", "text", "listed"),
    verbose_outputs(),
    ids=lambda value: value if isinstance(value, str) and "\n" not in value else "",
)
def test_index_and_stickiness_of_every_recorded_vip_are_read_from_the_cli(
    name: str, text: str, listed: set[VipKey]
) -> None:
    told = parse_verbose(text)
    assert listed <= set(told)
    assert len({vip.index for vip in told.values()}) == len(told)


def test_the_recordings_hold_what_the_parser_is_tested_on() -> None:
    outputs = verbose_outputs()
    assert len(outputs) >= 5
    many = parse_verbose(next(text for name, text, _ in outputs if name == "many-vips"))
    assert many[VipKey.parse("192.0.2.2/32", 6, 443)] == VerboseVip(2, True)
    assert many[VipKey.parse("192.0.2.3/32")] == VerboseVip(4, True)
    assert many[VipKey.parse("2001:db8::2/128", 6, 80)] == VerboseVip(5, False)
    lifecycle = parse_verbose(next(text for name, text, _ in outputs if name == "lifecycle"))
    assert lifecycle == {WWW: VerboseVip(3, False)}


@pytest.mark.parametrize(
    "text", ["", "\n\n", " what [x] is/this\n  protocol:a port:b\n", " ip4-gre4 [1] 192.0.2.1/99\n"]
)
def test_output_that_is_not_understood_is_passed_over(text: str) -> None:
    assert parse_verbose(text) == {}


def test_a_table_of_65536_reads_as_0_on_the_wire() -> None:
    assert new_vip(VipDetails(WWW, 0, 0, 0, 0, 0)).length == 65536


def test_lingering_ases_are_counted_and_not_taken_for_live_ones() -> None:
    vip = ActualVip(WWW, 0, 1024)
    alive, deleted, twice = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2)), bytes((10, 0, 0, 3))
    fill(
        vip,
        [
            AsDetails(WWW, alive, 1, 0, 5, 1024),
            AsDetails(WWW, deleted, 0, 0, 7, 0),
            AsDetails(WWW, twice, 0, 0, 9, 0),
            AsDetails(WWW, twice, 1, 0, 3, 0),
        ],
    )
    assert {address: found.weight for address, found in vip.ases.items()} == {alive: 5, twice: 3}
    assert vip.lingering == 2


def test_what_is_known_to_hold_no_flow_stays_known_while_its_weight_is_0() -> None:
    one, two = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
    vip = ActualVip(WWW, 0, 1024, ases={one: ActualAs(0, clean=True), two: ActualAs(0, clean=True)})
    fill(vip, [AsDetails(WWW, one, 1, 0, 0, 0), AsDetails(WWW, two, 1, 0, 4, 0)])
    assert [vip.ases[address].clean for address in (one, two)] == [True, False]


def test_what_the_cli_does_not_tell_stays_unknown() -> None:
    vip = ActualVip(WWW, 0, 1024)
    describe({WWW: vip}, {})
    assert (vip.index, vip.sticky) == (None, None)
    describe({WWW: vip}, {WWW: VerboseVip(7, True)})
    assert (vip.index, vip.sticky) == (7, True)


async def test_the_first_piece_of_work_goes_at_once_and_the_next_waits_for_its_share_of_time() -> None:
    class Clock(FakeClock):
        async def sleep(self, seconds: float) -> None:
            self.now += round(seconds * 1e9)

    clock = Clock()
    pacer = Pacer(clock, max_stall_ns=5 * MS, max_duty=0.25)
    start = clock.now
    await pacer.turn()
    assert clock.now == start
    pacer.start(5 * MS)
    await pacer.turn()
    assert clock.now == start + 20 * MS


def test_estimates_follow_measured_times_within_bounds() -> None:
    clock = FakeClock()
    pacer = Pacer(clock, max_stall_ns=5 * MS, max_duty=1.0)
    for _ in range(100):
        began = pacer.start(2 * MS)
        clock.now += 8 * MS
        pacer.measured(2 * MS, began)
    assert pacer.factor == FACTOR_MOST
    for _ in range(1000):
        began = pacer.start(2 * MS)
        pacer.measured(2 * MS, began)
    assert pacer.factor == FACTOR_LEAST


def test_a_slow_socket_does_not_make_small_calls_look_dear() -> None:
    clock = FakeClock()
    pacer = Pacer(clock, max_stall_ns=5 * MS, max_duty=1.0)
    began = pacer.start(MS // 10)
    clock.now += 50 * MS
    pacer.measured(MS // 10, began)
    assert pacer.factor == 1.0


def frontend() -> Frontend:
    return make_config({"p": {"a": 10}, "q": {"b": 10}}).frontends["www"]


def test_a_frontend_is_released_when_none_of_its_backends_is_unknown_and_stays_so() -> None:
    clock = FakeClock()
    warmup = WarmUp(clock, min_delay_ns=5 * SECOND, max_delay_ns=30 * SECOND)
    states = {"a": State.UP, "b": State.UP}
    www = frontend()
    assert warmup.phase.value == "silent"
    assert not warmup.released(www, lambda _, backend: states[backend])
    clock.advance(5)
    assert warmup.phase.value == "releasing"
    states["b"] = State.UNKNOWN
    assert not warmup.released(www, lambda _, backend: states[backend])
    states["b"] = State.DOWN
    assert warmup.released(www, lambda _, backend: states[backend])
    states["b"] = State.UNKNOWN
    assert not warmup.released(www, lambda _, backend: states[backend]), "asking changes nothing"
    states["b"] = State.DOWN
    warmup.release("www")
    states["b"] = State.UNKNOWN
    assert warmup.released(www, lambda _, backend: states[backend])


def test_at_the_end_everything_is_released_and_the_unresolved_stay_known() -> None:
    clock = FakeClock()
    warmup = WarmUp(clock, min_delay_ns=5 * SECOND, max_delay_ns=30 * SECOND)
    states = {"a": State.UP, "b": State.UNKNOWN}
    warmup.begin(states, states.__getitem__)
    assert warmup.remaining_ns == 30 * SECOND
    clock.advance(30)
    assert warmup.phase is Phase.DONE
    assert warmup.released(frontend(), lambda _, backend: states[backend])
    assert warmup.unresolved == {"b"}
    assert warmup.resolved("b")
    assert not warmup.resolved("b")


def test_delays_of_0_are_no_warm_up() -> None:
    warmup = WarmUp(FakeClock(), min_delay_ns=0, max_delay_ns=0)
    assert warmup.phase is Phase.DONE
    assert warmup.next_change_ns == 0
