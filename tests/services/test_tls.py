"""Users' connections with TLS: who the server is, is verified before a token is sent."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509 import CertificateBuilder, DNSName, IPAddress, Name

from storage import FileStorage, InvalidArgument
from storage.clocks import wall_ms
from taskworker import AsyncClient, Client, TaskWorker, taskworker_pb2
from taskworker.auth.authority import Authority
from taskworker.auth.contexts import Context, Contexts
from taskworker.auth.identity import MemberIdentity, MemberKind
from taskworker.auth.owner_context import keep_owner_context
from taskworker.auth.server_certificates import CertificateFiles, OwnCertificate, ServerTls, TlsOptions
from taskworker.auth.trust import Trust
from taskworker.client.trusting import known_by_authority, known_by_hash, shows_certificates
from taskworker.errors import ServerNotTrusted, StorageUnavailable
from taskworker.rpc.shown_certificates import certificates_shown_at
from taskworker.services.store_server import StoreServer

DAY_MS = 86_400_000
_LOOPBACK = ipaddress.ip_address("127.0.0.1")


class Stand(NamedTuple):
    """A server with TLS, on a port of 127.0.0.1, and what its owner and others may know of it."""

    server: StoreServer
    address: str
    token: str
    contexts: Contexts

    @property
    def tls(self) -> ServerTls:
        assert self.server.tls is not None
        return self.server.tls

    def know(self, trust: Trust | None, address: str = "") -> None:
        """Know the server so from now on."""
        self.contexts.put(Context(address or self.address, self.token).with_trust(trust))


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Contexts:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return Contexts()


def started(store: FileStorage, contexts: Contexts, options: TlsOptions) -> Stand:
    server = StoreServer(store)
    address = ""

    def bound(found: str) -> None:
        nonlocal address
        address = found

    server.start_tls("127.0.0.1:0", options, bound=bound)
    assert server.tls is not None
    keep_owner_context(server.users, "s1", address, trust=server.tls.trust)
    context = contexts.find(address)
    assert context is not None
    return Stand(server, address, context.token, contexts)


@pytest.fixture
def stand(store: FileStorage, contexts: Contexts) -> Iterator[Stand]:
    running = started(store, contexts, TlsOptions())
    yield running
    running.server.stop(0.0)


def test_all_clients_of_the_owner_work(stand: Stand) -> None:
    data = os.urandom(300_000)
    with Client(stand.address) as client:
        file_id = client.push(data, filename="a", user_id="ann").file_id
        assert client.get(file_id, user_id="ann") == data
        assert [one.version is not None for one in client.push_many([("b", b"1")], user_id="ann")] == [True]

    async def act() -> bytes:
        async with AsyncClient(stand.address) as client, TaskWorker("w1", node_pool_address=stand.address) as worker:
            request = taskworker_pb2.GetRequest(file_id=file_id, user_id="ann")
            assert (await worker.storage.Get(request)).file_data == data
            return bytes(await client.get(file_id, user_id="ann"))

    assert asyncio.run(act()) == data


def test_a_client_that_was_there_before_follows(stand: Stand) -> None:
    trust = stand.tls.trust
    stand.contexts.remove(stand.address)
    with Client(stand.address) as client:
        with pytest.raises(ServerNotTrusted, match="uses TLS, and this client does not know it"):
            client.stats()
        stand.know(trust)
        client.stats()

    async def act() -> None:
        async with TaskWorker("w1", node_pool_address=stand.address) as worker:
            request = taskworker_pb2.PushRequest(filename="a", file_data=b"1")
            stand.contexts.remove(stand.address)
            with pytest.raises(StorageUnavailable):
                await worker.storage.Push(request)
            stand.know(trust)
            await worker.storage.Push(request)

    asyncio.run(act())


def test_who_knows_the_hash_of_the_authority_knows_the_server(stand: Stand, tmp_path: Path) -> None:
    assert shows_certificates(stand.address)
    trust = known_by_hash(stand.address, f"sha256:{stand.tls.fingerprint}")
    assert trust == stand.tls.trust
    assert known_by_authority(stand.address, trust.authorities.encode()) == trust
    with pytest.raises(ServerNotTrusted, match="nothing was sent"):
        known_by_hash(stand.address, "sha256:" + "0" * 64)
    for malformed in ("", "sha256:", "md5:" + "0" * 64, "0" * 63, "g" * 64):
        with pytest.raises(InvalidArgument, match="64 hexadecimal digits"):
            known_by_hash(stand.address, malformed)
    other = Authority(tmp_path / "other.pem", "f" * 32)
    assert known_by_authority(stand.address, other.certificates_pem).name == ""
    assert not shows_certificates("unix:/nowhere")


def test_another_authority_is_not_trusted(stand: Stand, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other.pem", stand.tls.trust.name)
    stand.know(Trust(other.certificates_pem.decode(), stand.tls.trust.name))
    with Client(stand.address) as client, pytest.raises(ServerNotTrusted, match="authority that is not trusted"):
        client.stats()
    stand.know(Trust())  # as after a login without any authority
    with Client(stand.address) as client, pytest.raises(ServerNotTrusted, match="authority that is not trusted"):
        client.stats()


def test_a_worker_of_the_pool_is_not_taken_for_the_pool(
    store: FileStorage, contexts: Contexts, stand: Stand, tmp_path: Path
) -> None:
    authority = Authority(store.path / "authority.pem", (store.upkeep.documents.document("server-id") or b"").decode())
    worker = authority.issue_own(MemberIdentity(authority.pool_id, MemberKind.WORKER, "w1"))
    (tmp_path / "crt").write_bytes(worker.certificate_pem)
    (tmp_path / "key").write_bytes(worker.key_pem)
    posing = StoreServer(store)
    files = CertificateFiles(TlsOptions(tmp_path / "crt", tmp_path / "key"))
    tls = ServerTls(authority, "127.0.0.1:0")
    tls._sources = [files]
    address = f"127.0.0.1:{posing.start('127.0.0.1:0', tls.credentials())}"
    try:
        for name in (stand.tls.trust.name, ""):
            contexts.put(Context(address, stand.token).with_trust(stand.tls.trust._replace(name=name)))
            with Client(address) as client, pytest.raises(ServerNotTrusted, match="is for other hosts"):
                client.stats()
    finally:
        posing.stop(0.0)


def test_the_address_is_verified_by_who_wants_that(store: FileStorage, stand: Stand) -> None:
    host_checked = stand.tls.trust._replace(name="")
    stand.know(host_checked)
    with Client(stand.address) as client:
        client.stats()
    elsewhere = StoreServer(store)
    address = f"127.0.0.9:{elsewhere.start('127.0.0.9:0', stand.tls.credentials())}"
    try:
        stand.know(host_checked, address)
        with Client(address) as client, pytest.raises(ServerNotTrusted, match="other hosts"):
            client.stats()
        stand.know(stand.tls.trust, address)
        with Client(address) as client:
            client.stats()
    finally:
        elsewhere.stop(0.0)


@pytest.mark.parametrize(("days", "text"), [(-60, "it expired, or that clock is"), (60, "hours slow")])
def test_clocks_that_differ_are_named(store: FileStorage, contexts: Contexts, days: int, text: str) -> None:
    def then() -> int:
        return wall_ms() + days * DAY_MS

    tls = ServerTls(Authority(store.path / "a.pem", "a" * 32, then), "127.0.0.1:0", None, then)
    server = StoreServer(store)
    address = f"127.0.0.1:{server.start('127.0.0.1:0', tls.credentials())}"
    try:
        contexts.put(Context(address, "twu1." + "a" * 43).with_trust(tls.trust))
        with Client(address) as client, pytest.raises(ServerNotTrusted, match=text) as refused:
            client.stats()
        assert "clock" in str(refused.value)
    finally:
        server.stop(0.0)


def test_nothing_is_sent_to_a_server_without_tls(store: FileStorage, stand: Stand) -> None:
    plain = StoreServer(store)
    address = f"127.0.0.1:{plain.start('127.0.0.1:0')}"
    try:
        stand.know(stand.tls.trust, address)
        with Client(address) as client, pytest.raises(ServerNotTrusted, match="does not use TLS"):
            client.stats()
        with pytest.raises(StorageUnavailable, match="answers with TLS"):
            known_by_hash(address, "0" * 64)
        assert not shows_certificates(address)
    finally:
        plain.stop(0.0)


def test_a_listener_in_the_servers_place_is_sent_a_greeting_only(stand: Stand) -> None:
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"

        def listen() -> None:
            try:
                while True:
                    accepted, _ = listener.accept()
                    heard.append(accepted.recv(65536))
                    accepted.close()
            except OSError:
                return

        threading.Thread(target=listen, daemon=True).start()
        stand.know(stand.tls.trust, address)
        with Client(address) as client, pytest.raises(StorageUnavailable):
            client.push(b"planted", filename="a", user_id="ann", timeout_s=10)
    assert heard
    assert all(one[:1] == b"\x16" for one in heard if one)  # a record of a TLS handshake
    assert not any(stand.token.encode() in one or b"planted" in one for one in heard)


# -- certificates that are given -----------------------------------------------------------------


class Files:
    """A certificate authority of an organization, and the files of a server's certificate."""

    def __init__(self, directory: Path) -> None:
        self.authority = Authority(directory / "organization.pem", "c" * 32)
        self.options = TlsOptions(directory / "server.crt", directory / "server.key")
        self.issue()

    def issue(self) -> None:
        assert self.options.certificate is not None
        assert self.options.key is not None
        names = [DNSName("localhost"), IPAddress(_LOOPBACK)]
        pair = self.authority.issue_own(MemberIdentity("c" * 32, MemberKind.POOL, "x"), names=names)
        self.options.key.write_bytes(pair.key_pem)
        self.options.certificate.write_bytes(pair.certificate_pem)

    def shown_at(self, address: str) -> int:
        return certificates_shown_at(address, 10.0)[0].serial_number


def test_a_given_certificate_is_shown_and_read_again(
    store: FileStorage, contexts: Contexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Files(tmp_path)
    stand = started(store, contexts, files.options)
    try:
        with Client(stand.address) as client:
            client.stats()  # its owner knows it by its own authority, as before
        organization = files.authority.certificates_pem
        assert known_by_authority(stand.address, organization) == Trust(organization.decode(), "")
        assert known_by_hash(stand.address, stand.tls.fingerprint) == stand.tls.trust
        first = files.shown_at(stand.address)
        files.issue()
        second = files.shown_at(stand.address)
        assert first != second
        assert files.options.certificate is not None
        files.options.certificate.write_bytes(b"half a certifi")
        assert files.shown_at(stand.address) == second
        files.issue()
        assert files.shown_at(stand.address) not in (first, second)
        (tmp_path / "roots.pem").write_bytes(organization)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "roots.pem"))
        stand.know(Trust())  # the authorities that this machine trusts
        with Client(stand.address) as client:
            client.stats()
    finally:
        stand.server.stop(0.0)


def _unencrypted(key: ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _self_signed(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    nobody, now = Name([]), datetime.now(UTC)
    builder = CertificateBuilder().subject_name(nobody).issuer_name(nobody).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256()
    return builder.sign(key, algorithm).public_bytes(Encoding.PEM)


def test_files_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    files = Files(tmp_path)
    certificate, key = files.options.certificate, files.options.key
    assert certificate is not None
    assert key is not None

    def refuse(text: str) -> None:
        with pytest.raises(InvalidArgument, match=text):
            CertificateFiles(files.options)

    good = key.read_bytes()
    files.issue()
    key.write_bytes(good)
    refuse("does not belong to the certificate")
    certificate.write_bytes(b"")
    refuse("malformed")
    key.write_bytes(_unencrypted(ed := ed25519.Ed25519PrivateKey.generate()))
    certificate.write_bytes(_self_signed(ed))
    refuse("Ed25519")
    locked = load_pem_private_key(good, None)
    key.write_bytes(locked.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    assert isinstance(locked, ec.EllipticCurvePrivateKey)
    certificate.write_bytes(_self_signed(locked))
    refuse("is encrypted")
    with pytest.raises(InvalidArgument, match="belong together"):
        CertificateFiles(TlsOptions(certificate))
    key.unlink()
    with pytest.raises(FileNotFoundError):
        CertificateFiles(files.options)
    with pytest.raises(InvalidArgument, match="no host name"):
        OwnCertificate(files.authority, ["größe"])


def test_the_own_certificate_is_renewed_in_time_and_by_the_authority_that_users_know(tmp_path: Path) -> None:
    now_ms = wall_ms()
    authority = Authority(tmp_path / "a.pem", "a" * 32, lambda: now_ms)
    own = OwnCertificate(authority, ["127.0.0.1"], lambda: now_ms)
    first = own.pair()
    assert own.pair() is first
    now_ms += 14 * DAY_MS
    assert own.pair() is first
    now_ms += 2 * DAY_MS
    assert own.pair() != first
    oldest = authority.oldest_fingerprint
    authority.add_next()
    authority.promote()
    assert authority.oldest_fingerprint == oldest != authority.fingerprint
    authority.drop_former()
    assert authority.oldest_fingerprint == authority.fingerprint
