"""The calls that delete files, and versions of them."""

from __future__ import annotations

from collections.abc import Sequence

from storage import Version
from taskworker.client.base import ClientBase
from taskworker.client.checked import arguments_checked
from taskworker.errors import CallNotOffered
from taskworker.protos import store_pb2
from taskworker.rpc import conversion as convert
from taskworker.rpc.limits import DELETE_MAX


class DeletingCalls(ClientBase):
    """The client's methods that delete."""

    @arguments_checked
    def delete(self, file_id: str, *, user_id: str, if_head: str | None = None, timeout_s: float | None = None) -> None:
        """Delete a file with all its versions; ``collect`` frees its space.

        Args:
            file_id: the file.
            user_id: the owner.
            if_head: delete nothing unless this version is the head then.
            timeout_s: seconds.

        Raises:
            FileNotFound: there is no such file, or it is another user's.
            ConflictError: another version is the head.
        """
        deadline = self._deadline(timeout_s)
        if if_head is not None and not self._channel.describe(deadline).has_delete_conditions:
            raise CallNotOffered(f"the server at {self._channel.address} would delete whatever the head is; upgrade it")
        request = store_pb2.DeleteRequest(file_id=file_id, user_id=user_id, if_head=if_head or "")
        self._channel.unary(self._channel.store.Delete, request, deadline)

    @arguments_checked
    def delete_version(
        self,
        file_id: str,
        version_id: str,
        *,
        user_id: str,
        if_head: str | None = None,
        timeout_s: float | None = None,
    ) -> Version | None:
        """Delete one version of a file. The others stay as they are; ``collect`` frees what none of them needs.

        If it is the newest one, the version before it is the head again. If it is the only one, the file is deleted.

        Args:
            file_id: the file.
            version_id: the version.
            user_id: the owner.
            if_head: delete nothing unless this version is the head then, which may be the same one.
            timeout_s: seconds.

        Returns:
            The head of the file now; None if the file is gone.

        Raises:
            FileNotFound: there is no such file, or it is another user's.
            VersionNotFound: the file has no such version.
            ConflictError: another version is the head.
            CallNotOffered: the server is of a release that knows no ``if_head`` here.
        """
        deadline = self._deadline(timeout_s)
        if if_head is not None and not self._channel.describe(deadline).has_version_delete_conditions:
            raise CallNotOffered(f"the server at {self._channel.address} would delete whatever the head is; upgrade it")
        request = store_pb2.DeleteVersionRequest(
            file_id=file_id, version_id=version_id, user_id=user_id, if_head=if_head or ""
        )
        answer = self._channel.unary(self._channel.store.DeleteVersion, request, deadline)
        return self._shown(convert.version_from_proto(answer.head), user_id) if answer.HasField("head") else None

    @arguments_checked
    def delete_files(self, file_ids: Sequence[str], *, user_id: str, timeout_s: float | None = None) -> None:
        """Delete many files at once; deleting a few hundred together takes hardly longer than deleting one.

        Up to 1,000 files are deleted together: all, or none if one does not exist. Of more files, some may already be
        deleted when an error is raised.

        Raises:
            FileNotFound: a file does not exist, or is another user's; the text names it.
        """
        deadline = self._deadline(timeout_s)
        for start in range(0, len(file_ids), DELETE_MAX):
            request = store_pb2.DeleteFilesRequest(file_ids=file_ids[start : start + DELETE_MAX], user_id=user_id)
            self._channel.unary(self._channel.store.DeleteFiles, request, deadline)
