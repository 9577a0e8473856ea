"""Pages of versions, small enough for one message whatever attributes the versions have; and of chunks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

from storage import FilePage, Version, VersionPage
from taskworker.pool.direct_reads import Page
from taskworker.protos import store_pb2
from taskworker.rpc.conversion import version_to_proto
from taskworker.rpc.limits import MIB

_ATTRIBUTES_BYTES_MAX = MIB
"""Bytes of attributes in a page. The rest of as many versions as a page may have takes up to 3 MiB."""


def file_page_to_proto(page: FilePage, attributes: Collection[str]) -> store_pb2.ListFilesResponse:
    """The wire form of a page, with the attributes of these names only; of a large one, the first part."""
    files = list(within_page(_with_attributes(file, attributes) for file in page.files))
    prefixes, after = page.prefixes, page.next_after
    if len(files) < len(page.files):
        after = files[-1].filename
        prefixes = [prefix for prefix in prefixes if prefix.encode() < after.encode()]
    return store_pb2.ListFilesResponse(files=map(version_to_proto, files), next_after=after or "", prefixes=prefixes)


def version_page_to_proto(page: VersionPage) -> store_pb2.ListVersionsResponse:
    """The wire form of a page; of a large one, the first part."""
    versions = list(within_page(page.versions))
    prefixes, after, before = page.prefixes, page.next_after, page.next_before
    if len(versions) < len(page.versions):
        after, before = versions[-1].filename, versions[-1].version_id
        prefixes = [prefix for prefix in prefixes if prefix.encode() < after.encode()]
    return store_pb2.ListVersionsResponse(
        versions=map(version_to_proto, versions),
        latest=[one.version_id for one in versions if one.version_id in page.latest],
        prefixes=prefixes,
        next_after=after or "",
        next_before=before or "",
    )


def shards_page_to_proto(page: Page) -> store_pb2.ShardsPage:
    """The wire form of a page of chunks."""
    return store_pb2.ShardsPage(
        first=page.first,
        k=page.k,
        n=page.n,
        ids=b"".join(page.ids),
        sealed=page.is_sealed,
        keys=[store_pb2.EpochKeys(epoch=epoch, keys=b"".join(keys)) for epoch, keys in page.keys.items()],
        holders=[store_pb2.ShardHolder(address=holder.address, name=holder.name) for holder in page.holders],
        placed=page.placed,
        ticket=page.ticket,
        valid_ms=int(page.valid_s * 1000),
        authorities=page.authorities,
    )


def _with_attributes(version: Version, names: Collection[str]) -> Version:
    """The version with those attributes only that have one of these names."""
    if not version.attributes:
        return version
    return replace(version, attributes={name: version.attributes[name] for name in names if name in version.attributes})


def within_page(versions: Iterable[Version]) -> Iterator[Version]:
    """The first of the versions, at least one, up to as many as fit into one message."""
    size = 0
    for version in versions:
        size += sum(len(name) + len(value) for name, value in version.attributes.items())
        if size > _ATTRIBUTES_BYTES_MAX:
            return
        yield version
