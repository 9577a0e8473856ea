"""The destination of a push or a revision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from storage.catalog import name_key, user_key
from storage.erasure import ErasureProfile
from storage.formats.attributes import Pairs
from storage.formats.manifest import TRANSFORM_IDENTITY, TRANSFORM_SEALED
from storage.limits import check_attributes
from storage.options import PushOptions
from storage.runtime import Runtime
from storage.sealing.user_keys import UserKey, UserKeys
from storage.write.condition import Condition, condition_of
from storage.write.copies import SmallCopies


@dataclass(frozen=True, slots=True)
class PushTarget:
    """Owner, name and encoding of the file to write, and the author's fields of its version record.

    Attributes:
        user_id: the owner.
        user: key of the owner.
        filename: name of the file.
        name: key of the name.
        profile: erasure profile, except of small files that are kept as copies; see :meth:`profile_of`. They are
            accepted only if the stores could take this profile, so that all files are accepted or none.
        is_chosen: whether the author chose the profile.
        copies: decides which files are kept as copies.
        chunk_size: chunk size in bytes.
        time_ms: time by the author's clock, in milliseconds since 1970.
        sha256: SHA-256 of the content, if the author gave one.
        note: free text.
        epoch: epoch of the fleet when writing began.
        condition: what must be so at the commit; None: nothing.
        attributes: of the version, by name; None: none, and a head with the same content keeps its own.
        key: the owner's key, with which the file is sealed; None: it is not sealed.
        may_exceed_quota: whether it is stored even if the owner takes more than the quota then.
    """

    user_id: str
    user: bytes
    filename: str
    name: bytes
    profile: ErasureProfile
    is_chosen: bool
    copies: SmallCopies
    chunk_size: int
    time_ms: int
    sha256: bytes | None
    note: str
    epoch: tuple[int, ...]
    key: UserKey | None = None
    attributes: Pairs | None = None
    condition: Condition | None = None
    may_exceed_quota: bool = False

    @property
    def transform(self) -> int:
        """How the file is stored; see :class:`~storage.formats.manifest.RootNode`."""
        return TRANSFORM_IDENTITY if self.key is None else TRANSFORM_SEALED

    @property
    def keys(self) -> UserKeys | None:
        """The key, to open what it sealed; None if the file is not sealed."""
        return None if self.key is None else UserKeys(self.user_id, self.key)

    def with_attributes(self, attributes: Mapping[str, bytes] | None) -> PushTarget:
        """The same target with these attributes; None: with its own.

        Raises:
            InvalidArgument: they are malformed or too large.
        """
        return self if attributes is None else replace(self, attributes=tuple(check_attributes(attributes).items()))

    def profile_of(self, size: int) -> ErasureProfile:
        """Return the profile of the content, if it has this size."""
        return self.profile if self.is_chosen else self.copies.profile_of(size)


def push_target(
    options: PushOptions,
    profile: ErasureProfile,
    copies: SmallCopies,
    chunk_size: int,
    epoch: tuple[int, ...],
    runtime: Runtime,
    key: UserKey | None = None,
) -> PushTarget:
    """Return the target of a push with these options; ``profile`` and ``key`` are the ones to use."""
    user = user_key(options.user_id.encode())
    attributes = options.attributes_now()
    return PushTarget(
        user_id=options.user_id,
        user=user,
        filename=options.filename,
        name=name_key(user, options.filename.encode()),
        profile=profile,
        is_chosen=options.profile is not None,
        copies=copies,
        chunk_size=chunk_size,
        time_ms=runtime.wall_ms() if options.time_ms is None else options.time_ms,
        sha256=bytes.fromhex(options.sha256) if options.sha256 else None,
        note=options.note,
        epoch=epoch,
        key=key,
        attributes=None if attributes is None else tuple(attributes.items()),
        condition=condition_of(if_absent=options.if_absent, if_head=options.if_head),
    )
