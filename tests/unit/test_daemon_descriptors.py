"""The log's advice when probes have to wait for a descriptor."""

from __future__ import annotations

import pytest

from maglev.daemon.descriptors import QUIET_NS, DescriptorWatch, open_files
from tests.helpers.checker import FakeClock


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return found


def test_a_lack_of_descriptors_is_told_once_in_a_while_with_what_helps(caplog: pytest.LogCaptureFixture) -> None:
    clock, stats = FakeClock(), {"late_fd": 0}
    watch = DescriptorWatch(lambda: stats, clock, lambda: 1024)
    watch.look()
    assert messages(caplog) == []
    stats["late_fd"] = 7
    watch.look()
    (line,) = messages(caplog)
    assert line.startswith("7 probes")
    assert "LimitNOFILE of the unit (now 1024)" in line
    stats["late_fd"] = 9
    watch.look()
    assert messages(caplog) == []
    clock.now += QUIET_NS
    watch.look()
    assert messages(caplog)[0].startswith("2 probes")
    clock.now += QUIET_NS
    watch.look()
    assert messages(caplog) == []
    assert open_files() > 0
