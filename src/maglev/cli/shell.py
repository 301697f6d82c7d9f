"""The interactive shell: completion of words and live names, ``?``, history, and a prompt that shows the server.

Nothing that a key does waits for the network: names are fetched in the background and remembered for a while, and a
separate thread asks the daemon for its state.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
from prompt_toolkit import PromptSession
from prompt_toolkit.application import run_in_terminal
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from maglev.cli import grammar
from maglev.cli.client import DEFAULT_SOCKET
from maglev.cli.commands import run
from maglev.cli.complete import LiveNames
from maglev.cli.context import Context, Quit
from maglev.cli.errors import DONE, UsageError
from maglev.cli.grammar import LIVE, Kind, Node, Position
from maglev.cli.text import HELP_COLUMNS, escape, explained, wrap
from maglev.pb import maglev_pb2 as pb

# Names are remembered so long; a fetch has so long; as many are offered.
NAMES_SECONDS = 5.0
FETCH_SECONDS = 1.0
NAMES = 200
# Of these, ? shows so many.
SHOWN = 40
# The most columns for the server's name in the prompt; a narrower terminal shows the state alone.
SERVER_COLUMNS = 24
WIDE = 60
# How often the prompt asks the daemon how it is.
POLL_SECONDS = 2.0


def split(line: str) -> list[str]:
    """The words of a line; quotes as in a shell. Raises ``UsageError`` for an open one."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=False)
    lexer.whitespace_split = True
    lexer.commenters = "#"
    try:
        return list(lexer)
    except ValueError as error:
        raise UsageError(f"{error}".lower()) from None


def script(context: Context, lines: Iterable[str]) -> int:
    """Commands from a file or a pipe, one a line. All are run; the status is that of the last that failed."""
    status = DONE
    try:
        for line in lines:
            status = one_line(context, line) or status
    except Quit:
        return status
    return status


def one_line(context: Context, line: str) -> int:
    """One line of input. Returns the exit status; raises ``Quit``."""
    try:
        words = split(line)
    except UsageError as error:
        context.complain(str(error))
        return error.status
    return run(context, words) if words else DONE


class Names:
    """Names of live objects that begin with something, from memory or from the daemon.

    ``get`` waits for the daemon at most ``FETCH_SECONDS``; it is called on a thread of the completer.
    """

    def __init__(self, stub: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._stub = stub
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[tuple[str, ...], tuple[float, list[str]]] = {}

    def get(self, kind: Kind, prefix: str, values: Mapping[str, str]) -> list[str]:
        """Up to ``NAMES`` names of that kind; what was known before where the daemon does not answer."""
        key = (kind.value, prefix, values.get("frontend", ""), values.get("pool", ""))
        with self._lock:
            known = self._known.get(key)
        if known is not None and self._clock() - known[0] < NAMES_SECONDS:
            return known[1]
        try:
            names = self._fetch(kind, prefix, values)
        except grpc.RpcError:
            # No daemon, no names: the prompt says that it is away.
            return known[1] if known is not None else []
        with self._lock:
            if len(self._known) >= 1_000:
                self._known.clear()
            self._known[key] = (self._clock(), names)
        return names

    def _fetch(self, kind: Kind, prefix: str, values: Mapping[str, str]) -> list[str]:
        begins = "^" + re.escape(prefix) if prefix else ""
        deadline = FETCH_SECONDS
        stub = self._stub
        if kind is Kind.FRONTEND:
            frontends = pb.ListFrontendsRequest(name_regexp=begins, page_size=NAMES, omit_pools=True)
            return [one.name for one in stub.ListFrontends(frontends, timeout=deadline).frontends]
        if kind is Kind.BACKEND:
            backends = pb.ListBackendsRequest(name_regexp=begins, page_size=NAMES, omit_transitions=True)
            return [one.name for one in stub.ListBackends(backends, timeout=deadline).backends]
        if kind is Kind.HEALTHCHECK:
            checks = pb.ListHealthChecksRequest(name_regexp=begins, page_size=NAMES)
            return [one.name for one in stub.ListHealthChecks(checks, timeout=deadline).healthchecks]
        info = stub.GetFrontend(pb.GetFrontendRequest(name=values.get("frontend", "")), timeout=deadline)
        if kind is Kind.POOL:
            return [pool.name for pool in info.pools if pool.name.startswith(prefix)]
        return [
            one.name
            for pool in info.pools
            if pool.name == values.get("pool", "")
            for one in pool.backends
            if one.name.startswith(prefix)
        ][:NAMES]


def place(text: str) -> tuple[Position, str]:
    """Where the cursor stands: the place after the finished words, and the word that is being typed.

    Raises ``UsageError`` when the words before make no sense.
    """
    begun = "" if not text or text[-1].isspace() else text.split()[-1]
    return grammar.walk(split(text[: len(text) - len(begun)])), begun


class GrammarCompleter(Completer):
    """Offers what the tree allows next: words, and names of live objects for its slots."""

    def __init__(self, names: Names) -> None:
        self._names = names

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        """Completions of the word at the cursor."""
        try:
            position, begun = place(document.text_before_cursor)
        except UsageError:
            return
        for node, _ in position.following():
            if node.kind is None:
                if node.name.startswith(begun):
                    yield Completion(node.name + " ", -len(begun), display=node.name, display_meta=node.help)
            elif node.kind in LIVE:
                for name in self._names.get(node.kind, begun, position.values):
                    if name.startswith(begun):
                        yield Completion(name + " ", -len(begun), display=name, display_meta=node.kind.value)


def what_follows(text: str, columns: int, names: LiveNames | None = None) -> list[str]:
    """The lines that ``?`` shows behind ``text`` on a terminal of ``columns``.

    ``names`` finds live names for the slots; it may take its time.
    """
    try:
        position, begun = place(text)
    except UsageError as error:
        return list(wrap(str(error), columns))
    nodes = [node for node, _ in position.following() if _fits(node, begun)]
    rows: list[tuple[str, str]] = [(node.name, node.help) for node in nodes]
    if position.complete() and not begun:
        rows.append(("<Enter>", "carry it out"))
    if not rows:
        return list(wrap(f"{escape(begun)!r} is not expected here: {grammar.expected(position)}", columns))
    lines = list(explained(rows, columns, max(len(name) for name, _ in rows)))
    if names is not None:
        for node in nodes:
            if node.kind in LIVE:
                found = [name for name in names(node.kind, begun, position.values) if name.startswith(begun)]
                lines += _columns(found, min(columns, HELP_COLUMNS))
    return lines


def _columns(names: Sequence[str], width: int) -> list[str]:
    """Names beside each other, in their order, and how many there are more."""
    shown = [escape(name) for name in names[:SHOWN]]
    size = max((len(name) for name in shown), default=0) + 2
    across = max(1, (width - 4) // size)
    lines = [
        "    " + "".join(f"{name:<{size}}" for name in shown[at : at + across]).rstrip()
        for at in range(0, len(shown), across)
    ]
    return lines + (
        [f"    ... and {'at least ' if len(names) >= NAMES else ''}{len(names) - SHOWN} more"] * (len(names) > SHOWN)
    )


def _fits(node: Node, begun: str) -> bool:
    return node.kind is not None or node.name.startswith(begun)


class Pulse:
    """Asks the daemon for its state every ``POLL_SECONDS``, on a separate thread, for the prompt."""

    def __init__(self, stub: Any, changed: Callable[[], None]) -> None:
        self._stub = stub
        self._changed = changed
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)
        # The text of the prompt, with its colour: "up", "away", "up, 3 down", "up, vpp away".
        self.state: tuple[str, str] = ("...", "")

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """Ask no more."""
        self._ended.set()
        self._thread.join(FETCH_SECONDS + 0.5)

    def _run(self) -> None:
        while True:
            state = self._ask()
            if state != self.state:
                self.state = state
                self._changed()
            if self._ended.wait(POLL_SECONDS):
                return

    def _ask(self) -> tuple[str, str]:
        try:
            info = self._stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=FETCH_SECONDS)
        except grpc.RpcError as error:
            answered = error.code() in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.RESOURCE_EXHAUSTED)
            return ("busy", "ansiyellow") if answered else ("away", "ansired")
        except ValueError:
            # The channel was closed under us: the shell ends.
            return self.state
        words = ["up"]
        down = sum(one.backends for one in info.backend_states if one.state == pb.BACKEND_STATE_DOWN)
        if down:
            words.append(f"{down} down")
        if info.vpp.configured and not info.vpp.connected:
            words.append("vpp away")
        return ", ".join(words), "ansigreen" if len(words) == 1 else "ansiyellow"


def history() -> History:
    """On disk, in ``$XDG_STATE_HOME`` (``~/.local/state``); in memory where that cannot be written."""
    base = os.environ.get("XDG_STATE_HOME", "")
    directory = Path(base) if base.startswith("/") else Path.home() / ".local" / "state"
    path = directory / "vpp-maglev" / "maglevc_history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Reasons may be private: the file is ours alone.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
    except OSError:
        return InMemoryHistory()
    return FileHistory(os.fspath(path))


def shown(server: str) -> str:
    """The server's name for the prompt, with a blank: empty for the default one, shortened to the end of a long one."""
    if server == f"unix:{DEFAULT_SOCKET}":
        return ""
    short = server if len(server) <= SERVER_COLUMNS else "..." + server[3 - SERVER_COLUMNS :]
    return f"{escape(short)} "


def interactive(context: Context) -> int:
    """The shell. Returns 0: the result of each command was printed when it ended."""
    names = Names(context.client.stub)
    session: PromptSession[str] = PromptSession(
        history=history(),
        completer=GrammarCompleter(names),
        complete_in_thread=True,
        complete_while_typing=False,
        key_bindings=_keys(names.get),
        enable_history_search=True,
        # News that comes while a prompt is being set up is not drawn by invalidate().
        refresh_interval=1.0,
    )
    pulse = Pulse(context.client.stub, session.app.invalidate)
    pulse.start()

    server = shown(context.client.server)

    def prompt() -> FormattedText:
        words, colour = pulse.state
        colour = colour if context.style.colour else ""
        who = f"maglevc {server}" if session.output.get_size().columns >= WIDE else ""
        return FormattedText([("", f"{who}["), (colour, words), ("", "]> ")])

    try:
        while True:
            try:
                one_line(context, session.prompt(prompt))
            except KeyboardInterrupt:
                # Ctrl-C drops the line, or the command that runs.
                continue
            except EOFError:
                return DONE
            context.out.flush()
    except Quit:
        return DONE
    finally:
        pulse.stop()


def _keys(names: LiveNames) -> KeyBindings:
    keys = KeyBindings()

    @keys.add("?")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        text = buffer.document.text_before_cursor
        if text.count('"') % 2 or text.count("'") % 2:
            # Within quotes it is a character like any other.
            buffer.insert_text("?")
            return

        async def show() -> None:
            # The names come from the daemon, on a thread: the next key does not wait for them.
            columns = event.app.output.get_size().columns
            lines = [f"{text}?", *await asyncio.to_thread(what_follows, text, columns, names)]
            await run_in_terminal(lambda: print("\n".join(lines)))

        event.app.create_background_task(show())

    return keys
