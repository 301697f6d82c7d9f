"""What is written about the configuration and made from its table of keys: tables of the guide, and the JSON schema.

``python -m maglev.config.docs DIRECTORY`` rewrites ``config-guide.md`` (what stands between its marks) and
``maglev.schema.json`` there. A test holds both to the table, so neither can go stale.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maglev.base.states import CheckType
from maglev.config import schema
from maglev.config.schema import Key, Listed, Named, Section, Variants

# The guide's marks: <!-- keys: NAME --> and <!-- end -->; what is between them is the table of that section.
SECTIONS: dict[str, Section] = {
    "maglev": schema.MAGLEV,
    "healthchecker": schema.HEALTHCHECKER,
    "lb": schema.LB,
    "healthcheck": schema.HEALTHCHECK,
    "icmp": schema.PARAMS[CheckType.ICMP],
    "tcp": schema.PARAMS[CheckType.TCP],
    "http": schema.PARAMS[CheckType.HTTP],
    "https": schema.PARAMS[CheckType.HTTPS],
    "backend": schema.BACKEND,
    "frontend": schema.FRONTEND,
    "pool": schema.POOL,
    "member": schema.MEMBER,
}
_MARK = re.compile(r"(<!-- keys: ([a-z]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(section: Section) -> str:
    """The keys of a section as a Markdown table: key, what may stand there, default, example, meaning."""
    lines = ["| key | value | default | example | meaning |", "|---|---|---|---|---|"]
    for key in section.keys:
        default = "**required**" if key.required else f"`{key.default}`" if key.default is not None else ""
        example = f"`{key.example}`" if key.example is not None else ""
        lines.append(f"| `{key.name}` | {rule(key)} | {default} | {example} | {key.help} |")
    return "\n".join(lines) + "\n"


def rule(key: Key) -> str:
    """What may stand behind a key, in words."""
    if isinstance(key.type, Section | Variants):
        return "a mapping"
    if isinstance(key.type, Named):
        return "a mapping from names"
    if isinstance(key.type, Listed):
        return "a list"
    return key.type.rule()


def guide(text: str) -> str:
    """The guide with every table between its marks made anew. Raises KeyError for a mark of no section."""
    return _MARK.sub(lambda match: f"{match[1]}{table(SECTIONS[match[2]])}{match[3]}", text)


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of the whole file.

    It knows what concerns one value or one section. What holds between values only the loader can say.
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "vpp-maglev configuration",
        **_section(schema.ROOT),
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
                {
                    "if": {"properties": {key.type.selector: {"const": str(value)}}, "required": [key.type.selector]},
                    "then": {"properties": {key.name: _section(variant)}},
                }
                for value, variant in key.type.sections.items()
            ]
        else:
            properties[key.name] = {"description": key.help} | _type(key)
    return found


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
    """Rewrite the guide's tables and the schema in the directory named by the one argument."""
    if len(arguments) != 1:
        print("usage: python -m maglev.config.docs DIRECTORY", file=sys.stderr)
        return 2
    made: dict[str, Callable[[str], str]] = {"config-guide.md": guide, "maglev.schema.json": lambda _: schema_text()}
    for name, make in made.items():
        path = Path(arguments[0]) / name
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        path.write_text(make(old), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
