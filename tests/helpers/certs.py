"""An authority of our own, and certificates that it signs, made by the openssl command."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, in PEM files."""

    cert: Path
    key: Path


class Authority:
    """Signs certificates into ``directory``; ``ca`` is its own."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._own = Pair(directory / f"{name}.pem", directory / f"{name}.key")
        _openssl(self._own, "/CN=test authority", days=2)

    @property
    def ca(self) -> Path:
        """The authority's certificate."""
        return self._own.cert

    def issue(self, name: str, subject: str, *, names: str = "", days: int = 2) -> Pair:
        """A certificate in ``name.pem`` and its key in ``name.key``, in the place of those of that name.

        ``names``: subject alternative names (``DNS:localhost,IP:127.0.0.1``). The files are replaced as whole files.
        """
        pair = Pair(self.directory / f"{name}.pem", self.directory / f"{name}.key")
        made = Pair(pair.cert.with_suffix(".new-pem"), pair.key.with_suffix(".new-key"))
        words = ["-CA", str(self._own.cert), "-CAkey", str(self._own.key)]
        words += ["-addext", "basicConstraints=critical,CA:FALSE"]
        words += ["-addext", f"subjectAltName={names}"] if names else []
        _openssl(made, subject, *words, days=days)
        made.key.replace(pair.key)
        made.cert.replace(pair.cert)
        return pair

    def server(self, name: str = "server", *, subject: str = "/CN=lb", days: int = 2) -> Pair:
        """A certificate for this machine."""
        return self.issue(name, subject, names="DNS:localhost,IP:127.0.0.1", days=days)


def _openssl(pair: Pair, subject: str, *words: str, days: int) -> None:
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", str(pair.key)]
    # fmt: off
    command = ["openssl", "req", "-x509", *key, "-out", str(pair.cert), "-days", str(days), "-utf8", "-subj", subject]
    # fmt: on
    subprocess.run([*command, *words], check=True, capture_output=True, timeout=30)
