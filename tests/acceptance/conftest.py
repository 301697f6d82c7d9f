"""The VPP under test: the socket from ``VPP_SOCKET``, what may be done to it, and the refusal to touch one in use.

``VPP_MAY_HAVE_VIPS=1``: it may have VIPs; tests that need a VPP of their own, because they change what all VIPs share
and send packets, are left out then. ``VPP_MAY_STOP=1``: its process may be stopped for a second now and then
(SIGSTOP, SIGCONT). ``VPP_START=COMMAND``: it may be killed, and the command starts it again. Tests of what may not be
done are not collected.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from maglev.vppsim import inspect

NEEDS = {"stops_vpp": "VPP_MAY_STOP", "kills_vpp": "VPP_START"}
FREE = "needs_a_free_vpp"
"""The mark of tests that need a VPP without other VIPs."""


def pytest_configure(config: pytest.Config) -> None:
    """The marks of tests that need a leave."""
    for mark, variable in NEEDS.items():
        config.addinivalue_line("markers", f"{mark}: runs only where {variable} is set")
    config.addinivalue_line("markers", f"{FREE}: does not run where VPP_MAY_HAVE_VIPS is set")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what this VPP's owner has not allowed."""
    forbidden = {mark for mark, variable in NEEDS.items() if os.environ.get(variable, "") in ("", "0")}
    if os.environ.get("VPP_MAY_HAVE_VIPS") == "1":
        forbidden.add(FREE)
    out = [item for item in items if any(mark.name in forbidden for mark in item.iter_markers())]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]


def pytest_sessionstart(session: pytest.Session) -> None:
    """Ends the run with status 2 for a VPP that cannot be reached, or that has VIPs without leave to touch them."""
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


@pytest.fixture
def start_command() -> str:
    """The command that starts the VPP under test again."""
    return os.environ["VPP_START"]
