"""The codec against what a real VPP said and was told."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maglev.vpp.wire import messages
from maglev.vpp.wire.messages import (
    MESSAGES,
    AsDetails,
    Decoder,
    Prefix,
    ProtocolError,
    VipKey,
    WeightCall,
    pack_set_weight,
)
from tests.helpers import transcripts

WEB4 = VipKey.parse("192.0.2.1/32", 6, 80)
WEB6 = VipKey.parse("2001:db8::80/128", 6, 80)


@pytest.mark.parametrize("scenario", transcripts.SCENARIOS)
def test_recorded_calls_are_packed_to_the_recorded_bytes(scenario: str) -> None:
    for call in transcripts.calls(scenario):
        message = MESSAGES[call.message]
        assert message.pack(**transcripts.values(message, call.args)) == call.payload


@pytest.mark.parametrize("scenario", transcripts.SCENARIOS)
def test_recorded_replies_unpack_to_the_recorded_fields(scenario: str) -> None:
    for call in transcripts.calls(scenario):
        for reply in call.replies:
            message = MESSAGES[reply.message]
            found = message.unpack(reply.payload)
            assert found == transcripts.values(message, reply.fields)
            assert message.pack(**found) == reply.payload


def test_every_recorded_definition_has_our_crc() -> None:
    recorded = transcripts.definitions()
    ours = {name: message.name_crc for name, message in MESSAGES.items() if name in recorded}
    assert ours == {name: recorded[name]["name_crc"] for name in ours}
    missing = MESSAGES.keys() - recorded.keys()
    assert missing == {"show_threads", "show_threads_reply"}  # of another .api file than those recorded


def test_every_field_has_the_recorded_type_and_default() -> None:
    envelope = {"_vl_msg_id", "client_index", "context"}
    for name, definition in transcripts.definitions().items():
        if name not in MESSAGES:
            continue
        recorded = [
            (kind, field, rest[0]["default"] if rest and isinstance(rest[0], dict) else None)
            for kind, field, *rest in definition["fields"]
            if field not in envelope and not any(field == other[3] for other in definition["fields"] if len(other) > 3)
        ]
        if name == "control_ping_reply":  # here the client index is a field, not the envelope
            recorded.insert(1, ("u32", "client_index", None))
        assert [(field.type, field.name, field.default) for field in MESSAGES[name].fields] == recorded


@pytest.mark.parametrize("scenario", transcripts.SCENARIOS)
def test_typed_builders_make_the_recorded_bytes(scenario: str) -> None:
    for call in transcripts.calls(scenario):
        args = transcripts.values(MESSAGES[call.message], call.args)
        if "pfx" not in args or call.message == "lb_vip_dump":
            continue
        key = VipKey(args["pfx"].address, args["pfx"].length, args["protocol"], args["port"])
        match call.message:
            case "lb_as_set_weight":
                built = messages.pack_set_weight(key, args["as_address"], args["weight"], flush=args["is_flush"])
            case "lb_add_del_as_v2" if not args.get("is_del"):
                built = messages.pack_as_add(key, args["as_address"], args["weight"])
            case "lb_add_del_vip_v2" if not args.get("is_del") and "target_port" not in args:
                built = messages.pack_vip_add(
                    key,
                    args["encap"],
                    args["new_flows_table_length"],
                    src_ip_sticky=args["src_ip_sticky"],
                    dscp=args.get("dscp", 0),
                )
            case "lb_flush_vip":
                built = messages.pack_flush_vip(key)
            case _:
                continue
        assert built == call.payload


@pytest.mark.parametrize("scenario", transcripts.SCENARIOS)
def test_as_details_in_bulk_equal_the_recorded_fields(scenario: str) -> None:
    keys: dict[bytes, VipKey] = {}
    for call in transcripts.calls(scenario):
        if call.message != "lb_as_v2_dump":
            continue
        bodies = [struct.pack(">HI", 300, 7) + reply.payload for reply in call.replies]
        found = messages.unpack_as_details(bodies, keys)
        message = MESSAGES["lb_as_v2_details"]
        assert [
            {
                "vip": entry.vip,
                "app_srv": entry.address,
                "flags": entry.flags,
                "in_use_since": entry.in_use_since,
                "weight": entry.weight,
                "num_buckets": entry.num_buckets,
            }
            for entry in found
        ] == [transcripts.values(message, reply.fields) for reply in call.replies]
    assert len({id(key) for key in keys.values()}) == len(keys)


def test_details_of_one_vip_share_their_key() -> None:
    payload = MESSAGES["lb_as_v2_details"].pack(vip=WEB6, app_srv=bytes(16), flags=1, weight=3, num_buckets=9)
    body = struct.pack(">HI", 1, 2) + payload
    first, second = messages.unpack_as_details([body, body])
    assert first == AsDetails(WEB6, bytes(16), 1, 0, 3, 9)
    assert first.live
    assert first.vip is second.vip


def test_a_deleted_as_is_not_live() -> None:
    assert not AsDetails(WEB4, bytes(4), 0, 0, 3, 0).live


addresses = st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16))
weight_calls = st.builds(WeightCall, st.sampled_from([WEB4, WEB6]), addresses, st.integers(0, 255), st.booleans())


@given(st.lists(weight_calls, max_size=20), st.integers(0, 0xFFFFFFFF))
def test_weight_calls_in_bulk_equal_single_ones(calls: list[WeightCall], context: int) -> None:
    single = b"".join(
        messages.request(
            321,
            77,
            (context + n) & 0xFFFFFFFF,
            MESSAGES["lb_as_set_weight"].pack(
                pfx=call.vip.prefix,
                protocol=call.vip.protocol,
                port=call.vip.port,
                as_address=call.address,
                weight=call.weight,
                is_flush=call.flush,
            ),
        )
        for n, call in enumerate(calls)
    )
    assert messages.pack_weight_calls(321, 77, context, calls) == single


@pytest.mark.parametrize("bad", [WeightCall(WEB4, bytes(5), 1, False), WeightCall(WEB4, bytes(4), 256, False)])
def test_a_weight_call_that_has_no_bytes_is_refused(bad: WeightCall) -> None:
    with pytest.raises(ProtocolError):
        messages.pack_weight_calls(1, 1, 1, [bad])
    with pytest.raises(ProtocolError):
        messages.pack_set_weight(*bad[:3], flush=bad.flush)


def test_a_filter_for_an_ipv4_vip_is_written_as_vpp_compares_it() -> None:
    mapped = MESSAGES["lb_as_v2_dump"].pack(pfx=Prefix.parse("::192.0.2.1/128"), protocol=6, port=80)
    assert messages.pack_as_dump(WEB4) == mapped
    assert messages.pack_as_dump() == MESSAGES["lb_as_v2_dump"].pack()


def test_a_table_length_of_zero_never_reaches_vpp() -> None:
    with pytest.raises(ProtocolError):
        messages.pack_vip_add(WEB4, 0, 0)


def test_vips_sort_by_number_and_ipv4_first() -> None:
    keys = [
        VipKey.parse(text, 6, port)
        for text, port in [("2001:db8::1/128", 1), ("10.0.0.2/32", 80), ("10.0.0.10/32", 443), ("9.0.0.0/8", 80)]
    ]
    assert [str(key) for key in sorted(keys, key=lambda key: key.sort_key)] == [
        "9.0.0.0/8 tcp 80",
        "10.0.0.2/32 tcp 80",
        "10.0.0.10/32 tcp 443",
        "2001:db8::1/128 tcp 1",
    ]


def test_a_key_is_normalised_as_vpp_does() -> None:
    assert VipKey.parse("192.0.2.77/24", 17, 53).prefix == Prefix(bytes([192, 0, 2, 0]), 24)
    assert str(VipKey.parse("192.0.2.1")) == "192.0.2.1/32"


def test_the_handshake_is_read_as_it_was_written() -> None:
    table = [(300, "lb_conf_56cd3261"), (301, "lb_conf_get_51077d14"), (17, "somebody_elses_00000000")]
    (body,) = Decoder().feed(messages.pack_handshake_reply(5, 124, 0, table))
    handshake = messages.unpack_handshake_reply(body)
    assert (handshake.response, handshake.client_index, handshake.context) == (0, 5, 124)
    assert handshake.id_of("lb_conf") == 300
    assert handshake.id_of("lb_as_set_weight") is None


def test_a_message_of_our_name_with_another_crc_is_not_ours() -> None:
    (body,) = Decoder().feed(messages.pack_handshake_reply(0, 0, 0, [(300, "lb_conf_00000000")]))
    assert messages.unpack_handshake_reply(body).id_of("lb_conf") is None


def test_the_handshake_cuts_a_long_name() -> None:
    (body,) = Decoder().feed(messages.pack_handshake("x" * 200, 1))
    assert MESSAGES["sockclnt_create"].unpack(body[messages.REPLY_PAYLOAD :]) == {"name": "x" * 63}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("lb_conf", {"colour": 1}),
        ("lb_conf", {"flow_timeout": -1}),
        ("lb_conf", {"ip4_src_address": bytes(3)}),
        ("lb_add_del_as_v2", {"as_address": bytes(5)}),
        ("lb_add_del_as_v2", {"weight": 256}),
        ("lb_add_del_as_v2", {"pfx": "192.0.2.1"}),
        ("sockclnt_create", {"name": "x" * 65}),
        ("cli_inband", {"cmd": 5}),
        ("ip_route_lookup_reply", {"route": None}),
    ],
)
def test_what_does_not_fit_a_message_is_an_error(name: str, values: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        MESSAGES[name].pack(**values)


def test_a_string_that_lies_about_its_length_is_an_error() -> None:
    for payload in (b"\0\0\0\0", b"\0\0\0\0\xff\xff\xff\xff", b"\0\0\0\0\0\0\0\x05abcd"):
        with pytest.raises(ProtocolError):
            messages.unpack_cli_reply(payload)


def test_text_that_is_no_utf8_is_shown_and_not_refused() -> None:
    assert messages.unpack_cli_reply(b"\0\0\0\0\0\0\0\x02a\xff") == (0, "a\\xff")


@given(st.sampled_from(sorted(MESSAGES)), st.binary(max_size=120))
def test_random_bytes_are_a_message_or_an_error(name: str, payload: bytes) -> None:
    message = MESSAGES[name]
    try:
        found = message.unpack(payload)
    except ProtocolError:
        return
    assert found.keys() == {field.name for field in message.fields}


@given(st.lists(st.binary(max_size=120), max_size=5))
def test_random_bodies_are_details_or_an_error(bodies: list[bytes]) -> None:
    try:
        found = messages.unpack_as_details(bodies)
    except ProtocolError:
        return
    assert len(found) == len(bodies)


# --- frames


@given(st.lists(st.binary(min_size=2, max_size=60), max_size=12), st.randoms(use_true_random=False))
def test_a_stream_is_cut_into_the_same_bodies_however_it_arrives(bodies: list[bytes], chance: random.Random) -> None:
    stream = b"".join(map(messages.frame, bodies))
    decoder = Decoder()
    found: list[bytes] = []
    position = 0
    while position < len(stream):
        step = chance.randint(1, 40)
        found += decoder.feed(stream[position : position + step])
        position += step
    assert found == bodies
    assert decoder.pending == 0


@pytest.mark.parametrize("length", [0, 1, 1025, 0xFFFFFFFF])
def test_a_header_that_announces_nonsense_ends_the_stream(length: int) -> None:
    decoder = Decoder(limit=1024)
    with pytest.raises(ProtocolError):
        decoder.feed(struct.pack(">QII", 0, length, 0))


@given(st.lists(st.binary(max_size=50), max_size=30))
def test_random_bytes_never_make_the_decoder_hold_more_than_one_message(chunks: list[bytes]) -> None:
    decoder = Decoder(limit=256)
    for chunk in chunks:
        try:
            bodies = decoder.feed(chunk)
        except ProtocolError:
            return
        assert all(2 <= len(body) <= 256 for body in bodies)
        assert decoder.pending < messages.HEADER_SIZE + 256


def test_a_payload_is_told_in_words_for_the_log() -> None:
    payload = pack_set_weight(VipKey.parse("2001:db8::1/128", 6, 443), bytes((10, 0, 0, 1)), 7, flush=True)
    assert MESSAGES["lb_as_set_weight"].words(payload) == (
        "pfx 2001:db8::1/128 protocol 6 port 443 as_address 10.0.0.1 weight 7 is_flush true"
    )
    assert (
        MESSAGES["lb_conf"]
        .words(MESSAGES["lb_conf"].pack(flow_timeout=40))
        .endswith("sticky_buckets_per_core keep flow_timeout 40")
    )
    assert MESSAGES["cli_inband"].words(MESSAGES["cli_inband"].pack(cmd="show\nclock")) == r"cmd 'show\nclock'"
    assert MESSAGES["lb_as_set_weight"].words(b"\x01\x02") == "0102"


def test_return_values_are_told_in_words() -> None:
    assert messages.retval_text(-6) == "no such entry (-6)"
    assert messages.retval_text(-12345) == "error (-12345)"
