"""Where messages name users and files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from taskworker.protos import store_pb2

_OWNER = "user_id"


def names_in(message: Message) -> Iterator[str]:
    """Yield the names of files in a message; for a listing, what they begin with."""
    if isinstance(message, store_pb2.ListFilesRequest | store_pb2.ListVersionsRequest):
        yield message.prefix
        return
    for field, value in message.ListFields():
        if field.name == "filename":
            yield value
        for inner in messages_in(field, value):
            yield from names_in(inner)


def ids_in(message: Message) -> Iterator[str]:
    """Yield the ids of files in a message."""
    for field, value in message.ListFields():
        if field.name == "file_id":
            yield value
        elif field.name == "file_ids":
            yield from value
        for inner in messages_in(field, value):
            yield from ids_in(inner)


def messages_in(field: FieldDescriptor, value: Any) -> Iterator[Message]:
    """Yield the messages in the value of a field."""
    if type_within(field) is not None:
        if isinstance(value, Message):
            yield value
        else:
            yield from value


def type_within(field: FieldDescriptor) -> Descriptor | None:
    """The type of the messages in a field; None if it has other values."""
    inner = field.message_type
    return None if inner is None or inner.GetOptions().map_entry else inner


def paths_to_owners(message: Descriptor, above: tuple[Descriptor, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the paths of all messages within a message that have a ``user_id``."""
    if message in above:
        return
    if _OWNER in message.fields_by_name:
        yield ()
    for field in message.fields:
        inner = type_within(field)
        if inner is not None:
            for rest in paths_to_owners(inner, (*above, message)):
                yield (field.name, *rest)


def messages_at(message: Any, path: tuple[str, ...]) -> Iterator[Any]:
    """Yield the messages at a path that are there."""
    if not path:
        yield message
        return
    value = getattr(message, path[0])
    if not isinstance(value, Message):
        for one in value:
            yield from messages_at(one, path[1:])
    elif message.HasField(path[0]):
        yield from messages_at(value, path[1:])
