"""Deploys a function from a directory: packs it, has the pool import it, and repacks it with modules it lacked."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from taskworker.calls.bundle import PackedFunction, PackedPackage
from taskworker.calls.labels import meets
from taskworker.calls.platform import Platform, to_cover
from taskworker.calls.spec import FunctionSpec
from taskworker.client.functions import DEPLOY_TIMEOUT_S, Deployed, FunctionClient
from taskworker.errors import FunctionBroken
from taskworker.functions.packing.directory import CodeDirectory
from taskworker.functions.packing.modules import pack_module

_MISSING = re.compile(r"ModuleNotFoundError: No module named '([\w.]+)'")
_TRIES = 20
"""Each attempt adds one more module of the directory, whose name the source does not show."""


@dataclass(frozen=True, slots=True)
class Source:
    """The location of a function's code.

    Attributes:
        directory: directory of the module.
        include: names, directories or patterns of further files in it.
        requirements: path of a requirements file.
    """

    directory: Path
    include: Sequence[str] = ()
    requirements: Path | None = None


@dataclass(frozen=True, slots=True)
class Deployment:
    """The result of a deployment, or of a dry run.

    Attributes:
        function: its name.
        version_id: id of the newest version; empty after a dry run.
        changed: False if this version was already the newest.
        size: bytes of the bundle.
        files: sizes of its files, by path in the bundle.
        packages: all packages in it, with the number and bytes of their files.
        requirements: packages in it that are the same on all platforms, ``name==version``.
        imported_by: workers that imported it before it went live.
        not_imported: why no worker has imported it; only for a function's first version.
        able: workers that can run it now.
        unable: workers that cannot, and why.
        platforms: the platforms it has packages for, each with the packages for it alone; empty: it runs on any.
        config: the contents of ``worker.config``.
    """

    function: str
    version_id: str
    changed: bool
    size: int
    files: Mapping[str, int]
    requirements: tuple[str, ...]
    imported_by: tuple[str, ...]
    not_imported: str
    able: tuple[str, ...]
    unable: Mapping[str, str]
    platforms: Mapping[str, tuple[str, ...]]
    config: Mapping[str, str]
    packages: tuple[PackedPackage, ...] = ()


def deploy(
    client: FunctionClient,
    spec: FunctionSpec,
    source: Source,
    *,
    user_id: str,
    dry_run: bool = False,
    remaining_s: Callable[[], float | None] = lambda: DEPLOY_TIMEOUT_S,
) -> Deployment:
    """Pack a function and make it the newest version, once a worker has imported it.

    Raises:
        InvalidArgument: the function cannot be packed.
        FunctionBroken: it cannot be imported, or has no such entry; the version deployed before stays live.
        FunctionsUnavailable: no worker could import it, and there is an earlier version.
    """
    directory, modules = CodeDirectory(source.directory), set[str]()
    platforms = _platforms(client, spec) if source.requirements is not None else []
    while True:
        packed = pack_module(
            spec.entry,
            spec,
            root=source.directory,
            include=source.include,
            modules=modules,
            requirements=source.requirements,
            platforms=platforms,
        )
        try:
            deployed = client.deploy(packed.bundle, user_id=user_id, dry_run=dry_run, timeout_s=remaining_s())
        except FunctionBroken as error:
            missing = _MISSING.search(str(error))
            if missing is None or missing[1] in modules or len(modules) == _TRIES:
                raise
            if not directory.has(missing[1]):
                raise FunctionBroken(f"{error}\n{_how_to_bring(missing[1], source)}") from error
            modules.add(missing[1])
        else:
            return _deployment(deployed, packed)


def _how_to_bring(module: str, source: Source) -> str:
    if module.partition(".")[0] in sys.stdlib_module_names:
        return f"sandboxes have no module {module}"
    if source.requirements is not None:
        return f"{module} is neither in {source.directory} nor in a package of {source.requirements}"
    return (
        f"{module} is not in {source.directory}; if a package has it, name the package in a requirements file "
        "(--requirements FILE)"
    )


def _platforms(client: FunctionClient, spec: FunctionSpec) -> list[Platform]:
    """Platforms of the workers that may run the function."""
    hosts = [host for host in client.hosts() if host.hosts_deployed and host.platform]
    return to_cover([Platform.of(host.platform) for host in hosts if meets(host.labels, spec.needs)])


def _deployment(deployed: Deployed, packed: PackedFunction) -> Deployment:
    return Deployment(
        function=deployed.function,
        version_id=deployed.version_id,
        changed=deployed.changed,
        size=len(packed.bundle),
        files=packed.files,
        requirements=packed.spec.requirements,
        imported_by=deployed.imported_by,
        not_imported=deployed.not_imported,
        able=deployed.able,
        unable=deployed.unable,
        platforms=packed.spec.platforms,
        config=packed.spec.config,
        packages=packed.packages,
    )
