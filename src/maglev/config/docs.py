"""The parts of the books that are made from the table of keys: tables of the configuration guide, and the JSON schema.

``python -m maglev.config.docs DIRECTORY`` rewrites ``maglev.schema.json`` there, and between their marks the texts of
``config-guide.md`` and ``user-guide.md``. A test compares all three with the tables, so that none can go stale.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maglev.config import keys
from maglev.kinds.registry import KINDS, counter_help
from maglev.schema.section import Key, Listed, Named, Section, Variants

# The guide's marks: between <!-- keys: NAME --> and <!-- end --> is the table of that section, and between
# <!-- kinds --> and <!-- end kinds --> a heading, a table and notes for every probe kind.
_KEYS = re.compile(r"(<!-- keys: ([a-z0-9-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_KINDS = re.compile(r"(<!-- kinds -->\n).*?(<!-- end kinds -->)", re.DOTALL)
# The user guide's mark: the engine's counters of probes, which are part of a row of a table.
_COUNTERS = re.compile(r"(<!-- counters -->).*?(<!-- end counters -->)")


def sections() -> dict[str, Section]:
    """The sections by the names of the guide's marks; those of the probe kinds' parameters by the kinds' names."""
    return {
        "maglev": keys.MAGLEV,
        "healthchecker": keys.HEALTHCHECKER,
        "lb": keys.LB,
        "healthcheck": keys.HEALTHCHECK,
        "backend": keys.BACKEND,
        "frontend": keys.FRONTEND,
        "panic": keys.PANIC,
        "pool": keys.POOL,
        "member": keys.MEMBER,
    } | {kind.name: kind.section for kind in KINDS.values()}


def table(section: Section) -> str:
    """The keys of a section as a Markdown table: key, what may stand there, default, example, meaning."""
    lines = ["| key | value | default | example | meaning |", "|---|---|---|---|---|"]
    for key in section.keys:
        default = "**required**" if key.required else f"`{key.default}`" if key.default is not None else ""
        example = f"`{key.example}`" if key.example is not None else ""
        lines.append(f"| `{key.name}` | {rule(key)} | {default} | {example} | {key.help} |")
    return "\n".join(lines) + "\n"


def rule(key: Key) -> str:
    """The values that a key permits, in words."""
    if isinstance(key.type, Section | Variants):
        return "a mapping"
    if isinstance(key.type, Named):
        return "a mapping from names"
    if isinstance(key.type, Listed):
        return "a list"
    return key.type.rule()


def kinds() -> str:
    """The chapter of the guide about the parameters of every probe kind; its tables are still empty."""
    parts = []
    for kind in KINDS.values():
        notes = f"\n{kind.notes}\n" if kind.notes else ""
        parts.append(f"### Parameters of `type: {kind.name}`\n\n<!-- keys: {kind.name} -->\n<!-- end -->\n{notes}")
    return "\n" + "\n".join(parts) + "\n"


def guide(text: str) -> str:
    """The guide with every text between its marks replaced. Raises KeyError for a mark of no section."""
    known = sections()
    text = _KINDS.sub(lambda match: f"{match[1]}{kinds()}{match[2]}", text)
    return _KEYS.sub(lambda match: f"{match[1]}{table(known[match[2]])}{match[3]}", text)


def user_guide(text: str) -> str:
    """The user guide with the names of the probes' counters between its marks replaced."""
    names = ", ".join(f"`maglev_engine_{counter}_total`" for counter in counter_help())
    return _COUNTERS.sub(lambda match: f"{match[1]}{names}{match[2]}", text)


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of the whole file.

    It has the rules for single values and single sections. Only the loader knows the rules between values.
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "vpp-maglev configuration",
        **_section(keys.ROOT),
    }


def _section(section: Section) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    found: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": properties}
    required = [key.name for key in section.keys if key.required]
    if required:
        found["required"] = required
    else:
        found["type"] = ["object", "null"]
    for key in section.keys:
        if isinstance(key.type, Variants):
            properties[key.name] = {"description": key.help}
            found["allOf"] = [
                _when(key.type.selector, word, key.name, variant.section) for word, variant in key.type.variants.items()
            ]
        else:
            properties[key.name] = {"description": key.help} | _type(key)
    return found


def _when(selector: str, word: str, name: str, section: Section) -> dict[str, Any]:
    """The schema of the section ``name`` where the key ``selector`` beside it has the value ``word``."""
    then: dict[str, Any] = {"properties": {name: _section(section)}}
    if section.required:
        then["required"] = [name]
    return {"if": {"properties": {selector: {"const": word}}, "required": [selector]}, "then": then}


def _type(key: Key) -> dict[str, Any]:
    if isinstance(key.type, Section):
        return _section(key.type)
    if isinstance(key.type, Named):
        return {
            "type": ["object", "null"],
            "propertyNames": {"pattern": "^[A-Za-z0-9._-]{1,63}$"},
            "additionalProperties": _section(key.type.section),
        }
    if isinstance(key.type, Listed):
        return {"type": "array", "minItems": 1, "items": _section(key.type.section)}
    assert not isinstance(key.type, Variants)
    return key.type.json_schema()


def schema_text() -> str:
    """The JSON schema as it is in the file."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    """Rewrite the guides' tables and the schema in the directory named by the one argument."""
    if len(arguments) != 1:
        print("usage: python -m maglev.config.docs DIRECTORY", file=sys.stderr)
        return 2
    made: dict[str, Callable[[str], str]] = {
        "config-guide.md": guide,
        "user-guide.md": user_guide,
        "maglev.schema.json": lambda _: schema_text(),
    }
    for name, make in made.items():
        path = Path(arguments[0]) / name
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        path.write_text(make(old), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
