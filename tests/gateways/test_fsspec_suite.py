"""fsspec's own suite for filesystems, whole, on an embedded store and on a pool."""

from __future__ import annotations

import pytest
from fsspec.tests.abstract import (
    AbstractCopyTests,
    AbstractFixtures,
    AbstractGetTests,
    AbstractOpenTests,
    AbstractPipeTests,
    AbstractPutTests,
)

from taskworker.gateways.fsspec import VersionedFileSystem


class Both(AbstractFixtures):
    @pytest.fixture
    def fs_path(self) -> str:
        return "home"

    @pytest.fixture
    def supports_empty_directories(self) -> bool:
        return False


class OnStore(Both):
    @pytest.fixture
    def fs(self, store_fs: VersionedFileSystem) -> VersionedFileSystem:
        return store_fs


class OnPool(Both):
    @pytest.fixture
    def fs(self, pool_fs: VersionedFileSystem) -> VersionedFileSystem:
        return pool_fs


class TestCopyInStore(AbstractCopyTests, OnStore):
    pass


class TestGetFromStore(AbstractGetTests, OnStore):
    pass


class TestOpenInStore(AbstractOpenTests, OnStore):
    pass


class TestPipeToStore(AbstractPipeTests, OnStore):
    pass


class TestPutToStore(AbstractPutTests, OnStore):
    pass


class TestCopyInPool(AbstractCopyTests, OnPool):
    pass


class TestGetFromPool(AbstractGetTests, OnPool):
    pass


class TestOpenInPool(AbstractOpenTests, OnPool):
    pass


class TestPipeToPool(AbstractPipeTests, OnPool):
    pass


class TestPutToPool(AbstractPutTests, OnPool):
    pass
