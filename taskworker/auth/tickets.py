"""Tickets: with one, a client reads shards of certain objects from certain workers, which need not ask anybody.

Those for writing are in :mod:`taskworker.auth.write_tickets`.

A ticket is signed with a key that only the pool has. The certificate of that key comes with the ticket, and is issued
by the pool's authority to the pool itself. So whoever knows the authority can check a ticket, also while the authority
is being replaced, and no worker can make one. docs/format.md has the bytes.
"""

from __future__ import annotations

import functools
import secrets
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, Generic, NamedTuple, Protocol, TypeVar

import msgspec
from blake3 import blake3
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from storage.clocks import wall_ms
from storage.keys import ID_BYTES
from storage.limits import KIB
from taskworker.auth.authority import LIFETIME_S, Authority
from taskworker.auth.certificates import (
    Lifetime,
    NotTrusted,
    identity_of,
    lifetime_of,
    read_certificates,
    read_key,
)
from taskworker.auth.identity import MemberIdentity, MemberKind
from taskworker.errors import TicketRefused

VALID_S = 300.0
"""For how many seconds a ticket is valid."""
_SKEW_S = 300.0  # by so much the clocks of machines differ; certificates are backdated by as much
OBJECTS_MAX = 256
"""How many objects a ticket names at most."""
WORKERS_MAX = 256
"""How many workers a ticket names at most."""
TICKET_BYTES_MAX = 48 * KIB
_FORMAT = 1
_NAME_CHARACTERS_MAX = 128
USER_BYTES = 16
"""Length of what names a user to the pool."""
_CERTIFICATE_BYTES_MAX = 4 * KIB
_SIGNATURE_BYTES_MAX = 128
_REMEMBERED = 128
_NUMBERS = 1 << 20  # more than tickets can be signed in a millisecond
READING = b"TaskWorker ticket\0"
"""What is signed before the body, so that no ticket can be taken for one of another kind."""
_ALGORITHM = ec.ECDSA(hashes.SHA256())


class Ticket(NamedTuple):
    """What a client may read.

    Attributes:
        pool: id of the pool.
        reader: names the user to the pool, and means nothing to others.
        workers: DNS names in the certificates of the workers to read from.
        k: how the objects are coded.
        n: likewise.
        objects: ids of the chunks that may be read.
        bytes_max: how many bytes of payloads each worker may send.
        issued_ms: when it was issued, in ms since 1970.
        expires_ms: until when it is valid.
        digest: hash of what was signed: the bytes around that can be written in several ways.
    """

    pool: str
    reader: bytes
    workers: frozenset[str]
    k: int
    n: int
    objects: frozenset[bytes]
    bytes_max: int
    issued_ms: int
    expires_ms: int
    digest: bytes


Name = Annotated[str, msgspec.Meta(min_length=1, max_length=_NAME_CHARACTERS_MAX)]
Shards = Annotated[int, msgspec.Meta(ge=1, le=256)]
Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]


class _Body(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    format: Annotated[int, msgspec.Meta(ge=_FORMAT, le=_FORMAT)]
    pool: Name
    reader: Annotated[bytes, msgspec.Meta(min_length=USER_BYTES, max_length=USER_BYTES)]
    workers: Annotated[list[Name], msgspec.Meta(min_length=1, max_length=WORKERS_MAX)]
    k: Shards
    n: Shards
    objects: Annotated[bytes, msgspec.Meta(min_length=ID_BYTES, max_length=OBJECTS_MAX * ID_BYTES)]
    bytes_max: Count
    issued_ms: Count
    expires_ms: Count


class _Signed(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    body: bytes
    signature: Annotated[bytes, msgspec.Meta(max_length=_SIGNATURE_BYTES_MAX)]
    certificate: Annotated[bytes, msgspec.Meta(max_length=_CERTIFICATE_BYTES_MAX)]


_bodies = msgspec.msgpack.Decoder(_Body)
_envelopes = msgspec.msgpack.Decoder(_Signed)


class _Signer(NamedTuple):
    """A key to sign with, and until when."""

    key: ec.EllipticCurvePrivateKey
    certificate: bytes
    authorities: bytes
    renew_ms: int


class Head(NamedTuple):
    """What tickets of all kinds say.

    Attributes:
        pool: id of the pool.
        user: names the user to the pool.
        issued_ms: when it is issued, in ms since 1970.
        expires_ms: until when it is valid.
    """

    pool: str
    user: bytes
    issued_ms: int
    expires_ms: int


class TicketIssuer:
    """Issues the tickets of a pool. Thread-safe. Its key is in memory only, and another one after a restart.

    Args:
        authority: returns the pool's authority.
        now_ms: milliseconds since 1970.
    """

    def __init__(self, authority: Callable[[], Authority], now_ms: Callable[[], int] = wall_ms) -> None:
        self._authority = authority
        self._now_ms = now_ms
        self._lock = threading.Lock()
        self._signer: _Signer | None = None
        self._users = secrets.token_bytes(32)
        self._number = 0

    @property
    def authorities_pem(self) -> bytes:
        """The certificates of the authorities that vouch for tickets."""
        return self._authority().certificates_pem

    def issue(
        self, user: str, workers: Sequence[str], k: int, n: int, objects: Sequence[bytes], bytes_max: int
    ) -> bytes:
        """Issue a ticket that is valid for :data:`VALID_S` seconds.

        Args:
            user: who is going to read; workers are not told.
            workers: DNS names in the certificates of the workers, at most :data:`WORKERS_MAX`.
            k: how the objects are coded.
            n: likewise.
            objects: ids of the chunks, at most :data:`OBJECTS_MAX`.
            bytes_max: how many bytes of payloads each worker may send.
        """
        head = self.head(user)
        return self.sign(
            READING,
            _Body(
                format=_FORMAT,
                pool=head.pool,
                reader=head.user,
                workers=list(workers),
                k=k,
                n=n,
                objects=b"".join(objects),
                bytes_max=bytes_max,
                issued_ms=head.issued_ms,
                expires_ms=head.expires_ms,
            ),
        )

    def head(self, user: str) -> Head:
        """What every ticket says that is issued now; it differs from that of all others."""
        now_ms = self._now_ms()
        return Head(
            self._authority().pool_id,
            blake3(user.encode(), key=self._users).digest(USER_BYTES),
            now_ms,
            now_ms + int(VALID_S * 1000) + self._next_number(),
        )

    def sign(self, purpose: bytes, body: msgspec.Struct) -> bytes:
        """A ticket with a body.

        Args:
            purpose: what is signed before the body; another one for each kind of ticket.
            body: what the ticket says.
        """
        signer, raw = self._present(), msgspec.msgpack.encode(body)
        return msgspec.msgpack.encode(_Signed(raw, signer.key.sign(purpose + raw, _ALGORITHM), signer.certificate))

    def _next_number(self) -> int:
        """What makes a ticket differ from all others, as workers count the bytes of equal tickets together.

        It is added to the time of expiry, which it does not change: no ticket is valid for longer than
        :data:`VALID_S` after it was issued. Fields of its own would be refused by workers of former releases.
        """
        with self._lock:
            self._number = (self._number + 1) % _NUMBERS
            return self._number

    def _present(self) -> _Signer:
        authority = self._authority()
        with self._lock:
            signer, trusted = self._signer, authority.certificates_pem
            if signer is None or signer.authorities != trusted or self._now_ms() >= signer.renew_ms:
                identity = MemberIdentity(authority.pool_id, MemberKind.POOL, "tickets")
                # Workers learn of a new authority when they renew their certificates; the former one they know.
                pair = authority.issue_own(identity, by_oldest=True)
                certificate = pair.certificate.public_bytes(serialization.Encoding.DER)
                renew_ms = self._now_ms() + LIFETIME_S * 500
                signer = self._signer = _Signer(read_key(pair.key_pem), certificate, trusted, renew_ms)
            return signer


class Body(Protocol):
    """What the bodies of tickets of all kinds have."""

    @property
    def pool(self) -> str:
        """Id of the pool."""

    @property
    def workers(self) -> Sequence[str]:
        """DNS names in the certificates of the workers that it is for."""

    @property
    def issued_ms(self) -> int:
        """When it was issued, in ms since 1970."""

    @property
    def expires_ms(self) -> int:
        """Until when it is said to be valid."""


class Timed(Protocol):
    """What all kinds of tickets have."""

    @property
    def issued_ms(self) -> int:
        """When it was issued, in ms since 1970."""

    @property
    def expires_ms(self) -> int:
        """Until when it is valid."""


BodyT = TypeVar("BodyT", bound=Body)
TicketT = TypeVar("TicketT", bound=Timed)


class Checker(ABC, Generic[BodyT, TicketT]):
    """Checks tickets of one kind that are shown to a worker. Thread-safe.

    Args:
        purpose: what is signed before the body.
        bodies: decodes bodies.
        identity: the worker.
        authorities: returns the certificates of the authorities that the worker trusts, PEM; empty: none yet.
        now_ms: milliseconds since 1970.
    """

    def __init__(
        self,
        purpose: bytes,
        bodies: msgspec.msgpack.Decoder[BodyT],
        identity: MemberIdentity,
        authorities: Callable[[], bytes],
        now_ms: Callable[[], int],
    ) -> None:
        self._purpose = purpose
        self._bodies = bodies
        self._identity = identity
        self._authorities = authorities
        self._now_ms = now_ms
        self._read = functools.lru_cache(maxsize=_REMEMBERED)(self._read_signed)

    def check(self, raw: bytes) -> TicketT:
        """Return what a ticket allows here and now.

        Raises:
            TicketRefused: it is malformed, for another purpose, not signed by the pool, expired, or for other workers;
                the text says which.
        """
        if len(raw) > TICKET_BYTES_MAX:
            raise TicketRefused(f"a ticket of {len(raw):,} bytes; there are at most {TICKET_BYTES_MAX:,}")
        ticket, lifetime = self._read(raw, self._authorities())
        _require_valid(ticket, lifetime, self._now_ms())
        return ticket

    def _read_signed(self, raw: bytes, authorities: bytes) -> tuple[TicketT, Lifetime]:
        """Read a ticket of this pool, and check all that does not depend on the time."""
        raw_body, lifetime = _opened(raw, self._purpose, authorities, self._identity.pool)
        try:
            body = self._bodies.decode(raw_body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise TicketRefused(f"the ticket is malformed: {error}") from None
        if body.pool != self._identity.pool:
            raise TicketRefused("the ticket is of another pool")
        if self._identity.dns_name not in body.workers:
            raise TicketRefused("the ticket is for other workers")
        expires_ms = min(body.expires_ms, body.issued_ms + int(VALID_S * 1000))
        return self._ticket(body, expires_ms, blake3(raw_body).digest()), lifetime

    @abstractmethod
    def _ticket(self, body: BodyT, expires_ms: int, digest: bytes) -> TicketT:
        """What the body of a ticket for this worker allows.

        Raises:
            TicketRefused: it is malformed.
        """


class TicketChecker(Checker[_Body, Ticket]):
    """Checks tickets for reading; see :class:`Checker`."""

    def __init__(
        self, identity: MemberIdentity, authorities: Callable[[], bytes], now_ms: Callable[[], int] = wall_ms
    ) -> None:
        super().__init__(READING, _bodies, identity, authorities, now_ms)

    def _ticket(self, body: _Body, expires_ms: int, digest: bytes) -> Ticket:
        if body.k > body.n or len(body.objects) % ID_BYTES:
            raise TicketRefused("the ticket is malformed: no objects of this kind exist")
        return Ticket(
            body.pool,
            body.reader,
            frozenset(body.workers),
            body.k,
            body.n,
            frozenset(body.objects[at : at + ID_BYTES] for at in range(0, len(body.objects), ID_BYTES)),
            body.bytes_max,
            body.issued_ms,
            expires_ms,
            digest,
        )


def _opened(raw: bytes, purpose: bytes, authorities: bytes, pool: str) -> tuple[bytes, Lifetime]:
    """The body of a ticket that a pool signed for a purpose, and when the certificate is valid with which it did.

    Raises:
        TicketRefused: it is malformed, of another kind, or not signed by the pool.
    """
    try:
        signed = _envelopes.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TicketRefused(f"the ticket is malformed: {error}") from None
    key, lifetime = _signer_of(signed.certificate, authorities, pool)
    try:
        key.verify(signed.signature, purpose + signed.body, _ALGORITHM)
    except InvalidSignature:
        raise TicketRefused("the ticket was not signed by this pool, or was changed") from None
    return signed.body, lifetime


def _require_valid(ticket: Timed, lifetime: Lifetime, now_ms: int) -> None:
    """Check that a ticket is valid now, and so was the certificate with which it was signed.

    Raises:
        TicketRefused: it is not; the text says why.
    """
    if now_ms > ticket.expires_ms or now_ms / 1000 > lifetime.end_s:
        raise TicketRefused("the ticket has expired; ask the pool for another one, and compare the machines' clocks")
    if now_ms < ticket.issued_ms - _SKEW_S * 1000:
        raise TicketRefused("the ticket is not valid yet: compare the clocks of the pool's and the worker's machines")


_MALFORMED = (x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, UnsupportedAlgorithm)


@functools.lru_cache(maxsize=8)
def _signer_of(der: bytes, authorities: bytes, pool: str) -> tuple[ec.EllipticCurvePublicKey, Lifetime]:
    """The key in a certificate that one of the authorities issued to the pool, and when the certificate is valid."""
    if not authorities:
        raise TicketRefused("this worker does not know yet who signs tickets")
    try:
        certificate = x509.load_der_x509_certificate(der)
        identity = identity_of(certificate)
        issuers = read_certificates(authorities)
    except (ValueError, NotTrusted, *_MALFORMED) as error:
        raise TicketRefused(f"the certificate in the ticket is malformed: {error}") from None
    if (identity.pool, identity.kind) != (pool, MemberKind.POOL):
        raise TicketRefused(f"the ticket was signed by {identity.kind} {identity.name!r}; only the pool may do that")
    if not any(_issued(certificate, issuer) for issuer in issuers):
        raise TicketRefused("the ticket was signed with a key that the pool's authority does not vouch for")
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TicketRefused("the certificate in the ticket has a key of another kind")
    return key, lifetime_of(certificate)


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        return False
    return True
