"""The command language that controls a running stand-in: by ``cli_inband "sim ..."`` or over a control socket.

``Controlled`` lists what the commands need of the stand-in, so this module never imports the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
from collections.abc import Callable
from typing import Final, Protocol

from maglev.vpp.wire.messages import MESSAGES, VipKey
from maglev.vppsim.faults import FOREVER, Faults, Refusal
from maglev.vppsim.journal import Journal
from maglev.vppsim.model import Model, Vip, embed

HELP: Final = """\
delay MESSAGE|* SECONDS             each such call keeps VPP's main thread busy that long
refuse MESSAGE|* RETVAL [nth N] [times N]
                                    refuse such calls: all, from the Nth on, at most N
cut received|sent BYTES             drop the connection after so many more bytes
mute [N]                            do the next N calls (default: all) without answering
wrong-context [N]                   answer the next N calls with a context that nobody asked with
unknown-message [N]                 put a message that is in no table before the next N replies
truncate [N]                        end the next N replies a byte too early
garble [N]                          announce nonsense in the frames of the next N replies
hang on|off                         read nothing and answer nothing
clear                               behave again
restart [SECONDS]                   come back empty, after so long
advance SECONDS                     move VPP's clock on (garbage collection)
packets PREFIX [tcp|udp PORT] N     a packet of each of N flows
calls                               how often each message was called
work                                estimated main-thread time of all table rebuilds, nanoseconds
help                                this text
"""

_COUNTED: Final = ("mute", "wrong-context", "unknown-message", "truncate", "garble")
MAX_FLOWS: Final = 1_000_000


class BadCommand(Exception):
    """A command that cannot be parsed, or that names something unknown."""


class Controlled(Protocol):
    """The stand-in as the commands see it."""

    faults: Faults
    journal: Journal

    @property
    def model(self) -> Model:
        """The lb plugin of the VPP that runs now. A restart replaces it, so no command may keep it."""

    @property
    def hanging(self) -> bool:
        """True while the stand-in neither reads nor answers."""

    @hanging.setter
    def hanging(self, value: bool) -> None: ...

    def restart_soon(self, down: float = 0.0) -> None:
        """Schedule a restart with an empty model; the socket is gone for ``down`` seconds."""

    def advance(self, seconds: float) -> None:
        """Move VPP's clock forward."""

    def receive_flows(self, vip: Vip, flows: range) -> None:
        """Send one packet of each flow through the VIP."""


class Control:
    """Parses a command line and applies it to a stand-in."""

    PREFIX: Final = "sim "
    """Start of a ``cli_inband`` command that is meant for the stand-in and not for VPP's command line."""

    def __init__(self, server: Controlled) -> None:
        self._server = server
        self._commands: dict[str, Callable[[list[str]], str]] = {
            "delay": self._delay,
            "refuse": self._refuse,
            "cut": self._cut,
            "hang": self._hang,
            "clear": self._clear,
            "restart": self._restart,
            "advance": self._advance,
            "packets": self._packets,
            "calls": self._calls,
            "work": lambda _: f"{server.model.work_ns}\n",
            "help": lambda _: HELP,
        }

    def execute(self, line: str) -> tuple[int, str]:
        """Run one command. Returns 0 or -1, and its output."""
        words = line.split()
        try:
            if not words:
                raise BadCommand("no command; try help")
            if words[0] in _COUNTED:
                count = _whole(words[1]) if len(words) > 1 else FOREVER
                setattr(self._server.faults, words[0].replace("-", "_"), count)
                return 0, ""
            command = self._commands.get(words[0])
            if command is None:
                raise BadCommand(f"unknown command {words[0]!r}; try help")
            return 0, command(words[1:])
        except (BadCommand, IndexError, ValueError) as error:
            return -1, f"sim: {error if not isinstance(error, IndexError) else 'something is missing'}\n"

    def _delay(self, words: list[str]) -> str:
        name, seconds = _message(words[0]), float(words[1])
        if seconds < 0:
            raise BadCommand("a delay is not negative")
        if seconds:
            self._server.faults.delays[name] = seconds
        else:
            self._server.faults.delays.pop(name, None)
        return ""

    def _refuse(self, words: list[str]) -> str:
        refusal = Refusal(_message(words[0]), int(words[1]))
        for option, value in zip(words[2::2], words[3::2], strict=True):
            if option == "nth":
                refusal.skip = _whole(value) - 1
            elif option == "times":
                refusal.times = _whole(value)
            else:
                raise BadCommand(f"unknown option {option!r}")
        self._server.faults.refusals.append(refusal)
        return ""

    def _cut(self, words: list[str]) -> str:
        if words[0] == "received":
            self._server.faults.cut_received = _whole(words[1])
        elif words[0] == "sent":
            self._server.faults.cut_sent = _whole(words[1])
        else:
            raise BadCommand("cut received or cut sent")
        return ""

    def _hang(self, words: list[str]) -> str:
        if words[0] not in ("on", "off"):
            raise BadCommand("hang on or hang off")
        self._server.hanging = words[0] == "on"
        return ""

    def _clear(self, words: list[str]) -> str:
        self._server.faults.clear()
        self._server.hanging = False
        return ""

    def _restart(self, words: list[str]) -> str:
        self._server.restart_soon(float(words[0]) if words else 0.0)
        return ""

    def _advance(self, words: list[str]) -> str:
        seconds = float(words[0])
        if not 0 <= seconds < 1e9:
            raise BadCommand("time goes forward only")
        self._server.advance(seconds)
        return ""

    def _packets(self, words: list[str]) -> str:
        count = _whole(words[-1])
        if count > MAX_FLOWS:
            raise BadCommand(f"at most {MAX_FLOWS} flows")
        vip = self._vip(words[:-1])
        self._server.receive_flows(vip, range(count))
        return "".join(
            f"{ipaddress.ip_address(server.address[12:] if vip.type.backends_ip4 else server.address)} {server.flows}\n"
            for server in self._server.model.ases_of(vip)
        )

    def _vip(self, words: list[str]) -> Vip:
        if len(words) == 3:
            key = VipKey.parse(words[0], {"tcp": 6, "udp": 17}[words[1]], int(words[2]))
        elif len(words) == 1:
            key = VipKey.parse(words[0])
        else:
            raise BadCommand("a VIP is PREFIX or PREFIX tcp|udp PORT")
        length = key.prefix_length + (96 if len(key.address) == 4 else 0)
        vip = self._server.model.find(embed(key.address), length, key.protocol, key.port)
        if vip is None:
            raise BadCommand(f"no VIP {key}")
        return vip

    def _calls(self, words: list[str]) -> str:
        return "".join(f"{name} {count}\n" for name, count in sorted(self._server.journal.counts.items()))


def _message(name: str) -> str:
    if name != "*" and name not in MESSAGES:
        raise BadCommand(f"no message named {name!r}")
    return name


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise BadCommand(f"{text!r} is no number")
    return int(text)


class ControlSocket:
    """The command language on a separate socket, which works while the API hangs.

    One command per connection: the client sends a line; the answer is the return value on a line, then the output.
    """

    DEADLINE: Final = 10.0
    LONGEST: Final = 4096

    def __init__(self, path: str | os.PathLike[str], control: Control) -> None:
        self._path = os.fspath(path)
        self._control = control
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. Raises OSError."""
        self._server = await asyncio.start_unix_server(self._serve, self._path, limit=self.LONGEST)

    async def stop(self) -> None:
        """Stop listening and remove the socket."""
        if self._server is not None:
            self._server.close()
            self._server = None
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(self.DEADLINE):
                line = await reader.readline()
                retval, output = self._control.execute(line.decode(errors="replace"))
                writer.write(f"{retval}\n{output}".encode())
                await writer.drain()
        except (TimeoutError, ValueError, ConnectionError):
            pass  # The client was too slow, sent too long a line or disconnected: no connection is left to answer on.
        finally:
            writer.close()
