"""The commands for many ASes: what is printed is what VPP's parser reads, for any VIP and any addresses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maglev.vpp.wire import commands
from maglev.vpp.wire.commands import Kind
from maglev.vpp.wire.messages import VipKey
from maglev.vppsim.cli import Cli
from maglev.vppsim.model import Model, NewVip, Vip, embed, normalise

ip4 = st.binary(min_size=4, max_size=4)
ip6 = st.one_of(
    st.binary(min_size=16, max_size=16),
    # Forms that inet_ntop prints with a dotted quad, and those with long gaps.
    ip4.map(lambda tail: bytes(10) + b"\xff\xff" + tail),
    st.integers(1, 14).flatmap(
        lambda gap: st.binary(min_size=16 - gap, max_size=16 - gap).map(lambda b: bytes(gap) + b)
    ),
    st.integers(1, 14).flatmap(
        lambda gap: st.binary(min_size=16 - gap, max_size=16 - gap).map(lambda b: b + bytes(gap))
    ),
).filter(lambda address: any(address[:12]))
ports = st.one_of(st.just((255, 0)), st.tuples(st.sampled_from([6, 17]), st.integers(1, 65535)))


@st.composite
def vips(draw: st.DrawFn, address: st.SearchStrategy[bytes]) -> VipKey:
    packed = draw(address)
    length = draw(st.integers(1, 8 * len(packed)))
    whole = normalise(packed.rjust(16, b"\0"), length + 128 - 8 * len(packed))
    return VipKey(whole[16 - len(packed) :], length, *draw(ports))


def vip_in(model: Model, key: VipKey, encap: int) -> Vip:
    length = key.prefix_length + 128 - 8 * len(key.address)
    retval, index = model.add_vip(NewVip(embed(key.address), length, key.protocol, key.port, encap, 64))
    assert retval == 0
    return model.vips[index]


def held(model: Model, vip: Vip) -> dict[bytes, tuple[bool, int]]:
    return {server.address: (server.used, server.weight) for server in model.ases_of(vip)}


@given(
    key=st.one_of(vips(ip4), vips(ip6.filter(lambda a: a[0] > 0))),
    ases=st.one_of(
        st.lists(ip4, min_size=1, max_size=8, unique=True), st.lists(ip6, min_size=1, max_size=8, unique=True)
    ),
    first=st.integers(0, 100),
    then=st.integers(0, 100),
    flush=st.booleans(),
)
def test_vpps_parser_reads_every_line_as_it_was_meant(
    key: VipKey, ases: list[bytes], first: int, then: int, flush: bool
) -> None:
    model = Model(lambda: 0.0)
    cli = Cli(model, lambda: "", lambda: 0.0)
    vip = vip_in(model, key, encap=0 if len(ases[0]) == 4 else 1)
    wanted = [embed(address) for address in ases]
    assert cli.execute(commands.probe(key)) == (-1, "lb as: No AS address provided\n")
    assert cli.execute(commands.weight_line(key, ases, first)) == (0, "")
    assert held(model, vip) == dict.fromkeys(wanted, (True, first))
    rebuilt = model.work_ns
    assert cli.execute(commands.pair(key, ases, then, flush=flush)) == (0, "")
    assert held(model, vip) == dict.fromkeys(wanted, (True, then))
    # Two rebuilds of a list, never one for each AS: those would cost 17 ns for each bucket.
    assert model.work_ns - rebuilt < 2 * (10_000 + 12 * 64 + 4.3 * 800 * 10 + 200 * 8 + 0.7 * 64)
    assert cli.execute(commands.delete_line(key, ases[:1])) == (0, "")
    assert held(model, vip)[wanted[0]] == (False, then)


@given(key=vips(ip4), ases=st.lists(ip4, min_size=1, max_size=5, unique=True))
def test_a_command_is_two_lines_of_plain_words(key: VipKey, ases: list[bytes]) -> None:
    text = commands.pair(key, ases, 0)
    assert text.count("\n") == 1
    assert set(text) <= set("abcdefghijklmnopqrstuvwxyz0123456789 ./:\n")


@given(key=st.one_of(vips(ip4), vips(ip6)), address=st.one_of(ip4, ip6))
def test_as_many_addresses_as_promised_fit_into_a_command(key: VipKey, address: bytes) -> None:
    most = commands.most_addresses(key, [address])
    assert most > 3_000
    longest = b"\xff" * len(address)
    assert len(commands.pair(key, [longest] * most, 100)) <= commands.MOST_BYTES


@pytest.mark.parametrize("protocol", [0, 1, 132, 255])
def test_a_protocol_without_a_word_is_refused_here(protocol: int) -> None:
    key = VipKey.parse("192.0.2.1/32", protocol, 80)
    assert not commands.can_name(key)
    with pytest.raises(ValueError, match=str(protocol)):
        commands.vip_words(key)


@pytest.mark.parametrize("weight", [-1, 101, 255, 4294967295])
def test_a_weight_that_the_cli_does_not_know_is_refused_here(weight: int) -> None:
    with pytest.raises(ValueError, match=r"0\.\.100"):
        commands.weight_line(VipKey.parse("192.0.2.1/32"), [bytes(4)], weight)


def test_a_line_without_ases_is_refused_here() -> None:
    with pytest.raises(ValueError, match="at least one"):
        commands.pair(VipKey.parse("192.0.2.1/32"), [], 0)
    with pytest.raises(ValueError, match="4 or 16"):
        commands.address_words(bytes(5))


@pytest.mark.parametrize(
    ("retval", "text", "kind"),
    [
        (-1, "lb as: No AS address provided\n", Kind.SAME),
        (-1, "lb as: lb_vip_find_index error -6\n", Kind.GONE),
        (0, "lb as: No AS address provided\n", Kind.OTHER),
        (0, "", Kind.OTHER),
        (-1, "", Kind.OTHER),
        (-1, "unknown input `lb as'\n", Kind.OTHER),
        (-1, "lb as: no AS address provided\n", Kind.OTHER),
    ],
)
def test_a_probe_recognises_one_answer_only(retval: int, text: str, kind: Kind) -> None:
    assert commands.read_probe(retval, text) is kind


def test_only_an_empty_answer_is_none() -> None:
    assert commands.error_in(0, "") == ""
    assert commands.error_in(0, "\n") == "no text (0)"
    assert commands.error_in(-1, "") == "no text (-1)"
    assert commands.error_in(-1, "lb as: lb_vip_del_ass error -6\n") == "lb as: lb_vip_del_ass error -6 (-1)"
    assert len(commands.error_in(-1, "x" * 10_000)) < 250
