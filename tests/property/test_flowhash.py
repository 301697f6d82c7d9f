"""The compiled flow hash equals the description of the plugin's own, worked out bit by bit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from maglev._flowhash import flow_hash

PORT = st.integers(0, 65535)
ADDRESSES = st.one_of(*(st.tuples(*[st.binary(min_size=size, max_size=size)] * 2) for size in (4, 16)))
POLYNOMIAL = 0x1EDC6F41  # CRC-32C as it is written, bit 31 first


def reversed_bits(value: int, width: int) -> int:
    """The same bits, the lowest first."""
    return int(f"{value:0{width}b}"[::-1], 2)


def crc32c(value: int, word: int) -> int:
    """Intel's CRC32 instruction on 64 bits: the remainder of a polynomial division, bits in reverse order."""
    dividend = (reversed_bits(word, 64) << 32) ^ (reversed_bits(value, 32) << 64)
    for bit in range(95, 31, -1):
        if dividend >> bit & 1:
            dividend ^= (1 << 32 | POLYNOMIAL) << (bit - 32)
    return reversed_bits(dividend, 32)


def plain_hash(source: bytes, destination: bytes, source_port: int, destination_port: int) -> int:
    """Over five words; a port is loaded as it stands in the packet, by a processor that is little-endian."""
    swapped = [int.from_bytes(port.to_bytes(2, "big"), "little") for port in (source_port, destination_port)]
    addresses = source + destination
    words = [int.from_bytes(addresses[at : at + 8], "little") for at in range(0, len(addresses), 8)]
    words.append(swapped[0] << 16 | swapped[1])
    value = 0
    for word in (*words, 0, 0, 0)[:5]:
        value = crc32c(value, word)
    return value


def test_the_division_is_that_of_crc_32c() -> None:
    # The check value of CRC-32C is over "123456789", with start value and result inverted. Here: its first 8 bytes.
    assert crc32c(0xFFFFFFFF, int.from_bytes(b"12345678", "little")) ^ 0xFFFFFFFF == 0x6087809A


@given(addresses=ADDRESSES, source_port=PORT, destination_port=PORT)
def test_hash_equals_the_plain_one(addresses: tuple[bytes, bytes], source_port: int, destination_port: int) -> None:
    wanted = plain_hash(*addresses, source_port, destination_port)
    assert flow_hash(*addresses, source_port, destination_port) == wanted
