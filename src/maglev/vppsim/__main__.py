"""``python -m maglev.vppsim``: run the stand-in, show its state, or control a running one."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import socket
import sys
from pathlib import Path
from typing import Final

import uvloop

from maglev.vpp.wire.messages import ProtocolError
from maglev.vppsim import inspect
from maglev.vppsim.api import Identity
from maglev.vppsim.control import HELP, Control, ControlSocket
from maglev.vppsim.journal import Journal
from maglev.vppsim.server import StandIn

_EPILOG: Final = f"""\
other commands:
  python -m maglev.vppsim show --socket PATH            VIPs, ASes, weights and buckets, read through the API
  python -m maglev.vppsim tell --socket PATH WORDS...   tell a running stand-in to do something
  python -m maglev.vppsim tell --control PATH WORDS...  the same over its control socket: works while the API hangs

what it can be told, then or by --fault at the start:
{HELP}"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command line. Returns the exit status: 0 success, 1 failure, 2 usage error."""
    arguments = sys.argv[1:] if arguments is None else arguments
    commands = {"show": _show, "tell": _tell}
    try:
        if arguments and arguments[0] in commands:
            return commands[arguments[0]](arguments[1:])
        return _serve(arguments)
    except (OSError, ProtocolError) as error:
        print(f"vppsim: {error}", file=sys.stderr)
        return 1


def _show(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m maglev.vppsim show", description=inspect.__doc__)
    parser.add_argument("--socket", required=True, type=Path, help="API socket, of the stand-in or of a real VPP")
    print(inspect.show(parser.parse_args(arguments).socket), end="")
    return 0


def _tell(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m maglev.vppsim tell", epilog=HELP)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--socket", type=Path, help="API socket of the stand-in")
    where.add_argument("--control", type=Path, help="control socket of the stand-in")
    parser.add_argument("words", nargs="+", help="the command")
    options = parser.parse_args(arguments)
    line = " ".join(options.words)
    if options.control is not None:
        retval, output = _ask(options.control, line)
    else:
        with inspect.Client(options.socket, "vppsim-tell") as client:
            reply = client.call("cli_inband", cmd=f"{Control.PREFIX}{line}")
        retval, output = reply["retval"], reply["reply"]
    print(output, end="", file=sys.stdout if retval == 0 else sys.stderr)
    return 0 if retval == 0 else 1


def _ask(path: Path, line: str) -> tuple[int, str]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(inspect.DEADLINE)
        connection.connect(str(path))
        connection.sendall(f"{line}\n".encode())
        answer = b""
        while data := connection.recv(65536):
            answer += data
    retval, _, output = answer.decode().partition("\n")
    if not retval.lstrip("-").isdecimal():
        raise ConnectionError("no answer on the control socket")
    return int(retval), output


def _serve(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m maglev.vppsim",
        description="A stand-in for VPP's lb plugin on a real API socket.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--socket", required=True, type=Path, help="API socket to listen on")
    parser.add_argument("--stats-socket", type=Path, help="socket that hands out the stats segment")
    parser.add_argument("--control", type=Path, help="control socket to listen on")
    parser.add_argument("--log-calls", type=Path, metavar="FILE", help="append every call as a line of JSON")
    parser.add_argument("--fault", action="append", default=[], metavar="COMMAND", help="misbehave from the start")
    parser.add_argument("--without-weights", action="store_true", help="a release without the v2 messages")
    parser.add_argument("--vpp-version", default=Identity().version, metavar="TEXT", help="what show_version tells")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="worker threads to speak of")
    parser.add_argument("--verbose", action="store_true", help="log what is dropped, too")
    options = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    return uvloop.run(_run(options))


async def _run(options: argparse.Namespace) -> int:
    calls = None
    if options.log_calls is not None:
        calls = options.log_calls.open("a", buffering=1)
    try:
        server = StandIn(
            options.socket,
            identity=Identity(version=options.vpp_version, workers=options.workers),
            with_weights=not options.without_weights,
            journal=Journal(log=calls),
            stats_path=options.stats_socket,
        )
        control = None if options.control is None else ControlSocket(options.control, server.control)
        for command in options.fault:
            retval, output = server.control.execute(command)
            if retval:
                print(output, end="", file=sys.stderr)
                return 2
        ended = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, ended.set)
        if control is not None:
            await control.start()
        try:
            await server.start()
            logging.info("listening on %s", options.socket)
            await ended.wait()
        finally:
            await server.stop()
            if control is not None:
                await control.stop()
    finally:
        if calls is not None:
            calls.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
