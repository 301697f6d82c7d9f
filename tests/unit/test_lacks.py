"""A file that this host has no descriptor or memory to read: nothing is said about the file."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from maglev.base.errors import HostTrouble
from maglev.config import load
from maglev.config.child import load_in_child
from maglev.kinds.tls import unusable_authorities
from tests.helpers.certs import Authority

VALID = "maglev: {backends: {one: {address: 192.0.2.1}}}\n"

# The lowest free descriptor becomes the limit: the next open fails. All that has to be imported is imported before.
FULL_TABLE = """
import os, resource, sys
{imports}
free = os.dup(0)
os.close(free)
resource.setrlimit(resource.RLIMIT_NOFILE, (free, free))
{body}
"""

CHECK = FULL_TABLE.format(
    imports="import orjson\nfrom maglev.daemon.options import parse\nfrom maglev.daemon.program import check\n"
    "options = parse(sys.argv[1:], {})",
    body="sys.exit(check(options))",
)

AUTHORITIES = FULL_TABLE.format(
    imports="import ssl\nfrom maglev.base.errors import HostTrouble\nfrom maglev.kinds.tls import unusable_authorities",
    body="try:\n    print(unusable_authorities(sys.argv[1]))\nexcept HostTrouble as error:\n    "
    "print('trouble:', error)",
)


def python(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_check_without_a_descriptor_says_nothing_about_the_file(tmp_path: Path, flags: list[str]) -> None:
    file = tmp_path / "maglev.yaml"
    file.write_text(VALID)
    done = python(CHECK, "--check", *flags, "--config", str(file))
    assert (done.returncode, done.stdout) == (os.EX_TEMPFAIL, "")
    assert done.stderr == (
        f"{file}: not read, so nothing is known about it: too many open files (raise LimitNOFILE of the service)\n"
    )


def test_a_ca_file_without_a_descriptor_is_no_bad_ca_file(tmp_path: Path) -> None:
    ca = Authority(tmp_path).ca
    assert unusable_authorities(str(ca)) is None
    done = python(AUTHORITIES, str(ca))
    # A long path is quoted in part.
    assert done.stdout.startswith(f"trouble: '{str(ca)[:20]}"), done.stderr
    assert done.stdout.endswith(": too many open files (raise LimitNOFILE of the service)\n")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_file_that_this_host_cannot_open_is_no_parse_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fails(*_: object) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(load, "_read_file", fails)
    with pytest.raises(HostTrouble, match=os.strerror(number).lower()):
        load.load_file(tmp_path / "maglev.yaml")


@pytest.mark.parametrize(
    ("exception", "reason"),
    [
        ("OSError(23, 'Too many open files in system')", r"^too many open files in system \(raise fs\.file-max\)$"),
        ("MemoryError", r"^out of memory \(make room, or raise MemoryMax of the service\)$"),
    ],
)
async def test_a_child_that_lacks_something_says_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exception: str, reason: str
) -> None:
    # The child itself runs; only its read of the file fails.
    script = tmp_path / "python"
    script.write_text(
        f"#!{sys.executable}\nimport sys\nfrom maglev.config import child, load\n"
        f"def fails(path): raise {exception}\nload._read_file = fails\n"
        "sys.argv = sys.argv[3:]\nsys.exit(child.main())\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(HostTrouble, match=reason):
        await load_in_child(tmp_path / "maglev.yaml")
