"""The lb plugin's behaviour over time: what lingers, what comes back, and what flows do."""

from __future__ import annotations

import ipaddress

import pytest

from maglev.vppsim.cli import Cli
from maglev.vppsim.model import (
    EXISTING,
    FIRST,
    INVALID_ADDRESS_FAMILY,
    INVALID_ARGUMENT,
    INVALID_MEMORY_SIZE,
    NO_SERVER,
    NO_SUCH_ENTRY,
    OK,
    VALUE_EXIST,
    Conf,
    Crash,
    Model,
    NewVip,
    Pool,
    Vip,
    embed,
)


def packed(text: str) -> bytes:
    return embed(ipaddress.ip_address(text).packed)


A1, A2, A3 = (packed(f"10.0.0.{number}") for number in (1, 2, 3))
PREFIX = packed("192.0.2.1")


class Bench:
    """A model and its clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.model = Model(lambda: self.now)

    def vip(self, port: int = 80, **changes: object) -> Vip:
        args = {"prefix": PREFIX, "length": 128, "protocol": 6, "port": port, "encap": 0, "table_length": 64, **changes}
        retval, index = self.model.add_vip(NewVip(**args))  # type: ignore[arg-type]
        assert retval == OK
        return self.model.vips[index]

    def at(self, seconds: float) -> None:
        self.now = seconds
        self.model.run_timers()

    def state(self, vip: Vip) -> list[tuple[bytes, bool, int]]:
        return [(server.address, server.used, server.weight) for server in self.model.ases_of(vip)]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_pool_gives_out_the_index_freed_last() -> None:
    pool: Pool[int] = Pool(lambda index: index * 10)
    assert [pool.get() for _ in range(3)] == [(0, 0), (1, 10), (2, 20)]
    pool.put(0)
    pool.put(1)
    assert (len(pool), list(pool)) == (1, [20])
    assert [pool.get()[0] for _ in range(3)] == [1, 0, 3]


def test_a_deleted_as_lingers_and_is_collected_a_minute_later(bench: Bench) -> None:
    vip = bench.vip()
    assert bench.model.add_ases(vip, [A1], 10, flush=False) == OK
    bench.now = 55
    assert bench.model.delete_ases(vip, [A1], flush=False) == OK
    bench.at(60)  # deleted 5 s ago: too young
    assert bench.state(vip) == [(A1, False, 10)]
    assert next(iter(bench.model.ases_of(vip))).last_used == 55
    bench.at(119)
    assert bench.state(vip) == [(A1, False, 10)]
    bench.at(120)
    assert bench.state(vip) == []


def test_an_as_with_a_flow_is_never_collected(bench: Bench) -> None:
    vip = bench.vip()
    bench.model.add_ases(vip, [A1], 1, flush=False)
    bench.model.packets(vip, [17])
    bench.model.delete_ases(vip, [A1], flush=False)
    bench.at(600)
    assert bench.state(vip) == [(A1, False, 1)]
    bench.model.flush_vip(vip)
    bench.at(660)
    assert bench.state(vip) == []


def test_slots_are_collected_in_their_order_and_reused_from_the_last(bench: Bench) -> None:
    vip = bench.vip()
    bench.model.add_ases(vip, [A1], 1, flush=False)
    bench.model.add_ases(vip, [A2], 1, flush=False)
    bench.model.delete_ases(vip, [A1], flush=False)
    bench.at(60)
    bench.model.add_ases(vip, [A3], 1, flush=False)  # younger than A2, and in front of it
    assert [state[0] for state in bench.state(vip)] == [A3, A2]
    bench.model.delete_ases(vip, [A2, A3], flush=False)
    bench.at(120)
    bench.model.add_ases(vip, [A1], 1, flush=False)
    assert [server.index for server in bench.model.ases_of(vip)] == [2]


def test_a_lingering_as_is_deleted_again_without_error_and_revived_with_the_new_weight(bench: Bench) -> None:
    vip = bench.vip()
    bench.model.add_ases(vip, [A1, A2], 10, flush=False)
    assert bench.model.delete_ases(vip, [A1], flush=False) == OK
    assert bench.model.delete_ases(vip, [A1], flush=False) == OK
    assert bench.model.set_weight(vip, A1, 3, flush=False) == NO_SUCH_ENTRY
    assert bench.model.add_ases(vip, [A1], 7, flush=False) == OK
    assert sorted(bench.state(vip)) == [(A1, True, 7), (A2, True, 10)]
    assert bench.model.add_ases(vip, [A1], 8, flush=False) == VALUE_EXIST


def test_a_deleted_vip_stays_beside_a_new_one_of_its_key_until_it_is_collected(bench: Bench) -> None:
    old = bench.vip()
    bench.model.add_ases(old, [A1], 10, flush=False)
    assert bench.model.delete_vip(old) == OK
    new = bench.vip()
    assert new is not old
    assert [vip.used for vip in bench.model.visible_vips()] == [False, True]
    bench.at(60)
    assert [vip.used for vip in bench.model.visible_vips()] == [True]
    assert bench.model.find(PREFIX, 128, 6, 80) is new


@pytest.mark.parametrize(
    ("changes", "retval"),
    [
        ({"port": 80}, VALUE_EXIST),
        ({"port": 0, "protocol": 255}, VALUE_EXIST),
        ({"port": 81, "encap": 1}, INVALID_ARGUMENT),
        ({"port": 81, "table_length": 1000}, INVALID_MEMORY_SIZE),
        ({"prefix": packed("192.0.2.9"), "encap": 4}, INVALID_ADDRESS_FAMILY),
        ({"prefix": packed("192.0.2.9"), "encap": 9}, INVALID_ADDRESS_FAMILY),
        ({"port": 81}, OK),
    ],
)
def test_a_second_vip_is_checked_in_the_order_of_vpp(bench: Bench, changes: dict[str, int], retval: int) -> None:
    bench.vip()
    args = {"prefix": PREFIX, "length": 128, "protocol": 6, "port": 80, "encap": 0, **changes}
    assert bench.model.add_vip(NewVip(**args))[0] == retval  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [0, 1 << 31])
def test_a_table_length_that_kills_vpp_is_told(bench: Bench, length: int) -> None:
    with pytest.raises(Crash):
        bench.vip(table_length=length)
    assert len(list(bench.model.visible_vips())) == 0


def test_ases_are_added_all_or_none(bench: Bench) -> None:
    vip = bench.vip()
    bench.model.add_ases(vip, [A1], 1, flush=False)
    assert bench.model.add_ases(vip, [A2, A1], 1, flush=False) == VALUE_EXIST
    assert bench.model.add_ases(vip, [A2, packed("2001:db8::1")], 1, flush=False) == INVALID_ADDRESS_FAMILY
    assert bench.model.delete_ases(vip, [A1, A2], flush=False) == NO_SUCH_ENTRY
    assert bench.state(vip) == [(A1, True, 1)]
    assert bench.model.add_ases(vip, [A3, A2, A3], 2, flush=False) == OK
    assert [state[0] for state in bench.state(vip)] == [A1, A2, A3]  # from the back, and each once


def test_buckets_equal_the_table(bench: Bench) -> None:
    vip = bench.vip()
    bench.model.add_ases(vip, [A1, A2], 3, flush=False)
    bench.model.set_weight(vip, A2, 10, flush=False)
    table = bench.model.table(vip)
    buckets = bench.model.buckets(vip)
    assert len(table) == 64
    assert {index: table.count(index) for index in set(table)} == buckets
    assert sum(buckets.values()) == 64


def test_without_weight_every_bucket_is_empty(bench: Bench) -> None:
    vip = bench.vip()
    bench.model.add_ases(vip, [A1], 0, flush=False)
    assert bench.model.buckets(vip) == {}
    assert set(bench.model.table(vip)) == {0}
    bench.model.packets(vip, range(5))
    assert vip.counters[NO_SERVER] == 5


def test_established_flows_stay_on_a_drained_as_until_they_are_flushed(bench: Bench) -> None:
    vip = bench.vip()
    bench.model.add_ases(vip, [A1, A2], 1, flush=False)
    bench.model.packets(vip, range(64))
    first, second = bench.model.ases_of(vip)
    assert (vip.counters[FIRST], first.flows + second.flows) == (64, 64)
    held = first.flows
    bench.model.set_weight(vip, first.address, 0, flush=False)
    bench.model.packets(vip, range(64))
    assert (vip.counters[EXISTING], first.flows) == (64, held)
    bench.model.set_weight(vip, first.address, 0, flush=True)
    assert first.flows == 0
    bench.model.packets(vip, range(64))
    assert (first.flows, second.flows) == (0, 64)


def test_estimated_work_grows_with_length_and_weights(bench: Bench) -> None:
    vip = bench.vip()
    bench.model.work_ns = 0
    bench.model.add_ases(vip, [A1, A2], 50, flush=False)
    assert bench.model.work_ns == 17 * 64 + 125 * 100
    bench.model.delete_ases(vip, [A1], flush=False)
    bench.model.delete_ases(vip, [A1], flush=False)
    assert bench.model.work_ns == 3 * 17 * 64 + 125 * 200
    assert vip.weights == 50


def test_conf_wants_a_power_of_two_and_takes_zero(bench: Bench) -> None:
    assert bench.model.set_conf(Conf(bytes(4), bytes(16), 1000, 1)) == INVALID_MEMORY_SIZE
    assert bench.model.set_conf(Conf(bytes(4), bytes(16), 0, 0)) == OK


def test_a_route_ends_with_its_last_user(bench: Bench) -> None:
    first, second = bench.vip(), bench.vip(port=81)
    index = bench.model.route_index(PREFIX, 128)
    assert index is not None
    bench.model.delete_vip(first)
    assert bench.model.route_index(PREFIX, 128) == index
    bench.model.delete_vip(second)
    assert bench.model.route_index(PREFIX, 128) is None


# --- the command line


@pytest.fixture
def cli(bench: Bench) -> Cli:
    return Cli(bench.model, lambda: "vpp v1", lambda: bench.now)


@pytest.mark.parametrize(
    ("line", "retval", "output"),
    [
        ("", -1, "unknown input `'\n"),
        ("foo bar", -1, "unknown input `foo bar'\n"),
        ("show version", 0, "vpp v1\n"),
        ("sh lb vi", 0, ""),
        ("lb vip", 0, ""),
        ("lb vip x", -1, "lb vip: invalid vip prefix: 'x'\n"),
        ("lb as y z", -1, "lb as: invalid as address: 'y z'\n"),
        ("lb vip 192.0.2.1/32 foo", -1, "lb vip: parse error: 'foo'\n"),
        ("lb vip 192.0.2.1/32 dscp 3", -1, "lb vip: lb_vip_add error: should not configure dscp for none L3DSR.\n"),
        ("lb vip 192.0.2.1/32 encap nat6", -1, "lb vip: currently does not support NAT46\n"),
        ("lb vip 2001:db8::1/128 encap nat4", -1, "lb vip: currently does not support NAT64\n"),
        ("lb vip 192.0.2.1/32 del", -1, "lb vip: lb_vip_find_index error -6\n"),
        ("lb as 192.0.2.1/32 10.0.0.1 weight 101", -1, "lb as: weight must be between 0 and 100\n"),
        ("lb as 192.0.2.1/32 10.0.0.1 weight 1 del", -1, "lb as: weight and del are mutually exclusive\n"),
        ("lb as 192.0.2.1/32 10.0.0.1", -1, "lb as: lb_vip_find_index error -6\n"),
        ("lb conf buckets 100", -1, "lb conf: lb_conf error -70\n"),
        ("lb conf buckets-log2 40", -1, "lb conf: buckets-log2 value is too high\n"),
        ("lb flush vip 192.0.2.9/32", -1, "lb flush vip: lb_vip_find_index error -6\n"),
    ],
)
def test_the_cli_refuses_in_vpps_words(cli: Cli, line: str, retval: int, output: str) -> None:
    assert cli.execute(line) == (retval, output)


def test_the_cli_adds_in_bulk_and_falls_back_to_single_weights(bench: Bench, cli: Cli) -> None:
    vip = "192.0.2.1/32 protocol tcp port 80"
    assert cli.execute(f"lb vip {vip} new_len 16 src_ip_sticky") == (0, "lb_vip_add ok 1\n")
    assert cli.execute(f"lb as {vip} 10.0.0.1 10.0.0.2 weight 3") == (0, "")
    assert cli.execute(f"lb as {vip} 10.0.0.1 10.0.0.3 weight 9") == (-1, "lb as: lb_vip_set_as_weight error -6\n")
    assert cli.execute(f"lb as {vip} 10.0.0.2 del flush") == (0, "")
    assert cli.execute("show lb vips") == (0, "ip4-gre4 192.0.2.1/32 new_size:16 #as:2  protocol:6 port:80 \n")
    assert cli.execute("show lb vips verbose") == (
        0,
        " ip4-gre4 [1] 192.0.2.1/32 src_ip_sticky\n"
        "  new_size:16\n"
        "  protocol:6 port:80\n"
        "  counters:\n"
        "    packet from existing sessions: 0\n"
        "    first session packet: 0\n"
        "    untracked packet: 0\n"
        "    no server configured: 0\n"
        "  #as:2\n"
        "    10.0.0.2 weight:3 buckets:0 flows:0 dpo:9  removed\n"
        "    10.0.0.1 weight:9 buckets:16 flows:0 dpo:10 used\n"
        "\n",
    )
    assert cli.execute(f"lb flush vip {vip}") == (0, "lb_flush_vip ok 1\n")
    assert cli.execute(f"lb vip {vip} del") == (0, "")
    assert cli.execute("show lb")[1].endswith(" #vips: 2\n #ass: 2\n")


def test_a_text_of_several_commands_ends_with_the_first_that_fails(cli: Cli) -> None:
    vip = "192.0.2.1/32 protocol tcp port 80"
    assert cli.execute(f"lb vip {vip} new_len 16\n\nlb as {vip} 10.0.0.1 weight 3\n")[0] == 0
    text = f"lb as {vip} 10.0.0.1 del\n nonsense and more words than are shown\nlb as {vip} 10.0.0.1 weight 3"
    assert cli.execute(text) == (-1, "unknown input ` nonsense and more words than ...'\n")
    assert "weight:3 buckets:0 flows:0 dpo:9  removed" in cli.execute("show lb vips verbose")[1]
    assert cli.execute(f"lb as ? {vip}")[1].startswith("  lb as         ")
    assert cli.execute("lb set interface") == (-1, "lb set: unknown input `interface'\n")
    assert cli.execute("show lb nonsense")[1].endswith("unknown input `nonsense'\n")


@pytest.mark.parametrize(
    ("words", "retval", "output"),
    [
        ("10.0.0.1weight 5", 0, ""),
        ("10 . 0 . 0 . 1 weight +5", 0, ""),
        ("{ 10.0.0.1 weight 5 }", -1, "lb as: parse error: '{ 10.0.0.1 weight 5 }'\n"),
        ("::a00:1 weight 5", 0, ""),
        ("::10.0.0.1 weight 5", -1, "lb as: parse error: '.0.0.1 weight 5'\n"),
        ("::ffff:10.0.0.1 weight 5", -1, "lb as: parse error: '.0.0.1 weight 5'\n"),
        ("10.0.0.1 weight 4294967295", -1, "lb as: lb_vip_add_ass error -81\n"),
        ("10.0.0.1 weight 4294967296", -1, "lb as: parse error: 'weight 4294967296'\n"),
        ("port 65616 10.0.0.1 weight 5", 0, ""),
        ("weight 5", -1, "lb as: No AS address provided\n"),
        ("10.0.0.1 10.0.0.9 del", -1, "lb as: lb_vip_del_ass error -6\n"),
        ("10.0.0.1 10.0.0.9 weight 7", -1, "lb as: lb_vip_set_as_weight error -6\n"),
        ("10.0.0.9 2001:db8::1 weight 7", -1, "lb as: lb_vip_add_ass error -97\n"),
        ("10.0.0.1 weight -1", -1, "lb as: parse error: 'weight -1'\n"),
        ("10.0.0.1 weight 99999999999999999999", -1, "lb as: parse error: 'weight 99999999999999999999'\n"),
        ("1:2:3:4:5:6:7:8:9 del", -1, "lb as: parse error: '1:2:3:4:5:6:7:8:9 del'\n"),
    ],
)
def test_the_cli_reads_text_as_vpp_does(cli: Cli, words: str, retval: int, output: str) -> None:
    vip = "192.0.2.1/32 protocol tcp port 80"
    assert cli.execute(f"lb vip {vip}\nlb as {vip} 10.0.0.1 weight 3")[0] == 0
    assert cli.execute(f"lb as {vip} {words}") == (retval, output)


def test_a_list_rebuilds_once_when_new_and_once_for_each_as_when_it_exists(bench: Bench, cli: Cli) -> None:
    vip = "192.0.2.1/32 protocol tcp port 80"
    cli.execute(f"lb vip {vip} new_len 1024")
    addresses = " ".join(f"10.0.0.{number}" for number in range(1, 101))

    def cost(line: str) -> int:
        before = bench.model.work_ns
        assert cli.execute(f"lb as {vip} {addresses} {line}") == (0, "")
        return bench.model.work_ns - before

    whole = 4.3 * 1000 * 9.965784284662087  # 1,000 units of weight, and the binary logarithm of that
    listed = 10_000 + 12 * 1024 + 200 * 100 + 70 * 100
    assert cost("weight 10") == int(listed + whole + 8_000 * 100)
    assert cost("weight 10") == 100 * (17 * 1024 + 125 * 1000)
    assert cost("del") == int(listed + 4.3 * 0)
    assert cost("weight 10") == int(listed + whole)


def test_a_line_can_be_refused_and_ends_the_text(bench: Bench, cli: Cli) -> None:
    refusals = iter([None, -6, None])
    cli = Cli(bench.model, lambda: "vpp v1", lambda: bench.now, lambda: next(refusals))
    vip = "192.0.2.1/32 protocol tcp port 80"
    cli.execute(f"lb vip {vip}\nlb as {vip} 10.0.0.1 weight 3")
    retval, output = cli.execute(f"lb as {vip} 10.0.0.1 del\nlb as {vip} 10.0.0.1 weight 0")
    assert (retval, output) == (-1, "lb as: lb_vip_del_ass error -6\n")
    assert "weight:3 buckets:1024" in cli.execute("show lb vips verbose")[1]


def test_a_collected_as_keeps_its_forwarding_object_until_its_slot_is_used_again(bench: Bench) -> None:
    vip = bench.vip()
    bench.model.add_ases(vip, [A1], 1, flush=False)
    (server,) = bench.model.ases_of(vip)
    first = server.dpo
    bench.model.delete_ases(vip, [A1], flush=False)
    bench.at(60)
    bench.model.add_ases(vip, [A1], 1, flush=False)
    (again,) = bench.model.ases_of(vip)
    assert again is server  # the slot freed last
    assert again.dpo == first + 1  # taken before the old one is given back
