"""The ways in which the stand-in misbehaves when told to. Nothing here does I/O; the server asks before each step."""

from __future__ import annotations

from dataclasses import dataclass, field

FOREVER = -1
"""As a number of times: until it is taken back."""


@dataclass(slots=True)
class Refusal:
    """Refuse calls of one message: ``skip`` are let through first, then ``times`` are refused."""

    message: str
    retval: int
    skip: int = 0
    times: int = FOREVER


@dataclass(slots=True)
class Faults:
    """What is wrong at present. Counts go down as faults are used up; ``FOREVER`` stays."""

    delays: dict[str, float] = field(default_factory=dict)
    """Seconds that VPP's main thread is busy with each call of a message; ``*`` is every message."""
    refusals: list[Refusal] = field(default_factory=list)
    cut_received: int | None = None
    """Drop the connection after so many more bytes of requests; what was complete by then is done and answered."""
    cut_sent: int | None = None
    """Drop the connection after so many more bytes of replies."""
    mute: int = 0
    """Calls that are done and not answered; of a dump that is the ping behind it."""
    wrong_context: int = 0
    """Replies that carry a context which nobody asked with."""
    unknown_message: int = 0
    """Replies with a message in front that is in no table."""
    truncate: int = 0
    """Replies that end a byte too early, in a frame that says so."""
    garble: int = 0
    """Replies whose frame announces more than any message has."""

    def delay(self, message: str) -> float:
        """Seconds that this call takes."""
        return self.delays.get(message, self.delays.get("*", 0.0))

    def refuse(self, message: str) -> int | None:
        """The return value with which to refuse this call, or None."""
        for refusal in self.refusals:
            if refusal.message not in (message, "*"):
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
        """Whether the fault of that name strikes now; counts it."""
        left: int = getattr(self, name)
        if left > 0:
            setattr(self, name, left - 1)
        return left != 0

    def clear(self) -> None:
        """Behave."""
        fresh = Faults()
        for name in self.__slots__:
            setattr(self, name, getattr(fresh, name))
