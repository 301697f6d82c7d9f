"""The limits of a plan: a snapshot of the settings, and of the daemon's earlier decisions about VIPs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from types import MappingProxyType

from maglev.config.model import LbConfig, Prune
from maglev.vpp.planning.cost import CostModel
from maglev.vpp.wire.commands import can_name
from maglev.vpp.wire.messages import VipKey


@dataclass(frozen=True, slots=True)
class Policy:
    """The permissions of a plan, besides setting weights. A snapshot: every field is immutable.

    So a caller may keep a policy over an ``await``.

    The state of VPP, the debts and the lost weights change with every call to VPP. They are not part of the policy:
    ``diff`` takes them as arguments and reads them at the moment of the call.

    ``full``: global conf, deletion and recreation of VIPs are allowed. ``prune_rest``: VIPs that are not configured are
    removed wherever they are, not only on the addresses of the wanted VIPs. ``force``: settings that lose flows are
    written too, and frozen VIPs are created again.

    ``configured``: VIPs of the configuration, also those that the plan is not about. ``owned``: VIPs that this daemon
    has created, or has had configured before, and that are configured no longer. ``frozen``: VIPs whose recreation was
    given up. ``stuck``: VIPs that VPP has refused to delete since the last full sync began. ``waiting``: VIPs that are
    not deleted before an operator has agreed. ``recorded``: VIPs whose weights are in the state file, so that their
    recreation may begin; None: that is not asked, as nothing is carried out.

    ``multiples``: the scales of VIPs that keep the one found in VPP. ``first``: VIPs whose steps come before all
    others, with their places: VIPs whose steps were deferred by the budget of an earlier batch.

    ``commands``: many ASes of a VIP may change by commands of VPP's CLI, except in the VIPs of ``singly``.
    """

    full: bool = True
    prune_rest: bool = True
    force: bool = False
    lb: LbConfig = field(default_factory=LbConfig)
    configured: frozenset[VipKey] = frozenset()
    owned: frozenset[VipKey] = frozenset()
    frozen: frozenset[VipKey] = frozenset()
    stuck: frozenset[VipKey] = frozenset()
    waiting: frozenset[VipKey] = frozenset()
    recorded: frozenset[VipKey] | None = None
    multiples: Mapping[VipKey, Fraction] = field(default_factory=dict)
    first: Mapping[VipKey, int] = field(default_factory=dict)
    cost: CostModel = field(default_factory=CostModel)
    commands: bool = False
    singly: frozenset[VipKey] = frozenset()

    def __post_init__(self) -> None:
        # The caller may change its mappings later, so the policy keeps read-only copies.
        object.__setattr__(self, "multiples", MappingProxyType(dict(self.multiples)))
        object.__setattr__(self, "first", MappingProxyType(dict(self.first)))

    def place(self, key: VipKey) -> int:
        """Where the steps of a VIP come; at one place, VIPs that serve nothing come first, then in numeric order."""
        return self.first.get(key, len(self.first))

    def may_command(self, key: VipKey) -> bool:
        """Whether commands may change ASes of this VIP."""
        return self.commands and key not in self.singly and can_name(key)

    def may_remove(self, key: VipKey) -> bool:
        """Whether a VIP that is not configured may be removed now."""
        return key not in self.waiting and self.prunes(key)

    def waits(self, key: VipKey) -> bool:
        """Whether a VIP that is not configured would be removed if an operator agreed."""
        return key in self.waiting and self.prunes(key)

    def prunes(self, key: VipKey) -> bool:
        """Whether ``prune`` allows a VIP that is not configured to be removed."""
        return self.lb.prune is Prune.ALL or (self.lb.prune is Prune.OWNED and key in self.owned)
