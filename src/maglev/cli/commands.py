"""The action of each command: call the daemon, print the answer, return the exit status."""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import grpc

from maglev.cli import grammar, render
from maglev.cli.client import CALL_SECONDS, LONG_SECONDS, Client
from maglev.cli.comparison import comparison
from maglev.cli.context import Context, Quit
from maglev.cli.errors import DONE, REFUSED, CommandError, Unreachable, UsageError
from maglev.cli.grammar import Command, Kind
from maglev.cli.jsonout import dumps, plain, word
from maglev.cli.text import Table, escape, explained, parse_duration, parse_endpoint
from maglev.cli.tls import Tls
from maglev.pb import maglev_pb2 as pb

Values = Mapping[str, str]

# Backends of which `show frontends NAME` says why they are out of service; a frontend may have thousands.
FLOW_SECONDS = 10.0
"""Between two readings of ``show backends NAME flows wait``: each stops VPP for a moment."""

MOST_OUT = 20

# Events that `show events` prints where neither a number nor a time is given.
MOST_EVENTS = 50


def exists(client: Client) -> grammar.Exists:
    """Asks the daemon whether there is an object of a name, where a word could be either."""

    def ask(kind: Kind, name: str, values: Values) -> bool:
        calls: dict[Kind, tuple[Any, Any]] = {
            Kind.FRONTEND: (client.stub.GetFrontend, pb.GetFrontendRequest(name=name)),
            Kind.BACKEND: (client.stub.GetBackend, pb.GetBackendRequest(name=name)),
            Kind.HEALTHCHECK: (client.stub.GetHealthCheck, pb.GetHealthCheckRequest(name=name)),
        }
        if kind not in calls:
            return False
        try:
            calls[kind][0](calls[kind][1], timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            if code is grpc.StatusCode.NOT_FOUND:
                return False
            raise client.failure(error) from None
        return True

    return ask


def run(context: Context, words: list[str]) -> int:
    """Parse and carry out one command. Returns its exit status; raises ``Quit``."""
    try:
        command = grammar.parse(words, exists(context.client))
        return ACTIONS[command.action](context, command)
    except CommandError as error:
        context.complain(escape(str(error)))
        return error.status


# ---------------------------------------------------------------------------------------------------------- show


def _show_version(context: Context, command: Command) -> int:
    client = context.client
    info = client.call(client.stub.GetServerInfo, pb.GetServerInfoRequest())
    return context.show(info, lambda: render.version(context.style, context.version, info, client.server))


def _show_frontends(context: Context, command: Command) -> int:
    client = context.client
    request = pb.ListFrontendsRequest(name_regexp=command.values.get("match", ""), omit_pools=not context.json)
    if "state" in command.values:
        request.states.append(pb.FrontendState.Value(f"FRONTEND_STATE_{command.values['state'].upper()}"))

    def pages() -> Iterator[Iterable[pb.FrontendInfo]]:
        for at, page in enumerate(client.pages(client.stub.ListFrontends, request)):
            if at == 0 and not context.json:
                context.print(render.away(context.style, page.vpp))
            yield page.frontends

    return context.list(pages(), render.frontend_table(context.style), render.frontend_rows)


def _show_frontend(context: Context, command: Command) -> int:
    client = context.client
    info = client.call(client.stub.GetFrontend, pb.GetFrontendRequest(name=command.values["frontend"]))

    def lines() -> Iterator[str]:
        yield from render.frontend(context.style, info)
        names = [
            one.name for pool in info.pools for one in pool.backends if one.state != pb.BACKEND_STATE_UP or one.drained
        ]
        out = _backends(client, names[:MOST_OUT])
        yield from render.out_of_service(context.style, out, len(names) - MOST_OUT, time.time_ns())

    return context.show(info, lines)


def _backends(client: Client, names: Iterable[str]) -> list[pb.BackendInfo]:
    """The backends of those names; one that a reload took away meanwhile is left out."""
    found = []
    for name in names:
        try:
            found.append(client.call(client.stub.GetBackend, pb.GetBackendRequest(name=name)))
        except Unreachable:
            raise
        except CommandError:
            continue
    return found


def _flow(context: Context, command: Command) -> int:
    client = context.client
    source, source_port = parse_endpoint(command.values["source"])
    address, port = parse_endpoint(command.values["vip"])
    request = pb.GetFlowRequest(source=source, source_port=source_port, address=address, port=port or 0)
    if "protocol" in command.values:
        request.protocol = pb.Protocol.Value(f"PROTOCOL_{command.values['protocol'].upper()}")
    info = client.call(client.stub.GetFlow, request)
    return context.show(info, lambda: render.flow(context.style, info))


def _compare(context: Context, command: Command) -> int:
    """Status 1 where any VIP differs, 3 where a server cannot be reached."""
    servers = (command.values["first"], *command.values["servers"].split("\n"))
    twice = next((one for at, one in enumerate(servers) if one in servers[:at]), None)
    if twice is not None:
        raise UsageError(f"compare: {twice} is named twice")
    found = comparison(servers, [_frontends(server, context.client.tls) for server in servers])
    context.show(found, lambda: render.comparison(context.style, found))
    return DONE if found.equal else REFUSED


def _frontends(server: str, tls: Tls | None) -> list[pb.FrontendInfo]:
    """All frontends of a daemon, without their pools."""
    client = Client(server, tls)
    try:
        request = pb.ListFrontendsRequest(omit_pools=True)
        return [one for page in client.pages(client.stub.ListFrontends, request) for one in page.frontends]
    finally:
        client.close()


def _show_backends(context: Context, command: Command) -> int:
    client = context.client
    request = pb.ListBackendsRequest(
        name_regexp=command.values.get("match", ""),
        healthcheck=command.values.get(Kind.HEALTHCHECK.value, ""),
        drained="drained" in command.values,
        omit_transitions=not context.json,
        omit_frontends=not context.json,
    )
    if "state" in command.values:
        request.states.append(pb.BackendState.Value(f"BACKEND_STATE_{command.values['state'].upper()}"))
    pages = (page.backends for page in client.pages(client.stub.ListBackends, request))
    now = time.time_ns()
    return context.list(pages, render.backend_table(context.style), lambda page: render.backend_rows(page, now))


def _show_backend(context: Context, command: Command) -> int:
    client = context.client
    info = client.call(client.stub.GetBackend, pb.GetBackendRequest(name=command.values["backend"]))
    return context.show(info, lambda: render.backend(context.style, info, time.time_ns()))


def _show_backend_flows(context: Context, command: Command) -> int:
    """With ``wait``: until the backend is empty, a key is pressed, or Ctrl-C; only the first is a success."""
    waits = "wait" in command.values
    with _until_key(lambda: None) if waits else nullcontext(threading.Event()) as pressed:
        try:
            while True:
                info = _read_flows(context, command.values["backend"])
                if not waits or info.empty:
                    return DONE
                context.out.flush()
                if pressed.wait(FLOW_SECONDS):
                    return REFUSED
        except KeyboardInterrupt:
            return REFUSED


def _read_flows(context: Context, backend: str) -> pb.BackendFlows:
    client = context.client
    info: pb.BackendFlows = client.call(
        client.stub.GetBackendFlows, pb.GetBackendFlowsRequest(name=backend), seconds=LONG_SECONDS
    )
    context.show(info, lambda: render.flows(context.style, info))
    return info


def _show_healthchecks(context: Context, command: Command) -> int:
    client = context.client
    request = pb.ListHealthChecksRequest(name_regexp=command.values.get("match", ""))
    pages = (page.healthchecks for page in client.pages(client.stub.ListHealthChecks, request))
    return context.list(pages, render.healthcheck_table(context.style), render.healthcheck_rows)


def _show_healthcheck(context: Context, command: Command) -> int:
    client = context.client
    request = pb.GetHealthCheckRequest(name=command.values[Kind.HEALTHCHECK.value])
    info = client.call(client.stub.GetHealthCheck, request)
    return context.show(info, lambda: render.healthcheck(context.style, info))


def _show_overrides(context: Context, command: Command) -> int:
    client = context.client
    pages = (page.overrides for page in client.pages(client.stub.ListOverrides, pb.ListOverridesRequest()))
    now = time.time_ns()
    return context.list(pages, render.override_table(context.style), lambda page: render.override_rows(page, now))


def _show_events(context: Context, command: Command) -> int:
    client, values = context.client, command.values
    request = pb.ListEventsRequest(last_ns=parse_duration(values["last"]) if "last" in values else 0)
    if "backend-name" in values:
        request.backends.append(values["backend-name"])
    if "frontend-name" in values:
        request.frontends.append(values["frontend-name"])
    most = int(values["num"]) if "num" in values else None if "last" in values else MOST_EVENTS
    folded = "all" not in values and not context.json
    found: list[pb.PastEvent] = []
    groups: set[int] = set()
    total = forgotten = 0
    for page in client.pages(client.stub.ListEvents, request):
        total, forgotten = page.total, page.forgotten
        found.extend(page.events)
        groups.update(one.cause or -one.id for one in page.events)
        if most is not None and (len(groups) if folded else len(found)) >= most:
            break
    # The daemon gives the newest first. For people the newest stands last, beside the prompt.
    if context.json:
        return context.list([found[:most][::-1]], Table(context.style, ()), list)
    if folded:
        context.print(render.past_events(context.style, found[::-1], _causes(client, request, groups), most))
    else:
        context.print(render.past_event(context.style, one) for one in found[:most][::-1])
    if not found:
        context.print([render.no_events(total, forgotten)])
    return DONE


def _causes(client: Client, events: pb.ListEventsRequest, numbers: Collection[int]) -> dict[int, pb.Cause]:
    """The causes of the events that such a request lists, by number: as far back as ``numbers`` go."""
    oldest = min((number for number in numbers if number > 0), default=0)
    found: dict[int, pb.Cause] = {}
    if oldest:
        request = pb.ListCausesRequest(backends=events.backends, frontends=events.frontends)
        for page in client.pages(client.stub.ListCauses, request):
            found.update((one.id, one) for one in page.causes)
            if page.causes and page.causes[-1].id <= oldest:
                break
    return found


def _why(context: Context, command: Command) -> int:
    client, values = context.client, command.values
    request = pb.ExplainRequest()
    if "backend" in values:
        request.backend = values["backend"]
    else:
        request.frontend = values["frontend"]
    info = client.call(client.stub.Explain, request)
    return context.show(info, lambda: render.explanation(context.style, info))


def _show_vpp_info(context: Context, command: Command) -> int:
    client = context.client
    info = client.call(client.stub.GetVPPInfo, pb.GetVPPInfoRequest())
    return context.show(info, lambda: render.vpp_info(context.style, info, time.time_ns()))


def _show_vpp_lb_state(context: Context, command: Command) -> int:
    client = context.client
    request = pb.GetVPPLBStateRequest(frontend=command.values.get("frontend", ""))
    pages = client.pages(client.stub.GetVPPLBState, request, seconds=LONG_SECONDS)
    if context.json:
        whole = next(pages)
        for page in pages:
            whole.vips.extend(page.vips)
        whole.next_page_token = ""
        return context.show(whole, list)
    first = True
    for page in pages:
        if first:
            context.print(render.lb_conf(context.style, page.conf))
            first = False
        for one in page.vips:
            context.print(render.vip(context.style, one))
    return DONE


def _show_vpp_lb_counters(context: Context, command: Command) -> int:
    client = context.client
    request = pb.GetVPPLBCountersRequest(frontend=command.values.get("frontend", ""))
    pages = (page.vips for page in client.pages(client.stub.GetVPPLBCounters, request))
    return context.list(pages, render.counter_table(context.style), render.counter_rows)


# ------------------------------------------------------------------------------------------------------- changes


def _set_backend(context: Context, command: Command) -> int:
    client = context.client
    values = command.values
    verb = values["verb"]
    request = pb.ChangeBackendRequest(
        name=values["backend"],
        reason=values.get("reason", ""),
        duration_ns=parse_duration(values["for"]) if "for" in values else 0,
        dry_run="dry-run" in values,
    )
    answer = client.call(getattr(client.stub, f"{verb.capitalize()}Backend"), request, seconds=_patience(values))
    _warn(context, answer.warnings)
    name = escape(answer.backend.name)
    state = word(pb.BackendState, answer.backend.state)
    state += ", drained" if answer.backend.drained else ""

    def lines() -> Iterator[str]:
        note = "" if answer.changed or answer.changes else f"nothing to {verb}: "
        yield f"{note}backend {name} {'would be' if request.dry_run else 'is'} {state}"
        yield from render.reply(
            () if answer.changed else answer.changes,
            answer.effects,
            answer.effects_omitted,
            time.time_ns(),
            tried=request.dry_run,
        )
        if request.dry_run:
            yield from render.preview(context.style, answer.preview)

    return context.show(answer, lines)


def _patience(values: Values) -> float:
    """How long to wait for the answer to a change: a dry run may have to wait for its turn, and for VPP."""
    return LONG_SECONDS if "dry-run" in values else CALL_SECONDS


def _set_weight(context: Context, command: Command) -> int:
    client = context.client
    values = command.values
    request = pb.SetWeightRequest(
        frontend=values["frontend"],
        pool=values["pool"],
        backend=values["backend"],
        weight=None if values["weight"] == "default" else int(values["weight"]),
        flush="flush" in values,
        reason=values.get("reason", ""),
        duration_ns=parse_duration(values["for"]) if "for" in values else 0,
        dry_run="dry-run" in values,
    )
    answer = client.call(client.stub.SetFrontendPoolBackendWeight, request, seconds=_patience(values))
    _warn(context, answer.warnings)

    def lines() -> Iterator[str]:
        yield render.member(context.style, answer.backend)
        if answer.rounded:
            unit = f"the unit of {escape(values['frontend'])} is {answer.unit}"
            yield f"rounded to {answer.applied_weight} in VPP: {unit}"
        new = any(one.what == "weight" for one in answer.changes)
        yield from render.reply(() if new else answer.changes, answer.effects, 0, time.time_ns(), tried=request.dry_run)
        if request.dry_run:
            yield from render.preview(context.style, answer.preview)

    return context.show(answer, lines)


def _warn(context: Context, warnings: Iterable[str]) -> None:
    for warning in warnings:
        context.complain(f"warning: {escape(warning)}")


def _sync(context: Context, command: Command) -> int:
    client = context.client
    how = command.values.get("how", "")
    request = pb.SyncVPPLBStateRequest(
        frontend=command.values.get("frontend", ""),
        dry_run=how == "dry-run" or "dry" in command.values,
        force=how == "force",
        prune=how == "prune",
    )
    answer = client.call(client.stub.SyncVPPLBState, request, seconds=LONG_SECONDS)
    context.show(answer, lambda: render.plan(context.style, answer.plan))
    for failure in answer.failures:
        context.complain(f"VPP refused: {escape(failure)}")
    return REFUSED if answer.failures else DONE


def _brake_release(context: Context, command: Command) -> int:
    client = context.client
    request = pb.ReleaseBrakeRequest(dry_run="dry-run" in command.values)
    answer = client.call(client.stub.ReleaseBrake, request, seconds=_patience(command.values))
    backends = "1 backend" if answer.released == 1 else f"{answer.released} backends"

    def lines() -> Iterator[str]:
        if not answer.released:
            yield "no backend is held: there is nothing to release"
            return
        if not request.dry_run:
            yield f"{backends} held no longer"
            return
        yield f"{backends} would be held no longer, {answer.failing} of them still failing: they would go down"
        yield from render.preview(context.style, answer.preview)

    return context.show(answer, lines)


# ------------------------------------------------------------------------------------------------- configuration


def _config_check(context: Context, command: Command) -> int:
    client = context.client
    answer = client.call(client.stub.CheckConfig, pb.CheckConfigRequest(), seconds=LONG_SECONDS)

    def lines() -> Iterator[str]:
        yield from render.problems(context.style, answer)
        if answer.ok:
            yield f"{escape(answer.file)} is valid"

    context.show(answer, lines)
    if answer.ok:
        return DONE
    context.complain(f"{escape(answer.file)} has errors")
    return REFUSED


def _config_diff(context: Context, command: Command) -> int:
    client = context.client
    answer = client.call(client.stub.DiffConfig, pb.DiffConfigRequest(), seconds=LONG_SECONDS)

    def lines() -> Iterator[str]:
        yield from render.problems(context.style, answer.check)
        if answer.check.ok:
            yield from render.changes(context.style, answer)
            if answer.HasField("plan"):
                yield "in VPP:"
                yield from render.plan(context.style, answer.plan)
            else:
                yield "in VPP: not known, as the daemon is not connected to one"

    context.show(answer, lines)
    if answer.check.ok:
        return DONE
    context.complain(f"{escape(answer.check.file)} has errors")
    return REFUSED


def _config_reload(context: Context, command: Command) -> int:
    client = context.client
    request = pb.ReloadConfigRequest(force="force" in command.values)
    answer = client.call(client.stub.ReloadConfig, request, seconds=LONG_SECONDS)

    def lines() -> Iterator[str]:
        yield from render.problems(context.style, answer)
        if answer.ok:
            yield f"{escape(answer.file)} is in force"

    context.show(answer, lines)
    if answer.ok:
        return DONE
    context.complain(f"{escape(answer.file)} has errors, nothing was changed")
    return REFUSED


# --------------------------------------------------------------------------------------------------------- watch


_WATCHED = {"log": pb.EVENT_KIND_LOG, "backend": pb.EVENT_KIND_BACKEND, "frontend": pb.EVENT_KIND_FRONTEND}


class _Feed:
    """Prints batches of events: as lines on a terminal, else (or with ``--json``) as one JSON object a line.

    ``limit``: how many events are printed at most; None prints all.
    """

    def __init__(self, context: Context, limit: int | None) -> None:
        self._context = context
        self._left = limit
        self._told = render.Told(context.style) if context.out.isatty() and not context.json else None

    def print(self, batch: pb.WatchEventsResponse) -> bool:
        """Print a batch and flush. True once the limit is reached; the rest of that batch is dropped."""
        ended = self._print(batch)
        self._context.out.flush()
        return ended

    def _print(self, batch: pb.WatchEventsResponse) -> bool:
        if batch.lost:
            self._context.print([self._lost(batch.lost)])
        for event in batch.events:
            line = self._line(event)
            if not line:
                continue
            self._context.print([line])
            if self._left is not None:
                self._left -= 1
                if self._left == 0:
                    return True
        if batch.state_complete and self._told is not None:
            self._context.print([self._context.style.paint(f"-- {self._told.summary()}any key ends --", "bold")])
        return False

    def _line(self, event: pb.Event) -> str:
        # Empty for an event that the summary only counts.
        if self._told is not None:
            return self._told.event(event)
        kind = event.WhichOneof("event")
        return dumps({kind: plain(getattr(event, str(kind)))}) if kind is not None else ""

    def _lost(self, many: int) -> str:
        if self._told is None:
            return dumps({"lost": many})
        text = f"-- {many} events were lost: they came faster than they were read --"
        return self._context.style.paint(text, "error")


def _watch_request(values: Values) -> pb.WatchEventsRequest:
    request = pb.WatchEventsRequest(kinds=[number for key, number in _WATCHED.items() if key in values])
    if "level" in values:
        request.log_level = pb.LogLevel.Value(f"LOG_LEVEL_{values['level'].upper()}")
    if "backend-name" in values:
        request.backends.append(values["backend-name"])
    if "frontend-name" in values:
        request.frontends.append(values["frontend-name"])
    return request


def _watch(context: Context, command: Command) -> int:
    client = context.client
    values = command.values
    feed = _Feed(context, int(values["num"]) if "num" in values else None)
    # No deadline: a key, Ctrl-C or the end of the daemon ends the call. Keepalive pings detect a dead peer.
    call: Any = client.stub.WatchEvents(_watch_request(values))
    with _until_key(call.cancel) as pressed:
        try:
            for batch in call:
                if feed.print(batch):
                    call.cancel()
                    break
        except KeyboardInterrupt:
            call.cancel()
        except grpc.RpcError as error:
            # The key was pressed on another thread, which cancelled the call: that is a regular end.
            if not pressed.is_set():
                raise client.failure(error) from None
    return DONE


@contextmanager
def _until_key(cancel: Callable[[], Any]) -> Iterator[threading.Event]:
    """Calls ``cancel`` when a key is pressed, if standard input is a terminal. The event says whether it was."""
    pressed = threading.Event()
    try:
        terminal = sys.stdin.isatty() and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError):
        terminal = False
    if not terminal:
        yield pressed
        return
    import termios
    import tty

    stdin = sys.stdin.fileno()
    before = termios.tcgetattr(stdin)
    wake, waker = os.pipe()

    def wait() -> None:
        ready, _, _ = select.select((stdin, wake), (), ())
        if stdin in ready:
            os.read(stdin, 4096)
            pressed.set()
            cancel()

    reader = threading.Thread(target=wait, name="key", daemon=True)
    # Signals stay on: Ctrl-C is one.
    tty.setcbreak(stdin)
    try:
        reader.start()
        yield pressed
    finally:
        os.write(waker, b"x")
        reader.join()
        os.close(wake)
        os.close(waker)
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)


def _top(context: Context, command: Command) -> int:
    # Only here, as it takes the line editor's library with it.
    from maglev.cli import top

    return top.run(context)


# --------------------------------------------------------------------------------------------------------- words


def _help(context: Context, command: Command) -> int:
    context.print(explained(grammar.usage(), context.style.columns, 38))
    return DONE


def _quit(context: Context, command: Command) -> int:
    raise Quit


ACTIONS: Mapping[str, Callable[[Context, Command], int]] = {
    "show-version": _show_version,
    "show-frontends": _show_frontends,
    "show-frontend": _show_frontend,
    "flow": _flow,
    "compare": _compare,
    "show-backends": _show_backends,
    "show-backend": _show_backend,
    "show-backend-flows": _show_backend_flows,
    "show-healthchecks": _show_healthchecks,
    "show-healthcheck": _show_healthcheck,
    "show-overrides": _show_overrides,
    "show-events": _show_events,
    "why": _why,
    "show-vpp-info": _show_vpp_info,
    "show-vpp-lb-state": _show_vpp_lb_state,
    "show-vpp-lb-counters": _show_vpp_lb_counters,
    "set-backend": _set_backend,
    "set-weight": _set_weight,
    "sync": _sync,
    "brake-release": _brake_release,
    "config-check": _config_check,
    "config-diff": _config_diff,
    "config-reload": _config_reload,
    "watch": _watch,
    "top": _top,
    "help": _help,
    "quit": _quit,
}
