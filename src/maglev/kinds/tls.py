"""The block of parameters for a TLS handshake, shared by the kinds that may do one."""

from __future__ import annotations

import os
from dataclasses import dataclass

from maglev.base.errors import HostTrouble
from maglev.base.lacks import is_lack, remedy
from maglev.kinds.params import Params, Site, param, plain_words
from maglev.schema.problems import quote
from maglev.schema.types import Boolean, Text


@dataclass(frozen=True, slots=True)
class TlsParams(Params):
    """How a TLS handshake is done and verified. ``server_name`` None: the HTTP host, else the address."""

    server_name: str | None = param(
        Text(253, r"[A-Za-z0-9_.:-]+", "a host name"),
        "Server name sent in the handshake (SNI), and the name that the certificate is verified against. "
        "An address is verified as one and not sent. Default: `host`, else the backend's address.",
        default=None,
        example="www.example.org",
    )
    insecure_skip_verify: bool = param(
        Boolean(),
        "Accept any certificate: the check then tests the handshake, not the identity.",
        default=False,
        example="true",
        label="verified",
        words=lambda skip: plain_words(not skip),
    )
    ca_file: str | None = param(
        Text(4095, "/.+", "an absolute path"),
        "PEM file with the certificate authorities to trust, in place of the system's.",
        default=None,
        example="/etc/vpp-maglev/ca.pem",
    )

    def check(self, site: Site) -> None:
        """Report a CA file that cannot be used."""
        name = self.ca_file
        # A relative path was reported when it was read, and would name a file of whatever directory this is.
        if name is not None and name.startswith("/"):
            why = site.files.problem(name, unusable_authorities)
            if why is not None:
                site.wrong("ca-file", f"{quote(name)} cannot be used: {why}")


def unusable_authorities(name: str) -> str | None:
    """Why the file ``name`` cannot serve as certificate authorities; None if it can.

    Raises ``HostTrouble`` where this host has no descriptor or memory to find out.
    """
    # ssl takes 10 ms to import: a configuration without a CA file and the command line go without.
    import ssl

    if "\0" in name:
        return "not a file name"
    try:
        # Reading anything but a regular file could block (a pipe) or never end (a device).
        if os.path.exists(name) and not os.path.isfile(name):
            return "not a regular file"
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=name)
    except ssl.SSLError:
        return "no certificates in PEM form in it"
    except (OSError, ValueError) as error:
        if is_lack(error):
            raise HostTrouble(f"{quote(name)}: {remedy(error)}") from error
        return getattr(error, "strerror", None) or str(error)
    return None
