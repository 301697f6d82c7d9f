"""The man pages: their templates in ``docs/man``, with flags, commands and keys from the code that reads them."""

from __future__ import annotations

import re
from pathlib import Path

from maglev.cli import grammar
from maglev.cli.main import FLAGS as CLIENT_FLAGS
from maglev.config import docs
from maglev.daemon.options import FLAGS, SWITCHES

DOCS = Path(__file__).resolve().parent.parent / "docs"
TEMPLATES = DOCS / "man"


def roff(text: str) -> str:
    """Text as roff reads it; what Markdown has in code style is bold."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("µ", "\\(mc")
    text = re.sub(r"`([^`]+)`", r"\\fB\1\\fP", text)
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
    return "".join(_entry(term, f"{said[0].upper()}{said[1:]}.") for term, said in CLIENT_FLAGS)


def commands() -> str:
    """The commands of maglevc, from the tree that parses them."""
    return "".join(_entry(syntax, f"{said[0].upper()}{said[1:]}.") for syntax, said in grammar.usage())


def keys() -> str:
    """The keys of the configuration, section by section, under the headings of the configuration guide."""
    guide = (DOCS / "config-guide.md").read_text(encoding="utf-8")
    sections = docs.sections()
    entries = []
    for heading, name in re.findall(r"^#+ ([^\n]+)\n+<!-- keys: ([a-z0-9-]+) -->", guide, re.MULTILINE):
        entries.append(f".SS {roff(heading)}\n")
        for key in sections[name].keys:
            rule = docs.rule(key)
            needed = "Required. " if key.required else f"Default: {key.default}. " if key.default is not None else ""
            entries.append(_entry(key.name, f"{rule[0].upper()}{rule[1:]}. {needed}{key.help}"))
    return "".join(entries)


def example() -> str:
    """The first example of the configuration guide."""
    guide = (DOCS / "config-guide.md").read_text(encoding="utf-8")
    text = guide.partition("```yaml\n")[2].partition("```")[0]
    return "".join(f"{roff(line)}\n" for line in text.splitlines())


def render(version: str, date: str) -> dict[str, str]:
    """The pages by file name: ``maglevd.8``, ``maglevc.1``, ``maglev.yaml.5``."""
    lines = {
        "maglevd.8": {"FLAGS": daemon_flags},
        "maglevc.1": {"FLAGS": client_flags, "COMMANDS": commands},
        "maglev.yaml.5": {"KEYS": keys, "EXAMPLE": example},
    }
    pages = {}
    for name, parts in lines.items():
        text = (TEMPLATES / f"{name}.in").read_text(encoding="utf-8")
        text = text.replace("@VERSION@", version).replace("@DATE@", date)
        for key, made in parts.items():
            text = text.replace(f"@{key}@\n", made())
        pages[name] = text
    return pages
