"""Tokens with which workers join a pool, each once.

A token is ``tw1.AUTHORITY.WORKER.SECRET``: the SHA-256 of the pool's certificate authority, by which a worker knows the
pool before it sends anything; the worker's id, percent-encoded; and 256 random bits. The pool keeps only a hash of
these.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import quote, unquote

import msgspec

from storage.clocks import wall_ms
from storage.errors import InvalidArgument, StoreFull
from taskworker.auth.documents import Documents
from taskworker.auth.user_tokens import hash_of_token
from taskworker.errors import WorkerRefused

TTL_S = 3600.0
TTL_S_MAX = 30 * 24 * 3600.0
DOCUMENT = "pool-join-tokens"
_PREFIX = "tw1"
_SECRET_BYTES = 32
_HASH_DIGITS = 64
_TOKENS_MAX = 10_000
_TOKEN_CHARACTERS_MAX = 4096


class JoinToken(NamedTuple):
    """A token as a worker is given it.

    Attributes:
        authority: SHA-256 of the authority's certificate, 64 hexadecimal digits.
        worker: id of the worker.
        secret: 43 characters of base64url.
    """

    authority: str
    worker: str
    secret: str

    @property
    def text(self) -> str:
        """The token as text."""
        return f"{_PREFIX}.{self.authority}.{quote(self.worker, safe='').replace('.', '%2E')}.{self.secret}"

    @classmethod
    def parse(cls, text: str) -> JoinToken:
        """Inverse of :attr:`text`.

        Raises:
            InvalidArgument: it is no such token. The text of the error does not contain it.
        """
        parts = text.strip().split(".")
        if len(text) <= _TOKEN_CHARACTERS_MAX and len(parts) == 4 and parts[0] == _PREFIX:
            _, authority, worker, secret = parts
            is_hash = len(authority) == _HASH_DIGITS and not set(authority) - set("0123456789abcdef")
            if is_hash and worker and secret:
                return cls(authority, unquote(worker), secret)
        raise InvalidArgument(
            "this is no token to join with: it is `tw1.` and three parts with dots between them, as `taskworker worker "
            "token` prints it"
        )


class Admission(msgspec.Struct, frozen=True):
    """What a token admits: a worker with this id, in this zone, of this owner.

    Attributes:
        worker: id of the worker.
        zone: its zone; empty: it chooses.
        owner: the owner of its machine; empty: it chooses.
        capacity_max: highest weight in the layout, in bytes; 0: no limit.
        host: where it is reached, if that is not where it calls from; empty: where it calls from.
    """

    worker: str
    zone: str = ""
    owner: str = ""
    capacity_max: int = 0
    host: str = ""


class _Kept(msgspec.Struct, frozen=True):
    """A token as the pool keeps it.

    Attributes:
        secret_hash: SHA-256 of the secret.
        admission: what it admits.
        expires_ms: until when it can be used.
        key_hash: the key for which it was used; empty: it was not. A worker that did not get the answer may ask again,
            with the same key.
    """

    secret_hash: bytes
    admission: Admission
    expires_ms: int
    key_hash: bytes = b""


_decoder = msgspec.msgpack.Decoder(list[_Kept])


class JoinTokens:
    """The tokens that were given out and may still be used. Thread-safe.

    Args:
        documents: where hashes of the tokens are stored.
        now_ms: milliseconds since 1970.
    """

    def __init__(self, documents: Documents, now_ms: Callable[[], int] = wall_ms) -> None:
        self._documents = documents
        self._now_ms = now_ms
        self._lock = threading.Lock()

    def create(self, authority: str, admission: Admission, ttl_s: float = TTL_S) -> JoinToken:
        """Make a token, and store its hash durably.

        Args:
            authority: SHA-256 of the authority's certificate.
            admission: what it admits.
            ttl_s: for how many seconds it can be used.

        Raises:
            InvalidArgument: the time is not between 1 second and 30 days, or there is no id.
            StoreFull: too many tokens wait for their use.
        """
        if not 1.0 <= ttl_s <= TTL_S_MAX:
            raise InvalidArgument(f"a token to join with is valid for 1 second to 30 days, not for {ttl_s:g} s")
        if not admission.worker:
            raise InvalidArgument("a token to join with is for one worker: give the worker's id")
        token = JoinToken(authority, admission.worker, secrets.token_urlsafe(_SECRET_BYTES))
        with self._lock:
            kept = self._read()
            if len(kept) >= _TOKENS_MAX:
                raise StoreFull(f"{_TOKENS_MAX:,} tokens to join with wait for their use; let some expire")
            kept.append(_Kept(hash_of_token(token.secret), admission, self._now_ms() + int(ttl_s * 1000)))
            self._save(kept)
        return token

    def use(self, worker: str, secret: str, key_hash: bytes) -> Admission:
        """Use a token up, and return what it admits.

        Args:
            worker: id of the worker.
            secret: the secret of its token.
            key_hash: SHA-256 of the public key that is to be certified.

        Raises:
            WorkerRefused: there is no such token, it has expired, or was used for another key.
        """
        digest = hash_of_token(secret)
        with self._lock:
            kept = self._read()
            for at, one in enumerate(kept):
                if secrets.compare_digest(one.secret_hash, digest) and one.admission.worker == worker:
                    if one.key_hash not in (b"", key_hash):
                        break
                    kept[at] = msgspec.structs.replace(one, key_hash=key_hash)
                    self._save(kept)
                    return one.admission
        raise WorkerRefused(
            "the token to join with is not valid: it was used already, or has expired, or is for another worker or "
            "pool; ask the pool's operator for a new one (`taskworker worker token`)"
        )

    def revoke(self, worker: str) -> int:
        """Drop all tokens for a worker's id; return how many there were."""
        with self._lock:
            kept = self._read()
            left = [one for one in kept if one.admission.worker != worker]
            if len(left) < len(kept):
                self._save(left)
            return len(kept) - len(left)

    def _read(self) -> list[_Kept]:
        raw = self._documents.document(DOCUMENT)
        now_ms = self._now_ms()
        return [] if not raw else [one for one in _decoder.decode(raw) if one.expires_ms > now_ms]

    def _save(self, kept: list[_Kept]) -> None:
        self._documents.save_document(DOCUMENT, msgspec.msgpack.encode(kept))
