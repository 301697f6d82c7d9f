"""Drift: differences between the mirror of VPP and a reading. Pure.

The mirror is the last reading, changed by every call that VPP has acknowledged since. So a difference is a change that
another controller, or a person at VPP's CLI, has made.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from maglev.vpp.planning.model import Actual, ActualAs, ActualVip, address_order
from maglev.vpp.wire.messages import LbConf, VipKey, address_text

KINDS = ("as_weight", "as_missing", "as_foreign", "vip_missing", "vip_foreign", "vip_changed", "conf")
"""The ``kind`` of ``maglev_vpp_drift_total``."""


class Drift(NamedTuple):
    """One difference: its kind, and the new state instead of the old one, in words."""

    kind: str
    words: str


def ases_drift(known: Mapping[bytes, ActualAs], read: Mapping[bytes, ActualAs]) -> list[Drift]:
    """The differences among the ASes of one VIP, in numeric order."""
    differing = [address for address, have in known.items() if (now := read.get(address)) is None or now[0] != have[0]]
    if not differing and len(known) == len(read):
        return []  # the case of nearly every VIP in a full sync
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
    """The differences in the nature of one VIP."""
    pairs = [("encap", known.encap, read.encap), ("table length", known.length, read.length)]
    if known.sticky is not None and read.sticky is not None:
        pairs.append(("src-ip-sticky", known.sticky, read.sticky))
    return [Drift("vip_changed", f"its {what} is {new} instead of {old}") for what, old, new in pairs if old != new]


def conf_drift(known: LbConf | None, read: LbConf) -> list[Drift]:
    """The difference in the global settings."""
    return [] if known is None or known == read else [Drift("conf", "the global settings are others")]


def drift(
    known: Actual, read: Actual, *, uncertain: Collection[VipKey | None], restarted: bool
) -> Iterator[tuple[VipKey, list[Drift]]]:
    """The differences in all of VPP, VIP by VIP, most of them empty: a generator, so that it can be done in slices. The
    caller compares the global settings.

    ``uncertain``: VIPs with calls that may or may not have been done. ``restarted``: VPP was restarted since, so it
    is expected to be empty.
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
        if restarted:
            found = [one for one in found if one.kind not in ("vip_missing", "as_missing")]
        yield key, found
