"""Protobuf messages ↔ the engine's data classes. Only the packages that call this module use protobuf."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from storage import (
    ErasureProfile,
    InvalidArgument,
    ManifestDiff,
    Patch,
    Version,
)
from storage.options import PushOptions
from taskworker.protos import store_pb2

MessageT = TypeVar("MessageT", bound=Message)
HasAttributes = store_pb2.Version | store_pb2.PushCommit | store_pb2.PushManyHeader | store_pb2.ConcatenateRequest


def parsed(parse: Callable[[bytes], MessageT], raw: bytes, what: str) -> MessageT:
    """Return ``parse(raw)``; raise InvalidArgument, saying that ``what`` is malformed, if it cannot be parsed."""
    try:
        return parse(raw)
    except DecodeError as error:
        raise InvalidArgument(f"{what} is malformed ({error}); serialize it as the .proto files define") from None


def push_header(options: PushOptions, *, size_hint: int) -> store_pb2.PushHeader:
    """The first message of a push."""
    return store_pb2.PushHeader(
        filename=options.filename,
        user_id=options.user_id,
        chunk_size=options.chunk_size or 0,
        profile=profile_to_proto(options.profile) if options.profile is not None else None,
        time_ms=options.time_ms,
        sha256=options.sha256 or "",
        note=options.note,
        size_hint=size_hint,
        if_absent=options.if_absent,
        if_head=options.if_head or "",
    )


def push_commit(options: PushOptions, size: int) -> store_pb2.PushCommit:
    """The end of a push. If the attributes come from a function, it is called now, as all content was read."""
    attributes = options.attributes_now()
    return store_pb2.PushCommit(size=size, attributes=None if attributes is None else attributes_to_proto(attributes))


def push_options(header: store_pb2.PushHeader) -> PushOptions:
    """Inverse of :func:`push_header`, without the size; does not check the values."""
    return PushOptions(
        filename=header.filename,
        user_id=header.user_id,
        chunk_size=header.chunk_size or None,
        profile=profile_from_proto(header.profile) if header.HasField("profile") else None,
        time_ms=header.time_ms if header.HasField("time_ms") else None,
        sha256=header.sha256 or None,
        note=header.note,
        if_absent=header.if_absent,
        if_head=header.if_head or None,
    )


def attributes_to_proto(attributes: Mapping[str, bytes]) -> store_pb2.Attributes:
    """The wire form of a version's attributes."""
    return store_pb2.Attributes(values=attributes)


def attributes_from_proto(holder: HasAttributes) -> dict[str, bytes] | None:
    """The attributes in a message; None if it has no such field."""
    return dict(holder.attributes.values) if holder.HasField("attributes") else None


def many_header(options: PushOptions) -> store_pb2.PushManyHeader:
    """The header of a push of many files; the filename of the options is not used."""
    attributes = options.attributes_now()
    return store_pb2.PushManyHeader(
        user_id=options.user_id,
        chunk_size=options.chunk_size or 0,
        profile=profile_to_proto(options.profile) if options.profile is not None else None,
        time_ms=options.time_ms,
        note=options.note,
        attributes=None if attributes is None else attributes_to_proto(attributes),
    )


def many_options(header: store_pb2.PushManyHeader) -> PushOptions:
    """Inverse of :func:`many_header`; does not check the values."""
    return PushOptions(
        filename="",
        user_id=header.user_id,
        chunk_size=header.chunk_size or None,
        profile=profile_from_proto(header.profile) if header.HasField("profile") else None,
        time_ms=header.time_ms if header.HasField("time_ms") else None,
        note=header.note,
        attributes=attributes_from_proto(header),
    )


def profile_to_proto(profile: ErasureProfile) -> store_pb2.ErasureProfile:
    """The wire form of an erasure profile."""
    return store_pb2.ErasureProfile(k=profile.k, n=profile.n)


def profile_from_proto(message: store_pb2.ErasureProfile) -> ErasureProfile:
    """Inverse of :func:`profile_to_proto`; InvalidArgument for an impossible one."""
    return ErasureProfile(k=message.k, n=message.n)


def version_to_proto(version: Version) -> store_pb2.Version:
    """The wire form of a version."""
    message = store_pb2.Version()
    describe_version(message, version)
    return message


def describe_version(message: store_pb2.Version, version: Version) -> None:
    """Fill an empty message with a version: one within another message, which it need not be copied into."""
    message.file_id = version.file_id
    message.version_id = version.version_id
    if version.parent_id is not None:
        message.parent_id = version.parent_id
    message.user_id = version.user_id
    message.filename = version.filename
    message.size = version.size
    message.chunk_size = version.chunk_size
    message.profile.k = version.profile.k
    message.profile.n = version.profile.n
    message.time_ms = version.time_ms
    message.sequence = version.sequence
    if version.sha256 is not None:
        message.sha256 = version.sha256
    if version.note:
        message.note = version.note
    if version.attributes:
        message.attributes.values.update(version.attributes)


def version_from_proto(message: store_pb2.Version, *, unchanged: bool = False) -> Version:
    """Inverse of :func:`version_to_proto`; the result is marked ``unchanged`` if that is said."""
    return Version(
        file_id=message.file_id,
        version_id=message.version_id,
        parent_id=message.parent_id or None,
        user_id=message.user_id,
        filename=message.filename,
        size=message.size,
        chunk_size=message.chunk_size,
        profile=profile_from_proto(message.profile),
        time_ms=message.time_ms,
        sequence=message.sequence,
        sha256=message.sha256 or None,
        note=message.note,
        unchanged=unchanged,
        attributes=attributes_from_proto(message) or {},
    )


def patch_to_proto(patch: Patch) -> store_pb2.Patch:
    """The wire form of one patch."""
    return store_pb2.Patch(index=patch.index, chunk_id=patch.chunk_id, data=patch.data)


def patch_from_proto(message: store_pb2.Patch) -> Patch:
    """Inverse of :func:`patch_to_proto`; the engine checks bounds and hashes."""
    return Patch(
        index=message.index,
        chunk_id=message.chunk_id,
        data=message.data if message.HasField("data") else None,
    )


def diff_to_proto(diff: ManifestDiff) -> store_pb2.ManifestDiff:
    """The wire form of a diff."""
    return store_pb2.ManifestDiff(
        base_version=diff.base_version_id,
        new_size=diff.new_size,
        chunk_size=diff.chunk_size,
        patches=map(patch_to_proto, diff.patches),
        target_version=diff.target_version_id or "",
    )


def diff_from_proto(message: store_pb2.ManifestDiff) -> ManifestDiff:
    """Inverse of :func:`diff_to_proto`; the engine checks bounds and hashes."""
    return ManifestDiff(
        base_version_id=message.base_version,
        new_size=message.new_size,
        chunk_size=message.chunk_size,
        patches=tuple(map(patch_from_proto, message.patches)),
        target_version_id=message.target_version or None,
    )
