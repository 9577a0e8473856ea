"""A worker's part in a pool whose workers join with tokens: its certificate, and its connections to the pool."""

from __future__ import annotations

import contextlib
import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import grpc
import msgspec

from storage.clocks import wall_ms
from storage.errors import FormatError, InvalidArgument
from storage.system.private_files import read_private, write_private
from taskworker.auth.certificates import (
    KeyPair,
    NotTrusted,
    certificate_to_pem,
    fingerprint_of,
    key_to_pem,
    new_key,
    new_request,
)
from taskworker.auth.identity import POOL_DNS_NAME, MemberIdentity, MemberKind
from taskworker.auth.join_tokens import JoinToken
from taskworker.auth.tls import MemberCredentials
from taskworker.auth.user_tokens import hash_of_token
from taskworker.errors import StorageUnavailable, WorkerRefused
from taskworker.protos import members_pb2
from taskworker.protos.members_pb2_grpc import EnrollmentServiceStub, MemberServiceStub
from taskworker.rpc import status
from taskworker.rpc.dialling import dial_secure
from taskworker.rpc.shown_certificates import certificates_shown_at
from taskworker.rpc.token_channel import TokenChannel

log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

_FILE = "member.json"
_TIMEOUT_S = 10.0


class _Kept(msgspec.Struct, frozen=True):
    """What a worker keeps of its membership, in a private file.

    Attributes:
        members_address: where the pool serves its members.
        key: private key, PEM.
        certificate: PEM.
        authorities: certificates of authorities, PEM.
        token_hash: SHA-256 of the token with which it was got, hexadecimal.
    """

    members_address: str
    key: str
    certificate: str
    authorities: str
    token_hash: str


_decoder = msgspec.json.Decoder(_Kept)


class WorkerMember:
    """A worker that is a member of a pool, by a certificate.

    Args:
        path: the private file with its key and certificate.
        kept: what is in it.
        now_ms: milliseconds since 1970.
    """

    def __init__(self, path: Path, kept: _Kept, now_ms: Callable[[], int] = wall_ms) -> None:
        self._path = path
        self._kept = kept
        pair = KeyPair(kept.key.encode(), kept.certificate.encode(), kept.authorities.encode())
        self.credentials = MemberCredentials(pair, now_ms)

    @property
    def worker_id(self) -> str:
        """Id of the worker."""
        return self.credentials.identity.name

    @property
    def pool_id(self) -> str:
        """Id of the pool."""
        return self.credentials.identity.pool

    def joined_with(self, token: str) -> bool:
        """Whether it was this token with which the worker joined."""
        return _hash(token) == self._kept.token_hash

    @property
    def members_address(self) -> str:
        """Where the pool serves its members."""
        return self._kept.members_address

    def dial(self) -> grpc.Channel:
        """Make a channel to the pool, with the present certificate. After a renewal, another one is needed."""
        return dial_secure(self.members_address, self.credentials.for_grpc_channel(), POOL_DNS_NAME)

    def channel(self) -> grpc.Channel:
        """Make a channel to the pool that follows renewals."""
        return TokenChannel(lambda _pair: self.dial(), lambda: ("", self.credentials.pair))

    def renew(self, channel: grpc.Channel) -> None:
        """Get a new key and certificate, and keep them.

        Raises:
            StorageError: the pool does not answer, or refuses.
            OSError: they cannot be kept; the former ones stay in use.
        """
        key = new_key()
        answer: members_pb2.Membership = _called(
            self.members_address,
            lambda: MemberServiceStub(channel).Renew(
                members_pb2.RenewRequest(certificate_request=new_request(key)), timeout=_TIMEOUT_S
            ),
        )
        kept = _kept_of(answer, self.members_address, key_to_pem(key), self.worker_id, self._kept.token_hash)
        write_private(self._path, msgspec.json.encode(kept))
        self._kept = kept
        self.credentials.renew(KeyPair(key_to_pem(key), answer.certificate, answer.authorities))
        log.info("the certificate of worker %s was renewed", self.worker_id)


def load_member(directory: Path, now_ms: Callable[[], int] = wall_ms) -> WorkerMember | None:
    """Return the member whose worker keeps its data in a directory; None if it has not joined with a token.

    Raises:
        FormatError: its file is damaged.
        NotPrivate, OSError: its file cannot be read, or others may read it.
    """
    raw = read_private(directory / _FILE)
    if raw is None:
        return None
    try:
        return WorkerMember(directory / _FILE, _decoder.decode(raw), now_ms)
    except (msgspec.DecodeError, InvalidArgument, ssl.SSLError, UnicodeEncodeError) as error:
        raise FormatError(
            f"{directory / _FILE} is damaged ({error}): remove it, and start the worker with a new --token"
        ) from error


def enroll(
    directory: Path, join_address: str, token_text: str, worker_id: str, now_ms: Callable[[], int] = wall_ms
) -> WorkerMember:
    """Join a pool with a token: get a certificate, and keep it.

    Args:
        directory: where the worker keeps its data.
        join_address: where the pool listens for workers that join, ``host:port``.
        token_text: the token.
        worker_id: id of the worker, which must be the token's.
        now_ms: milliseconds since 1970.

    Raises:
        InvalidArgument: the token is malformed.
        WorkerRefused: it is for another worker or pool, or the pool does not accept it.
        StorageUnavailable: nobody answers.
        OSError: the certificate cannot be kept.
    """
    token = JoinToken.parse(token_text)
    if token.worker != worker_id:
        raise WorkerRefused(f"the token is for worker {token.worker!r}, not for {worker_id!r}; give --id accordingly")
    authority = _authority_at(join_address, token.authority)
    key = new_key()
    channel = dial_secure(join_address, grpc.ssl_channel_credentials(authority), POOL_DNS_NAME)
    with contextlib.closing(channel):
        request = members_pb2.EnrollRequest(
            worker_id=worker_id, secret=token.secret, certificate_request=new_request(key), now_ms=now_ms()
        )
        answer: members_pb2.EnrollResponse = _called(
            join_address, lambda: EnrollmentServiceStub(channel).Enroll(request, timeout=_TIMEOUT_S)
        )
    members_address = f"{join_address.rpartition(':')[0]}:{answer.members_port}"
    kept = _kept_of(answer.membership, members_address, key_to_pem(key), worker_id, _hash(token_text))
    write_private(directory / _FILE, msgspec.json.encode(kept))
    return WorkerMember(directory / _FILE, kept, now_ms)


def _kept_of(
    answer: members_pb2.Membership, members_address: str, key: bytes, worker_id: str, token_hash: str
) -> _Kept:
    pair = KeyPair(key, answer.certificate, answer.authorities)
    if pair.identity != MemberIdentity(answer.pool_id, MemberKind.WORKER, worker_id):
        raise WorkerRefused(f"the pool at {members_address} issued a certificate for somebody else")
    return _Kept(members_address, key.decode(), answer.certificate.decode(), answer.authorities.decode(), token_hash)


def _hash(token: str) -> str:
    return hash_of_token(token.strip()).hex()


def _authority_at(address: str, fingerprint: str) -> bytes:
    """Fetch the certificate of the authority with this SHA-256, PEM. Nothing is sent to the server but a greeting.

    Raises:
        InvalidArgument: the address is malformed.
        StorageUnavailable: nobody answers.
        WorkerRefused: whoever answers does not show that authority.
    """
    try:
        chain = certificates_shown_at(address, _TIMEOUT_S)  # the hash is what is verified; then gRPC verifies the chain
    except NotTrusted as error:
        raise WorkerRefused(f"the server shows a certificate that cannot be read: {error}") from None
    except OSError as error:
        raise StorageUnavailable(f"no pool answers at {address}, where workers join ({error})") from None
    for certificate in chain:
        if fingerprint_of(certificate) == fingerprint:
            return certificate_to_pem(certificate)
    raise WorkerRefused(
        f"the server at {address} is not the pool that the token is from: its certificates have other fingerprints. "
        "Check the address; if it is right, somebody is between this machine and the pool, and nothing was sent to them"
    )


def _called(address: str, call: Callable[[], ResultT]) -> ResultT:
    try:
        return call()
    except grpc.RpcError as error:
        raise status.decode(error, address) from None
