"""No input makes the loader raise, and what it accepts keeps its rules."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from maglev.config.diff import diff_configs
from maglev.config.keys import ROOT
from maglev.config.load import LoadResult, load_text
from maglev.config.rows import pack, unpack
from maglev.schema.durations import format_duration, parse_duration
from maglev.schema.section import Listed, Named, Section, Variants

# Any tree, and trees along the schema with anything in places: the former finds holes in the walk, the latter in
# the rules behind it.
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
NAMES = st.sampled_from(["a", "b", "c", "no", "12", "", "é"])

WORDS = (
    "192.0.2.1 2001:db8::1 a b tcp http https icmp udp 80 100 200 1s 0s 40s 50% auto true keep owned syn HEAD ( / www"
)
LEAVES: list[object] = [*WORDS.split(), 80, 1, 0, -1, 100, True, False]


def along(kind: object) -> st.SearchStrategy[Any]:
    if isinstance(kind, Section):
        return st.fixed_dictionaries({}, optional={key.name: along(key.type) for key in kind.keys})
    if isinstance(kind, Named):
        return st.dictionaries(NAMES, along(kind.section), max_size=3)
    if isinstance(kind, Listed):
        return st.lists(along(kind.section), max_size=3)
    if isinstance(kind, Variants):
        return st.one_of([along(variant.section) for variant in kind.variants.values()])
    return st.sampled_from(LEAVES)


TREES = st.fixed_dictionaries({"maglev": along(ROOT.by_name["maglev"].type)}) | ANYTHING


def sane(result: LoadResult) -> None:
    assert (result.config is None) == bool(result.parse_errors or result.semantic_errors)
    assert not (result.parse_errors and result.semantic_errors)
    for problem in result.problems:
        assert str(problem).isprintable()
        assert len(str(problem)) < 2000


@given(st.binary(max_size=300))
def test_no_bytes_make_the_loader_raise(data: bytes) -> None:
    sane(load_text(data))
    sane(load_text(data, json=True))


@given(st.text(alphabet="maglev:{}[]&*!<>-?|'\" \n\t,#%@`~0123.\\", max_size=200))
def test_no_text_makes_the_loader_raise(text: str) -> None:
    sane(load_text(text))
    sane(load_text(text, json=True))


@given(TREES)
def test_no_tree_makes_the_loader_raise(tree: object) -> None:
    sane(load_text(json.dumps(tree), json=True))
    sane(load_text(yaml.safe_dump(tree, allow_unicode=True)))


async def there_and_back(result: LoadResult) -> LoadResult:
    async def lines() -> AsyncIterator[bytes]:
        for line in pack(result):
            yield line

    return await unpack(lines())


MEMBERS = st.dictionaries(
    st.sampled_from(["a", "b"]), st.fixed_dictionaries({"weight": st.integers(0, 100)}), min_size=1
)
POOL = st.fixed_dictionaries({"name": st.just("p"), "backends": MEMBERS})
VALID = st.fixed_dictionaries(
    {
        "vpp": st.just({"lb": {"ipv4-src-address": "192.0.2.1"}}),
        "healthchecks": st.just({"web": {"type": "http", "port": 80}, "ping": {"type": "icmp"}}),
        "backends": st.fixed_dictionaries(
            {
                name: st.fixed_dictionaries(
                    {"address": st.just(f"10.0.0.{index}")},
                    optional={"healthcheck": st.sampled_from(["web", "ping"]), "enabled": st.booleans()},
                )
                for index, name in enumerate("ab", 1)
            }
        ),
    },
    optional={
        "frontends": st.dictionaries(
            st.sampled_from(["f", "g"]),
            st.fixed_dictionaries(
                {"address": st.just("192.0.2.80"), "pools": st.lists(POOL, min_size=1, max_size=1)},
                optional={
                    "weight-unit": st.sampled_from(["auto", 1, 100]),
                    "on-all-down": st.sampled_from(["keep", "drain"]),
                    "description": st.text(st.characters(codec="utf-8", categories=["L", "N"]), max_size=5),
                },
            ),
            max_size=1,
        )
    },
)


@given(VALID, VALID)
def test_valid_configurations_load_travel_and_compare(first: dict[str, Any], second: dict[str, Any]) -> None:
    results = [load_text(json.dumps({"maglev": tree}), json=True) for tree in (first, second)]
    for result, tree in zip(results, (first, second), strict=True):
        assert result.config is not None, result.problems
        assert asyncio.run(there_and_back(result)) == result
        again = load_text(yaml.safe_dump({"maglev": tree}, sort_keys=False, allow_unicode=True))
        assert again.config == result.config
        assert diff_configs(result.config, result.config) == []
    one, two = results[0].config, results[1].config
    assert one is not None
    assert two is not None
    # Mappings compare without their order, which counts here; their text has it.
    assert bool(diff_configs(one, two)) == (repr(one) != repr(two))


@given(st.integers(0, (1 << 63) - 1))
def test_every_duration_is_read_back_as_it_was_written(nanoseconds: int) -> None:
    assert parse_duration(format_duration(nanoseconds)) == nanoseconds


@given(st.text(alphabet="0123456789.nuµmsh -+", max_size=12))
def test_no_text_is_half_a_duration(text: str) -> None:
    try:
        nanoseconds = parse_duration(text)
    except ValueError:
        return
    assert parse_duration(format_duration(nanoseconds)) == nanoseconds
