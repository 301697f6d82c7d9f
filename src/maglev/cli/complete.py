"""What may come next on a command line: for the completion of a shell that is not ours (``maglevc --complete``).

Like that shell's own completion it never complains: where nothing fits, nothing is offered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from maglev.cli.errors import UsageError
from maglev.cli.grammar import LIVE, Kind, walk

LiveNames = Callable[[Kind, str, Mapping[str, str]], Sequence[str]]
"""The names of live objects of a kind with a prefix; the values given so far say in which frontend or pool."""


def candidates(words: Sequence[str], names: LiveNames) -> Iterator[str]:
    """The words that the last of ``words``, which may be empty, can become."""
    begun = words[-1] if words else ""
    try:
        position = walk(words[:-1])
    except UsageError:
        return
    for node, _ in position.following():
        if node.kind is None:
            if node.name.startswith(begun):
                yield node.name
        elif node.kind in LIVE:
            yield from (name for name in names(node.kind, begun, position.values) if name.startswith(begun))
