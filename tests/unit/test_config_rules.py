"""Every rule of the configuration, from tests/data/config/rules.yaml: a text, and the problems it has, in full."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from maglev.config.load import LoadResult, Problem, load_text

RULES = Path(__file__).parent.parent / "data" / "config" / "rules.yaml"
CASES: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())


# A certificate of no one, for 100 years.
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBhDCCASmgAwIBAgIUMpXa9YuGZUwVMsht3xEC7E5H8I0wCgYIKoZIzj0EAwIw
FjEUMBIGA1UEAwwLbWFnbGV2IHRlc3QwIBcNMjYxMTIyMTMwNTI5WhgPMjEyNjEw
MjkxMzA1MjlaMBYxFDASBgNVBAMMC21hZ2xldiB0ZXN0MFkwEwYHKoZIzj0CAQYI
KoZIzj0DAQcDQgAExrSFMrzuKtoVzuNkXWmsCqE5Bd03WCGpAjONG5clCM6R3Kzi
NXDBDsvaT9os7LPun6iVIV9WncZRCWGtC86Wf6NTMFEwHQYDVR0OBBYEFDySnRp7
ewrQG0Rpk5teJcy9a1XEMB8GA1UdIwQYMBaAFDySnRp7ewrQG0Rpk5teJcy9a1XE
MA8GA1UdEwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDSQAwRgIhAOlvpshPuQFcaiGV
XhKwvtMuamqcACLuAODIQwO99wS3AiEA3LMAI6zGsPEjWEZ2/gqdtAfZn88WG3S7
EYIMCcWWUnE=
-----END CERTIFICATE-----
"""


def fragment(result: LoadResult) -> tuple[Problem, ...]:
    """The problems of a text that is a part of a file: all but that it has no frontends."""
    return tuple(problem for problem in result.problems if problem.path != "maglev.frontends")


def shown(problems: tuple[Problem, ...]) -> list[str]:
    return [f"{problem.line}:{problem.column}: {problem}" if problem.line else str(problem) for problem in problems]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["name"]).replace(" ", "-"))
def test_rule(case: dict[str, Any]) -> None:
    result = load_text(case["text"], json=case.get("json", False))
    assert {
        "parse": shown(result.parse_errors),
        "semantic": shown(result.semantic_errors),
        "warning": [
            line
            for line in shown(result.warnings)
            if "there are no frontends" not in line or "there are no frontends" in str(case.get("warning"))
        ],
    } == {
        "parse": case.get("parse", []),
        "semantic": case.get("semantic", []),
        "warning": case.get("warning", []),
    }
    assert (result.config is None) == bool(result.parse_errors or result.semantic_errors)


def test_every_case_has_a_problem_and_a_name_of_its_own() -> None:
    assert all({"parse", "semantic", "warning"} & case.keys() for case in CASES)
    assert len({case["name"] for case in CASES}) == len(CASES)


def load_frontend(line: str) -> LoadResult:
    return load_text(
        f"""
        maglev:
          vpp: {{lb: {{ipv4-src-address: 192.0.2.1}}}}
          backends: {{a: {{address: 192.0.2.1}}}}
          frontends:
            f: {{address: 192.0.2.80, {line} pools: [{{name: p, backends: {{a: }}}}]}}
        """
    )


@pytest.mark.parametrize("length", [1 << power for power in range(1, 17)])
def test_every_power_of_two_up_to_65536_is_a_table_length(length: int) -> None:
    config = load_frontend(f"new-flows-table-length: {length},").config
    assert config is not None
    assert config.frontends["f"].new_flows_table_length == length


@pytest.mark.parametrize("line", ["port: 1, protocol: tcp,", "port: 65535, protocol: udp,", "weight-unit: 100,", ""])
def test_bounds_are_allowed(line: str) -> None:
    assert load_frontend(line).config is not None


@pytest.mark.parametrize(
    "line",
    [
        "type: icmp, interval: 10ms, params: {size: 16}",
        "type: icmp, interval: 1h, params: {size: 1452}",
        "type: tcp, port: 65535, rise: 100, fall: 100, timeout: 1ms",
        'type: http, port: 1, params: {response-code: "100-599"}',
        "type: http, port: 1, params: {response-code: 204}",
        "type: http, port: 1, params: {method: HEAD}",
        'type: http, port: 1, params: {host: "[2001:db8::1]:8080", path: "/a?b=%20"}',
        "type: tcp, port: 1, params: {tls: true, mode: connect}",
        "type: https, port: 1",
    ],
)
def test_allowed_checks(line: str) -> None:
    result = load_text(f"maglev: {{healthchecks: {{a: {{{line}}}}}}}")
    assert fragment(result) == ()


def test_readable_ca_file_is_accepted(tmp_path: Path) -> None:
    text = "maglev: {{healthchecks: {{a: {{type: https, port: 443, params: {{ca-file: {}}}}}}}}}"
    broken = tmp_path / "ca.pem"
    broken.write_text("no certificate")
    result = load_text(text.format(broken))
    assert "no certificates in PEM form" in result.semantic_errors[0].message
    good = tmp_path / "good.pem"
    good.write_text(CERTIFICATE)
    assert fragment(load_text(text.format(good))) == ()


def test_problems_render_as_compilers_write_them() -> None:
    result = load_text("maglev:\n  vpp:\n    lb: {prun: all}\n")
    assert [problem.render("maglev.yaml") for problem in result.problems] == [
        "maglev.yaml:3:10: maglev.vpp.lb.prun: unknown key in the section lb; did you mean prune? [parse error]"
    ]
    result = load_text('{"maglev": {"a": 1}}', json=True)
    assert [problem.render("maglev.json") for problem in result.problems] == [
        "maglev.json: maglev.a: unknown key in the section maglev [parse error]"
    ]


def test_semantic_errors_wait_until_the_file_can_be_parsed() -> None:
    result = load_text("maglev: {backends: {a: {address: 192.0.2.1, healthcheck: none, colour: red}}}")
    assert len(result.parse_errors) == 1
    assert result.semantic_errors == ()


def test_very_many_problems_are_counted_but_not_all_listed() -> None:
    backends = ", ".join(f"b{index}: {{address: host{index}}}" for index in range(1500))
    result = load_text(f"maglev: {{backends: {{{backends}}}}}")
    assert len(result.parse_errors) == 1001
    assert result.parse_errors[-1].message == "and 500 more of this kind"


def test_aliased_value_is_located_where_it_stands() -> None:
    result = load_text("maglev:\n  healthchecks:\n    a: &x {type: icmp, colour: red}\n    b: *x\n")
    assert [(problem.path, problem.line) for problem in result.parse_errors] == [
        ("maglev.healthchecks.a.colour", 3),
        ("maglev.healthchecks.b.colour", 3),
    ]


def test_merged_value_is_located_where_it_stands() -> None:
    result = load_text(
        "maglev:\n  healthchecks:\n    a: &x {type: icmp, rise: 0}\n    b: {<<: *x, fall: 0}\n    c: {<<: [*x]}\n"
    )
    assert [(problem.path, problem.line) for problem in result.semantic_errors] == [
        ("maglev.healthchecks.a.rise", 3),
        ("maglev.healthchecks.b.rise", 3),
        ("maglev.healthchecks.c.rise", 3),
        ("maglev.healthchecks.b.fall", 4),
    ]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("maglev:\n  backends:\n    a: {address: 192.0.2.1}\n", "1:1"),
        ("maglev:\n", "1:1"),
        ("maglev:\n  frontends:\n", "2:3"),
        ("maglev:\n  frontends: {}\n", "2:3"),
    ],
)
def test_file_without_frontends_is_warned_of_since_it_may_have_been_cut_off(text: str, place: str) -> None:
    result = load_text(text)
    assert result.config is not None
    assert shown(result.problems) == [
        f"{place}: maglev.frontends: there are no frontends: with this file nothing is served, and a forced reload or "
        "prune would remove every VIP from VPP; was the file cut off?"
    ]


def test_json_without_frontends_is_warned_of_too() -> None:
    (problem,) = load_text('{"maglev": {"frontends": {}}}', json=True).warnings
    assert "was the file cut off?" in problem.message


def test_backends_that_no_frontend_uses_are_one_warning_however_many() -> None:
    unused = "".join(f"    b{index}: {{address: 198.51.100.{index}}}\n" for index in range(200))
    text = (
        "maglev:\n  vpp: {lb: {ipv4-src-address: 192.0.2.1}}\n  frontends:\n"
        "    f: {address: 192.0.2.80, pools: [{name: p, backends: {a: , b1: }}]}\n"
        f"  backends:\n    a: {{address: 192.0.2.2}}\n{unused.replace('198.51.100.0', '198.51.100.200')}"
    )
    assert shown(load_text(text).problems) == [
        "7:5: maglev.backends.b0: no frontend uses this backend; likewise 198 others: b2, b3, b4, …"
    ]


def test_weight_out_of_range_says_nothing_of_the_table() -> None:
    text = (
        "maglev:\n  vpp: {lb: {ipv4-src-address: 192.0.2.1}}\n  backends: {a: {address: 192.0.2.2}}\n  frontends:\n"
        "    f: {address: 192.0.2.80, weight-unit: 1, new-flows-table-length: 2048, pools: [{name: p, backends: "
        "{a: {weight: 200}}}]}\n"
    )
    result = load_text(text)
    assert [problem.message for problem in result.problems] == ["200 is not a whole number from 0 to 100"]


@pytest.mark.parametrize("line", ["new-flows-table-length: 3, weight-unit: 1,", "weight-unit: 0,"])
def test_value_in_error_gets_no_warning_beside_it(line: str) -> None:
    assert [problem.kind.value for problem in load_frontend(line.replace("192.0.2.1", "")).problems] == ["semantic"]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("maglev:\n\tbackends:\n", "2:1"),
        ("maglev:\n  backends:\n  \ta: {address: 192.0.2.1}\n", "3:3"),
        ("maglev:\n  backends:\n    a:\n      address: 192.0.2.1\n\t  healthcheck: x\n", "5:1"),
        ("maglev:\n  pools:\n  -\tname: x\n    b: 1\n", "3:4"),
        ("maglev:\n  a: |\n\tfoo\n", "3:1"),
    ],
)
def test_tab_is_named_with_its_place(text: str, place: str) -> None:
    problems = shown(load_text(text).problems)
    assert problems == [f"{place}: not valid YAML: a tab character; YAML is indented with spaces"]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("maglev:\n  backends:\n    a:\n      address:192.0.2.1\n      healthcheck: x\n", "4:14"),
        ("maglev:\n  backends:\n    a:\n      healthcheck: x\n      address:192.0.2.1\n      enabled: true\n", "5:14"),
        ("maglev:\n  backends:\n    a:\n      healthcheck: x\n      address:192.0.2.1\n", "5:14"),
        ("maglev:\n  x: 1\n  interval:2s   # c\n\n  # hey\n  y: 3\n", "3:11"),
        ("maglev:\n  pools:\n    - name:x\n      backends: {a: }\n", "3:11"),
    ],
)
def test_missing_space_after_a_colon_is_reported_on_its_own_line(text: str, place: str) -> None:
    assert shown(load_text(text).problems) == [f"{place}: not valid YAML: a space is missing after the colon"]


def test_other_syntax_errors_keep_the_words_of_the_parser() -> None:
    (problem,) = load_text("maglev:\n  backends\n    b: {address: 1}\n").problems
    assert str(problem) == "not valid YAML: mapping values are not allowed in this context"


def test_missing_space_in_braces_is_told_from_an_unknown_key() -> None:
    problems = shown(load_text("maglev: {backends: {a: {healthcheck: x, address:192.0.2.1}}}").problems)
    assert problems[-1] == (
        "1:41: maglev.backends.a.address:192.0.2.1: unknown key in a backend; a space is missing after the colon"
    )
