"""Small objects, got and put in the event loop: by one call of the pool, for which no thread is woken up."""

from __future__ import annotations

from dataclasses import replace

from storage.errors import ConflictError, FileNotFound
from taskworker.client.small_files import SmallFiles
from taskworker.errors import CallNotOffered, ServerBusy, StorageUnavailable
from taskworker.gateways.s3.bodies import Body
from taskworker.gateways.s3.buckets import ENABLED, Bucket, Buckets
from taskworker.gateways.s3.calls import Call, Reply
from taskworker.gateways.s3.locks import given_lock
from taskworker.gateways.s3.metadata import Metadata, given_metadata, metadata_of
from taskworker.gateways.s3.objects import (
    SHORT,
    Receiving,
    WriteCondition,
    check_supported,
    no_such_key,
    reply_of_get,
    reply_of_put,
)

_CONDITIONS = frozenset(("if-match", "if-none-match"))


class SmallObjects:
    """Gets and puts small objects, as :mod:`~taskworker.gateways.s3.objects` does. For one event loop.

    Both return None if more than that call is needed, or it shall be repeated. Nothing was done then, and a thread can
    do it all.

    Args:
        buckets: the settings of buckets, which must be known already.
    """

    def __init__(self, buckets: Buckets) -> None:
        self._buckets = buckets
        self._files = SmallFiles()

    def close(self) -> None:
        """Close the connections; see :meth:`SmallFiles.close`."""
        self._files.close()

    async def get(self, call: Call) -> Reply | None:
        """GetObject. Of a large object, the content of the reply is still to be read.

        Raises:
            S3Error: there is none, or a condition is not fulfilled.
            StorageError: as :meth:`Client.get_small`.
        """
        bucket = self._settled(call)
        if bucket is None or "versionId" in call.parameters:
            return None
        try:
            version, data = await self._files.get(call.client, call.filename, user_id=call.user, bytes_max=SHORT)
        except FileNotFound:
            raise no_such_key(call.filename) from None
        except (StorageUnavailable, CallNotOffered):
            return None
        metadata = metadata_of(version)
        return None if metadata.is_marker else reply_of_get(call, version, metadata, data, lambda: bucket)

    async def put(self, call: Call, body: bytes) -> Reply | None:
        """PutObject.

        Args:
            call: the request.
            body: all of its body, of which the content has at most 64 KiB.

        Raises:
            S3Error: the body is not what was announced, or something cannot be kept with the object.
            StorageError: as :meth:`Client.push`.
        """
        bucket = self._settled(call)
        if bucket is None or not _CONDITIONS.isdisjoint(call.fields):
            return None
        check_supported(call)
        lock = given_lock(call, bucket)

        def settled(metadata: Metadata) -> Metadata:
            return replace(metadata, is_null=bucket.versioning != ENABLED, lock=lock)

        receiving = Receiving((body,), Body(call.expected), given_metadata(call.head), call.now_ms, settled)
        content = receiving.whole()
        try:
            version = await self._files.push(
                call.client,
                content,
                user_id=call.user,
                filename=call.filename,
                time_ms=call.now_ms,
                attributes=receiving.attributes(),
            )
        except (ServerBusy, CallNotOffered):
            return None
        except (ConflictError, FileNotFound):
            raise WriteCondition().lost() from None
        return reply_of_put(call, bucket, receiving.metadata, version)

    def _settled(self, call: Call) -> Bucket | None:
        """The bucket of a call that needs to ask nothing else; None: it does."""
        if call.account.is_guest or "origin" in call.fields or not self._files.serves(call.client):
            return None
        bucket = self._buckets.kept(call)
        if bucket is None or bucket.is_damaged or not bucket.is_told or bucket.object_lock is not None:
            return None
        return bucket
