"""Certificates made on the spot, and servers that use and misuse them."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from maglev.config.model import HttpParams, TcpMode, TcpParams, TlsParams
from tests.helpers.engine import listener, port_of

DAY = datetime.timedelta(days=1)
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


class Certificate:
    """A certificate with its key. ``issuer`` None: self-signed. ``days``: validity from and to, in days from now."""

    def __init__(
        self,
        names: Sequence[str],
        issuer: Certificate | None = None,
        *,
        days: tuple[float, float] = (-1, 1),
        ca: bool = False,
        padding: int = 0,
    ) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        self.issuer = issuer
        subject = _name(names[0])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.certificate.subject if issuer else subject)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + days[0] * DAY)
            .not_valid_after(now + days[1] * DAY)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if not ca:
            alternatives: list[x509.GeneralName] = []
            for name in names:
                try:
                    alternatives.append(x509.IPAddress(ipaddress.ip_address(name)))
                except ValueError:
                    alternatives.append(x509.DNSName(name))
            alternatives += [x509.DNSName(f"{n:060d}.example.org") for n in range(padding)]
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        self.certificate: x509.Certificate = builder.sign(issuer.key if issuer else self.key, hashes.SHA256())

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def chain(self) -> bytes:
        """This certificate and the intermediate ones above it, in PEM form."""
        above = self.issuer
        text = self.pem
        while above is not None and above.issuer is not None:
            text += above.pem
            above = above.issuer
        return text

    def write(self, path: Path) -> Path:
        """The certificate alone, as a file of authorities."""
        path.write_bytes(self.pem)
        return path

    def context(self, folder: Path) -> ssl.SSLContext:
        """A server's context with this certificate."""
        path = folder / f"{self.certificate.serial_number}.pem"
        key = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path.write_bytes(key + self.chain())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context


class Server:
    """Accepts connections one by one and gives each to ``talk``; what that raises of the network is its end."""

    def __init__(self, talk: Callable[[socket.socket], None], address: str = "127.0.0.1") -> None:
        self.talk = talk
        self.accepted = 0
        self.sock = listener(address, backlog=1024)
        self.port = port_of(self.sock)
        self._stop = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                client, _ = self.sock.accept()
                with client:
                    if self._stop:
                        return
                    self.accepted += 1
                    client.settimeout(5)
                    self.talk(client)

    def close(self) -> None:
        """Stop accepting; the connection being served is finished first."""
        self._stop = True
        with contextlib.suppress(OSError), socket.create_connection(self.sock.getsockname()[:2]):
            pass
        self._thread.join()
        self.sock.close()


@contextlib.contextmanager
def server(talk: Callable[[socket.socket], None], address: str = "127.0.0.1") -> Iterator[Server]:
    """A server for one test."""
    one = Server(talk, address)
    try:
        yield one
    finally:
        one.close()


class Handshakes:
    """A server's side of TLS over HTTP: shakes hands, reads a request if one comes, answers. Remembers what it saw."""

    def __init__(self, context: ssl.SSLContext, response: bytes = RESPONSE) -> None:
        self.context = context
        self.response = response
        self.names: list[str | None] = []
        self.reused: list[bool] = []
        self.versions: list[str | None] = []
        self.protocols: list[str | None] = []
        self.requests: list[bytes] = []
        self.failures: list[str] = []
        context.sni_callback = self._named
        context.set_alpn_protocols(["h2", "http/1.1"])

    def _named(self, connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        self.names.append(name)

    def __call__(self, client: socket.socket) -> None:
        try:
            with self.context.wrap_socket(client, server_side=True, suppress_ragged_eofs=True) as connection:
                self.reused.append(bool(connection.session_reused))
                self.versions.append(connection.version())
                self.protocols.append(connection.selected_alpn_protocol())
                request = connection.recv(65536)
                if request:
                    self.requests.append(request)
                    connection.sendall(self.response)
        except (ssl.SSLError, OSError) as error:
            self.failures.append(str(error))


class Talking(Handshakes):
    """A server whose handshakes are full ones; its certificate may be changed."""

    def __init__(self, certificate: Certificate, folder: Path) -> None:
        self.folder = folder
        context = certificate.context(folder)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0
        super().__init__(context)

    def show(self, certificate: Certificate) -> None:
        """Have another certificate from now on."""
        path = self.folder / "shown.pem"
        certificate.context(self.folder)
        (self.folder / f"{certificate.certificate.serial_number}.pem").rename(path)
        self.context.load_cert_chain(path)


def https(ca: Path | None = None, **options: Any) -> HttpParams:
    """Parameters of an https check: those of TLS and those of HTTP by name."""
    tls = {key: options.pop(key) for key in ("server_name", "insecure_skip_verify") if key in options}
    return HttpParams(**options, tls=TlsParams(ca_file=str(ca) if ca else None, **tls))


def tls(ca: Path | None = None, **options: Any) -> TcpParams:
    """Parameters of a tcp check with TLS."""
    return TcpParams(mode=TcpMode.CONNECT, tls=TlsParams(ca_file=str(ca) if ca else None, **options))
