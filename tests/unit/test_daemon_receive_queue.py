"""The log's advice when the probes' receive queues overflow."""

from __future__ import annotations

from pathlib import Path

import pytest

from maglev.daemon.receivequeue import QUIET_NS, ReceiveQueueWatch
from tests.helpers.checker import FakeClock


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return found


@pytest.mark.parametrize(
    ("limit", "buffer", "words"),
    [
        ("212992", 425_984, "net.core.rmem_max (now 212992) to 4194304 or more"),
        ("", 425_984, "net.core.rmem_max to 4194304 or more"),
        ("4194304", 8 << 20, "short of CPU"),
        ("212992", 8 << 20, "short of CPU"),  # CAP_NET_ADMIN has got the engine its buffer
    ],
)
def test_an_overflow_is_told_once_a_minute_with_what_helps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, limit: str, buffer: int, words: str
) -> None:
    rmem_max = tmp_path / "rmem_max"
    rmem_max.write_text(limit)
    clock, stats = FakeClock(), {"rx_drops": 0, "rx_buffer": 0}
    watch = ReceiveQueueWatch(lambda: stats, clock, rmem_max)
    watch.look()
    assert messages(caplog) == []
    stats.update(rx_drops=7, rx_buffer=buffer)
    watch.look()
    (line,) = messages(caplog)
    assert line.startswith("7 packets")
    assert words in line
    stats["rx_drops"] = 9
    watch.look()
    assert messages(caplog) == []
    clock.now += QUIET_NS
    watch.look()
    (line,) = messages(caplog)
    assert line.startswith("2 packets")
    clock.now += QUIET_NS
    watch.look()
    assert messages(caplog) == []
