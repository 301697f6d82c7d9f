"""Plans and results of a sync, as they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PlanStep:
    """One call to VPP.

    ``kind``: conf | vip_add | vip_remove | as_add | as_remove | as_weight | vip_flush | as_commands. ``vip`` is prefix,
    protocol and port; weights are in units. ``stall_ns`` is the estimated time of VPP's main thread. ``str()`` is the
    step in words; of commands, which change many ASes of a VIP, it is their text.
    """

    kind: str
    frontend: str
    vip: str
    backend: str
    address: str
    old_weight: int
    new_weight: int
    flush: bool
    stall_ns: int
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class AsForecast:
    """Buckets of one AS before and after a plan."""

    address: str
    backend: str
    buckets_before: int
    buckets_after: int


@dataclass(frozen=True, slots=True)
class VipForecast:
    """Effects of a plan on one VIP. ``moved_share``: 0..1, of the buckets of ASes whose weight does not change."""

    frontend: str
    vip: str
    moved_share: float
    stall_ns: int
    ases: Sequence[AsForecast]


@dataclass(frozen=True, slots=True)
class PlanReport:
    """A plan, in the order of its calls. ``notes``: what is left alone and why.

    ``waiting_vips``: VIPs that are not deleted before an operator agrees.
    """

    steps: Sequence[PlanStep]
    forecasts: Sequence[VipForecast]
    stall_ns: int
    notes: Sequence[str]
    waiting_vips: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class SyncReport:
    """Result of a sync. ``failures``: the calls that VPP refused, in words."""

    plan: PlanReport
    failures: Sequence[str]
