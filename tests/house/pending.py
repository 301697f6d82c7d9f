"""Known violations of the house rules. An entry without its violation fails the check: the list only shrinks."""

from __future__ import annotations

from typing import Final

PENDING: Final[frozenset[tuple[str, str, str]]] = frozenset()
"""Rule, file and name of each."""
