"""The program ``maglevd``: flags, ``--check`` and ``--version``, and the daemon.

Modules that only the daemon needs are imported only to run it: scripts and editors call ``--check`` before a reload,
and it must answer at once.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence

from maglev.base.logs import LogControl, counted, escape
from maglev.base.version import version
from maglev.config.load import LoadResult, Problem, load_file
from maglev.daemon.exits import EXIT_OK, exit_status
from maglev.daemon.options import Options, parse


def check(options: Options) -> int:
    """``--check``: print everything that is wrong with the file; returns the exit status."""
    result = load_file(options.config)
    name = str(options.config)
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
        print(escape(problem.render(name)), file=sys.stderr)
    found = ", ".join(counted(len(of), of[0].kind.title) for of in _classes(result) if of)
    if result.config is None:
        print(f"{name}: not valid: {found}", file=sys.stderr)
        return status
    config = result.config
    print(
        f"{name}: valid: {counted(len(config.frontends), 'frontend')}, {counted(len(config.backends), 'backend')}, "
        f"{counted(len(config.healthchecks), 'health check')}" + (f"; {found}" if found else "")
    )
    return status


def _classes(result: LoadResult) -> tuple[tuple[Problem, ...], ...]:
    return result.parse_errors, result.semantic_errors, result.warnings


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    options = parse(sys.argv[1:] if arguments is None else arguments, os.environ)
    if options.version:
        print(f"maglevd {version()}")
        return EXIT_OK
    if options.check:
        return check(options)
    return _daemon(options)


def _daemon(options: Options) -> int:
    control = LogControl(level=options.log_level, form=options.log_format)
    control.start()
    # gRPC's core writes to standard error on its own, in another form; a stranger that sends garbage could fill the log
    # with it. Its preparations for a fork are for programs that use gRPC in the child; the child that loads the
    # configuration does not.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    try:
        import uvloop

        from maglev.daemon.daemon import run

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(run(options, control))
    finally:
        control.end()


if __name__ == "__main__":
    sys.exit(main())
