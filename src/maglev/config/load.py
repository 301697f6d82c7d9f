"""From a file to a ``Config``: read, walk along the schema, build the model, check the rules.

Two stages, and all errors of a stage at once: parse errors (unreadable, not YAML or JSON, unknown or duplicate or
missing keys, wrong types), and, only if there are none, semantic errors. Nothing a file contains makes these
functions raise.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from maglev.base.errors import HostTrouble
from maglev.base.lacks import is_lack, remedy
from maglev.config import source
from maglev.config.check import check
from maglev.config.keys import ROOT
from maglev.config.model import (
    ONE_MEMBER,
    Backend,
    Brake,
    Config,
    Frontend,
    HealthCheck,
    LbConfig,
    Panic,
    Pool,
    PoolMember,
)
from maglev.kinds.kind import Kind
from maglev.schema.problems import Path, Problem, ProblemKind, Report, make_path
from maglev.schema.types import Bad

__all__ = [
    "CheckResult",
    "LoadResult",
    "Problem",
    "ProblemKind",
    "load_file",
    "load_text",
]

Values = dict[str, Any]  # a section as the schema read it: attribute -> value


class _ByKind:
    """The problems of a file by their class."""

    __slots__ = ()
    problems: tuple[Problem, ...]

    def _of(self, kind: ProblemKind) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.kind is kind)

    @property
    def parse_errors(self) -> tuple[Problem, ...]:
        """The reasons why it could not be read or understood."""
        return self._of(ProblemKind.PARSE)

    @property
    def semantic_errors(self) -> tuple[Problem, ...]:
        """The rules that it breaks."""
        return self._of(ProblemKind.SEMANTIC)

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """Valid parts that look like mistakes."""
        return self._of(ProblemKind.WARNING)


@dataclass(frozen=True, slots=True)
class CheckResult(_ByKind):
    """The problems of a file."""

    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadResult(_ByKind):
    """A configuration, or the errors in it. ``config`` is None exactly when there is an error."""

    config: Config | None
    problems: tuple[Problem, ...] = ()


def parse_failure(message: str) -> LoadResult:
    """The result of a load that ended with one parse error that has no place in the file."""
    return LoadResult(None, (Problem(ProblemKind.PARSE, "", message),))


def load_file(path: str | FilePath) -> LoadResult:
    """Load and check a file: JSON if its name ends in ``.json``, else YAML.

    A file that cannot be read is a parse error. Raises ``HostTrouble`` where this host has no descriptor or memory for
    the file, or for one that it names: that says nothing about the file.
    """
    try:
        content = _read_file(path)
    except (OSError, ValueError) as error:
        if is_lack(error):
            raise HostTrouble(remedy(error)) from error
        return parse_failure(f"cannot read {os.fspath(path)!r}: {getattr(error, 'strerror', None) or error}")
    return load_text(content, json=os.fspath(path).endswith(".json"))


def _read_file(path: str | FilePath) -> bytes:
    # O_NONBLOCK: opening a named pipe would otherwise wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("not a regular file")
        return file.read(source.MAX_BYTES + 1)


def load_text(text: str | bytes, *, json: bool = False) -> LoadResult:
    """Load and check the text of a file."""
    with source.collector_at_rest():
        return _load(text, json)


def _load(text: str | bytes, is_json: bool) -> LoadResult:
    document, report = source.read(text, is_json=is_json)
    if document is None:
        return LoadResult(None, report.problems(ProblemKind.PARSE))
    values = ROOT.read(document.value, (), report)
    if report.has(ProblemKind.PARSE) or isinstance(values, Bad):
        return LoadResult(None, report.problems(ProblemKind.PARSE))
    config = _build(values["maglev"], report)
    check(config, report)
    problems = report.problems(ProblemKind.SEMANTIC, ProblemKind.WARNING)
    return LoadResult(None if report.has(ProblemKind.SEMANTIC) else config, problems)


def _build(values: Any, report: Report) -> Config:
    checks = make_path("maglev", "healthchecks")
    return Config(
        **_healthchecker(values.get("healthchecker", {})),
        lb=LbConfig(**values.get("vpp", {}).get("lb", {})),
        healthchecks={
            name: _healthcheck(name, item, (checks, name), report)
            for name, item in values.get("healthchecks", {}).items()
        },
        backends={name: Backend(name=name, **item) for name, item in values.get("backends", {}).items()},
        frontends={name: _frontend(name, item) for name, item in values.get("frontends", {}).items()},
    )


def _healthchecker(values: Values) -> Values:
    if "brake" not in values:
        return values
    return values | {"brake": None if values["brake"] is False else Brake(**values["brake"])}


_INTERVAL: Any = HealthCheck.__dataclass_fields__["interval"].default


def _healthcheck(name: str, values: Values, path: Path, report: Report) -> HealthCheck:
    kind: Kind[Any] = values["type"]
    interval = values.get("interval", _INTERVAL)
    filled = {"fast_interval": interval, "down_interval": interval, "timeout": interval}
    if kind.default_port:
        filled["port"] = kind.default_port
    filled.update(values)
    filled["type"] = kind.check_type
    filled["params"] = kind.build(values.get("params", {}), (path, "params"), report)
    return HealthCheck(name=name, **filled)


def _frontend(name: str, values: Values) -> Frontend:
    made: Values = {"pools": tuple(_pool(pool) for pool in values["pools"])}
    if "panic" in values:
        made["panic"] = Panic(**values["panic"])
    return Frontend(name=name, **values | made)


def _pool(values: Values) -> Pool:
    members = tuple(PoolMember(backend, **member) for backend, member in values["members"].items())
    filled = {"resume_up": values.get("min_up", ONE_MEMBER)} | values
    return Pool(**filled | {"members": members})
