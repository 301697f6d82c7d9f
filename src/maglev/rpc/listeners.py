"""Where the API listens: the Unix socket's place in the file system, and addresses of TCP."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import stat
from pathlib import Path

from maglev.base import logs

log = logs.get(__name__)

MAX_PATH_BYTES = 107
"""``sun_path`` of unix(7) has 108 bytes, with its final zero."""


class CannotListen(Exception):
    """An address or a socket cannot be listened on; the text says which and why."""


def prepare_socket(path: Path) -> None:
    """Make the directory (mode 0750) and remove a stale socket.

    A socket is stale if connecting to it is refused. Raises ``CannotListen`` for anything else that is in the way.
    """
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise CannotListen(f"{path}: a socket's path may have {MAX_PATH_BYTES} bytes")
    try:
        _prepare_directory(path)
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise CannotListen(f"{path}: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        raise CannotListen(f"{path} is in the way and is no socket")
    if _answers(path):
        raise CannotListen(f"{path}: another process answers there")
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise CannotListen(f"{path}: the socket of an earlier process cannot be removed: {error.strerror}") from error


def _prepare_directory(path: Path) -> None:
    directory = path.parent
    if not directory.is_dir():
        directory.mkdir(parents=True, mode=0o750)
        # The umask may have removed more from mkdir's mode than intended.
        directory.chmod(0o750)


def warn_of_directory(path: Path) -> None:
    """Warn of a socket that other users can replace by one of their own. To be called once it is listened on."""
    directory = path.parent
    mode = directory.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        log.warning(
            "api-exposed",
            f"every user may write to {directory} and can replace {path.name} by another socket, which operators "
            "would then send their calls to",
            address=str(path),
        )


def _answers(path: Path) -> bool:
    """Whether a process listens on a socket. Raises ``CannotListen`` where that remains unknown."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # Connecting to a Unix socket is decided at once, or EAGAIN: the backlog of a listener is full.
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except BlockingIOError:
            return True
        except OSError as error:
            # No permission, or another type of socket: a process may well listen there.
            raise CannotListen(f"{path}: {error.strerror or error}") from error
    return True


def tcp_target(address: str) -> tuple[str, bool]:
    """gRPC's form of ``host:port``, and whether it is loopback only. Raises ``CannotListen`` for a malformed one."""
    host, separator, port = address.rpartition(":")
    if not separator or not (port.isascii() and port.isdecimal() and int(port) <= 65535):
        raise CannotListen(f"{address!r} is no address: host:port, [address]:port or :port")
    if not host:
        return (f"[::]:{port}" if socket.has_dualstack_ipv6() else f"0.0.0.0:{port}"), False
    if host == "localhost":
        return address, True
    try:
        ip = ipaddress.ip_address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    except ValueError:
        raise CannotListen(f"{address!r} is no address: {host!r} is neither an IP address nor localhost") from None
    if ip.version == 6 and not host.startswith("["):
        raise CannotListen(f"{address!r}: an IPv6 address is written in brackets, as in [{host}]:{port}")
    return address, ip.is_loopback


def why_not(target: str) -> str:
    """Why a target cannot be bound, found by trying it: gRPC does not say."""
    if target.startswith("unix:"):
        return "the directory is not ours to write" if not os.access(Path(target[5:]).parent, os.W_OK) else ""
    host, _, port = target.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(found[0], found[1]) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(found[4])
    except OSError as error:
        return f"{error.strerror} ({errno.errorcode.get(error.errno or 0, 'error')})"
    return ""


def cut_connections(port: int) -> int:
    """Shut down every accepted TCP connection of this process on ``port``; returns how many there were.

    gRPC ends a connection in its own time, and reads from it meanwhile. Its descriptors are not ours to close, but
    shutdown() works on a duplicate, too: gRPC finds the end of the connection at its next call.
    """
    cut = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            duplicate = os.dup(int(name))
        except OSError:
            continue  # closed since it was listed
        if not stat.S_ISSOCK(os.fstat(duplicate).st_mode):
            os.close(duplicate)
            continue
        with socket.socket(fileno=duplicate) as sock, contextlib.suppress(OSError):
            if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.getsockname()[1] == port:
                sock.getpeername()  # raises for the listening socket, which stays
                sock.shutdown(socket.SHUT_RDWR)
                cut += 1
    return cut
