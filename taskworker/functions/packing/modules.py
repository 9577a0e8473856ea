"""Packing functions of modules on disk: the module, what it imports of its own directory, data files, packages."""

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
    """Pack a function of a module or package in a directory, with what it needs.

    The modules and packages of ``root`` that it imports, and those that these import, travel along; of a package all
    files do.

    Args:
        entry: ``module:function``.
        spec: how it is called; its entry and requirements are filled in.
        root: where the module is.
        include: further files of ``root``: names, directories, or patterns as ``templates/*.html``.
        modules: further modules and packages of ``root``, by name.
        requirements: a file that names packages.
        platforms: for which to get them; none: for this machine's.

    Raises:
        InvalidArgument: no such module or file, or something that functions do not take.
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
