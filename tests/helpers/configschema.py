"""``docs/maglev.schema.json`` as an editor reads it."""

from __future__ import annotations

from typing import Any

from jsonschema import Draft202012Validator, FormatChecker

from maglev.config import docs

Draft202012Validator.check_schema(docs.json_schema())
_VALIDATOR = Draft202012Validator(docs.json_schema(), format_checker=FormatChecker(["ipv4", "ipv6"]))


def errors(tree: Any) -> list[str]:
    """The schema's objections to a configuration, each as ``path: message``."""
    return [f"{error.json_path}: {error.message}" for error in _VALIDATOR.iter_errors(tree)]
