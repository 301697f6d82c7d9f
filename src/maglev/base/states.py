"""The words of a backend's life: its states, the codes of its checks, and the probe types.

``State`` and ``Code`` have the numbers that the native engine uses (``ext/health.pxd``); their names are what
operators read. The codes are HAProxy's vocabulary (configuration manual, "check status").
"""

from __future__ import annotations

import enum


class State(enum.IntEnum):
    """State of a backend. The first three are the engine's; the others are the operator's or the configuration's."""

    UNKNOWN = 0
    UP = 1
    DOWN = 2
    PAUSED = 3
    DISABLED = 4
    REMOVED = 5

    def __str__(self) -> str:
        return self._name_.lower()


class FrontendState(enum.IntEnum):
    """State of a frontend, worked out from its backends (``maglev.judgement.weights``)."""

    UNKNOWN = 0
    UP = 1
    DOWN = 2
    PANIC = 3

    def __str__(self) -> str:
        return self._name_.lower()


class Code(enum.IntEnum):
    """Why a backend changed its state, or how its last probe ended."""

    NONE = 0
    L3OK = 1
    L3TOUT = 2
    L3ERR = 3
    L4OK = 4
    L4TOUT = 5
    L4CON = 6
    L6OK = 7
    L6TOUT = 8
    L6RSP = 9
    L7OK = 10
    L7TOUT = 11
    L7STS = 12
    L7RSP = 13
    STATIC = 14
    ENABLED = 15
    DISABLED = 16
    PAUSED = 17
    RESUMED = 18
    REMOVED = 19
    ADDED = 20

    def __str__(self) -> str:
        if self is Code.NONE:
            return ""
        return self._name_ if self < Code.STATIC else self._name_.lower()


class CheckType(enum.IntEnum):
    """The probe kinds by number, by which the engine counts durations. All else of a kind is in ``maglev.kinds``."""

    ICMP = 0
    TCP = 1
    HTTP = 2
    HTTPS = 3

    def __str__(self) -> str:
        return self._name_.lower()
