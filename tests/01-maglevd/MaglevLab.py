"""Keywords of the Robot suite: the installed programs, real servers and the stand-in, driven as an operator would.

What is shown is read from maglevc by regular expression; what happens is awaited on `maglevc watch events`. A keyword
that ends in ``Be`` looks once (a change by an operator is seen at once), one that says ``Become`` or ``Arrive`` waits.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Robot loads this file by its path: the project's root may not be on the module path then.
ROOT = Path(__file__).resolve().parent.parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from robot.api import logger  # noqa: E402
from robot.api.deco import keyword, library  # noqa: E402

from tests.lab.dataplane import WRITES, Call  # noqa: E402
from tests.lab.events import BackendChange, backend_change, short  # noqa: E402
from tests.lab.lab import Lab, Member, members  # noqa: E402
from tests.lab.processes import CALL_SECONDS, Answer, LabError, Watch, wait_until  # noqa: E402

EVENT_SECONDS = 15.0
"""Deadline of what takes a second on an idle machine."""

QUIET_SECONDS = 1.0
"""How long nothing may happen, five probes' worth: the one thing that cannot be awaited."""


def check(holds: bool, message: str) -> None:
    """LabError with ``message`` unless ``holds``."""
    if not holds:
        raise LabError(message)


@library(scope="SUITE")
class MaglevLab:
    """One lab a suite, with what its tests remember from one step to the next."""

    def __init__(self, configuration: str) -> None:
        self._configuration = Path(configuration)
        self._lab: Lab | None = None
        self._watch: Watch | None = None
        self._mark = 0
        self._original = ""
        self._histories: dict[str, list[BackendChange]] = {}
        self._passed: dict[str, int] = {}
        self._calls = 0

    @property
    def lab(self) -> Lab:
        """The open lab."""
        if self._lab is None:
            raise LabError("the lab is not open")
        return self._lab

    @property
    def watch(self) -> Watch:
        """The running watch."""
        if self._watch is None:
            raise LabError("no 'Start To Watch Events' so far")
        return self._watch

    # -- the lab

    @keyword
    def open_lab(self) -> None:
        """Start the servers and write the configuration."""
        self._lab = Lab(self._configuration)
        self._original = self.lab.config_file.read_text(encoding="utf-8")

    @keyword
    def close_lab(self) -> None:
        """End and remove everything."""
        self._end_watch()
        if self._lab is not None:
            self._lab.close()

    @keyword
    def show_logs(self) -> None:
        """Put what the programs have logged into Robot's log."""
        for log in sorted(self.lab.directory.glob("*.log")):
            logger.info(f"{log.name}:\n{log.read_text(encoding='utf-8', errors='replace')}")

    # -- the configuration

    @keyword
    def change_the_configuration(self, old: str, new: str) -> None:
        """Replace ``old`` by ``new`` in the file. LabError: ``old`` is not there."""
        text = self.lab.config_file.read_text(encoding="utf-8")
        check(old in text, f"{old!r} is not in the configuration")
        self.lab.config_file.write_text(text.replace(old, new), encoding="utf-8")

    @keyword
    def restore_the_configuration(self) -> None:
        """The file as it was at the start."""
        self.lab.config_file.write_text(self._original, encoding="utf-8")

    @keyword
    def checking_the_configuration_should_end_with_status(self, status: int, *expecting: str) -> None:
        """Run `maglevd --check`: its exit status, and every word of ``expecting`` in its output."""
        command = [*self.lab.daemon_command(dataplane=False), "--check"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=CALL_SECONDS, check=False)
        output = done.stdout + done.stderr
        logger.info(output)
        check(done.returncode == status, f"maglevd --check: exit status {done.returncode}, not {status}\n{output}")
        for words in expecting:
            check(words in output, f"maglevd --check does not say {words!r}:\n{output}")

    # -- the daemon

    @keyword("Start Maglevd Without VPP")
    def start_maglevd_without_vpp(self) -> None:
        """Start the installed maglevd with no dataplane, and wait until it answers."""
        self.lab.start_maglevd(dataplane=False)

    @keyword("Start Maglevd With VPP")
    def start_maglevd_with_vpp(self) -> None:
        """Start the installed maglevd on the stand-in, and wait until it answers."""
        self.lab.start_maglevd(dataplane=True)

    @keyword
    def maglevd_should_be_running(self) -> None:
        """LabError if it has ended."""
        if self.lab.daemon is None:
            raise LabError("maglevd was not started")
        self.lab.daemon.expect_running()

    @keyword
    def stop_maglevd_should_end_with_status(self, status: int) -> None:
        """SIGTERM, and the exit status that follows."""
        ended = self.lab.stop_maglevd()
        check(ended == status, f"maglevd ended with status {ended}, not {status}")

    # -- maglevc

    def _run(self, *words: str) -> Answer:
        answer = self.lab.maglevc.run(*words)
        logger.info(f"$ maglevc {' '.join(words)}\n{answer.stdout}{answer.stderr}(status {answer.status})")
        return answer

    @keyword
    def maglevc(self, *words: str) -> str:
        """Output of a command that has to succeed."""
        answer = self._run(*words)
        check(answer.status == 0, f"maglevc {' '.join(words)}: status {answer.status}\n{answer.stdout}{answer.stderr}")
        return answer.stdout

    @keyword
    def maglevc_should_fail(self, status: int, *words: str, expecting: str = "") -> str:
        """The exit status of a command that has to fail, a message on standard error, and what it names."""
        answer = self._run(*words)
        check(answer.status == status, f"maglevc {' '.join(words)}: status {answer.status}, not {status}")
        check(bool(answer.stderr.strip()), f"maglevc {' '.join(words)} failed without a word")
        check(expecting in answer.stderr, f"the error does not name {expecting!r}: {answer.stderr}")
        return answer.stderr

    @keyword
    def maglevc_should_say(self, *words_and_text: str) -> None:
        """The output of a command (all arguments but the last) contains the last argument."""
        *words, text = words_and_text
        output = self.maglevc(*words)
        check(text in output, f"maglevc {' '.join(words)} does not say {text!r}:\n{output}")

    @keyword
    def set_backend(self, name: str, verb: str) -> None:
        """`maglevc set backend NAME VERB`, which has to succeed."""
        self.maglevc("set", "backend", name, verb)

    # -- reloads

    @keyword
    def reload_should_be_refused(self, *expecting: str) -> None:
        """`maglevc config reload` ends with status 1 and names each of ``expecting``."""
        answer = self._run("config", "reload")
        output = answer.stdout + answer.stderr
        check(answer.status == 1, f"maglevc config reload: status {answer.status}, not 1\n{output}")
        for words in expecting:
            check(words in output, f"the refusal does not name {words!r}:\n{output}")

    @keyword
    def reload_by_signal_should_be_refused(self, expecting: str) -> None:
        """SIGHUP, and an error in the log that names ``expecting``."""
        daemon = self.lab.daemon
        if daemon is None:
            raise LabError("maglevd was not started")
        said = len(daemon.output())
        daemon.signal(signal.SIGHUP)
        wait_until(f"maglevd to log {expecting!r}", lambda: expecting in daemon.output()[said:], EVENT_SECONDS)

    # -- backends and frontends

    def _member(self, frontend: str, backend: str) -> Member:
        output = self.maglevc("show", "frontends", frontend)
        found = members(output)
        if backend not in found:
            raise LabError(f"{backend} is not in what 'show frontends {frontend}' prints:\n{output}")
        return found[backend]

    @keyword
    def effective_weight_should_be(self, frontend: str, backend: str, weight: int) -> None:
        """The effective weight that `maglevc show frontends` prints now."""
        member = self._member(frontend, backend)
        check(member.effective == weight, f"effective weight of {backend} is {member.effective}, not {weight}")

    @keyword
    def configured_weight_should_be(self, frontend: str, backend: str, weight: int) -> None:
        """The weight in force, which `maglevc show frontends` prints before the effective one."""
        member = self._member(frontend, backend)
        check(member.weight == weight, f"weight of {backend} is {member.weight}, not {weight}")

    @keyword
    def member_should_be_flagged(self, frontend: str, backend: str, flag: str) -> None:
        """`maglevc show frontends` prints ``[flag]`` after the member."""
        member = self._member(frontend, backend)
        check(flag in member.flags, f"{backend} is flagged {member.flags}, not {flag!r}")

    def _state(self, kind: str, name: str) -> str:
        return short(self.lab.maglevc.ask_json("show", kind, name)["state"])

    @keyword
    def backend_should_be(self, name: str, state: str) -> None:
        """The state of a backend now."""
        found = self._state("backends", name)
        check(found == state, f"backend {name} is {found}, not {state}")

    @keyword
    def frontend_should_be(self, name: str, state: str) -> None:
        """The state of a frontend now."""
        found = self._state("frontends", name)
        check(found == state, f"frontend {name} is {found}, not {state}")

    @keyword
    def static_backend_should_be_up(self, name: str) -> None:
        """A backend without a health check is up now, by the synthetic pass."""
        backend = self.lab.maglevc.ask_json("show", "backends", name)
        check(not backend.get("healthcheck"), f"backend {name} has a health check")
        check(short(backend["state"]) == "up", f"backend {name} is {short(backend['state'])}, not up")
        check(self._history(name)[-1].code == "static", f"backend {name} is up for another reason: {backend}")

    # -- history

    def _history(self, name: str) -> list[BackendChange]:
        backend = self.lab.maglevc.ask_json("show", "backends", name)
        return [BackendChange.of(name, transition) for transition in backend.get("transitions", [])]

    @keyword
    def remember_the_history_of(self, name: str) -> None:
        """For ``History Should Have Grown By``."""
        self._histories[name] = self._history(name)
        check(bool(self._histories[name]), f"backend {name} has no history")

    @keyword
    def history_should_have_grown_by(self, name: str, *expected: str) -> None:
        """The history is still there, and exactly the ``expected`` transitions (``up -> down``) followed."""
        before, now = self._histories[name], self._history(name)
        check(now[: len(before)] == before, f"the history of {name} was {before} and is {now}")
        grown = [f"{change.before} -> {change.after}" for change in now[len(before) :]]
        check(grown == list(expected), f"the history of {name} has grown by {grown}, not {list(expected)}")

    @keyword
    def code_of_the_last_transition_to_should_be(self, name: str, state: str, code: str) -> None:
        """Why the backend entered ``state`` the last time."""
        found = [change for change in self._history(name) if change.after == state]
        check(bool(found), f"backend {name} was never {state}")
        check(found[-1].code == code, f"backend {name} became {state} with code {found[-1].code}, not {code}")

    # -- probes

    @keyword
    def probes_should_arrive(self, name: str) -> None:
        """Two more probes reach the server."""
        server = self.lab.servers[name]
        before = server.probes
        wait_until(f"probes to reach {name}", lambda: server.probes >= before + 2, EVENT_SECONDS)

    @keyword
    def probes_should_not_arrive(self, name: str) -> None:
        """No probe reaches the server for five intervals; one that was on its way may end first."""
        server = self.lab.servers[name]
        time.sleep(QUIET_SECONDS / 5)
        before = server.probes
        time.sleep(QUIET_SECONDS)
        check(server.probes == before, f"{server.probes - before} probes reached {name}")

    def _probe_counts(self) -> dict[str, int]:
        backends = self.lab.maglevc.ask_json("show", "backends")
        return {backend["name"]: int(backend.get("probes_passed", 0)) for backend in backends}

    @keyword
    def remember_the_probe_counts(self) -> None:
        """For ``Probe Counts Should Have Been Kept``."""
        self._passed = self._probe_counts()
        check(self._passed["web1"] > 0, f"no probes have been counted: {self._passed}")

    @keyword
    def probe_counts_should_have_been_kept(self) -> None:
        """No backend counts fewer probes than were remembered, and the probed ones count on."""
        now = self._probe_counts()
        for name, before in self._passed.items():
            check(now.get(name, -1) >= before, f"{name} counted {before} probes, and now {now.get(name)}")

    # -- servers

    @keyword
    def stop_server(self, name: str) -> None:
        """Close its port."""
        self.lab.servers.stop(name)

    @keyword
    def start_server(self, name: str) -> None:
        """Open its port again."""
        self.lab.servers.start(name)

    @keyword
    def server_answers(self, name: str, status: int) -> None:
        """The HTTP status of its answers from now on."""
        self.lab.servers.answer(name, status)

    @keyword
    def lose_the_next_probe_to(self, name: str) -> None:
        """The next request gets no answer."""
        self.lab.servers[name].lose_next(1)

    @keyword
    def probe_should_have_been_lost_by(self, name: str) -> None:
        """The request that was to get no answer has arrived."""
        wait_until(f"{name} to lose a probe", lambda: self.lab.servers[name].lost > 0, EVENT_SECONDS)

    @keyword
    def probes_before_the_verdict_should_be(self, name: str, count: int) -> None:
        """How many answers of the present status the server had given when the backend's last transition happened."""
        verdict = self._history(name)[-1]
        answers = sum(1 for at_ns in self.lab.servers[name].answers_ns() if at_ns <= verdict.at_ns)
        check(answers == count, f"{name} became {verdict.after} after {answers} answers, not {count}")

    # -- events

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    @keyword
    def start_to_watch_events(self) -> None:
        """Start `maglevc watch events`; it prints the present state first."""
        self._end_watch()
        self._watch = Watch(self.lab.maglevc)
        self._mark = 0

    @keyword
    def mark_the_events(self) -> None:
        """``Backend Should Become`` looks at what comes from here on."""
        self._mark = self.watch.mark()

    @keyword
    def backend_should_become(self, name: str, state: str, code: str = "") -> None:
        """Wait for the event that says that the backend is ``state``, with ``code`` where that matters."""
        event = self.watch.wait(
            f"backend {name} becomes {state}",
            lambda event: (
                (change := backend_change(event)) is not None and (change.name, change.after) == (name, state)
            ),
            EVENT_SECONDS,
            self._mark,
        )
        change = backend_change(event)
        check(change is not None and code in ("", change.code), f"{name} became {state}, not with {code}: {event}")

    def _watched(self, name: str) -> list[str]:
        changes = [backend_change(event) for event in self.watch.since()]
        return [
            f"{change.before} -> {change.after}"
            for change in changes
            if change is not None and change.name == name and change.before != change.after
        ]

    @keyword
    def watched_transitions_should_include(self, name: str, *expected: str) -> None:
        """The watch has printed ``expected`` for the backend, in this order."""
        watched = self._watched(name)
        rest = iter(watched)
        for transition in expected:
            check(transition in rest, f"{transition!r} is missing or out of order in what was watched: {watched}")

    @keyword
    def watched_transitions_should_not_include(self, name: str, transition: str) -> None:
        """The watch has not printed ``transition`` for the backend."""
        watched = self._watched(name)
        check(transition not in watched, f"{name} went {transition}: {watched}")

    @keyword
    def watch_should_have_ended(self) -> None:
        """The stream was closed by the daemon, and maglevc ended with the status of an unreachable server."""
        status = self.watch.end()
        check(status == 3, f"watch events ended with status {status}, not 3")

    def _told(self, kind: str) -> list[dict[str, Any]]:
        return [event[kind] for event in self.watch.since() if kind in event]

    @keyword
    def watched_events_should_tell_the_drain_of(self, name: str) -> None:
        """The watch has printed that the backend was drained, and undrained."""
        drains = [bool(drain.get("drained")) for drain in self._told("drain") if drain["name"] == name]
        check(drains == [True, False], f"drains of {name} in what was watched: {drains}")

    @keyword
    def watched_events_should_tell_the_weight_of(self, name: str, weight: int) -> None:
        """The watch has printed that the weight was set, and that it went back to the file's."""
        weights = [change for change in self._told("weight") if change["backend"] == name]
        news = [int(change.get("new_weight", 0)) for change in weights]
        check(len(news) == 2 and news[0] == weight, f"weights of {name} in what was watched: {weights}")

    @keyword
    def watching_a_number_of_events_should_end(self, count: int) -> None:
        """`watch events num N` prints N JSON objects and ends by itself."""
        lines = self.maglevc("watch", "events", "num", str(count)).splitlines()
        check(len(lines) == count, f"{len(lines)} lines, not {count}: {lines}")
        for line in lines:
            check(isinstance(json.loads(line), dict), f"no JSON object: {line!r}")

    # -- the dataplane

    @keyword
    def start_stand_in(self) -> None:
        """Start an empty stand-in for VPP."""
        self.lab.start_stand_in()

    @keyword
    def stop_stand_in(self) -> None:
        """End the stand-in."""
        self.lab.stop_stand_in()

    @keyword("Weights In VPP Should Become")
    def weights_in_vpp_should_become(self, frontend: str, **weights: int) -> None:
        """Wait for the weights that the stand-in holds for a frontend, read back on its own socket."""
        self.lab.wait_programmed(frontend, self._numbers(weights), EVENT_SECONDS)

    @keyword("Weights In VPP Should Be")
    def weights_in_vpp_should_be(self, frontend: str, **weights: int) -> None:
        """The weights that the stand-in holds for a frontend now."""
        expected, found = self._numbers(weights), self.lab.programmed(frontend)
        check(found == expected, f"weights of {frontend} in VPP are {found}, not {expected}")

    @staticmethod
    def _numbers(weights: Mapping[str, int]) -> dict[str, int]:
        return {name: int(weight) for name, weight in weights.items()}

    @keyword("Remember The Calls To VPP")
    def remember_the_calls_to_vpp(self) -> None:
        """The keywords on calls look at what comes from here on."""
        self._calls = len(self.lab.calls())

    def _news(self) -> list[Call]:
        return self.lab.calls()[self._calls :]

    @keyword("VPP Should Have Seen No Write")
    def vpp_should_have_seen_no_write(self) -> None:
        """Nothing that changes anything was sent to the stand-in since the calls were remembered."""
        check(bool(self.lab.calls()), "the stand-in has written no call down at all")
        writes = [call for call in self._news() if call.name in WRITES]
        check(not writes, f"written to VPP: {writes}")

    @keyword("VPP Should Have Been Told Goodbye")
    def vpp_should_have_been_told_goodbye(self) -> None:
        """The daemon's last message was the one without which a VPP would spin."""
        check(any(call.name == "sockclnt_delete" for call in self._news()), "no sockclnt_delete was sent")

    @keyword("VPP Should Have Flushed")
    def vpp_should_have_flushed(self, name: str) -> None:
        """Exactly one weight call with flush was sent for the backend since the calls were remembered."""
        flushes = [
            call
            for call in self._news()
            if call.name == "lb_as_set_weight"
            and call.arguments["is_flush"]
            and self.lab.names.get(call.address) == name
        ]
        check(len(flushes) == 1, f"{len(flushes)} flushes of {name}: {self._news()}")

    @keyword
    def full_sync_should_have_ended(self) -> None:
        """Wait for a full sync that ends after this moment."""
        asked_ns = time.time_ns()

        def ended() -> bool:
            info = self.lab.maglevc.ask_json("show", "vpp", "info")
            return int(info.get("last_full_sync_at_ns", 0)) >= asked_ns

        wait_until("a full sync to end", ended, EVENT_SECONDS)
