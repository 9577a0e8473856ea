"""``taskworker`` with one bound lowered: chunks may be of 64 bytes, so that a million of them fit on any disk.

All else is the product's own code. The bound is read by others while they are imported, so it is lowered
the moment its module has been run.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

CHUNK_BYTES = 64


class _LowerBound(importlib.machinery.SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        module.CHUNK_SIZE_MIN = CHUNK_BYTES  # type: ignore[attr-defined]


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "storage.limits":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        assert spec is not None
        assert spec.origin is not None
        spec.loader = _LowerBound(name, spec.origin)
        return spec


def lower_bound() -> None:
    """Lower the bound in this process; call it before anything of the product is imported."""
    sys.meta_path.insert(0, _Finder())


if __name__ == "__main__":
    lower_bound()
    from taskworker.cli import main

    main()
