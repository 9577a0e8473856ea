"""Names of a pool's members, as their certificates carry them.

A certificate has one URI in the form of SPIFFE, ``spiffe://POOL/KIND/NAME``
(https://spiffe.io/docs/latest/spiffe-about/spiffe-concepts/), and one DNS name that is derived from it. TLS libraries
compare the latter with the name that a client expects, so that no code of ours takes part in that decision. The names
end in ``.internal``, which ICANN has reserved for such use.
"""

from __future__ import annotations

from enum import StrEnum
from hashlib import sha256
from typing import NamedTuple
from urllib.parse import quote, unquote

from storage.errors import InvalidArgument

_SCHEME = "spiffe://"
_ZONE = "taskworker.internal"
POOL_DNS_NAME = f"pool.{_ZONE}"
"""A DNS name in the certificate of every pool: a worker that joins knows the pool's authority, but not its id yet."""
_DIGEST_CHARACTERS = 40  # 160 bits; a label of a DNS name has at most 63 characters
_TEXT_MAX = 2048  # characters of a URI, as SPIFFE limits it


class MemberKind(StrEnum):
    """What a member is."""

    POOL = "pool"
    WORKER = "worker"


class MemberIdentity(NamedTuple):
    """A member of a pool.

    Attributes:
        pool: id of the pool, 32 hexadecimal digits.
        kind: what the member is.
        name: its name among those of its kind.
    """

    pool: str
    kind: MemberKind
    name: str

    @property
    def uri(self) -> str:
        """The URI in its certificate."""
        return f"{_SCHEME}{self.pool}/{self.kind}/{quote(self.name, safe='')}"

    @property
    def dns_name(self) -> str:
        """The DNS name in its certificate."""
        digest = sha256(self.uri.encode()).hexdigest()[:_DIGEST_CHARACTERS]
        return f"{digest}.{self.kind}.{_ZONE}"

    @classmethod
    def parse(cls, uri: str) -> MemberIdentity:
        """Inverse of :attr:`uri`.

        Raises:
            InvalidArgument: it is no URI of a member.
        """
        pool, _, rest = uri.removeprefix(_SCHEME).partition("/")
        kind, _, name = rest.partition("/")
        if len(uri) <= _TEXT_MAX and kind in [*MemberKind]:
            try:
                identity = cls(pool, MemberKind(kind), unquote(name, errors="strict"))
            except UnicodeDecodeError:
                identity = None
            if identity is not None and identity.uri == uri and pool and name:
                return identity
        raise InvalidArgument(f"a certificate names {uri[:_TEXT_MAX]!r}, which is no member of a pool")
