"""A loaded configuration as lines of JSON, and back: what the child process sends to the daemon.

Each line holds a kind and at most ``SLICE`` rows of it, so that the reader can give the event loop a turn after every
line. Rows hold plain values only; nothing in a line is executed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import islice
from typing import Any

import orjson

from maglev.base.pace import Pace
from maglev.config.load import LoadResult
from maglev.config.model import (
    Backend,
    Config,
    Frontend,
    HealthCheck,
    LbConfig,
    OnAllDown,
    Panic,
    PanicAction,
    Pool,
    PoolMember,
    Protocol,
    Threshold,
)
from maglev.kinds.registry import KINDS
from maglev.schema import plain
from maglev.schema.problems import Problem, ProblemKind

SLICE = 100
"""Rows in a line: about a quarter of a millisecond of the reader's time."""

Row = list[Any]


def _slices(rows: Iterable[Row]) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while part := list(islice(iterator, SLICE)):
        yield part


def _pack_healthcheck(check: HealthCheck) -> Row:
    return [
        check.name,
        str(check.type),
        plain.pack(check.params),
        check.port,
        check.interval,
        check.fast_interval,
        check.down_interval,
        check.timeout,
        check.rise,
        check.fall,
        plain.pack_address(check.probe_ipv4_src),
        plain.pack_address(check.probe_ipv6_src),
        check.netns,
    ]


def _unpack_healthcheck(row: Row) -> HealthCheck:
    name, word, params, port, interval, fast, down, timeout, rise, fall, source4, source6, netns = row
    kind = KINDS[word]
    return HealthCheck(
        name,
        kind.check_type,
        plain.unpack(kind.params, params),
        port,
        interval,
        fast,
        down,
        timeout,
        rise,
        fall,
        plain.unpack_address(source4),
        plain.unpack_address(source6),
        netns,
    )


def _pack_backend(backend: Backend) -> Row:
    return [backend.name, plain.pack_address(backend.address), backend.healthcheck, backend.enabled]


def _pack_pool(pool: Pool) -> Row:
    thresholds = [pool.min_up.value, pool.min_up.percent, pool.resume_up.value, pool.resume_up.percent]
    return [pool.name, len(pool.members), *thresholds, pool.resume_after]


def _unpack_pool(row: Row, members: Iterator[PoolMember]) -> Pool:
    name, count, min_up, min_percent, resume_up, resume_percent, resume_after = row
    resume = Threshold(resume_up, resume_percent)
    return Pool(name, tuple(islice(members, count)), Threshold(min_up, min_percent), resume, resume_after)


def _pack_frontend(frontend: Frontend) -> Row:
    # The members of all pools are rows of their own, in slices: a single pool may have all 50,000.
    return [
        frontend.name,
        plain.pack_address(frontend.address),
        [_pack_pool(pool) for pool in frontend.pools],
        int(frontend.protocol),
        frontend.port,
        frontend.description,
        frontend.src_ip_sticky,
        frontend.flush_on_down,
        frontend.on_all_down.value,
        frontend.new_flows_table_length,
        frontend.weight_unit,
        None if frontend.panic is None else [frontend.panic.below, frontend.panic.action.value],
        frontend.slow_start,
    ]


def _unpack_frontend(row: Row, members: Iterator[PoolMember]) -> Frontend:
    name, address, pools, protocol, port, description, sticky, flush, on_all_down, length, unit, panic, slow_start = row
    return Frontend(
        name,
        plain.unpack_address(address),
        tuple(_unpack_pool(pool, members) for pool in pools),
        Protocol(protocol),
        port,
        description,
        sticky,
        flush,
        OnAllDown(on_all_down),
        length,
        unit,
        None if panic is None else Panic(panic[0], PanicAction(panic[1])),
        slow_start,
    )


def pack(result: LoadResult) -> Iterator[bytes]:
    """``result`` as lines, each a JSON list of a kind and rows of that kind; the last one is of kind ``end``."""

    def line(kind: str, rows: object) -> bytes:
        return orjson.dumps([kind, rows], option=orjson.OPT_APPEND_NEWLINE)

    problems = [[problem.kind.value, problem.path, problem.message, problem.line, problem.column]
                for problem in result.problems]  # fmt: skip
    for rows in _slices(problems):
        yield line("problems", rows)
    config = result.config
    if config is not None:
        yield line("config", [config.transition_history, config.netns, plain.pack(config.lb)])
        for rows in _slices(_pack_healthcheck(check) for check in config.healthchecks.values()):
            yield line("healthchecks", rows)
        for rows in _slices(_pack_backend(backend) for backend in config.backends.values()):
            yield line("backends", rows)
        for rows in _slices(
            [member.backend, member.weight]
            for frontend in config.frontends.values()
            for pool in frontend.pools
            for member in pool.members
        ):
            yield line("members", rows)
        for rows in _slices(_pack_frontend(frontend) for frontend in config.frontends.values()):
            yield line("frontends", rows)
    yield line("end", [])


async def unpack(lines: AsyncIterator[bytes], known: Config | None = None) -> LoadResult:
    """The inverse of ``pack``; gives the loop a turn after every line.

    Parts that are equal in ``known``, the configuration in force, are taken from there: they are neither made nor
    freed, and a comparison of the two configurations finds the same objects.

    Raises ValueError if the lines end early, or are not what ``pack`` makes.
    """
    known = known or Config()
    known_members: dict[str, PoolMember] = {}
    pace = Pace()
    for frontend in known.frontends.values():
        for pool in frontend.pools:
            for member in pool.members:
                known_members[member.backend] = member
                if pace.due():
                    await pace.rest()
    parts = _Parts(known, known_members)
    try:
        async for text in lines:
            kind, rows = orjson.loads(text)
            if kind == "end":
                return parts.result()
            parts.take(kind, rows)
            await asyncio.sleep(0)
    except (TypeError, IndexError, KeyError) as error:
        raise ValueError(f"a line that makes no sense: {error}") from error
    raise ValueError("the answer ends early")


class _Parts:
    """The parts of a configuration that have arrived, until the last line."""

    def __init__(self, known: Config, known_members: dict[str, PoolMember]) -> None:
        self._known = known
        self._known_members = known_members
        self._problems: list[Problem] = []
        self._head: Row | None = None
        self._healthchecks: dict[str, HealthCheck] = {}
        self._backends: dict[str, Backend] = {}
        # Frontends come after the members of all their pools, and take theirs from this iterator in order.
        self._members: list[PoolMember] = []
        self._unused = iter(self._members)
        self._frontends: dict[str, Frontend] = {}

    def take(self, kind: str, rows: list[Any]) -> None:
        """Add the rows of one line. Raises ValueError for a kind of line that ``pack`` does not make."""
        if kind == "problems":
            self._problems += [Problem(ProblemKind(row[0]), *row[1:]) for row in rows]
        elif kind == "config":
            self._head = rows
        elif kind == "healthchecks":
            self._take_healthchecks(rows)
        elif kind == "backends":
            self._take_backends(rows)
        elif kind == "members":
            self._take_members(rows)
        elif kind == "frontends":
            self._take_frontends(rows)
        else:
            raise ValueError(f"a line of unknown kind {kind!r}")

    def _take_healthchecks(self, rows: list[Row]) -> None:
        for row in rows:
            check = _unpack_healthcheck(row)
            was = self._known.healthchecks.get(check.name)
            self._healthchecks[check.name] = was if was == check else check

    def _take_backends(self, rows: list[Row]) -> None:
        known, backends = self._known.backends, self._backends
        for row in rows:
            backend = known.get(row[0])
            if backend is None or _pack_backend(backend) != row:
                name, address, healthcheck, enabled = row
                backend = Backend(name, plain.unpack_address(address), healthcheck, enabled)
            backends[backend.name] = backend

    def _take_members(self, rows: list[Row]) -> None:
        known, members = self._known_members, self._members
        for name, weight in rows:
            same = known.get(name)
            members.append(same if same and same.weight == weight else PoolMember(name, weight))

    def _take_frontends(self, rows: list[Row]) -> None:
        for row in rows:
            frontend = _unpack_frontend(row, self._unused)
            before = self._known.frontends.get(frontend.name)
            self._frontends[frontend.name] = before if before == frontend else frontend

    def result(self) -> LoadResult:
        """The configuration with its warnings, or the errors of the file if no configuration was sent."""
        if self._head is None:
            return LoadResult(None, tuple(self._problems))
        history, netns, lb = self._head
        config = Config(history, netns, plain.unpack(LbConfig, lb), self._healthchecks, self._backends, self._frontends)
        return LoadResult(config, tuple(self._problems))
