"""Model to wire, callers, page tokens, and which events a watcher gets."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from maglev.base.errors import BadValue
from maglev.base.events import BackendEvent, ConfigEvent, DrainEvent, Event, FrontendEvent, LogEvent, WeightEvent
from maglev.base.states import CheckType, Code, FrontendState, State
from maglev.checker.checker import Checker
from maglev.config import model
from maglev.config.diff import ChangeKind
from maglev.pb import maglev_pb2 as pb
from maglev.rpc import convert, paging
from maglev.rpc.access import OPERATOR_CALLS, SERVICE, Caller, Role, caller_of
from maglev.rpc.filters import EventFilter
from maglev.rpc.listeners import CannotListen, prepare_socket, tcp_target, warn_of_directory
from maglev.rpc.services import CheckerApi, DataplaneApi, Tracer
from maglev.rpc.watch import Encoder
from maglev.views.backends import OverrideKind
from maglev.vpp.planning.plan import Op
from maglev.vpp.shown.dataplane import Dataplane
from maglev.vpp.state.warmup import Phase
from maglev.vpp.wire.messages import Encap
from tests.helpers.rpc import NOW, PLAN, STEP, fake_daemon, log_event, small_config


def real_parts_fit(checker: Checker, dataplane: Dataplane) -> tuple[CheckerApi, Tracer, DataplaneApi]:
    """For the type checker: the daemon's parts are what the API asks for."""
    return checker, checker, dataplane


def test_every_word_of_ours_has_its_own_number_on_the_wire() -> None:
    assert set(convert.STATES) == set(State)
    assert set(convert.FRONTEND_STATES) == set(FrontendState)
    assert set(convert.CODES) == set(Code)
    assert set(convert.CHECK_TYPES) == set(CheckType)
    assert set(convert.ON_ALL_DOWN) == set(model.OnAllDown)
    assert set(convert.OVERRIDE_KINDS) == set(OverrideKind)
    assert set(convert.CHANGE_KINDS) == set(ChangeKind)
    assert set(convert.STEP_KINDS) == {op.value for op in Op}
    assert set(convert.ENCAPS) == {str(encap) for encap in Encap}
    assert set(convert.PHASES) == {phase.value for phase in Phase}
    assert set(convert.PROTOCOLS) == {str(protocol) for protocol in model.Protocol}
    for table in (convert.STATES, convert.FRONTEND_STATES, convert.CODES, convert.CHECK_TYPES, convert.STEP_KINDS):
        assert len(set(table.values())) == len(table)
    assert [code for code, number in convert.CODES.items() if number == 0] == [Code.NONE]


def test_filters_of_states_and_levels_come_back() -> None:
    assert convert.backend_states(list(convert.STATES.values())) == frozenset(State)
    assert convert.frontend_states(list(convert.FRONTEND_STATES.values())) == frozenset(FrontendState)
    assert convert.log_level(pb.LOG_LEVEL_UNSPECIFIED) == "info"
    assert [convert.log_level(number) for number in convert.LEVELS.values()] == list(convert.LEVELS)
    for bad in (0, 77):
        with pytest.raises(BadValue):
            convert.backend_states([bad])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("check_type", "params", "kind"),
    [
        (CheckType.ICMP, model.IcmpParams(size=0), "icmp"),
        (CheckType.TCP, model.TcpParams(), "tcp"),
        (CheckType.TCP, model.TcpParams(model.TcpMode.CONNECT, model.TlsParams("x")), "tcp"),
        (CheckType.HTTP, model.HttpParams(response_codes=((200, 299), (304, 304)), response_regexp="^ok"), "http"),
    ],
)
def test_parameters_of_a_check_say_of_which_type_they_are(
    check_type: CheckType, params: model.Params, kind: str
) -> None:
    info = convert.healthcheck(model.HealthCheck("c", check_type, params), 3)

    assert info.WhichOneof("params") == kind
    assert info.backends == 3
    if isinstance(params, model.TcpParams):
        assert info.tcp.connect is (params.mode is model.TcpMode.CONNECT)
        assert info.tcp.HasField("tls") is (params.tls is not None)
    if isinstance(params, model.HttpParams):
        assert [(one.low, one.high) for one in info.http.response_codes] == [(200, 299), (304, 304)]


async def test_a_long_plan_is_cut_and_says_so() -> None:
    message = await convert.plan(replace(PLAN, steps=[STEP] * (convert.MAX_STEPS + 5)))

    assert len(message.steps) == convert.MAX_STEPS
    assert message.steps_omitted == 5


def test_log_records_with_broken_text_can_be_sent() -> None:
    event = convert.event(LogEvent("error", "x", "bad \udcff", NOW, {"detail": "\ud800"}))

    assert event.log.message == "bad \\udcff"
    assert event.log.fields["detail"] == "\\ud800"


@pytest.mark.parametrize(
    ("peer", "name", "role"),
    [
        ("unix:", "unix", Role.OPERATOR),
        ("unix:/run/x.sock", "unix", Role.OPERATOR),
        ("ipv4:192.0.2.1:4711", "tcp:192.0.2.1", Role.VIEWER),
        ("ipv6:%5B2001:db8::1%5D:4711", "tcp:2001:db8::1", Role.VIEWER),
        ("ipv6:[::1]:4711", "tcp:::1", Role.VIEWER),
        ("unix-abstract:x:1", "tcp:x", Role.VIEWER),
        ("", "tcp:", Role.VIEWER),
    ],
)
def test_callers(peer: str, name: str, role: Role) -> None:
    assert caller_of(peer, Role.VIEWER) == Caller(name, role)


def test_what_changes_something_is_for_operators() -> None:
    calls = {f"/{SERVICE}/{method.name}" for method in pb.DESCRIPTOR.services_by_name["Maglev"].methods}
    viewer = Caller("tcp:x", Role.VIEWER)

    assert calls >= OPERATOR_CALLS
    assert {call.rpartition("/")[2] for call in calls if viewer.may(call)} == {
        "ListFrontends",
        "GetFrontend",
        "GetFlow",
        "ListBackends",
        "GetBackend",
        "ListHealthChecks",
        "GetHealthCheck",
        "ListOverrides",
        "ListEvents",
        "ListCauses",
        "Explain",
        "WatchEvents",
        "CheckConfig",
        "DiffConfig",
        "GetServerInfo",
        "GetVPPInfo",
        "GetVPPLBState",
        "GetVPPLBCounters",
    }


def test_a_page_goes_on_where_it_ended_whatever_a_reload_did() -> None:
    before = paging.Order(["a", "b", "c", "d"])
    token = paging.make_token(2, before.names[1])

    assert before.start("") == 0
    assert before.start(token) == 2
    # Something new before it, and itself gone.
    assert paging.Order(["new", "a", "b", "c"]).start(token) == 3
    assert paging.Order(["a", "c", "d"]).start(token) == 2
    assert paging.Order([]).start(token) == 0


@pytest.mark.parametrize("token", ["x", "a" * 401, "Og", "LTE6eA", "é", paging.make_token(10**10, "x")])
def test_strange_tokens_are_refused(token: str) -> None:
    with pytest.raises(BadValue):
        paging.Order(["a"]).start(token)


def test_page_sizes() -> None:
    assert [paging.page_size(asked) for asked in (0, 1, 5_000, 5_001)] == [1_000, 1, 5_000, 5_000]


BACKEND = BackendEvent("web0", "192.0.2.1", State.UP, State.DOWN, Code.L4CON, "", NOW)
DRAIN = DrainEvent("web0", "192.0.2.1", State.UP, True, NOW)
FRONTEND = FrontendEvent("www", FrontendState.UP, FrontendState.DOWN, NOW)
WEIGHT = WeightEvent("www", "primary", "web0", 1, 2, False, NOW)
CONFIG = ConfigEvent(NOW)
EVENTS: list[Event] = [
    BACKEND,
    DRAIN,
    FRONTEND,
    WEIGHT,
    CONFIG,
    log_event("info"),
    log_event("debug", "probe", backend="web0"),
]


@pytest.mark.parametrize(
    ("request_", "wanted"),
    [
        (pb.WatchEventsRequest(), [0, 1, 2, 3, 4]),
        (pb.WatchEventsRequest(kinds=[pb.EVENT_KIND_BACKEND]), [0, 1, 4]),
        (pb.WatchEventsRequest(kinds=[pb.EVENT_KIND_FRONTEND]), [2, 3, 4]),
        (pb.WatchEventsRequest(kinds=[pb.EVENT_KIND_LOG]), [5]),
        (pb.WatchEventsRequest(kinds=[pb.EVENT_KIND_LOG], log_level=pb.LOG_LEVEL_DEBUG), [5]),
        (pb.WatchEventsRequest(kinds=[pb.EVENT_KIND_LOG], log_level=pb.LOG_LEVEL_DEBUG, backends=["web0"]), [5, 6]),
        (pb.WatchEventsRequest(kinds=[pb.EVENT_KIND_LOG], log_level=pb.LOG_LEVEL_ERROR), []),
        (pb.WatchEventsRequest(backends=["web0"]), [0, 1, 3, 4]),
        (pb.WatchEventsRequest(backends=["web1"]), [4]),
        (pb.WatchEventsRequest(frontends=["www"]), [2, 3, 4]),
        (pb.WatchEventsRequest(frontends=["dns"]), [4]),
    ],
)
def test_which_events_a_watcher_gets(request_: pb.WatchEventsRequest, wanted: list[int]) -> None:
    wants = EventFilter(request_)

    assert wants(EVENTS) == [EVENTS[at] for at in wanted]


def test_what_has_not_been_told_yet_is_left_out() -> None:
    wants = EventFilter(pb.WatchEventsRequest())
    wants.hold_back(["web0"], ["www"])

    assert wants([BACKEND, DRAIN, FRONTEND, WEIGHT, CONFIG]) == [WEIGHT, CONFIG]


def test_events_are_encoded_once_and_may_be_joined() -> None:
    encoder = Encoder(size=2)
    first = encoder.encode(BACKEND)

    assert encoder.encode(BACKEND) is first
    joined = pb.WatchEventsResponse()
    joined.ParseFromString(first + encoder.encode(FRONTEND) + encoder.encode(CONFIG))
    assert [event.WhichOneof("event") for event in joined.events] == ["backend", "frontend", "config"]
    # Only the last two are remembered.
    again = encoder.encode(BACKEND)
    assert again == first
    assert again is not first


@pytest.mark.parametrize(
    ("address", "target", "loopback"),
    [
        ("127.0.0.1:9090", "127.0.0.1:9090", True),
        ("127.1.2.3:9090", "127.1.2.3:9090", True),
        ("[::1]:9090", "[::1]:9090", True),
        ("localhost:9090", "localhost:9090", True),
        ("192.0.2.1:9090", "192.0.2.1:9090", False),
        ("0.0.0.0:0", "0.0.0.0:0", False),
    ],
)
def test_addresses_to_listen_on(address: str, target: str, loopback: bool) -> None:
    assert tcp_target(address) == (target, loopback)


def test_a_path_that_no_socket_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotListen, match="107 bytes"):
        prepare_socket(tmp_path / ("x" * 108))
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotListen):
        prepare_socket(tmp_path / "file" / "maglevd.sock")


def test_the_fake_daemon_has_the_weights_of_the_real_rule() -> None:
    daemon = fake_daemon(small_config())
    daemon.checker.move("web0", State.UP, Code.L7OK)

    weights = daemon.checker.frontend_weights("www")
    assert [member.effective for member in weights.members] == [100, 0, 0]
    assert ip_address("10.0.0.1") == daemon.checker.configured.backends["web0"].address


def test_a_directory_that_anybody_may_write_to_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for mode, warnings in ((0o750, 0), (0o1777, 0), (0o777, 1)):
        tmp_path.chmod(mode)
        caplog.clear()
        warn_of_directory(tmp_path / "maglevd.sock")
        assert len(caplog.records) == warnings, oct(mode)
