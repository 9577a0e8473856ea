"""The destination of a push or a revision."""

from __future__ import annotations

from dataclasses import dataclass

from storage.catalog import name_key, user_key
from storage.erasure import ErasureProfile
from storage.options import PushOptions
from storage.runtime import Runtime


@dataclass(frozen=True, slots=True)
class PushTarget:
    """Owner, name and encoding of the file to write, and the author's fields of its version record.

    Attributes:
        user_id: the owner.
        user: key of the owner.
        filename: name of the file.
        name: key of the name.
        profile: erasure profile.
        chunk_size: chunk size in bytes.
        time_ms: time by the author's clock, in milliseconds since 1970.
        sha256: SHA-256 of the content, if the author gave one.
        note: free text.
        epoch: epoch of the fleet when writing began.
    """

    user_id: str
    user: bytes
    filename: str
    name: bytes
    profile: ErasureProfile
    chunk_size: int
    time_ms: int
    sha256: bytes | None
    note: str
    epoch: tuple[int, ...]


def push_target(
    options: PushOptions, profile: ErasureProfile, chunk_size: int, epoch: tuple[int, ...], runtime: Runtime
) -> PushTarget:
    """Return the target of a push with these options."""
    user = user_key(options.user_id.encode())
    return PushTarget(
        user_id=options.user_id,
        user=user,
        filename=options.filename,
        name=name_key(user, options.filename.encode()),
        profile=profile,
        chunk_size=chunk_size,
        time_ms=runtime.wall_ms() if options.time_ms is None else options.time_ms,
        sha256=bytes.fromhex(options.sha256) if options.sha256 else None,
        note=options.note,
        epoch=epoch,
    )
