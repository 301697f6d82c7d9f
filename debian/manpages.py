"""The man pages: their templates in ``docs/man``, with flags and commands from the code that reads them."""

from __future__ import annotations

import re
from pathlib import Path

from maglev.cli import grammar
from maglev.cli.main import USAGE_TEXT
from maglev.options import FLAGS, SWITCHES

TEMPLATES = Path(__file__).resolve().parent.parent / "docs" / "man"


def roff(text: str) -> str:
    """Text as roff reads it."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + text if text.startswith((".", "'")) else text


def _entry(term: str, text: str) -> str:
    return f".TP\n.B {roff(term)}\n{roff(text)}\n"


def daemon_flags() -> str:
    """The flags of maglevd."""
    entries = []
    for flag in FLAGS:
        value = "|".join(flag.choices) or "value"
        text = f"{flag.help[0].upper()}{flag.help[1:]}. Default: {flag.default}."
        entries.append(_entry(f"--{flag.name} {value}", text + (f" Environment: {flag.env}." if flag.env else "")))
    entries += [_entry(f"--{name}", f"{text[0].upper()}{text[1:]}.") for name, text in SWITCHES.items()]
    return "".join(entries)


def client_flags() -> str:
    """The flags of maglevc, from its own help."""
    text = USAGE_TEXT.partition("flags (one dash or two)\n")[2].partition("\n\n")[0]
    entries: list[tuple[str, str]] = []
    for line in text.splitlines():
        flag = re.match(r"  (--\S+(?: [A-Z]+)?)\s+(.*)$", line)
        if flag is not None:
            entries.append((flag[1], flag[2]))
        else:
            term, said = entries.pop()
            entries.append((term, f"{said} {line.strip()}"))
    return "".join(_entry(term, f"{said[0].upper()}{said[1:]}.") for term, said in entries)


def commands() -> str:
    """The commands of maglevc, from the tree that parses them."""
    return "".join(_entry(syntax, f"{said[0].upper()}{said[1:]}.") for syntax, said in grammar.usage())


def render(version: str, date: str) -> dict[str, str]:
    """The pages by file name: ``maglevd.8``, ``maglevc.1``."""
    flags = {"maglevd.8": daemon_flags, "maglevc.1": client_flags}
    pages = {}
    for name, of in flags.items():
        text = (TEMPLATES / f"{name}.in").read_text(encoding="utf-8")
        for key, value in (("VERSION", version), ("DATE", date), ("FLAGS\n", of()), ("COMMANDS\n", commands())):
            text = text.replace(f"@{key.strip()}@" + ("\n" if key.endswith("\n") else ""), value)
        pages[name] = text
    return pages
