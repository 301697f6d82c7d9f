"""Packets as bytes: what the builders make and what the parsers take."""

from __future__ import annotations

import struct

import pytest

from maglev import _cores

KEY = bytes(range(16))
SOURCE = bytes([192, 0, 2, 1])
TARGET = bytes([192, 0, 2, 99])
SOURCE6 = bytes.fromhex("20010db8000000000000000000000001")
TARGET6 = bytes.fromhex("20010db8000000000000000000000063")


def checksum(data: bytes) -> int:
    """RFC 1071, the slow way; 0 over a packet that holds a right one."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip4(payload: bytes, proto: int, source: bytes = TARGET, target: bytes = SOURCE, options: bytes = b"") -> bytes:
    words = 5 + len(options) // 4
    head = struct.pack(">BBHHHBBH", 0x40 | words, 0, words * 4 + len(payload), 0, 0, 64, proto, 0)
    return head + source + target + options + payload


def ip6(payload: bytes, proto: int, source: bytes = SOURCE6, target: bytes = TARGET6) -> bytes:
    return struct.pack(">IHBB", 6 << 28, len(payload), proto, 64) + source + target + payload


def tcp(flags: int, ack: int, length: int = 20) -> bytes:
    return struct.pack(">HHIIBBHHH", 80, 20001, 7, ack, length // 4 << 4, flags, 0, 0, 0)


def test_siphash_is_the_published_function() -> None:
    # SipHash-1-3 of 00 01 .. 07 under the key of zeros is what CPython from 3.11 on makes of those bytes, unseeded:
    # PYTHONHASHSEED=0 python3 -c 'print(hex(hash(bytes(range(8))) % 2**64))'
    word = int.from_bytes(bytes(range(8)), "little")
    assert _cores.siphash13(bytes(16), word) == 0xEAD411E67EBE2EEA
    assert _cores.siphash13(KEY, word) == 0x369095118D299A8E


def test_an_echo_request_sums_to_zero() -> None:
    for payload in (16, 17, 56, 1473):
        packet = _cores.make_echo(False, 0x12345678, 0xA1A2A3A4A5A6A7A8, 0xB1B2B3B4B5B6B7B8, payload)
        assert len(packet) == 8 + payload
        assert packet[:2] == b"\x08\0"
        assert packet[4:24].hex() == "12345678a1a2a3a4a5a6a7a8b1b2b3b4b5b6b7b8"
        assert checksum(packet) == 0
    assert _cores.make_echo(True, 1, 2, 3)[:4] == b"\x80\0\0\0"


@pytest.mark.parametrize("payload", [15, 65508])
def test_an_impossible_payload_is_refused(payload: int) -> None:
    with pytest.raises(ValueError, match="payload must be"):
        _cores.make_echo(False, 1, 2, 3, payload)


def test_a_syn_sums_to_zero_with_its_pseudo_header() -> None:
    packet = _cores.make_syn4(SOURCE, TARGET, 20001, 80, 0xDEADBEEF)
    segment = packet[20:]
    assert struct.unpack(">HHII", segment[:12]) == (20001, 80, 0xDEADBEEF, 0)
    assert segment[13] == 2
    assert packet[12:20] == SOURCE + TARGET
    assert checksum(SOURCE + TARGET + struct.pack(">HH", 6, len(segment)) + segment) == 0


@pytest.mark.parametrize("options", [b"", b"\x94\x04\0\0", b"\x01" * 40])
def test_an_echo_reply_is_read_behind_any_ip_options(options: bytes) -> None:
    reply = b"\0" + _cores.make_echo(False, 5, 6, 7)[1:]
    packet = _cores.read_icmp(ip4(reply, 1, options=options), False)
    assert (packet["kind"], packet["cookie"], packet["magic"], packet["seal"]) == ("echo", 5, 6, 7)
    assert packet["address"] == TARGET


def test_an_echo_reply_of_ipv6_has_no_ip_header() -> None:
    reply = b"\x81" + _cores.make_echo(True, 5, 6, 7)[1:]
    packet = _cores.read_icmp(reply, True, TARGET6)
    assert (packet["kind"], packet["cookie"], packet["address"]) == ("echo", 5, TARGET6)


@pytest.mark.parametrize("quoted", [8, 20, 24])
def test_an_error_that_quotes_8_bytes_is_enough(quoted: int) -> None:
    syn = _cores.make_syn4(SOURCE, TARGET, 20001, 80, 77)[: 20 + quoted]
    packet = _cores.read_icmp(ip4(b"\x03\x01" + bytes(6) + syn, 1, source=bytes([192, 0, 2, 254])), False)
    assert (packet["kind"], packet["error"], packet["cookie"]) == ("error-tcp", (3, 1), 77)
    assert (packet["own_port"], packet["peer_port"], packet["address"]) == (20001, 80, TARGET)
    echo = ip4(_cores.make_echo(False, 78, 1, 2)[:quoted], 1, SOURCE, TARGET)
    packet = _cores.read_icmp(ip4(b"\x0b\x00" + bytes(6) + echo, 1), False)
    assert (packet["kind"], packet["error"], packet["cookie"]) == ("error-icmp", (11, 0), 78)
    echo6 = ip6(_cores.make_echo(True, 79, 1, 2)[:quoted], 58)
    packet = _cores.read_icmp(b"\x01\x03" + bytes(6) + echo6, True, SOURCE6)
    assert (packet["kind"], packet["error"], packet["cookie"]) == ("error-icmp", (1, 3), 79)
    assert packet["address"] == TARGET6


def test_an_error_that_quotes_less_is_malformed() -> None:
    syn = _cores.make_syn4(SOURCE, TARGET, 20001, 80, 77)
    for quoted in range(27):
        assert _cores.read_icmp(ip4(b"\x03\x01" + bytes(6) + syn[:quoted], 1), False)["kind"] == "malformed"


def test_a_later_fragment_in_a_quote_is_nobodys() -> None:
    syn = bytearray(_cores.make_syn4(SOURCE, TARGET, 20001, 80, 77))
    syn[7] = 1
    assert _cores.read_icmp(ip4(b"\x03\x01" + bytes(6) + bytes(syn), 1), False)["kind"] == "other"


@pytest.mark.parametrize(
    ("flags", "kind"),
    [(0x12, "syn-ack"), (0x14, "rst"), (0x04, "other"), (0x10, "other"), (0x02, "other"), (0x16, "rst"), (0, "other")],
)
def test_only_an_acknowledgement_can_answer_a_syn(flags: int, kind: str) -> None:
    for packet in (
        _cores.read_tcp(ip4(tcp(flags, 78), 6), False),
        _cores.read_tcp(tcp(flags, 78), True, TARGET6),
    ):
        assert (packet["kind"], packet["cookie"]) == (kind, 77)
        assert (packet["peer_port"], packet["own_port"]) == (80, 20001)


def test_truncated_packets_are_malformed() -> None:
    echo = ip4(b"\0" + _cores.make_echo(False, 5, 6, 7)[1:], 1)
    segment = ip4(tcp(0x12, 78), 6)
    for length in range(len(segment)):
        assert _cores.read_tcp(segment[:length], False)["kind"] == "malformed"
    for length in range(20 + 24):
        assert _cores.read_icmp(echo[:length], False)["kind"] == "malformed"
    assert _cores.read_tcp(ip4(tcp(0x12, 78, 16), 6), False)["kind"] == "malformed"
    assert _cores.read_tcp(ip4(tcp(0x12, 78, 24), 6), False)["kind"] == "malformed"
