"""The secrets of a pool: the operations of operators and functions."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from storage.clocks import wall_ms
from storage.errors import InvalidArgument, PermissionDenied
from storage.sealing.master_keys import MasterKey
from taskworker.auth.documents import Documents
from taskworker.calls import spec
from taskworker.errors import SecretDamaged, SecretExists, SecretNotFound, SecretsUnavailable
from taskworker.outbound.secrets.access_keys import AccessKeySecrets, is_of_access_key
from taskworker.outbound.secrets.document import SealedSecret
from taskworker.outbound.secrets.master_key import MasterKeySource
from taskworker.outbound.secrets.names import check_name, host_matches, host_pattern
from taskworker.outbound.secrets.sealing import Grant, Terms, seal
from taskworker.outbound.secrets.uses import LastUses
from taskworker.outbound.secrets.vault import Vault

VALUE_BYTES_MAX = 64 << 10
SECRETS_MAX = 10_000
GRANTS_MAX = 256
_HOSTS_MAX = 64
_PLACE = re.compile(r"\{\{secret:([^{}]{0,200})\}\}")


@dataclass(frozen=True, slots=True)
class SecretView:
    """What operators may see of a secret.

    Attributes:
        name: its name.
        version: version of its value, from 1.
        created_ms: when its first version was made, ms since 1970.
        changed_ms: when this version was made.
        last_used_ms: when a function last used it; None: never.
        grants: the functions that may use it.
        damaged: whether its record was changed, so that it cannot be used.
    """

    name: str
    version: int
    created_ms: int
    changed_ms: int
    last_used_ms: int | None
    grants: tuple[Grant, ...]
    damaged: bool


@dataclass(frozen=True, slots=True)
class MasterRotation:
    """A rotation of the master key: the new key's id, and how many secrets it wraps."""

    key_id: str
    secrets: int


class Secrets:
    """The secrets of a pool. Thread-safe. Only errors of operators' methods reveal what only operators may know.

    Attributes:
        access_keys: the secrets of access keys, which are kept beside these, and not listed.

    Operators' methods raise ``SecretsUnavailable`` if the master key cannot be used, and ``SecretDamaged`` if the
    catalog was tampered with.

    Args:
        documents: a catalog that stores the sealed secrets.
        source: where the master key is kept.
        now_ms: milliseconds since 1970.
        clock_s: monotonic seconds.
    """

    def __init__(
        self,
        documents: Documents,
        source: MasterKeySource,
        now_ms: Callable[[], int] = wall_ms,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._vault = Vault(documents, source)
        self.access_keys = AccessKeySecrets(self._vault, now_ms)
        self._source = source
        self._uses = LastUses(documents, now_ms, clock_s)
        self._now_ms = now_ms

    def check(self) -> None:
        """Make the master key if there is none yet, and check that all secrets can be read."""
        damaged = [one.name for one in self._vault.secrets().by_name.values() if one.damaged]
        if damaged:
            raise SecretDamaged(
                f"these secrets were changed in the pool's catalog, or are damaged, and are not used: "
                f"{', '.join(damaged)}; restore the catalog from a copy, or remove them and set them again"
            )

    def close(self) -> None:
        """Write what has not been stored yet."""
        self._uses.keep()

    # -- for operators -------------------------------------------------------------------------------

    def set(self, name: str, value: str) -> SecretView:
        """Store a new secret.

        Raises:
            SecretExists: there is already a secret with this name.
            InvalidArgument: the name is invalid, or the value is empty or larger than 64 KiB.
        """
        check_name(name)
        _check_value(value)
        now_ms = self._now_ms()

        def edit(secrets: dict[str, SealedSecret], key: MasterKey) -> SealedSecret:
            if name in secrets:
                raise SecretExists(
                    f"there is a secret {name} already; `taskworker secret rotate {name}` gives it a new value"
                )
            if sum(not is_of_access_key(one) for one in secrets) >= SECRETS_MAX:
                raise InvalidArgument(f"a pool keeps {SECRETS_MAX:,} secrets at most; remove some")
            return _put(secrets, value, Terms(name, 1, b"", now_ms, now_ms), key)

        return self._view(self._vault.change(edit))

    def rotate(self, name: str, value: str) -> SecretView:
        """Give a secret a new value, as a new version with the same grants; the old value is deleted.

        Raises:
            SecretNotFound: there is none.
            InvalidArgument: a value that is empty or larger than 64 KiB.
        """
        _check_value(value)
        now_ms = self._now_ms()

        def edit(secrets: dict[str, SealedSecret], key: MasterKey) -> SealedSecret:
            terms = _intact_terms(secrets, name)
            return _put(
                secrets, value, msgspec.structs.replace(terms, version=terms.version + 1, changed_ms=now_ms), key
            )

        return self._view(self._vault.change(edit))

    def remove(self, name: str) -> None:
        """Remove a secret and its grants, even if damaged.

        Raises:
            SecretNotFound: there is none.
        """

        def edit(secrets: dict[str, SealedSecret], _key: MasterKey) -> None:
            _found(secrets, name)
            del secrets[name]

        self._vault.change(edit)
        self._uses.forget(name)

    def remove_all(self) -> None:
        """Remove all secrets, even those that can no longer be read."""
        self._vault.discard()

    def grant(self, name: str, function: str, hosts: Sequence[str] = ()) -> SecretView:
        """Let a function use a secret; replaces an existing grant.

        Args:
            name: name of the secret.
            function: name of the function, which need not exist yet.
            hosts: if given, the function does not see the secret; it may only have it filled into requests to
                these hosts. ``*.example.com`` stands for all hosts below it.

        Raises:
            SecretNotFound: there is none.
            InvalidArgument: the name of the function or a host is invalid.
        """
        grant = Grant(spec.check_name(function), tuple(sorted({host_pattern(host) for host in hosts})))
        if len(grant.hosts) > _HOSTS_MAX:
            raise InvalidArgument(f"a secret is bound to {_HOSTS_MAX} hosts at most for one function")

        def grants(terms: Terms) -> tuple[Grant, ...]:
            others = [one for one in terms.grants if one.function != function]
            if len(others) >= GRANTS_MAX:
                raise InvalidArgument(f"a secret is granted to {GRANTS_MAX} functions at most; revoke some")
            return tuple(sorted([*others, grant], key=lambda one: one.function))

        return self._regrant(name, grants)

    def revoke(self, name: str, function: str) -> SecretView:
        """Revoke a function's grant; the function may have kept values that it got before.

        Raises:
            SecretNotFound: there is none.
            InvalidArgument: the function has no grant for it.
        """

        def grants(terms: Terms) -> tuple[Grant, ...]:
            if terms.grant(function) is None:
                raise InvalidArgument(f"secret {name} is not granted to {function[:80]!r}; see `taskworker secret ls`")
            return tuple(one for one in terms.grants if one.function != function)

        return self._regrant(name, grants)

    def list(self) -> Sequence[SecretView]:
        """All secrets, by name."""
        found = self._vault.secrets().by_name
        return [self._view(found[name]) for name in sorted(found) if not is_of_access_key(name)]

    def rotate_master(self) -> MasterRotation:
        """Replace the master key with a new one, while secrets are in use.

        Raises:
            InvalidArgument: the pool cannot change the key where it is kept; the text says what to do.
        """
        return MasterRotation(*self._vault.rotate())

    def master_key(self) -> tuple[str, Path | None]:
        """Return the id of the master key, and the file that it is in; None: the pool does not keep it."""
        return self._vault.master_key().id.hex(), self._source.file

    # -- for functions -------------------------------------------------------------------------------

    def get(self, function: str, name: str) -> str:
        """The value of a secret that a function may read.

        Raises:
            PermissionDenied: the function has no grant for it; the same if there is no such secret.
            InvalidArgument: the name is invalid.
            SecretsUnavailable, SecretDamaged: it cannot be read now.
        """
        secret, grant = self._granted(function, check_name(name))
        if grant.hosts:
            raise PermissionDenied(
                f"function {function} may use secret {name} only in requests to {', '.join(grant.hosts)}, without "
                f"seeing it: write {{{{secret:{name}}}}} there; or grant it without --host"
            )
        return self._value(secret)

    def fill(
        self, function: str, text: str, *, host: str | None = None, given: Callable[[str], None] = lambda _value: None
    ) -> str:
        """Replace ``{{secret:NAME}}`` with the values of granted secrets.

        Args:
            function: the function.
            text: a text of a request.
            host: the host of the request; None: unknown, so that secrets bound to hosts are refused.
            given: called with each value filled in.

        Raises:
            PermissionDenied: a secret is not granted, or not for this host.
            InvalidArgument: a name is invalid.
            SecretsUnavailable, SecretDamaged: a secret cannot be read now.
        """

        def value(found: re.Match[str]) -> str:
            name = check_name(found[1])
            secret, grant = self._granted(function, name)
            if grant.hosts and not (host is not None and any(host_matches(one, host) for one in grant.hosts)):
                raise PermissionDenied(
                    f"function {function} may send secret {name} only to {', '.join(grant.hosts)}, not to "
                    f"{host or 'elsewhere'}; `taskworker secret grant {name} {function} --host HOST` sets the hosts"
                )
            filled = self._value(secret)
            given(filled)
            return filled

        return _PLACE.sub(value, text)

    def _granted(self, function: str, name: str) -> tuple[SealedSecret, Grant]:
        try:
            # One lookup of the pair, so that a secret without a grant takes as long as one that does not exist.
            found = self._vault.secrets().grants.get((name, function))
        except (SecretsUnavailable, SecretDamaged):
            raise SecretsUnavailable(
                "the pool's secrets cannot be used now; its operator sees why with `taskworker secret ls`"
            ) from None
        if found is None:
            raise PermissionDenied(
                f"no secret {name} is granted to function {function}; an operator grants it with "
                f"`taskworker secret grant {name} {function}`"
            )
        return found

    def _value(self, secret: SealedSecret) -> str:
        value = secret.value()
        self._uses.note(secret.name)
        return value

    # -- changes -------------------------------------------------------------------------------------

    def _regrant(self, name: str, grants: Callable[[Terms], tuple[Grant, ...]]) -> SecretView:
        def edit(secrets: dict[str, SealedSecret], key: MasterKey) -> SealedSecret:
            terms = _intact_terms(secrets, name)
            value = secrets[name].value()
            return _put(secrets, value, msgspec.structs.replace(terms, grants=grants(terms)), key)

        return self._view(self._vault.change(edit))

    def _view(self, secret: SealedSecret) -> SecretView:
        terms = secret.terms
        return SecretView(
            name=secret.name,
            version=secret.version,
            created_ms=0 if terms is None else terms.created_ms,
            changed_ms=0 if terms is None else terms.changed_ms,
            last_used_ms=self._uses.of(secret.name),
            grants=() if terms is None else terms.grants,
            damaged=secret.damaged,
        )


def _put(secrets: dict[str, SealedSecret], value: str, terms: Terms, key: MasterKey) -> SealedSecret:
    terms, record = seal(value, terms, key)
    secrets[terms.name] = SealedSecret(terms.name, terms.version, terms.serial, record, key, terms)
    return secrets[terms.name]


def _found(secrets: dict[str, SealedSecret], name: str) -> SealedSecret:
    found = secrets.get(check_name(name))
    if found is None:
        raise SecretNotFound(f"there is no secret {name}; `taskworker secret ls` lists them")
    return found


def _intact_terms(secrets: dict[str, SealedSecret], name: str) -> Terms:
    found = _found(secrets, name)
    if found.damaged or found.terms is None:
        raise SecretDamaged(
            f"secret {name} was changed in the pool's catalog, or is damaged, and so are its grants; remove it "
            f"(`taskworker secret rm {name}`) and set it again"
        )
    return found.terms


def _check_value(value: str) -> None:
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidArgument("a secret is text; this one has lone surrogates") from None
    if not 0 < size <= VALUE_BYTES_MAX:
        raise InvalidArgument(f"a secret has 1 to {VALUE_BYTES_MAX:,} bytes, this one {size:,}")
