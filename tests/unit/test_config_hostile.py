"""Files that mean harm: each is refused with an error, in bounded time and memory, and nothing is executed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from maglev.config import source
from maglev.config.load import LoadResult, load_file, load_text


def refused(result: LoadResult, message: str) -> None:
    assert result.config is None
    assert any(message in problem.message for problem in result.parse_errors), result.problems


def test_billion_laughs_are_counted_and_not_laughed() -> None:
    lines = ["maglev:", "  a: &a [x, x, x, x, x, x, x, x, x, x]"]
    for name, before in zip("bcdefghi", "abcdefgh", strict=True):
        lines.append(f"  {name}: &{name} [{', '.join(['*' + before] * 10)}]")
    refused(load_text("\n".join(lines)), "aliases stand for more than")


def test_merged_laughs_are_counted_too() -> None:
    lines = ["maglev:", "  a: &a {k: v}"]
    for name, before in zip("bcdefghijklm", "abcdefghijkl", strict=True):
        lines.append(f"  {name}: &{name} {{<<: [{', '.join(['*' + before] * 10)}]}}")
    refused(load_text("\n".join(lines)), "aliases stand for more than")


@pytest.mark.parametrize("text", ["&a [*a]", "&a {a: *a}", "&a {<<: *a}", "&a [*a, *a, *a, *a]"])
def test_alias_to_itself_ends(text: str) -> None:
    result = load_text(f"maglev: {text}")
    assert result.config is None
    assert result.parse_errors


def test_alias_as_large_as_a_real_file_needs_is_allowed() -> None:
    members = ", ".join(f"b{index}: " for index in range(50))
    backends = ", ".join(f"b{index}: {{address: 10.0.0.{index + 1}}}" for index in range(50))
    frontends = ", ".join(f"f{index}: {{address: 192.0.2.{index}, pools: *pools}}" for index in range(1, 200))
    result = load_text(
        f"""
        maglev:
          vpp: {{lb: {{ipv4-src-address: 192.0.2.1}}}}
          backends: {{{backends}}}
          frontends:
            first: {{address: 192.0.2.254, pools: &pools [{{name: p, backends: {{{members}}}}}]}}
            {frontends.replace("}, f", "}" + chr(10) + " " * 12 + "f")}
        """
    )
    assert result.config is not None, result.problems
    assert len(result.config.frontends) == 200


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{a: " * 100_000, "- " * 10_000, "? " * 10_000, "[" * 40 + "]" * 40, "a:\n" + " x:\n" * 3]
)
def test_deep_nesting_is_refused(text: str) -> None:
    assert load_text(text).parse_errors


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[" * 900 + "]" * 900])
def test_deep_nesting_in_json_is_refused(text: str) -> None:
    assert load_text(text, json=True).parse_errors


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [(b"maglev:\n  a: \0\n", 2, 6), (b"maglev: \x1b[2J", 1, 9), (b"\x01", 1, 1), ("maglev: \uffff".encode(), 1, 9)],
)
def test_characters_that_yaml_forbids_are_located(text: bytes, line: int, column: int) -> None:
    (problem,) = load_text(text).parse_errors
    assert "is not allowed" in problem.message
    assert (problem.line, problem.column) == (line, column)


@pytest.mark.parametrize("json", [False, True])
@pytest.mark.parametrize("text", [b"\xff\xfe\x00", b"maglev:\n  a: \xc3\x28", "maglev: {}".encode("utf-16")])
def test_what_is_not_utf8_is_refused(text: bytes, json: bool) -> None:
    refused(load_text(text, json=json), "not UTF-8")


def test_place_of_a_bad_byte_is_told() -> None:
    (problem,) = load_text(b"maglev:\n  a: \xc3\x28").parse_errors
    assert (problem.line, problem.column) == (2, 6)


@pytest.mark.parametrize("json", [False, True])
def test_lone_surrogates_are_refused(json: bool) -> None:
    refused(load_text('{"maglev": {"\ud800": {}}}', json=json), "Unicode")


def test_escaped_surrogates_in_json_reach_no_message() -> None:
    result = load_text(r'{"maglev": {"\ud800": {}, "backends": {"\udfff": {"address": "\ud800"}}}}', json=True)
    assert len(result.parse_errors) == 2
    for problem in result.parse_errors:
        assert str(problem).encode()


def test_huge_scalars_are_refused_and_not_repeated() -> None:
    scalar = "x" * 10_000_000
    result = load_text(f"maglev:\n  ? {scalar}\n  : 1\n  backends: {{a: {{address: {scalar}}}}}\n")
    assert len(result.parse_errors) == 2
    assert all(len(str(problem)) < 400 for problem in result.parse_errors)
    result = load_text(f"maglev: {{frontends: {{a: {{address: 192.0.2.1, description: {scalar}, pools: }}}}}}")
    assert result.semantic_errors[0].message == "longer than 1024 characters"


@pytest.mark.parametrize("text", ["1" * 10_000_000, "-" + "1" * 5000, "1e999999999"])
def test_huge_numbers_are_refused(text: str) -> None:
    assert load_text(f'{{"maglev": {{"healthchecker": {{"transition-history": {text}}}}}}}', json=True).parse_errors
    assert load_text(f"maglev: {{healthchecker: {{transition-history: {text}}}}}").parse_errors


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system",
        "!!python/name:os.system",
        "!!python/object/new:tuple",
        "!<tag:yaml.org,2002:binary>",
        "!local",
        "!!set",
    ],
)
def test_tags_make_nothing(tag: str) -> None:
    refused(load_text(f"maglev: {{backends: {tag} {{}}}}"), "has no meaning here")


def test_many_duplicate_keys_are_listed_up_to_the_bound() -> None:
    keys = "".join(f"  k{index}: 1\n" for index in range(20_000))
    result = load_text(f"maglev:\n{keys}{keys}")
    assert "first in line 2)" in result.parse_errors[0].message
    assert len(result.parse_errors) == 1001


def test_many_misspelt_names_are_listed_up_to_the_bound() -> None:
    backends = ", ".join(f"backend-{index}: {{address: 192.0.2.1, healthcheck: h{index}}}" for index in range(3000))
    checks = ", ".join(f"check-{index}: {{type: icmp}}" for index in range(3000))
    result = load_text(f"maglev: {{backends: {{{backends}}}, healthchecks: {{{checks}}}}}")
    assert len(result.semantic_errors) == 1001


def test_file_beyond_the_bound_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "maglev.yaml"
    file.write_text("maglev: {}\n" + "#" * 1000)
    monkeypatch.setattr(source, "MAX_BYTES", 1000)
    refused(load_file(file), "larger than")


def test_number_of_values_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MAX_VALUES", 1000)
    refused(load_text(f"maglev: [{'a,' * 1000}]"), "more than 1000 values")


def test_missing_file_is_a_parse_error(tmp_path: Path) -> None:
    refused(load_file(tmp_path / "none.yaml"), "No such file or directory")
    refused(load_file("a\0b"), "cannot read")


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    pipe = tmp_path / "maglev.yaml"
    os.mkfifo(pipe)
    refused(load_file(pipe), "not a regular file")
    refused(load_file(tmp_path), "Is a directory")
    refused(load_file("/dev/zero"), "not a regular file")
