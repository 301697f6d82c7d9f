"""The JSON schema and the loader agree, as far as a schema can: it knows values and sections, not what lies between."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from maglev.config.keys import ROOT
from maglev.config.load import load_text
from maglev.schema.section import Key, Listed, Named, Section, Variants
from tests.helpers.configschema import errors

# Values of every kind, and at every border; most of them are wrong in most places.
WORDS = (
    "192.0.2.1 2001:db8::1 ::ffff:192.0.2.1 192.0.2 a www www.example.org é / /healthz /etc/ca.pem ( tcp http icmp udp "
    "syn connect HEAD auto owned keep true yes 0 1 5 80 99 200 600 200-299,304 200,x 16384 65536 1.5s 1h1m 300m 9999h "
    "1d 5ms 50% 101% -x"
)
ODD: list[object] = [
    *WORDS.split(),
    "",
    "a" * 64,
    "x\n",
    -1,
    0,
    1,
    3,
    16,
    80,
    101,
    65536,
    65537,
    1.5,
    True,
    False,
    None,
    [],
    {},
]
NAMES = st.sampled_from(["a", "b", "no", "12", "a" * 63]) | st.sampled_from(["a", "", "a b", "é", "a" * 64])


def fitting(key: Key) -> list[object]:
    """The example of a key and its default, as JSON has them."""
    found: list[object] = []
    for text in (key.example, key.default):
        if text is not None:
            text = text.strip('"')
            found.append({"true": True, "false": False}.get(text, int(text) if text.isdecimal() else text))
    return found


def values(key: Key) -> st.SearchStrategy[Any]:
    """What may stand behind a key: as a rule something that fits, so that few things are wrong at a time."""
    kind = key.type
    if isinstance(kind, Section):
        return section(kind)
    if isinstance(kind, Named):
        return st.dictionaries(NAMES, section(kind.section), max_size=2)
    if isinstance(kind, Listed):
        return st.lists(section(kind.section), max_size=2)
    if isinstance(kind, Variants):
        return st.one_of([section(variant.section) for variant in kind.variants.values()])
    return st.integers(0, 15).flatmap(lambda choice: st.sampled_from(fitting(key) if choice else ODD))


def section(of: Section) -> st.SearchStrategy[Any]:
    """A section with what it needs, and any of the rest."""
    needed = {key.name: values(key) for key in of.keys if key.required}
    return st.fixed_dictionaries(needed, optional={key.name: values(key) for key in of.keys if not key.required})


TREES = st.fixed_dictionaries({"maglev": section(ROOT.by_name["maglev"].type)})  # type: ignore[arg-type]


@given(TREES)
def test_the_schema_refuses_only_what_the_loader_refuses_and_all_that_it_cannot_parse(tree: Any) -> None:
    found = errors(tree)
    loaded = load_text(json.dumps(tree), json=True)
    if found:
        assert loaded.config is None, found
    if loaded.parse_errors:
        assert found, loaded.parse_errors
