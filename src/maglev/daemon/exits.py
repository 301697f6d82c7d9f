"""Exit statuses of ``maglevd``; scripts and service managers rely on them."""

from __future__ import annotations

from maglev.config.load import LoadResult

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_PARSE = 1
EXIT_SEMANTIC = 2


def exit_status(result: LoadResult) -> int:
    """0 for a valid configuration, 1 for a parse error, 2 for a semantic error."""
    if result.parse_errors:
        return EXIT_PARSE
    return EXIT_SEMANTIC if result.semantic_errors else EXIT_OK
