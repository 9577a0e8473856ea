"""The base of all calls of a client."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Self

import grpc

from storage import (
    Version,
)
from storage.arguments import RULES, seconds, text
from storage.limits import MIB
from taskworker.auth.contexts import Access, AccessTo
from taskworker.client.channel import Channel
from taskworker.client.deadline import Deadline
from taskworker.client.fetching import Fetch, Fetched, Fetching, Wanted
from taskworker.client.sealed.names import require_readable
from taskworker.client.small_gets import SmallGets
from taskworker.errors import PoolIsBlind
from taskworker.protos import store_pb2
from taskworker.rpc import conversion as convert

if TYPE_CHECKING:
    from storage.sealing.master_keys import MasterKeys
    from taskworker.client.direct.reads import DirectReads
    from taskworker.client.direct.writes import DirectWrites
    from taskworker.client.sealed.files import SealedFiles

RETRIES = 3
_DIRECT = "TASKWORKER_DIRECT"
_DIRECT_BYTES_MIN = 4 * MIB
"""Ranges from this size on are read from workers. Before that, it is asked where their shards are."""


class ClientBase:
    """A connection to a server, with what all calls on it share.

    Args:
        address: ``host:port``, ``[ipv6]:port`` or ``unix:/path``.
        timeout_s: seconds for calls that are given no timeout of their own; None: no limit.
        channel: a channel to the server to use in place of one of its own; it stays open.
        token: the token to show, or a link to a file; None: that of this user's context for the address.
        key: a key of the user's own, with which files are sealed: its 32 bytes, or a key file; None: they are not.
        direct: whether to read large files from a pool's workers themselves, and write them there; None: unless
            ``TASKWORKER_DIRECT=0``.

    Raises:
        InvalidArgument: the address is malformed, or the key.
        KeyRequired: there is no such key file.
        NotPrivate: others may read the key file.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float | None = None,
        channel: grpc.Channel | None = None,
        token: str | None = None,
        key: bytes | str | os.PathLike[str] | MasterKeys | None = None,
        direct: bool | None = None,
    ) -> None:
        if timeout_s is not None:
            seconds("timeout_s")(timeout_s)
        self.address = address
        self._timeout_s = timeout_s
        access = None if token is None else AccessTo(address)()._replace(token=text("token")(token))
        sealing = None if key is None else _sealing(key)
        self._channel = Channel(address, channel, access)
        self._small_gets = SmallGets(self._channel, RETRIES)
        self._sealed = None if sealing is None else sealing(self._channel)
        self._is_direct = os.environ.get(_DIRECT, "1") != "0" if direct is None else direct
        self._direct: DirectReads | None = None
        self._direct_writes: DirectWrites | None = None
        self._making_direct = threading.Lock()

    @property
    def sealed_files(self) -> SealedFiles | None:
        """The files that are sealed with this client's keys, for the command line; None: it has none."""
        return self._sealed

    @property
    def access(self) -> Access | None:
        """What calls show now, and to whom, for gateways that make some on a connection of their own.

        None: they cannot, as this client has a key, or a channel that somebody else made.
        """
        return None if self._sealed is not None else self._channel.access

    def close(self) -> None:
        """Close the connection. Running calls in other threads fail."""
        if self._direct_writes is not None:
            self._direct_writes.close()
        if self._direct is not None:
            self._direct.close()
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.close()

    def _deadline(self, timeout_s: float | None) -> Deadline:
        return Deadline(timeout_s if timeout_s is not None else self._timeout_s)

    def _fetch(self, wanted: Wanted, timeout_s: float | None) -> Fetched:
        return self._fetch_by(wanted, self._deadline(timeout_s))

    def _fetch_by(self, wanted: Wanted, deadline: Deadline, *, size: int | None = None) -> Fetched:
        """Begin to fetch a range; ``size`` is how much it is, if that is known."""
        if self._sealed is not None:
            return self._sealed.fetch(wanted, deadline)
        if self._is_direct and (size is None or size >= _DIRECT_BYTES_MIN):
            fetch, version_id = self._fetch_directly(wanted, deadline)
            if fetch is not None:
                return fetch
            wanted = replace(wanted, version_id=version_id or wanted.version_id)
        with ExitStack() as unless_sealed:
            fetch = Fetch(self._channel, wanted, deadline=deadline, retries=RETRIES)
            unless_sealed.callback(fetch.close)
            require_readable(fetch.version)
            unless_sealed.pop_all()
        return fetch

    def _fetch_directly(self, wanted: Wanted, deadline: Deadline) -> tuple[Fetched | None, str]:
        """Begin to fetch a range from workers; or None, and the id of the version if it is known now."""
        from taskworker.client.direct.fetch import fetch_directly  # only for those who read large files

        with self._making_direct:
            direct = self._direct_reads()
        if not direct.may_read(wanted.file_id):
            return None, ""
        fetch, version_id = fetch_directly(direct, self._channel, wanted, deadline, RETRIES, _DIRECT_BYTES_MIN)
        if fetch is not None:
            require_readable(fetch.version)
        return fetch, version_id

    def _direct_reads(self) -> DirectReads:
        from taskworker.client.direct.reads import DirectReads

        if self._direct is None:
            self._direct = DirectReads()
        return self._direct

    def _writes(self) -> DirectWrites | None:
        """What writes to workers, if that is worth a try; None: push through the server."""
        from taskworker.client.direct.writes import DirectWrites  # only for those who write large files

        if not self._is_direct or self._sealed is not None:
            return None
        with self._making_direct:
            if self._direct_writes is None:
                self._direct_writes = DirectWrites(self._direct_reads().fleet)
        return self._direct_writes if self._direct_writes.may_write() else None

    def _fetching(self, wanted: Wanted, timeout_s: float | None) -> Fetching:
        """What fetches ranges of one version, each within the time."""
        if self._sealed is not None:
            return self._sealed.fetching(wanted, lambda: self._deadline(timeout_s))
        return lambda part: self._fetch_by(part, self._deadline(timeout_s), size=part.length)

    def _stat(self, file_id: str, user_id: str, version_id: str | None, deadline: Deadline) -> Version:
        """A version as the server knows it."""
        request = store_pb2.StatRequest(user_id=user_id, file_id=file_id, version_id=version_id or "")
        return convert.version_from_proto(self._channel.unary(self._channel.store.Stat, request, deadline))

    def _require_clear(self, what: str) -> None:
        """Refuse what cannot be done with sealed files.

        Raises:
            PoolIsBlind: this client has a key.
        """
        if self._sealed is not None:
            raise PoolIsBlind(f"{what}; a client without a key does it for files that are not sealed")

    def _shown(self, version: Version, user_id: str) -> Version:
        """A version that the server told of, as the user knows it."""
        return version if self._sealed is None else self._sealed.opened(version, user_id)


def _sealing(key: bytes | str | os.PathLike[str] | MasterKeys) -> Callable[[Channel], SealedFiles]:
    """What makes a key's files of a connection, once the key was read."""
    from storage.sealing.master_keys import store_keys  # only for those who have a key
    from taskworker.client.sealed.files import SealedFiles
    from taskworker.client.sealed.keys import own_keys

    keys = store_keys(RULES["key"](key))
    assert keys is not None, "a key was given"
    own = own_keys(keys)
    return lambda channel: SealedFiles(channel, own, RETRIES)
