"""Finds, sends and applies differences on the client's side, so that only changed chunks are sent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from blake3 import blake3

from storage import ManifestDiff, Patch, Version
from storage.arguments import whole_number
from storage.diff.local_diff import Changed, LocalContent, LocalDiff
from storage.errors import InvalidArgument
from storage.limits import BytesLike, shown
from storage.progress import Progress
from taskworker.client.channel import Channel
from taskworker.client.deadline import Deadline
from taskworker.protos import store_pb2
from taskworker.rpc.conversion import patch_to_proto, profile_to_proto, version_from_proto
from taskworker.rpc.limits import CHUNK_IDS_MAX, KIB, MIB

# A patch takes about 45 bytes besides its data: this many patches make a message of the usual size.
_PATCHES_PER_MESSAGE = 16 * KIB
_DATA_PER_MESSAGE = MIB

# Bytes of changed chunks that are asked about in one call.
_ASK_BYTES = 16 * MIB


def changed_places(value: Any) -> list[tuple[int, int]]:
    """A list of the places known to have changed.

    Raises:
        InvalidArgument: they are not pairs of offset and length.
    """
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise InvalidArgument(f"changed must be a list of (offset, length), not {type(value).__name__}")
    return [_changed_place(place) for place in value]


def _changed_place(place: Any) -> tuple[int, int]:
    if isinstance(place, str | bytes) or not isinstance(place, Sequence) or len(place) != 2:
        raise InvalidArgument(f"a changed place is an offset and a length, not {shown(place)}")
    offset, length = (
        whole_number(f"the {what} of a changed place", 0)(number)
        for what, number in zip(("offset", "length"), place, strict=True)
    )
    return offset, length


class RemoteDiff(LocalDiff):
    """The difference between a version on the server and local content.

    Args:
        channel: the connection to the server.
        base: the version to compare with.
        content: the local content.
        changed: the only places that may differ; None: compare everything.
        deadline: for the calls that are made.
        progress: called with (bytes compared, total bytes).
    """

    def __init__(
        self,
        channel: Channel,
        base: Version,
        content: LocalContent,
        *,
        changed: Changed | None,
        deadline: Deadline,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(base.size, base.chunk_size, self._known_ids, content, changed=changed, progress=progress)
        self._channel = channel
        self._base = base
        self._deadline = deadline

    def patches(self) -> Iterator[Patch]:
        """The changed chunks in order, with data for those that the server lacks."""
        batch: list[Patch] = []
        batch_max = max(1, min(CHUNK_IDS_MAX, _ASK_BYTES // self._base.chunk_size))
        for patch in self.names():
            batch.append(patch)
            if len(batch) == batch_max:
                yield from self._with_data(batch)
                batch = []
        yield from self._with_data(batch)

    def _with_data(self, batch: Sequence[Patch]) -> Iterator[Patch]:
        # For a single chunk, asking whether the server has it costs about as much as sending it.
        missing = [True] * len(batch) if len(batch) < 2 else self._missing([patch.chunk_id for patch in batch])
        sent: set[bytes] = set()
        for patch, must_send in zip(batch, missing, strict=True):
            if must_send and patch.chunk_id not in sent:
                sent.add(patch.chunk_id)
                yield Patch(patch.index, patch.chunk_id, bytes(self.chunk(patch.index)))
            else:
                yield patch

    def _missing(self, ids: Sequence[bytes]) -> list[bool]:
        request = store_pb2.MissingChunksRequest(
            user_id=self._base.user_id, chunk_ids=ids, profile=profile_to_proto(self._base.profile)
        )
        return list(self._channel.unary(self._channel.store.MissingChunks, request, self._deadline).missing)

    def _known_ids(self) -> Iterator[bytes]:
        start = 0
        while start < self._base.chunk_count:
            request = store_pb2.GetManifestRequest(
                file_id=self._base.file_id,
                user_id=self._base.user_id,
                version_id=self._base.version_id,
                start=start,
            )
            page = self._channel.unary(self._channel.store.GetManifest, request, self._deadline)
            yield from page.chunk_ids
            start += len(page.chunk_ids)


@dataclass(frozen=True, slots=True)
class RevisionOptions:
    """Options that are sent with a diff; see ``FileStorage.revise`` for their meanings."""

    file_id: str
    user_id: str
    sha256: str | None = None
    time_ms: int | None = None
    note: str = ""

    def header(self, base_version_id: str, new_size: int, chunk_size: int) -> store_pb2.ReviseHeader:
        """The first message of the stream.

        Raises:
            InvalidArgument: no file can have these sizes.
        """
        if not (0 <= new_size < 1 << 64 and 0 <= chunk_size < 1 << 64):
            raise InvalidArgument(f"a diff with new size {new_size} and chunk size {chunk_size} is not possible")
        return store_pb2.ReviseHeader(
            file_id=self.file_id,
            user_id=self.user_id,
            base_version=base_version_id,
            new_size=new_size,
            chunk_size=chunk_size,
            sha256=self.sha256 or "",
            time_ms=self.time_ms,
            note=self.note,
        )


def revision_messages(header: store_pb2.ReviseHeader, patches: Iterable[Patch]) -> Iterator[store_pb2.RevisePart]:
    """The messages of one ReviseStream; a small revision is a single one."""
    part, held, count = store_pb2.RevisePart(header=header), 0, 0
    for patch in patches:
        length = len(patch.data or b"")
        if (held and held + length > _DATA_PER_MESSAGE) or len(part.patches) == _PATCHES_PER_MESSAGE:
            yield part
            part, held = store_pb2.RevisePart(), 0
        part.patches.append(patch_to_proto(patch))
        held += length
        count += 1
    part.commit.patch_count = count
    yield part


FetchRange = Callable[[int, int], Iterable[memoryview]]
"""(offset, length) → the bytes of that range, in the version that the diff results in."""


def pieces_of(diff: ManifestDiff, fetch: FetchRange) -> Iterator[tuple[int, BytesLike]]:
    """(offset, bytes) of every changed chunk, verified against its id. Fetches chunks that the diff has no data for.

    Raises:
        InvalidArgument: the data of the diff does not match its chunk ids.
    """
    for patch in diff.patches:
        start = patch.index * diff.chunk_size
        length = min(diff.chunk_size, diff.new_size - start)
        data = patch.data if patch.data is not None else b"".join(fetch(start, length))
        if len(data) != length or blake3(data).digest() != patch.chunk_id:
            raise InvalidArgument(f"chunk {patch.index} from the server does not match its id; synchronize again")
        yield start, data


def version_of(response: store_pb2.ReviseStreamResponse) -> Version:
    """The version that a revision created."""
    return replace(version_from_proto(response.version), unchanged=response.unchanged)
