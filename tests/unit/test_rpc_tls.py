"""The server's certificate and what a client's says: files, dates, distinguished names."""

from __future__ import annotations

import ssl
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maglev.rpc.access import Caller, Role, attributes, caller_of
from maglev.rpc.tls import Certificates, TlsFiles, Unusable, load, not_after
from tests.helpers.certs import Authority

DAY = 86_400


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.mark.parametrize(
    ("subject", "caller"),
    [
        ("CN=ann,OU=operator,O=Acme", Caller("tls:ann", Role.OPERATOR)),
        ("OU=net,OU=operator,CN=ann", Caller("tls:ann", Role.OPERATOR)),
        ("CN=ann+OU=operator", Caller("tls:ann", Role.OPERATOR)),
        ("CN=bob,OU=viewer", Caller("tls:bob", Role.VIEWER)),
        ("CN=bob", Caller("tls:bob", Role.VIEWER)),
        ("CN=bob,OU=Operator", Caller("tls:bob", Role.VIEWER)),
        ("CN=bob,OU=operators", Caller("tls:bob", Role.VIEWER)),
        ("CN=operator,O=operator", Caller("tls:operator", Role.VIEWER)),
        ("CN=eve\\,OU=operator", Caller("tls:eve,OU=operator", Role.VIEWER)),
        ("CN=eve\\+OU=operator", Caller("tls:eve+OU=operator", Role.VIEWER)),
        ("CN=eve\\\\,OU=x", Caller("tls:eve\\", Role.VIEWER)),
        ("CN=J\\C3\\BCrgen,OU=operator", Caller("tls:Jürgen", Role.OPERATOR)),
        ("OU=operator", Caller("tls:OU=operator", Role.OPERATOR)),
        ("CN=" + "x" * 100, Caller("tls:" + "x" * 64, Role.VIEWER)),
    ],
)
def test_the_subject_says_who_calls_and_as_what(subject: str, caller: Caller) -> None:
    identity = {"x509_subject": [subject.encode()], "transport_security_type": [b"ssl"]}
    assert caller_of("ipv4:192.0.2.1:4711", Role.OPERATOR, identity) == caller


def test_without_a_certificate_the_address_says_who_calls() -> None:
    identity = {"transport_security_type": [b"ssl"]}
    assert caller_of("ipv4:192.0.2.1:4711", Role.VIEWER, identity) == Caller("tcp:192.0.2.1", Role.VIEWER)


def written(key: str, value: str) -> str:
    """An attribute in the form of RFC 2253."""
    special = ',+"\\<>;#= '
    return f"{key}=" + "".join(
        f"\\{c}" if c in special else c if c.isascii() else "".join(f"\\{b:02X}" for b in c.encode()) for c in value
    )


@given(st.lists(st.tuples(st.sampled_from(["CN", "OU", "O", "1.2.3"]), st.text(min_size=1, max_size=20)), min_size=1))
def test_a_name_is_read_as_it_was_written(parts: list[tuple[str, str]]) -> None:
    parts = [(key, value.encode("utf-8", "replace").decode()) for key, value in parts]
    assert list(attributes(",".join(written(key, value) for key, value in parts))) == parts


@given(st.text())
def test_no_subject_is_an_error(subject: str) -> None:
    assert caller_of("ipv4:192.0.2.1:4711", Role.VIEWER, {"x509_subject": [subject.encode("utf-8", "replace")]})


@pytest.mark.parametrize("days", [3, 40_000])
def test_the_end_of_validity_is_found(authority: Authority, days: int) -> None:
    # 40,000 days from now need the longer form of a date.
    pair = authority.issue(f"days{days}", "/CN=x", days=days)
    ends = not_after(pair.cert.read_bytes())
    assert abs(ends - time.time() - days * DAY) < 600


@given(st.binary(max_size=200))
def test_no_garbage_is_a_certificate(garbage: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        not_after(ssl.DER_cert_to_PEM_cert(garbage).encode())


def test_no_part_of_a_certificate_is_one(authority: Authority) -> None:
    whole = ssl.PEM_cert_to_DER_cert(authority.ca.read_text())
    for length in range(len(whole)):
        with pytest.raises(ValueError, match=r"."):
            not_after(ssl.DER_cert_to_PEM_cert(whole[:length]).encode())


def test_what_does_not_fit_is_refused_in_words(authority: Authority, tmp_path: Path) -> None:
    one, other = authority.server("one"), authority.server("other")
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no certificate\n")
    for files, words in (
        (TlsFiles(one.cert, other.key), "make no certificate and key: key values mismatch"),
        (TlsFiles(one.cert, tmp_path / "absent"), "absent: No such file"),
        (TlsFiles(garbage, one.key), "make no certificate and key"),
        (TlsFiles(one.cert, one.key, garbage), "holds no certificates"),
        (TlsFiles(one.cert, one.key, tmp_path), "Is a directory"),
    ):
        with pytest.raises(Unusable, match=words):
            load(files)
    assert load(TlsFiles(one.cert, one.key, authority.ca)).client_ca == authority.ca.read_bytes()


def test_an_encrypted_key_is_not_asked_for(authority: Authority, tmp_path: Path) -> None:
    pair = authority.server("locked")
    locked = tmp_path / "locked.key"
    words = ["openssl", "ec", "-in", str(pair.key), "-aes128", "-passout", "pass:x", "-out", str(locked)]
    subprocess.run(words, check=True, capture_output=True, timeout=30)
    with pytest.raises(Unusable, match="encrypted"):
        load(TlsFiles(pair.cert, locked))


def test_half_a_renewal_leaves_the_certificate_in_force(authority: Authority) -> None:
    pair = authority.server("renewed", days=2)
    certificates = Certificates(TlsFiles(pair.cert, pair.key))
    before = certificates.expires
    assert certificates.fetch() is None
    old = pair.cert.read_bytes()
    authority.server("renewed", days=9)
    new = pair.cert.read_bytes()
    pair.cert.write_bytes(old)
    assert certificates.fetch() is None, "the key is new, the certificate is not"
    assert (certificates.expires, certificates.failures) == (before, 1)
    assert certificates.fetch() is None
    assert certificates.failures == 1, "what was refused once is not tried at each handshake"
    assert not certificates.reread(force=True), "but when somebody asks for it"
    pair.cert.write_bytes(new)
    assert certificates.fetch() is not None
    assert certificates.expires - before == pytest.approx(7 * DAY, abs=600)
    assert certificates.fetch() is None
    pair.cert.unlink()
    assert certificates.fetch() is None
    assert certificates.failures == 3
