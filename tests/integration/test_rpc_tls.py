"""The API over TLS: who gets in, as what, and what becomes of a renewed certificate."""

from __future__ import annotations

import asyncio
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import pytest

from maglev.pb import maglev_pb2 as pb
from maglev.pb.maglev_pb2_grpc import MaglevStub
from maglev.rpc.access import Role
from maglev.rpc.listeners import CannotListen
from maglev.rpc.server import RpcServer, ServerOptions
from maglev.rpc.tls import TlsFiles
from tests.helpers.certs import Authority, Pair
from tests.helpers.daemon import DaemonProcess, Watcher, reserved_port
from tests.helpers.rpc import FakeDaemon, fake_daemon
from tests.integration.test_rpc_server import refused

DEADLINE = 20.0
Status = grpc.StatusCode


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


class Secure:
    """A server over TLS, and calls to it with one certificate or another."""

    def __init__(self, authority: Authority, files: TlsFiles, role: Role = Role.VIEWER, address: str = "127.0.0.1:0"):
        self.authority = authority
        self.daemon: FakeDaemon = fake_daemon()
        self.server = RpcServer(self.daemon.services, ServerOptions(tcp_address=address, tcp_role=role, tls=files))

    def channel(self, pair: Pair | None = None, ca: Path | None = None) -> grpc.aio.Channel:
        credentials = grpc.ssl_channel_credentials(
            (ca or self.authority.ca).read_bytes(),
            pair.key.read_bytes() if pair else None,
            pair.cert.read_bytes() if pair else None,
        )
        options = [("grpc.use_local_subchannel_pool", 1)]
        return grpc.aio.secure_channel(f"localhost:{self.server.port}", credentials, options)

    async def who(self, pair: Pair | None = None, ca: Path | None = None) -> tuple[str, int]:
        async with self.channel(pair, ca) as channel:
            info = await MaglevStub(channel).GetServerInfo(pb.GetServerInfoRequest(), timeout=DEADLINE)
        return info.caller, info.role

    async def pause(self, pair: Pair | None = None) -> None:
        async with self.channel(pair) as channel:
            await MaglevStub(channel).PauseBackend(pb.ChangeBackendRequest(name="web0"), timeout=DEADLINE)


Start = Callable[..., Awaitable[Secure]]


@pytest.fixture
async def start(authority: Authority) -> AsyncIterator[Start]:
    running: list[Secure] = []

    async def begin(files: TlsFiles, **options: Role | str) -> Secure:
        one = Secure(authority, files, **options)  # type: ignore[arg-type]
        await one.server.start()
        running.append(one)
        return one

    yield begin
    for one in running:
        await one.server.stop(0.2)


async def test_the_certificate_gives_the_role_and_the_name(start: Start, authority: Authority) -> None:
    server = authority.server()
    # The role of TCP is for those without a certificate: with one it counts for nothing.
    secure = await start(TlsFiles(server.cert, server.key, authority.ca), role=Role.OPERATOR)
    ann = authority.issue("ann", "/O=Acme, Inc/OU=operator/CN=ann")
    bob = authority.issue("bob", "/O=operator/CN=bob")
    assert await secure.who(ann) == ("tls:ann", pb.ROLE_OPERATOR)
    assert await secure.who(bob) == ("tls:bob", pb.ROLE_VIEWER)
    words = await refused(secure.pause(bob), Status.PERMISSION_DENIED)
    assert words == "PauseBackend is for operators, and tls:bob is viewer"
    await secure.pause(ann)
    assert secure.daemon.checker.asked == [("pause", "web0", "tls:ann", "", 0)]
    assert secure.server.calls["PauseBackend", "PERMISSION_DENIED"] == 1


async def test_strangers_do_not_get_in(start: Start, authority: Authority, tmp_path: Path) -> None:
    server = authority.server()
    secure = await start(TlsFiles(server.cert, server.key, authority.ca))
    others = Authority(tmp_path / "others")
    eve = others.issue("eve", "/OU=operator/CN=eve")
    for pair in (None, eve):
        await refused(secure.who(pair), Status.UNAVAILABLE)
    async with grpc.aio.insecure_channel(f"localhost:{secure.server.port}") as channel:
        clear = MaglevStub(channel).GetServerInfo(pb.GetServerInfoRequest(), timeout=DEADLINE)
        await refused(clear, Status.UNAVAILABLE)
    assert secure.server.calls == {}


async def test_without_authorities_for_clients_the_role_of_tcp_counts(start: Start, authority: Authority) -> None:
    server = authority.server()
    secure = await start(TlsFiles(server.cert, server.key), role=Role.OPERATOR)
    assert await secure.who() == ("tcp:127.0.0.1", pb.ROLE_OPERATOR)
    await refused(secure.who(ca=Authority(authority.directory, "stranger").ca), Status.UNAVAILABLE)


async def test_a_renewed_certificate_is_used_from_the_next_connection_on(start: Start, authority: Authority) -> None:
    server = authority.server("renewed")
    secure = await start(TlsFiles(server.cert, server.key, authority.ca))
    ann = authority.issue("ann", "/OU=operator/CN=ann")
    async with secure.channel(ann) as channel:
        stub = MaglevStub(channel)
        await stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=DEADLINE)
        first = await shown(secure.server.port)
        authority.server("renewed", subject="/CN=lb2")
        second = await shown(secure.server.port)
        assert first != second
        assert second == ssl.PEM_cert_to_DER_cert(server.cert.read_text())
        # The established connection goes on.
        await stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=DEADLINE)
    server.key.write_text("garbage")
    assert await shown(secure.server.port) == second
    assert await secure.who(ann) == ("tls:ann", pb.ROLE_OPERATOR)
    certificates = secure.server.certificates
    assert certificates is not None
    assert certificates.failures == 1
    await secure.server.reread_certificates()
    assert certificates.failures == 2


async def shown(port: int) -> bytes:
    """The certificate that the server shows, DER; without one of ours it lets us in no further."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    async with asyncio.timeout(DEADLINE):
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    assert isinstance(found, bytes)
    return found


async def test_files_that_do_not_fit_refuse_the_start(start: Start, authority: Authority) -> None:
    one, other = authority.server("one"), authority.server("other")
    with pytest.raises(CannotListen, match="make no certificate and key"):
        await start(TlsFiles(one.cert, other.key))


@pytest.mark.parametrize(
    ("client_ca", "role", "warned"),
    [(True, Role.OPERATOR, ""), (False, Role.VIEWER, ""), (False, Role.OPERATOR, "without client certificates")],
)
async def test_only_what_strangers_may_do_is_warned_of(
    start: Start,
    authority: Authority,
    caplog: pytest.LogCaptureFixture,
    client_ca: bool,
    role: Role,
    warned: str,
) -> None:
    server = authority.server()
    files = TlsFiles(server.cert, server.key, authority.ca if client_ca else None)
    await start(files, role=role, address="0.0.0.0:0")
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == bool(warned)
    assert all(warned in line and "operator" in line for line in said)


CONFIG = """
maglev:
  backends:
    web0: {address: 127.0.0.1}
"""


async def maglevc(port: int | None, *words: str) -> tuple[int, str, str]:
    """One command over TCP, to the port if one is given: its status and its output."""
    server = ["--server", f"localhost:{port}"] if port is not None else []
    command = [sys.executable, "-m", "maglev.cli.main", *server, *words]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.DEVNULL
    )
    async with asyncio.timeout(DEADLINE):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_maglevc_speaks_tls_to_maglevd(authority: Authority, tmp_path: Path) -> None:
    server = authority.server("maglevd")
    ann, bob = authority.issue("ann", "/OU=operator/CN=ann"), authority.issue("bob", "/CN=bob")
    port = reserved_port()
    flags = ["--grpc-tls-cert", str(server.cert), "--grpc-tls-key", str(server.key)]
    flags += ["--grpc-client-ca", str(authority.ca), f"--grpc-addr=127.0.0.1:{port}", "--vpp-api-addr="]

    def shown(pair: Pair) -> list[str]:
        return ["--tls-ca", str(authority.ca), "--tls-cert", str(pair.cert), "--tls-key", str(pair.key)]

    async with DaemonProcess(tmp_path, CONFIG, *flags) as daemon, daemon.api() as api:
        status, out, _ = await maglevc(port, *shown(bob), "show", "version")
        assert (status, "you are        tls:bob, viewer" in out) == (0, True), out
        drain = ["set", "backend", "web0", "drain", "reason", "disk"]
        status, _, err = await maglevc(port, *shown(bob), *drain)
        assert (status, err) == (1, "maglevc: DrainBackend is for operators, and tls:bob is viewer\n")
        watcher = Watcher(api)
        await watcher.states(web0="up")
        assert (await maglevc(port, *shown(ann), *drain))[0] == 0
        await watcher.until(lambda w: _drained_by(w) == "tls:ann")
        await watcher.log_event("api-change", by="tls:ann", address="127.0.0.1", status="OK", call="DrainBackend")

        # Neither without a certificate, nor in the clear, nor to a server of another name.
        for words, why in (
            (["--tls-ca", str(authority.ca)], "it closed the connection"),
            ([], "it closed the connection"),
            ([*shown(ann), "--tls-server-name", "example.org"], "its certificate is for another name"),
            (["--tls"], "its certificate is not verified"),
        ):
            status, _, err = await maglevc(port, *words, "show", "version")
            assert (status, f"cannot reach localhost:{port}: {why}" in err) == (3, True), err
        status, _, err = await maglevc(port, "--tls-ca", str(tmp_path / "absent"), "show", "version")
        assert (status, "absent: No such file" in err) == (2, True), err

        assert "maglev_grpc_certificate_failures_total 0" in await daemon.metrics()
        server.key.write_text("garbage")
        daemon.signal(signal.SIGHUP)
        await watcher.log_event("tls-refused")
        assert (await maglevc(port, *shown(ann), "show", "version"))[0] == 0
        assert "maglev_grpc_certificate_failures_total 1" in await daemon.metrics()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--tls-cert", "ann.pem"], "a certificate needs its key: give both --tls-cert and --tls-key"),
        (["--tls-key", "ann.key"], "a certificate needs its key: give both --tls-cert and --tls-key"),
        (["--tls-cert", "ann.pem", "--tls-key", "bob.key"], "bob.key: key values mismatch"),
        (["--tls-ca", "ann.key"], "ann.key: no certificate or crl found"),
        (["--tls", "--server", "unix:/run/x.sock"], "unix:/run/x.sock speaks no TLS"),
    ],
)
async def test_maglevc_refuses_files_and_servers_that_make_no_tls(
    authority: Authority, flags: list[str], words: str
) -> None:
    authority.issue("ann", "/CN=ann"), authority.issue("bob", "/CN=bob")
    flags = [str(authority.directory / flag) if flag.endswith((".pem", ".key")) else flag for flag in flags]
    status, _, err = await maglevc(1, *flags, "show", "version")
    assert (status, words in err) == (2, True), err


async def test_without_a_server_tls_goes_to_the_tcp_port_of_this_machine(authority: Authority) -> None:
    status, _, err = await maglevc(None, "--tls-ca", str(authority.ca), "show", "version")
    assert status == 3, err
    assert "cannot reach localhost:9090: " in err


def _drained_by(watcher: Watcher) -> str:
    found = [event.drain.by for event in watcher.events if event.WhichOneof("event") == "drain"]
    return found[-1] if found else ""
