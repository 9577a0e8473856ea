"""A function's dependencies: pip resolves and installs them for the workers' platforms; their versions are locked."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import Distribution, distributions, version
from pathlib import Path

from storage.errors import InvalidArgument
from taskworker.calls.bundle import BUNDLE_BYTES_MAX, DEPENDENCIES, PLATFORMS, PackedPackage
from taskworker.calls.platform import Platform, own_platform
from taskworker.errors import PackagesNotFound

PROVIDED = ("pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection", "cloudpickle")
"""Packages that every sandbox loads before a function's own; other versions cannot replace them."""

_NATIVE = (".so", ".pyd", ".dylib", ".dll", ".a", ".o")
_TELLS_PATHS = "direct_url.json"  # has the path on this machine that a package came from
_OLDEST_GLIBC = 5  # manylinux_2_5 is the oldest platform of Linux wheels
_NAMED_MANYLINUX = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}


@dataclass(frozen=True, slots=True)
class Dependencies:
    """The installed dependencies.

    Attributes:
        files: contents by path in the bundle.
        locked: ``name==version`` of the packages that are the same on all platforms.
        platforms: ``name==version`` of the other packages, by platform; empty: everything runs on any platform.
        packages: all packages, with the number and bytes of their files.
    """

    files: Mapping[str, bytes] = field(default_factory=dict)
    locked: tuple[str, ...] = ()
    platforms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    packages: tuple[PackedPackage, ...] = ()


@dataclass(frozen=True, slots=True)
class _Package:
    """A distribution as it was installed for one platform."""

    pinned: str
    native: bool
    files: Mapping[str, bytes]

    def packed(self, platform: str) -> PackedPackage:
        """The package's entry in a bundle's list of packages."""
        return PackedPackage(self.pinned, platform, len(self.files), sum(map(len, self.files.values())))


def installed(requirements: Path, platforms: Sequence[Platform]) -> Dependencies:
    """Install the packages of a requirements file, for each platform.

    Args:
        requirements: path of the file.
        platforms: the workers' platforms; none: this machine's.

    Raises:
        InvalidArgument: pip failed, or a package needs another version of a package that every sandbox has; the text
            says which.
    """
    platforms = platforms or [_this_machine()]
    found = {platform.tag: _installed_for(requirements, platform) for platform in platforms}
    first = found[platforms[0].tag]
    same = [one for one in first if all(one in packages for packages in found.values())]
    files = {f"{DEPENDENCIES}/{path}": content for one in same for path, content in one.files.items()}
    told = [one.packed("") for one in same]
    locked: dict[str, tuple[str, ...]] = {}
    for tag, packages in found.items():
        own = [one for one in packages if one not in same]
        files |= {f"{PLATFORMS}/{tag}/{path}": content for one in own for path, content in one.files.items()}
        locked[tag] = tuple(one.pinned for one in own)
        told += (one.packed(tag) for one in own)
    anywhere = not any(one.native for packages in found.values() for one in packages) and not any(locked.values())
    return Dependencies(files, tuple(one.pinned for one in same), {} if anywhere else locked, tuple(told))


def _this_machine() -> Platform:
    platform = own_platform()
    if platform is None:
        raise InvalidArgument("packages are chosen for the workers' platforms, and there is no worker yet; start one")
    return platform


def _installed_for(requirements: Path, platform: Platform) -> list[_Package]:
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory, "packages")
        _pip_install(requirements, platform, scratch, _constraints(Path(directory, "provided.txt")))
        found = sorted(distributions(path=[str(scratch)]), key=lambda one: one.name.lower())
        return [_package(one, scratch) for one in found if one.name.lower().replace("-", "_") not in PROVIDED]


def _package(distribution: Distribution, scratch: Path) -> _Package:
    found = dict(_files(distribution, scratch.resolve()))
    size = sum(path.stat().st_size for path in found.values())
    if size > BUNDLE_BYTES_MAX:
        raise InvalidArgument(
            f"package {distribution.name} has {size / (1 << 20):,.1f} MiB: a function and its packages have "
            f"{BUNDLE_BYTES_MAX >> 20} MiB at most"
        )
    files = {name: path.read_bytes() for name, path in found.items()}
    native = any(path.endswith(_NATIVE) or ".so." in path for path in files)
    return _Package(f"{distribution.name}=={distribution.version}", native, files)


def _files(distribution: Distribution, scratch: Path) -> Iterator[tuple[str, Path]]:
    """The package's files by path; RECORD is written by the packager, and may name files elsewhere."""
    for listed in distribution.files or ():
        # Files outside, such as scripts in ../../bin, cannot be imported.
        if {"__pycache__", ".."} & set(listed.parts) or listed.name == _TELLS_PATHS or listed.is_absolute():
            continue
        path = scratch / listed
        if path.is_file() and path.resolve().is_relative_to(scratch):
            yield listed.as_posix(), path


def _constraints(path: Path) -> Path:
    """Write constraints, so that pip resolves for the package versions that sandboxes have."""
    path.write_text("".join(f"{pinned}\n" for pinned in _provided_versions()))
    return path


def _provided_versions() -> list[str]:
    return [f"{name}=={version(name)}" for name in PROVIDED]


def _pip_install(requirements: Path, platform: Platform, target: Path, constraints: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--only-binary", ":all:", "--no-compile", "--target", str(target), "--requirement", str(requirements)]
    command += ["--constraint", str(constraints), "--implementation", "cp"]
    command += ["--python-version", ".".join(map(str, platform.python))]
    for tag in wheel_tags(platform):
        command += ["--platform", tag]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        told = "\n".join(line for line in done.stderr.splitlines() if line.startswith("ERROR"))
        raise PackagesNotFound(
            f"pip could not install {requirements} for {platform.tag}, from wheels alone:\n"
            f"{told or done.stderr.strip()}\n"
            "if a package is available only as source, build a wheel with `pip wheel PACKAGE -w wheels`, and write "
            "`--find-links wheels` into the requirements\n"
            f"every sandbox has {', '.join(_provided_versions())}, which requirements cannot replace"
        )


def wheel_tags(platform: Platform) -> Iterator[str]:
    """The tags of wheels that run on a platform (PEP 600, PEP 656), best first."""
    major, minor = platform.libc_version
    if platform.libc == "musl":
        for number in range(minor, -1, -1):
            yield f"musllinux_{major}_{number}_{platform.machine}"
    else:
        for number in range(minor, _OLDEST_GLIBC - 1, -1):
            yield f"manylinux_{major}_{number}_{platform.machine}"
            if number in _NAMED_MANYLINUX:
                yield f"{_NAMED_MANYLINUX[number]}_{platform.machine}"
    yield f"linux_{platform.machine}"
