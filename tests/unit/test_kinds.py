"""The registry of probe kinds: every kind is complete, and a new one is an entry."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from maglev._probe import Engine
from maglev.base.states import CheckType
from maglev.cli import render
from maglev.cli.text import Style
from maglev.config import docs
from maglev.config.diff import diff_configs
from maglev.config.load import LoadResult, load_text
from maglev.config.model import HealthCheck
from maglev.config.rows import pack, unpack
from maglev.kinds import wire
from maglev.kinds.kind import Kind, PortRule, Presence
from maglev.kinds.params import Block, Params, Site, block, param, specs
from maglev.kinds.registry import KINDS, counter_help, kind_of, port_help
from maglev.kinds.tls import TlsParams
from maglev.pb import maglev_pb2 as pb
from maglev.rpc import convert
from maglev.schema import plain
from maglev.schema.problems import Report
from maglev.schema.types import Choice, Integer, Text
from tests.helpers.tls import Certificate


class Tone(enum.Enum):
    """A parameter that is a word, as ``TcpMode`` is one."""

    POLITE = "polite"
    CURT = "curt"


TONES = Choice({tone.value: tone for tone in Tone})
EVERY = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def examples(kind: Kind[Any]) -> Params:
    """Parameters with the example of every key."""
    report = Report()
    read = kind.section.read({key.name: (key.example or "").strip('"') for key in kind.section.keys}, (), report)
    assert isinstance(read, dict)
    params: Params = kind.build(read, (), report)
    return params


async def there_and_back(result: LoadResult) -> LoadResult:
    """Through the lines that the loader's child sends."""

    async def lines() -> AsyncIterator[bytes]:
        for line in pack(result):
            yield line

    return await unpack(lines())


# ---------------------------------------------------------------------------------------------- every kind there is


def test_every_number_of_the_engine_has_an_entry() -> None:
    assert [kind.check_type for kind in KINDS.values()] == list(CheckType)
    for name, kind in KINDS.items():
        assert kind_of(kind.check_type) is kind
        assert kind.name == name


@EVERY
def test_blocks_have_a_presence_and_their_keys_collide_with_none(kind: Kind[Any]) -> None:
    blocks = {name: spec for name, spec in specs(kind.params).items() if isinstance(spec, Block)}
    assert kind.blocks.keys() == blocks.keys()
    assert len({key.attribute for key in kind.section.keys}) == len(kind.section.keys) == len(kind.section.by_name)


@EVERY
def test_the_message_of_a_kind_carries_all_of_its_parameters(kind: Kind[Any]) -> None:
    info = pb.HealthCheckInfo()
    assert kind.message in {field.name for field in info.DESCRIPTOR.oneofs_by_name["params"].fields}
    message = getattr(info, kind.message)
    assert set(examples(kind).to_api()) == set(message.DESCRIPTOR.fields_by_name)


@EVERY
@pytest.mark.parametrize("which", ["defaults", "examples"])
def test_parameters_come_back_from_the_api_and_from_the_loaders_child(kind: Kind[Any], which: str) -> None:
    params = kind.build({}, (), Report()) if which == "defaults" else examples(kind)
    message = getattr(pb.HealthCheckInfo(), kind.message)
    wire.fill(message, params)
    assert wire.read(message, kind.params) == params
    assert plain.unpack(kind.params, plain.pack(params)) == params


@EVERY
def test_parameters_are_written_as_they_are_read(kind: Kind[Any]) -> None:
    params = examples(kind)
    written = {key: text for key, text in kind.written(params).items() if text}
    read = kind.section.read(written, (), Report())
    assert isinstance(read, dict)
    assert kind.build(read, (), Report()) == params


def test_the_books_say_which_kinds_need_a_port() -> None:
    assert port_help() == "Port that is probed. Required for tcp, http and https; icmp has none."


def test_counters_of_probes_are_the_engines() -> None:
    assert counter_help().keys() == {name for name in Engine(capacity=16).stats() if name.startswith("sent_")}


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("{type: icmp}", ["type           icmp", "payload        56 bytes"]),
        ("{type: tcp, port: 22}", ["type           tcp", "mode           syn"]),
        (
            "{type: tcp, port: 22, params: {tls: true, server-name: www.example.org}}",
            ["mode           connect", "server name    www.example.org", "verified       yes"],
        ),
        (
            "{type: http, port: 80, params: {path: /healthz, response-code: '200-299,304', response-regexp: ^ok}}",
            [
                "request          GET /healthz",
                "host             (the backend's address)",
                "response code    200-299,304",
                "response regexp  ^ok",
            ],
        ),
        (
            "{type: https, port: 443, params: {host: www.example.org, insecure-skip-verify: true}}",
            ["type           https", "host           www.example.org", "verified       no"],
        ),
    ],
)
def test_show_healthcheck_prints_the_parameters(text: str, lines: list[str]) -> None:
    shown = list(render.healthcheck(Style(False), convert.healthcheck(loaded(text), 0)))
    for line in lines:
        assert f"  {line}" in shown


def test_show_healthcheck_prints_a_kind_that_only_a_newer_daemon_has() -> None:
    info = pb.HealthCheckInfo(name="web", type=4711, port=53)  # type: ignore[arg-type]
    assert list(render.healthcheck(Style(False), info))[1:3] == ["  type           4711", "  port           53"]


def test_show_healthcheck_prints_a_check_with_a_word_that_only_a_newer_daemon_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @dataclass(frozen=True, slots=True)
    class Manners(Params):
        method: Tone = param(TONES, "Manners.", default=Tone.CURT, example="curt")

    monkeypatch.setitem(KINDS, "http", replace(KINDS["http"], params=Manners, blocks={}))
    for method, shown in (("polite", True), ("shy", False)):
        info = pb.HealthCheckInfo(name="web", type=pb.CHECK_TYPE_HTTP, port=53, http=pb.HttpCheck(method=method))
        lines = list(render.healthcheck(Style(False), info))
        assert "  port           53" in lines
        assert ("  method         polite" in lines) is shown, lines


def loaded(text: str) -> HealthCheck:
    """The one check of a configuration."""
    result = load_text(f"maglev: {{healthchecks: {{web: {text}}}}}")
    assert result.config is not None, result.problems
    return result.config.healthchecks["web"]


# ------------------------------------------------------------------------------------------------- one that is made up


def number(name: str, value: int) -> CheckType:
    """The member that a line in ``CheckType`` would make."""
    made = int.__new__(CheckType, value)
    made._name_, made._value_ = name, value
    return made


@dataclass(frozen=True, slots=True)
class BannerParams(Params):
    """Parameters of a kind that there is not; some have a field in the API's ``HttpCheck`` by chance."""

    path: str = param(Text(20), "Text that the server greets with.", example="220 hello")
    lines: int = param(
        Integer(1, 9), "Lines that are read.", default=2, example="3", words=lambda lines: f"{lines} lines"
    )
    tone: Tone = param(TONES, "Manners.", default=Tone.POLITE, example="curt")
    host: str | None = param(Text(20), "Name to greet with.", default=None, example="probe", label="greets as")
    tls: TlsParams | None = block(TlsParams, switch="Do a TLS handshake first.")

    def check(self, site: Site) -> None:
        """A rule between two values."""
        if self.lines > len(self.path):
            site.wrong("lines", "more lines than characters")


BANNER = Kind(
    check_type=number("BANNER", 17),
    params=BannerParams,
    message="http",
    port=PortRule.REQUIRED,
    default_port=25,
    blocks={"tls": Presence.SWITCHED},
    notes="A banner is the first line of many protocols.",
    counters={"sent_banner": "Connections begun for banners."},
)


@pytest.fixture
def banner(monkeypatch: pytest.MonkeyPatch) -> Kind[BannerParams]:
    """The made-up kind, registered by one entry."""
    monkeypatch.setitem(KINDS, BANNER.name, BANNER)
    return BANNER


FULL = "{type: banner, params: {path: '220', lines: 3, tone: curt, host: me, tls: true, ca-file: /dev/null}}"


def test_one_entry_makes_the_file_know_a_kind(banner: Kind[BannerParams]) -> None:
    check = loaded("{type: banner, params: {path: '220', tone: curt}}")
    assert check == HealthCheck("web", banner.check_type, BannerParams("220", 2, Tone.CURT, None, None), 25)
    assert loaded("{type: banner, port: 26, params: {path: x1, tls: true, server-name: a}}") == replace(
        check, params=BannerParams("x1", tls=TlsParams("a")), port=26
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "{type: banner}",
            "web.params: the parameters of a banner check needs the key path [parse error]",
        ),
        (
            "{type: banner, params: {path: x, tonne: curt}}",
            "web.params.tonne: unknown key in the parameters of a banner check; did you mean tone? [parse error]",
        ),
        (
            "{type: banner, params: {}}",
            "web.params: the parameters of a banner check needs the key path [parse error]",
        ),
        (
            "{type: banner, params: {path: x, tone: rude}}",
            "web.params.tone: expected polite or curt, got 'rude' [parse error]",
        ),
        (
            "{type: banner, params: {path: xyz, lines: 10}}",
            "web.params.lines: 10 is not a whole number from 1 to 9 [semantic error]",
        ),
        (
            "{type: banner, params: {path: x, lines: 2}}",
            "web.params.lines: more lines than characters [semantic error]",
        ),
        (
            "{type: banner, params: {path: xyz, ca-file: /x}}",
            "web.params.ca-file: ca-file needs tls: true [semantic error]",
        ),
        (
            "{type: banner, params: {path: xyz, tls: true, ca-file: /dev/null}}",
            "web.params.ca-file: '/dev/null' cannot be used: not a regular file [semantic error]",
        ),
    ],
)
def test_problems_of_a_new_kind_have_their_place(banner: Kind[BannerParams], text: str, problem: str) -> None:
    result = load_text(f"maglev:\n  healthchecks:\n    web: {text}")
    told = [found.render("f") for found in result.problems]
    assert any(line.startswith("f:3:") and line.endswith(problem) for line in told), told


def test_one_entry_is_in_the_books_and_the_json_schema(banner: Kind[BannerParams]) -> None:
    text = docs.guide("<!-- kinds -->\nold\n<!-- end kinds -->\n")
    assert "### Parameters of `type: banner`" in text
    assert "| `lines` | a whole number from 1 to 9 | `2` | `3` | Lines that are read. |" in text
    assert "| `tls` | `true` or `false` | `false` | `true` | Do a TLS handshake first. |" in text
    assert "A banner is the first line of many protocols." in text
    assert port_help().endswith("Default for banner: 25.")
    assert counter_help()["sent_banner"] == "Connections begun for banners."

    validator = Draft202012Validator(docs.json_schema())

    def errors(params: dict[str, object]) -> list[str]:
        tree = {"maglev": {"healthchecks": {"web": {"type": "banner", "params": params}}}}
        return [error.json_path for error in validator.iter_errors(tree)]

    assert errors({"path": "x", "lines": 3, "tone": "curt", "tls": True}) == []
    assert errors({"path": "x", "tonne": "curt"}) == ["$.maglev.healthchecks.web.params"]
    assert errors({"path": "x", "tone": "rude"}) == ["$.maglev.healthchecks.web.params.tone"]
    assert [
        error.json_path for error in validator.iter_errors({"maglev": {"healthchecks": {"web": {"type": "banner"}}}})
    ]


async def test_one_entry_travels_from_the_loaders_child(banner: Kind[BannerParams], tmp_path: Path) -> None:
    Certificate(["authority"], ca=True).write(tmp_path / "ca.pem")
    text = FULL.replace("/dev/null", str(tmp_path / "ca.pem"))
    result = load_text(f"maglev: {{healthchecks: {{web: {text}}}}}")
    assert result.config is not None, result.problems
    assert await there_and_back(result) == result


def test_a_reload_tells_what_changes_in_a_new_kind(banner: Kind[BannerParams]) -> None:
    texts = ("{type: banner, params: {path: '220'}}", "{type: banner, params: {path: '220', tone: curt, tls: true}}")
    old, new = (load_text(f"maglev: {{healthchecks: {{web: {text}}}}}").config for text in texts)
    assert old is not None
    assert new is not None
    assert [str(change) for change in diff_configs(old, new)] == [
        "maglev.healthchecks.web.params.tone: polite -> curt",
        "maglev.healthchecks.web.params.tls: false -> true",
        "maglev.healthchecks.web.params.insecure-skip-verify: added false",
    ]


def test_one_entry_is_carried_by_the_api_and_shown(banner: Kind[BannerParams], monkeypatch: pytest.MonkeyPatch) -> None:
    # For the value that the enum CheckType of the API would have. The message is borrowed, and has no field for
    # ``lines`` and ``tone``: they arrive as their defaults.
    monkeypatch.setitem(convert.CHECK_TYPES, banner.check_type, 17)
    monkeypatch.setattr(render, "word", lambda _, number: {17: "banner"}[number])
    params = BannerParams("220", 3, Tone.CURT, "me", TlsParams("mx", ca_file="/ca"))

    info = convert.healthcheck(HealthCheck("mail", banner.check_type, params, 25), 1)

    assert info.http == pb.HttpCheck(path="220", host="me", tls=pb.TlsCheck(server_name="mx", ca_file="/ca"))
    assert wire.read(info.http, BannerParams) == replace(params, lines=2, tone=Tone.POLITE)
    assert list(render.healthcheck(Style(False), info))[-7:] == [
        "  path           220",
        "  lines          2 lines",
        "  tone           polite",
        "  greets as      me",
        "  server name    mx",
        "  verified       yes",
        "  ca file        /ca",
    ]


def test_a_kind_without_a_number_in_the_api_is_unspecified_there(banner: Kind[BannerParams]) -> None:
    check = HealthCheck("mail", banner.check_type, BannerParams("220"), 25)
    info = convert.healthcheck(check, 1)
    assert info.type == pb.CHECK_TYPE_UNSPECIFIED
    assert info.port == 25


def test_the_engine_refuses_a_kind_that_it_does_not_do(banner: Kind[BannerParams]) -> None:
    with pytest.raises(ValueError, match="unknown type"):
        Engine(capacity=16).add_check(HealthCheck("mail", banner.check_type, BannerParams("220"), 25))


def test_parameters_describe_all_of_their_fields() -> None:
    for kind in (*KINDS.values(), BANNER):
        assert list(specs(kind.params)) == [field.name for field in fields(kind.params)]
