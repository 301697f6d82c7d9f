"""TCP: the port answers a SYN, completes the handshake, or also does a TLS handshake."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from maglev.base.states import CheckType
from maglev.kinds.kind import Kind, Presence
from maglev.kinds.params import Params, block, param
from maglev.kinds.tls import TlsParams
from maglev.schema.problems import Path, Report
from maglev.schema.types import Choice


class TcpMode(enum.Enum):
    """How a TCP check finds out whether the port listens."""

    SYN = "syn"
    CONNECT = "connect"


@dataclass(frozen=True, slots=True)
class TcpParams(Params):
    """Parameters of a TCP check; ``tls`` implies ``CONNECT``."""

    mode: TcpMode = param(
        Choice({mode.value: mode for mode in TcpMode}),
        "`syn` is half-open, by raw socket: it tests that the port listens, not that the server accepts. "
        "`connect` completes the handshake.",
        default=TcpMode.SYN,
        example="connect",
    )
    tls: TlsParams | None = block(TlsParams, switch="Do a TLS handshake too. Implies connect.")

    def to_api(self) -> dict[str, object]:
        """The API has ``connect`` in place of ``mode``."""
        return {"connect": self.mode is TcpMode.CONNECT or self.tls is not None, "tls": self.tls}

    @classmethod
    def from_api(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``to_api``."""
        return cls(TcpMode.CONNECT if values["connect"] else TcpMode.SYN, values["tls"])


class TcpKind(Kind[TcpParams]):
    """``type: tcp``, where TLS implies a mode."""

    def build(self, values: Mapping[str, Any], path: Path, report: Report) -> TcpParams:
        """As for any kind; with TLS the mode is ``CONNECT``, and a file that says otherwise is wrong."""
        if values.get("tls", False):
            if values.get("mode") is TcpMode.SYN:
                report.semantic((path, "mode"), "a TLS handshake needs mode connect, which tls: true implies")
            values = {**values, "mode": TcpMode.CONNECT}
        return super().build(values, path, report)

    def written(self, params: TcpParams) -> dict[str, str]:
        """As for any kind; without the mode where TLS implies it."""
        found = super().written(params)
        if params.tls is not None:
            del found["mode"]
        return found


TCP = TcpKind(
    check_type=CheckType.TCP,
    params=TcpParams,
    message="tcp",
    blocks={"tls": Presence.SWITCHED},
    notes="`server-name`, `insecure-skip-verify` and `ca-file` need `tls: true`.",
    counters={
        "sent_syn": "SYN probes sent.",
        "sent_connect": "Connections begun for probes that connect and do not speak HTTP.",
    },
)
