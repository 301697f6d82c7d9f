"""The command tree: prefixes, ambiguity, and errors that name the word and what was expected."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest

from maglev.cli.errors import UsageError
from maglev.cli.grammar import ROOT, START, Kind, Node, Position, parse, usage, walk


@pytest.mark.parametrize(
    ("line", "action", "values"),
    [
        ("show version", "show-version", {}),
        ("show frontends", "show-frontends", {}),
        ("show frontend www", "show-frontend", {"frontend": "www"}),
        ("sh fr www", "show-frontend", {"frontend": "www"}),
        ("sh b state down match ^web", "show-backends", {"state": "down", "match": "^web"}),
        ("sh b match ^web state down", "show-backends", {"state": "down", "match": "^web"}),
        ("show healthchecks web", "show-healthcheck", {"health check": "web"}),
        ("show overrides", "show-overrides", {}),
        ("sh vpp i", "show-vpp-info", {}),
        ("sh vpp lb state", "show-vpp-lb-state", {}),
        ("sh vpp lb c www", "show-vpp-lb-counters", {"frontend": "www"}),
        ("set backend web0 pause", "set-backend", {"backend": "web0", "verb": "pause"}),
        (
            "set b web0 dis reason disk for 90s",
            "set-backend",
            {"backend": "web0", "verb": "disable", "reason": "disk", "for": "90s"},
        ),
        (
            "set frontend www pool primary backend web0 weight 0 flush",
            "set-weight",
            {"frontend": "www", "pool": "primary", "backend": "web0", "weight": "0", "flush": "flush"},
        ),
        (
            "set fr www po primary ba web0 we def",
            "set-weight",
            {"frontend": "www", "pool": "primary", "backend": "web0", "weight": "default"},
        ),
        (
            "set b web0 drain dry reason disk for 90s",
            "set-backend",
            {"backend": "web0", "verb": "drain", "dry-run": "dry-run", "reason": "disk", "for": "90s"},
        ),
        ("set b web0 enable dry-run", "set-backend", {"backend": "web0", "verb": "enable", "dry-run": "dry-run"}),
        (
            "set fr www po primary ba web0 we 0 flush dry-run",
            "set-weight",
            {
                "frontend": "www",
                "pool": "primary",
                "backend": "web0",
                "weight": "0",
                "flush": "flush",
                "dry-run": "dry-run",
            },
        ),
        ("brake release dry-run", "brake-release", {"dry-run": "dry-run"}),
        ("sync vpp lb state", "sync", {}),
        ("sync vpp lb state www dry-run", "sync", {"frontend": "www", "how": "dry-run"}),
        ("sync vpp lb state force", "sync", {"how": "force"}),
        ("sync vpp lb state prune", "sync", {"how": "prune"}),
        ("sh ba web0 fl", "show-backend-flows", {"backend": "web0"}),
        ("show backends web0 flows wait", "show-backend-flows", {"backend": "web0", "wait": "wait"}),
        ("sync vpp lb state prune dry-run", "sync", {"how": "prune", "dry": "dry-run"}),
        ("watch events", "watch", {}),
        (
            "wa e backend log level debug num 3",
            "watch",
            {"backend": "backend", "log": "log", "level": "debug", "num": "3"},
        ),
        ("watch events backend web0 num 1", "watch", {"backend": "backend", "backend-name": "web0", "num": "1"}),
        ("config check", "config-check", {}),
        ("conf reload force", "config-reload", {"force": "force"}),
        ("flow 192.0.2.9:4711 192.0.2.1:80", "flow", {"source": "192.0.2.9:4711", "vip": "192.0.2.1:80"}),
        (
            "f 2001:db8::9 [2001:db8::1]:53 u",
            "flow",
            {"source": "2001:db8::9", "vip": "[2001:db8::1]:53", "protocol": "udp"},
        ),
        ("compare a b:9090", "compare", {"first": "a", "servers": "b:9090"}),
        ("com a b c /run/d.sock", "compare", {"first": "a", "servers": "b\nc\n/run/d.sock"}),
        ("q", "quit", {}),
        ("exit", "quit", {}),
    ],
)
def test_commands(line: str, action: str, values: Mapping[str, str]) -> None:
    command = parse(line.split())

    assert (command.action, dict(command.values)) == (action, values)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("shwo version", "'shwo' is not expected here: did you mean show? expected show, set, sync, brake, watch"),
        ("show bogus", "'bogus' is not expected here: expected version, frontends"),
        ("show frontends www surplus", "'surplus' is not expected here: expected nothing more"),
        ("show v", "'v' is ambiguous: version, vpp"),
        ("set backend web0 d", "'d' is ambiguous: disable, drain"),
        ("set backend web0", "'set backend web0' is incomplete: expected pause, resume"),
        ("set backend", "expected NAME"),
        ("set backend web0 resume for 3s", "'for' is not expected here: expected reason, dry-run or nothing more"),
        ("set backend web0 drain for soon", "'soon' is no duration"),
        ("set frontend www pool primary backend web0 weight 101", "'101' is no weight: expected 0-100 or default"),
        ("set frontend www pool primary backend web0 weight -1", "'-1' is no weight"),
        ("set frontend www pool primary backend web0 weight ten", "'ten' is no weight"),
        ("watch events num 0", "'0' is no number"),
        ("watch events num", "incomplete: expected N"),
        ("watch events log log", "'log' is not expected here"),
        ("watch events log level loud", "'loud' is not expected here: expected debug, info"),
        ("sync vpp lb state dry-run force", "'force' is not expected here: expected nothing more"),
        ("show backends state", "expected up, down, unknown, paused or disabled"),
        ("flow 192.0.2.9", "'flow 192.0.2.9' is incomplete: expected VIP:PORT"),
        ("flow client 192.0.2.1:80", "'client' is no address: expected one as in 192.0.2.1"),
        ("flow 192.0.2.9:1 192.0.2.1:80 icmp", "'icmp' is not expected here: expected tcp, udp, any or nothing more"),
        ("compare a", "'compare a' is incomplete: expected SERVER..."),
        ("", "expected show"),
    ],
)
def test_errors_name_the_word_and_what_was_expected(line: str, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)) as caught:
        parse(line.split())

    assert caught.value.status == 2


def test_an_exact_word_beats_a_longer_one_and_a_name() -> None:
    tree = Node("", "", (Node("show", "", action="a"), Node("shower", "", action="b")))
    shorter = next(after for node, after in Position(tree, tree).following() if node.name == "show")

    assert shorter.base.action == "a"
    # "force" is the word, though a frontend could have that name.
    assert parse(["sync", "vpp", "lb", "state", "force"], lambda *_: True).values == {"how": "force"}


def test_a_live_name_beats_an_abbreviated_word() -> None:
    asked: list[tuple[Kind, str]] = []

    def exists(kind: Kind, name: str, values: Mapping[str, str]) -> bool:
        asked.append((kind, name))
        return name == "f"

    line = ["sync", "vpp", "lb", "state"]
    assert parse([*line, "f"], exists).values == {"frontend": "f"}
    assert parse([*line, "fo"], exists).values == {"how": "force"}
    assert parse([*line, "www"], exists).values == {"frontend": "www"}
    # Only where a word could be meant as well is anybody asked.
    assert asked == [(Kind.FRONTEND, "f"), (Kind.FRONTEND, "fo")]


def test_control_characters_in_a_word_are_escaped_in_its_error() -> None:
    with pytest.raises(UsageError) as caught:
        parse(["show", "\x1b[31mred"])

    assert "\x1b" not in str(caught.value)


def test_an_empty_word_is_refused() -> None:
    with pytest.raises(UsageError):
        parse(["show", "frontends", ""])
    with pytest.raises(UsageError):
        parse([""])


def test_every_command_of_the_tree_can_be_parsed_by_its_own_usage() -> None:
    samples = {"NAME": "x", "POOL": "p", "FRONTEND": "x", "0-100": "7"}
    samples |= {"SOURCE:PORT": "192.0.2.9:4711", "VIP:PORT": "192.0.2.1:80"}
    commands = list(usage())
    for syntax, text in commands:
        words = [samples.get(word, word) for word in syntax.partition(" [")[0].split()]
        assert parse(words).action, syntax
        assert text, syntax

    assert len(commands) > 30


def test_every_node_has_a_help_text_and_distinct_words() -> None:
    def look(node: Node) -> None:
        following = (*node.children, *node.options)
        names = [one.name for one in following if one.kind is None]
        assert len(names) == len(set(names)), node.name
        # At most one slot: two could not be told apart.
        assert sum(one.kind is not None for one in following) <= 1, node.name
        for one in following:
            assert one.help, one.name
            look(one)

    look(ROOT)


def test_walk_stops_in_the_middle() -> None:
    position = walk(["set", "frontend", "www", "pool"])

    assert position.values == {"frontend": "www"}
    assert [node.kind for node, _ in position.following()] == [Kind.POOL]
    assert not position.complete()
    assert not START.complete()


def test_a_reason_of_several_words_is_told_to_need_quotes() -> None:
    before = ["set", "backend", "web0", "drain", "reason"]
    with pytest.raises(UsageError, match=r"'disk' is not expected here: .*; several words need quotes"):
        parse([*before, "new", "disk"])
    assert parse([*before, "new disk"]).values["reason"] == "new disk"
