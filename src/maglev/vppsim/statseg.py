"""VPP's stats segment: counters in shared memory, whose descriptor is handed out over a socket.

The layout is that of VPP's ``src/vlib/stats/shared.h``, version 2: a header, and vectors that point at each other by
addresses of VPP's own address space. Readers copy what they want and then look whether the epoch moved meanwhile.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import mmap
import os
import socket
import struct
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from maglev.vppsim.model import COUNTERS, Model

SIZE: Final = 32 << 20
"""Of the segment, bytes; VPP's default. Untouched pages take no memory."""
INTERVAL: Final = 1.0
"""Seconds between two updates."""

_BASE: Final = 0x7F00_0000_0000  # where VPP would have it mapped; readers only subtract it
_VERSION: Final = 2
_HEADER: Final = struct.Struct("=QQQQQ")  # version, base, epoch, in progress, directory
_EPOCH: Final = struct.Struct("=QQ")
_EPOCH_AT: Final = 16
_VECTOR: Final = struct.Struct("=II")  # length, and the rest of VPP's vector header
_ENTRY: Final = struct.Struct("=I4xQ128s")
_ARENA: Final = 4096


class Kind(IntEnum):
    """``stat_directory_type_t``, as far as it is used here."""

    SCALAR = 1
    SIMPLE = 2
    COMBINED = 3
    GAUGE = 9


class Entry(NamedTuple):
    """One name of the directory: a number, or rows of counters, one row a thread.

    A row of combined counters alternates packets and bytes.
    """

    name: str
    kind: Kind
    value: int | Sequence[Sequence[int]]


class SegmentFull(Exception):
    """The entries need more room than the segment has."""


class Segment:
    """The shared memory. ``publish`` is the only thing that writes to it."""

    def __init__(self, size: int = SIZE) -> None:
        self.fd = os.memfd_create("stats", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)
        self._memory = mmap.mmap(self.fd, size)
        self._size = size
        self._epoch = 0

    def close(self) -> None:
        """Give the memory back; readers keep their own mapping, with the last values in it."""
        self._memory.close()
        os.close(self.fd)

    def publish(self, entries: Sequence[Entry]) -> None:
        """Replace the whole content under a new epoch. Raises SegmentFull and leaves the old one."""
        image = bytearray()

        def vector(length: int, data: bytes) -> int:
            # Vectors are aligned to 64 bytes, their header stands in front.
            image.extend(bytes(-(len(image) + _VECTOR.size) % 64))
            image.extend(_VECTOR.pack(length, 0))
            address = _BASE + _ARENA + len(image)
            image.extend(data)
            return address

        directory = b""
        for name, kind, value in entries:
            if not isinstance(value, int):
                width = 2 if kind is Kind.COMBINED else 1
                rows = [vector(len(row) // width, struct.pack(f"={len(row)}Q", *row)) for row in value]
                value = vector(len(rows), struct.pack(f"={len(rows)}Q", *rows))
            directory += _ENTRY.pack(kind, value, name.encode())
        address = vector(len(entries), directory)
        # Readers refuse a vector that ends where the segment ends.
        if _ARENA + len(image) >= self._size:
            raise SegmentFull(f"{len(image)} bytes of counters in a segment of {self._size}")
        self._epoch += 1
        _EPOCH.pack_into(self._memory, _EPOCH_AT, self._epoch, 1)
        self._memory[_ARENA : _ARENA + len(image)] = bytes(image)
        _HEADER.pack_into(self._memory, 0, _VERSION, _BASE, self._epoch, 1, address)
        _EPOCH.pack_into(self._memory, _EPOCH_AT, self._epoch, 0)


def entries_of(model: Model, *, started: int, heartbeat: int, workers: int) -> list[Entry]:
    """The directory for a model. ``started`` is seconds since the epoch; ``workers`` counts VPP's worker threads."""
    found = [
        Entry("/sys/heartbeat", Kind.SCALAR, heartbeat),
        Entry("/sys/last_stats_clear", Kind.SCALAR, 0),
        Entry("/sys/boottime", Kind.SCALAR, started),
        Entry("/sys/num_worker_threads", Kind.GAUGE, workers),
        Entry("/sys/last_update", Kind.SCALAR, heartbeat),
        Entry("/net/route/to", Kind.COMBINED, _spread(model.route_counters(), workers)),
    ]
    if model.vips.capacity > 1:  # the plugin's counters appear with the first VIP
        for number, name in enumerate(COUNTERS):
            row = [model.vips[index].counters[number] for index in range(model.vips.capacity)]
            found.append(Entry(name, Kind.SIMPLE, _spread(row, workers)))
    return found


def _spread(row: list[int], workers: int) -> list[list[int]]:
    # Row 0 belongs to the main thread. Without workers it counts the packets; else the workers share them.
    if not workers:
        return [row]
    shares = [[value // workers for value in row] for _ in range(workers)]
    for index, value in enumerate(row):
        shares[index % workers][index] += value % workers
    return [[0] * len(row), *shares]


class StatsSocket:
    """Hands the descriptor of a segment to whoever connects, and keeps the segment up to date."""

    def __init__(self, path: str | os.PathLike[str], entries: Callable[[int], list[Entry]]) -> None:
        self.path = os.fspath(path)
        self._entries = entries
        self._segment: Segment | None = None
        self._socket: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._heartbeat = 0

    def start(self) -> None:
        """Listen. Raises OSError."""
        self._segment = Segment()
        self._heartbeat = 0
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            listener.setblocking(False)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
            listener.bind(self.path)
            listener.listen()
        except OSError:
            listener.close()
            raise
        self._socket = listener
        asyncio.get_running_loop().add_reader(listener, self._accept)
        self._tick()

    def stop(self) -> None:
        """Stop listening and remove the socket."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def refresh(self) -> None:
        """Bring the counters up to date at once."""
        if self._segment is not None:
            self._heartbeat += 1
            self._segment.publish(self._entries(self._heartbeat))

    def _tick(self) -> None:
        # The heartbeat follows the loop's time, so the segment stays alive in tests that stop the stand-in's clock.
        self.refresh()
        self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._tick)

    def _accept(self) -> None:
        if self._socket is None or self._segment is None:
            return
        try:
            reader, _ = self._socket.accept()
        except OSError:
            return  # gone before we came
        with reader:
            self.refresh()
            descriptor = array.array("i", [self._segment.fd])
            with contextlib.suppress(OSError):
                reader.sendmsg([b""], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptor)])
