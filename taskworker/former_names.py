"""Former names of modules that have moved, for programs that still import them by these names.

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
    """The present name of a module; None if ``name`` is not a former name."""
    head, tail = name, ""
    while head:
        if head in _PRESENT:
            return _PRESENT[head] + tail
        head, _, last = head.rpartition(".")
        tail = f".{last}{tail}"
    return None


def another_name(fullname: str, name: str) -> ModuleSpec:
    """A module spec with which importing ``fullname`` gives the module ``name`` itself, not a second copy of it."""
    return ModuleSpec(fullname, cast("Loader", _SameModule(name)))


class _SameModule:
    """The loader of such a spec.

    It does not derive from a class of ``importlib.abc``, which takes longer to import than this whole package.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def create_module(self, spec: ModuleSpec) -> None:
        """Let the import system create a module, which :meth:`exec_module` replaces."""

    def exec_module(self, module: ModuleType) -> None:
        """Replace this module with the one that has the other name.

        Raises:
            ModuleNotFoundError: there is no such module.
        """
        sys.modules[module.__name__] = import_module(self._name)


class FormerNames:
    """Finds modules by their former names. It must come before the path-based finder, see :func:`install`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A spec that loads the module by its present name."""
        present = present_name(fullname) if fullname.startswith("taskworker.") else None
        if present is None:
            return None
        return another_name(fullname, present)


def install() -> None:
    """Make imports find modules by their former names.

    The finder comes first: in a package that was moved, the path-based finder would find a module by the package's
    path, and load it a second time.
    """
    if not any(isinstance(finder, FormerNames) for finder in sys.meta_path):
        sys.meta_path.insert(0, FormerNames())
