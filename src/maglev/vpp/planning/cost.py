"""The cost of calls: an estimate, in nanoseconds, of the time that VPP's main thread spends on each. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

PER_LINE_NS = 40_000.0
"""One line of VPP's log, with a working syslog: each command of its CLI writes one. It is 0.5 to 1.2 ms without."""


@dataclass(frozen=True, slots=True)
class CostModel:
    """Estimated time that VPP's main thread spends on a call, and that its workers stand still. Nanoseconds.

    Each weight, add or delete call rebuilds the new-flow table of its VIP; a flush walks the sticky table of every
    worker; a read of a VIP's ASes counts its buckets. The constants were measured on a real VPP; ``factor`` is the
    calibration against measured reply times.

    A line of a command that changes many ASes rebuilds the table once. Its formula was fitted on its own, and
    ``line_factor`` and ``per_line`` are calibrated on their own: the two ways differ in what VPP does besides.
    """

    per_bucket: float = 17.0
    per_weight: float = 125.0
    per_sticky_bucket: float = 7.0
    per_call: float = 5_000.0
    per_read_bucket: float = 30.0
    per_read_as: float = 2_500.0
    per_printed_line: float = 1_800.0
    sticky_buckets: int = 1024
    workers: int = 1
    factor: float = 1.0
    line_factor: float = 1.0
    per_line: float = PER_LINE_NS

    def rebuild(self, length: int, total: int) -> int:
        """A call on a VIP with a table of ``length`` buckets, its weights adding up to ``total`` afterwards."""
        return int(self.factor * (self.per_call + self.per_bucket * length + self.per_weight * total))

    def flush(self) -> int:
        """The walk through the sticky tables that a flush adds."""
        return int(self.factor * self.per_sticky_bucket * self.sticky_buckets * max(1, self.workers))

    def read(self, length: int, ases: int) -> int:
        """A read of the ASes of a VIP with a table of ``length`` buckets."""
        return int(self.factor * (self.per_call + self.per_read_bucket * length + self.per_read_as * ases))

    def print_all(self, vips: int, ases: int) -> int:
        """``show lb vips verbose``. Printing depends on the machine, not on how fast it rebuilds: no factor."""
        return int(self.per_call + self.per_printed_line * (8 * vips + ases))

    def plain(self) -> int:
        """A call that rebuilds nothing."""
        return int(self.factor * self.per_call)

    def line(self, length: int, total: int, listed: int, ases: int, *, new: int = 0) -> int:
        """A line about ``listed`` ASes of a VIP with ``ases`` ASes; the weights add up to ``total`` afterwards.

        ``new``: ASes of the list that VPP does not have. Each address is searched for among all ASes of the VIP.
        """
        rebuild = 12.0 * length + 4.3 * total * math.log2(max(2, total))
        work = 10_000.0 + rebuild + 200.0 * listed + 0.7 * listed * ases + 8_000.0 * new
        return int(self.line_factor * work + self.per_line)
