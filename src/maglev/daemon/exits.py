"""How ``maglevd`` ends: exit statuses that scripts and service managers rely on."""

from __future__ import annotations

import os

from maglev.config.load import LoadResult

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_PARSE = 1
EXIT_SEMANTIC = 2
EXIT_NOT_READ = os.EX_TEMPFAIL  # 75: this host lacked what reading the file takes; the file may be valid


class CannotStart(Exception):
    """The daemon cannot start; the text says why. ``status`` is the exit status."""

    def __init__(self, text: str, status: int = EXIT_FAILED) -> None:
        super().__init__(text)
        self.status = status


def exit_status(result: LoadResult) -> int:
    """0 for a valid configuration, 1 for a parse error, 2 for a semantic error."""
    if result.parse_errors:
        return EXIT_PARSE
    return EXIT_SEMANTIC if result.semantic_errors else EXIT_OK
