"""Commands of VPP's CLI that change many ASes with one rebuild of the table: their text, and VPP's answers. Pure.

``lb as <vip> <address> ... del`` and ``lb as <vip> <address> ... weight W`` rebuild the table once for the whole list,
where the binary API rebuilds it for every AS. ``weight`` does so only for ASes that VPP does not have or has deleted;
on live ones it rebuilds once for each. So live ASes get a weight by two lines in one ``cli_inband``: the first deletes
them, the second revives them, with their slots and their flows. VPP runs both lines without anything between them, and
an error in the first ends the text: nothing has changed then.

VPP reads text in its own way (``vppinfra/unformat.c``). Addresses are printed from their bytes, since ``inet_ntop``
writes forms that VPP refuses (``::10.0.0.1``, ``::ffff:10.0.0.1``). A line end begins another command, so nothing but
numbers and fixed words is ever printed. Source: VPP's ``src/plugins/lb/cli.c``.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Sequence
from typing import Final

from maglev.vpp.wire.messages import VipKey

_PROTOCOLS: Final = {6: "tcp", 17: "udp"}
MOST_WEIGHT: Final = 100
"""VPP's CLI refuses a larger weight; the binary API stores any u8."""
MOST_BYTES: Final = 256 << 10
"""Longest text of a command, bytes. VPP accepts any length; a bound keeps both ends' buffers small."""
MOST_ERROR: Final = 200
"""Characters of an answer that an error quotes."""

_GONE: Final = "lb as: lb_vip_find_index error -6"
_NO_ADDRESS: Final = "lb as: No AS address provided"


def can_name(vip: VipKey) -> bool:
    """Whether the CLI has words for this VIP: it knows TCP and UDP, and any protocol where any port is meant."""
    return vip.port == 0 or vip.protocol in _PROTOCOLS


def address_words(address: bytes) -> str:
    """4 or 16 bytes in the forms that VPP reads: a dotted quad, or eight groups of hexadecimal digits."""
    if len(address) == 4:
        return "{}.{}.{}.{}".format(*address)
    if len(address) != 16:
        raise ValueError(f"an address has 4 or 16 bytes, not {len(address)}")
    return ":".join([f"{address[at] << 8 | address[at + 1]:x}" for at in range(0, 16, 2)])


def vip_words(vip: VipKey) -> str:
    """The words that name a VIP. Raises ValueError where ``can_name`` is False."""
    if not can_name(vip):
        raise ValueError(f"VPP's CLI has no word for protocol {vip.protocol}")
    prefix = f"{address_words(vip.address)}/{vip.prefix_length}"
    return prefix if vip.port == 0 else f"{prefix} protocol {_PROTOCOLS[vip.protocol]} port {vip.port}"


def delete_line(vip: VipKey, addresses: Sequence[bytes], *, flush: bool = False) -> str:
    """Delete ASes. VPP does nothing if it does not have one of them."""
    return _line(vip, addresses, "del flush" if flush else "del")


def weight_line(vip: VipKey, addresses: Sequence[bytes], weight: int) -> str:
    """Add ASes, or revive deleted ones, with a weight of 0..100. Raises ValueError for any other weight."""
    if not 0 <= weight <= MOST_WEIGHT:
        raise ValueError(f"VPP's CLI has weights of 0..{MOST_WEIGHT}, not {weight}")
    return _line(vip, addresses, f"weight {weight}")


def pair(vip: VipKey, addresses: Sequence[bytes], weight: int, *, flush: bool = False) -> str:
    """Set the weight of live ASes: two lines, to be sent in one message."""
    return f"{delete_line(vip, addresses, flush=flush)}\n{weight_line(vip, addresses, weight)}"


def _line(vip: VipKey, addresses: Sequence[bytes], what: str) -> str:
    if not addresses:
        raise ValueError("a line names at least one AS")
    return f"lb as {vip_words(vip)} {' '.join([address_words(address) for address in addresses])} {what}"


def most_addresses(vip: VipKey, addresses: Collection[bytes]) -> int:
    """How many of these addresses a pair may name at least, within ``MOST_BYTES``."""
    longest = max((40 if len(address) == 16 else 16 for address in addresses), default=16)
    fixed = len("lb as  weight 100\n") + len(vip_words(vip))
    return (MOST_BYTES // 2 - fixed) // longest


def probe(vip: VipKey) -> str:
    """A command that changes nothing, and by whose answer VPP's CLI is recognised: a weight without an AS."""
    return f"lb as {vip_words(vip)} weight 0"


class Kind(enum.Enum):
    """The meaning of an answer to ``probe``."""

    SAME = "this CLI behaves as expected"
    OTHER = "this CLI behaves otherwise, or has no such command"
    GONE = "VPP does not have the VIP"


def read_probe(retval: int, text: str) -> Kind:
    """The meaning of an answer to ``probe``."""
    answer = text.removesuffix("\n")
    if retval == -1 and answer == _NO_ADDRESS:
        return Kind.SAME
    return Kind.GONE if retval == -1 and answer == _GONE else Kind.OTHER


def error_in(retval: int, text: str) -> str:
    """The error in an answer to commands, in words; empty if VPP did all of them.

    A command that was carried out prints nothing, so any text is an error, whatever the return value.
    """
    if retval == 0 and not text:
        return ""
    words = " ".join(text.split())
    return f"{words[:MOST_ERROR] or 'no text'} ({retval})"
