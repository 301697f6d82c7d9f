"""The server's certificate: read from files, and read again when they change.

gRPC asks at each handshake which certificate to use. It calls ``Certificates.fetch`` on a thread of its pool, so a
lock guards the certificate in force. ``fetch`` finds a change by the files' status. Files that make no certificate (a
certificate without its key, half of a renewal) leave the previous certificate in force, with one line in the log and a
count. Established connections keep the certificate that they were made with.
"""

from __future__ import annotations

import os
import ssl
import stat
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc

from maglev.base import logs

log = logs.get(__name__)

_BEGIN = "-----BEGIN CERTIFICATE-----"
_END = "-----END CERTIFICATE-----"

# Of a chain or a bundle of authorities: far more than any has.
MAX_FILE = 1 << 20

RETRY_SECONDS = 10.0
"""Files that could not be used are read again after this time, at the next handshake or look."""

_SEQUENCE = 0x30
_UTC_TIME = 0x17
_GENERALIZED_TIME = 0x18
_VERSION = 0xA0


class Unusable(Exception):
    """The files make no certificate that a server could use; the text says why."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: our certificate (with its chain), its key, and the authorities whose clients are let in, or None."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    def paths(self) -> tuple[Path, ...]:
        """All of them."""
        return (self.cert, self.key) if self.client_ca is None else (self.cert, self.key, self.client_ca)


@dataclass(frozen=True, slots=True)
class Material:
    """Content of the files: PEM, and the end of the certificate's validity, seconds since the epoch."""

    cert: bytes
    key: bytes
    client_ca: bytes | None
    expires: int

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """As gRPC takes it."""
        return grpc.ssl_server_certificate_configuration([(self.key, self.cert)], self.client_ca)


def load(files: TlsFiles) -> Material:
    """Read the files and see whether they fit together. Raises ``Unusable``."""
    cert, key, ca = _read(files.cert), _read(files.key), _read(files.client_ca) if files.client_ca else None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        _try_chain(context, cert, key)
    except (ssl.SSLError, ValueError) as error:
        raise Unusable(f"{files.cert} and {files.key} make no certificate and key: {_why(error)}") from None
    except OSError as error:
        raise Unusable(f"{files.cert}, {files.key}: {error.strerror}") from error
    if ca is not None:
        try:
            context.load_verify_locations(cadata=ca.decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            raise Unusable(f"{files.client_ca} holds no certificates: {_why(error)}") from None
    try:
        expires = not_after(cert)
    except ValueError as error:
        raise Unusable(f"{files.cert}: {error}") from None
    return Material(cert, key, ca, expires)


def _try_chain(context: ssl.SSLContext, cert: bytes, key: bytes) -> None:
    """Load the certificate and the key that were read, and not what the files hold by now.

    The standard library takes paths only, so they go through a file in memory.
    """
    descriptor = os.memfd_create("certificate")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(cert + b"\n" + key)
        # An encrypted key would be asked for on the terminal; there is none.
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=_no_password)
    finally:
        os.close(descriptor)


def _no_password() -> str:
    raise ValueError("the key is encrypted")


def _read(path: Path) -> bytes:
    """The content of a regular file; opening a pipe in its place must not wait for a writer."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Unusable(f"{path} is not a regular file")
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror}") from error
    if len(data) > MAX_FILE:
        raise Unusable(f"{path} is larger than {MAX_FILE >> 10} KiB")
    return data


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not PEM").replace("_", " ").lower()
    return str(error)


def not_after(pem: bytes) -> int:
    """End of validity of the first certificate in ``pem``, seconds since the epoch. Raises ``ValueError``.

    The standard library decodes no certificate that it has not been sent, so this walks the few fields before it
    (RFC 5280, section 4.1).
    """
    text = pem.decode("ascii", "replace")
    begin = text.find(_BEGIN)
    end = text.find(_END, begin)
    if begin < 0 or end < 0:
        raise ValueError("no certificate in PEM form")
    der = ssl.PEM_cert_to_DER_cert(text[begin:end] + _END)
    fields = _inside(der, _inside(der, 0, _SEQUENCE), _SEQUENCE)
    if _element(der, fields)[0] == _VERSION:
        fields = _element(der, fields)[2]
    # Serial number, signature algorithm, issuer.
    for _ in range(3):
        fields = _element(der, fields)[2]
    before = _inside(der, fields, _SEQUENCE)
    tag, start, end = _element(der, _element(der, before)[2])
    form = {_UTC_TIME: "%y%m%d%H%M%SZ", _GENERALIZED_TIME: "%Y%m%d%H%M%SZ"}.get(tag)
    if form is None:
        raise ValueError("the certificate has no end of validity")
    return int(datetime.strptime(der[start:end].decode("ascii"), form).replace(tzinfo=UTC).timestamp())


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """Tag, start and end of the content of the element at ``at``. Raises ``ValueError`` for what ends too early."""
    try:
        tag, length, start = der[at], der[at + 1], at + 2
    except IndexError:
        raise ValueError("the certificate ends too early") from None
    if length & 0x80:
        size = length & 0x7F
        length = int.from_bytes(der[start : start + size])
        start += size
    if start + length > len(der):
        raise ValueError("the certificate ends too early")
    return tag, start, start + length


def _inside(der: bytes, at: int, wanted: int) -> int:
    tag, start, _ = _element(der, at)
    if tag != wanted:
        raise ValueError("the certificate is malformed")
    return start


class Certificates:
    """The certificate in force. ``failures`` counts changes of the files that could not be used. Thread-safe."""

    def __init__(self, files: TlsFiles) -> None:
        """Reads the files. Raises ``Unusable``."""
        self._files = files
        self._lock = threading.Lock()
        self._seen = self._stamp()
        self._material = load(files)
        # The one that gRPC got last.
        self._given = self._material
        self.failures = 0
        # When the files could not be used last, by the monotonic clock; None: they are in force.
        self._refused_at: float | None = None

    @property
    def expires(self) -> int:
        """End of validity of the certificate in force, seconds since the epoch."""
        return self._material.expires

    def credentials(self) -> grpc.ServerCredentials:
        """For a listener. Clients need a certificate where there are authorities for them."""
        return grpc.dynamic_ssl_server_credentials(
            self._given.configuration(),
            self.fetch,  # type: ignore[arg-type]  # gRPC's own words allow None, its type stubs do not.
            self._files.client_ca is not None,
        )

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """The certificate to use from now on, None for the one that gRPC has. Called at each handshake by gRPC."""
        self.reread()
        with self._lock:
            if self._given is self._material:
                return None
            self._given = self._material
            return self._given.configuration()

    def reread(self, *, force: bool = False) -> bool:
        """Read the files again if they changed, or at any rate. Returns whether what they hold now is in force.

        Files that could not be used are tried again after ``RETRY_SECONDS``: a directory that becomes readable changes
        no file.
        """
        with self._lock:
            stamp = self._stamp()
            due = self._refused_at is not None and time.monotonic() - self._refused_at >= RETRY_SECONDS
            if stamp == self._seen and not force and not due:
                return self._refused_at is None
            again = stamp == self._seen and not force
            self._seen = stamp
            try:
                found = load(self._files)
            except Unusable as error:
                self._refused_at = time.monotonic()
                if again:
                    return False
                self.failures += 1
                log.error(
                    "tls-refused",
                    f"the certificate before stays in force: {error}",
                    file=str(self._files.cert),
                    expires=_date(self._material.expires),
                )
                return False
            self._refused_at = None
            if found != self._material:
                self._material = found
                log.info(
                    "tls-loaded",
                    f"{self._files.cert} is in force until {_date(found.expires)}",
                    file=str(self._files.cert),
                    expires=_date(found.expires),
                )
            return True

    def _stamp(self) -> tuple[tuple[int, ...] | None, ...]:
        """A value that changes when a file does."""
        return tuple(_status(path) for path in self._files.paths())


def _status(path: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    # The time of the last change of status also shows new permissions.
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size


def _date(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
