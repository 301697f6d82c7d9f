"""The first instructions of ``maglevd``: signals and descriptors are in order before anything large is imported.

Importing the program takes some tenths of a second. In that time a reload that a script requests, or an end that a
service manager requests, must not kill the process by the signal's default action. So this module and all that it
imports at the top are a few lines long; ``program`` is the program.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from maglev.base import stdio
from maglev.daemon.signals import Signals


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    signals = Signals()
    signals.hold()
    stdio.complete()
    # After the two above.
    from maglev.daemon.program import run

    return stdio.guarded("maglevd", lambda: run(sys.argv[1:] if arguments is None else arguments, signals))


if __name__ == "__main__":
    sys.exit(main())
