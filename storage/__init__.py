"""storage: a small, fast, self-healing store of files, erasure-coded over volumes, with all versions kept.

>>> from storage import FileStorage
>>> with FileStorage.open("my-store") as store:                        # doctest: +SKIP
...     version = store.push(b"hello", filename="a.txt", user_id="me")
...     store.get(version.file_id, user_id="me")
b'hello'

Names are loaded when they are first used, so that importing one module does not import all the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.lazily import loading

if TYPE_CHECKING:
    from storage.diff.manifest_diff import ManifestDiff, Patch
    from storage.engine import FileStorage
    from storage.erasure import ErasureProfile
    from storage.errors import (
        CatalogBehind,
        ConflictError,
        DataLossError,
        FileNotFound,
        FormatError,
        IncompletePush,
        InsufficientWorkers,
        InvalidArgument,
        KeyRequired,
        PermissionDenied,
        QuotaExceeded,
        SealBroken,
        ShardsUnavailable,
        StorageError,
        StoreClosed,
        StoreFull,
        StoreLocked,
        StoreReadOnly,
        StoreUnavailable,
        UsedAfterFork,
        VersionNotFound,
    )
    from storage.formats.versions import Version
    from storage.limits import CHUNK_SIZE_DEFAULT, CHUNK_SIZE_MAX, CHUNK_SIZE_MIN
    from storage.listing import FilePage, VersionPage
    from storage.outcomes import DeleteOutcome, GetOutcome, PushOutcome
    from storage.progress import Progress
    from storage.read.reader import FileReader
    from storage.reports import (
        CollectReport,
        Damage,
        RebuildReport,
        RepairReport,
        ScrubReport,
        ShredReport,
        StoreStats,
        VolumeStats,
    )
    from storage.write.upload import Upload

__all__ = [
    "CHUNK_SIZE_DEFAULT",
    "CHUNK_SIZE_MAX",
    "CHUNK_SIZE_MIN",
    "CatalogBehind",
    "CollectReport",
    "ConflictError",
    "Damage",
    "DataLossError",
    "DeleteOutcome",
    "ErasureProfile",
    "FileNotFound",
    "FilePage",
    "FileReader",
    "FileStorage",
    "FormatError",
    "GetOutcome",
    "IncompletePush",
    "InsufficientWorkers",
    "InvalidArgument",
    "KeyRequired",
    "ManifestDiff",
    "Patch",
    "PermissionDenied",
    "Progress",
    "PushOutcome",
    "QuotaExceeded",
    "RebuildReport",
    "RepairReport",
    "ScrubReport",
    "SealBroken",
    "ShardsUnavailable",
    "ShredReport",
    "StorageError",
    "StoreClosed",
    "StoreFull",
    "StoreLocked",
    "StoreReadOnly",
    "StoreStats",
    "StoreUnavailable",
    "Upload",
    "UsedAfterFork",
    "Version",
    "VersionNotFound",
    "VersionPage",
    "VolumeStats",
]

__getattr__, __dir__ = loading(
    __name__,
    {
        "CHUNK_SIZE_DEFAULT": "storage.limits",
        "CHUNK_SIZE_MAX": "storage.limits",
        "CHUNK_SIZE_MIN": "storage.limits",
        "CatalogBehind": "storage.errors",
        "CollectReport": "storage.reports",
        "ConflictError": "storage.errors",
        "Damage": "storage.reports",
        "DataLossError": "storage.errors",
        "DeleteOutcome": "storage.outcomes",
        "ErasureProfile": "storage.erasure",
        "FileNotFound": "storage.errors",
        "FilePage": "storage.listing",
        "FileReader": "storage.read.reader",
        "FileStorage": "storage.engine",
        "FormatError": "storage.errors",
        "GetOutcome": "storage.outcomes",
        "IncompletePush": "storage.errors",
        "InsufficientWorkers": "storage.errors",
        "InvalidArgument": "storage.errors",
        "KeyRequired": "storage.errors",
        "ManifestDiff": "storage.diff.manifest_diff",
        "Patch": "storage.diff.manifest_diff",
        "PermissionDenied": "storage.errors",
        "Progress": "storage.progress",
        "PushOutcome": "storage.outcomes",
        "RebuildReport": "storage.reports",
        "RepairReport": "storage.reports",
        "ScrubReport": "storage.reports",
        "ShredReport": "storage.reports",
        "SealBroken": "storage.errors",
        "ShardsUnavailable": "storage.errors",
        "StorageError": "storage.errors",
        "StoreClosed": "storage.errors",
        "QuotaExceeded": "storage.errors",
        "StoreFull": "storage.errors",
        "StoreLocked": "storage.errors",
        "StoreReadOnly": "storage.errors",
        "StoreStats": "storage.reports",
        "StoreUnavailable": "storage.errors",
        "Upload": "storage.write.upload",
        "UsedAfterFork": "storage.errors",
        "Version": "storage.formats.versions",
        "VersionNotFound": "storage.errors",
        "VersionPage": "storage.listing",
        "VolumeStats": "storage.reports",
    },
)
