"""What an operator most probably did where libyaml says only what it stumbled over, and where.

libyaml names the place at which it could not go on. For a missing space after a colon that is the next line, because
``address:192.0.2.1`` is a text like any other until something follows that cannot follow a text.
"""

from __future__ import annotations

import re

import yaml

# A key whose colon touches its value, also behind the dash of a list. An IPv6 address looks like that too, so a key of
# hexadecimal digits alone is none.
_GLUED = re.compile(r"(?P<lead>\s*(?:- +)*)(?P<key>[A-Za-z][A-Za-z0-9._-]*):(?=[^\s:/])")
_HEX = re.compile(r"[0-9A-Fa-f]{1,4}")
_FAR = 20  # lines before the place of the error among which the cause is looked for


def explain(text: str, error: yaml.MarkedYAMLError) -> tuple[str, int, int] | None:
    """The message for a syntax error with its line and column, from 1; None if libyaml's own is the best there is."""
    mark = error.problem_mark
    if mark is None:
        return None
    lines = text.split("\n", mark.line + 1)[: mark.line + 1]
    line = lines[mark.line] if mark.line < len(lines) else ""
    if (error.problem or "").startswith("found a tab") or line[mark.column : mark.column + 1] == "\t":
        return "a tab character; YAML is indented with spaces", mark.line + 1, mark.column + 1
    if error.problem not in ("mapping values are not allowed in this context", "could not find expected ':'"):
        return None
    for number in range(mark.line, max(mark.line - _FAR, -1), -1):
        column = missing_space(lines[number]) if number < len(lines) else None
        if column is not None:
            return "a space is missing after the colon", number + 1, column
        if number < mark.line and lines[number].strip() and not lines[number].lstrip().startswith("#"):
            break  # the line before that has content: the text that ended badly began there
    return None


def missing_space(line: str) -> int | None:
    """The column, from 1, of the colon that should have a space behind it, if ``line`` begins with such a key."""
    match = _GLUED.match(line)
    if match is None or _HEX.fullmatch(match["key"]):
        return None
    return match.end()
