"""VPP's command line, as far as it changes many ASes at once: is it the one that is known here, and what does it cost?

VPP promises nothing about its CLI. So a *probe* precedes the first command on a connection: a command that changes
nothing, and whose answer must be the known one. Any other answer ends the use of commands on this connection, and
single calls do the work. The probe writes one line of VPP's log, as every command does, so the time of its answer tells
how long VPP takes for such a line: without a syslog daemon, longer than for the rebuild of a small table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from maglev.base import logs
from maglev.base.clock import Clock
from maglev.vpp.planning.cost import PER_LINE_NS
from maglev.vpp.wire import commands
from maglev.vpp.wire.client import VppClient
from maglev.vpp.wire.commands import Kind
from maglev.vpp.wire.messages import ProtocolError, VipKey, pack_cli, unpack_cli_reply
from maglev.vpp.wire.transport import Reply, Request

log = logs.get(__name__)

T = TypeVar("T")

FACTOR_LEAST, FACTOR_MOST = 1 / 64, 4.0
SHARE_DOWN, SHARE_UP = 0.3, 0.05
"""Weights of a measurement below and above the estimate. One above it may be a delay on this side, and counts less."""
MEANINGFUL_NS = 1_000_000
"""If the estimate is below this, a long wait for replies is due to the socket rather than to the work."""
LINE_LEAST, LINE_MOST = 10_000.0, 2_000_000.0
"""Bounds of what a line of VPP's log costs it, nanoseconds."""
SOCKET_NS = 100_000
"""The wait for the answer to a call that costs VPP nothing."""


def blended(value: float, measured: float) -> float:
    """An estimate moved towards a measurement of it."""
    return value + (SHARE_UP if measured > value else SHARE_DOWN) * (measured - value)


class LineMeter:
    """The cost of commands on this VPP against the formula, by measured answer times.

    ``factor``: for the part that grows with tables, weights and lists. ``per_line``: nanoseconds of each line besides,
    nearly all of it for VPP's log. A measurement moves the one that made up most of its estimate.
    """

    def __init__(self) -> None:
        self.factor = 1.0
        self.per_line = PER_LINE_NS

    def probed(self, took_ns: int) -> None:
        """A command that only writes a line of the log was answered after that time."""
        self.per_line = min(LINE_MOST, max(LINE_LEAST, float(took_ns - SOCKET_NS)))

    def measured(self, cost_ns: int, lines: int, took_ns: int) -> None:
        """Commands of so many lines, estimated at ``cost_ns``, were answered after that time."""
        fixed = min(lines * self.per_line, float(cost_ns))
        grown = cost_ns - fixed
        if grown > fixed:
            if took_ns > cost_ns and cost_ns < MEANINGFUL_NS:
                return
            target = self.factor * max(0.0, took_ns - fixed) / grown
            self.factor = min(FACTOR_MOST, max(FACTOR_LEAST, blended(self.factor, target)))
        elif lines:
            target = (took_ns - SOCKET_NS - grown) / lines
            self.per_line = min(LINE_MOST, max(LINE_LEAST, blended(self.per_line, target)))


class CommandLine:
    """The command line of the VPP at the other end. Owned by the executor: one plan is under way at a time."""

    def __init__(self, client: VppClient, clock: Clock, meter: LineMeter) -> None:
        self._client = client
        self._clock = clock
        self._meter = meter
        self._known: tuple[int, Kind] | None = None  # on which connection, and what the probe said

    @property
    def usable(self) -> bool:
        """Whether commands may be planned: nothing speaks against it on this connection."""
        return self._known is None or self._known[0] != self._client.connects or self._known[1] is Kind.SAME

    async def recognised(self, vip: VipKey) -> bool:
        """Whether commands about this VIP may be sent; asks VPP before the first one on a connection.

        False also if VPP does not have the VIP: that says nothing of its command line.
        """
        connects = self._client.connects
        if self._known is not None and self._known[0] == connects:
            return self._known[1] is Kind.SAME
        began = self._clock.monotonic_ns()
        (reply,) = await self._client.send([Request("cli_inband", pack_cli(commands.probe(vip)))])
        took = self._clock.monotonic_ns() - began
        kind = self._read(reply, commands.read_probe)
        if kind is Kind.GONE:
            return False
        self._client.still_connected(connects)
        self._known = (connects, kind)
        if kind is Kind.SAME:
            self._meter.probed(took)
            return True
        log.error(
            "vpp-commands-unknown",
            "VPP's command line does not answer as expected: servers change by single calls, which stall VPP longer",
        )
        return False

    def error_in(self, reply: Reply) -> str:
        """The error in the answer to commands, in words; empty if VPP did all of them. Raises ProtocolError."""
        return self._read(reply, commands.error_in)

    def _read(self, reply: Reply, understand: Callable[[int, str], T]) -> T:
        try:
            return understand(*unpack_cli_reply(reply.payload))
        except ProtocolError as error:
            self._client.drop(f"VPP sent nonsense: {error}")
            raise
