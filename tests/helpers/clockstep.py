"""The wall clock of another process, set by a test: the library of ``clockstep.c``, preloaded there."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

DAY = 86_400.0
YEAR = 365.25 * DAY


class ClockStep:
    """``environment``: what such a process needs of it."""

    def __init__(self, folder: Path) -> None:
        library = folder / "clockstep.so"
        source = Path(__file__).with_suffix(".c")
        words = ["cc", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
        subprocess.run(words, check=True)
        self._file = folder / "clockstep"
        self._seconds, self._synchronised = 0.0, 0
        self._file.write_bytes(bytes(16))
        preload = " ".join([os.environ.get("LD_PRELOAD", ""), str(library)]).strip()
        self.environment = {"LD_PRELOAD": preload, "CLOCKSTEP": str(self._file)}

    def set(self, seconds: float) -> None:
        """Set the clock: so many seconds are added to the true time."""
        self._seconds = seconds
        self._write()

    def synchronised(self, yes: bool | None) -> None:
        """The kernel's word about its clock; None: the true one."""
        self._synchronised = 0 if yes is None else 1 if yes else 2
        self._write()

    def _write(self) -> None:
        with self._file.open("r+b") as file:
            file.write(struct.pack("=qq", round(self._seconds * 1e9), self._synchronised))
