"""Logs: forms, levels, escaping, and what watchers get of them."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import threading
import time
from collections.abc import Iterator

import pytest

from maglev.base import logs
from maglev.base.events import Bus, Event, LogEvent
from maglev.base.states import Code, State
from maglev.vpp.planning.plan import Op, Step
from maglev.vpp.wire.messages import VipKey


@pytest.fixture
def quiet_root() -> Iterator[None]:
    """Leave the logging of the test process as it was."""
    root, ours = logging.getLogger(), logging.getLogger(logs.ROOT)
    before = (list(root.handlers), list(ours.handlers), ours.level, ours.propagate)
    yield
    root.handlers[:], ours.handlers[:] = before[0], before[1]
    ours.setLevel(before[2])
    ours.propagate = before[3]


def written(form: str, level: str = "debug") -> tuple[logs.LogControl, io.StringIO]:
    stream = io.StringIO()
    control = logs.LogControl(level=level, form=form, stream=stream)
    control.start()
    return control, stream


@pytest.mark.usefixtures("quiet_root")
def test_text_line_has_time_level_message_event_and_fields() -> None:
    control, stream = written("text")
    logs.get("part").info("backend-transition", "backend a is up", backend="a", detail='say "hi"', n=3)
    control.end()
    (line,) = stream.getvalue().splitlines()
    time, rest = line.split(" ", 1)
    assert time.endswith("Z")
    assert rest == r'info    backend a is up event=backend-transition backend=a detail="say \"hi\"" n=3'


@pytest.mark.usefixtures("quiet_root")
def test_json_line_is_an_object_and_no_field_hides_another() -> None:
    control, stream = written("json")
    logs.get("part").warning("some-event", "words", level="field", big=1 << 80, odd="\ud800")
    control.end()
    value = json.loads(stream.getvalue())
    assert value["level"] == "warning"
    assert value["event"] == "some-event"
    assert value["logger"] == "maglev.part"
    assert value["level_"] == "field"
    assert value["big"] == str(1 << 80)


def test_one_of_something_is_told_without_an_s() -> None:
    assert [logs.counted(many, "change") for many in (0, 1, 2)] == ["0 changes", "1 change", "2 changes"]


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.usefixtures("quiet_root")
def test_states_and_codes_are_words_in_both_forms(form: str) -> None:
    control, stream = written(form)
    logs.get("part").info("backend-transition", "words", to=State.UP, code=Code.L7OK, n=3)
    control.end()
    line = stream.getvalue()
    if form == "json":
        value = json.loads(line)
        assert (value["to"], value["code"], value["n"]) == ("up", "L7OK", 3)
    else:
        assert line.endswith(" to=up code=L7OK n=3\n")


@pytest.mark.parametrize("form", logs.FORMATS)
@pytest.mark.usefixtures("quiet_root")
def test_messages_and_fields_may_be_values_that_become_words_where_they_are_written(form: str) -> None:
    control, stream = written(form)
    vip = VipKey.parse("192.0.2.1/32", 6, 80)
    logs.get("part").info("vpp-change", Step(Op.SET_WEIGHT, vip, address=b"\x0a\0\0\1", weight=5), vip=vip)
    control.end()
    words = "lb_as_set_weight 192.0.2.1/32 tcp 80 as 10.0.0.1 weight 0 -> 5"
    if form == "json":
        value = json.loads(stream.getvalue())
        assert (value["message"], value["vip"]) == (words, "192.0.2.1/32 tcp 80")
    else:
        assert stream.getvalue().endswith(f'{words} event=vpp-change vip="192.0.2.1/32 tcp 80"\n')


@pytest.mark.usefixtures("quiet_root")
def test_text_from_the_network_cannot_forge_a_line_or_drive_a_terminal() -> None:
    control, stream = written("text")
    logs.get("part").info("x", "a\n2026 error forged\x1b[2J", detail="\u202eb\r\nc")
    control.end()
    (line,) = stream.getvalue().splitlines()
    assert "\x1b" not in line
    assert "\u202e" not in line
    assert r"\x1b[2J" in line
    assert r"\u202eb\r\nc" in line


# ESC, CSI and OSC as one C1 character each, DEL, text turned around, a line separator, and one beyond 16 bits.
HOSTILE = "\x1b]0;title\x07 \x9b2J \x9d0;title\x9c \x7f \u202egnp.exe \u2028 \U000e0041"


@pytest.mark.usefixtures("quiet_root")
@pytest.mark.parametrize("form", logs.FORMATS)
def test_no_form_of_the_log_lets_a_servers_answer_act_upon_a_terminal(form: str) -> None:
    control, stream = written(form)
    logs.get("part").info("backend-transition", f"words {HOSTILE}", detail=HOSTILE, other=[HOSTILE])
    try:
        raise ValueError(HOSTILE)
    except ValueError as error:
        logs.get("part").exception("task-failed", HOSTILE, error)
    logging.getLogger("grpc").warning("from elsewhere %s", HOSTILE)
    control.end()
    lines = stream.getvalue().split("\n")
    assert all(line.isprintable() for line in lines)
    if form == "json":
        values = [json.loads(line) for line in lines if line]
        assert [value["message"] for value in values] == [f"words {HOSTILE}", HOSTILE, f"from elsewhere {HOSTILE}"]
        assert values[0]["detail"] == HOSTILE


@pytest.mark.usefixtures("quiet_root")
@pytest.mark.parametrize("form", logs.FORMATS)
def test_traceback_is_written(form: str) -> None:
    control, stream = written(form)
    try:
        raise ValueError("broken\x1b")
    except ValueError as error:
        logs.get("part").exception("task-failed", "it broke", error)
    control.end()
    assert "Traceback" in stream.getvalue()
    assert "ValueError: broken" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


@pytest.mark.usefixtures("quiet_root")
def test_level_is_obeyed_and_can_be_changed() -> None:
    control, stream = written("text", "info")
    log = logs.get("part")
    log.debug("one", "not written")
    control.level = "debug"
    log.debug("two", "written")
    control.level = "error"
    log.warning("three", "not written")
    control.end()
    assert [line.split("event=")[1] for line in stream.getvalue().splitlines()] == ["two"]
    assert control.level == "error"


@pytest.mark.parametrize("level", ["", "loud", "critical", "10"])
def test_unknown_level_is_refused(level: str) -> None:
    with pytest.raises(ValueError, match="not one of"):
        logs.LogControl(level=level)


@pytest.mark.usefixtures("quiet_root")
async def test_watchers_get_their_level_whatever_the_daemons_own_is() -> None:
    control, stream = written("text", "error")
    bus = Bus()
    seen: list[Event] = []
    bus.listen(seen.append)
    control.tap(bus, asyncio.get_running_loop())
    log = logs.get("part")
    log.debug("nobody", "watches")
    end_info = control.watch("info")
    log.debug("too-low", "for the watcher")
    log.info("told", "words", n=3)
    end_debug = control.watch("debug")
    log.debug("told-too", "words")
    end_debug()
    end_debug()
    log.debug("over", "no watcher for debug any more")
    end_info()
    log.info("over", "no watcher any more")
    control.end()
    events = [e for e in seen if isinstance(e, LogEvent)]
    assert [(e.level, e.event) for e in events] == [("info", "told"), ("debug", "told-too")]
    assert events[0].fields == {"n": "3"}
    assert stream.getvalue() == ""


@pytest.mark.usefixtures("quiet_root")
async def test_a_record_without_words_reaches_no_watcher_and_harms_nobody() -> None:
    control, _ = written("text")
    bus = Bus()
    seen: list[Event] = []
    bus.listen(seen.append)
    control.tap(bus, asyncio.get_running_loop())
    control.watch("info")
    logs.get("part").info("bad", "words", value=Unspeakable())
    logs.get("part").info("good", "words")
    control.end(10)
    assert [event.event for event in seen if isinstance(event, LogEvent)] == ["good"]
    assert bus.failures == 1
    assert control.lost == 1


@pytest.mark.usefixtures("quiet_root")
async def test_a_listener_that_logs_does_not_call_itself_for_ever() -> None:
    control, _ = written("text")
    bus = Bus()
    log = logs.get("part")
    seen: list[Event] = []

    def listener(event: Event) -> None:
        seen.append(event)
        log.info("echo", "again")

    bus.listen(listener)
    control.tap(bus, asyncio.get_running_loop())
    control.watch("debug")
    log.info("one", "words")
    control.end()
    assert len(seen) == 1


@pytest.mark.usefixtures("quiet_root")
async def test_records_of_other_threads_reach_the_bus_on_the_loop() -> None:
    control, _ = written("text")
    bus = Bus()
    told = asyncio.Event()
    threads: list[int] = []

    def listener(event: Event) -> None:
        threads.append(threading.get_ident())
        told.set()

    bus.listen(listener)
    control.tap(bus, asyncio.get_running_loop())
    control.watch("info")
    await asyncio.to_thread(logs.get("part").info, "from-a-thread", "words")
    await asyncio.wait_for(told.wait(), 5)
    control.end()
    assert threads == [threading.get_ident()]


@pytest.mark.usefixtures("quiet_root")
async def test_a_record_of_another_thread_is_not_lost_while_one_is_published() -> None:
    control, _ = written("text")
    bus = Bus()
    control.tap(bus, asyncio.get_running_loop())
    control.watch("info")
    seen: list[str] = []

    def listener(event: Event) -> None:
        assert isinstance(event, LogEvent)
        seen.append(event.event)
        if event.event == "first":
            other = threading.Thread(target=logs.get("part").info, args=("second", "words"))
            other.start()
            other.join()

    bus.listen(listener)
    logs.get("part").info("first", "words")
    await asyncio.sleep(0)
    control.end()
    assert seen == ["first", "second"]


class Stalled(io.StringIO):
    """A stream whose reader does not read until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.go_on = threading.Event()

    def write(self, text: str) -> int:
        self.entered.set()
        self.go_on.wait(10)
        return super().write(text)


@pytest.mark.usefixtures("quiet_root")
def test_a_stalled_reader_never_holds_the_daemon_and_losses_are_counted() -> None:
    stream = Stalled()
    control = logs.LogControl(stream=stream)
    control.start(bound=10)
    log = logs.get("part")
    log.info("first", "taken by the writer")
    assert stream.entered.wait(10)
    for n in range(25):
        log.info("more", "words", n=n)
    assert control.lost == 15
    stream.go_on.set()
    control.end(10)
    assert len(stream.getvalue().splitlines()) == 11


@pytest.mark.usefixtures("quiet_root")
def test_lines_stay_in_order_when_so_many_wait_that_who_logs_makes_them_too() -> None:
    stream = Stalled()
    control = logs.LogControl(stream=stream)
    control.start(bound=1000)
    log = logs.get("part")
    log.info("first", "taken by the writer")
    assert stream.entered.wait(10)
    for n in range(1000):
        log.info("more", "words", n=n)
    stream.go_on.set()
    control.end(10)
    assert control.lost == 0
    numbers = [line.rpartition("n=")[2] for line in stream.getvalue().splitlines()[1:]]
    assert numbers == [str(n) for n in range(1000)]


class Unspeakable:
    """A value that cannot be written."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.usefixtures("quiet_root")
def test_a_record_that_cannot_be_written_costs_only_itself() -> None:
    stream = Stalled()
    control = logs.LogControl(stream=stream)
    control.start()
    log = logs.get("part")
    stream.go_on.set()
    log.info("bad", "words", value=Unspeakable())
    deadline = time.monotonic() + 10
    while not control.lost and time.monotonic() < deadline:
        time.sleep(0.001)
    log.info("good", "words")
    assert stream.entered.wait(10)
    assert control.lost == 1
    control.end(10)
    assert stream.getvalue().endswith("words event=good\n")
