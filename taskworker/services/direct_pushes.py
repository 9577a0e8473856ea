"""The calls of StoreService for clients that write chunks of a push to workers themselves."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from storage import FileStorage, InvalidArgument, Upload
from storage.keys import ID_BYTES
from storage.write.client_chunks import ClientChunk
from taskworker.auth.rights import CANDIDATE_OWNER
from taskworker.errors import CallNotOffered
from taskworker.pool.direct_pushes import DirectPushes
from taskworker.protos import store_pb2
from taskworker.rpc.admission import Gate
from taskworker.rpc.authorization import is_guest, user_of
from taskworker.rpc.binding import Caller
from taskworker.services.many import ManyFilesService
from taskworker.services.revision import Revisions


class DirectPushService(ManyFilesService):
    """See ``protos/store.proto``; thread-safe.

    Args:
        store: the store to serve.
        transfers: the places for transfers.
        revisions: limits what is expensive.
        hide: paths that must not appear in texts sent to callers.
        pushes: answers these clients; None: everything is pushed to here.
    """

    def __init__(
        self,
        store: FileStorage,
        transfers: Gate,
        revisions: Revisions,
        hide: Sequence[str] = (),
        pushes: DirectPushes | None = None,
    ) -> None:
        super().__init__(store, transfers, revisions, hide)
        self._pushes = pushes

    @property
    def has_direct_pushes(self) -> bool:
        """Whether clients may write to workers now."""
        return self._pushes is not None and self._pushes.is_possible

    def writing(self, upload: Upload, header: store_pb2.PushHeader, caller: Caller) -> AbstractContextManager[None]:
        """A context in which the client may write chunks of an upload itself, if that is possible and it wants to.

        Guests may not: what the keys of the owner's chunks are is not shared.
        """
        if not header.push_id or self._pushes is None:
            return nullcontext()
        may_write = not (is_guest(caller) or header.user_id == CANDIDATE_OWNER)
        return self._pushes.under_way(header.user_id, header.push_id, upload.client_chunks if may_write else None)

    def PrepareChunks(  # noqa: N802 - the names are the contract's
        self, request: store_pb2.PrepareChunksRequest, _caller: Caller
    ) -> store_pb2.PrepareChunksResponse:
        """How to seal and code chunks."""
        found = self._offered().prepare(request.user_id, request.push_id, _ids(request.plain_ids))
        return store_pb2.PrepareChunksResponse(epoch=found.epoch, keys=b"".join(found.keys), k=found.k, n=found.n)

    def PlaceChunks(  # noqa: N802
        self, request: store_pb2.PlaceChunksRequest, caller: Caller
    ) -> store_pb2.PlaceChunksResponse:
        """Where to write chunks."""
        chunks = [ClientChunk(one.plain_id, one.stored_id, one.length, one.hashes) for one in request.chunks]
        found = self._offered().place(request.user_id, request.push_id, user_of(caller) or "", chunks)
        return store_pb2.PlaceChunksResponse(
            holders=[store_pb2.ShardHolder(address=holder.address, name=holder.name) for holder in found.holders],
            placed=found.placed,
            ticket=found.ticket,
            valid_ms=int(found.valid_s * 1000),
            authorities=found.authorities,
        )

    def SettleChunks(  # noqa: N802
        self, request: store_pb2.SettleChunksRequest, _caller: Caller
    ) -> store_pb2.SettleChunksResponse:
        """Which chunks the workers have."""
        found = self._offered().settle(request.user_id, request.push_id, _ids(request.stored_ids))
        return store_pb2.SettleChunksResponse(written=found)

    def _offered(self) -> DirectPushes:
        if self._pushes is None:
            raise CallNotOffered("nothing is written to workers here; send it with PushStream")
        return self._pushes


def _ids(joined: bytes) -> list[bytes]:
    if len(joined) % ID_BYTES:
        raise InvalidArgument(f"{len(joined)} bytes are no ids of {ID_BYTES} bytes each")
    return [joined[at : at + ID_BYTES] for at in range(0, len(joined), ID_BYTES)]
