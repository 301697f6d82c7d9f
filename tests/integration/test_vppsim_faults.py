"""The stand-in misbehaves exactly as it is told, and never by accident."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maglev.vpp.wire import messages
from maglev.vpp.wire.messages import MESSAGES, VipKey
from maglev.vppsim import __main__ as program
from maglev.vppsim import inspect
from maglev.vppsim.control import ControlSocket
from maglev.vppsim.server import SOCKET_CLIENT, StandIn
from tests.helpers.vppsim import DEADLINE, RawClient, StoppedClock, connected, stand_in

WEB = VipKey.parse("192.0.2.1/32", 6, 80)
VIP: dict[str, Any] = {"pfx": WEB.prefix, "protocol": 6, "port": 80}


async def _ping(client: RawClient) -> None:
    assert (await client.values("control_ping"))["retval"] == 0


async def _weight(client: RawClient, weight: int, context: int | None = None) -> int:
    return client.request("lb_as_set_weight", context=context, **VIP, as_address=bytes([10, 0, 0, 1]), weight=weight)


async def _program(client: RawClient) -> None:
    assert await client.values("lb_add_del_vip_v2", **VIP, new_flows_table_length=64) == {"retval": 0}
    assert await client.values("lb_add_del_as_v2", **VIP, as_address=bytes([10, 0, 0, 1])) == {"retval": 0}


# --- what VPP does with what it does not understand


async def test_requests_that_vpp_drops_in_silence_are_counted_and_do_no_harm(tmp_path: Path) -> None:
    async with stand_in(tmp_path / "api.sock") as server, connected(server.path) as client:
        assert client.handshake is not None
        ping = client.handshake.id_of("control_ping")
        assert ping is not None
        client.send(messages.request(60000, client.handshake.client_index, 1))
        client.send(messages.request(ping, 12345, 2))
        client.request("lb_conf", b"short")
        client.request("memclnt_keepalive")
        await _ping(client)
        assert server.ignored == {"unknown message": 1, "wrong client index": 1, "malformed": 1}


async def test_a_request_that_is_too_long_is_taken(tmp_path: Path) -> None:
    async with stand_in(tmp_path / "api.sock") as server, connected(server.path) as client:
        assert [name for name, _ in await client.call("control_ping", b"x" * 40)] == ["control_ping_reply"]


async def test_nobody_is_answered_before_the_handshake(tmp_path: Path) -> None:
    async with stand_in(tmp_path / "api.sock") as server:
        client = await RawClient.connect(server.path, shake=False)
        client.send(messages.request(server.api.ids["control_ping"], SOCKET_CLIENT | 1, 1))
        client.send(messages.pack_handshake("late", 5))
        assert messages.unpack_handshake_reply(await client.body()).context == 5
        assert server.ignored == {"wrong client index": 1}
        await client.close()


async def test_a_frame_of_nonsense_ends_the_connection_and_no_other(tmp_path: Path) -> None:
    async with stand_in(tmp_path / "api.sock") as server, connected(server.path) as good:
        bad = await RawClient.connect(server.path)
        bad.send(b"\xff" * 16)
        await bad.ended()
        await bad.close()
        await _ping(good)
        assert server.ignored == {"bad frame": 1}


async def test_goodbye_is_answered_and_ends_the_connection(tmp_path: Path) -> None:
    async with stand_in(tmp_path / "api.sock") as server, connected(server.path) as client:
        assert await client.values("sockclnt_delete") == {"response": 1}
        await client.ended()
        assert not server.connections


async def test_a_call_that_kills_vpp_drops_everybody_and_leaves_it_empty(tmp_path: Path) -> None:
    async with stand_in(tmp_path / "api.sock") as server, connected(server.path) as client:
        await _program(client)
        client.request("lb_add_del_vip_v2", **{**VIP, "port": 81}, new_flows_table_length=0)
        await client.ended()
        assert server.crashes == ["a VIP with a new-flow table of length 0"]
        async with connected_again(server) as again:
            assert await again.call("lb_vip_dump") == []


def connected_again(server: StandIn) -> Any:
    """A client of the stand-in once it listens again."""
    return _Again(server)


class _Again:
    def __init__(self, server: StandIn) -> None:
        self._server = server
        self._client: RawClient | None = None

    async def __aenter__(self) -> RawClient:
        async with asyncio.timeout(DEADLINE):
            await self._server.restarted()
        self._client = await RawClient.connect(self._server.path)
        return self._client

    async def __aexit__(self, *_: object) -> None:
        assert self._client is not None
        await self._client.close()


# --- what it does when told


async def test_a_refusal_strikes_the_nth_call_so_many_times(tmp_path: Path) -> None:
    async with stand_in(tmp_path / "api.sock") as server, connected(server.path) as client:
        await _program(client)
        assert server.control.execute("refuse lb_as_set_weight -12 nth 2 times 2") == (0, "")
        found = []
        for weight in range(4):
            await _weight(client, weight)
            _, _, payload = await client.reply()
            found.append(messages.unpack_retval(payload))
        assert found == [0, -12, -12, 0]
        assert [entry.retval for entry in server.journal.calls("lb_as_set_weight")] == found
        (server_as,) = server.model.ases_of(next(server.model.visible_vips()))
        assert server_as.weight == 3


async def test_a_delay_holds_up_all_clients_in_the_order_of_their_calls(tmp_path: Path) -> None:
    clock = StoppedClock()
    async with (
        stand_in(tmp_path / "api.sock", clock=clock) as server,
        connected(server.path) as first,
        connected(server.path) as second,
    ):
        await _program(first)
        server.faults.delays["lb_as_set_weight"] = 0.05
        for weight in range(3):
            await _weight(first, weight)
        for _ in range(3):
            assert (await first.reply())[0] == "lb_as_set_weight_reply"
        await _ping(second)
        assert clock.slept == [0.05] * 3


async def test_more_waits_behind_a_slow_call_than_is_read(tmp_path: Path) -> None:
    async with stand_in(tmp_path / "api.sock") as server, connected(server.path) as client:
        server.faults.delays["control_ping"] = 0.001
        for _ in range(10_000):
            client.request("control_ping")
        for _ in range(10_000):
            assert (await client.reply())[0] == "control_ping_reply"


@pytest.mark.parametrize("cut", [1, 15, 16, 17, 40, 65])
async def test_the_connection_is_cut_after_any_byte_of_a_request(tmp_path: Path, cut: int) -> None:
    async with stand_in(tmp_path / "api.sock") as server, connected(server.path) as client:
        await _program(client)
        server.faults.cut_received = cut
        await _weight(client, 5)
        await client.ended()
        (server_as,) = server.model.ases_of(next(server.model.visible_vips()))
        assert server_as.weight == 100
        assert server.faults.cut_received is None


@pytest.mark.parametrize("cut", [0, 1, 16, 25])
async def test_the_connection_is_cut_after_any_byte_of_a_reply(tmp_path: Path, cut: int) -> None:
    async with stand_in(tmp_path / "api.sock") as server, connected(server.path) as client:
        await _program(client)
        server.faults.cut_sent = cut
        await _weight(client, 5)
        with pytest.raises(EOFError):
            await client.reply()
        (server_as,) = server.model.ases_of(next(server.model.visible_vips()))
        assert server_as.weight == 5


async def test_a_mute_vpp_does_what_it_is_told_and_says_nothing(tmp_path: Path) -> None:
    async with stand_in(tmp_path / "api.sock") as server, connected(server.path) as client:
        await _program(client)
        server.faults.mute = 1
        await _weight(client, 5)
        await _ping(client)
        assert [entry.retval for entry in server.journal.calls("lb_as_set_weight")] == [0]


async def test_a_mute_vpp_does_not_say_that_it_holds_nothing(tmp_path: Path) -> None:
    """Details without the ping's reply are waited for in vain; a reply without the details would be a lie."""
    async with stand_in(tmp_path / "api.sock") as server, connected(server.path) as client:
        await _program(client)
        server.faults.mute = 1
        client.request("lb_vip_dump")
        assert (await client.reply())[0] == "lb_vip_details"
        assert server.faults.mute == 1


async def test_answers_with_a_wrong_context_or_behind_an_unknown_message(tmp_path: Path) -> None:
    async with stand_in(tmp_path / "api.sock") as server, connected(server.path) as client:
        server.faults.wrong_context = 1
        context = client.request("control_ping")
        name, answered, _ = await client.reply()
        assert name == "control_ping_reply"
        assert answered != context
        server.faults.unknown_message = 1
        context = client.request("control_ping")
        assert (await client.reply())[0] == ""
        assert (await client.reply())[:2] == ("control_ping_reply", context)


async def test_a_reply_that_ends_too_early_and_a_frame_of_nonsense(tmp_path: Path) -> None:
    async with stand_in(tmp_path / "api.sock") as server, connected(server.path) as client:
        server.faults.truncate = 1
        client.request("control_ping")
        assert len((await client.reply())[2]) == MESSAGES["control_ping_reply"].size - 1
        server.faults.garble = 1
        client.request("control_ping")
        with pytest.raises(messages.ProtocolError):
            await client.reply()


async def test_a_hanging_vpp_reads_nothing_until_it_hangs_no_more(tmp_path: Path) -> None:
    async with stand_in(tmp_path / "api.sock") as server, connected(server.path) as client:
        control = ControlSocket(tmp_path / "control.sock", server.control)
        await control.start()
        assert await asyncio.to_thread(program._ask, tmp_path / "control.sock", "hang on") == (0, "")
        late = await RawClient.connect(server.path, shake=False)
        late.send(messages.pack_handshake("late", 5))
        client.request("control_ping")
        called = server.journal.next(lambda entry: entry.message == "control_ping")
        await client.writer.drain()
        assert await asyncio.to_thread(program._ask, tmp_path / "control.sock", "work") == (0, "0\n")
        assert not called.done()
        assert await asyncio.to_thread(program._ask, tmp_path / "control.sock", "hang off") == (0, "")
        assert (await client.reply())[0] == "control_ping_reply"
        assert messages.unpack_handshake_reply(await late.body()).context == 5
        await late.close()
        await control.stop()


async def test_a_restart_is_empty_and_has_a_new_clock(tmp_path: Path) -> None:
    clock = StoppedClock()
    async with stand_in(tmp_path / "api.sock", clock=clock) as server, connected(server.path) as client:
        await _program(client)
        server.advance(100)
        assert (await client.values("cli_inband", cmd="sim restart 3"))["retval"] == 0
        await client.ended()
        async with connected_again(server) as again:
            assert await again.call("lb_vip_dump") == []
        assert clock.slept == [3.0]
        assert server.now() == 0.0


async def test_the_clock_moves_garbage_collection_on(tmp_path: Path) -> None:
    async with stand_in(tmp_path / "api.sock") as server, connected(server.path) as client:
        await _program(client)
        await client.call("lb_add_del_as_v2", **VIP, as_address=bytes([10, 0, 0, 1]), is_del=True)
        assert len(await client.call("lb_as_v2_dump")) == 1
        assert await client.values("cli_inband", cmd="sim advance 60") == {"retval": 0, "reply": ""}
        assert await client.call("lb_as_v2_dump") == []


async def test_flows_are_counted_where_the_table_sends_them(tmp_path: Path) -> None:
    async with stand_in(tmp_path / "api.sock") as server, connected(server.path) as client:
        await _program(client)
        answer = await client.values("cli_inband", cmd="sim packets 192.0.2.1/32 tcp 80 9")
        assert answer == {"retval": 0, "reply": "10.0.0.1 9\n"}
        assert "flows:9" in (await client.values("cli_inband", cmd="show lb vips verbose"))["reply"]


@pytest.mark.parametrize(
    "line",
    [
        *("", "no", "delay x 1", "delay * -1", "delay *", "refuse * x", "refuse * -1 every 3", "refuse * -1 nth"),
        *("cut it 1", "cut sent x", "mute x", "hang maybe", "advance -1", "advance nan", "restart x", "packets"),
        *("packets 1.2.3.4/32 tcp 80 1", "packets x 1", "packets 1.2.3.4/32 99999999999"),
    ],
)
async def test_a_command_that_makes_no_sense_is_refused(tmp_path: Path, line: str) -> None:
    async with stand_in(tmp_path / "api.sock") as server:
        retval, output = server.control.execute(line)
        assert retval == -1
        assert output.startswith("sim: ")


async def test_every_command_of_the_help_text_is_understood(tmp_path: Path) -> None:
    async with stand_in(tmp_path / "api.sock") as server:
        for line in (
            "delay * 0.5",
            "delay * 0",
            "mute 3",
            "wrong-context",
            "truncate 1",
            "garble 1",
            "unknown-message 1",
        ):
            assert server.control.execute(line) == (0, "")
        assert server.faults.mute == 3
        assert server.control.execute("clear") == (0, "")
        assert (server.faults.mute, server.faults.delays, server.faults.garble) == (0, {}, 0)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chunks=st.lists(st.binary(max_size=80), max_size=8), numbers=st.lists(st.integers(0, 60), max_size=8))
def test_random_bytes_never_hurt_it(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes], numbers: list[int]
) -> None:
    async def attack() -> None:
        path = tmp_path_factory.mktemp("fuzz") / "api.sock"
        async with stand_in(path) as server, connected(server.path) as good:
            raw = await RawClient.connect(path, shake=False)
            for chunk in chunks:
                raw.send(chunk)
            bad = await RawClient.connect(path)
            assert bad.handshake is not None
            for number, chunk in zip(numbers, chunks, strict=False):
                bad.send(messages.request(number, bad.handshake.client_index, 1, chunk))
            await raw.writer.drain()
            await bad.writer.drain()
            if not server.crashes:  # a random VIP with an empty table is one of the things it must survive
                await _ping(good)
            await raw.close()
            await bad.close()

    asyncio.run(attack())


# --- the program


async def _spawn(*arguments: str) -> subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "maglev.vppsim", *arguments, stderr=subprocess.PIPE
    )


async def _until_it_listens(process: subprocess.Process) -> None:
    assert process.stderr is not None
    async with asyncio.timeout(DEADLINE):
        while b"listening" not in (line := await process.stderr.readline()):
            assert line, "it ended without listening"


async def test_the_program_serves_shows_obeys_and_ends_cleanly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api, calls = tmp_path / "api.sock", tmp_path / "calls.jsonl"
    process = await _spawn("--socket", str(api), "--log-calls", str(calls), "--fault", "refuse lb_flush_vip -1 times 1")
    try:
        await _until_it_listens(process)
        async with connected(api) as client:
            await _program(client)
            assert await client.values("lb_flush_vip", **VIP) == {"retval": -1}
        assert await asyncio.to_thread(program.main, ["show", "--socket", str(api)]) == 0
        assert capsys.readouterr().out == (
            "192.0.2.1/32 tcp 80  gre4  64 buckets\n  10.0.0.1 weight 100 buckets 64 (100.0 %)\n"
        )
        assert await asyncio.to_thread(program.main, ["tell", "--socket", str(api), "calls"]) == 0
        assert "lb_flush_vip 1\n" in capsys.readouterr().out
        assert await asyncio.to_thread(program.main, ["tell", "--socket", str(api), "nonsense"]) == 1
        second = await _spawn("--socket", str(api))
        async with asyncio.timeout(DEADLINE):
            assert await second.wait() == 1  # somebody answers on that socket
    finally:
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(DEADLINE):
            assert await process.wait() == 0
    assert not api.exists()
    assert '"call": "lb_flush_vip", "args": {"pfx": "192.0.2.1/32", "protocol": 6, "port": 80}' in calls.read_text()
    assert await asyncio.to_thread(program.main, ["show", "--socket", str(api)]) == 1


async def test_a_socket_left_by_a_run_that_died_is_taken_over_and_a_file_is_not(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    process = await _spawn("--socket", str(path))
    await _until_it_listens(process)
    process.kill()
    async with asyncio.timeout(DEADLINE):
        await process.wait()
    assert path.exists()
    async with stand_in(path) as server, connected(server.path) as client:
        await _ping(client)
    path.write_text("precious")
    with pytest.raises(FileExistsError):
        await StandIn(path).start()
    assert path.read_text() == "precious"


async def test_show_tells_ghosts_and_lingering_ases_from_live_ones(tmp_path: Path) -> None:
    async with stand_in(tmp_path / "api.sock") as server, connected(server.path) as client:
        assert await asyncio.to_thread(inspect.show, server.path) == "no VIPs\n"
        await _program(client)
        await client.call("lb_add_del_as_v2", **VIP, as_address=bytes([10, 0, 0, 2]), weight=1)
        await client.call("lb_add_del_as_v2", **VIP, as_address=bytes([10, 0, 0, 1]), is_del=True)
        assert await asyncio.to_thread(inspect.show, server.path) == (
            "192.0.2.1/32 tcp 80  gre4  64 buckets\n"
            "  10.0.0.2 weight 1 buckets 64 (100.0 %)\n"
            "  10.0.0.1 weight 100 buckets 0 (0.0 %) deleted\n"
        )
        await client.call("lb_add_del_vip_v2", **VIP, is_del=True)
        assert await asyncio.to_thread(inspect.show, server.path) == "and 2 ASes of deleted VIPs\n"
