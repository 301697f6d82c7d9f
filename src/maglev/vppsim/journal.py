"""The calls that the stand-in received, in order: tests read them or wait for them, and a log keeps them on disk."""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TextIO

from maglev.vpp.wire.messages import Prefix, VipKey


class Entry(NamedTuple):
    """One call."""

    time: float  # seconds since the start of the simulated VPP
    client: str  # from its handshake
    message: str
    values: dict[str, Any]
    retval: int  # 0 for dumps

    def json(self) -> str:
        """One line of JSON."""
        return json.dumps(
            {
                "time": round(self.time, 6),
                "client": self.client,
                "call": self.message,
                "args": {name: plain(value) for name, value in self.values.items()},
                "retval": self.retval,
            }
        )


def plain(value: Any) -> Any:
    """A value of a message as JSON has it: addresses and prefixes as text."""
    if isinstance(value, Prefix | VipKey):
        return str(value)
    if isinstance(value, bytes):
        return str(ipaddress.ip_address(value)) if len(value) in (4, 16) else value.hex()
    if isinstance(value, tuple):
        return [plain(one) for one in value]
    return value


Predicate = Callable[[Entry], bool]


class Journal:
    """The last ``size`` calls; ``counts`` holds all of them by message name."""

    def __init__(self, size: int = 100_000, log: TextIO | None = None) -> None:
        self._entries: deque[Entry] = deque(maxlen=size)
        self._log = log
        self._waiting: list[tuple[Predicate, asyncio.Future[Entry]]] = []
        self.counts: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: Entry) -> None:
        """Record a call, and settle the futures that wait for it."""
        self._entries.append(entry)
        self.counts[entry.message] += 1
        if self._log is not None:
            print(entry.json(), file=self._log)
        if self._waiting:
            self._waiting = [(wanted, future) for wanted, future in self._waiting if not _wake(wanted, future, entry)]

    def calls(self, *messages: str) -> list[Entry]:
        """The entries of these messages, oldest first."""
        return [entry for entry in self._entries if entry.message in messages]

    def writes(self) -> list[Entry]:
        """The entries that change VPP."""
        return [entry for entry in self._entries if _is_write(entry)]

    def clear(self) -> None:
        """Forget the entries; the counts stay."""
        self._entries.clear()

    def next(self, wanted: Predicate) -> asyncio.Future[Entry]:
        """A future for the next call for which ``wanted`` holds. It has no deadline: the caller sets one."""
        future: asyncio.Future[Entry] = asyncio.get_running_loop().create_future()
        self._waiting.append((wanted, future))
        return future


_READS = ("control_ping", "get_api_json", "lb_conf_get", "ip_route_lookup", "memclnt_keepalive")


def _is_write(entry: Entry) -> bool:
    if entry.message == "cli_inband":
        return not entry.values["cmd"].lstrip().startswith(("sh", "sim "))
    if entry.message in _READS or entry.message.startswith(("show_", "sockclnt_")):
        return False
    return not entry.message.endswith("_dump")


def _wake(wanted: Predicate, future: asyncio.Future[Entry], entry: Entry) -> bool:
    # True if the future is settled, so that the journal can forget it.
    if future.done():
        return True
    if not wanted(entry):
        return False
    future.set_result(entry)
    return True
