"""Loading in a child process: ``python -m maglev.config.child FILE`` loads, the parent takes the result in slices.

With ``--only-problems`` in front of the file the configuration itself is not sent.

Loading 50,000 backends takes a second of interpreter time, in which an event loop would deliver no verdict; and the
memory it takes is not given back. The child does it elsewhere. Its answer is lines of JSON, each of which the parent
turns into objects within a few milliseconds: nothing of the child's is executed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address
from itertools import islice
from pathlib import Path as FilePath
from typing import IO, Any

import orjson

from maglev.config.load import LoadResult, load_file, parse_failure
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
from maglev.pace import Pace
from maglev.states import CheckType

SLICE = 100  # rows a line: about a quarter of a millisecond of the parent's time
ONLY_PROBLEMS = "--only-problems"
LONGEST_LINE = 8 << 20  # bytes; the longest row, a problem with all its text, has a few thousand
END_SECONDS = 5.0  # that a killed process may take to end
_STDERR_KEPT = 2000  # bytes of the child's last words that its failure is reported with

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

    What is the same in ``known``, the configuration in force, is taken from there: it is neither made nor freed, and
    who compares the two finds the same object.

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


async def load(
    path: str | FilePath, *, deadline: float, only_problems: bool = False, known: Config | None = None
) -> LoadResult:
    """Load ``path`` in a child; see ``load_in_child`` and ``check_in_child`` of ``maglev.config.load``."""
    # The child imports from where this process does, and never from its working directory (-P).
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(entry for entry in sys.path if entry))
    try:
        # Not by the event loop, which forks: this process is large, and the loop would be held until the child has
        # got its turn. Popen needs a tenth of that, as the child borrows our memory until it is another program.
        process = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-P", "-m", "maglev.config.child", *([ONLY_PROBLEMS] * only_problems), os.fspath(path)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
        )  # fmt: skip
    except OSError as error:
        return parse_failure(f"cannot start the process that loads the configuration: {error.strerror}")
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(_end, process)
        answer = await _reader(process.stdout, stack)
        last_words = asyncio.create_task(_tail(await _reader(process.stderr, stack)))
        stack.callback(last_words.cancel)
        try:
            async with asyncio.timeout(deadline):
                try:
                    return await unpack(answer, known)
                except ValueError as error:
                    # Says more than the broken answer does, if it died.
                    status = await _end(process)
                    said = (await last_words).strip().rpartition("\n")[2]
                    return parse_failure(
                        f"the process that loads the configuration failed ({error}; status {status}"
                        f"{'; ' + said if said else ''})"
                    )
        except TimeoutError:
            return parse_failure(f"loading took longer than {deadline:g} s, and was given up")


async def _reader(pipe: IO[bytes] | None, stack: contextlib.AsyncExitStack) -> asyncio.StreamReader:
    """What comes out of a pipe; it is closed with ``stack``."""
    reader = asyncio.StreamReader(limit=LONGEST_LINE)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), pipe
    )
    stack.callback(transport.close)
    return reader


async def _end(process: subprocess.Popen[bytes]) -> int:
    """Kill it if it still runs, and wait for its end; returns its status."""
    if (status := process.poll()) is not None:
        return status
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    process.kill()
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        # No descriptor left to see its end by: Popen reaps it when the next process starts.
        return -signal.SIGKILL
    loop.add_reader(descriptor, ended.set)
    try:
        async with asyncio.timeout(END_SECONDS):
            await ended.wait()
    except TimeoutError:
        # It sleeps in the kernel, on a disk that hangs: reloads must not wait for that.
        return -signal.SIGKILL
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return process.wait()


async def _tail(stream: asyncio.StreamReader) -> str:
    kept = b""
    while chunk := await stream.read(4096):
        kept = (kept + chunk)[-_STDERR_KEPT:]
    return kept.decode(errors="replace")


def main() -> int:
    """The child: load the file named on the command line, write the lines to standard output."""
    arguments = sys.argv[1:]
    only_problems = arguments[:1] == [ONLY_PROBLEMS]
    if len(arguments) != 1 + only_problems:
        print(f"usage: python -m maglev.config.child [{ONLY_PROBLEMS}] FILE", file=sys.stderr)
        return 2
    # Verdicts and the dataplane go first, where a sandbox allows us to say so.
    with contextlib.suppress(OSError):
        os.nice(10)
    out = sys.stdout.buffer
    try:
        result = load_file(arguments[-1])
        for line in pack(LoadResult(None, result.problems) if only_problems else result):
            out.write(line)
        out.flush()
    except BrokenPipeError:
        # The parent has given up. Nothing more can be told, and the interpreter would try once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
