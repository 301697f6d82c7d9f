"""The tables of several nodes side by side: which VIPs differ, and on which server."""

from __future__ import annotations

from maglev.cli import render
from maglev.cli.comparison import comparison
from maglev.cli.text import Style
from maglev.pb import maglev_pb2 as pb


def vip(fingerprint: str, port: int = 80, name: str = "www") -> pb.FrontendInfo:
    return pb.FrontendInfo(
        name=name, address="192.0.2.80", protocol=pb.PROTOCOL_TCP, port=port, fingerprint=fingerprint
    )


def shown(info: pb.Comparison) -> list[str]:
    return list(render.comparison(Style(False), info))


def test_equal_tables_are_equal_whatever_the_frontends_are_called() -> None:
    info = comparison(["a", "b"], [[vip("aa"), vip("bb", 81)], [vip("bb", 81), vip("aa", name="web")]])
    assert (info.equal, info.vips, len(info.differences)) == (True, 2, 0)
    assert shown(info) == ["2 VIPs on 2 servers: all tables are equal"]


def test_the_server_that_is_not_as_most_are_differs() -> None:
    same = vip("x", 81)
    info = comparison(["a", "b", "c"], [[vip("aa"), same], [vip("bb"), same], [vip("bb"), same]])
    assert not info.equal
    (one,) = info.differences
    assert [(on.server, on.differs) for on in one.tables] == [("a", True), ("b", False), ("c", False)]
    assert shown(info) == [
        "VIP                SERVER  FRONTEND  FINGERPRINT",
        "192.0.2.80 tcp 80  a       www       aa           differs",
        "192.0.2.80 tcp 80  b       www       bb",
        "192.0.2.80 tcp 80  c       www       bb",
        "2 VIPs on 3 servers: 1 not equal",
    ]


def test_of_two_the_first_one_counts() -> None:
    info = comparison(["a", "b"], [[vip("aa")], [vip("bb")]])
    assert [on.differs for on in info.differences[0].tables] == [False, True]


def test_a_vip_that_a_server_lacks_or_does_not_know_differs() -> None:
    info = comparison(["a", "b"], [[vip("aa"), vip("", 81)], [vip("", 81)]])
    assert not info.equal
    assert [[on.differs for on in one.tables] for one in info.differences] == [[False, True], [True, True]]
    assert shown(info) == [
        "VIP                SERVER  FRONTEND  FINGERPRINT",
        "192.0.2.80 tcp 80  a       www       aa",
        "192.0.2.80 tcp 80  b       -         -            no such VIP",
        "192.0.2.80 tcp 81  a       www       -            not known: VPP is away, or has not shown it yet",
        "192.0.2.80 tcp 81  b       www       -            not known: VPP is away, or has not shown it yet",
        "2 VIPs on 2 servers: 2 not equal",
    ]


def test_servers_without_any_vip_are_equal() -> None:
    info = comparison(["a", "b"], [[], []])
    assert info.equal
    assert shown(info) == ["0 VIPs on 2 servers: all tables are equal"]
