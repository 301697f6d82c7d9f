"""``maglevc``: flags, one command or the shell, and the exit status.

Exit status: 0 done, 1 refused or not found, 2 usage, 3 server unreachable, 74 standard output
could not be written, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

from maglev.base import stdio
from maglev.base.version import version
from maglev.cli.errors import DONE, INTERRUPTED, REFUSED, UNREACHABLE, USAGE, CommandError, UsageError
from maglev.cli.grammar import usage
from maglev.cli.text import HELP_COLUMNS, Style, complain, escape, explained, terminal_columns, wrap

FLAGS: Sequence[tuple[str, str]] = (
    (
        "--server ADDRESS",
        "host:port or unix:/path [MAGLEV_SERVER]; default: the daemon's Unix socket if it can be opened, else "
        "localhost:9090",
    ),
    ("--json", "JSON instead of tables"),
    ("--color[=true|false]", "colours; default: on a terminal, unless NO_COLOR is set"),
    ("--tls", "speak TLS, with the system's authorities"),
    ("--tls-ca FILE", "speak TLS, with these authorities"),
    ("--tls-cert FILE", "our certificate"),
    ("--tls-key FILE", "its key"),
    ("--tls-server-name NAME", "the name to verify instead of the address"),
    ("--complete", "print what the last word of the command, which may be empty, can become"),
    ("--version", "our version"),
    ("--help", "this text"),
)
EXIT_STATUS: Sequence[tuple[str, str]] = (
    (str(DONE), "done"),
    (str(REFUSED), "refused or not found"),
    (str(USAGE), "usage"),
    (str(UNREACHABLE), "server unreachable"),
    (str(stdio.EX_IOERR), "standard output could not be written"),
    (str(INTERRUPTED), "interrupted with Ctrl-C"),
)

_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass
class Flags:
    """The command line. ``colour`` None: on a terminal. ``server`` empty: find it."""

    server: str = ""
    json: bool = False
    colour: bool | None = None
    version: bool = False
    help: bool = False
    complete: bool = False
    tls: bool = False
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    tls_server_name: str = ""
    words: list[str] = field(default_factory=list)


def parse_flags(arguments: Sequence[str], environment: Mapping[str, str]) -> Flags:
    """Flags wherever they stand, up to ``--``; the rest is the command. Raises ``UsageError``."""
    flags = Flags(server=environment.get("MAGLEV_SERVER", ""))
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            flags.words += rest
            break
        if not argument.startswith("-") or argument == "-":
            flags.words.append(argument)
            continue
        name, given, value = argument.lstrip("-").partition("=")
        match name:
            case "json" | "version" | "help" | "h" | "tls" | "complete":
                on = _boolean(argument, value) if given else True
                setattr(flags, "help" if name == "h" else name, on)
            case "color" | "colour":
                flags.colour = _boolean(argument, value) if given else True
            case "server" | "tls-ca" | "tls-cert" | "tls-key" | "tls-server-name":
                if not given:
                    if not rest:
                        raise UsageError(f"{argument} needs a value")
                    value = rest.pop(0)
                setattr(flags, name.replace("-", "_"), value)
            case _:
                raise UsageError(f"{argument!r} is no flag: expected one of those that --help lists")
    return flags


def help_lines(columns: int) -> Iterator[str]:
    """The text of ``--help`` on a terminal of ``columns`` (0: not a terminal)."""
    columns = min(columns or HELP_COLUMNS, HELP_COLUMNS)
    yield from wrap("usage: maglevc [flags] [command]", columns)
    yield ""
    yield from wrap("Without a command: a shell (? shows what can follow, Tab completes).", columns, 0)
    yield ""
    yield "flags (one dash or two)"
    yield from explained(FLAGS, columns, max(len(flag) for flag, _ in FLAGS))
    yield ""
    yield "exit status"
    yield from explained(EXIT_STATUS, columns, max(len(status) for status, _ in EXIT_STATUS))
    yield ""
    yield "commands"
    for syntax, _ in usage():
        yield from wrap(f"  {syntax}", columns, 4)


def _boolean(argument: str, value: str) -> bool:
    try:
        return _BOOLEANS[value.lower()]
    except KeyError:
        raise UsageError(f"{argument!r}: expected true or false") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """The program. Returns the exit status."""
    stdio.complete()

    def run() -> int:
        try:
            return _main(sys.argv[1:] if arguments is None else arguments, sys.stdout)
        except KeyboardInterrupt:
            return INTERRUPTED

    return stdio.guarded("maglevc", run)


def _main(arguments: Sequence[str], out: IO[str]) -> int:
    try:
        flags = parse_flags(arguments, os.environ)
    except UsageError as error:
        complain(sys.stderr, escape(str(error)))
        return USAGE
    if flags.version:
        out.write(f"maglevc {version()}\n")
        return DONE
    if flags.help:
        out.writelines(f"{line}\n" for line in help_lines(terminal_columns(out)))
        return DONE
    # gRPC takes a tenth of a second to import: not for the above.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from maglev.cli.client import DEFAULT_TCP, Client, default_server
    from maglev.cli.commands import run
    from maglev.cli.context import Context, Quit
    from maglev.cli.tls import Tls

    try:
        wants_tls = flags.tls or flags.tls_ca or flags.tls_cert or flags.tls_key or flags.tls_server_name
        tls = Tls(flags.tls_ca, flags.tls_cert, flags.tls_key, flags.tls_server_name) if wants_tls else None
        server, instead = flags.server, ""
        if not server:
            # The Unix socket speaks no TLS.
            server, instead = (DEFAULT_TCP, "") if tls is not None else default_server()
        client = Client(server, tls, instead)
    except CommandError as error:
        complain(sys.stderr, escape(str(error)))
        return error.status
    context = Context(
        client, Style(_colour(flags, out), lambda: terminal_columns(out)), flags.json, out, sys.stderr, version()
    )
    try:
        if flags.complete:
            from maglev.cli.complete import candidates
            from maglev.cli.shell import Names

            out.writelines(f"{escape(word)}\n" for word in candidates(flags.words, Names(client.stub).get))
            return DONE
        if flags.words:
            return run(context, flags.words)
        from maglev.cli.shell import interactive, script

        return interactive(context) if sys.stdin.isatty() else script(context, sys.stdin)
    except Quit:
        return DONE
    finally:
        client.close()


def _colour(flags: Flags, out: IO[str]) -> bool:
    if flags.colour is not None:
        return flags.colour
    # https://no-color.org: any value but the empty one.
    return out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


if __name__ == "__main__":
    sys.exit(main())
