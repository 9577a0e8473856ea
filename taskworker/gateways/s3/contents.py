"""The contents of replies: read at once if they are short, or written as they come from the pool."""

from __future__ import annotations

from taskworker.gateways.s3.calls import Content, Reply
from taskworker.gateways.s3.objects import SHORT
from taskworker.gateways.s3.streams import Outgoing, Straight


def with_short_content(reply: Reply) -> Reply:
    """A reply with its content as the body, if that is short.

    Raises:
        StorageError: as :meth:`Client.get`.
    """
    if reply.content is None or reply.content.length > SHORT:
        return reply
    return Reply(reply.status, reply.headers, _read(reply.content))


def write(content: Content, outgoing: Outgoing | Straight) -> None:
    """Write a content to whoever asked for it.

    Raises:
        PeerGone: the caller is gone.
        StorageError: as :meth:`Client.download`.
    """
    try:
        content.client.download(
            content.version.file_id,
            outgoing,  # type: ignore[arg-type]  # all that is used of a file
            user_id=content.user,
            version_id=content.version.version_id,
            offset=content.offset,
            length=content.length,
        )
    except BaseException:
        outgoing.give_up()
        raise
    outgoing.end()


def _read(content: Content) -> bytes:
    if not content.length:
        return b""
    if content.data is not None:
        return content.data[content.offset : content.offset + content.length]
    whole = content.length == content.version.size
    return content.client.get(
        content.version.file_id,
        user_id=content.user,
        version_id=content.version.version_id,
        offset=content.offset,
        length=None if whole else content.length,
    )
