"""Packs functions of modules on disk: the module, its imports from its directory, data files and packages."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from storage.errors import InvalidArgument
from taskworker.calls.bundle import APP, PackedFunction, packed
from taskworker.calls.platform import Platform
from taskworker.calls.spec import FunctionSpec
from taskworker.functions.packing.dependencies import Dependencies, installed
from taskworker.functions.packing.directory import CodeDirectory


def pack_module(
    entry: str,
    spec: FunctionSpec,
    *,
    root: Path,
    include: Sequence[str] = (),
    modules: Collection[str] = (),
    requirements: Path | None = None,
    platforms: Sequence[Platform] = (),
) -> PackedFunction:
    """Pack a function of a module or package in a directory, with everything it needs.

    This includes the modules and packages that it imports from ``root``, directly or indirectly, and all files of
    these packages.

    Args:
        entry: ``module:function``.
        spec: its specification; the entry and requirements are filled in.
        root: directory of the module.
        include: further files in ``root``: names, directories, or patterns such as ``templates/*.html``.
        modules: further modules and packages in ``root``, by name.
        requirements: path of a requirements file.
        platforms: the platforms to install packages for; none: this machine's.

    Raises:
        InvalidArgument: there is no such module or file, or something cannot be packed.
    """
    module, separator, function = entry.partition(":")
    if not separator or not all(part.isidentifier() for part in (*module.split("."), *function.split("."))):
        raise InvalidArgument(f"{entry!r} is not module:function; for function f in app.py write app:f")
    if module.endswith(".py") and not Path(root, *module.split(".")).with_suffix(".py").is_file():
        raise InvalidArgument(f"{entry!r} names a file: write {module.removesuffix('.py')}:{function}")
    directory = CodeDirectory(root)
    paths = directory.travelling(module, modules, directory.included(include))
    files = {f"{APP}/{path.relative_to(root).as_posix()}": path.read_bytes() for path in paths}
    dependencies = installed(requirements, platforms) if requirements is not None else Dependencies()
    spec = msgspec.structs.replace(
        spec, entry=entry, requirements=dependencies.locked, platforms=dependencies.platforms
    ).checked()
    return replace(packed(spec, {**files, **dependencies.files}), packages=dependencies.packages)
