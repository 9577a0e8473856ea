"""Small files as whole copies, instead of shards.

A file of 4 KiB has shards of 1 KiB with 4-of-6. A read then waits for four stores, where one with a whole copy would
do, and a push makes and writes six records instead of three. Copies take more space.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from storage.erasure import ErasureProfile, profile_for
from storage.errors import InvalidArgument
from storage.formats.manifest import RootNode
from storage.limits import SMALL_COPIES_BYTES_MAX


@dataclass(frozen=True, slots=True)
class SmallCopies:
    """Decides which profile a file gets if its author chose none.

    Attributes:
        coded: the store's profile (k, n).
        bytes_max: files up to this size are kept as copies; 0: none are.

    Raises:
        InvalidArgument: ``bytes_max`` is out of bounds.
    """

    coded: ErasureProfile
    bytes_max: int

    def __post_init__(self) -> None:
        if not 0 <= self.bytes_max <= SMALL_COPIES_BYTES_MAX:
            raise InvalidArgument(
                f"files of up to {self.bytes_max} bytes cannot be kept as copies; "
                f"give 0 to {SMALL_COPIES_BYTES_MAX} bytes"
            )

    @property
    def copied(self) -> ErasureProfile:
        """The profile of copies: as many as survive the losses that k-of-n shards survive."""
        return profile_for(1, self.coded.n - self.coded.k + 1)

    def profile_of(self, size: int) -> ErasureProfile:
        """Return the profile of a new file of this size."""
        return self.copied if 0 < size <= self.bytes_max else self.coded

    def profile_after(self, profile: ErasureProfile, size: int, new_size: int) -> ErasureProfile:
        """Return the profile of a revision.

        Copies of a file that has grown too large for them become shards. Everything else stays as it is: the author
        may have chosen the profile. That of a small file with the profile of copies cannot be told from the one given
        here, so if no files are kept as copies, it stays as well.

        Args:
            profile: profile of the version that is revised.
            size: its size in bytes.
            new_size: size of the new version.
        """
        outgrown = size <= SMALL_COPIES_BYTES_MAX and 0 < self.bytes_max < new_size
        return self.coded if outgrown and profile == self.copied else profile

    def others(self, profile: ErasureProfile) -> tuple[ErasureProfile, ...]:
        """Return the other profiles with which a chunk may be stored that is needed with this profile."""
        both = (self.coded, self.copied)
        return tuple(other for other in both if other != profile) if profile in both else ()

    def are_alike(self, one: RootNode, other: RootNode) -> bool:
        """Whether two files are the same except that one is kept as copies and the other as shards.

        This does not depend on ``bytes_max``, which may have been another one when the files were stored.
        """
        both = (self.coded, self.copied)
        return (
            one.children == other.children
            and one.size <= SMALL_COPIES_BYTES_MAX
            and one.profile in both
            and other.profile in both
            and with_profile(one, other.profile) == other
        )


def with_profile(root: RootNode, profile: ErasureProfile) -> RootNode:
    """Return a root with another profile."""
    return msgspec.structs.replace(root, k=profile.k, n=profile.n)
