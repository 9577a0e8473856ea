"""What a push or a revision writes to."""

from __future__ import annotations

from dataclasses import dataclass

from storage.erasure import ErasureProfile


@dataclass(frozen=True, slots=True)
class PushTarget:
    """Whose file, named how, coded how, and what goes into its version record.

    Attributes:
        user_id: the owner.
        user: key of the owner.
        filename: the file's name.
        name: key of the name.
        profile: erasure profile.
        chunk_size: in bytes.
        time_ms: author's clock.
        sha256: digest given by the author.
        note: free text.
        epoch: of the volumes when the writing began.
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
