"""Steps of the wall clock: what is logged of them, and what a restart knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from maglev.base.clock import Moments
from maglev.config.model import SECOND
from maglev.daemon.wallclock import SECTION, WallClock
from tests.helpers.checker import FakeClock

YEAR = 365 * 86400 * SECOND
ANCHOR = 1_700_000_000 * SECOND | 1


class Kept(dict[str, object]):
    """The state file."""

    def set(self, section: str, value: object) -> None:
        self[section] = value


class Engine:
    def __init__(self) -> None:
        self.clock_anchor = 0
        self.steps = 0
        self.step = 0

    def stats(self) -> dict[str, int]:
        return {"clock_steps": self.steps, "clock_step_ns": self.step}


class Rig:
    def __init__(self, folder: Path) -> None:
        self.clock, self.engine, self.kept = FakeClock(), Engine(), Kept()
        self.boot_id = folder / "boot_id"
        self.boot_id.write_text("first\n")
        self.moved = 0

    def start(self) -> WallClock:
        return WallClock(self.kept, self.clock, boottime=self.clock.monotonic_ns, boot_id=self.boot_id)

    def look(self, wall_clock: WallClock) -> None:
        wall_clock.look(self.engine, self._moved)

    def _moved(self) -> None:
        self.moved += 1

    def set(self, step: int) -> None:
        self.clock.epoch += step
        self.engine.steps += 1
        self.engine.step = step


def test_a_step_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(tmp_path)
    wall_clock = rig.start()
    rig.look(wall_clock)
    assert caplog.messages == []
    before = rig.moved
    rig.set(-YEAR)
    rig.look(wall_clock)
    rig.look(wall_clock)
    assert caplog.messages == [
        "the wall clock was set by -31536000.000 s; no backend, duration or interval depends on it"
    ]
    assert rig.moved == before + 1


@pytest.mark.parametrize("step", [0, YEAR, -YEAR])
def test_a_restart_knows_how_far_the_clock_was_set_and_what_the_engine_believed(tmp_path: Path, step: int) -> None:
    rig = Rig(tmp_path)
    rig.engine.clock_anchor = ANCHOR
    rig.look(rig.start())
    rig.clock.advance(60)
    rig.clock.epoch += step
    again = rig.start()
    assert (again.moved_ns, again.kept_anchor) == (step, ANCHOR)


def test_a_step_that_was_noticed_is_not_applied_again_after_a_restart(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    wall_clock = rig.start()
    rig.look(wall_clock)
    rig.set(YEAR)
    rig.look(wall_clock)
    assert rig.start().moved_ns == 0


def test_after_a_boot_nothing_is_known(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.engine.clock_anchor = ANCHOR
    rig.look(rig.start())
    rig.boot_id.write_text("second\n")
    again = rig.start()
    assert (again.moved_ns, again.kept_anchor) == (0, 0)


@pytest.mark.parametrize(
    "value", [7, {}, {"boot_id": "first"}, {"boot_id": "first", "offset_ns": 1, "anchor": 1 << 70}]
)
def test_what_is_not_understood_counts_for_nothing(tmp_path: Path, value: object) -> None:
    rig = Rig(tmp_path)
    rig.kept.set(SECTION, value)
    again = rig.start()
    assert (again.moved_ns, again.kept_anchor) == (0, 0)


def test_little_is_written(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    wall_clock = rig.start()
    rig.engine.clock_anchor = ANCHOR
    rig.look(wall_clock)
    first = rig.kept[SECTION]
    rig.engine.clock_anchor = ANCHOR + 100
    rig.clock.epoch += 100
    rig.look(wall_clock)
    assert rig.kept[SECTION] is first


def test_moments_follow_the_wall_clock_and_are_the_same_number_otherwise() -> None:
    clock = FakeClock()
    moments = Moments(clock)
    mark = moments.mark(clock.time_ns())
    shown = moments.shown(mark)
    clock.advance(5)
    assert moments.shown(mark) == shown == clock.time_ns() - 5 * SECOND
    clock.epoch += YEAR
    assert moments.shown(mark) == clock.time_ns() - 5 * SECOND
    clock.epoch -= 2 * YEAR
    assert moments.shown(mark) == clock.time_ns() - 5 * SECOND
    assert moments.mark(clock.time_ns() + YEAR) == clock.monotonic_ns()
