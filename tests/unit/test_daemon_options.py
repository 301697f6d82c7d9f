"""The flags of maglevd: dashes, environment, defaults, refusals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from maglev.daemon.options import EX_USAGE, parse


def test_defaults_are_those_of_the_manual() -> None:
    options = parse([], {})
    assert options.config == Path("/etc/vpp-maglev/maglev.yaml")
    assert options.grpc_addr == "127.0.0.1:9090"
    assert options.grpc_socket == Path("/run/vpp-maglev/maglevd.sock")
    assert options.grpc_tcp_role == "viewer"
    assert (options.grpc_tls_cert, options.grpc_tls_key, options.grpc_client_ca) == (None, None, None)
    assert options.metrics_addr == "127.0.0.1:9091"
    assert options.vpp_api_addr == "/run/vpp/api.sock"
    assert options.vpp_stats_addr == "/run/vpp/stats.sock"
    assert options.state_file == Path("/var/lib/vpp-maglev/state.json")
    assert (options.log_level, options.log_format) == ("info", "text")
    assert options.reflection
    assert not options.check


@pytest.mark.parametrize("words", [["-config", "x"], ["--config", "x"], ["-config=x"], ["--config=x"]])
def test_one_dash_and_two_are_the_same(words: list[str]) -> None:
    assert parse(words, {}).config == Path("x")


def test_flag_wins_over_environment_and_environment_over_default() -> None:
    environ = {
        "MAGLEV_CONFIG": "env.yaml",
        "MAGLEV_GRPC_ADDR": ":1",
        "MAGLEV_METRICS_ADDR": "",
        "MAGLEV_VPP_API_ADDR": "/env/api",
        "MAGLEV_VPP_STATS_ADDR": "/env/stats",
        "MAGLEV_LOG_LEVEL": "debug",
    }
    options = parse(["-config", "flag.yaml"], environ)
    assert options.config == Path("flag.yaml")
    assert (options.grpc_addr, options.metrics_addr) == (":1", "")
    assert (options.vpp_api_addr, options.vpp_stats_addr) == ("/env/api", "/env/stats")
    assert options.log_level == "debug"


def test_empty_value_turns_things_off() -> None:
    options = parse(["--grpc-addr", "", "--grpc-socket=", "-vpp-api-addr", "", "--state-file", ""], {})
    assert (options.grpc_addr, options.grpc_socket, options.vpp_api_addr) == ("", None, "")
    assert options.state_file is None


@pytest.mark.parametrize(
    ("words", "reflection"),
    [(["--reflection"], True), (["-reflection=false"], False), (["--reflection=true", "--check"], True)],
)
def test_reflection_with_and_without_a_value(words: list[str], reflection: bool) -> None:
    assert parse(words, {}).reflection is reflection


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nonsense"], "--nonsense"),
        (["--conf", "x"], "--conf"),
        (["surplus"], "surplus"),
        (["--config", ""], "configuration file"),
        (["--config"], "expected one argument"),
        (["--grpc-tcp-role", "root"], "viewer, operator"),
        (["--log-level", "loud"], "loud"),
        (["--log-format", "xml"], "text, json"),
        (["--grpc-addr", "localhost"], "host:port"),
        (["--metrics-addr", "::1:9091"], "brackets"),
        (["--metrics-addr", "example.org:9091"], "example.org"),
        (["--json"], "--check"),
        (["--grpc-tls-cert", "cert.pem"], "go together"),
        (["--grpc-tls-key", "key.pem"], "go together"),
        (["--grpc-client-ca", "ca.pem"], "goes with --grpc-tls-cert"),
    ],
)
def test_bad_command_line_is_refused_with_the_word_and_its_own_status(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(words, {})
    assert ended.value.code == EX_USAGE
    assert said in capsys.readouterr().err


def test_bad_environment_is_refused_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse([], {"MAGLEV_LOG_LEVEL": "loud"})
    assert "MAGLEV_LOG_LEVEL" in capsys.readouterr().err


def test_check_imports_nothing_that_only_the_daemon_needs() -> None:
    program = (
        "import sys, maglev.daemon.main; "
        "print(*sorted({name.partition('.')[0] for name in sys.modules} & {'grpc', 'vpp_papi', 'prometheus_client'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
