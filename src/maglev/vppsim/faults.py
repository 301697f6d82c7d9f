"""The faults that tests and operators inject into the stand-in. No I/O: the server asks before each step."""

from __future__ import annotations

from dataclasses import dataclass, field

FOREVER = -1
"""As a number of times: until it is cleared."""

LINE = "lb as"
"""As a message: a line of that CLI command, which ``cli_inband`` carries, perhaps with others."""


@dataclass(slots=True)
class Refusal:
    """Refuse calls of one message: the first ``skip`` pass, the next ``times`` are refused."""

    message: str
    retval: int
    skip: int = 0
    times: int = FOREVER


@dataclass(slots=True)
class Faults:
    """The active faults. A count decreases with every use; ``FOREVER`` stays."""

    delays: dict[str, float] = field(default_factory=dict)
    """Message name -> seconds for which each call keeps VPP's main thread busy; ``*`` is every message."""
    refusals: list[Refusal] = field(default_factory=list)
    cut_received: int | None = None
    """Drop the connection after so many more bytes of requests. Complete requests are handled and answered first."""
    cut_sent: int | None = None
    """Drop the connection after so many more bytes of replies."""
    mute: int = 0
    """Calls that are executed but not answered. For a dump that is the control ping that ends it."""
    wrong_context: int = 0
    """Replies with a context that no request had."""
    unknown_message: int = 0
    """Replies that follow a message whose id is in no message table."""
    truncate: int = 0
    """Replies that lack their last byte, in a frame of matching length."""
    garble: int = 0
    """Replies whose frame header announces an absurd length."""

    def delay(self, message: str) -> float:
        """Seconds that this call takes."""
        return self.delays.get(message, self.delays.get("*", 0.0))

    def refuse_line(self) -> int | None:
        """The return value with which to refuse this line of ``lb as``, or None. No ``*`` refuses it."""
        return self.refuse(LINE, every=LINE)

    def refuse(self, message: str, *, every: str = "*") -> int | None:
        """The return value with which to refuse this call, or None. ``every``: the name of refusals of all calls."""
        for refusal in self.refusals:
            if refusal.message not in (message, every):
                continue
            if refusal.skip:
                refusal.skip -= 1
                continue
            if refusal.times == 0:
                continue
            if refusal.times > 0:
                refusal.times -= 1
            return refusal.retval
        return None

    def use(self, name: str) -> bool:
        """Use up one count of a fault. True if the fault applies to this call."""
        left: int = getattr(self, name)
        if left > 0:
            setattr(self, name, left - 1)
        return left != 0

    def clear(self) -> None:
        """Remove all faults."""
        fresh = Faults()
        for name in self.__slots__:
            setattr(self, name, getattr(fresh, name))
