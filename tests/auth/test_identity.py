"""Names of members, certificates and the authority that issues them."""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import FormatError, InvalidArgument
from storage.system.private_files import aside_of, read_private, write_private
from storage.system.private_paths import NotPrivate
from taskworker.auth.authority import Authority
from taskworker.auth.certificates import (
    NotTrusted,
    fingerprint_of,
    identity_of,
    lifetime_text,
    new_key,
    new_request,
    read_certificate,
    read_certificates,
)
from taskworker.auth.identity import MemberIdentity, MemberKind
from tests.auth.members import POOL, pool, worker

names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=100)


@given(name=names, kind=st.sampled_from(MemberKind))
def test_an_identity_survives_its_uri(name: str, kind: MemberKind) -> None:
    identity = MemberIdentity(POOL, kind, name)
    assert MemberIdentity.parse(identity.uri) == identity
    assert identity.uri.isascii()
    assert len(identity.dns_name.split(".")[0]) == 40


@given(text=st.text() | st.builds("spiffe://{}/worker/{}".format, st.text(), st.text()))
def test_other_uris_are_refused(text: str) -> None:
    try:
        identity = MemberIdentity.parse(text)
    except InvalidArgument:
        return
    assert identity.uri == text  # one name for one member


@given(one=names, other=names)
def test_no_two_members_share_a_name(one: str, other: str) -> None:
    assert (worker(one).dns_name == worker(other).dns_name) == (one == other)
    assert worker(one).dns_name != MemberIdentity(POOL, MemberKind.POOL, one).dns_name


def verify(certificate_pem: bytes, authorities_pem: bytes, identity: MemberIdentity, at: datetime) -> None:
    """Verify a server's certificate as a TLS library does, with an implementation that is not OpenSSL's."""
    policy = PolicyBuilder().store(Store(read_certificates(authorities_pem))).time(at)
    policy.build_server_verifier(x509.DNSName(identity.dns_name)).verify(read_certificate(certificate_pem), [])


def test_a_certificate_names_one_member_and_is_valid_for_a_day(authority: Authority) -> None:
    identity, now = worker("wörker-工"), datetime.now(UTC)
    pair = authority.issue_own(identity)
    assert pair.identity == identity
    verify(pair.certificate_pem, pair.authorities_pem, identity, now)
    verify(pair.certificate_pem, pair.authorities_pem, identity, now + timedelta(hours=23))
    for other, at in ((worker("w2"), now), (identity, now + timedelta(hours=25)), (identity, now - timedelta(days=1))):
        with pytest.raises(VerificationError):
            verify(pair.certificate_pem, pair.authorities_pem, other, at)


def test_what_a_request_names_is_ignored(authority: Authority) -> None:
    key = new_key()
    claims = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(pool().uri), x509.DNSName(pool().dns_name)])
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(claims, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    certificate = read_certificate(authority.issue(request, worker("w1")))
    assert identity_of(certificate) == worker("w1")
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert certificate.public_key() == key.public_key()


def bad_requests() -> dict[str, bytes]:
    def signed(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
        return request.public_bytes(serialization.Encoding.PEM)

    good = x509.load_pem_x509_csr(new_request(new_key()))
    der = bytearray(good.public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    try:
        forged = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
    except ValueError:
        forged = b"forged"
    return {
        "nothing": b"",
        "noise": b"\xff" * 500,
        "a certificate": new_request(new_key()).replace(b"REQUEST", b""),
        "too long": b"-" * 100_000,
        "another curve": signed(ec.generate_private_key(ec.SECP384R1())),
        "RSA": signed(rsa.generate_private_key(65537, 2048)),
        "a wrong signature": forged,
    }


@pytest.mark.parametrize("kind", bad_requests())
def test_bad_requests_are_refused(authority: Authority, kind: str) -> None:
    with pytest.raises(InvalidArgument):
        authority.issue(bad_requests()[kind], worker("w1"))


def test_only_members_of_the_pool_get_certificates(authority: Authority) -> None:
    with pytest.raises(InvalidArgument, match="members of pool"):
        authority.issue(new_request(new_key()), MemberIdentity("00" * 16, MemberKind.WORKER, "w1"))


def test_the_authority_is_kept_in_a_private_file(tmp_path: Path) -> None:
    path, umask = tmp_path / "new" / "authority.pem", os.umask(0)
    try:
        first = Authority(path, POOL)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert Authority(path, POOL).fingerprint == first.fingerprint
    with pytest.raises(FormatError, match="another pool"):
        Authority(path, "00" * 16)
    path.chmod(0o640)
    with pytest.raises(NotPrivate, match="chmod 600"):
        Authority(path, POOL)


@pytest.mark.parametrize("damage", [lambda raw: b"", lambda raw: raw[:300], lambda raw: raw.replace(b"M", b"N", 9)])
def test_a_damaged_file_of_the_authority_is_told(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "authority.pem"
    Authority(path, POOL)
    assert callable(damage)
    write_private(path, damage(path.read_bytes()))
    with pytest.raises(FormatError):
        Authority(path, POOL)


def test_an_authority_is_replaced_without_a_moment_at_which_members_distrust_each_other(tmp_path: Path) -> None:
    path, identity, now = tmp_path / "authority.pem", worker("w1"), datetime.now(UTC)
    authority = Authority(path, POOL)
    first, begun = authority.fingerprint, authority.issue_own(identity)
    authority.add_next()
    with pytest.raises(InvalidArgument, match="already"):
        authority.add_next()
    added = authority.issue_own(identity)
    assert (authority.fingerprint, authority.count) == (first, 2)
    authority.promote()
    promoted = authority.issue_own(identity)
    assert authority.fingerprint != first
    for one in (begun, added, promoted):  # members that renewed at each step, or not
        for other in (added, promoted):
            verify(one.certificate_pem, other.authorities_pem, identity, now)
    verify(added.certificate_pem, begun.authorities_pem, identity, now)
    authority = Authority(path, POOL)
    assert authority.count == 2
    authority.drop_former()
    dropped = authority.issue_own(identity)
    assert authority.count == 1
    verify(promoted.certificate_pem, dropped.authorities_pem, identity, now)
    with pytest.raises(VerificationError):
        verify(begun.certificate_pem, dropped.authorities_pem, identity, now)
    with pytest.raises(InvalidArgument, match="no further"):
        authority.promote()


def test_a_wrong_clock_is_named(authority: Authority) -> None:
    certificate = authority.issue_own(worker("w1")).certificate
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    day_ms = 24 * 3600 * 1000
    assert lifetime_text(certificate, now_ms) == ""
    assert "clock is 1 days" in lifetime_text(certificate, now_ms + 2 * day_ms + 60_000)
    assert "slow" in lifetime_text(certificate, now_ms - 2 * day_ms)


def test_a_fingerprint_is_that_of_openssl(authority: Authority) -> None:
    """Of the DER, as ``openssl x509 -fingerprint -sha256`` prints it without colons."""
    import hashlib
    import ssl

    (certificate,) = read_certificates(authority.certificates_pem)
    der = ssl.PEM_cert_to_DER_cert(authority.certificates_pem.decode())
    assert fingerprint_of(certificate) == authority.fingerprint == hashlib.sha256(der).hexdigest()


@given(noise=st.binary(max_size=200))
def test_noise_is_no_certificate(noise: bytes) -> None:
    with pytest.raises(NotTrusted):
        read_certificate(noise)


# -- private files ---------------------------------------------------------------------------------


def test_a_private_file_is_replaced_whole_and_follows_no_link(tmp_path: Path) -> None:
    path, victim = tmp_path / "key", tmp_path / "victim"
    victim.write_bytes(b"mine")
    path.symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        read_private(path)
    write_private(path, b"secret")
    assert (read_private(path), victim.read_bytes()) == (b"secret", b"mine")
    assert read_private(tmp_path / "absent") is None
    with pytest.raises(NotPrivate, match="more than 3 bytes"):
        read_private(path, 3)
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_what_a_crash_left_beside_a_private_file_goes_with_the_next(tmp_path: Path) -> None:
    aside_of(tmp_path / "key").write_bytes(b"half a sec")
    write_private(tmp_path / "key", b"secret")
    assert [entry.name for entry in tmp_path.iterdir()] == ["key"]


def test_what_is_no_regular_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(NotPrivate, match="not a regular file"):
        read_private(tmp_path / "fifo")
