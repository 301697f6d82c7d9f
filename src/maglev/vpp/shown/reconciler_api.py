"""Questions and requests to the reconciler: the one door through which the API and the metrics reach it.

All of it runs on the event loop. Properties and plain methods answer from memory; what they return may be live, so a
caller that awaits asks again. Methods with ``async`` take turns with the reconciler's own tasks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Protocol

from maglev.base.events import Event
from maglev.config.model import Config, Frontend
from maglev.judgement.weights import StateSource
from maglev.vpp.planning.cost import CostModel
from maglev.vpp.planning.desired import DesiredVip
from maglev.vpp.planning.lost import LostWeights
from maglev.vpp.planning.model import Actual
from maglev.vpp.planning.plan import FlushKey, Owed
from maglev.vpp.planning.policy import Policy
from maglev.vpp.state.configured import Use
from maglev.vpp.state.tables import Reading
from maglev.vpp.state.warmup import WarmUp
from maglev.vpp.sync.counters import Counters
from maglev.vpp.sync.executor import Pacer
from maglev.vpp.sync.flowtext import FlowText
from maglev.vpp.sync.programmer import SyncResult
from maglev.vpp.wire.messages import VipKey


class ReconcilerApi(Protocol):
    """The reconciler (``maglev.vpp.sync.reconciler.Reconciler``) as the dataplane's other rooms know it."""

    counters: Counters
    pacer: Pacer

    @property
    def warmup_state(self) -> WarmUp:
        """The warm-up."""
        ...

    @property
    def owed(self) -> Mapping[FlushKey, Owed]:
        """Flushes that VPP has not acknowledged."""
        ...

    @property
    def multiples(self) -> Mapping[VipKey, Fraction]:
        """VIPs that keep the scale in which they were found."""
        ...

    @property
    def lost(self) -> LostWeights:
        """Weights that VPP had and shows no longer."""
        ...

    @property
    def refusals(self) -> int:
        """Calls that VPP refused."""
        ...

    @property
    def mass_changes(self) -> bool:
        """Whether many ASes may change by commands of VPP's CLI."""
        ...

    @property
    def unmanaged(self) -> Collection[VipKey]:
        """VIPs in VPP that are left alone, as the last full sync found them."""
        ...

    @property
    def waiting(self) -> Collection[VipKey]:
        """VIPs that have left the configuration, and that are not deleted before an operator agrees."""
        ...

    @property
    def last_full_sync_at_ns(self) -> int:
        """When the last full sync ended, wall clock; 0: there was none."""
        ...

    @property
    def last_full_sync_changes(self) -> int:
        """How many changes it made."""
        ...

    def cost(self) -> CostModel:
        """The cost of calls on this VPP."""
        ...

    def frontend(self, name: str) -> Frontend:
        """The configured frontend of that name. Raises ``UnknownName``."""
        ...

    def released(self, name: str) -> bool:
        """Whether the warm-up permits writes to this frontend."""
        ...

    def desired(
        self, names: Iterable[str], source: StateSource | None = None, *, new: frozenset[str] = ...
    ) -> list[DesiredVip]:
        """The wanted VIPs of these frontends, as of now. ``new``: backends that ``source`` would bring or move."""
        ...

    def policy(
        self,
        *,
        full: bool,
        prune_rest: bool,
        force: bool,
        config: Config | None = ...,
        unscaled: Collection[VipKey] = ...,
        prune: bool = ...,
    ) -> Policy:
        """The freedom of a plan, now or after a reload to ``config``. ``unscaled``: VIPs that lose their scale.

        ``prune``: an operator agrees to all deletions.
        """
        ...

    def would_owe(self, events: Iterable[Event]) -> Mapping[FlushKey, Owed]:
        """The flushes that VPP would not have acknowledged if all of this happened now."""
        ...

    async def certain(self, names: Iterable[str]) -> Actual:
        """VPP as it is known, with all that is in doubt of these frontends read again. Raises ``Unavailable``."""
        ...

    async def pieces(self, names: Iterable[str], config: Config) -> list[list[str]]:
        """Frontends of ``config`` in the pieces of a full sync."""
        ...

    def uses(self, backend: str) -> Sequence[Use]:
        """The frontends of a backend, with its AS in each, in the order of the file."""
        ...

    def table(self, key: VipKey) -> Reading | None:
        """The new-flow table of a VIP as VPP showed it last; None while VPP is away, or has no such VIP."""
        ...

    async def flows(self) -> FlowText:
        """How many flows each AS has, as VPP prints it. Raises ``Unavailable``, and ``NotAllowed`` if it costs much."""
        ...

    async def refresh(self, names: Iterable[str] | None = None) -> Actual:
        """Read VPP, paced; all of it, or the VIPs of these frontends. Raises ``Unavailable``."""
        ...

    async def sync(self, name: str | None, *, force: bool, by: str, prune: bool = ...) -> SyncResult:
        """Sync one frontend, or all, for an operator; ``prune`` agrees to all deletions.

        Raises ``NotAllowed`` during the warm-up.
        """
        ...
