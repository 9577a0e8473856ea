"""What users were told: the versions that must be there, and what they are made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from blake3 import blake3

from storage import ErasureProfile
from storage.keys import Kind, StripeKey
from storage.stripes.stripes import chunk_stripe, metadata_stripe
from tests.simulation.pool import CHUNK_BYTES

_BLOCKS = [Random(f"block {number}").randbytes(CHUNK_BYTES) for number in range(8)]


class NothingToDo(Exception):
    """There is nothing now that this could befall."""


@dataclass(frozen=True, slots=True)
class Name:
    """Whose file, called how."""

    user: str
    filename: str


NAMES = [Name(user, filename) for user in ("ada", "ben") for filename in ("a", "b", "c", "d")]


@dataclass(frozen=True, slots=True)
class Kept:
    """A version that was acknowledged."""

    version_id: str
    content: bytes
    stripes: tuple[StripeKey, ...]


@dataclass(slots=True)
class File:
    """A file with all its versions, the oldest first."""

    file_id: str
    versions: list[Kept] = field(default_factory=list)

    @property
    def head(self) -> Kept:
        """The newest."""
        return self.versions[-1]


class Model:
    """Files by name."""

    def __init__(self, profile: ErasureProfile) -> None:
        self.profile = profile
        self.files: dict[Name, File] = {}

    def acknowledged(self, name: Name, file_id: str, version_id: str, content: bytes) -> Kept:
        """A version became the head of a name."""
        file = self.files.setdefault(name, File(file_id))
        if file.versions and file.head.version_id == version_id:
            return file.head
        kept = Kept(version_id, content, (*chunks_of(content, self.profile), self._version_stripe(version_id)))
        file.versions.append(kept)
        return kept

    def _version_stripe(self, version_id: str) -> StripeKey:
        return metadata_stripe(Kind.VERSION, bytes.fromhex(version_id), self.profile.n)

    def stripes(self, leaving: Name | None = None) -> dict[StripeKey, None]:
        """All stripes that versions are made of, but for those of one name's file."""
        files = [file for name, file in self.files.items() if name != leaving]
        return dict.fromkeys(stripe for file in files for kept in file.versions for stripe in kept.stripes)

    def versions(self) -> Iterator[tuple[Name, File, Kept]]:
        """All versions."""
        for name, file in self.files.items():
            for kept in file.versions:
                yield name, file, kept


def chunks_of(content: bytes, profile: ErasureProfile) -> list[StripeKey]:
    """Stripes of a content's chunks."""
    return [
        chunk_stripe(blake3(content[at : at + CHUNK_BYTES]).digest(), profile)
        for at in range(0, len(content), CHUNK_BYTES)
    ]


def small_content(rng: Random) -> bytes:
    """What fits into the commit itself; now and then the same as before."""
    size = rng.choice((0, 1, 7, 100, 4096, 65536))
    return _BLOCKS[rng.randrange(2)][:size] if rng.random() < 0.3 else rng.randbytes(size)


def large_content(rng: Random) -> bytes:
    """A few chunks, of which files have many in common."""
    blocks = [rng.choice(_BLOCKS) for _ in range(rng.randint(1, 3))]
    tail = rng.randbytes(rng.choice((0, 1, 1000)))
    return b"".join(blocks) + tail


def new_content(rng: Random) -> bytes:
    """A few chunks that no other file has."""
    return rng.randbytes(rng.randint(2, 5) * CHUNK_BYTES)


def edited(content: bytes, rng: Random) -> bytes:
    """Something near: a few bytes changed, some added or cut off."""
    changed = bytearray(content)
    if changed:
        at = rng.randrange(len(changed))
        changed[at : at + 3] = rng.randbytes(len(changed[at : at + 3]))
    if rng.random() < 0.3:
        changed += rng.choice(_BLOCKS)[: rng.choice((10, CHUNK_BYTES))]
    elif rng.random() < 0.3:
        del changed[len(changed) // 2 :]
    return bytes(changed)
