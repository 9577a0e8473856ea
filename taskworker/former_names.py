"""Modules under the names that they had before the packages were arranged anew, for programs that import them so.

``import taskworker.store_pb2`` gives the module ``taskworker.protos.store_pb2`` itself, not a second copy of it.
Nothing in this project uses the former names.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from importlib.abc import Loader

_PRESENT = {
    **{
        f"taskworker.{name}_pb2{suffix}": f"taskworker.protos.{name}_pb2{suffix}"
        for name in ("egress", "functions", "outside", "pool", "secrets", "store")
        for suffix in ("", "_grpc")
    },
    "taskworker.dns": "taskworker.outbound.dns",
    "taskworker.egress": "taskworker.outbound.egress",
    "taskworker.secrets": "taskworker.outbound.secrets",
    "taskworker.functions.bundles": "taskworker.calls.bundle",
    "taskworker.functions.host": "taskworker.functions.hosting.host",
    "taskworker.functions.redaction": "taskworker.calls.redaction",
    "taskworker.functions.spec": "taskworker.calls.spec",
    "taskworker.services.server": "taskworker.services.file_server",
    "taskworker.volume_worker": "taskworker.worker.volume",
    "taskworker.wire": "taskworker.rpc",
    "taskworker.wire.shards": "taskworker.transport.frames",
}


def present_name(name: str) -> str | None:
    """The name that a module has now; None if ``name`` is no former one."""
    head, tail = name, ""
    while head:
        if head in _PRESENT:
            return _PRESENT[head] + tail
        head, _, last = head.rpartition(".")
        tail = f".{last}{tail}"
    return None


def another_name(fullname: str, name: str) -> ModuleSpec:
    """A specification by which importing ``fullname`` gives the module ``name`` itself, not a second copy of it."""
    return ModuleSpec(fullname, cast("Loader", _SameModule(name)))


class _SameModule:
    """The loader for it.

    It derives from no class of ``importlib.abc``, which takes longer to import than all of this package.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave it to the import system to make a module, which :meth:`exec_module` replaces."""

    def exec_module(self, module: ModuleType) -> None:
        """Put the module with the other name in the place of this one.

        Raises:
            ModuleNotFoundError: there is none.
        """
        sys.modules[module.__name__] = import_module(self._name)


class FormerNames:
    """Finds modules by their former names. It comes before the finder of files, see :func:`install`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A specification whose loading gives the module under its present name."""
        present = present_name(fullname) if fullname.startswith("taskworker.") else None
        if present is None:
            return None
        return another_name(fullname, present)


def install() -> None:
    """Have imports find modules by their former names.

    The finder comes first: the one of files would find a module of a package that was moved by that package's path,
    and load it a second time.
    """
    if not any(isinstance(finder, FormerNames) for finder in sys.meta_path):
        sys.meta_path.insert(0, FormerNames())
