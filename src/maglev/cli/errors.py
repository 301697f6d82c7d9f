"""How a command can fail, each with its exit status."""

from __future__ import annotations

DONE = 0
REFUSED = 1
USAGE = 2
UNREACHABLE = 3
INTERRUPTED = 130


class CommandError(Exception):
    """A command that came to nothing; ``status`` is the exit status."""

    status = REFUSED


class UsageError(CommandError):
    """The words are not a command: the text names the word and the expected ones."""

    status = USAGE


class Unreachable(CommandError):
    """The server cannot be reached or does not answer in time."""

    status = UNREACHABLE
