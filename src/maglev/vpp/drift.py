"""What somebody else has changed in VPP: what was known of it, set beside what was just read. Pure.

What is known is what was read last, moved on by every call that VPP has acknowledged since; so whatever reads
differently, nobody here has written.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from maglev.vpp.messages import LbConf, VipKey, address_text
from maglev.vpp.model import Actual, ActualAs, ActualVip, address_order

KINDS = ("as_weight", "as_missing", "as_foreign", "vip_missing", "vip_foreign", "vip_changed", "conf")
"""The ``kind`` of ``maglev_vpp_drift_total``."""


class Drift(NamedTuple):
    """One difference: its kind, and what is there instead of what, in words."""

    kind: str
    words: str


def ases_drift(known: Mapping[bytes, ActualAs], read: Mapping[bytes, ActualAs]) -> list[Drift]:
    """What differs among the ASes of one VIP, in numeric order."""
    differing = [address for address, have in known.items() if (now := read.get(address)) is None or now[0] != have[0]]
    if not differing and len(known) == len(read):
        return []  # what nearly every VIP of a full sync is found like
    differing += read.keys() - known.keys()
    found: list[Drift] = []
    for address in sorted(differing, key=address_order):
        had, have = known.get(address), read.get(address)
        text = address_text(address)
        if have is None:
            found.append(Drift("as_missing", f"{text} is gone"))
        elif had is None:
            found.append(Drift("as_foreign", f"{text} has come with weight {have.weight}"))
        else:
            found.append(Drift("as_weight", f"{text} has weight {have.weight} instead of {had.weight}"))
    return found


def vip_drift(known: ActualVip, read: ActualVip) -> list[Drift]:
    """What differs in the nature of one VIP."""
    pairs = [("encap", known.encap, read.encap), ("table length", known.length, read.length)]
    if known.sticky is not None and read.sticky is not None:
        pairs.append(("src-ip-sticky", known.sticky, read.sticky))
    return [Drift("vip_changed", f"its {what} is {new} instead of {old}") for what, old, new in pairs if old != new]


def conf_drift(known: LbConf | None, read: LbConf) -> list[Drift]:
    """What differs in the global settings."""
    return [] if known is None or known == read else [Drift("conf", "the global settings are others")]


def drift(
    known: Actual, read: Actual, *, uncertain: Collection[VipKey | None], anew: bool
) -> Iterator[tuple[VipKey, list[Drift]]]:
    """What differs in all of VPP, VIP by VIP, of nearly all nothing: a generator, so that it can be done in slices. The
    global settings are the caller's.

    ``uncertain``: VIPs with calls that may or may not have been done. ``anew``: VPP has been restarted since, so
    that nothing of ours is missed in it.
    """
    for key in sorted(known.vips.keys() | read.vips.keys(), key=lambda key: key.sort_key):
        had, have = known.vips.get(key), read.vips.get(key)
        if key in uncertain:
            continue
        if have is None:
            found = [Drift("vip_missing", "it is gone")]
        elif had is None:
            found = [Drift("vip_foreign", "it has come")]
        else:
            found = vip_drift(had, have) + ases_drift(had.ases, have.ases)
        if anew:
            found = [one for one in found if one.kind not in ("vip_missing", "as_missing")]
        yield key, found
