"""A VPP that goes away or answers wrongly ends one piece of work, and never a task."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TypeVar

from maglev.base import logs
from maglev.base.errors import Unavailable
from maglev.vpp.state.mirror import Mirror
from maglev.vpp.sync.counters import Counters
from maglev.vpp.wire.client import Refused, VppClient
from maglev.vpp.wire.messages import ProtocolError

log = logs.get(__name__)

T = TypeVar("T")


class Guard:
    """Runs pieces of work with VPP."""

    def __init__(self, client: VppClient, mirror: Mirror, counters: Counters) -> None:
        self._client = client
        self._mirror = mirror
        self._counters = counters

    async def whole(self, work: Coroutine[object, object, None]) -> bool:
        """Do a piece of a task's work; returns whether all of it was done. If not, the log says why."""
        try:
            await work
        except Unavailable as error:
            self._counters.failed_syncs += 1
            log.warning("vpp-sync-broken", f"a sync ended early: {error}")
            return False
        except (ProtocolError, Refused) as error:
            self._counters.failed_syncs += 1
            self._distrust(error)
            log.error("vpp-sync-broken", f"a sync ended early, the connection is made anew: {error}")
            return False
        return True

    async def asked(self, work: Coroutine[object, object, T]) -> T:
        """Do a piece of work that a caller waits for. Raises ``Unavailable`` where VPP answers wrongly."""
        try:
            return await work
        except (ProtocolError, Refused) as error:
            self._distrust(error)
            raise Unavailable(str(error)) from error

    def _distrust(self, error: Exception) -> None:
        """The connection stands and the answer was wrong: the mirror of this VPP cannot be relied on."""
        self._mirror.forget()
        self._client.drop(f"a sync failed: {error}")
