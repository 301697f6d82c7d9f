"""What people and programs read: golden texts."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator

import pytest

from maglev.cli import render
from maglev.cli.jsonout import dumps, plain, word
from maglev.cli.text import Style
from maglev.pb import maglev_pb2 as pb

PLAIN = Style(False)
NOW = 1_800_000_000_000_000_000
SECOND = 10**9


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Times are shown in local time: make that UTC."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_frontend_prints_a_parseable_line_for_each_member() -> None:
    info = pb.FrontendInfo(
        name="www",
        address="2001:db8::80",
        protocol=pb.PROTOCOL_TCP,
        port=80,
        description="public \x1b[31mweb",
        flush_on_down=True,
        on_all_down=pb.ON_ALL_DOWN_KEEP,
        state=pb.FRONTEND_STATE_UP,
        active_pool="primary",
        unit=10,
        pools=[
            pb.PoolInfo(
                name="primary",
                backends=[
                    pb.PoolBackendInfo(name="web0", weight=100, effective_weight=100, enabled=True),
                    pb.PoolBackendInfo(name="web1", weight=50, enabled=False, drained=True),
                ],
            ),
            pb.PoolInfo(name="spare", backends=[pb.PoolBackendInfo(name="web2", weight=7, enabled=True, drained=True)]),
        ],
    )

    lines = list(render.frontend(PLAIN, info))

    assert "\n".join(lines) == (
        "frontend www\n"
        "  vip            2001:db8::80 tcp 80\n"
        "  description    public \\x1b[31mweb\n"
        "  state          up\n"
        "  active pool    primary\n"
        "  weight unit    10\n"
        "  source sticky  no\n"
        "  flush on down  yes\n"
        "  on all down    keep\n"
        "  pool primary (active)\n"
        "    web0 weight 100 effective 100\n"
        "    web1 weight 50 effective 0 [disabled] [drained]\n"
        "  pool spare\n"
        "    web2 weight 7 effective 0 [drained]"
    )
    members = [
        match.group(0)
        for line in lines
        if (match := re.fullmatch(r"\s+\S+ weight \d+ effective \d+( \[disabled\])?( \[drained\])?", line))
    ]
    assert len(members) == 3


def test_frontend_prints_what_its_pools_need_and_have() -> None:
    info = pb.FrontendInfo(
        name="www",
        state=pb.FRONTEND_STATE_PANIC,
        active_pool="main",
        panic_below=0.335,
        panic_action=pb.PANIC_ACTION_ALL,
        slow_start_ns=60 * SECOND,
        pools=[
            pb.PoolInfo(
                name="main", up=1, min_up=2, resume_up=3, resume_after_ns=30 * SECOND, healthy_weight=1, whole_weight=3
            ),
            pb.PoolInfo(name="same", up=2, min_up=2, resume_up=2, usable=True, healthy_weight=20, whole_weight=20),
            pb.PoolInfo(
                name="plain",
                up=1,
                min_up=1,
                resume_up=1,
                usable=True,
                backends=[
                    pb.PoolBackendInfo(
                        name="x", weight=100, effective_weight=30, enabled=True, drained=True, slow_start_percent=25
                    )
                ],
            ),
        ],
    )
    lines = list(render.frontend(PLAIN, info))
    assert [line.split(maxsplit=1) for line in lines if line.startswith(("  panic", "  slow", "  state"))] == [
        ["state", "panic"],
        ["panic", "below 33.5%: all"],
        ["slow", "start     1m"],
    ]
    assert lines[-4:] == [
        "  pool main (active), 33.33% of the weight healthy: 1 up, min-up 2, resume-up 3 for 30s",
        "  pool same, 100% of the weight healthy: 2 up, min-up 2",
        "  pool plain",
        "    x weight 100 effective 30 [drained] [slow start 25%]",
    ]


# long: one message with every field, and the text of each
def test_backend_prints_its_history() -> None:
    info = pb.BackendInfo(
        name="web0",
        address="192.0.2.1",
        state=pb.BACKEND_STATE_UNKNOWN,
        enabled=True,
        healthcheck="web",
        counter=1,
        rise=2,
        fall=3,
        last_code=pb.CHECK_CODE_L7STS,
        last_detail="HTTP status 503\r\nSet-Cookie",
        last_rtt_ns=1_234_567,
        last_result_age_ns=500_000_000,
        state_since_ns=NOW - 61 * SECOND,
        unprobed_since_ns=NOW,
        unprobed_reason="no such source address",
        probes_passed=3,
        probes_failed=1,
        frontends=["www", "api"],
        transitions=[
            pb.Transition(
                from_state=pb.BACKEND_STATE_UP,
                to_state=pb.BACKEND_STATE_DISABLED,
                code=pb.CHECK_CODE_DISABLED,
                at_ns=NOW - 62 * SECOND,
                by="unix",
                reason="disk",
            ),
            pb.Transition(
                from_state=pb.BACKEND_STATE_DISABLED,
                to_state=pb.BACKEND_STATE_UNKNOWN,
                code=pb.CHECK_CODE_ENABLED,
                at_ns=NOW - 61 * SECOND,
            ),
        ],
        overrides=[
            pb.Override(
                kind=pb.OVERRIDE_KIND_WEIGHT,
                backend="web0",
                frontend="www",
                pool="p",
                weight=3,
                file_weight=100,
                by="unix",
            )
        ],
    )

    assert "\n".join(render.backend(PLAIN, info, NOW)) == (
        "backend web0\n"
        "  address       192.0.2.1\n"
        "  state         unknown\n"
        "  since         2027-01-15 07:58:59.000 (1m1s ago)\n"
        "  enabled       yes\n"
        "  drained       no\n"
        "  health check  web\n"
        "  counter       1 of 4 (rise 2, fall 3)\n"
        "  last result   L7STS (HTTP status 503\\r\\nSet-Cookie)\n"
        "  last rtt      1.2ms\n"
        "  last age      500ms\n"
        "  probes        3 passed, 1 failed\n"
        "  not probed    since 2027-01-15 08:00:00.000: no such source address\n"
        "  frontends     www, api\n"
        "  override      weight 3 (file: 100) in www pool p by unix\n"
        "  history\n"
        "    2027-01-15 07:58:58.000  up -> disabled  disabled by unix: disk\n"
        "    2027-01-15 07:58:59.000  disabled -> unknown  enabled"
    )


def test_lists_fit_80_columns() -> None:
    backends = [
        pb.BackendInfo(
            name=f"nginx{at}-ams",
            address=f"2001:db8:1::{at:x}",
            state=pb.BACKEND_STATE_UP,
            healthcheck="web",
            last_code=pb.CHECK_CODE_L7OK,
            last_rtt_ns=1_234_567,
            state_since_ns=NOW - 90_061 * SECOND,
            drained=at == 0,
        )
        for at in range(3)
    ]
    lines = list(render.backend_table(PLAIN).lines(render.backend_rows(backends, NOW)))

    assert lines == [
        "BACKEND     ADDRESS        STATE       CHECK  LAST  RTT    FOR   DETAIL",
        "nginx0-ams  2001:db8:1::0  up drained  web    L7OK  1.2ms  1d1h",
        "nginx1-ams  2001:db8:1::1  up          web    L7OK  1.2ms  1d1h",
        "nginx2-ams  2001:db8:1::2  up          web    L7OK  1.2ms  1d1h",
    ]
    assert max(len(line) for line in lines) <= 80


def test_vip_shows_wanted_beside_found() -> None:
    info = pb.VPPVip(
        frontend="www",
        prefix="192.0.2.80/32",
        protocol=pb.PROTOCOL_TCP,
        port=80,
        encap=pb.ENCAP_GRE4,
        new_flows_table_length=16384,
        present=True,
        wanted=True,
        unit=10,
        lingering=1,
        notes=["recreated too often"],
        ases=[
            pb.VPPAs(
                address="10.0.0.1",
                backend="web0",
                state=pb.BACKEND_STATE_UP,
                configured_weight=100,
                effective_weight=100,
                programmed_weight=10,
                vpp_weight=5,
                buckets=8192,
                predicted_buckets=16384,
                live=True,
            ),
            pb.VPPAs(address="10.0.0.9", buckets=0, live=False, flush_owed=True),
        ],
    )

    assert "\n".join(render.vip(PLAIN, info)) == (
        "vip 192.0.2.80/32 tcp 80 (frontend www)\n"
        "  to be synced, gre4, table 16384, unit 10, 1 lingering\n"
        "  note: recreated too often\n"
        "  BACKEND  ADDRESS   STATE  CFG  EFF  PROG  VPP  BUCKETS\n"
        "  web0     10.0.0.1  up     100  100    10    5  8192 (wanted: 16384)\n"
        "  -        10.0.0.9  -        -    -     -    -  0 deleted flush owed"
    )


def test_what_vpp_does_not_have_yet_is_neither_empty_nor_deleted() -> None:
    one = pb.VPPAs(address="10.0.0.1", backend="web0", state=pb.BACKEND_STATE_UP, configured_weight=100)
    info = pb.VPPVip(frontend="www", prefix="192.0.2.80/32", encap=pb.ENCAP_GRE4, wanted=True, unit=10, held=True)
    info.ases.append(one)
    one.predicted_buckets = 16384
    info.ases.append(one)

    assert [line.split()[-2:] for line in render.vip(PLAIN, info)][3:] == [["-", "-"], ["(wanted:", "16384)"]]
    assert "deleted" not in "".join(render.vip(PLAIN, info))
    conf = pb.VPPLBConf(sticky_buckets_per_core=1024, wanted_ipv4_src_address="192.0.2.1")
    assert "  ipv4 source     none (wanted: 192.0.2.1)" in list(render.lb_conf(PLAIN, conf))


def test_problems_are_file_line_column_path_message() -> None:
    check = pb.CheckConfigResponse(
        file="/etc/x.yaml",
        parse_errors=[pb.ConfigProblem(path="maglev.x", message="unknown key", line=2, column=3)],
        semantic_errors=[pb.ConfigProblem(path="maglev.y", message="no \x1bbackend")],
        warnings=[pb.ConfigProblem(message="small", line=9)],
    )

    assert list(render.problems(PLAIN, check)) == [
        "/etc/x.yaml:2:3: maglev.x: unknown key [parse error]",
        "/etc/x.yaml: maglev.y: no \\x1bbackend [semantic error]",
        "/etc/x.yaml:9: small [warning]",
    ]


def test_changes_of_the_configuration() -> None:
    diff = pb.DiffConfigResponse(
        changes=[
            pb.ConfigChange(path="a", kind=pb.CHANGE_KIND_ADDED, new="1"),
            pb.ConfigChange(path="b", kind=pb.CHANGE_KIND_REMOVED, old="2"),
            pb.ConfigChange(path="c", kind=pb.CHANGE_KIND_CHANGED, old="3", new="4"),
        ],
        changes_omitted=5,
        needs_force=True,
    )

    assert list(render.changes(PLAIN, diff)) == [
        "+ a: 1",
        "- b: 2",
        "~ c: 3 -> 4",
        "... and 5 more",
        "this reload deletes most VIPs and needs force",
    ]
    assert list(render.changes(PLAIN, pb.DiffConfigResponse())) == ["nothing changes"]


def test_json_has_all_keys_always_and_short_words() -> None:
    empty = plain(pb.BackendInfo())

    assert set(empty) == {field.name for field in pb.BackendInfo.DESCRIPTOR.fields} | {"state_since", "unprobed_since"}
    assert empty["state_since"] is None, "never"
    assert empty["last_rtt_ns"] is None
    assert empty["state"] == ""
    assert empty["transitions"] == []
    full = plain(
        pb.BackendInfo(
            state=pb.BACKEND_STATE_UP,
            last_code=pb.CHECK_CODE_L7OK,
            last_rtt_ns=0,
            transitions=[pb.Transition(code=pb.CHECK_CODE_ENABLED, at_ns=2**60)],
        )
    )
    assert (full["state"], full["last_code"], full["last_rtt_ns"]) == ("up", "L7OK", 0)
    (first,) = full["transitions"]
    assert (first["code"], first["at_ns"], first["at"]) == ("enabled", 2**60, "2006-07-14T23:58:24.606846976Z")
    counters = plain(pb.VPPVipCounters(existing_session=2**63))
    assert (counters["existing_session"], counters["existing_session_text"]) == (2**63, str(2**63))


def test_json_of_maps_oneofs_and_strangers() -> None:
    info = plain(pb.ServerInfo(engine={"sent": 3}, warmup=pb.WARMUP_PHASE_DONE))
    check = plain(pb.HealthCheckInfo(http=pb.HttpCheck(path="/")))
    state = pb.BackendInfo()
    state.ParseFromString(b"\x18\x63")  # state = 99, of a later version

    assert info["engine"] == {"sent": 3}
    assert check["tcp"] is None
    assert check["http"]["path"] == "/"
    assert plain(state)["state"] == 99
    assert word(pb.BackendState, 99) == "99"
    assert word(pb.PlanStepKind, pb.PLAN_STEP_KIND_VIP_ADD) == "vip-add"


def test_json_is_safe_on_a_terminal() -> None:
    text = dumps({"detail": "\x9b31m \x1b \u202e"})

    assert text.isprintable()
    assert json.loads(text) == {"detail": "\x9b31m \x1b \u202e"}


def test_every_message_can_be_shown_as_json() -> None:
    for name in pb.DESCRIPTOR.message_types_by_name:
        message = getattr(pb, name)()
        assert json.loads(dumps(plain(message))) == plain(message), name


def test_a_plan_without_calls_says_so_in_words() -> None:
    assert list(render.plan(PLAIN, pb.Plan(notes=["left alone"]))) == [
        "  note: left alone",
        "no calls: there is nothing to do now",
    ]


@pytest.mark.parametrize(("before", "after", "told"), [(8192, 16384, True), (0, 16384, False), (16384, 0, False)])
def test_a_plan_tells_of_other_flows_only_where_there_can_be_some(before: int, after: int, told: bool) -> None:
    server = pb.AsForecast(address="192.0.2.1", buckets_before=before, buckets_after=after)
    plan = pb.Plan(vips=[pb.VipForecast(vip="192.0.2.80/32 tcp 80", ases=[server])])
    assert any("of the other flows' buckets move" in line for line in render.plan(PLAIN, plan)) is told


def test_a_member_shows_its_share_of_the_table_behind_the_flags() -> None:
    def line(length: int = 1000, **values: object) -> str:
        info = pb.PoolBackendInfo(name="web0", weight=10, enabled=True, **values)  # type: ignore[arg-type]
        return render.member(PLAIN, info) + render.share(info, length)

    assert line(effective_weight=10, buckets=333) == "web0 weight 10 effective 10 share 33.3%"
    # A server that VPP has not been told to leave alone yet, and one whose weight is too small for the table.
    assert line(drained=True, buckets=1000) == "web0 weight 10 effective 0 [drained] share 100.0%"
    assert line(effective_weight=10, buckets=0) == "web0 weight 10 effective 10 share 0.0%"
    assert line(buckets=0) == "web0 weight 10 effective 0"
    assert line(effective_weight=10) == "web0 weight 10 effective 10"
    assert line(0, effective_weight=10) == "web0 weight 10 effective 10"


def test_a_flow_shows_its_server_now_and_before() -> None:
    info = pb.FlowInfo(
        frontend="www",
        vip="192.0.2.80/32 tcp 80",
        hash=0xABCDEF,
        bucket=5,
        table_length=16384,
        server=pb.FlowServer(address="10.0.0.1", backend="web0"),
        server_before=pb.FlowServer(address="10.0.0.9"),
        changed_at_ns=NOW,
        read_at_ns=NOW + SECOND,
    )
    lines = list(render.flow(PLAIN, info))
    assert lines == [
        "frontend www",
        "  vip            192.0.2.80/32 tcp 80",
        "  chosen by      addresses and ports",
        "  hash           0x00abcdef",
        "  bucket         5 of 16384",
        "  server         web0 (10.0.0.1)",
        "  before         10.0.0.9, until 2027-01-15 08:00:00.000",
        "  read from VPP  2027-01-15 08:00:01.000",
        "  a flow that is older than the last change stays with the server that it had, unless that was flushed",
    ]
    info.ClearField("server")
    info.ClearField("server_before")
    info.by_address = True
    lines = list(render.flow(PLAIN, info))
    assert "  chosen by      addresses" in lines
    assert "  server         none: no server has a weight" in lines
    assert any(line.startswith("  before         none: no server had a weight, until") for line in lines)
    info.changed_at_ns = 0
    assert not any("before " in line for line in render.flow(PLAIN, info))


def told_event(number: int, cause: int, name: str) -> pb.PastEvent:
    event = pb.BackendEvent(
        name=name, from_state=pb.BACKEND_STATE_UP, to_state=pb.BACKEND_STATE_DOWN, code=pb.CHECK_CODE_L4CON
    )
    return pb.PastEvent(id=number, cause=cause, event=pb.Event(backend=event))


def test_events_of_one_cause_stand_below_it_and_the_newest_causes_are_kept() -> None:
    events = [told_event(number, 7, f"web{number}") for number in range(1, 6)]
    events += [told_event(6, 8, "alone"), told_event(7, 0, "none")]
    many = pb.Cause(
        id=7, text="5 backends went down", frontends=4, frontend_names=["a", "b"], frontends_down=1, pools_left=2,
        at_ns=10**18, last_ns=10**18 + 3 * 10**6, changes=5,
        accepted_ns=10**18 + 7 * 10**6, confirmed_ns=10**18 + 10**9,
    )  # fmt: skip
    causes = {7: many, 8: pb.Cause(id=8, text="alone", changes=1, at_ns=1, accepted_ns=2 * 10**6 + 1)}
    lines = [line.split("  ", 1)[1] for line in render.past_events(Style(False), events, causes, None)]
    assert lines == [
        "5 backends went down",
        "  within 3ms; 4 frontends (a, b and 2 more); 1 without a server; 2 served by another pool;"
        " 5 changes in VPP after 7ms, read back after 1s",
        *(f"  -  backend web{number}  up -> down  L4CON" for number in (1, 2, 3)),
        "  and 2 more events",
        "backend alone  up -> down  L4CON",
        "  1 change in VPP after 2ms",
        "backend none  up -> down  L4CON",
    ]
    newest = list(render.past_events(Style(False), events, causes, 1))
    assert len(newest) == 1
    assert newest[0].endswith("backend none  up -> down  L4CON")


def test_an_explanation_is_sentences_and_causes() -> None:
    info = pb.Explanation(
        subject="backend web1", sentences=["It is down.", "Nothing \x1b[31mred."], causes=[pb.Cause(text="why")]
    )
    assert list(render.explanation(Style(False), info)) == [
        "backend web1", "  It is down.", "  Nothing \\x1b[31mred.", "", "-  why",
    ]  # fmt: skip
