"""Telling systemd how the service is: sd_notify(3) without a library.

One datagram on the socket that ``NOTIFY_SOCKET`` names; nothing happens when there is none. Never blocks: a message
that systemd does not take at once is lost and counted.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping


class Notifier:
    """The service manager's ear. ``lost`` counts messages that it did not take."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self.lost = 0
        self._socket: socket.socket | None = None
        path = environ.get("NOTIFY_SOCKET", "")
        if path.startswith(("/", "@")):
            # systemd writes a leading @ for the abstract namespace, the kernel wants a zero byte.
            self._path = "\0" + path[1:] if path.startswith("@") else path
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._watchdog_us = 0
        if environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
            text = environ.get("WATCHDOG_USEC", "")
            self._watchdog_us = int(text) if text.isascii() and text.isdigit() else 0

    @property
    def watchdog_seconds(self) -> float:
        """How often to call ``alive``: half of what the service manager allows; 0: it does not watch."""
        return self._watchdog_us / 2e6 if self._socket is not None else 0.0

    def _send(self, *lines: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto("\n".join(lines).encode(), self._path)
        except OSError:
            self.lost += 1

    def ready(self, status: str = "") -> None:
        """The service is up, or a reload is over."""
        self._send("READY=1", *([f"STATUS={_line(status)}"] if status else []))

    def reloading(self) -> None:
        """A reload begins; ``Type=notify-reload`` wants the time of it (CLOCK_MONOTONIC, microseconds)."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The service is on its way out."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        self._send(f"STATUS={_line(text)}")

    def alive(self) -> None:
        """Keep the watchdog quiet."""
        self._send("WATCHDOG=1")

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _line(text: str) -> str:
    return text.replace("\n", " ")
