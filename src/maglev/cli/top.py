"""``maglevc top``: the whole daemon on one screen, kept up to date by its events.

The board is fed by two threads: one follows ``WatchEvents``, the other asks for values that no event
carries: for rates once a second and for weights after news. Keys never wait for either. When the daemon goes away the
screen says so and stays.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import grpc
from prompt_toolkit.application import Application
from prompt_toolkit.formatted_text import ANSI
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout import FormattedTextControl, Layout, Window

from maglev.cli import render
from maglev.cli.client import CALL_SECONDS, PAGE, Client
from maglev.cli.context import Context
from maglev.cli.errors import DONE, CommandError
from maglev.cli.jsonout import word
from maglev.cli.text import Style, Table, cut, duration, escape
from maglev.pb import maglev_pb2 as pb

# How often rates are asked for; how soon after news the weights are; how long to wait for a daemon that went away.
ASK_SECONDS = 1.0
NEWS_SECONDS = 0.2
# Weights also change without an event of their own (a sync, another pool): looked at this often at least.
QUIET_SECONDS = 5.0
RETRY_SECONDS = 1.0
# Transitions are counted over so long.
WINDOW_SECONDS = 60
EVENTS_KEPT = 100
# Events from before the start are shown from so long ago.
HISTORY_SECONDS = 600
# Columns of a frontend's row in front of its weights, as a rule, and the least that the weights get.
ROW_FRONT = 56
LEAST_WEIGHTS = 24

_RANK: Mapping[int, int] = {pb.FRONTEND_STATE_DOWN: 0, pb.FRONTEND_STATE_PANIC: 0, pb.FRONTEND_STATE_UNKNOWN: 1}

_MOVES = {"up": -1, "k": -1, "down": 1, "j": 1}


class Board:
    """The contents of the screen. ``lines`` draws them, all else updates them. One lock, held for microseconds."""

    def __init__(self, server: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._server = server
        self._clock = clock
        self._lock = threading.Lock()
        self._info: pb.ServerInfo | None = None
        self._rate: float | None = None
        self._states: dict[str, int] = {}
        self._drained: set[str] = set()
        self._frontends: dict[str, pb.FrontendInfo] = {}
        self._details: dict[str, pb.FrontendInfo] = {}
        self._events: deque[pb.Event] = deque(maxlen=EVENTS_KEPT)
        self._moved: deque[float] = deque()
        self._lost = 0
        self._complete = False
        self._void = False
        # Why the daemon cannot be asked; empty: it can.
        self.problem = ""
        # First frontend on the screen, and how many there is room for.
        self._first = 0
        self._room = 0

    # --------------------------------------------------------------------------------------------------- feeding

    def begin(self) -> None:
        """A new stream begins: its first batch replaces the contents of the one before."""
        with self._lock:
            self._void = True

    def feed(self, batch: pb.WatchEventsResponse) -> None:
        """A batch of events."""
        with self._lock:
            self.problem = ""
            if self._void:
                self._void = self._complete = False
                self._states.clear()
                self._drained.clear()
            self._lost += batch.lost
            for event in batch.events:
                self._take(event)
            self._complete |= batch.state_complete

    def remember(self, past: Iterable[pb.PastEvent]) -> None:
        """Events from before the stream, the newest first. Ignored once there are newer ones."""
        with self._lock:
            if self._events:
                return
            now = self._clock()
            for one in sorted(past, key=lambda one: one.id):
                self._events.append(one.event)
                if one.event.WhichOneof("event") == "backend" and one.age_ns < WINDOW_SECONDS * 10**9:
                    self._moved.append(now - one.age_ns / 1e9)

    def _take(self, event: pb.Event) -> None:
        match event.WhichOneof("event"):
            case "backend":
                told = event.backend
                if told.to_state == pb.BACKEND_STATE_REMOVED:
                    self._states.pop(told.name, None)
                else:
                    self._states[told.name] = told.to_state
                self._mark(told.name, told.drained)
                if told.from_state != told.to_state:
                    self._moved.append(self._clock())
            case "drain":
                self._mark(event.drain.name, event.drain.drained)
        if self._complete:
            self._events.append(event)

    def _mark(self, name: str, drained: bool) -> None:
        if drained:
            self._drained.add(name)
        else:
            self._drained.discard(name)

    def inform(self, info: pb.ServerInfo) -> None:
        """How the daemon is. Two of these make a rate."""
        with self._lock:
            self.problem = ""
            before, self._info = self._info, info
            self._rate = None
            if before is not None and before.pid == info.pid and info.uptime_ns > before.uptime_ns:
                probes = _results(info) - _results(before)
                self._rate = probes * 1e9 / (info.uptime_ns - before.uptime_ns)

    def fill(self, frontends: Iterable[pb.FrontendInfo]) -> None:
        """All frontends, without their pools."""
        with self._lock:
            self._frontends = {one.name: one for one in frontends}

    def detail(self, infos: Iterable[pb.FrontendInfo]) -> None:
        """Frontends with their pools: those on the screen."""
        with self._lock:
            self._details = {one.name: one for one in infos}

    def fail(self, problem: str) -> None:
        """The daemon cannot be asked."""
        with self._lock:
            self.problem = problem

    # --------------------------------------------------------------------------------------------------- looking

    def visible(self) -> list[str]:
        """Names of the frontends on the screen."""
        with self._lock:
            return [one.name for one in self._shown()]

    def scroll(self, by: int) -> None:
        """Move the list of frontends."""
        with self._lock:
            self._first += by

    @property
    def room(self) -> int:
        """Frontends that the screen has room for."""
        return self._room

    def _shown(self) -> list[pb.FrontendInfo]:
        ordered = sorted(self._frontends.values(), key=_rank)
        self._first = max(0, min(self._first, len(ordered) - self._room))
        return ordered[self._first : self._first + self._room]

    def lines(self, style: Style, height: int) -> list[str]:
        """The screen, ``height`` lines of any width."""
        with self._lock:
            return self._lines(style, height)

    def _lines(self, style: Style, height: int) -> list[str]:
        events = max(2, min(8, height // 4))
        top = list(self._head(style))
        # The headings of both lists, and the line of keys.
        self._room = max(1, height - len(top) - events - 3)
        shown = self._shown()
        table = Table(Style(style.colour), ("FRONTEND", "VIP", "STATE", "POOL", "SERVING", "WEIGHTS"), paint=("STATE",))
        # A row is a line, which the window cuts off; what is in its front may not push the state out.
        longest = max(8, style.columns // 3) if style.columns else sys.maxsize
        room = max(LEAST_WEIGHTS, style.columns - ROW_FRONT) if style.columns else sys.maxsize
        lines = [*top, *table.lines(self._row(one, longest, room) for one in shown)]
        lines += [""] * (self._room - len(shown))
        more = len(self._frontends) - self._first - len(shown)
        title = "EVENTS" + (f" ({self._lost} lost)" if self._lost else "")
        lines.append(style.paint(title, "bold"))
        recent = [render.event(style, event) for event in list(self._events)[-events:]]
        lines += recent + [""] * (events - len(recent))
        keys = "q quit  up/down, PgUp/PgDn, Home/End scroll"
        lines.append(keys + (f"  ({more} more frontends below)" if more > 0 else ""))
        return lines[:height]

    def _head(self, style: Style) -> Iterable[str]:
        info = self._info
        if self.problem:
            yield style.paint(f"maglevd away: {escape(self.problem)}", "error")
        elif info is None:
            yield f"maglevd at {escape(self._server)} ..."
        else:
            yield f"maglevd {escape(info.version)}, up {duration(info.uptime_ns)}, at {escape(self._server)}"
        counts = Counter(self._states.values())
        parts = []
        for state in sorted(counts):
            name = word(pb.BackendState, state)
            parts.append(style.paint(f"{counts[state]} {name}", name if name != "up" else ""))
        drained = len(self._drained & self._states.keys())
        if drained:
            parts.append(style.paint(f"{drained} drained", "drained"))
        yield f"backends {len(self._states)}: " + (", ".join(parts) or "none")
        now = self._clock()
        while self._moved and now - self._moved[0] > WINDOW_SECONDS:
            self._moved.popleft()
        rate = "-" if self._rate is None else f"{self._rate:,.0f}"
        facts = [f"probes {rate}/s", f"transitions {len(self._moved)} in {WINDOW_SECONDS} s"]
        if info is not None and info.vpp.configured:
            if not info.vpp.connected or info.vpp.problem:
                what = "left alone" if info.vpp.connected else "away"
                facts.append(style.paint(f"vpp {what}: weights wait", "error"))
            else:
                facts.append("vpp connected")
            if info.warmup_remaining_ns:
                facts.append(style.paint(f"warm-up, {duration(info.warmup_remaining_ns)} left", "warning"))
        if info is not None and info.waiting_vips:
            facts.append(style.paint(f"{info.waiting_vips} VIPs wait for you", "error"))
        if info is not None and info.config_error:
            facts.append(style.paint("reload refused", "error"))
        yield "  ".join(facts)

    def _row(self, one: pb.FrontendInfo, longest: int, room: int) -> tuple[str, ...]:
        # The pools as of the last request; a new state shows before its weights do.
        detail = self._details.get(one.name)
        weights = ""
        if detail is not None and detail.active_pool_index < len(detail.pools):
            # Those without a weight first: there may be more than the line has room for.
            members = sorted(detail.pools[detail.active_pool_index].backends, key=lambda one: one.effective_weight > 0)
            weights = _fitting([_member(member) for member in members], room)
        return (
            cut(one.name, longest),
            cut(render.endpoint(one.address, one.protocol, one.port), longest),
            word(pb.FrontendState, one.state),
            cut(one.active_pool, longest),
            f"{one.backends_usable}/{one.backends_wanted}",
            weights,
        )


def _rank(info: pb.FrontendInfo) -> int:
    """Those in trouble come first, then those on a fallback, then those that lack a server; else as in the file."""
    return _RANK.get(
        info.state, 2 if info.active_pool_index else 3 if info.backends_usable < info.backends_wanted else 4
    )


def _fitting(members: Sequence[str], room: int) -> str:
    """As many whole members as fit, and how many more there are: a weight that is cut off looks like another one."""
    text = ""
    for at, member in enumerate(members):
        longer = f"{text}, {member}" if text else member
        rest = len(members) - at - 1
        if text and len(longer) + (len(f" +{rest}") if rest else 0) > room:
            return f"{text} +{rest + 1}"
        text = longer
    return text


def _member(info: pb.PoolBackendInfo) -> str:
    text = f"{info.name} {info.effective_weight}"
    if info.state != pb.BACKEND_STATE_UP:
        text += f" {word(pb.BackendState, info.state)}"
    return text + (" drained" if info.drained else "")


def _results(info: pb.ServerInfo) -> int:
    return info.engine.get("passed", 0) + info.engine.get("failed", 0)


class _Feeder:
    """The two threads that feed a board."""

    def __init__(self, client: Client, board: Board, changed: Callable[[], None]) -> None:
        self._client = client
        self._board = board
        self._changed = changed
        self._ended = threading.Event()
        self._news = threading.Event()
        self._call: Any = None
        self._threads = [
            threading.Thread(target=work, name=f"top-{work.__name__.strip('_')}", daemon=True)
            for work in (self._follow, self._ask)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End both; a call that is under way is given up."""
        self._ended.set()
        self._news.set()
        if self._call is not None:
            self._call.cancel()
        for thread in self._threads:
            thread.join(CALL_SECONDS + 0.5)

    def wake(self) -> None:
        """Ask now: the screen shows other frontends."""
        self._news.set()

    def _follow(self) -> None:
        while not self._ended.is_set():
            self._board.begin()
            try:
                self._remember()
                self._call = self._client.stub.WatchEvents(pb.WatchEventsRequest())
                for batch in self._call:
                    self._board.feed(batch)
                    self._news.set()
                    self._changed()
            except grpc.RpcError as error:
                self._failed(error)
            except ValueError:
                # The channel was closed under us.
                return
            self._ended.wait(RETRY_SECONDS)

    def _remember(self) -> None:
        request = pb.ListEventsRequest(last_ns=HISTORY_SECONDS * 10**9, page_size=EVENTS_KEPT)
        try:
            self._board.remember(self._client.stub.ListEvents(request, timeout=CALL_SECONDS).events)
        except grpc.RpcError as error:
            # A daemon of 0.1 remembers nothing.
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise

    def _ask(self) -> None:
        asked = listed = -QUIET_SECONDS
        while not self._ended.is_set():
            try:
                now = time.monotonic()
                if now - asked >= ASK_SECONDS:
                    asked = now
                    info = self._client.stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=CALL_SECONDS)
                    self._board.inform(info)
                if self._news.is_set() or now - listed >= QUIET_SECONDS:
                    self._news.clear()
                    listed = now
                    self._weights()
            except grpc.RpcError as error:
                self._failed(error)
            except ValueError:
                # The channel was closed under us.
                return
            self._changed()
            # Not more often than this, however much happens.
            self._ended.wait(NEWS_SECONDS)
            self._news.wait(ASK_SECONDS - NEWS_SECONDS)

    def _weights(self) -> None:
        stub = self._client.stub
        request = pb.ListFrontendsRequest(omit_pools=True, page_size=PAGE)
        found: list[pb.FrontendInfo] = []
        while not self._ended.is_set():
            page = stub.ListFrontends(request, timeout=CALL_SECONDS)
            found.extend(page.frontends)
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        self._board.fill(found)
        infos = []
        for name in self._board.visible():
            try:
                infos.append(stub.GetFrontend(pb.GetFrontendRequest(name=name), timeout=CALL_SECONDS))
            except grpc.RpcError as error:
                # A reload took it away meanwhile.
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
        self._board.detail(infos)

    def _failed(self, error: grpc.RpcError) -> None:
        if not self._ended.is_set():
            self._board.fail(str(self._client.failure(error)))
            self._changed()


def run(context: Context) -> int:
    """Show the screen until a key ends it. Raises ``CommandError`` without a terminal."""
    if not context.out.isatty():
        raise CommandError("top needs a terminal: use show or watch events")
    board = Board(context.client.server)
    keys = KeyBindings()

    def height() -> int:
        return application.output.get_size().rows

    def draw() -> ANSI:
        return ANSI("\n".join(board.lines(context.style, height())))

    application: Application[None] = Application(
        layout=Layout(Window(FormattedTextControl(draw, show_cursor=False), wrap_lines=False, always_hide_cursor=True)),
        key_bindings=keys,
        full_screen=True,
        min_redraw_interval=0.1,
        # Ages go on while nothing happens.
        refresh_interval=1.0,
    )
    feeder = _Feeder(context.client, board, application.invalidate)

    @keys.add("q")
    @keys.add("c-c")
    @keys.add("c-d")
    @keys.add("escape", eager=True)
    def _(event: KeyPressEvent) -> None:
        event.app.exit()

    def moves(key: str, by: Callable[[], int]) -> None:
        @keys.add(key)
        def _(event: KeyPressEvent) -> None:
            board.scroll(by())
            feeder.wake()

    for key, by in _MOVES.items():
        moves(key, lambda by=by: by)  # type: ignore[misc]
    moves("pagedown", lambda: board.room)
    moves("pageup", lambda: -board.room)
    moves("home", lambda: -(10**9))
    moves("end", lambda: 10**9)

    feeder.start()
    try:
        application.run()
    finally:
        feeder.stop()
    return DONE
