"""A function's dependencies: resolved and installed by pip, pure Python only, locked to what was found."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions, version
from pathlib import Path

from storage.errors import InvalidArgument
from taskworker.bundles.archive import DEPENDENCIES

PROVIDED = ("pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection", "cloudpickle")
"""Packages that every sandbox has, loaded before a function's own: no other version of them can take their place."""

_NATIVE = (".so", ".pyd", ".dylib", ".dll", ".a", ".o")


class Dependencies:
    """What was installed: the files of a bundle, and ``name==version`` for each package."""

    def __init__(self, files: dict[str, bytes], locked: tuple[str, ...]) -> None:
        self.files = files
        self.locked = locked


def installed(requirements: Path) -> Dependencies:
    """Install what a requirements file names.

    Raises:
        InvalidArgument: pip could not, a package has compiled code, or one needs another version of what every
            sandbox has; the text says which.
    """
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory, "packages")
        _pip_install(requirements, scratch, _constraints(Path(directory, "provided.txt")))
        found = sorted(distributions(path=[str(scratch)]), key=lambda one: one.name.lower())
        found = [one for one in found if re.sub(r"[-_.]+", "_", one.name).lower() not in PROVIDED]
        for distribution in found:
            _require_pure(distribution)
        files = {f"{DEPENDENCIES}/{path}": Path(scratch, path).read_bytes() for path in _files(found)}
        return Dependencies(files, tuple(f"{one.name}=={one.version}" for one in found))


def _constraints(path: Path) -> Path:
    """Have pip resolve everything for the versions that sandboxes have."""
    path.write_text("".join(f"{pinned}\n" for pinned in _provided_versions()))
    return path


def _provided_versions() -> list[str]:
    return [f"{name}=={version(name)}" for name in PROVIDED]


def _pip_install(requirements: Path, target: Path, constraints: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--only-binary", ":all:", "--no-compile", "--target", str(target), "--requirement", str(requirements)]
    command += ["--constraint", str(constraints)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        told = "\n".join(line for line in done.stderr.splitlines() if line.startswith("ERROR"))
        raise InvalidArgument(
            f"pip could not install {requirements}:\n{told or done.stderr.strip()}\n"
            f"every sandbox has {', '.join(_provided_versions())}, which requirements cannot replace"
        )


def _files(found: list[Distribution]) -> Iterator[str]:
    for distribution in found:
        for path in distribution.files or ():
            # What lies outside, as scripts in ../../bin, is not imported.
            if not {"__pycache__", ".."} & set(path.parts) and Path(str(path.locate())).is_file():
                yield path.as_posix()


def _require_pure(distribution: Distribution) -> None:
    native = [str(path) for path in distribution.files or () if path.suffix in _NATIVE]
    if native:
        raise InvalidArgument(
            f"package {distribution.name} {distribution.version} has compiled code ({native[0]}); functions take "
            f"packages of pure Python, and find these in their sandbox: {', '.join(PROVIDED)}"
        )
