"""The commands of ``maglevc`` as one tree: parsing, completion and ``?`` all read it, so that they cannot disagree.

A node is a word or a slot for a value. A node is followed by its children, of which one follows, and its options, which
may follow in any order, each once. The words beside a word decide how far it may be abbreviated.
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from maglev.cli.errors import UsageError
from maglev.cli.text import escape, parse_duration, parse_endpoint


class Kind(enum.Enum):
    """The kind of value that a slot takes."""

    FRONTEND = "frontend"
    BACKEND = "backend"
    HEALTHCHECK = "health check"
    POOL = "pool"
    MEMBER = "backend in the pool"
    WEIGHT = "weight"
    NUMBER = "number"
    DURATION = "duration"
    ENDPOINT = "address and port"
    SERVER = "server"
    TEXT = "text"


# Characters of a wrong word that are compared with those that were expected.
LONGEST = 63

# Names of live objects, which can be completed and looked up.
LIVE = frozenset((Kind.FRONTEND, Kind.BACKEND, Kind.HEALTHCHECK, Kind.POOL, Kind.MEMBER))


@dataclass(frozen=True, eq=False)
class Node:
    """A word (``kind`` None) or a slot, and its successors.

    ``name``: the word as it is written, or the slot's name in messages ("NAME"). ``key``: under which the word or the
    value is found in ``Command.values``. ``action``: the command that is complete here. ``ends``: within an option,
    the option is complete here. ``repeats``: the slot may be filled again; its values are one, a line each.
    """

    name: str
    help: str
    children: tuple[Node, ...] = ()
    options: tuple[Node, ...] = ()
    kind: Kind | None = None
    key: str = ""
    action: str = ""
    ends: bool = False
    repeats: bool = False

    def check(self, text: str) -> None:
        """Whether a value fits the slot. Raises ``UsageError``."""
        if self.kind is Kind.WEIGHT:
            if not (text.isascii() and text.isdecimal() and len(text) <= 3 and int(text) <= 100):
                raise UsageError(f"{escape(text)!r} is no weight: expected 0-100 or default")
        elif self.kind is Kind.NUMBER:
            if not (text.isascii() and text.isdecimal() and len(text) <= 9 and int(text) > 0):
                raise UsageError(f"{escape(text)!r} is no number: expected 1 or more")
        elif self.kind is Kind.DURATION:
            parse_duration(text)
        elif self.kind is Kind.ENDPOINT:
            parse_endpoint(text)
        elif not text:
            raise UsageError(f"an empty word is no {self.name}")


@dataclass(frozen=True)
class Command:
    """A complete command: what to do, and the words and values that were given, by key."""

    action: str
    values: Mapping[str, str]


@dataclass(frozen=True)
class Position:
    """A place in the tree: the last node, the node whose options are open, and which of them were used."""

    node: Node
    base: Node
    used: frozenset[int] = frozenset()
    values: Mapping[str, str] = field(default_factory=dict)

    def following(self) -> Iterator[tuple[Node, Position]]:
        """The possible next nodes, each with the place that it leads to."""
        inside = self.node is not self.base
        for child in self.node.children:
            # Within an option its base stays open; elsewhere each node opens its own options.
            yield child, Position(child, self.base, self.used) if inside else Position(child, child)
        if self.node.repeats:
            yield self.node, Position(self.node, self.base, self.used)
        if not inside or self.node.ends:
            for at, option in enumerate(self.base.options):
                if at not in self.used:
                    yield option, Position(option, self.base, self.used | {at})

    def complete(self) -> bool:
        """Whether the command may end here."""
        return bool(self.base.action) and (self.node is self.base or self.node.ends)

    def taken(self, node: Node, text: str, before: Mapping[str, str]) -> Position:
        """This place, reached from ``before`` by ``text`` for ``node``."""
        value = f"{before[node.key]}\n{text}" if node.repeats and node.key in before else text
        values = {**before, node.key: value} if node.key else before
        return Position(self.node, self.base, self.used, values)


# Whether there is a live object of that kind and name; the values given so far say in which frontend or pool.
Exists = Callable[[Kind, str, Mapping[str, str]], bool]


def never(kind: Kind, name: str, values: Mapping[str, str]) -> bool:
    """No live object is known: what can be an abbreviation is one."""
    return False


def step(position: Position, text: str, exists: Exists = never) -> Position:
    """One word further. Raises ``UsageError``, which names the word and the expected ones.

    An exact word wins. Where both a name and an abbreviated word could be meant, it is the name if there is such an
    object (``exists``). Otherwise any unique prefix of a word will do.
    """
    words: list[tuple[Node, Position]] = []
    slots: list[tuple[Node, Position]] = []
    for node, after in position.following():
        if node.kind is not None:
            slots.append((node, after))
        elif node.name == text:
            return after.taken(node, node.name, position.values)
        elif text and node.name.startswith(text):
            words.append((node, after))
    for node, after in slots:
        if not words or (node.kind in LIVE and exists(node.kind, text, position.values)):
            node.check(text)
            return after.taken(node, text, position.values)
    if len(words) == 1:
        node, after = words[0]
        return after.taken(node, node.name, position.values)
    if words:
        raise UsageError(f"{escape(text)!r} is ambiguous: {', '.join(node.name for node, _ in words)}")
    hint = "; several words need quotes" if position.node.kind is Kind.TEXT else ""
    near = difflib.get_close_matches(
        text[:LONGEST], [node.name for node, _ in position.following() if not node.kind], 1
    )
    meant = f" did you mean {near[0]}?" if near else ""
    raise UsageError(f"{escape(text)!r} is not expected here:{meant} {expected(position)}{hint}")


def expected(position: Position) -> str:
    """``expected version, frontends or NAME``, for messages."""
    names = [node.name for node, _ in position.following()]
    if position.complete():
        names.append("nothing more")
    return f"expected {names[0]}" if len(names) == 1 else f"expected {', '.join(names[:-1])} or {names[-1]}"


def walk(words: Sequence[str], exists: Exists = never) -> Position:
    """The place that some words lead to, whether or not a command is complete there. Raises ``UsageError``."""
    position = START
    for word in words:
        position = step(position, word, exists)
    return position


def parse(words: Sequence[str], exists: Exists = never) -> Command:
    """The command that some words make. Raises ``UsageError``."""
    position = walk(words, exists)
    if not position.complete():
        said = " ".join(escape(word) for word in words)
        raise UsageError(f"{said!r} is incomplete: {expected(position)}" if said else expected(position))
    return Command(position.base.action, position.values)


def usage(node: Node | None = None, before: str = "") -> Iterator[tuple[str, str]]:
    """Every command of the tree as a line of syntax, and its help."""
    node = node if node is not None else ROOT
    said = f"{before} {node.name}".strip()
    if node.action:
        yield said + "".join(f" [{_option(option)}]" for option in node.options), node.help
    for child in node.children:
        yield from usage(child, said)


def _option(node: Node) -> str:
    if not node.children:
        return node.name
    inner = _option(node.children[0]) if len(node.children) == 1 else "|".join(one.name for one in node.children)
    return f"{node.name} [{inner}]" if node.ends else f"{node.name} {inner}"


# ------------------------------------------------------------------------------------------------------- the tree


def _choice(key: str, words: Sequence[tuple[str, str]]) -> tuple[Node, ...]:
    return tuple(Node(word, text, key=key, ends=True) for word, text in words)


def _value(name: str, text: str, kind: Kind, key: str) -> tuple[Node, ...]:
    return (Node(name, text, kind=kind, key=key, ends=True),)


_REASON = Node("reason", "why, in your words", _value("TEXT", "the reason", Kind.TEXT, "reason"))
_FOR = Node(
    "for", "take it back by itself after some time", _value("DURATION", "as in 90s, 1h30m", Kind.DURATION, "for")
)
_DRY = Node("dry-run", "change nothing, say what would change", key="dry-run", ends=True)
_MATCH = Node("match", "only names that match", _value("REGEX", "RE2, searched in the name", Kind.TEXT, "match"))
_CHECK = Node(
    "healthcheck", "only with that check", _value("NAME", "which check", Kind.HEALTHCHECK, Kind.HEALTHCHECK.value)
)
_DRAINED = Node("drained", "only the drained", key="drained", ends=True)
_FLUSH = Node("flush", "evict its flows where its weight falls to 0", key="flush", ends=True)
_BACKEND_STATE = Node(
    "state",
    "only in that state",
    _choice(
        "state",
        (
            ("up", "passes its checks"),
            ("down", "fails its checks"),
            ("unknown", "not yet decided"),
            ("paused", "not probed, by an operator"),
            ("disabled", "taken out, by an operator or the file"),
        ),
    ),
)
_FRONTEND_STATE = Node(
    "state",
    "only in that state",
    _choice(
        "state",
        (
            ("up", "some backend has a weight"),
            ("down", "no backend has a weight"),
            ("unknown", "all backends are unknown"),
            ("panic", "so few are healthy that health is believed no longer"),
        ),
    ),
)


def _name(kind: Kind, text: str, *, action: str = "", children: tuple[Node, ...] = ()) -> Node:
    return Node("NAME", text, children, kind=kind, key=kind.value, action=action)


_FLOWS = Node(
    "flows",
    "its flows in VPP: is a drained server empty? Stops VPP for a moment",
    (Node("wait", "read every 10 s until it has none", key="wait", action="show-backend-flows"),),
    action="show-backend-flows",
)
_SHOW = Node(
    "show",
    "show what the daemon knows",
    (
        Node("version", "who answers: versions, uptime, what is configured", action="show-version"),
        Node(
            "frontends",
            "all frontends",
            (_name(Kind.FRONTEND, "one frontend with the weights of its members", action="show-frontend"),),
            (_FRONTEND_STATE, _MATCH),
            action="show-frontends",
        ),
        Node(
            "backends",
            "all backends",
            (
                _name(
                    Kind.BACKEND,
                    "one backend with its last result and its history",
                    action="show-backend",
                    children=(_FLOWS,),
                ),
            ),
            (_BACKEND_STATE, _DRAINED, _CHECK, _MATCH),
            action="show-backends",
        ),
        Node(
            "healthchecks",
            "all health checks",
            (_name(Kind.HEALTHCHECK, "one health check with its parameters", action="show-healthcheck"),),
            (_MATCH,),
            action="show-healthchecks",
        ),
        Node("overrides", "what operators have set and not taken back", action="show-overrides"),
        Node(
            "events",
            "what happened lately, and why: events of one cause below it",
            options=(
                Node("all", "each event, however many have one cause", key="all", ends=True),
                Node("last", "only of the last time", _value("DURATION", "as in 10m, 1h30m", Kind.DURATION, "last")),
                Node("num", "only the last ones", _value("N", "how many", Kind.NUMBER, "num")),
                Node("backend", "of one backend", _value("NAME", "which backend", Kind.BACKEND, "backend-name")),
                Node(
                    "frontend",
                    "of one frontend and its backends",
                    _value("NAME", "which frontend", Kind.FRONTEND, "frontend-name"),
                ),
            ),
            action="show-events",
        ),
        Node(
            "vpp",
            "the dataplane",
            (
                Node("info", "the VPP that the daemon is connected to", action="show-vpp-info"),
                Node(
                    "lb",
                    "VPP's load balancer",
                    (
                        Node(
                            "state",
                            "what VPP holds beside what is wanted",
                            (_name(Kind.FRONTEND, "of one frontend", action="show-vpp-lb-state"),),
                            action="show-vpp-lb-state",
                        ),
                        Node(
                            "counters",
                            "packets by VIP",
                            (_name(Kind.FRONTEND, "of one frontend", action="show-vpp-lb-counters"),),
                            action="show-vpp-lb-counters",
                        ),
                    ),
                ),
            ),
        ),
    ),
)

_VERBS = tuple(
    Node(verb, text, options=options, key="verb", action="set-backend")
    for verb, text, options in (
        ("pause", "stop probing; weight 0, flows stay", (_REASON, _FOR, _DRY)),
        ("resume", "probe again", (_REASON, _DRY)),
        ("enable", "take it back into service", (_REASON, _DRY)),
        ("disable", "take it out at once; its flows are flushed", (_REASON, _FOR, _DRY)),
        ("drain", "no new flows; flows and probing stay", (_REASON, _FOR, _DRY)),
        ("undrain", "new flows again", (_REASON, _DRY)),
    )
)

_WEIGHT = Node(
    "weight",
    "its weight in this pool",
    (
        Node(
            "default", "back to the file's weight", options=(_FLUSH, _REASON, _DRY), key="weight", action="set-weight"
        ),
        Node(
            "0-100",
            "its weight from now on",
            options=(_FLUSH, _REASON, _FOR, _DRY),
            kind=Kind.WEIGHT,
            key="weight",
            action="set-weight",
        ),
    ),
)
_MEMBER = Node("NAME", "which backend", (_WEIGHT,), kind=Kind.MEMBER, key="backend")
_POOL = Node("POOL", "which pool", (Node("backend", "one backend in it", (_MEMBER,)),), kind=Kind.POOL, key="pool")
_SET = Node(
    "set",
    "change something at run time",
    (
        Node(
            "backend",
            "one backend, wherever it is used",
            (_name(Kind.BACKEND, "which backend", children=_VERBS),),
        ),
        Node(
            "frontend",
            "one frontend",
            (_name(Kind.FRONTEND, "which frontend", children=(Node("pool", "one of its pools", (_POOL,)),)),),
        ),
    ),
)

_SYNC_HOW = (
    Node("dry-run", "only say what would be done", key="how", action="sync"),
    Node("force", "also changes that lose flows, as other sticky buckets", key="how", action="sync"),
)
_SYNC_PRUNE = Node(
    "prune",
    "also delete the VIPs that wait for an operator",
    (Node("dry-run", "only say what would be done", key="dry", action="sync"),),
    key="how",
    action="sync",
)
_SYNC_ONE = Node("FRONTEND", "one frontend only", _SYNC_HOW, kind=Kind.FRONTEND, key="frontend", action="sync")
_SYNC_STATE = Node("state", "all of VPP's load balancer", (_SYNC_ONE, *_SYNC_HOW, _SYNC_PRUNE), action="sync")
_SYNC = Node(
    "sync",
    "bring VPP to the desired state",
    (Node("vpp", "the dataplane", (Node("lb", "VPP's load balancer", (_SYNC_STATE,)),)),),
)

_BRAKE = Node(
    "brake",
    "failures that are held as very many came at once",
    (
        Node(
            "release",
            "end the brake: backends that are held and still fail go down",
            options=(_DRY,),
            action="brake-release",
        ),
    ),
)

_LEVEL = Node(
    "level",
    "from this level on",
    _choice(
        "level",
        (
            ("debug", "everything, and the single probes of a backend that is named"),
            ("info", "transitions and changes"),
            ("warning", "what deserves a look"),
            ("error", "what failed"),
        ),
    ),
)
_WATCH = Node(
    "watch",
    "see what happens",
    (
        Node(
            "events",
            "as they happen, until a key is pressed; in a pipe one JSON object a line",
            options=(
                Node("num", "end after some events", _value("N", "how many", Kind.NUMBER, "num")),
                Node("log", "log records", (_LEVEL,), key="log", ends=True),
                Node(
                    "backend",
                    "events of backends",
                    _value("NAME", "of one backend only", Kind.BACKEND, "backend-name"),
                    key="backend",
                    ends=True,
                ),
                Node(
                    "frontend",
                    "events of frontends",
                    _value("NAME", "of one frontend only", Kind.FRONTEND, "frontend-name"),
                    key="frontend",
                    ends=True,
                ),
            ),
            action="watch",
        ),
    ),
)

_CONFIG = Node(
    "config",
    "the daemon's configuration file",
    (
        Node("check", "what is wrong with the file", action="config-check"),
        Node("diff", "what a reload would change", action="config-diff"),
        Node(
            "reload",
            "put the file into effect",
            (Node("force", "even if that deletes most VIPs", key="force", action="config-reload"),),
            action="config-reload",
        ),
    ),
)

_WHY_HELP = "why it is as it is now, and what led there"
_WHY = Node(
    "why",
    "why a backend or a frontend is as it is",
    (
        Node("backend", "one backend", (_name(Kind.BACKEND, _WHY_HELP, action="why"),)),
        Node("frontend", "one frontend", (_name(Kind.FRONTEND, _WHY_HELP, action="why"),)),
    ),
)

_PROTOCOLS = tuple(
    Node(word, text, key="protocol", action="flow")
    for word, text in (
        ("tcp", "a flow of TCP"),
        ("udp", "a flow of UDP"),
        ("any", "a flow of another protocol: without ports, to a VIP for any protocol"),
    )
)
_VIP = Node(
    "VIP:PORT",
    "the server of a flow to this VIP; [address]:port for IPv6",
    _PROTOCOLS,
    kind=Kind.ENDPOINT,
    key="vip",
    action="flow",
)
_FLOW = Node(
    "flow",
    "which server VPP chooses for a new flow, and chose before the last change",
    (
        Node(
            "SOURCE:PORT",
            "the client; without :PORT where the VIP chooses by address alone",
            (_VIP,),
            kind=Kind.ENDPOINT,
            key="source",
        ),
    ),
)

_COMPARE = Node(
    "compare",
    "do these daemons' VPPs have the same tables? Status 1: some differ",
    (
        Node(
            "SERVER",
            "a daemon, as for --server",
            (
                Node(
                    "SERVER...",
                    "compare its tables with those of the others",
                    kind=Kind.SERVER,
                    key="servers",
                    action="compare",
                    repeats=True,
                ),
            ),
            kind=Kind.SERVER,
            key="first",
        ),
    ),
)

ROOT = Node(
    "",
    "",
    (
        _SHOW,
        _SET,
        _SYNC,
        _BRAKE,
        _WATCH,
        _WHY,
        _FLOW,
        _COMPARE,
        Node("top", "everything on one screen, as it happens", action="top"),
        _CONFIG,
        Node("help", "all commands", action="help"),
        Node("quit", "leave the shell", action="quit"),
        Node("exit", "leave the shell", action="quit"),
    ),
)

START = Position(ROOT, ROOT)
