"""A wrong clock says nothing about a certificate, and a certificate that has expired in truth is one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from maglev.base.states import State
from tests.helpers.apart import Apart, Report, Target, apart
from tests.helpers.clockstep import DAY, YEAR, ClockStep
from tests.helpers.engine import MS
from tests.helpers.tls import Certificate, Server, Talking, server

QUICK = dict.fromkeys(("interval", "fast_interval", "down_interval", "timeout"), 200 * MS) | {"fall": 2}
EXPIRED = "not probed: clock: certificate has expired by this host's clock, which may be wrong"
EARLY = "not probed: clock: certificate is not yet valid by this host's clock, which may be wrong"
LONG = (-1.0, 30 * 365.0)
SHORT = (-1.0, 1.0)


@pytest.fixture(scope="module")
def authority() -> Certificate:
    return Certificate(["authority of long life"], ca=True, days=LONG)


@pytest.fixture
def clock(tmp_path: Path) -> ClockStep:
    return ClockStep(tmp_path)


@contextlib.contextmanager
def probed(
    clock: ClockStep, ca: Path, servers: list[Server], *, kind: str = "https", state: State = State.UP, **options: Any
) -> Iterator[Apart]:
    """An engine with the set clock that probes these servers."""
    targets = [Target(kind, "127.0.0.1", one.port, str(ca), state=state, changes=QUICK) for one in servers]
    with apart(targets, environment={**os.environ, **clock.environment}, options=options) as one:
        yield one


def doubted(one: Apart, more: int = 2) -> Report:
    """Wait for further dates that are not believed."""
    before = one.ask().stats["dates_doubted"]
    return one.until(lambda report: report.stats["dates_doubted"] >= before + more)


def down(one: Apart) -> tuple[str, str]:
    """Wait for the last transition; its code and detail."""
    report = one.until(lambda report: len(report.moves) > 0)
    _, code, detail = report.moves[-1]
    return code, detail


def chain(dated: str, folder: Path, days: tuple[float, float]) -> tuple[Path, Certificate]:
    """Authorities, and a certificate two steps below them, of which ``dated`` is valid for those days."""

    def span(name: str) -> tuple[float, float]:
        return days if name == dated else LONG

    root = Certificate(["a root"], ca=True, days=span("root"))
    middle = Certificate(["an intermediate"], root, ca=True, days=span("intermediate"))
    return root.write(folder / "ca.pem"), Certificate(["127.0.0.1"], middle, days=span("leaf"))


@pytest.mark.parametrize(
    ("dated", "kind"), [("leaf", "https"), ("leaf", "tls"), ("intermediate", "https"), ("root", "https")]
)
def test_no_clock_that_is_set_takes_a_good_server_down(tmp_path: Path, clock: ClockStep, dated: str, kind: str) -> None:
    ca, leaf = chain(dated, tmp_path, SHORT)
    with server(Talking(leaf, tmp_path)) as web, probed(clock, ca, [web], kind=kind) as one:
        one.all_probed_again(2)
        for seconds, reason in ((20 * YEAR, EXPIRED), (-2 * DAY, EARLY), (100 * YEAR, EXPIRED)):
            clock.set(seconds)
            report = doubted(one)
            assert (report.blocked, report.moves, report.failures) == ([reason], [], [{}])
        clock.set(0)
        report = one.all_probed_again(2)
        assert (report.blocked, report.moves, report.failures) == ([""], [], [{}])


def test_a_certificate_that_expires_is_down_although_the_clock_is_wrong(
    tmp_path: Path, authority: Certificate, clock: ClockStep
) -> None:
    ca = authority.write(tmp_path / "ca.pem")
    brief = Certificate(["127.0.0.1"], authority, days=(-1, 4 / 86400))
    with server(Talking(brief, tmp_path)) as web, probed(clock, ca, [web]) as one:
        one.all_probed_again(2)
        clock.set(20 * YEAR)
        assert doubted(one, 2).moves == []
        assert down(one) == ("L6RSP", "certificate has expired")


@pytest.mark.parametrize(
    ("other", "detail"),
    [
        ("of a stranger", "certificate signed by unknown authority"),
        ("of another name", "certificate is not valid for 127.0.0.1"),
        ("expired before", "certificate has expired"),
    ],
)
def test_what_is_wrong_by_any_clock_is_down_although_the_clock_is_wrong(
    tmp_path: Path, authority: Certificate, clock: ClockStep, other: str, detail: str
) -> None:
    ca = authority.write(tmp_path / "ca.pem")
    made = {
        "of a stranger": lambda: Certificate(["127.0.0.1"], Certificate(["a stranger"], ca=True), days=SHORT),
        "of another name": lambda: Certificate(["192.0.2.1"], authority, days=SHORT),
        "expired before": lambda: Certificate(["127.0.0.1"], authority, days=(-2, -1)),
    }
    talk = Talking(Certificate(["127.0.0.1"], authority, days=SHORT), tmp_path)
    with server(talk) as web, probed(clock, ca, [web]) as one:
        one.all_probed_again(2)
        clock.set(20 * YEAR)
        doubted(one)
        talk.show(made[other]())
        assert down(one) == ("L6RSP", detail)


def test_a_long_lived_certificate_does_not_make_a_wrong_clock_believed_for_others(
    tmp_path: Path, authority: Certificate, clock: ClockStep
) -> None:
    ca = authority.write(tmp_path / "ca.pem")
    long = Talking(Certificate(["127.0.0.1"], authority, days=LONG), tmp_path)
    short = Talking(Certificate(["127.0.0.1"], authority, days=SHORT), tmp_path)
    with server(long) as first, server(short) as second, probed(clock, ca, [first, second]) as one:
        before = one.all_probed_again(2)
        clock.set(20 * YEAR)
        one.until(lambda report: report.probes[0] >= before.probes[0] + 5)
        report = doubted(one, 5)
        assert (report.moves, report.failures) == ([], [{}, {}])
        # Nor would it after a restart: what is kept for that still is the right time.
        assert abs(report.anchor - before.anchor) < 3600e9


@pytest.mark.parametrize("state", [State.UP, State.UNKNOWN])
@pytest.mark.parametrize("synchronised", [True, False])
def test_without_a_verification_an_unsynchronised_clock_takes_no_traffic_away(
    tmp_path: Path, authority: Certificate, clock: ClockStep, synchronised: bool, state: State
) -> None:
    ca = authority.write(tmp_path / "ca.pem")
    clock.set(20 * YEAR)
    clock.synchronised(synchronised)
    talk = Talking(Certificate(["127.0.0.1"], authority, days=SHORT), tmp_path)
    with server(talk) as web, probed(clock, ca, [web], state=state) as one:
        if state is State.UP and not synchronised:
            assert doubted(one).moves == []
            clock.synchronised(True)
        assert down(one) == ("L6RSP", "certificate has expired")
        assert bool(one.ask().stats["dates_unsure"]) is (state is State.UNKNOWN and not synchronised)


def test_an_unsynchronised_clock_is_not_doubted_for_ever(
    tmp_path: Path, authority: Certificate, clock: ClockStep
) -> None:
    ca = authority.write(tmp_path / "ca.pem")
    clock.set(20 * YEAR)
    clock.synchronised(False)
    talk = Talking(Certificate(["127.0.0.1"], authority, days=SHORT), tmp_path)
    with server(talk) as web, probed(clock, ca, [web], clock_grace=2.0) as one:
        assert doubted(one, 2).moves == []
        assert down(one) == ("L6RSP", "certificate has expired")
        assert one.ask().stats["dates_unsure"] >= 2


def test_a_clock_that_was_wrong_at_the_start_is_not_held_against_the_right_one(
    tmp_path: Path, clock: ClockStep
) -> None:
    """It starts two days late, where an old certificate still is good; the right time comes by NTP."""
    ca = tmp_path / "ca.pem"
    clock.set(-2 * DAY)
    clock.synchronised(False)
    authority = Certificate(["an old authority"], ca=True, days=(-30, 30))
    authority.write(ca)
    old = Certificate(["127.0.0.1"], authority, days=(-4, -1))
    with server(Talking(old, tmp_path)) as web, probed(clock, ca, [web]) as one:
        assert one.all_probed_again(2).failures == [{}]
        clock.set(0)
        doubted(one)
        clock.synchronised(True)
        assert down(one) == ("L6RSP", "certificate has expired")


def test_a_clock_from_before_this_program_is_doubted_from_the_start_and_up_to_its_end(
    tmp_path: Path, authority: Certificate, clock: ClockStep
) -> None:
    ca = authority.write(tmp_path / "ca.pem")
    clock.set(-56 * YEAR)
    clock.synchronised(True)
    talk = Talking(Certificate(["127.0.0.1"], authority, days=SHORT), tmp_path)
    with server(talk) as web, probed(clock, ca, [web], state=State.UNKNOWN, clock_grace=0) as one:
        report = doubted(one)
        assert (report.blocked, report.moves) == ([EARLY], [])
        clock.set(0)
        report = one.until(lambda report: len(report.moves) > 0)
        assert report.moves[0][1] == "L7OK"


def test_another_run_goes_on_with_the_time_that_was_believed(
    tmp_path: Path, authority: Certificate, clock: ClockStep
) -> None:
    ca = authority.write(tmp_path / "ca.pem")
    clock.synchronised(True)
    talk = Talking(Certificate(["127.0.0.1"], authority, days=SHORT), tmp_path)
    with server(talk) as web:
        with probed(clock, ca, [web]) as one:
            anchor = one.all_probed_again(2).anchor
        clock.set(20 * YEAR)
        with probed(clock, ca, [web], clock_anchor=anchor, clock_grace=0) as one:
            assert doubted(one).moves == []
        with probed(clock, ca, [web], clock_grace=0) as one:
            assert down(one) == ("L6RSP", "certificate has expired")
