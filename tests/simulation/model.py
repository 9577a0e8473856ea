"""The versions that were acknowledged to users and must exist, with their contents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from random import Random

from storage import ErasureProfile, Version
from storage.keys import Kind, StripeKey
from storage.sealing.user_keys import UserKey
from storage.stripes.stripes import metadata_stripe
from storage.write.chunks import stored_chunk
from tests.simulation.pool import CHUNK_BYTES

_BLOCKS = [Random(f"block {number}").randbytes(CHUNK_BYTES) for number in range(8)]


class NothingToDo(Exception):
    """The chosen action is impossible now."""


@dataclass(frozen=True, slots=True)
class Name:
    """A user and the name of a file."""

    user: str
    filename: str


KeyOf = Callable[[str], UserKey | None]
"""Returns the key with which a user's data is sealed; None: it is not."""

NAMES = [Name(user, filename) for user in ("ada", "ben") for filename in ("a", "b", "c", "d")]


@dataclass(frozen=True, slots=True)
class Kept:
    """An acknowledged version."""

    version_id: str
    content: bytes
    stripes: tuple[StripeKey, ...]


@dataclass(slots=True)
class File:
    """A file with all its versions, oldest first."""

    file_id: str
    versions: list[Kept] = field(default_factory=list)

    @property
    def head(self) -> Kept:
        """The newest version."""
        return self.versions[-1]


class Model:
    """All acknowledged files, by name."""

    def __init__(self, profile: ErasureProfile, key_of: KeyOf = lambda user: None) -> None:
        self.profile = profile
        self.key_of = key_of
        self.files: dict[Name, File] = {}

    def acknowledged(self, name: Name, version: Version, content: bytes) -> Kept:
        """Note that a version was acknowledged as the head of a name."""
        version_id = version.version_id
        file = self.files.setdefault(name, File(version.file_id))
        if file.versions and file.head.version_id == version_id:
            return file.head
        chunks = chunks_of(content, version.profile, self.key_of(name.user))
        kept = Kept(version_id, content, (*chunks, self._version_stripe(version_id)))
        file.versions.append(kept)
        return kept

    def _version_stripe(self, version_id: str) -> StripeKey:
        return metadata_stripe(Kind.VERSION, bytes.fromhex(version_id), self.profile.n)

    def stripes(self, leaving: Name | None = None) -> dict[StripeKey, None]:
        """Return the stripes of all versions, except those of the file named ``leaving``."""
        versions = [kept.stripes for name, file in self.files.items() if name != leaving for kept in file.versions]
        return dict.fromkeys(chain.from_iterable(versions))

    def versions(self) -> Iterator[tuple[Name, File, Kept]]:
        """Yield all versions."""
        for name, file in self.files.items():
            for kept in file.versions:
                yield name, file, kept


def chunks_of(content: bytes, profile: ErasureProfile, key: UserKey | None = None) -> list[StripeKey]:
    """Return the stripes of a content's chunks, if they are sealed with ``key``, or not sealed."""
    chunks = [content[at : at + CHUNK_BYTES] for at in range(0, len(content), CHUNK_BYTES)]
    return [stored_chunk(key, profile, chunk).stripe for chunk in chunks]


def small_content(rng: Random) -> bytes:
    """Make a content that fits into the commit itself; sometimes the same as before."""
    size = rng.choice((0, 1, 7, 100, 4096, 65536))
    return _BLOCKS[rng.randrange(2)][:size] if rng.random() < 0.3 else rng.randbytes(size)


def large_content(rng: Random) -> bytes:
    """Make a content of a few chunks, many of which other files have, too."""
    blocks = [rng.choice(_BLOCKS) for _ in range(rng.randint(1, 3))]
    tail = rng.randbytes(rng.choice((0, 1, 1000)))
    return b"".join(blocks) + tail


def new_content(rng: Random) -> bytes:
    """Make a content of a few chunks that no other file has."""
    return rng.randbytes(rng.randint(2, 5) * CHUNK_BYTES)


def edited(content: bytes, rng: Random) -> bytes:
    """Change a few bytes of a content, add some, or cut some off."""
    changed = bytearray(content)
    if changed and rng.random() < 0.8:
        at = rng.randrange(len(changed))
        changed[at : at + 3] = rng.randbytes(len(changed[at : at + 3]))
    if rng.random() < 0.3:
        changed += rng.choice(_BLOCKS)[: rng.choice((10, CHUNK_BYTES))]
    elif rng.random() < 0.3:
        del changed[len(changed) // 2 :]
    return bytes(changed)
