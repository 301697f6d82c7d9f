"""Addresses that no server, VIP or source can have, and those that look like mistakes.

Linux and VPP take several of them without an error, and the trouble shows elsewhere: a probe of ``::ffff:192.0.2.1``
is an IPv4 packet from a socket that was made for IPv6. Addresses for which an operator may have a reason are in doubt
only. Host numbers of all zeros or ones (``192.0.2.0``, ``192.0.2.255``) are neither: the length of their prefix is not
known here, and in a /31, a /32 or a /23 they are ordinary hosts. IPv4 link-local addresses need no zone and pass too.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from maglev.schema.problems import quote

IPAddress = IPv4Address | IPv6Address

_LOOPBACK6 = IPv6Address("::1")
_MAPPED = 0xFFFF  # ::ffff:0:0/96 (RFC 4291, 2.5.5.2), without the last 32 bits
_NAT64 = 0x0064_FF9B << 64  # 64:ff9b::/96 (RFC 6052)


def may_be_refused(packed: bytes) -> bool:
    """Whether ``refusal`` has to be asked for the address of these bytes: a cheap test for 100,000 good ones."""
    first = packed[0]
    return first >= 224 or not first if len(packed) == 4 else first >= 0xFE or not first


def refusal(address: IPAddress, written: str) -> str | None:
    """Why ``address`` cannot be used anywhere in a file that has it as ``written``; None if it can."""
    above, low = int(address) >> 32, int(address) & 0xFFFF_FFFF
    # ::/96 held IPv4 addresses once ("IPv4-compatible", RFC 4291, 2.5.5.1).
    if isinstance(address, IPv6Address) and (above == _MAPPED or (above == 0 and low >> 24)):
        return f"{quote(written)} is an IPv4 address in the form of IPv6; write it as {IPv4Address(low)}"
    if address.is_multicast:
        return f"{address} is a multicast address"
    if address.is_unspecified:
        return f"{address} is the unspecified address"
    if isinstance(address, IPv4Address):
        return f"{address} is the broadcast address" if low == 0xFFFF_FFFF else None
    if address.is_link_local:
        return f"{address} is link-local: it belongs to one interface, which cannot be given here"
    return f"{address} is of the reserved prefix ::/96" if above == 0 and low != 1 else None


def taken_for_ipv4(address: IPAddress) -> bool:
    """Whether VPP takes this IPv6 address for an IPv4 one. Only ``::1`` gets here: ``refusal`` has the others.

    VPP holds both families in sixteen bytes, and calls an address IPv4 whose first twelve are zero. It refuses such a
    server beside an IPv6 encapsulation, for ever (error -97), and would forward such a VIP as an IPv4 one.
    """
    return address == _LOOPBACK6


def doubt(address: IPAddress) -> str | None:
    """Why ``address`` looks like a mistake, as the end of a sentence that begins with it.

    None if it does not, or if it has been refused.
    """
    number = int(address)
    if isinstance(address, IPv4Address):
        first = number >> 24
        if not first and number:
            return "is of 0.0.0.0/8, which is reserved; many hosts drop it"
        if first >= 240 and number != 0xFFFF_FFFF:
            return "is of 240.0.0.0/4, which is reserved; many hosts and routers drop it"
        return None
    if number >> 112 == 0x2002:
        return "is of 2002::/16 (6to4, deprecated); many networks have no route to it"
    if number >> 32 == _NAT64:
        return f"is of 64:ff9b::/96; NAT64 carries no GRE to {IPv4Address(number & 0xFFFF_FFFF)}"
    return None
