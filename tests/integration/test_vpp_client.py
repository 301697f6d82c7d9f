"""The client against a stand-in that misbehaves: a clear error, a counter, and a new connection."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from maglev.base.clock import SystemClock
from maglev.base.errors import Unavailable
from maglev.vpp.state.reader import StateReader
from maglev.vpp.wire.client import Refused, Timing, VppClient
from maglev.vpp.wire.messages import ProtocolError, VipKey, WeightCall, pack_as_add, pack_vip_add, pack_vip_dump
from maglev.vpp.wire.socketlock import SocketLock
from maglev.vpp.wire.transport import MOST_REPLY, ConnectionLost, set_weight
from maglev.vppsim.api import Identity
from maglev.vppsim.server import StandIn
from tests.helpers.vpprig import HASTY, eventually, weights

DEADLINE = 10.0
NOBODY = 65534
VIP = VipKey.parse("192.0.2.1/32", 6, 80)
AS = b"\x0a\x00\x00\x01"


@asynccontextmanager
async def stand_in(path: Path, **options: object) -> AsyncIterator[StandIn]:
    server = StandIn(path, **options)  # type: ignore[arg-type]
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


class Watched(VppClient):
    """A client whose comings and goings can be waited for."""

    def __init__(self, path: Path, timing: Timing = HASTY) -> None:
        super().__init__(str(path), SystemClock(), timing=timing, chance=random.Random(1))
        self.events: asyncio.Queue[str] = asyncio.Queue()
        self.on_connect.append(lambda: self.events.put_nowait("connected"))
        self.on_disconnect.append(self.events.put_nowait)

    async def event(self) -> str:
        async with asyncio.timeout(DEADLINE):
            return await self.events.get()


@asynccontextmanager
async def running(path: Path, timing: Timing = HASTY, *, connected: bool = True) -> AsyncIterator[Watched]:
    client = Watched(path, timing)
    task = asyncio.create_task(client.run())
    try:
        if connected:
            assert await client.event() == "connected"
        yield client
    finally:
        await client.close()
        async with asyncio.timeout(DEADLINE):
            await task


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "api.sock"


async def make_vip(client: VppClient) -> None:
    await client.call("lb_add_del_vip_v2", pack_vip_add(VIP, 0, 16))
    await client.call("lb_add_del_as_v2", pack_as_add(VIP, AS, 0))


async def test_who_is_at_the_other_end(path: Path) -> None:
    async with stand_in(path, identity=Identity(version="26.10-test", workers=3)), running(path) as client:
        info = client.info()
        assert info is not None
        assert (info.version, info.workers, info.problem) == ("26.10-test", 3, "")
        assert info.pid > 0
        assert client.usable


async def test_a_vpp_without_weights_is_told_about_and_left_alone(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with stand_in(path, with_weights=False) as server, running(path, connected=False) as client:
        await eventually(lambda: client.info() is not None)
        assert client.connected
        assert not client.usable
        assert "cannot set weights" in client.problem
        assert "lb_as_set_weight_2d89bdbd" in client.problem
        assert client.excuse.startswith("VPP cannot be driven: its lb plugin")
        assert "cannot set weights" in caplog.text
        assert not [name for name in server.journal.counts if name.startswith("lb_")]


async def test_replies_of_many_calls_come_back_in_order_through_a_bounded_window(path: Path) -> None:
    async with stand_in(path) as server, running(path) as client:
        await make_vip(client)
        requests = [set_weight(WeightCall(VIP, AS, n % 101, False)) for n in range(1000)]
        requests.insert(500, set_weight(WeightCall(VIP, b"\x0a\x00\x00\x02", 1, False)))
        replies = await client.send(requests)
        assert [n for n, reply in enumerate(replies) if reply.retval == -6] == [500]
        assert len(replies) == 1001
        assert weights(server) == {"10.0.0.1": 999 % 101}
        assert client.api_total["lb_as_set_weight", "sent", "ok"] == 1001
        assert client.api_total["lb_as_set_weight_reply", "received", "ok"] == 1000
        assert client.api_total["lb_as_set_weight_reply", "received", "-6"] == 1


async def test_a_refusal_is_an_error_with_its_words(path: Path) -> None:
    async with stand_in(path), running(path) as client:
        with pytest.raises(Refused, match=r"lb_add_del_as_v2: no such entry \(-6\)"):
            await client.call("lb_add_del_as_v2", pack_as_add(VIP, AS, 1))


async def test_a_call_without_an_answer_ends_the_connection_and_another_is_made(path: Path) -> None:
    async with stand_in(path) as server, running(path, Timing(deadline=0.2, ping=60, backoff=0.01)) as client:
        server.faults.mute = 1
        with pytest.raises(ConnectionLost, match=r"no answer to lb_conf_get within 0\.2 s"):
            await client.call("lb_conf_get")
        assert "no answer" in await client.event()
        assert client.api_total["lb_conf_get", "sent", "timeout"] == 1
        assert await client.event() == "connected"
        await client.call("lb_conf_get")


async def test_a_vpp_that_falls_silent_is_noticed_by_the_ping(path: Path) -> None:
    async with stand_in(path) as server, running(path, Timing(deadline=0.2, ping=0.1, backoff=0.01)) as client:
        server.hanging = True
        assert "no answer to control_ping" in await client.event()
        server.hanging = False
        assert await client.event() == "connected"


async def test_every_pending_call_fails_at_once_when_the_connection_dies(path: Path) -> None:
    async with stand_in(path) as server, running(path, Timing(deadline=60, ping=60, backoff=0.01)) as client:
        server.hanging = True
        calls = [asyncio.create_task(client.call("lb_conf_get")) for _ in range(20)]
        dump = asyncio.create_task(client.dump("lb_vip_dump", pack_vip_dump()))
        await asyncio.sleep(0)
        server.drop_connections()
        async with asyncio.timeout(DEADLINE):
            results = await asyncio.gather(*calls, dump, return_exceptions=True)
        assert all(isinstance(result, ConnectionLost) for result in results)


async def test_calls_without_a_connection_say_why(path: Path) -> None:
    async with running(path, connected=False) as client:
        with pytest.raises(Unavailable, match="VPP is away"):
            await client.call("lb_conf_get")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("wrong_context", "with context"),
        ("unknown_message", "is not in the table"),
        ("garble", "announces a message"),
    ],
)
async def test_nonsense_is_a_clear_error_a_counter_and_a_new_connection(path: Path, fault: str, words: str) -> None:
    async with stand_in(path) as server, running(path, Timing(deadline=2, ping=60, backoff=0.01)) as client:
        setattr(server.faults, fault, 1)
        with pytest.raises(ConnectionLost, match=f"VPP sent nonsense: .*{words}"):
            await client.call("show_version")
        assert words in await client.event()
        assert client.api_total["?", "received", "malformed"] == 1
        assert await client.event() == "connected"


async def test_a_reply_that_is_a_byte_short_ends_the_connection_too(path: Path) -> None:
    async with stand_in(path) as server, running(path, Timing(deadline=2, ping=60, backoff=0.01)) as client:
        server.faults.truncate = 1
        with pytest.raises(ProtocolError):
            await StateReader(client).conf()
        assert "lb_conf_get_reply has" in await client.event()
        assert await client.event() == "connected"


async def test_the_socket_may_come_later(path: Path) -> None:
    async with running(path, connected=False) as client:
        await eventually(lambda: "No such file" in client.problem)
        async with stand_in(path):
            assert await client.event() == "connected"


async def test_a_second_daemon_is_told_that_this_vpp_is_taken_and_takes_over_when_the_first_ends(path: Path) -> None:
    async with stand_in(path):
        async with running(path), running(path, connected=False) as second:
            await eventually(lambda: "another daemon (pid" in second.problem)
            assert not second.connected
        async with running(path) as third:
            assert third.usable


async def test_vpp_is_told_goodbye(path: Path) -> None:
    async with stand_in(path) as server:
        async with running(path):
            pass
        assert server.journal.counts["sockclnt_delete"] == 1


async def test_a_connection_that_is_cut_anywhere_in_a_dump_never_yields_half_an_answer(path: Path) -> None:
    async with stand_in(path) as server, running(path) as client:
        await make_vip(client)
        whole = len(await client.dump("lb_vip_dump", pack_vip_dump()))
        for offset in range(0, 90, 7):
            server.faults.cut_sent = offset
            with pytest.raises(ConnectionLost):
                await client.dump("lb_vip_dump", pack_vip_dump())
            server.faults.cut_sent = None
            await client.event()
            assert await client.event() == "connected"
            assert len(await client.dump("lb_vip_dump", pack_vip_dump())) == whole


async def test_a_lost_connection_is_told_with_its_reason(path: Path) -> None:
    async with stand_in(path) as server, running(path) as client:
        server.drop_connections()
        assert await client.event() == "VPP closed the connection"
        assert await client.event() == "connected"
        assert client.connects == 2


def test_a_daemon_that_could_not_make_its_lock_beside_the_socket_still_keeps_others_off(tmp_path: Path) -> None:
    socket = str(tmp_path / "run" / "api.sock")
    (tmp_path / "common").mkdir(mode=0o755)
    common = [str(tmp_path / "common")]
    unprivileged, root = SocketLock(socket, common), SocketLock(socket, common)
    assert unprivileged.acquire() == ""  # there is no such directory, as if it must not be written to
    (fallback,) = unprivileged.paths
    try:
        (tmp_path / "run").mkdir()
        assert f"pid {os.getpid()}) drives this VPP: it holds {fallback}" in root.acquire()
        unprivileged.release()
        assert root.acquire() == ""
        assert root.paths == [f"{socket}.maglevd-lock", fallback]
        assert "drives this VPP" in unprivileged.acquire()
    finally:
        unprivileged.release()
        root.release()


STRANGER = f"""
import fcntl, os, sys
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
fd = os.open(sys.argv[1], os.O_RDONLY | (os.O_CREAT if sys.argv[2:] else 0), 0o666)
if sys.argv[2:]:
    os.truncate(sys.argv[1], 0)
    open(sys.argv[1], "w").write("4242\\n")
fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def stranger(*arguments: str) -> Iterator[bool]:
    """User ``nobody`` holds a lock on a file; False where that failed."""
    child = subprocess.Popen(
        [sys.executable, "-c", STRANGER, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert child.stdout is not None
        yield child.stdout.readline() == b"held\n"
    finally:
        child.communicate(timeout=DEADLINE)


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory below which strangers see everything that its modes allow."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def test_a_stranger_who_holds_a_predictable_name_in_a_common_directory_changes_nothing(
    public: Path, caplog: pytest.LogCaptureFixture
) -> None:
    common = public / "lock"
    common.mkdir()
    os.chmod(common, 0o1777)
    socket = str(public / "none" / "api.sock")
    mine = SocketLock(socket, [str(common)])
    name = mine.candidates()[1]
    with stranger(name, "make") as held:
        assert held
        assert mine.acquire() == ""
        assert mine.paths == []
        assert f"{common}: strangers can write to it" in mine.missing
        assert f"VPP at {socket} is driven without a lock" in caplog.text
        caplog.clear()
        assert mine.acquire() == ""
        assert not caplog.text  # said once


@pytest.mark.parametrize("beside", [True, False])
def test_a_stranger_cannot_hold_the_file_that_a_daemon_made(public: Path, beside: bool) -> None:
    (public / ("run" if beside else "common")).mkdir(mode=0o755)
    lock = SocketLock(str(public / "run" / "api.sock"), [str(public / "common")])
    assert lock.acquire() == ""
    (path,) = lock.paths
    lock.release()
    with stranger(path) as held:
        assert not held
        assert (lock.acquire(), lock.paths) == ("", [path])
    lock.release()


def test_a_file_of_an_older_daemon_that_a_stranger_holds_is_no_lock(public: Path) -> None:
    lock = SocketLock(str(public / "api.sock"), [])
    path = Path(lock.candidates()[0])
    path.write_text("1\n")
    os.chmod(path, 0o644)
    with stranger(str(path)) as held:
        assert held
        for _ in range(2):
            assert (lock.acquire(), lock.paths) == ("", [])
            assert "somebody holds it, and strangers can open it" in lock.missing
    assert (lock.acquire(), lock.paths) == ("", [str(path)])
    assert path.stat().st_mode & 0o777 == 0o600
    lock.release()


def test_what_lies_in_the_place_of_a_lock_is_neither_waited_for_nor_followed(tmp_path: Path) -> None:
    lock = SocketLock(str(tmp_path / "api.sock"), [])
    path = Path(lock.candidates()[0])
    os.mkfifo(path)
    assert (lock.acquire(), lock.missing) == ("", f"{path}: not a regular file")
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    assert lock.acquire() == ""
    assert lock.paths == []
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("written", ["", "x" * 40, "12 \x1b[2J", "9" * 20])
def test_what_a_lock_says_of_its_holder_is_a_number_or_unknown(tmp_path: Path, written: str) -> None:
    first, second = (SocketLock(str(tmp_path / "api.sock"), []) for _ in range(2))
    assert first.acquire() == ""
    Path(first.paths[0]).write_text(written)
    assert "another daemon (pid unknown) drives this VPP" in second.acquire()
    first.release()


def test_daemons_of_different_users_that_may_both_drive_vpp_meet(public: Path) -> None:
    socket = public / "api.sock"
    socket.touch()
    os.chown(socket, 0, 4321)
    os.chmod(socket, 0o660)
    first = SocketLock(str(socket), [])
    assert first.acquire() == ""
    status = os.stat(first.paths[0])
    assert (status.st_gid, status.st_mode & 0o777) == (4321, 0o640)
    first.release()


def says(server: StandIn, command: str, output: str) -> None:
    """The stand-in's CLI answers one command with something else."""
    honest = server.api.cli.execute

    def execute(text: str) -> tuple[int, str]:
        return (0, output) if text == command else honest(text)

    server.api.cli.execute = execute  # type: ignore[method-assign]


@pytest.mark.parametrize("seconds", ["9" * 400, "1" * 6000, "9000000001", "99999999999.5"])
async def test_a_clock_that_makes_no_sense_is_a_protocol_error_and_a_new_connection(path: Path, seconds: str) -> None:
    async with stand_in(path) as server:
        honest = server.api.cli.execute
        says(server, "show clock", f"Time now {seconds}, reftime 1.0")
        async with running(path, connected=False) as client:
            await eventually(lambda: "show clock: the number" in client.problem)
            server.api.cli.execute = honest  # type: ignore[method-assign]
            assert await client.event() == "connected"


@pytest.mark.parametrize(
    "lines",
    [
        " ip4-gre4 [{huge}] 192.0.2.1/32\r\n",
        " ip4-gre4 [1] 192.0.2.1/32\r\n  new_size:16\r\n  protocol:6 port:{huge}\r\n",
        " ip4-gre4 [1] 192.0.2.1/32\r\n  new_size:16\r\n  protocol:{huge} port:80\r\n",
        " ip4-gre4 [1] 192.0.2.1/32\r\n  new_size:16\r\n  protocol:6 port:65536\r\n",
        " ip4-gre4 [4294967296] 192.0.2.1/32\r\n",
    ],
)
async def test_numbers_that_no_vip_has_end_the_connection_and_nothing_else(path: Path, lines: str) -> None:
    async with stand_in(path) as server, running(path) as client:
        says(server, "show lb vips verbose", lines.format(huge="7" * 6000))
        with pytest.raises(ProtocolError, match=r"the number .* makes sense"):
            await StateReader(client).verbose()
        assert "VPP sent nonsense: the number" in await client.event()
        assert await client.event() == "connected"


async def test_a_cli_output_without_bound_is_refused_before_it_is_read(path: Path) -> None:
    async with stand_in(path) as server, running(path) as client:
        says(server, "show lb vips verbose", "x" * (MOST_REPLY + 1))
        with pytest.raises(ConnectionLost, match="announces a message of"):
            await StateReader(client).verbose()
        assert client.api_total["?", "received", "malformed"] == 1
        assert "announces a message of" in await client.event()
        assert await client.event() == "connected"
