"""TLS of ``maglevc``: the files of its flags, checked before gRPC sees them, and gRPC's failures in plain words.

gRPC ends the process with SIGABRT where a certificate comes without its key. Of every other fault of the files it only
says "Failed to create security handshaker", and only when it connects. So OpenSSL reads the files first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import grpc

from maglev.cli.errors import UsageError

# A server that wants TLS, or another certificate, closes the connection without a word. The Unix socket never does.
_CLOSED = re.compile(r"failed to connect .* ipv[46]:\S+: Socket closed$")
_VERIFY = re.compile(r"CERTIFICATE_VERIFY_FAILED: (.*?)(?:: OK)?$")


@dataclass(frozen=True, slots=True)
class Tls:
    """How to speak TLS. Paths of PEM files, empty where there is none; ``name`` is verified instead of the address."""

    ca: str = ""
    cert: str = ""
    key: str = ""
    name: str = ""

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises ``UsageError`` for files that cannot be read, or that OpenSSL does not take."""
        if bool(self.cert) != bool(self.key):
            raise UsageError("a certificate needs its key: give both --tls-cert and --tls-key")
        ca, key, cert = _read(self.ca), _read(self.key), _read(self.cert)
        self._check()
        return grpc.ssl_channel_credentials(ca, key, cert)

    def _check(self) -> None:
        import ssl  # slow to import, and most calls go to the Unix socket

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            files = self.ca
            if self.ca:
                context.load_verify_locations(self.ca)
            files = f"{self.cert} and {self.key}"
            if self.cert:
                # A key with a password is refused, as gRPC cannot use it; without this, OpenSSL would ask the terminal.
                context.load_cert_chain(self.cert, self.key, password="")
        except (ssl.SSLError, ValueError) as error:
            reason = getattr(error, "reason", None)
            words = reason.replace("_", " ").lower() if reason else "not PEM, or the key has a password"
            raise UsageError(f"{files}: {words}") from None


def _read(path: str) -> bytes | None:
    if not path:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error


def failure_words(details: str) -> str:
    """Why TLS failed, of the text with which gRPC says that it could not connect; empty: TLS was not the reason."""
    if (told := _VERIFY.search(details)) is not None:
        return f"its certificate is not verified: {told[1]}; --tls-ca names the authorities"
    if "WRONG_VERSION_NUMBER" in details:
        return "it does not speak TLS: leave the TLS flags out"
    if "Hostname Verification Check failed" in details:
        return "its certificate is for another name: --tls-server-name says which"
    if _CLOSED.search(details):
        return "it closed the connection: it may want TLS (--tls-ca), or a certificate (--tls-cert, --tls-key)"
    return ""
