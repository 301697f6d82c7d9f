"""The VPP under test: the socket from ``VPP_SOCKET``, and the refusal to touch one that is in use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from maglev.vppsim import inspect


def pytest_sessionstart(session: pytest.Session) -> None:
    """Ends the run with status 2 for a VPP that cannot be reached, or that has VIPs and nobody said that is fine."""
    socket = os.environ.get("VPP_SOCKET", "")
    if not socket:
        pytest.exit("VPP_SOCKET names no API socket: make test-vpp VPP_SOCKET=/run/vpp/api.sock", 2)
    try:
        with inspect.Client(Path(socket), "vpp-maglev-acceptance") as client:
            vips = client.call("cli_inband", cmd="show lb vips")["reply"]
    except (OSError, KeyError) as error:
        pytest.exit(f"no VPP with the messages of the lb plugin answers on {socket}: {error}", 2)
    used = [line for line in vips.splitlines() if line.strip() and " removed" not in line]
    if used and os.environ.get("VPP_MAY_HAVE_VIPS") != "1":
        pytest.exit(
            f"the VPP at {socket} has {len(used)} VIPs. The tests leave them alone, but calls hold its workers up; set"
            " VPP_MAY_HAVE_VIPS=1 if that may be",
            2,
        )


@pytest.fixture
def socket() -> Path:
    """The API socket of the VPP under test."""
    return Path(os.environ["VPP_SOCKET"])
