"""A loaded configuration as lines of JSON, and back: what the child process sends to the daemon.

Each line holds a kind and at most ``SLICE`` rows of it, so that the reader can give the event loop a turn after every
line. Rows hold plain values only; nothing in a line is executed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address
from itertools import islice
from typing import Any

import orjson

from maglev.base.pace import Pace
from maglev.base.states import CheckType
from maglev.config.load import LoadResult
from maglev.config.model import (
    Backend,
    Config,
    Frontend,
    HealthCheck,
    HttpParams,
    IcmpParams,
    IPAddress,
    LbConfig,
    OnAllDown,
    Pool,
    PoolMember,
    Protocol,
    Prune,
    TcpMode,
    TcpParams,
    TlsParams,
)
from maglev.config.problems import Problem, ProblemKind

SLICE = 100
"""Rows in a line: about a quarter of a millisecond of the reader's time."""

Row = list[Any]


def _slices(rows: Iterable[Row]) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while part := list(islice(iterator, SLICE)):
        yield part


# Addresses: IPv4 as a number, IPv6 as hexadecimal text (JSON numbers end at 64 bits). Both are read ten times faster
# than the written form.


def _pack_address(address: IPAddress | None) -> int | str | None:
    if address is None:
        return None
    return int(address) if isinstance(address, IPv4Address) else f"{int(address):x}"


def _unpack_address(packed: int | str | None) -> Any:
    if packed is None:
        return None
    return IPv4Address(packed) if isinstance(packed, int) else IPv6Address(int(packed, 16))


def _pack_tls(tls: TlsParams | None) -> Row | None:
    return None if tls is None else [tls.server_name, tls.insecure_skip_verify, tls.ca_file]


def _unpack_tls(packed: Row | None) -> TlsParams | None:
    return None if packed is None else TlsParams(*packed)


def _pack_params(params: IcmpParams | TcpParams | HttpParams) -> Row:
    if isinstance(params, IcmpParams):
        return [params.size]
    if isinstance(params, TcpParams):
        return [params.mode.value, _pack_tls(params.tls)]
    return [
        params.path,
        params.method,
        params.host,
        params.response_codes,
        params.response_regexp,
        _pack_tls(params.tls),
    ]


def _unpack_params(kind: CheckType, packed: Row) -> IcmpParams | TcpParams | HttpParams:
    if kind is CheckType.ICMP:
        return IcmpParams(*packed)
    if kind is CheckType.TCP:
        mode, tls = packed
        return TcpParams(TcpMode(mode), _unpack_tls(tls))
    path, method, host, codes, regexp, tls = packed
    return HttpParams(path, method, host, tuple((low, high) for low, high in codes), regexp, _unpack_tls(tls))


def _pack_healthcheck(check: HealthCheck) -> Row:
    return [
        check.name,
        int(check.type),
        _pack_params(check.params),
        check.port,
        check.interval,
        check.fast_interval,
        check.down_interval,
        check.timeout,
        check.rise,
        check.fall,
        _pack_address(check.probe_ipv4_src),
        _pack_address(check.probe_ipv6_src),
        check.netns,
    ]


def _unpack_healthcheck(row: Row) -> HealthCheck:
    name, number, params, port, interval, fast, down, timeout, rise, fall, source4, source6, netns = row
    kind = CheckType(number)
    return HealthCheck(
        name,
        kind,
        _unpack_params(kind, params),
        port,
        interval,
        fast,
        down,
        timeout,
        rise,
        fall,
        _unpack_address(source4),
        _unpack_address(source6),
        netns,
    )


def _pack_lb(lb: LbConfig) -> Row:
    return [
        _pack_address(lb.ipv4_src_address),
        _pack_address(lb.ipv6_src_address),
        lb.sticky_buckets_per_core,
        lb.flow_timeout,
        lb.sync_interval,
        lb.startup_min_delay,
        lb.startup_max_delay,
        lb.max_stall,
        lb.max_duty,
        lb.prune.value,
    ]


def _unpack_lb(row: Row) -> LbConfig:
    source4, source6, buckets, flow_timeout, interval, min_delay, max_delay, stall, duty, prune = row
    return LbConfig(
        _unpack_address(source4),
        _unpack_address(source6),
        buckets,
        flow_timeout,
        interval,
        min_delay,
        max_delay,
        stall,
        duty,
        Prune(prune),
    )


def _pack_backend(backend: Backend) -> Row:
    return [backend.name, _pack_address(backend.address), backend.healthcheck, backend.enabled]


def _pack_frontend(frontend: Frontend) -> Row:
    # Members follow by themselves, in slices: a single pool may have all 50,000.
    return [
        frontend.name,
        _pack_address(frontend.address),
        [[pool.name, len(pool.members)] for pool in frontend.pools],
        int(frontend.protocol),
        frontend.port,
        frontend.description,
        frontend.src_ip_sticky,
        frontend.flush_on_down,
        frontend.on_all_down.value,
        frontend.new_flows_table_length,
        frontend.weight_unit,
    ]


def _unpack_frontend(row: Row, members: Iterator[PoolMember]) -> Frontend:
    name, address, pools, protocol, port, description, sticky, flush, on_all_down, length, unit = row
    return Frontend(
        name,
        _unpack_address(address),
        tuple(Pool(pool, tuple(islice(members, count))) for pool, count in pools),
        Protocol(protocol),
        port,
        description,
        sticky,
        flush,
        OnAllDown(on_all_down),
        length,
        unit,
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
        yield line("config", [config.transition_history, config.netns, _pack_lb(config.lb)])
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
    problems: list[Problem] = []
    head: Row | None = None
    healthchecks: dict[str, HealthCheck] = {}
    backends: dict[str, Backend] = {}
    members: list[PoolMember] = []
    unused = iter(members)
    frontends: dict[str, Frontend] = {}
    try:
        async for text in lines:
            kind, rows = orjson.loads(text)
            if kind == "problems":
                problems += [Problem(ProblemKind(row[0]), *row[1:]) for row in rows]
            elif kind == "config":
                head = rows
            elif kind == "healthchecks":
                for row in rows:
                    check = _unpack_healthcheck(row)
                    was = known.healthchecks.get(check.name)
                    healthchecks[check.name] = was if was == check else check
            elif kind == "backends":
                for row in rows:
                    backend = known.backends.get(row[0])
                    if backend is None or _pack_backend(backend) != row:
                        name, address, healthcheck, enabled = row
                        backend = Backend(name, _unpack_address(address), healthcheck, enabled)
                    backends[backend.name] = backend
            elif kind == "members":
                for name, weight in rows:
                    same = known_members.get(name)
                    members.append(same if same and same.weight == weight else PoolMember(name, weight))
            elif kind == "frontends":
                for row in rows:
                    frontend = _unpack_frontend(row, unused)
                    before = known.frontends.get(frontend.name)
                    frontends[frontend.name] = before if before == frontend else frontend
            elif kind == "end":
                if head is None:
                    return LoadResult(None, tuple(problems))
                history, netns, lb = head
                config = Config(history, netns, _unpack_lb(lb), healthchecks, backends, frontends)
                return LoadResult(config, tuple(problems))
            else:
                raise ValueError(f"a line of unknown kind {kind!r}")
            await asyncio.sleep(0)
    except (TypeError, IndexError) as error:
        raise ValueError(f"a line that makes no sense: {error}") from error
    raise ValueError("the answer ends early")
