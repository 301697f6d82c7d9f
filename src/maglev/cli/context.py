"""The environment of a command: the daemon, and the place and style of its output."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import IO, Any

from maglev.cli.client import Client
from maglev.cli.errors import DONE
from maglev.cli.jsonout import dumps, plain
from maglev.cli.text import Style, Table, complain, wrap


class Quit(Exception):
    """The shell is to end."""


@dataclass
class Context:
    """The environment of a command. Messages go to ``err``, results to ``out``."""

    client: Client
    style: Style
    json: bool
    out: IO[str]
    err: IO[str]
    version: str

    def print(self, lines: Iterable[str]) -> None:
        """Print lines as they come; those that are too long for the terminal are broken between words."""
        columns = 0 if self.json else self.style.columns
        for line in lines:
            self.out.writelines(f"{piece}\n" for piece in wrap(line, columns))

    def complain(self, text: str) -> None:
        """A message beside the answer."""
        self.out.flush()
        complain(self.err, text)

    def show(self, message: Any, lines: Callable[[], Iterable[str]]) -> int:
        """One message, as JSON or for people."""
        self.print([dumps(plain(message), pretty=True)] if self.json else lines())
        return DONE

    def list(self, pages: Iterable[Any], table: Table, rows: Callable[[Any], Any]) -> int:
        """A list page by page, as a JSON array or as a table. ``pages``: repeated fields."""
        if not self.json:
            for page in pages:
                self.print(table.lines(rows(page)))
            return DONE
        first = True
        for page in pages:
            for one in page:
                self.out.write(("[\n" if first else ",\n") + dumps(plain(one)))
                first = False
        self.out.write("[]\n" if first else "\n]\n")
        return DONE
