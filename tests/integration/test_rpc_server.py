"""The API on real sockets, with a daemon whose states the test sets by hand."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from maglev.base.errors import Unavailable
from maglev.base.events import FrontendEvent
from maglev.base.states import Code, FrontendState, State
from maglev.config.load import LoadResult
from maglev.pb import maglev_pb2 as pb
from maglev.pb.maglev_pb2_grpc import MaglevStub
from maglev.rpc import server
from maglev.rpc.access import OPERATOR_CALLS, Role
from maglev.rpc.listeners import MAX_PATH_BYTES, CannotListen
from maglev.rpc.logins import Logins
from maglev.rpc.server import RpcServer, ServerOptions
from maglev.rpc.service import MaglevService
from maglev.rpc.status import TooMany
from maglev.rpc.turns import Shared, Turnstile
from maglev.schema.problems import Problem, ProblemKind
from maglev.views.backends import Override, OverrideKind
from tests.helpers.rpc import (
    NOW,
    FakeDaemon,
    fake_daemon,
    large_config,
    log_event,
    small_config,
)

if TYPE_CHECKING:
    # In the type stubs only: at run time MaglevStub serves both kinds of channel.
    from maglev.pb.maglev_pb2_grpc import MaglevAsyncStub

DEADLINE = 20.0
Status = grpc.StatusCode


@dataclass
class Running:
    """A server with its daemon, and channels to it."""

    daemon: FakeDaemon
    server: RpcServer
    socket: Path
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    def _stub(self, target: str) -> MaglevAsyncStub:
        channel = grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)])
        self.channels.append(channel)
        return MaglevStub(channel)

    def unix(self) -> MaglevAsyncStub:
        return self._stub(f"unix:{self.socket}")

    def tcp(self) -> MaglevAsyncStub:
        return self._stub(f"127.0.0.1:{self.server.port}")


Start = Callable[..., Awaitable[Running]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts servers; ends them and their channels with the test."""
    running: list[Running] = []

    async def begin(daemon: FakeDaemon | None = None, **options: Any) -> Running:
        path = tmp_path / f"run{len(running)}" / "maglevd.sock"
        daemon = daemon if daemon is not None else fake_daemon()
        server = RpcServer(
            daemon.services, ServerOptions(**{"unix_socket": path, "tcp_address": "127.0.0.1:0", **options})
        )
        await server.start()
        running.append(Running(daemon, server, path))
        return running[-1]

    yield begin
    for one in running:
        for channel in one.channels:
            await channel.close(None)
        await one.server.stop(0.2)


async def refused(call: Awaitable[Any], status: grpc.StatusCode) -> str:
    """The words of a refusal with that status."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is status, caught.value.details()
    return caught.value.details() or ""


async def batches(call: Any, until: Callable[[list[pb.Event]], bool]) -> tuple[list[pb.Event], int]:
    """Events of a watch until they satisfy ``until``, and how many were lost."""
    events: list[pb.Event] = []
    lost = 0
    async with asyncio.timeout(DEADLINE):
        async for batch in call:
            events += batch.events
            lost += batch.lost
            if until(events):
                return events, lost
    raise AssertionError(f"the stream ended after {len(events)} events")


async def state_of(call: Any) -> list[pb.Event]:
    """The events that tell the present state."""
    events: list[pb.Event] = []
    async with asyncio.timeout(DEADLINE):
        async for batch in call:
            events += batch.events
            if batch.state_complete:
                return events
    raise AssertionError("the stream ended before the state was complete")


# -------------------------------------------------------------------------------------------------- every call


async def test_frontends_show_pools_with_effective_and_programmed_weights(start: Start) -> None:
    running = await start()
    running.daemon.checker.move("web0", State.UP, Code.L7OK)
    running.daemon.checker.statuses["web1"].drained = True
    stub = running.unix()

    info = await stub.GetFrontend(pb.GetFrontendRequest(name="www"), timeout=DEADLINE)

    assert (info.address, info.protocol, info.port) == ("192.0.2.80", pb.PROTOCOL_TCP, 80)
    assert info.state == pb.FRONTEND_STATE_UP
    assert (info.active_pool, info.active_pool_index, info.unit) == ("primary", 0, 10)
    assert [pool.name for pool in info.pools] == ["primary", "fallback"]
    web0, web1 = info.pools[0].backends
    assert (web0.name, web0.weight, web0.effective_weight, web0.programmed_weight) == ("web0", 100, 100, 10)
    assert (web1.name, web1.weight, web1.effective_weight, web1.drained) == ("web1", 50, 0, True)
    assert (info.backends, info.backends_wanted, info.backends_usable) == (3, 2, 1)

    listed = await stub.ListFrontends(pb.ListFrontendsRequest(), timeout=DEADLINE)
    assert [one.name for one in listed.frontends] == ["www", "dns"]
    assert listed.frontends[0] == info
    bare = await stub.ListFrontends(pb.ListFrontendsRequest(omit_pools=True), timeout=DEADLINE)
    assert all(not one.pools for one in bare.frontends)


async def test_frontends_show_the_table_that_vpp_has(start: Start) -> None:
    running = await start()
    stub = running.unix()

    info = await stub.GetFrontend(pb.GetFrontendRequest(name="www"), timeout=DEADLINE)
    every = pb.ListFrontendsRequest(name_regexp="^www$")
    (listed,) = (await stub.ListFrontends(every, timeout=DEADLINE)).frontends
    every.omit_pools = True
    (short,) = (await stub.ListFrontends(every, timeout=DEADLINE)).frontends
    running.daemon.dataplane.lose()
    away = await stub.GetFrontend(pb.GetFrontendRequest(name="www"), timeout=DEADLINE)

    for one in (info, listed, short):
        assert (one.fingerprint, one.vpp_table_length) == ("0123456789abcdef", 16384)
    for one in (info, listed):
        buckets = {member.name: member.buckets for pool in one.pools for member in pool.backends}
        assert buckets == {"web0": 12288, "web1": 0, "spare": 4096}
        assert all(member.HasField("buckets") for pool in one.pools for member in pool.backends)
    assert (away.fingerprint, away.vpp_table_length) == ("", 0)
    assert not any(member.HasField("buckets") for pool in away.pools for member in pool.backends)


async def test_lists_are_filtered_by_state_and_by_regular_expression(start: Start) -> None:
    running = await start()
    running.daemon.checker.move("web0", State.UP, Code.L7OK)
    stub = running.unix()

    up = await stub.ListBackends(pb.ListBackendsRequest(states=[pb.BACKEND_STATE_UP]), timeout=DEADLINE)
    webs = await stub.ListBackends(pb.ListBackendsRequest(name_regexp="^web"), timeout=DEADLINE)
    fronts = await stub.ListFrontends(pb.ListFrontendsRequest(states=[pb.FRONTEND_STATE_UP]), timeout=DEADLINE)
    dns = await stub.ListBackends(pb.ListBackendsRequest(healthcheck="dns"), timeout=DEADLINE)

    assert [one.name for one in up.backends] == ["web0"]
    assert [one.name for one in webs.backends] == ["web0", "web1"]
    assert [one.name for one in fronts.frontends] == ["www"]
    assert [one.name for one in dns.backends] == ["dns0"]
    await refused(stub.ListBackends(pb.ListBackendsRequest(name_regexp="(")), Status.INVALID_ARGUMENT)
    await refused(stub.ListBackends(pb.ListBackendsRequest(name_regexp="x" * 300)), Status.INVALID_ARGUMENT)
    await refused(stub.ListBackends(pb.ListBackendsRequest(states=[99])), Status.INVALID_ARGUMENT)  # type: ignore[list-item]


async def test_backend_shows_history_overrides_and_its_frontends(start: Start) -> None:
    running = await start()
    checker = running.daemon.checker
    checker.move("web0", State.DOWN, Code.L7STS, detail="HTTP status 503")
    checker.set.append(Override(OverrideKind.DRAIN, "web0", "10.0.0.1", NOW, by="unix", reason="disk"))
    checker.statuses["web0"].last_rtt_ns = 0
    stub = running.unix()

    info = await stub.GetBackend(pb.GetBackendRequest(name="web0"), timeout=DEADLINE)

    assert info.transitions[0].from_state == pb.BACKEND_STATE_UNKNOWN
    assert info.transitions[0].to_state == pb.BACKEND_STATE_DOWN
    assert info.transitions[0].code == pb.CHECK_CODE_L7STS
    assert info.transitions[0].detail == "HTTP status 503"
    assert info.HasField("last_rtt_ns")
    assert not info.HasField("last_result_age_ns")
    assert [(one.kind, one.reason) for one in info.overrides] == [(pb.OVERRIDE_KIND_DRAIN, "disk")]
    assert list(info.frontends) == ["www"]


async def test_health_checks_show_their_parameters_and_users(start: Start) -> None:
    stub = (await start()).unix()

    listed = await stub.ListHealthChecks(pb.ListHealthChecksRequest(), timeout=DEADLINE)
    web = await stub.GetHealthCheck(pb.GetHealthCheckRequest(name="web"), timeout=DEADLINE)

    assert [(one.name, one.backends) for one in listed.healthchecks] == [("web", 2), ("dns", 1)]
    assert web.WhichOneof("params") == "http"
    assert (web.http.path, web.http.host, web.http.response_codes[0].high) == ("/healthz", "www.example.org", 200)
    assert listed.healthchecks[1].WhichOneof("params") == "tcp"


async def test_unknown_names_are_not_found(start: Start) -> None:
    stub = (await start()).unix()

    for call in (
        stub.GetFrontend(pb.GetFrontendRequest(name="nil")),
        stub.GetBackend(pb.GetBackendRequest(name="nil")),
        stub.GetHealthCheck(pb.GetHealthCheckRequest(name="nil")),
        stub.PauseBackend(pb.ChangeBackendRequest(name="nil")),
        stub.DrainBackend(pb.ChangeBackendRequest(name="nil")),
        stub.SetFrontendPoolBackendWeight(pb.SetWeightRequest(frontend="nil", pool="p", backend="b", weight=1)),
        stub.SetFrontendPoolBackendWeight(pb.SetWeightRequest(frontend="www", pool="nil", backend="web0", weight=1)),
        stub.GetVPPLBState(pb.GetVPPLBStateRequest(frontend="nil")),
        stub.SyncVPPLBState(pb.SyncVPPLBStateRequest(frontend="nil")),
        stub.GetVPPLBCounters(pb.GetVPPLBCountersRequest(frontend="nil")),
        stub.GetFlow(pb.GetFlowRequest(source="198.51.100.7", address="192.0.2.9", port=80)),
    ):
        await refused(call, Status.NOT_FOUND)
    watch = stub.WatchEvents(pb.WatchEventsRequest(backends=["nil"]))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await state_of(watch)
    assert caught.value.code() is Status.NOT_FOUND


async def test_each_verb_reaches_the_checker_with_caller_reason_and_duration(start: Start) -> None:
    async def keep() -> None:
        if running.daemon.checker.asked[-1][0] == "disable":
            raise Unavailable("the disk is full")

    running = await start(fake_daemon(keep=keep))
    stub = running.unix()

    lost = "the change is in force, but would not survive a restart: the disk is full"
    for verb in ("Pause", "Resume", "Disable", "Enable", "Drain", "Undrain"):
        lasts = verb in ("Pause", "Disable", "Drain")
        request = pb.ChangeBackendRequest(name="web0", reason="disk", duration_ns=5_000_000_000 if lasts else 0)
        answer = await getattr(stub, f"{verb}Backend")(request, timeout=DEADLINE)
        assert answer.changed
        assert list(answer.warnings) == ([lost] if verb == "Disable" else [])

    assert running.daemon.checker.asked == [
        (verb, "web0", "unix", "disk", 5_000_000_000 if verb in ("pause", "disable", "drain") else 0)
        for verb in ("pause", "resume", "disable", "enable", "drain", "undrain")
    ]
    again = await stub.EnableBackend(pb.ChangeBackendRequest(name="web0"), timeout=DEADLINE)
    assert not again.changed


async def test_the_record_of_a_change_has_what_was_asked_for(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "maglev.rpc")
    stub = (await start()).unix()

    request = pb.ChangeBackendRequest(name="web0", reason="disk by=root", duration_ns=2 * 3600 * 10**9)
    await stub.DrainBackend(request, timeout=DEADLINE)
    weight = pb.SetWeightRequest(frontend="www", pool="primary", backend="web0", weight=0)
    await stub.SetFrontendPoolBackendWeight(weight, timeout=DEADLINE)

    records = [vars(one) for one in caplog.records if vars(one).get("maglev_event") == "api-change"]
    drain, zero = (one["maglev_fields"] for one in records)
    assert (drain["backend"], drain["by"]) == ("web0", "unix")
    assert (drain["reason"], drain["duration"]) == ("disk by=root", "2h0m0s")
    said = [one.getMessage() for one in caplog.records if vars(one).get("maglev_event") == "api-change"]
    assert said[0] == "unix called DrainBackend backend=web0 reason='disk by=root' duration=2h0m0s"
    assert (zero["frontend"], zero["pool"], zero["weight"]) == ("www", "primary", "0"), "zero is a weight"


async def test_a_socket_path_without_room_for_the_logins_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "maglev.rpc")
    logins = Logins()
    path = tmp_path / ("s" * (MAX_PATH_BYTES - len(os.fsencode(tmp_path)) - 1))

    await logins.start(path)
    await logins.stop()

    (record,) = [one for one in caplog.records if vars(one).get("maglev_event") == "api-logins-off"]
    assert record.getMessage().count(str(path)) == 1
    assert f"may have {MAX_PATH_BYTES} bytes" in record.getMessage()


async def test_bad_words_of_a_change_are_refused(start: Start) -> None:
    running = await start()
    stub = running.unix()

    for call in (
        stub.EnableBackend(pb.ChangeBackendRequest(name="web0", duration_ns=1)),
        stub.DrainBackend(pb.ChangeBackendRequest(name="web0", duration_ns=-1)),
        stub.DrainBackend(pb.ChangeBackendRequest(name="web0", duration_ns=1 << 62)),
        stub.DrainBackend(pb.ChangeBackendRequest(name="web0", reason="x" * 256)),
        stub.DrainBackend(pb.ChangeBackendRequest(name="web0", reason="\x1b[31m")),
    ):
        await refused(call, Status.INVALID_ARGUMENT)
    assert running.daemon.checker.asked == []


async def test_pausing_a_disabled_backend_is_a_failed_precondition(start: Start) -> None:
    running = await start()
    running.daemon.checker.move("web0", State.DISABLED, Code.DISABLED)
    stub = running.unix()

    await refused(stub.PauseBackend(pb.ChangeBackendRequest(name="web0")), Status.FAILED_PRECONDITION)
    await refused(stub.ResumeBackend(pb.ChangeBackendRequest(name="web0")), Status.FAILED_PRECONDITION)


async def test_weight_is_set_rounded_and_taken_back(start: Start) -> None:
    running = await start()
    running.daemon.checker.move("web0", State.UP, Code.L7OK)
    stub = running.unix()
    request = pb.SetWeightRequest(frontend="www", pool="primary", backend="web0", weight=33, flush=True)

    answer = await stub.SetFrontendPoolBackendWeight(request, timeout=DEADLINE)
    overrides = await stub.ListOverrides(pb.ListOverridesRequest(), timeout=DEADLINE)
    request.ClearField("weight")
    back = await stub.SetFrontendPoolBackendWeight(request, timeout=DEADLINE)

    assert (answer.backend.weight, answer.backend.configured_weight, answer.previous_weight) == (33, 100, 100)
    assert (answer.unit, answer.applied_weight, answer.rounded) == (10, 30, True)
    assert [(one.kind, one.weight, one.file_weight) for one in overrides.overrides] == [
        (pb.OVERRIDE_KIND_WEIGHT, 33, 100)
    ]
    assert (back.backend.weight, back.rounded, back.previous_weight) == (100, False, 33)
    for weight in (-1, 101):
        bad = pb.SetWeightRequest(frontend="www", pool="primary", backend="web0", weight=weight)
        await refused(stub.SetFrontendPoolBackendWeight(bad), Status.INVALID_ARGUMENT)


async def test_configuration_is_checked_compared_and_reloaded(start: Start) -> None:
    running = await start()
    loader = running.daemon.loader
    stub = running.unix()

    check = await stub.CheckConfig(pb.CheckConfigRequest(), timeout=DEADLINE)
    diff = await stub.DiffConfig(pb.DiffConfigRequest(), timeout=DEADLINE)
    done = await stub.ReloadConfig(pb.ReloadConfigRequest(), timeout=DEADLINE)

    assert check.ok
    assert [(one.path, one.line, one.column) for one in check.warnings] == [("maglev.frontends.www", 3, 5)]
    assert [(one.path, one.kind, one.new) for one in diff.changes] == [
        ("maglev.backends.web0.address", pb.CHANGE_KIND_CHANGED, "192.0.2.2")
    ]
    assert diff.plan.steps[0].kind == pb.PLAN_STEP_KIND_AS_WEIGHT
    assert done.ok
    assert loader.reloads == [(False, "unix")]


async def test_a_broken_file_is_an_answer_with_its_errors_and_not_a_status(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "maglev.rpc")
    running = await start()
    running.daemon.loader.result = LoadResult(
        None,
        (
            Problem(ProblemKind.PARSE, "maglev.x", "unknown key", 2, 3),
            Problem(ProblemKind.SEMANTIC, "maglev.y", "no such backend\udcff"),
        ),
    )
    stub = running.unix()

    done = await stub.ReloadConfig(pb.ReloadConfigRequest(), timeout=DEADLINE)
    diff = await stub.DiffConfig(pb.DiffConfigRequest(), timeout=DEADLINE)

    assert not done.ok
    assert [one.path for one in done.parse_errors] == ["maglev.x"]
    assert done.semantic_errors[0].message == "no such backend\\udcff"
    assert not diff.check.ok
    assert not diff.changes
    (change,) = [vars(one) for one in caplog.records if vars(one).get("maglev_event") == "api-change"]
    assert change["maglev_fields"]["problem"] == "the file has errors, nothing was changed"


async def test_a_dangerous_reload_needs_force(start: Start) -> None:
    running = await start()
    running.daemon.loader.dangerous = True
    stub = running.unix()

    words = await refused(stub.ReloadConfig(pb.ReloadConfigRequest()), Status.FAILED_PRECONDITION)
    forced = await stub.ReloadConfig(pb.ReloadConfigRequest(force=True), timeout=DEADLINE)

    assert "4 of 5" in words
    assert forced.ok
    assert running.daemon.loader.reloads == [(True, "unix")]


async def test_callers_who_compare_configurations_share_it_and_none_is_refused() -> None:
    daemon = fake_daemon()
    service = MaglevService(daemon.services)
    begun, go = asyncio.Event(), asyncio.Event()
    loads = 0

    async def load() -> LoadResult:
        nonlocal loads
        loads += 1
        begun.set()
        await go.wait()
        return daemon.loader.result

    context: Any = None  # of no meaning to this call

    def ask() -> asyncio.Future[pb.DiffConfigResponse]:
        return asyncio.ensure_future(service.DiffConfig(pb.DiffConfigRequest(), context))

    daemon.loader.load = load  # type: ignore[method-assign]
    async with asyncio.timeout(DEADLINE):
        calls = [ask() for _ in range(40)]
        await begun.wait()
        calls += [ask() for _ in range(40)]
        go.set()
        assert all(one.check.ok for one in await asyncio.gather(*calls))
    assert loads == 2


async def test_viewers_wait_apart_from_operators_and_take_turns_with_them() -> None:
    turnstile = Turnstile("a reading", most=3)
    turns: list[str] = []
    go = asyncio.Event()

    def begin(name: str, role: Role) -> asyncio.Future[None]:
        async def work() -> None:
            turns.append(name)
            await go.wait()

        return asyncio.ensure_future(turnstile.run(role, work))

    viewers = [begin(f"viewer {number}", Role.VIEWER) for number in range(4)]
    await asyncio.wait(viewers, return_when=asyncio.FIRST_COMPLETED)
    assert isinstance(viewers.pop().exception(), TooMany)
    operators = [begin(f"operator {number}", Role.OPERATOR) for number in range(2)]
    await asyncio.sleep(0)
    operators.pop().cancel()
    go.set()
    await asyncio.gather(*viewers, *operators)
    assert turns == ["viewer 0", "operator 0", "viewer 1", "viewer 2"]


async def test_checks_keep_no_operator_from_his_reload(start: Start) -> None:
    running = await start()
    loader = running.daemon.loader
    stub = running.unix()
    begun, go = asyncio.Event(), asyncio.Event()

    async def check() -> LoadResult:
        begun.set()
        await go.wait()
        return loader.result

    loader.checks = check
    async with asyncio.timeout(DEADLINE):
        calls = [stub.CheckConfig(pb.CheckConfigRequest()) for _ in range(40)]
        await begun.wait()
        assert (await stub.ReloadConfig(pb.ReloadConfigRequest())).ok
        go.set()
        assert all([(await call).ok for call in calls])


async def test_who_comes_while_it_runs_shares_the_run_behind_it() -> None:
    runs = 0
    go = asyncio.Event()

    async def work() -> int:
        nonlocal runs
        runs += 1
        number = runs
        await go.wait()
        return number

    shared = Shared(work)
    first = asyncio.ensure_future(shared.run())
    while not runs:  # noqa: ASYNC110 - the run begins within a few turns of the loop
        await asyncio.sleep(0)
    others = [asyncio.ensure_future(shared.run()) for _ in range(100)]
    await asyncio.sleep(0)
    others.pop().cancel()
    go.set()
    assert await first == 1
    assert set(await asyncio.gather(*others)) == {2}
    assert await shared.run() == 3


async def test_a_reload_goes_on_when_its_caller_goes_away(start: Start) -> None:
    running = await start()
    loader = running.daemon.loader
    begun, go_on = asyncio.Event(), asyncio.Event()
    done = asyncio.Event()

    async def slow(*, force: bool, by: str) -> LoadResult:
        begun.set()
        await go_on.wait()
        done.set()
        return loader.result

    loader.reload = slow  # type: ignore[method-assign]
    call = running.unix().ReloadConfig(pb.ReloadConfigRequest())
    async with asyncio.timeout(DEADLINE):
        waiter = asyncio.ensure_future(call.wait_for_connection())
        await begun.wait()
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiter
        with pytest.raises(asyncio.CancelledError):
            await call
        go_on.set()
        await done.wait()


async def test_server_info_says_who_answers_and_who_asks(start: Start) -> None:
    running = await start()
    running.daemon.checker.move("web0", State.UP, Code.L7OK)

    local = await running.unix().GetServerInfo(pb.GetServerInfoRequest(), timeout=DEADLINE)
    remote = await running.tcp().GetServerInfo(pb.GetServerInfoRequest(), timeout=DEADLINE)

    assert (local.version, local.pid) == ("1.2.3", os.getpid())
    assert (local.frontends, local.backends, local.healthchecks) == (2, 4, 2)
    assert {one.state: one.backends for one in local.backend_states} == {
        pb.BACKEND_STATE_UNKNOWN: 3,
        pb.BACKEND_STATE_UP: 1,
    }
    assert (local.vpp.configured, local.vpp.connected) == (True, True)
    assert local.engine["sent"] == 12
    assert local.engine["clock_step_ns"] == -5_000_000_000, "a clock that was set back is no failure of the call"
    assert (local.caller, local.role) == ("unix", pb.ROLE_OPERATOR)
    assert (remote.caller, remote.role) == ("tcp:127.0.0.1", pb.ROLE_VIEWER)


async def test_vpp_state_counters_and_plan(start: Start) -> None:
    running = await start()
    running.daemon.checker.move("web0", State.UP, Code.L7OK)
    stub = running.unix()

    info = await stub.GetVPPInfo(pb.GetVPPInfoRequest(), timeout=DEADLINE)
    state = await stub.GetVPPLBState(pb.GetVPPLBStateRequest(), timeout=DEADLINE)
    one = await stub.GetVPPLBState(pb.GetVPPLBStateRequest(frontend="dns"), timeout=DEADLINE)
    counters = await stub.GetVPPLBCounters(pb.GetVPPLBCountersRequest(), timeout=DEADLINE)
    plan = await stub.SyncVPPLBState(pb.SyncVPPLBStateRequest(dry_run=True), timeout=DEADLINE)
    done = await stub.SyncVPPLBState(pb.SyncVPPLBStateRequest(frontend="www", force=True), timeout=DEADLINE)

    assert (info.version, info.workers, info.lb_supported) == ("26.10-rc0", 2, True)
    assert [vip.prefix for vip in state.vips] == ["192.0.2.80/32", "2001:db8::53/128"]
    web0 = state.vips[0].ases[0]
    assert (web0.backend, web0.state, web0.effective_weight, web0.vpp_weight) == ("web0", pb.BACKEND_STATE_UP, 100, 10)
    assert [vip.frontend for vip in one.vips] == ["dns"]
    assert [(vip.frontend, vip.first_session) for vip in counters.vips] == [("www", 10), ("dns", 10)]
    assert (plan.applied, done.applied) == (False, True)
    assert plan.plan.steps[0].text == "weight 192.0.2.80/32 tcp 80 10.0.0.1 10 -> 0"
    assert plan.plan.vips[0].ases[0].buckets_before == 8192
    assert running.daemon.dataplane.syncs == [("www", True, "unix")]


async def test_a_dry_run_answers_as_the_change_and_changes_nothing(start: Start) -> None:
    running = await start()
    checker, stub = running.daemon.checker, running.unix()
    checker.move("web0", State.UP, Code.L7OK)
    before = (dict(checker.statuses), list(checker.set), len(running.daemon.services.events))

    drained = await stub.DrainBackend(pb.ChangeBackendRequest(name="web0", dry_run=True), timeout=DEADLINE)
    lighter = await stub.SetFrontendPoolBackendWeight(
        pb.SetWeightRequest(frontend="www", pool="primary", backend="web0", weight=33, dry_run=True), timeout=DEADLINE
    )
    released = await stub.ReleaseBrake(pb.ReleaseBrakeRequest(dry_run=True), timeout=DEADLINE)
    await refused(stub.DrainBackend(pb.ChangeBackendRequest(name="nil", dry_run=True)), Status.NOT_FOUND)
    await refused(
        stub.ResumeBackend(pb.ChangeBackendRequest(name="web0", duration_ns=1, dry_run=True)), Status.INVALID_ARGUMENT
    )

    assert (dict(checker.statuses), list(checker.set), len(running.daemon.services.events)) == before
    assert (drained.changed, drained.backend.drained) == (True, True)
    (frontend,) = drained.preview.frontends
    (member,) = frontend.members
    assert (frontend.frontend, frontend.state_before, frontend.state_after) == (
        "www",
        pb.FRONTEND_STATE_UP,
        pb.FRONTEND_STATE_DOWN,
    )
    assert (member.backend, member.effective_before, member.effective_after, member.programmed_before) == (
        "web0",
        100,
        0,
        10,
    )
    assert drained.preview.plan.vips[0].moved_share == pytest.approx(0.02)
    assert (lighter.applied_weight, lighter.rounded, lighter.previous_weight) == (30, True, 100)
    assert lighter.preview.frontends[0].members[0].programmed_after == 3
    assert (released.released, released.preview.HasField("plan")) == (0, True)
    done = await stub.DrainBackend(pb.ChangeBackendRequest(name="web0"), timeout=DEADLINE)
    assert not done.HasField("preview")


async def test_a_dry_run_without_vpp_says_why_it_has_no_plan(start: Start) -> None:
    running = await start()
    running.daemon.dataplane.lose()
    without = await start(fake_daemon(vpp=False))

    for one, words in ((running, "VPP is away"), (without, "the daemon runs without VPP")):
        answer = await one.unix().DrainBackend(pb.ChangeBackendRequest(name="web0", dry_run=True), timeout=DEADLINE)
        assert (answer.preview.no_plan, answer.preview.HasField("plan")) == (words, False)
        assert list(answer.warnings) == []


async def test_vpp_away_is_unavailable_and_says_why(start: Start) -> None:
    running = await start()
    running.daemon.dataplane.lose("no such file")
    stub = running.unix()
    without = (await start(fake_daemon(vpp=False))).unix()

    for one in (stub, without):
        await refused(one.GetVPPInfo(pb.GetVPPInfoRequest()), Status.UNAVAILABLE)
        await refused(one.GetVPPLBState(pb.GetVPPLBStateRequest()), Status.UNAVAILABLE)
        await refused(one.SyncVPPLBState(pb.SyncVPPLBStateRequest()), Status.UNAVAILABLE)
        await refused(one.GetVPPLBCounters(pb.GetVPPLBCountersRequest()), Status.UNAVAILABLE)
    assert "no such file" in await refused(stub.GetVPPInfo(pb.GetVPPInfoRequest()), Status.UNAVAILABLE)
    info = await stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=DEADLINE)
    assert (info.vpp.connected, info.vpp.problem) == (False, "no such file")
    diff = await stub.DiffConfig(pb.DiffConfigRequest(), timeout=DEADLINE)
    assert diff.check.ok
    assert not diff.HasField("plan")


async def test_a_viewer_cannot_make_the_daemon_read_vpp_without_end(start: Start) -> None:
    running = await start()
    viewer, operator = running.tcp(), running.unix()

    for _ in range(5):
        await viewer.GetVPPLBState(pb.GetVPPLBStateRequest(), timeout=DEADLINE)
    seen = running.daemon.dataplane.readings
    await operator.GetVPPLBState(pb.GetVPPLBStateRequest(), timeout=DEADLINE)
    await operator.GetVPPLBState(pb.GetVPPLBStateRequest(), timeout=DEADLINE)

    assert seen < 5
    assert running.daemon.dataplane.readings == seen + 2


# ------------------------------------------------------------------------------------------------------- access


async def test_a_viewer_reads_and_changes_nothing(start: Start) -> None:
    running = await start()
    stub = running.tcp()
    requests = {
        "SetFrontendPoolBackendWeight": pb.SetWeightRequest(frontend="www", pool="primary", backend="web0", weight=1),
        "ReloadConfig": pb.ReloadConfigRequest(),
        "SyncVPPLBState": pb.SyncVPPLBStateRequest(),
    }

    for method in sorted(OPERATOR_CALLS):
        call = method.rpartition("/")[2]
        request = requests.get(call, pb.ChangeBackendRequest(name="web0"))
        words = await refused(getattr(stub, call)(request, timeout=DEADLINE), Status.PERMISSION_DENIED)
        assert "tcp:127.0.0.1" in words
    await stub.ListBackends(pb.ListBackendsRequest(), timeout=DEADLINE)

    assert running.daemon.checker.asked == []
    assert running.daemon.dataplane.syncs == []
    assert running.server.calls["PauseBackend", "PERMISSION_DENIED"] == 1
    assert running.server.calls["ListBackends", "OK"] == 1


async def test_tcp_callers_are_operators_when_the_daemon_says_so(start: Start) -> None:
    running = await start(tcp_role=Role.OPERATOR)

    answer = await running.tcp().DrainBackend(pb.ChangeBackendRequest(name="web0"), timeout=DEADLINE)

    assert answer.backend.drained
    assert running.daemon.checker.asked[0][2] == "tcp:127.0.0.1"


async def test_a_bug_is_told_as_internal_without_its_text(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    running = await start()

    def broken(name: str) -> Any:
        raise ZeroDivisionError("secret")

    running.daemon.checker.backend_status = broken  # type: ignore[method-assign]
    words = await refused(running.unix().GetBackend(pb.GetBackendRequest(name="web0")), Status.INTERNAL)

    assert "secret" not in words
    assert "GetBackend failed" in caplog.text


# ------------------------------------------------------------------------------------------------------- paging


async def test_pages_cover_the_list_once_and_in_order(start: Start) -> None:
    config = large_config(12_000, 40)
    running = await start(fake_daemon(config))
    stub = running.unix()

    names: list[str] = []
    sizes = []
    token = ""
    while True:
        page = await stub.ListBackends(
            pb.ListBackendsRequest(page_size=100_000, page_token=token, omit_transitions=True), timeout=DEADLINE
        )
        names += [one.name for one in page.backends]
        sizes.append(len(page.backends))
        assert page.total == 12_000
        token = page.next_page_token
        if not token:
            break

    assert names == list(config.backends)
    assert sizes == [5_000, 5_000, 2_000]


async def test_pages_of_frontends_end_early_when_they_have_many_members(start: Start) -> None:
    config = large_config(30_000, 10)
    running = await start(fake_daemon(config))
    stub = running.unix()

    first = await stub.ListFrontends(pb.ListFrontendsRequest(), timeout=DEADLINE)
    second = await stub.ListFrontends(pb.ListFrontendsRequest(page_token=first.next_page_token), timeout=DEADLINE)

    assert 0 < len(first.frontends) < 10
    assert [one.name for one in (*first.frontends, *second.frontends)] == list(config.frontends)
    assert not second.next_page_token
    assert first.ByteSize() < 4 << 20


async def test_strange_page_tokens_are_refused(start: Start) -> None:
    stub = (await start()).unix()

    for token in ("x", "%%%", "a" * 1000, "LTE6eA", "ZmZmZg"):
        await refused(stub.ListBackends(pb.ListBackendsRequest(page_token=token)), Status.INVALID_ARGUMENT)


async def test_a_long_list_lets_the_loop_run(start: Start) -> None:
    running = await start(fake_daemon(large_config(5_000, 5)))
    turns = 0
    over = asyncio.Event()

    async def others() -> None:
        nonlocal turns
        while not over.is_set():
            turns += 1
            await asyncio.sleep(0)

    # A slice of nothing: each item lets others run, whatever the machine's speed.
    before = running.daemon.checker.backend_status
    seen: list[int] = []

    def watched(name: str) -> Any:
        seen.append(turns)
        return before(name)

    running.daemon.checker.backend_status = watched  # type: ignore[method-assign]
    runner = asyncio.ensure_future(others())
    await running.unix().ListBackends(pb.ListBackendsRequest(page_size=5_000), timeout=DEADLINE)
    over.set()
    await runner

    assert len(seen) == 5_000
    assert len(set(seen)) > 1


# ------------------------------------------------------------------------------------------------------- events


async def test_a_watcher_hears_the_present_state_first_and_then_what_happens(start: Start) -> None:
    running = await start()
    checker = running.daemon.checker
    checker.move("web0", State.UP, Code.L7OK)
    call = running.unix().WatchEvents(pb.WatchEventsRequest())

    told = await state_of(call)
    checker.move("web0", State.DOWN, Code.L4CON, detail="refused")
    checker.drain("web1", by="unix", reason="disk")
    checker.set_weight("www", "primary", "web1", 7, flush=False, by="unix")
    running.daemon.bus.publish(FrontendEvent("www", FrontendState.UP, FrontendState.DOWN, NOW))
    running.daemon.bus.publish(log_event())
    news, lost = await batches(call, lambda events: len(events) >= 4)
    call.cancel()

    assert [one.backend.name for one in told if one.HasField("backend")] == ["web0", "web1", "spare", "dns0"]
    assert [one.frontend.name for one in told if one.HasField("frontend")] == ["www", "dns"]
    assert all(one.backend.from_state == one.backend.to_state for one in told if one.HasField("backend"))
    assert told[0].backend.to_state == pb.BACKEND_STATE_UP
    assert [one.WhichOneof("event") for one in news] == ["backend", "drain", "weight", "frontend"]
    assert (news[0].backend.from_state, news[0].backend.to_state) == (pb.BACKEND_STATE_UP, pb.BACKEND_STATE_DOWN)
    assert news[0].backend.detail == "refused"
    assert (news[1].drain.name, news[1].drain.drained, news[1].drain.reason) == ("web1", True, "disk")
    assert (news[2].weight.old_weight, news[2].weight.new_weight) == (50, 7)
    assert lost == 0


async def test_watchers_filter_by_kind_level_and_name(start: Start) -> None:
    running = await start()
    bus, checker = running.daemon.bus, running.daemon.checker
    stub = running.unix()
    logs = stub.WatchEvents(pb.WatchEventsRequest(kinds=[pb.EVENT_KIND_LOG], log_level=pb.LOG_LEVEL_WARNING))
    named = stub.WatchEvents(pb.WatchEventsRequest(backends=["web1"]))
    assert await state_of(logs) == []
    assert [one.backend.name for one in await state_of(named)] == ["web1"]
    assert running.daemon.logs.levels == ["warning"]

    bus.publish(log_event("info"))
    bus.publish(log_event("error", "bad"))
    checker.move("web0", State.UP, Code.L7OK)
    checker.move("web1", State.UP, Code.L7OK)
    records, _ = await batches(logs, bool)
    news, _ = await batches(named, bool)

    assert [one.log.event for one in records] == ["bad"]
    assert [one.backend.name for one in news] == ["web1"]
    await refused(state_of(stub.WatchEvents(pb.WatchEventsRequest(kinds=[9]))), Status.INVALID_ARGUMENT)  # type: ignore[list-item]


async def test_single_probes_are_traced_for_who_names_the_backend_only(start: Start) -> None:
    running = await start()
    bus, traced = running.daemon.bus, running.daemon.checker.traced
    stub = running.unix()
    kinds = [pb.EVENT_KIND_LOG]
    everything = stub.WatchEvents(pb.WatchEventsRequest(kinds=kinds, log_level=pb.LOG_LEVEL_DEBUG))
    one = stub.WatchEvents(pb.WatchEventsRequest(kinds=kinds, log_level=pb.LOG_LEVEL_DEBUG, backends=["web0"]))
    await state_of(everything)
    await state_of(one)

    assert traced == ["web0"]
    bus.publish(log_event("debug", "probe", backend="web0"))
    bus.publish(log_event("debug", "last"))
    seen, _ = await batches(everything, bool)
    own, _ = await batches(one, lambda events: len(events) == 2)
    one.cancel()
    async with asyncio.timeout(DEADLINE):
        await running.daemon.logs.ended.wait()

    assert traced == []
    assert [event.log.event for event in seen] == ["last"]
    assert [event.log.event for event in own] == ["probe", "last"]


async def test_what_happens_while_the_state_is_told_is_neither_lost_nor_told_twice(start: Start) -> None:
    running = await start(fake_daemon(large_config(3_000, 3)))
    checker = running.daemon.checker
    call = running.unix().WatchEvents(pb.WatchEventsRequest(kinds=[pb.EVENT_KIND_BACKEND]))
    moved: list[str] = []
    state: dict[str, int] = {}

    async with asyncio.timeout(DEADLINE):
        complete = False
        async for batch in call:
            for event in batch.events:
                name = event.backend.name
                if name in state:
                    # The stream is a chain: each change begins where the last word on that backend ended.
                    assert event.backend.from_state == state[name]
                state[name] = event.backend.to_state
            if not complete and len(moved) < 40:
                for at in (0, 2_999 - len(moved)):
                    name = f"b{at:05}"
                    now = checker.statuses[name].state
                    checker.move(name, State.DOWN if now is State.UP else State.UP, Code.L4OK)
                    moved.append(name)
            complete |= batch.state_complete
            if complete and all(state[name] == checker.statuses[name].state + 1 for name in moved):
                break
    call.cancel()

    assert len(state) == 3_000
    assert moved


async def test_a_slow_watcher_loses_with_a_count_and_slows_nobody(start: Start) -> None:
    running = await start()
    bus, checker = running.daemon.bus, running.daemon.checker
    stub = running.unix()
    slow = stub.WatchEvents(pb.WatchEventsRequest(kinds=[pb.EVENT_KIND_BACKEND]))
    await state_of(slow)
    detail = "x" * 1_000
    flood = 60_000

    async with asyncio.timeout(DEADLINE):
        for at in range(flood):
            checker.statuses["web0"].transitions = ()
            checker.move("web0", State.UP if at % 2 else State.DOWN, Code.L7STS, detail=detail)
            if at % 500 == 0:
                await asyncio.sleep(0)
    # Publishing never waited, and another caller is served.
    info = await stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=DEADLINE)
    assert info.watchers == 1
    assert bus.lost > 0
    checker.move("spare", State.UP, Code.STATIC)
    events, lost = await batches(slow, lambda events: bool(events) and events[-1].backend.name == "spare")
    slow.cancel()

    assert lost == bus.lost
    assert lost + len(events) == flood + 1


async def test_a_watch_ends_with_its_caller(start: Start) -> None:
    running = await start()
    call = running.unix().WatchEvents(pb.WatchEventsRequest(kinds=[pb.EVENT_KIND_LOG]))
    await state_of(call)
    assert (len(running.server.watchers), running.daemon.bus.subscribers) == (1, 1)

    call.cancel()
    async with asyncio.timeout(DEADLINE):
        await running.daemon.logs.ended.wait()

    assert running.daemon.bus.subscribers == 0
    assert len(running.server.watchers) == 0
    assert running.daemon.logs.levels == []


async def test_watchers_beyond_the_limit_are_refused_and_counted(start: Start) -> None:
    running = await start(watchers=2)
    stub = running.unix()
    calls = [stub.WatchEvents(pb.WatchEventsRequest()) for _ in range(2)]
    for call in calls:
        await state_of(call)

    await refused(state_of(stub.WatchEvents(pb.WatchEventsRequest())), Status.RESOURCE_EXHAUSTED)

    assert running.server.watchers.refused == 1


async def test_shutdown_ends_streams_with_unavailable(start: Start) -> None:
    running = await start()
    call = running.unix().WatchEvents(pb.WatchEventsRequest())
    await state_of(call)
    health = health_pb2_grpc.HealthStub(running.channels[0]).Watch(health_pb2.HealthCheckRequest())
    began = asyncio.Event()

    async def rest(stream: Any) -> None:
        async for _ in stream:
            if stream is health:
                began.set()

    ends = [asyncio.ensure_future(rest(stream)) for stream in (call, health)]
    async with asyncio.timeout(DEADLINE):
        await began.wait()  # a call that has not begun when the server stops is cancelled
        await running.server.stop(0.5)
        outcomes = await asyncio.gather(*ends, return_exceptions=True)

    for outcome in outcomes:
        assert isinstance(outcome, grpc.aio.AioRpcError), outcome
        assert outcome.code() is Status.UNAVAILABLE
    assert not running.socket.exists()


async def test_shutdown_cuts_off_a_stream_that_nobody_reads(start: Start) -> None:
    running = await start()
    call = running.unix().WatchEvents(pb.WatchEventsRequest(kinds=[pb.EVENT_KIND_BACKEND]))
    await state_of(call)
    for at in range(20_000):
        running.daemon.checker.statuses["web0"].transitions = ()
        running.daemon.checker.move("web0", State.UP if at % 2 else State.DOWN, Code.L7STS, detail="x" * 1000)
        if at % 500 == 0:
            await asyncio.sleep(0)

    async with asyncio.timeout(DEADLINE):
        await running.server.stop(0.3)

    assert running.daemon.bus.subscribers == 0


# ---------------------------------------------------------------------------------------------------- listeners


async def test_health_service_and_reflection_answer(start: Start) -> None:
    running = await start()
    running.tcp()
    channel = running.channels[0]

    for service in ("", "maglev.Maglev"):
        health = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service=service), timeout=DEADLINE
        )
        assert health.status == health_pb2.HealthCheckResponse.SERVING
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    stream = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]), timeout=DEADLINE)
    names = [service.name for service in (await stream.read()).list_services_response.service]
    assert "maglev.Maglev" in names
    assert "grpc.health.v1.Health" in names


async def test_reflection_speaks_version_1_too(start: Start) -> None:
    running = await start()
    running.tcp()
    ask = running.channels[0].stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="maglev.Maglev"),
    ]
    listed, described = [answer async for answer in ask(iter(requests), timeout=DEADLINE)]
    names = {service.name for service in listed.list_services_response.service}
    assert names >= {"maglev.Maglev", "grpc.reflection.v1.ServerReflection"}
    assert described.file_descriptor_response.file_descriptor_proto


async def test_reflection_can_be_turned_off(start: Start) -> None:
    running = await start(reflection=False)
    running.tcp()
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    stub = reflection_pb2_grpc.ServerReflectionStub(running.channels[0])

    await refused(stub.ServerReflectionInfo(iter([request]), timeout=DEADLINE).read(), Status.UNIMPLEMENTED)
    assert running.server.calls["unknown", "UNIMPLEMENTED"] == 1


async def test_the_socket_lies_in_a_directory_for_the_group_and_is_not_for_others(start: Start) -> None:
    running = await start()

    assert stat.S_IMODE(running.socket.parent.stat().st_mode) == 0o750
    assert stat.S_IMODE(running.socket.stat().st_mode) == 0o660


async def test_a_stale_socket_is_cleared_away_and_a_living_one_is_not(start: Start, tmp_path: Path) -> None:
    stale = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(stale))
    running = await start(unix_socket=stale, tcp_address="")

    second = RpcServer(fake_daemon().services, ServerOptions(unix_socket=stale))
    with pytest.raises(CannotListen, match="another process answers"):
        await second.start()

    running.socket = stale
    info = await running.unix().GetServerInfo(pb.GetServerInfoRequest(), timeout=DEADLINE)
    assert info.version == "1.2.3"


async def test_a_file_in_the_place_of_the_socket_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "maglevd.sock"
    precious.write_text("precious")

    with pytest.raises(CannotListen, match="no socket"):
        await RpcServer(fake_daemon().services, ServerOptions(unix_socket=precious)).start()

    assert precious.read_text() == "precious"


async def test_a_port_in_use_is_said_with_its_address(start: Start) -> None:
    running = await start()

    server = RpcServer(fake_daemon().services, ServerOptions(tcp_address=f"127.0.0.1:{running.server.port}"))
    with pytest.raises(CannotListen, match="EADDRINUSE"):
        await server.start()


@pytest.mark.parametrize("address", ["", "9090", "host:port", "::1:9090", "example.org:1", "127.0.0.1:70000"])
async def test_malformed_addresses_are_refused(address: str) -> None:
    server = RpcServer(fake_daemon().services, ServerOptions(tcp_address=address or "x"))
    with pytest.raises(CannotListen):
        await server.start()


async def test_all_addresses_are_listened_on_with_a_warning(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    running = await start(tcp_address=":0")

    info = await running.tcp().GetServerInfo(pb.GetServerInfoRequest(), timeout=DEADLINE)

    assert info.caller == "tcp:127.0.0.1"
    assert "without TLS" in caplog.text


async def test_garbage_on_the_port_harms_nobody(start: Start) -> None:
    running = await start()
    stub = running.tcp()
    await stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=DEADLINE)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

    for garbage in (
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        os.urandom(4096),
        preface + os.urandom(4096),
        preface + b"\x00\xff\xff\x04\x00\x00\x00\x00\x00" + bytes(100),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", running.server.port)
        with contextlib.suppress(ConnectionError):
            writer.write(garbage)
            writer.write_eof()
            async with asyncio.timeout(DEADLINE):
                await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    info = await stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=DEADLINE)
    assert info.version == "1.2.3"


async def test_who_shakes_hands_and_calls_nothing_makes_room(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    shorter = [(key, 100 if key == "grpc.max_connection_idle_ms" else value) for key, value in server.OPTIONS]
    monkeypatch.setattr(server, "OPTIONS", shorter)
    running = await start()
    reader, writer = await asyncio.open_connection("127.0.0.1", running.server.port)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000"))
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(DEADLINE):
            await reader.read()
    writer.close()


async def test_huge_and_malformed_requests_are_refused(start: Start) -> None:
    running = await start()
    stub = running.tcp()
    raw: Any = running.channels[0].unary_unary("/maglev.Maglev/GetBackend", bytes, bytes)
    watch: Any = running.channels[0].unary_stream("/maglev.Maglev/WatchEvents", bytes, bytes)

    await refused(stub.GetBackend(pb.GetBackendRequest(name="x" * (2 << 20))), Status.RESOURCE_EXHAUSTED)
    await refused(raw(b"\xff\xff\xff", timeout=DEADLINE), Status.INVALID_ARGUMENT)
    await refused(watch(b"\xff\xff\xff", timeout=DEADLINE).read(), Status.INVALID_ARGUMENT)
    await refused(stub.GetBackend(pb.GetBackendRequest(name="x" * 10_000)), Status.NOT_FOUND)

    await stub.ListBackends(pb.ListBackendsRequest(), timeout=DEADLINE)


async def test_too_many_names_in_a_watch_are_refused(start: Start) -> None:
    stub = (await start()).unix()
    request = pb.WatchEventsRequest(backends=["web0"] * 1_001)

    await refused(state_of(stub.WatchEvents(request)), Status.INVALID_ARGUMENT)


async def test_small_configuration_is_what_the_tests_think_it_is() -> None:
    assert list(small_config().frontends) == ["www", "dns"]


async def test_a_watcher_that_does_not_read_is_dropped(start: Start) -> None:
    dropped = asyncio.Event()

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if getattr(record, "maglev_event", "") == "api-reader-dropped":
                dropped.set()

    running = await start(fake_daemon(large_config(20_000, 10)), patience_seconds=0.3)
    # Small windows: what waits in them is not much.
    small = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536)]
    channel = grpc.aio.insecure_channel(f"unix:{running.socket}", options=small)
    running.channels.append(channel)
    logger, heard = logging.getLogger("maglev.rpc.gate"), Heard()
    logger.addHandler(heard)
    try:
        call: Any = MaglevStub(channel).WatchEvents(pb.WatchEventsRequest())
        stream = aiter(call)
        assert (await anext(stream)).events
        async with asyncio.timeout(DEADLINE):
            await dropped.wait()
    finally:
        logger.removeHandler(heard)

    async def rest() -> None:
        async for _ in stream:
            pass

    # A dropped reader that reads on gets the status; other callers are served meanwhile.
    assert "nothing was read" in await refused(rest(), Status.RESOURCE_EXHAUSTED)
    assert running.server.refused == {"watchers": 0, "calls": 0, "slow": 1}
    assert running.server.calls["WatchEvents", "RESOURCE_EXHAUSTED"] == 1
    assert running.daemon.bus.subscribers == 0, "nothing is kept for it any more"
    assert (await running.unix().GetServerInfo(pb.GetServerInfoRequest(), timeout=DEADLINE)).watchers == 0
