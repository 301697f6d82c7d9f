"""The flags of maglevd: from the command line, else from the environment, else their defaults.

Every flag is accepted with one dash or two, as ``-config F``, ``--config F`` or ``--config=F``. Parsing does no I/O.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from maglev.base import stdio
from maglev.base.listen import parse_listen
from maglev.base.logs import FORMATS, parse_level

EX_USAGE = 64
"""Exit status for a command line that is not understood; 1 and 2 mean errors in the configuration."""


@dataclass(frozen=True, slots=True)
class Options:
    """The flags, checked for form. Empty addresses and paths turn the thing off; ``state_file`` None too."""

    config: Path
    grpc_addr: str
    grpc_socket: Path | None
    grpc_tcp_role: str
    grpc_tls_cert: Path | None
    grpc_tls_key: Path | None
    grpc_client_ca: Path | None
    metrics_addr: str
    vpp_api_addr: str
    vpp_stats_addr: str
    state_file: Path | None
    log_level: str
    log_format: str
    reflection: bool
    check: bool
    json: bool
    version: bool


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag that takes a value: its name, its environment variable (empty: none), its default, and its help."""

    name: str
    env: str
    default: str
    help: str
    choices: tuple[str, ...] = ()


FLAGS = (
    Flag("config", "MAGLEV_CONFIG", "/etc/vpp-maglev/maglev.yaml", "configuration file, YAML or .json"),
    Flag("grpc-addr", "MAGLEV_GRPC_ADDR", "127.0.0.1:9090", "gRPC over TCP; :9090 is all addresses, empty is off"),
    Flag("grpc-socket", "", "/run/vpp-maglev/maglevd.sock", "gRPC over a Unix socket; empty is off"),
    Flag("grpc-tcp-role", "", "viewer", "what callers over TCP may do", ("viewer", "operator")),
    Flag("grpc-tls-cert", "", "", "our certificate and its chain, PEM: TLS for gRPC over TCP; empty is off"),
    Flag("grpc-tls-key", "", "", "the certificate's key, PEM"),
    Flag("grpc-client-ca", "", "", "authorities of client certificates, PEM: clients need one, and it gives the role"),
    Flag("metrics-addr", "MAGLEV_METRICS_ADDR", "127.0.0.1:9091", "Prometheus metrics over HTTP; empty is off"),
    Flag("vpp-api-addr", "MAGLEV_VPP_API_ADDR", "/run/vpp/api.sock", "VPP's API socket; empty: run without VPP"),
    Flag("vpp-stats-addr", "MAGLEV_VPP_STATS_ADDR", "/run/vpp/stats.sock", "VPP's statistics socket; empty is off"),
    Flag("state-file", "", "/var/lib/vpp-maglev/state.json", "what survives a restart; empty: nothing does"),
    Flag("log-level", "MAGLEV_LOG_LEVEL", "info", "debug, info, warning or error"),
    Flag("log-format", "", "text", "log lines for people or for machines", FORMATS),
    Flag("reflection", "", "true", "gRPC server reflection", ("true", "false")),
)
SWITCHES = {
    "check": "check the configuration file and exit: 0 valid, 1 parse error, 2 semantic error",
    "json": "with --check: print the result as JSON",
    "version": "print the version and exit",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        stdio.tell(f"{self.prog}: {message}\nTry '{self.prog} --help'.")
        self.exit(EX_USAGE)


def _two_dashes(argument: str) -> str:
    """``-config=x`` as ``--config=x``: flags with one dash are flags with two. Values are left as they are."""
    if argument.startswith("-") and not argument.startswith("--") and len(argument) > 2:
        name = argument[1:].partition("=")[0]
        if name in SWITCHES or name == "help" or any(name == flag.name for flag in FLAGS):
            return "-" + argument
    return argument


def _parser() -> _Parser:
    parser = _Parser(
        prog="maglevd",
        description="Health checker and control plane for VPP's Maglev load balancer.",
        epilog="Signals: HUP reloads the configuration, TERM and INT end the daemon. See maglevd(8).",
        allow_abbrev=False,
    )
    for flag in FLAGS:
        words = f"{flag.help} (default: {flag.default or 'none'}" + (f"; environment: {flag.env})" if flag.env else ")")
        optional = {"nargs": "?", "const": "true"} if flag.name == "reflection" else {}
        parser.add_argument(
            f"--{flag.name}",
            default=None,
            metavar="|".join(flag.choices) or "VALUE",
            help=words.replace("%", "%%"),
            **optional,  # type: ignore[arg-type]
        )
    for name, words in SWITCHES.items():
        parser.add_argument(f"--{name}", action="store_true", help=words)
    return parser


def _value(parser: _Parser, flag: Flag, given: str | None, environ: Mapping[str, str]) -> str:
    """The value of a flag: of the command line, else of the environment, else its default. Exits if it is wrong."""
    source = f"--{flag.name}"
    if given is None and flag.env and flag.env in environ:
        given, source = environ[flag.env], f"environment variable {flag.env}"
    value = flag.default if given is None else given
    if flag.choices and value not in flag.choices:
        parser.error(f"{source}: {value!r} is not one of {', '.join(flag.choices)}")
    try:
        if flag.name == "log-level":
            parse_level(value)
        elif flag.name in ("grpc-addr", "metrics-addr") and value:
            parse_listen(value)
        elif flag.name == "config" and not value:
            raise ValueError("a configuration file is needed")
        if "\0" in value:
            raise ValueError("a zero byte")
    except ValueError as error:
        parser.error(f"{source}: {error}")
    return value


def parse(arguments: Sequence[str], environ: Mapping[str, str]) -> Options:
    """The options. A command line that cannot be parsed ends the program with status 64 (``SystemExit``)."""
    parser = _parser()
    known = vars(parser.parse_args(_with_values(arguments)))
    values = {flag.name: _value(parser, flag, known[flag.name.replace("-", "_")], environ) for flag in FLAGS}
    if known["json"] and not known["check"]:
        parser.error("--json goes with --check")
    if bool(values["grpc-tls-cert"]) != bool(values["grpc-tls-key"]):
        parser.error("--grpc-tls-cert and --grpc-tls-key go together")
    if values["grpc-client-ca"] and not values["grpc-tls-cert"]:
        parser.error("--grpc-client-ca goes with --grpc-tls-cert")

    return Options(
        config=Path(values["config"]),
        grpc_addr=values["grpc-addr"],
        grpc_socket=Path(values["grpc-socket"]) if values["grpc-socket"] else None,
        grpc_tcp_role=values["grpc-tcp-role"],
        grpc_tls_cert=Path(values["grpc-tls-cert"]) if values["grpc-tls-cert"] else None,
        grpc_tls_key=Path(values["grpc-tls-key"]) if values["grpc-tls-key"] else None,
        grpc_client_ca=Path(values["grpc-client-ca"]) if values["grpc-client-ca"] else None,
        metrics_addr=values["metrics-addr"],
        vpp_api_addr=values["vpp-api-addr"],
        vpp_stats_addr=values["vpp-stats-addr"],
        state_file=Path(values["state-file"]) if values["state-file"] else None,
        log_level=values["log-level"],
        log_format=values["log-format"],
        reflection=values["reflection"] == "true",
        check=known["check"],
        json=known["json"],
        version=known["version"],
    )


def _with_values(arguments: Sequence[str]) -> list[str]:
    """Each argument with two dashes, and each value tied to its flag: ``--grpc-addr "" `` and ``-x`` stay values."""
    takes = {f"--{flag.name}" for flag in FLAGS if flag.name != "reflection"}
    result: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        word = _two_dashes(argument)
        if word in takes:
            value = next(rest, None)
            result.append(word if value is None else f"{word}={value}")
        else:
            result.append(word)
    return result
