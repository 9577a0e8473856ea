"""The calls on many files at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from storage import DeleteOutcome, ErasureProfile, GetOutcome, PushOutcome, Version
from storage.errors import FileNotFound, KeyRequired
from storage.options import PushOptions
from taskworker.client import many
from taskworker.client.base import RETRIES, ClientBase
from taskworker.client.checked import arguments_checked
from taskworker.client.deadline import retried
from taskworker.client.many import ManyWanted, NamedSource
from taskworker.client.pushing import require_no_attributes
from taskworker.client.sealed.names import require_readable
from taskworker.protos import store_pb2
from taskworker.rpc.conversion import version_from_proto


class ManyCalls(ClientBase):
    """The client's methods on many files."""

    @arguments_checked
    def push_many(
        self,
        files: Iterable[NamedSource],
        *,
        user_id: str,
        profile: ErasureProfile | None = None,
        chunk_size: int | None = None,
        time_ms: int | None = None,
        note: str = "",
        attributes: Mapping[str, bytes] | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[PushOutcome]:
        """Push many files in one call, and yield the outcome of each as soon as it is durable, in order of ``files``.

        Small files share messages, flushes and transactions, so that thousands of them take a fraction of the time of
        as many calls of :meth:`push`. An error of one file is its outcome, and does not end the call. After an
        interruption, repeat the call: content that is stored already makes no new version.

        Args:
            files: paths, whose last components become the names, or pairs of a name and what :meth:`push` takes as its
                source. They are taken as needed, from another thread: an iterator of a million files is no problem.
            user_id: the owner.
            profile: erasure profile; default: the store's.
            chunk_size: bytes of a chunk; default: the store's.
            time_ms: the author's time, ms since 1970; default: the server's clock.
            note: up to 4,096 bytes, kept in each version.
            attributes: kept with each version; see :meth:`push`.
            timeout_s: seconds for all files.

        Raises:
            InvalidArgument: an argument is malformed; ``files`` yields something else than paths and pairs.
            StorageUnavailable: the connection broke. Files without an outcome may be stored or not.
            Exception: whatever the iterator of ``files`` raises, after the outcomes of the files before.
        """
        options = PushOptions("", user_id, profile, chunk_size, time_ms, note, attributes=attributes)
        deadline = self._deadline(timeout_s)
        if self._sealed is None:
            return many.push_many(self._channel, files, options, deadline)
        from taskworker.client.sealed.many import push_many

        require_no_attributes(attributes)
        return push_many(self._sealed, files, options, deadline)

    @arguments_checked
    def get_many(
        self,
        files: Iterable[str],
        *,
        user_id: str,
        by_name: bool = False,
        bytes_max: int | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[GetOutcome]:
        """Read many files into memory, and yield the outcome of each, in order of ``files``.

        Small files share messages. An error of one file is its outcome. If the connection breaks, the rest is asked
        for again.

        Args:
            files: ids of the files; they are taken in batches of up to 1,024.
            user_id: the owner.
            by_name: whether ``files`` has names instead of ids.
            bytes_max: larger files come without data; get these with :meth:`download` or :meth:`open`. Default: no
                limit.
            timeout_s: seconds for all files.

        Raises:
            InvalidArgument: an argument is malformed.
        """
        wanted = ManyWanted(user_id, by_name, bytes_max)
        if self._sealed is not None:
            from taskworker.client.sealed.many import get_many

            return get_many(self._sealed, files, wanted, self._deadline(timeout_s), RETRIES)
        return _readable(many.get_many(self._channel, files, wanted, self._deadline(timeout_s), RETRIES))

    @arguments_checked
    def delete_many(
        self, files: Iterable[str], *, user_id: str, timeout_s: float | None = None
    ) -> Iterator[DeleteOutcome]:
        """Delete many files, and yield the outcome of each, in order. The error of one does not keep the others.

        Args:
            files: ids of the files; they are taken in batches of up to 1,024.
            user_id: the owner.
            timeout_s: seconds for all files.

        Raises:
            InvalidArgument: an argument is malformed.
        """
        return many.delete_many(self._channel, files, user_id, self._deadline(timeout_s))

    @arguments_checked
    def get_small(
        self,
        file: str,
        *,
        user_id: str,
        version_id: str | None = None,
        by_name: bool = False,
        bytes_max: int,
        timeout_s: float | None = None,
    ) -> tuple[Version, bytes | None]:
        """A version of a file and, if it has at most ``bytes_max`` bytes, its content, in one call.

        Args:
            file: id of the file.
            user_id: its owner.
            version_id: the version; default: the head.
            by_name: whether ``file`` is a name instead of an id; then there is no ``version_id``.
            bytes_max: larger content is not read; nor is content of more than 1 MiB.
            timeout_s: seconds.

        Raises:
            FileNotFound: there is no such file, or it is another user's.
            VersionNotFound: the file has no such version.
            DataLossError: too few intact shards are left.
            PoolIsBlind: this client has a key of the user's own.
            CallNotOffered: the server is of a release without this call.
        """
        self._require_clear("files that are sealed are got by `get`")
        named = {"filename": file} if by_name else {"file_id": file}
        request = store_pb2.GetFileRequest(user_id=user_id, version_id=version_id or "", bytes_max=bytes_max, **named)
        deadline = self._deadline(timeout_s)
        part = retried(lambda: self._channel.unary(self._channel.store.GetFile, request, deadline), deadline, RETRIES)
        require_readable(part.version)
        version = version_from_proto(part.version)
        if not version.file_id:
            raise FileNotFound("there is no such file")
        return version, part.data if len(part.data) == version.size else None


def _readable(outcomes: Iterator[GetOutcome]) -> Iterator[GetOutcome]:
    """The outcomes, in which content that is sealed is an error."""
    for outcome in outcomes:
        if outcome.data is not None and outcome.version is not None:
            try:
                require_readable(outcome.version)
            except KeyRequired as error:
                yield replace(outcome, version=None, data=None, error=error)
                continue
        yield outcome
