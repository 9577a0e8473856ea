"""How workers become members of a pool, and how they cease to be members."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import msgspec

from storage.clocks import wall_ms
from storage.errors import InvalidArgument, PermissionDenied
from taskworker.auth.authority import LIFETIME_S, Authority
from taskworker.auth.certificates import Lifetime, public_key_hash, read_request
from taskworker.auth.documents import Documents
from taskworker.auth.identity import MemberIdentity, MemberKind
from taskworker.auth.join_tokens import TTL_S, Admission, JoinToken, JoinTokens
from taskworker.errors import WorkerRefused

DOCUMENT = "pool-admissions"
CLOCK_SKEW_S_MAX = 300.0
"""By how many seconds a worker's clock may differ from the pool's."""
_ID_BYTES_MAX = 200
DENIED_MAX = 1000
"""Workers told in one answer, some 30 KiB; each is told for a day at most."""


class Issued(NamedTuple):
    """A certificate as its member gets it.

    Attributes:
        certificate_pem: the certificate.
        authorities_pem: certificates of all authorities to trust.
    """

    certificate_pem: bytes
    authorities_pem: bytes


class _Told(msgspec.Struct, frozen=True):
    """What a member got last.

    Attributes:
        authorities: the state of the authorities then, see :attr:`Authority.state`.
        until_ms: until when its certificate is valid.
    """

    authorities: str
    until_ms: int


class _Kept(msgspec.Struct, frozen=True):
    """The members by certificate.

    Attributes:
        admitted: what each of them was admitted as, by its id.
        denied: ids whose certificates are not accepted any more.
        told: what each of them got last; those of former releases are added as soon as they are read.
        port: at which they find the pool; 0: unknown.
    """

    admitted: dict[str, Admission] = {}
    denied: frozenset[str] = frozenset()
    told: dict[str, _Told] = {}
    port: int = 0


_decoder = msgspec.msgpack.Decoder(_Kept)


class Enrollment:
    """Gives out tokens, trades them for certificates, renews these, and denies members. Thread-safe.

    Args:
        authority: issues the certificates.
        documents: where tokens and admissions are stored.
        now_ms: milliseconds since 1970.
        lifetime_s: how long certificates of members are valid.
    """

    def __init__(
        self,
        authority: Authority,
        documents: Documents,
        now_ms: Callable[[], int] = wall_ms,
        lifetime_s: float = LIFETIME_S,
    ) -> None:
        self._authority = authority
        self._documents = documents
        self._now_ms = now_ms
        self._lifetime_s = lifetime_s
        self._tokens = JoinTokens(documents, now_ms)
        self._lock = threading.Lock()
        raw = documents.document(DOCUMENT)
        kept = _decoder.decode(raw) if raw else _Kept()
        unknown = _Told("", self._now_ms() + int(LIFETIME_S * 1000))
        self._kept = msgspec.structs.replace(kept, told=dict.fromkeys(kept.admitted, unknown) | kept.told)

    def new_token(self, admission: Admission, ttl_s: float = TTL_S) -> JoinToken:
        """Make a token with which a worker can join once. A worker that was denied may join again with it.

        Raises:
            InvalidArgument: the id or the time cannot be used.
            StoreFull: too many tokens wait for their use.
        """
        if len(admission.worker.encode("utf-8", "surrogatepass")) > _ID_BYTES_MAX:
            raise InvalidArgument(f"a worker's id has at most {_ID_BYTES_MAX} bytes")
        return self._tokens.create(self._authority.oldest_fingerprint, admission, ttl_s)

    def enroll(self, worker: str, secret: str, request_pem: bytes, their_ms: int) -> Issued:
        """Trade a token for a certificate.

        Args:
            worker: id of the worker.
            secret: the secret of its token.
            request_pem: the request for a certificate.
            their_ms: the worker's clock.

        Raises:
            WorkerRefused: the token is not valid, or the worker's clock is wrong.
            InvalidArgument: the request is malformed.
        """
        request = read_request(request_pem)  # before the token is used up
        ahead_s = (their_ms - self._now_ms()) / 1000
        if abs(ahead_s) > CLOCK_SKEW_S_MAX:
            raise WorkerRefused(
                f"the clock of worker {worker} is {_duration(abs(ahead_s))} {'ahead' if ahead_s > 0 else 'behind'} of "
                "the pool's, so neither could judge the other's certificates; set both by NTP, and try again"
            )
        admission = self._tokens.use(worker, secret, public_key_hash(request))
        with self._lock:
            kept = self._kept
            self._keep(
                msgspec.structs.replace(
                    kept, admitted=kept.admitted | {worker: admission}, denied=kept.denied - {worker}
                )
            )
        return self._issue(worker, request_pem)

    def renew(self, member: MemberIdentity, request_pem: bytes) -> Issued:
        """Issue a new certificate to a member.

        Raises:
            PermissionDenied: it is not a member any more.
            InvalidArgument: the request is malformed.
        """
        self.require(member)
        return self._issue(member.name, request_pem)

    def _issue(self, worker: str, request_pem: bytes) -> Issued:
        identity = MemberIdentity(self._authority.pool_id, MemberKind.WORKER, worker)
        state = self._authority.state  # before, so that a member that missed a change is told again
        certificate = self._authority.issue(request_pem, identity, lifetime_s=self._lifetime_s)
        issued = Issued(certificate, self._authority.certificates_pem)
        told = _Told(state, self._now_ms() + int(self._lifetime_s * 1000))
        with self._lock:
            self._keep(msgspec.structs.replace(self._kept, told=self._kept.told | {worker: told}))
        return issued

    def lifetime(self, worker: str) -> Lifetime | None:
        """When the latest certificate of a worker is valid; None: it has none that is accepted."""
        kept = self._kept
        told = kept.told.get(worker)
        if told is None or worker not in kept.admitted or worker in kept.denied:
            return None
        return Lifetime(told.until_ms / 1000 - self._lifetime_s, told.until_ms / 1000)

    @property
    def port(self) -> int:
        """The port at which members find the pool, which they are told once; 0: none was chosen yet."""
        return self._kept.port

    def keep_port(self, port: int) -> None:
        """Note the port at which members find the pool."""
        with self._lock:
            if port != self._kept.port:
                self._keep(msgspec.structs.replace(self._kept, port=port))

    def is_behind(self, worker: str) -> bool:
        """Whether the authorities have changed since this worker got its certificate."""
        told = self._kept.told.get(worker)
        return told is None or told.authorities != self._authority.state

    def behind(self) -> list[str]:
        """The members with valid certificates that do not know the present authorities yet."""
        kept, now_ms = self._kept, self._now_ms()
        return sorted(
            worker
            for worker, told in kept.told.items()
            if worker in kept.admitted
            and worker not in kept.denied
            and told.until_ms > now_ms
            and told.authorities != self._authority.state
        )

    def require(self, member: MemberIdentity) -> Admission:
        """Return what a worker was admitted as.

        Raises:
            PermissionDenied: it is no worker of this pool, or was denied.
        """
        kept = self._kept
        if member.pool == self._authority.pool_id and member.kind is MemberKind.WORKER:
            admission = kept.admitted.get(member.name)
            if admission is not None and member.name not in kept.denied:
                return admission
        raise PermissionDenied(
            f"{member.kind} {member.name} is not a worker of this pool, or not any more; it needs a new token to join "
            "with (`taskworker worker token`)"
        )

    def deny(self, worker: str) -> None:
        """Accept a worker's certificates no longer, and drop its tokens; it is no member from now on.

        Raises:
            InvalidArgument: there is no worker with this id, and no token for it.
        """
        dropped = self._tokens.revoke(worker)
        with self._lock:
            if worker not in self._kept.admitted and not dropped:
                raise InvalidArgument(f"no worker {worker!r} has joined with a token, and none is to")
            self._keep(msgspec.structs.replace(self._kept, denied=self._kept.denied | {worker}))

    def denied_now(self) -> list[str]:
        """The workers that were denied, and whose certificates are still valid; at most as many as are told."""
        kept, now_ms = self._kept, self._now_ms()
        until = {worker: told.until_ms for worker in kept.denied if (told := kept.told.get(worker))}
        valid = sorted((until_ms, worker) for worker, until_ms in until.items() if until_ms > now_ms)
        return sorted(worker for _, worker in valid[-DENIED_MAX:])

    # -- backups ---------------------------------------------------------------------------------

    def members(self) -> tuple[dict[str, Admission], frozenset[str]]:
        """What workers were admitted as, by their ids, and the ids of those that were denied."""
        return self._kept.admitted, self._kept.denied

    def restore(self, admitted: Mapping[str, Admission], denied: Iterable[str]) -> int:
        """Add the members of a backup, except those that are there already; return how many were added.

        Raises:
            InvalidArgument: an id cannot be used.
        """
        for worker, admission in admitted.items():
            if not worker or admission.worker != worker or len(worker.encode("utf-8", "surrogatepass")) > _ID_BYTES_MAX:
                raise InvalidArgument(f"the backup has a worker with an id that cannot be used: {worker[:80]!r}")
        with self._lock:
            kept = self._kept
            added = {worker: one for worker, one in admitted.items() if worker not in kept.admitted}
            # When their certificates expire, is not known here; they learn of the authorities with their heartbeats.
            unknown = dict.fromkeys(added, _Told("", self._now_ms() + int(max(LIFETIME_S, self._lifetime_s) * 1000)))
            refused = kept.denied | {worker for worker in denied if worker in added}
            self._keep(
                msgspec.structs.replace(kept, admitted=kept.admitted | added, denied=refused, told=unknown | kept.told)
            )
            return len(added)

    def _keep(self, kept: _Kept) -> None:
        self._documents.save_document(DOCUMENT, msgspec.msgpack.encode(kept))
        self._kept = kept


def _duration(seconds: float) -> str:
    if seconds < 7200:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.0f} hours" if seconds < 1.5 * 86_400 else f"{seconds / 86_400:.0f} days"
