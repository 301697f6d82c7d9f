"""The program ``maglevd``: flags, ``--check`` and ``--version``, and the daemon.

Modules that only the daemon needs are imported only to run it: scripts and editors call ``--check`` before a reload,
and it must answer at once.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence

from maglev.base import stdio
from maglev.base.errors import HostTrouble
from maglev.base.lacks import remedy
from maglev.base.logs import LogControl, counted, escape
from maglev.base.version import version
from maglev.config.load import LoadResult, Problem, load_file
from maglev.daemon.exits import EXIT_NOT_READ, EXIT_OK, exit_status
from maglev.daemon.options import Options, parse
from maglev.daemon.signals import Signals


def check(options: Options) -> int:
    """``--check``: print everything that is wrong with the file; returns the exit status."""
    name = str(options.config)
    try:
        result = load_file(options.config)
    except (HostTrouble, MemoryError) as trouble:
        # Standard output stays empty, also with --json: there is no result, and a caller must not take one for it.
        why = remedy(trouble) if isinstance(trouble, MemoryError) else trouble
        stdio.tell(escape(f"{name}: not read, so nothing is known about it: {why}"))
        return EXIT_NOT_READ
    status = exit_status(result)
    if options.json:
        import orjson

        problems = [
            {"kind": str(p.kind), "path": p.path, "message": p.message, "line": p.line, "column": p.column}
            for p in result.problems
        ]
        document = {"file": name, "ok": status == EXIT_OK, "problems": problems}
        sys.stdout.buffer.write(orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n")
        return status
    for problem in result.problems:
        stdio.tell(escape(problem.render(name)))
    found = ", ".join(counted(len(of), of[0].kind.title) for of in _classes(result) if of)
    if result.config is None:
        stdio.tell(f"{name}: not valid: {found}")
        return status
    config = result.config
    print(
        f"{name}: valid: {counted(len(config.frontends), 'frontend')}, {counted(len(config.backends), 'backend')}, "
        f"{counted(len(config.healthchecks), 'health check')}" + (f"; {found}" if found else "")
    )
    return status


def _classes(result: LoadResult) -> tuple[tuple[Problem, ...], ...]:
    return result.parse_errors, result.semantic_errors, result.warnings


def run(arguments: Sequence[str], signals: Signals) -> int:
    """The program; returns its exit status. ``signals`` are held since the start."""
    options = parse(arguments, os.environ)
    if options.version or options.check:
        signals.release()
        if options.check:
            return check(options)
        print(f"maglevd {version()}")
        return EXIT_OK
    return _daemon(options, signals)


def _daemon(options: Options, signals: Signals) -> int:
    control = LogControl(level=options.log_level, form=options.log_format)
    control.start()
    # gRPC's core writes to standard error on its own, in another form; a stranger that sends garbage could fill the log
    # with it. Its preparations for a fork are for programs that use gRPC in the child; the child that loads the
    # configuration does not.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    try:
        import uvloop

        from maglev.daemon import daemon

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(daemon.run(options, control, signals))
    finally:
        control.end()
