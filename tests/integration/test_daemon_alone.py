"""maglevd as a process, on real sockets, without VPP."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from maglev.daemon.statefile import encode
from maglev.pb import maglev_pb2 as pb
from tests.helpers.daemon import DEADLINE, DaemonProcess, HttpTarget, Watcher, reserved_port

ONE = "127.0.11.1"
TWO = "127.0.11.2"


def config(port: int, *, interval: str = "100ms", extra: str = "") -> str:
    """Two HTTP backends and two static ones; www fails over from one to two, static-vip has a static one a pool."""
    return textwrap.dedent(f"""\
        maglev:
          vpp:
            lb:
              ipv4-src-address: 192.0.2.1
              startup-min-delay: 0s
              startup-max-delay: 0s
          healthchecks:
            web:
              type: http
              port: {port}
              params: {{path: /healthz}}
              interval: {interval}
              rise: 2
              fall: 2
          backends:
            one: {{address: {ONE}, healthcheck: web}}
            two: {{address: {TWO}, healthcheck: web}}
            static-one: {{address: 127.0.11.8}}
            static-two: {{address: 127.0.11.9}}
          frontends:
            www:
              address: 192.0.2.80
              protocol: tcp
              port: 80
              pools:
                - {{name: primary, backends: {{one: {{weight: 100}}}}}}
                - {{name: fallback, backends: {{two: {{weight: 50}}}}}}
            static-vip:
              address: 192.0.2.81
              pools:
                - {{name: primary, backends: {{static-one: {{}}}}}}
                - {{name: fallback, backends: {{static-two: {{}}}}}}
        """) + textwrap.dedent(extra)


class Lab:
    """Two web servers and a daemon that probes them."""

    def __init__(self, directory: Path) -> None:
        self.port = reserved_port()
        self.one = HttpTarget(ONE, self.port)
        self.two = HttpTarget(TWO, self.port)
        self.daemon = DaemonProcess(directory, config(self.port), "--vpp-api-addr=")


@pytest.fixture
async def lab(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Both servers up, the daemon ready."""
    lab = Lab(tmp_path)
    await lab.one.start()
    await lab.two.start()
    async with lab.daemon:
        yield lab
    await lab.one.stop()
    await lab.two.stop()


async def effective(stub: object, frontend: str) -> dict[str, int]:
    info = await stub.GetFrontend(pb.GetFrontendRequest(name=frontend))  # type: ignore[attr-defined]
    return {b.name: b.effective_weight for pool in info.pools for b in pool.backends}


async def test_failover_and_back_on_real_sockets(lab: Lab) -> None:
    async with lab.daemon.api() as stub:
        watcher = Watcher(stub)
        await watcher.states(one="up", two="up", static_one="up", static_two="up")
        assert await effective(stub, "www") == {"one": 100, "two": 0}
        lab.one.status = 503
        await watcher.states(one="down")
        assert await effective(stub, "www") == {"one": 0, "two": 50}
        await lab.two.stop()
        await watcher.until(lambda w: w.frontends["www"] == "down")
        lab.one.status = 200
        await watcher.until(lambda w: w.frontends["www"] == "up")
        assert await effective(stub, "www") == {"one": 100, "two": 0}
        info = await stub.GetBackend(pb.GetBackendRequest(name="one"))
        codes = [pb.CheckCode.Name(t.code) for t in info.transitions]
        assert codes == ["CHECK_CODE_L7OK", "CHECK_CODE_L7STS", "CHECK_CODE_L7OK"]
        assert "503" in info.transitions[1].detail


async def test_pause_stops_probes_and_resume_starts_them(lab: Lab) -> None:
    async with lab.daemon.api() as stub:
        watcher = Watcher(stub)
        await watcher.states(one="up", two="up")
        await stub.PauseBackend(pb.ChangeBackendRequest(name="one"))
        await watcher.states(one="paused")
        # A probe may have been on its way. Ten rounds of the other server later, none has come after it.
        await lab.two.asked(2)
        before = lab.one.requests
        await lab.two.asked(10)
        assert lab.one.requests == before
        await stub.ResumeBackend(pb.ChangeBackendRequest(name="one"))
        await lab.one.asked()
        await watcher.states(one="up")


async def test_sigterm_ends_streams_with_unavailable_and_the_process_with_zero(lab: Lab) -> None:
    async with lab.daemon.api() as stub:
        watcher = Watcher(stub)
        await watcher.states(one="up")
        lab.daemon.signal(signal.SIGTERM)
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await watcher.until(lambda _: False)
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert await lab.daemon.wait() == 0
    assert not any("Traceback" in line or " error " in line for line in lab.daemon.log), lab.daemon.log


async def test_bad_reload_changes_nothing_and_names_every_error(lab: Lab) -> None:
    async with lab.daemon.api() as stub:
        watcher = Watcher(stub)
        await watcher.states(one="up")
        lab.daemon.config.write_text(
            config(lab.port).replace("weight: 100", "weight: 1000").replace("two: {w", "x: {w")
        )
        lab.daemon.signal(signal.SIGHUP)
        await lab.daemon.notice("RELOADING=1")
        await lab.daemon.notice("READY=1")
        await lab.daemon.logged("event=config-refused")
        errors = "\n".join(line for line in lab.daemon.log if "event=config-error" in line)
        assert "maglev.yaml:" in errors
        assert "1000" in errors
        assert "pools[1]" in errors
        info = await stub.GetServerInfo(pb.GetServerInfoRequest())
        assert info.config_loaded_by == "start"
        assert "maglev.yaml" in info.config_error
        assert await effective(stub, "www") == {"one": 100, "two": 0}


async def test_good_reload_keeps_states_counters_and_history(lab: Lab) -> None:
    async with lab.daemon.api() as stub:
        watcher = Watcher(stub)
        await watcher.states(one="up", two="up")
        before = await stub.GetBackend(pb.GetBackendRequest(name="one"))
        lab.daemon.config.write_text(config(lab.port, interval="150ms").replace("weight: 50", "weight: 60"))
        lab.daemon.signal(signal.SIGHUP)
        await lab.daemon.notice("RELOADING=1")
        await lab.daemon.notice("READY=1")
        after = await stub.GetBackend(pb.GetBackendRequest(name="one"))
        assert after.state == before.state == pb.BACKEND_STATE_UP
        assert after.counter == 3
        assert list(after.transitions) == list(before.transitions)
        assert (await stub.GetHealthCheck(pb.GetHealthCheckRequest(name="web"))).interval_ns == 150_000_000
        assert (await stub.GetServerInfo(pb.GetServerInfoRequest())).config_loaded_by == "signal"


async def test_operator_state_survives_a_restart(lab: Lab) -> None:
    async with lab.daemon.api() as stub:
        answer = await stub.DisableBackend(pb.ChangeBackendRequest(name="one", reason="disk"))
        assert answer.changed
        assert list(answer.warnings) == []
    await lab.daemon.restart()
    async with lab.daemon.api() as stub:
        watcher = Watcher(stub)
        await watcher.states(one="disabled", two="up")
        (override,) = (await stub.ListOverrides(pb.ListOverridesRequest())).overrides
        assert (override.backend, override.reason) == ("one", "disk")
        await stub.EnableBackend(pb.ChangeBackendRequest(name="one"))
        await watcher.states(one="up")


@pytest.mark.parametrize("cut", [0, 100, None], ids=["empty", "torn", "gone"])
async def test_a_server_under_maintenance_stays_out_though_the_state_file_was_torn(lab: Lab, cut: int | None) -> None:
    state = lab.daemon.directory / "state.json"
    async with lab.daemon.api() as stub:
        await stub.DisableBackend(pb.ChangeBackendRequest(name="one", reason="disk"))
        await stub.DrainBackend(pb.ChangeBackendRequest(name="static-two"))
    assert await lab.daemon.stop() == 0
    if cut is None:
        state.unlink()
    else:
        state.write_bytes(state.read_bytes()[:cut])
    await lab.daemon.start()
    async with lab.daemon.api() as stub:
        watcher = Watcher(stub)
        await watcher.states(one="disabled", two="up")
        (override,) = (await stub.ListOverrides(pb.ListOverridesRequest())).overrides
        assert (override.backend, override.reason, override.by) == ("one", "disk", "unix")
    assert "\nmaglev_state_file_fallback 1\n" in await lab.daemon.metrics()
    await lab.daemon.logged("event=state-file-previous")


async def test_state_that_cannot_be_written_is_told_to_the_caller(lab: Lab) -> None:
    (lab.daemon.directory / "state.json.prev").mkdir()
    async with lab.daemon.api() as stub:
        answer = await stub.DrainBackend(pb.ChangeBackendRequest(name="one"))
        assert answer.changed
        assert answer.backend.drained
        assert "would not survive a restart" in answer.warnings[0]


async def test_a_second_daemon_on_one_state_file_serves_and_leaves_it_alone(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    state = lab.daemon.directory / "state.json"
    async with lab.daemon.api() as stub:
        await stub.DisableBackend(pb.ChangeBackendRequest(name="one", reason="disk"))
    before = state.read_bytes()
    file = lab.daemon.config.read_text()
    async with DaemonProcess(tmp_path / "second", file, "--vpp-api-addr=", f"--state-file={state}") as second:
        assert lab.daemon.process is not None
        whose = f"another maglevd (pid {lab.daemon.process.pid})"
        assert whose in await second.logged("event=state-file-taken")
        async with second.api() as stub:
            await Watcher(stub).states(one="up", two="up")
            answer = await stub.DisableBackend(pb.ChangeBackendRequest(name="two"))
            assert answer.changed
            assert answer.warnings[0].startswith("the change is in force, but would not survive a restart: state file")
            assert whose in answer.warnings[0]
        assert state.read_bytes() == before


async def test_overrides_that_are_not_understood_are_told_and_kept_aside(lab: Lab) -> None:
    state = lab.daemon.directory / "state.json"
    assert await lab.daemon.stop() == 0
    strange = encode({"overrides": [{"kind": "explode", "backend": "one"}], "vips": 7})
    state.write_bytes(strange)
    await lab.daemon.start()
    await lab.daemon.logged("event=override-unreadable")
    async with lab.daemon.api() as stub:
        answer = await stub.DrainBackend(pb.ChangeBackendRequest(name="one"))
        assert list(answer.warnings) == []
    await lab.daemon.logged("event=state-file-kept-aside")
    assert state.with_name("state.json.bad").read_bytes() == strange


async def test_metrics_of_a_running_daemon(lab: Lab) -> None:
    async with lab.daemon.api() as stub:
        watcher = Watcher(stub)
        await watcher.states(one="up", two="up")
    text = await lab.daemon.metrics()
    found = {s.name: s for family in text_string_to_metric_families(text) for s in family.samples}
    assert found["maglev_probe_total"].labels["type"] == "http"
    assert found["maglev_probe_duration_seconds_count"].labels
    assert found["maglev_engine_targets"].value == 2
    assert found["maglev_config_last_load_successful"].value == 1
    assert found["process_open_fds"].value > 0
    assert "maglev_vpp_uptime_seconds" not in found
    assert "maglev_vpp_info" not in found


async def test_watchers_see_the_log_at_their_own_level_whatever_the_daemons_is(tmp_path: Path) -> None:
    async with DaemonProcess(tmp_path, config(reserved_port()), "--vpp-api-addr=", "--log-level=error") as daemon:
        async with daemon.api() as stub:
            watcher = Watcher(stub)
            await watcher.states(static_one="up")
            await stub.DrainBackend(pb.ChangeBackendRequest(name="static-one", reason="disk"))
            record = await watcher.log_event("api-change", by="unix", address="unix", call="DrainBackend", status="OK")
            assert record.level == pb.LOG_LEVEL_INFO
        assert await daemon.stop() == 0
        assert daemon.log == []


async def run(*arguments: str, **environ: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "maglev.daemon.main",
        *arguments,
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_version() -> None:
    status, out, _ = await run("-version")
    assert status == 0
    assert out.startswith("maglevd ")


async def test_check_of_a_valid_file(tmp_path: Path) -> None:
    path = tmp_path / "maglev.yaml"
    path.write_text(config(80))
    status, out, err = await run("-check", MAGLEV_CONFIG=str(path))
    assert (status, err) == (0, "")
    assert "2 frontends, 4 backends, 1 health check\n" in out


@pytest.mark.parametrize(
    ("broken", "status", "place", "kind"),
    [
        ("maglev: [", 1, ":2:1: ", "parse error"),
        ("maglev:\n  nonsense: 1\n", 1, ":2:3: maglev.nonsense: ", "parse error"),
        ("maglev:\n  backends:\n    a: {address: 192.0.2.1, healthcheck: none}\n", 2, ":3:", "semantic error"),
    ],
)
async def test_check_names_class_and_place(tmp_path: Path, broken: str, status: int, place: str, kind: str) -> None:
    path = tmp_path / "maglev.yaml"
    path.write_text(broken)
    got, _, err = await run("--check", "--config", str(path))
    assert got == status
    problem, summary = err.splitlines()
    assert problem.startswith(f"{path}{place}")
    assert problem.endswith(f" [{kind}]")
    assert summary == f"{path}: not valid: 1 {kind}"
    got, out, _ = await run("--check", "--json", "--config", str(path))
    assert got == status
    document = json.loads(out)
    assert document["ok"] is False
    assert {p["kind"] for p in document["problems"]} == {"parse" if status == 1 else "semantic"}


async def test_check_of_a_valid_file_tells_its_warnings(tmp_path: Path) -> None:
    path = tmp_path / "maglev.yaml"
    path.write_text("maglev: {healthchecks: {ping: {type: icmp, interval: 1s, timeout: 2s}}}\n")
    status, out, err = await run("--check", "--config", str(path))
    assert status == 0
    empty, timeout = err.splitlines()
    assert empty.startswith(f"{path}:1:1: maglev.frontends: there are no frontends: ")
    assert timeout.startswith(f"{path}:1:67: maglev.healthchecks.ping.timeout: ")
    assert empty.endswith(" [warning]")
    assert timeout.endswith(" [warning]")
    assert out == f"{path}: valid: 0 frontends, 0 backends, 1 health check; 2 warnings\n"


async def test_start_with_a_bad_file_ends_with_the_status_of_check(tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path, "maglev: {backends: {a: {address: 192.0.2.1, healthcheck: x}}}", "--vpp-api-addr=")
    await daemon.spawn()
    assert await daemon.wait() == 2
    assert any("event=config-error" in line for line in daemon.log)


async def test_second_daemon_on_one_socket_does_not_take_it(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    second = DaemonProcess(
        tmp_path / "second", config(lab.port), "--vpp-api-addr=", f"--grpc-socket={lab.daemon.socket}"
    )
    async with second:
        line = await second.logged("event=listener-down listener=grpc-unix")
        assert "another process answers there" in line
        async with lab.daemon.api() as stub:
            info = await stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=DEADLINE)
        assert lab.daemon.process is not None
        assert info.pid == lab.daemon.process.pid, "the first one still answers"
        assert await second.stop() == 0


async def test_a_pipe_in_place_of_the_file_is_refused_and_does_not_hang(tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path, config(1), "--vpp-api-addr=")
    daemon.config.unlink()
    os.mkfifo(daemon.config)
    await daemon.spawn()
    assert await daemon.wait() == 1
    assert any("not a regular file" in line for line in daemon.log)


async def test_watchdog_is_fed_while_the_loop_and_the_engine_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    (tmp_path / "run").mkdir()
    async with DaemonProcess(tmp_path, "maglev: {}", "--vpp-api-addr=") as daemon:
        # Nothing is probed: the engine's rounds are those that it is asked for.
        for _ in range(5):
            await daemon.notice("WATCHDOG=1")
        assert await daemon.stop() == 0


async def test_a_disk_that_does_not_answer_does_not_keep_the_daemon_from_ending(tmp_path: Path) -> None:
    async with DaemonProcess(tmp_path, config(reserved_port()), "--vpp-api-addr=") as daemon:
        os.mkfifo(tmp_path / "state.json")
        async with daemon.api() as stub:
            watcher = Watcher(stub)
            await watcher.states(static_one="up")
            call = stub.DisableBackend(pb.ChangeBackendRequest(name="static-one"))
            await watcher.states(static_one="disabled")
            assert await daemon.stop() == 0
            call.cancel()
