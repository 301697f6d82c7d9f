"""What an HTTPS check costs, with the verification of the certificate: our engine beside asyncio's ssl.

Each contender is a process of its own that checks the same servers at the same pace for a few seconds; its CPU time
(user and system, all threads, from its own clock) over the checks that it did is the figure. The server offers a chain
of one certificate by an authority (ECDSA P-256) over TLS 1.3. Full handshakes: it gives out no sessions.
"""

from __future__ import annotations

import datetime
import json
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bench.harness import Figure

QUESTION = "What does an HTTPS check cost, verification included?"

ROUNDS = 5
SECONDS = 4
PACE = 200  # checks a second
NAME = "www.example.org"

# Both take: port, authorities, seconds, pace, name. Both print CPU seconds and checks.
OURS = """
import json, resource, sys, time
from maglev._probe import Engine
from maglev.config.model import HealthCheck, HttpParams, TlsParams
from maglev.states import CheckType, Code
port, ca, seconds, pace = int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
second = 10**9
engine = Engine(capacity=pace)
engine.start()
check = engine.add_check(HealthCheck("https", CheckType.HTTPS, HttpParams(tls=TlsParams(sys.argv[5], False, ca)), port,
    second, second, second, second))
for n in range(pace):
    engine.add_target(check, bytes((127, 0, 1 + n // 250, 1 + n % 250)), first_delay=n * second // pace)
def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
time.sleep(1.5)
before, cpu_before = engine.stats(), cpu()
time.sleep(seconds)
after, cpu_after = engine.stats(), cpu()
engine.stop()
print(json.dumps({"cpu": cpu_after - cpu_before, "checks": after["passed"] - before["passed"],
    "resumed": after["tls_resumed"] - before["tls_resumed"], "failed": after["failed"]}))
"""

ASYNCIO = """
import asyncio, json, resource, ssl, sys, time
port, ca, seconds, pace = int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
context = ssl.create_default_context(cafile=ca)
context.set_alpn_protocols(["http/1.1"])
done = failed = 0
async def check(address):
    global done, failed
    try:
        async with asyncio.timeout(1):
            reader, writer = await asyncio.open_connection(address, port, ssl=context, server_hostname=sys.argv[5])
            writer.write(f"GET / HTTP/1.1\\r\\nHost: {address}\\r\\nConnection: close\\r\\n\\r\\n".encode())
            head = await reader.readuntil(b"\\r\\n\\r\\n")
            writer.transport.abort()
        done += head.startswith(b"HTTP/1.1 200 ")
    except (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError):
        failed += 1
async def main():
    loop = asyncio.get_running_loop()
    start, tasks, n = loop.time(), set(), 0
    cpu_before = done_before = None
    while True:
        due = start + n / pace
        if due > loop.time():
            await asyncio.sleep(due - loop.time())
        if cpu_before is None and loop.time() - start > 1.5:
            cpu_before, done_before = time.process_time(), done
        if loop.time() - start > 1.5 + seconds:
            break
        task = loop.create_task(check(f"127.0.{1 + n % pace // 250}.{1 + n % pace % 250}"))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        n += 1
    print(json.dumps({"cpu": time.process_time() - cpu_before, "checks": done - done_before, "failed": failed}))
try:
    import uvloop
    uvloop.run(main())
except ImportError:
    asyncio.run(main())
"""


def _certificate(subject: str, issuer: tuple[x509.Name, ec.EllipticCurvePrivateKey] | None) -> tuple[bytes, bytes]:
    """A certificate and its key in PEM form; an authority where there is no issuer."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer[0] if issuer else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(subject)]), critical=False)
        .sign(issuer[1] if issuer else key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return made.public_bytes(pem), private


class Server:
    """Shakes hands, reads a request, answers 200; ``sessions``: whether it gives any out."""

    def __init__(self, folder: Path, *, sessions: bool) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(folder / "server.pem")
        self.context.set_alpn_protocols(["http/1.1"])
        if not sessions:
            self.context.num_tickets = 0
        self.sock = socket.create_server(("0.0.0.0", 0), backlog=4096)
        self.port = int(self.sock.getsockname()[1])
        self.stopping = False
        self.threads = [threading.Thread(target=self._run) for _ in range(2)]
        for thread in self.threads:
            thread.start()

    def _run(self) -> None:
        while not self.stopping:
            with suppress(OSError):
                client, _ = self.sock.accept()
                client.settimeout(2)
                with client, self.context.wrap_socket(client, server_side=True) as connection:
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    def close(self) -> None:
        """Stop, whatever is still in the backlog."""
        self.stopping = True
        for _ in self.threads:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                pass
        for thread in self.threads:
            thread.join()
        self.sock.close()


def _measure(program: str, port: int, ca: Path) -> dict[str, float]:
    """CPU microseconds of a check, and the share of handshakes that were resumed."""
    command = [sys.executable, "-c", program, str(port), str(ca), str(SECONDS), str(PACE), NAME]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {
        "us": told["cpu"] / max(1, told["checks"]) * 1e6,
        "resumed": told.get("resumed", 0) / max(1, told["checks"]),
    }


def _make(folder: Path) -> Path:
    """The authority's file; the server's certificate and key lie beside it."""
    authority, authority_key = _certificate("bench authority", None)
    issuer = x509.load_pem_x509_certificate(authority).subject
    key = serialization.load_pem_private_key(authority_key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    leaf, leaf_key = _certificate(NAME, (issuer, key))
    (folder / "server.pem").write_bytes(leaf_key + leaf)
    (folder / "ca.pem").write_bytes(authority)
    return folder / "ca.pem"


def run() -> list[Figure]:
    """Full handshakes by both, and ours with sessions resumed (asyncio has no way to)."""
    folder = Path(tempfile.mkdtemp(prefix="maglev-bench-"))
    figures: dict[str, list[float]] = {"full": [], "asyncio": [], "resumed": []}
    servers: list[Server] = []
    try:
        ca = _make(folder)
        servers = [Server(folder, sessions=False), Server(folder, sessions=True)]
        for _ in range(ROUNDS):
            figures["full"].append(_measure(OURS, servers[0].port, ca)["us"])
            figures["asyncio"].append(_measure(ASYNCIO, servers[0].port, ca)["us"])
            figures["resumed"].append(_measure(OURS, servers[1].port, ca)["us"])
    finally:
        for server in servers:
            server.close()
        shutil.rmtree(folder)
    middle = {name: statistics.median(values) for name, values in figures.items()}
    return [
        Figure(f"engine, full handshake, {PACE}/s", middle["full"], "µs/check"),
        Figure("asyncio on uvloop, full handshake, alike", middle["asyncio"], "µs/check"),
        Figure("engine, session resumed", middle["resumed"], "µs/check"),
        Figure("engine to asyncio, both full", middle["full"] / middle["asyncio"], "ratio"),
    ]
