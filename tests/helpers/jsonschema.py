"""The part of JSON schema that maglev.schema.json uses, as a validator: enough to hold the schema to the loader."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address
from typing import Any

TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}
FORMATS = {"ipv4": IPv4Address, "ipv6": IPv6Address}
NOTES = {"$schema", "title", "description", "then"}


def errors(schema: dict[str, Any], value: Any, path: str = "") -> list[str]:
    """What is wrong with ``value``, each as ``path: keyword``. A keyword not known here is an AssertionError."""
    found: list[str] = []
    for keyword, wanted in schema.items():
        if keyword in NOTES:
            continue
        checker = CHECKS.get(keyword)
        assert checker is not None, f"the schema uses {keyword!r}"
        found += checker(wanted, value, path, schema)
    return found


def _type(wanted: Any, value: Any, path: str, schema: dict[str, Any]) -> list[str]:
    kinds = [wanted] if isinstance(wanted, str) else wanted
    fits = any(isinstance(value, TYPES[kind]) and (kind == "boolean") == isinstance(value, bool) for kind in kinds)
    return [] if fits else [f"{path}: type"]


def _properties(wanted: Any, value: Any, path: str, schema: dict[str, Any]) -> list[str]:
    if not isinstance(value, dict):
        return []
    return [
        error for key, inner in wanted.items() if key in value for error in errors(inner, value[key], f"{path}.{key}")
    ]


def _additional(wanted: Any, value: Any, path: str, schema: dict[str, Any]) -> list[str]:
    if not isinstance(value, dict):
        return []
    rest = {key: item for key, item in value.items() if key not in schema.get("properties", {})}
    if wanted is False:
        return [f"{path}.{key}: additionalProperties" for key in rest]
    return [error for key, item in rest.items() for error in errors(wanted, item, f"{path}.{key}")]


def _names(wanted: Any, value: Any, path: str, schema: dict[str, Any]) -> list[str]:
    return [error for key in value for error in errors(wanted, key, f"{path}.{key}")] if isinstance(value, dict) else []


def _items(wanted: Any, value: Any, path: str, schema: dict[str, Any]) -> list[str]:
    if not isinstance(value, list):
        return []
    return [error for index, item in enumerate(value) for error in errors(wanted, item, f"{path}[{index}]")]


def _any_of(wanted: Any, value: Any, path: str, schema: dict[str, Any]) -> list[str]:
    return [] if any(not errors(option, value, path) for option in wanted) else [f"{path}: anyOf"]


def _all_of(wanted: Any, value: Any, path: str, schema: dict[str, Any]) -> list[str]:
    return [error for part in wanted for error in errors(part, value, path)]


def _if(wanted: Any, value: Any, path: str, schema: dict[str, Any]) -> list[str]:
    return [] if errors(wanted, value, path) else errors(schema["then"], value, path)


def _required(wanted: Any, value: Any, path: str, schema: dict[str, Any]) -> list[str]:
    return [f"{path}.{key}: required" for key in wanted if key not in value] if isinstance(value, dict) else []


def _format(wanted: Any, value: Any, path: str, schema: dict[str, Any]) -> list[str]:
    try:
        FORMATS[wanted](value)
    except ValueError:
        return [f"{path}: format"]
    return []


def _said(keyword: str, holds: bool, path: str) -> list[str]:
    return [] if holds else [f"{path}: {keyword}"]


def _number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


CHECKS: dict[str, Any] = {
    "type": _type,
    "properties": _properties,
    "additionalProperties": _additional,
    "propertyNames": _names,
    "items": _items,
    "anyOf": _any_of,
    "allOf": _all_of,
    "if": _if,
    "required": _required,
    "format": _format,
    "enum": lambda wanted, value, path, _: _said("enum", value in wanted, path),
    "const": lambda wanted, value, path, _: _said("const", value == wanted, path),
    "pattern": lambda wanted, value, path, _: _said(
        "pattern", not isinstance(value, str) or re.search(wanted, value) is not None, path
    ),
    "maxLength": lambda wanted, value, path, _: _said(
        "maxLength", not isinstance(value, str) or len(value) <= wanted, path
    ),
    "minItems": lambda wanted, value, path, _: _said(
        "minItems", not isinstance(value, list) or len(value) >= wanted, path
    ),
    "minimum": lambda wanted, value, path, _: _said("minimum", not _number(value) or value >= wanted, path),
    "maximum": lambda wanted, value, path, _: _said("maximum", not _number(value) or value <= wanted, path),
}
