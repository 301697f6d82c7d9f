"""The cost of an HTTPS check, with the verification of the certificate: ours, HAProxy's, and one on asyncio's ssl.

The server is nginx with a certificate by an authority of its own (ECDSA P-256), over TLS 1.3; on one port it gives out
no sessions, so that every handshake is a full one, on the other it does. asyncio resumes none.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bench._rig import Contender, Rig, addresses, compare, missing, rig, stop
from bench.harness import Figure

QUESTION = "What does an HTTPS check cost, verification included?"

TARGETS = 200
NAME = "www.example.org"
FULL, RESUMED = 8443, 8444  # ports

# Both take: port, authorities, name, targets. Both answer each line of their input with the checks that have passed.
OURS = """
import sys
from maglev._probe import Engine
from maglev.config.model import HealthCheck, HttpParams, TlsParams
from maglev.base.states import CheckType
port, ca, name, targets = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
second = 10**9
engine = Engine(capacity=targets)
engine.start()
params = HttpParams(host=name, tls=TlsParams(ca_file=ca))
check = engine.add_check(HealthCheck("https", CheckType.HTTPS, params, port, second, second, second, second))
for number in range(targets):
    engine.add_target(check, (0x7f010000 + number).to_bytes(4, "big"), first_delay=number * second // targets)
for line in sys.stdin:
    print(engine.stats()["passed"], flush=True)
engine.stop()
"""

ASYNCIO = """
import asyncio, ssl, sys
port, ca, name, targets = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
context = ssl.create_default_context(cafile=ca)
context.set_alpn_protocols(["http/1.1"])
passed = 0
async def check(address):
    global passed
    async with asyncio.timeout(1):
        reader, writer = await asyncio.open_connection(address, port, ssl=context, server_hostname=name)
        writer.write(f"GET / HTTP/1.1\\r\\nHost: {name}\\r\\nConnection: close\\r\\n\\r\\n".encode())
        head = await reader.readuntil(b"\\r\\n\\r\\n")
        writer.transport.abort()
    passed += head.startswith(b"HTTP/1.1 200 ")
async def probe(number):
    loop = asyncio.get_running_loop()
    due = loop.time() + number / targets
    address = ".".join(map(str, (0x7f010000 + number).to_bytes(4, "big")))
    while True:
        await asyncio.sleep(due - loop.time())
        due += 1
        try:
            await check(address)
        except (OSError, TimeoutError, EOFError):
            pass            # has not passed
async def main():
    tasks = [asyncio.create_task(probe(number)) for number in range(targets)]
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.readline():
        print(passed, flush=True)
asyncio.run(main())
"""


class Program(Contender):
    """One of the two programs above."""

    def __init__(self, one: Rig, text: str, port: int) -> None:
        super().__init__(one, TARGETS)
        self.text = text
        self.port = port

    def start(self) -> None:
        words = [str(self.port), str(self.rig.directory / "ca.pem"), NAME, str(TARGETS)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = self.rig.popen([sys.executable, "-c", self.text, *words], **pipes)

    def probes(self) -> int:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert isinstance(answer, int)
        return answer


class Haproxy(Contender):
    """HAProxy with one thread, a check of each server over TLS that verifies the same."""

    def __init__(self, one: Rig, port: int) -> None:
        super().__init__(one, TARGETS)
        self.port = port

    def start(self) -> None:
        self.base = self.rig.snmp("Tcp", "ActiveOpens")
        folder = self.rig.directory
        options = (
            f"check inter 1000 check-ssl check-sni {NAME} check-alpn http/1.1 verify required verifyhost {NAME} "
            f"ca-file {folder}/ca.pem"
        )
        servers = (f"  server s{i} {ip}:{self.port} {options}" for i, ip in enumerate(addresses(TARGETS)))
        path = folder / "haproxy.cfg"
        path.write_text(
            "global\n  nbthread 1\n  maxconn 1000\n  ulimit-n 16000\n"
            "defaults\n  mode http\n  timeout connect 1s\n  timeout client 1s\n  timeout server 1s\n"
            f"frontend f\n  bind unix@{folder}/haproxy.sock\n  default_backend b\n"
            "backend b\n  option httpchk\n"
            f"  http-check send meth GET uri / ver HTTP/1.1 hdr Host {NAME}\n  http-check expect status 200\n"
            + "\n".join(servers)
            + "\n"
        )
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = self.rig.popen(["haproxy", "-db", "-f", str(path)], **quiet)

    def probes(self) -> int:
        return self.rig.snmp("Tcp", "ActiveOpens") - self.base


def _certificate(
    subject: str, issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A certificate and its key; an authority without an issuer."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer[0].subject if issuer else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(subject)]), critical=False)
    )
    return builder.sign(issuer[1] if issuer else key, hashes.SHA256()), key


@contextlib.contextmanager
def tls_nginx(one: Rig) -> Iterator[None]:
    """The server on both ports of every address; RuntimeError where nginx is not installed."""
    if missing("nginx"):
        raise RuntimeError("nginx is not installed (make bench-deps): there is nothing that could be probed")
    folder = one.directory
    authority = _certificate("bench authority", None)
    leaf, key = _certificate(NAME, authority)
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(authority[0].public_bytes(pem))
    (folder / "server.pem").write_bytes(leaf.public_bytes(pem))
    (folder / "server.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    server = "server {{ listen {} ssl backlog=4096; {} location / {{ return 200 ok; }} }}"
    none = "ssl_session_tickets off; ssl_session_cache none;"
    (folder / "tls.conf").write_text(
        f"daemon off; pid {folder}/tls.pid; error_log {folder}/tls.log; worker_processes 1;\n"
        "events { worker_connections 8192; }\n"
        f"http {{ access_log off; ssl_protocols TLSv1.3; ssl_certificate {folder}/server.pem;\n"
        f"ssl_certificate_key {folder}/server.key;\n{server.format(FULL, none)}\n{server.format(RESUMED, '')} }}\n"
    )
    command = ["nginx", "-c", str(folder / "tls.conf"), "-p", str(folder)]
    with one.popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 10
            while not (folder / "tls.pid").exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((folder / "tls.log").read_text())
                time.sleep(0.05)
            yield
        finally:
            stop(process)


def run() -> list[Figure]:
    """200 targets once a second, full and resumed handshakes."""
    with rig() as one, tls_nginx(one):
        contenders: dict[str, Callable[[], Contender]] = {
            "engine, full": partial(Program, one, OURS, FULL),
            "asyncio, full": partial(Program, one, ASYNCIO, FULL),
            "engine, resumed": partial(Program, one, OURS, RESUMED),
        }
        if not missing("haproxy"):
            contenders["haproxy, full"] = partial(Haproxy, one, FULL)
            contenders["haproxy, resumed if it does"] = partial(Haproxy, one, RESUMED)
        costs = compare(contenders)
    figures = []
    for name, cost in costs.items():
        figures.append(Figure(f"{TARGETS} targets: {name}", cost.cpu_us, "us CPU"))
        if cost.rate < 0.9 * TARGETS:
            figures.append(Figure(f"{TARGETS} targets: {name}, falls behind: checks a second", cost.rate, "/s"))
    ours = costs["engine, full"].cpu_us
    for name in ("asyncio, full", "haproxy, full"):
        if name in costs:
            figures.append(Figure(f"{TARGETS} targets: engine / {name}", ours / costs[name].cpu_us, "x"))
    return figures
