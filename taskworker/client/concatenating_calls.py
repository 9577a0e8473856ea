"""The call that makes one file of several stored ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from storage import Version
from storage.options import PushOptions
from storage.progress import Progress
from taskworker.client.base import ClientBase
from taskworker.client.checked import arguments_checked
from taskworker.client.pushing import require_conditions
from taskworker.errors import ServerFault
from taskworker.protos import store_pb2
from taskworker.rpc.conversion import attributes_to_proto, push_header, version_from_proto


class ConcatenatingCalls(ClientBase):
    """The client's methods that make files of others."""

    @arguments_checked
    def concatenate(
        self,
        parts: Sequence[tuple[str, str | None]],
        filename: str,
        *,
        user_id: str,
        time_ms: int | None = None,
        note: str = "",
        sha256: str | None = None,
        attributes: Mapping[str, bytes] | None = None,
        if_absent: bool = False,
        if_head: str | None = None,
        progress: Progress | None = None,
        timeout_s: float | None = None,
    ) -> Version:
        """Store the contents of several stored versions, one after the other, as one file of the same user.

        The server does it. Where a part begins at a multiple of the chunk size (1 MiB by default), its chunks become
        those of the new file; otherwise it is read and stored again there. The parts stay as they are, and may be
        deleted afterwards.

        Args:
            parts: pairs of a file id and a version id, None for the head; 1 to 10,000.
            filename: the name of the new file. A file of this name gets a new version.
            user_id: the owner of all.
            time_ms: the author's time, ms since 1970; default: the server's clock.
            note: up to 4,096 bytes.
            sha256: hex digest of the whole content, checked; with it, everything is read.
            attributes: kept with the version; see :meth:`push`.
            if_absent: see :meth:`push`.
            if_head: likewise.
            progress: called with (bytes done, total bytes); if it raises, nothing is stored.
            timeout_s: seconds.

        Raises:
            FileNotFound: a part does not exist, or is another user's; or ``if_head`` is given for a new name.
            VersionNotFound: a part has no such version.
            InvalidArgument: an argument is malformed or out of bounds.
            ConflictError: see :meth:`push`.
            DataLossError: a part that has to be read cannot be.
            StoreFull: a disk or quota is full; nothing was stored.
            InsufficientWorkers: too few volumes or workers are available to store it safely.
            PoolIsBlind: this client has a key, so that the server cannot join what it sealed.
        """
        deadline = self._deadline(timeout_s)
        self._require_clear("to make a file of others")
        options = PushOptions(
            filename, user_id, time_ms=time_ms, note=note, sha256=sha256, if_absent=if_absent, if_head=if_head
        )
        require_conditions(self._channel, options, deadline)
        request = store_pb2.ConcatenateRequest(
            header=push_header(options, size_hint=0),
            parts=[store_pb2.ConcatenatePart(file_id=file_id, version_id=version or "") for file_id, version in parts],
            attributes=None if attributes is None else attributes_to_proto(attributes),
        )
        with self._channel.receive(self._channel.store.Concatenate, request, deadline) as events:
            for event in events:
                if event.HasField("stored"):
                    return version_from_proto(event.stored.version, unchanged=event.stored.unchanged)
                if progress is not None:
                    progress(event.progress.done, event.progress.total)
        raise ServerFault("the server ended the call without a version; look whether the file is there")
