"""Capabilities of the process (capabilities(7)) that the configured health checks need."""

from __future__ import annotations

from pathlib import Path

from maglev._probe import missing_capabilities
from maglev.base import logs
from maglev.checker.reload import used_checks
from maglev.config.model import Config
from maglev.daemon.exits import CannotStart

log = logs.get(__name__)

CAP_NET_RAW = "CAP_NET_RAW"
_NET_RAW = 13  # its number


def capability_help(capability: str) -> str:
    """How the daemon gets a capability."""
    return (
        f"give it to the program (setcap {capability.lower()}+ep on the interpreter of its environment), "
        f"or run it by systemd with AmbientCapabilities={capability}"
    )


def has_capability(number: int) -> bool:
    """Whether this process has a capability in effect, by its number (capabilities(7))."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    for line in text.splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False


async def require_capabilities(config: Config, first: bool) -> None:
    """Look at a configuration before it takes effect: may this process do its checks?

    At the start (``first``) checks without CAP_NET_RAW raise ``CannotStart``. A reload takes effect nevertheless,
    since the other checks can go on: the lack is logged, and the backends show that they cannot be probed.
    """
    lacking: dict[str, list[str]] = {}
    for name, spec in (await used_checks(config)).items():
        for capability in missing_capabilities(spec):
            lacking.setdefault(capability, []).append(name)
    for capability, names in lacking.items():
        shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
        text = f"no {capability}, which health check {shown} needs: {capability_help(capability)}"
        if capability == CAP_NET_RAW and first:
            raise CannotStart(text)
        log.error("capability-missing", text, capability=capability, healthchecks=len(names))
    if first and CAP_NET_RAW not in lacking and not has_capability(_NET_RAW):
        log.warning(
            "capability-missing",
            f"no {CAP_NET_RAW}: icmp and half-open tcp checks cannot be done; {capability_help(CAP_NET_RAW)}",
            capability=CAP_NET_RAW,
        )
