"""The read-only root that sandboxes see: the interpreter, its libraries, a few packages, and our code inside.

Nothing else of this machine: the paths there are of the sandbox's own, and no directory of the host is bound
whole but the interpreter's standard library.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

from taskworker.sandbox.errors import SandboxUnavailable
from taskworker.sandbox.inside.init import DEVICES

PYTHON = "/python"
PACKAGES = "/packages"
RUNTIME = "/runtime"
LIBRARIES = "/libraries"
PACKAGE_NAMES = (
    "pydantic",
    "pydantic_core",
    "annotated_types",
    "typing_extensions",
    "typing_inspection",
    "cloudpickle",
    "tzdata",  # what zoneinfo reads: the machine's own zones are not bound
)
_WITHOUT_LIBRARIES = ("_tkinter", "readline", "_curses", "_curses_panel", "_dbm", "_gdbm", "nis", "_crypt", "spwd")
"""Terminals, windows and accounts, of which a sandbox has none: their libraries are not bound."""
_LIBRARY = re.compile(r"(?:=>\s+|^\s*)(/\S+)\s+\(0x", re.MULTILINE)
_WHEEL_LIBRARIES = ("libstdc++.so.6", "libgcc_s.so.1", "libz.so.1", "libatomic.so.1")
_LIBRARY_DIRECTORIES = (Path("/usr/lib64"), Path("/usr/lib"), Path("/lib64"), Path("/lib"))
_LDD_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Bind:
    """A file or directory of this machine, and where it is inside."""

    source: Path
    target: str


def interpreter() -> str:
    """Give the interpreter's path inside."""
    return f"{PYTHON}/bin/{_executable().name}"


def module_path() -> tuple[str, ...]:
    """Give what ``sys.path`` begins with inside, beside the standard library."""
    return (RUNTIME, PACKAGES)


@cache
def binds() -> tuple[Bind, ...]:
    """List what is bound into the root, read-only.

    Raises:
        SandboxUnavailable: something that it needs is not installed.
    """
    standard_library = Path(sysconfig.get_path("platstdlib", vars={"platbase": sys.base_prefix}))
    inside = f"{PYTHON}/{sys.platlibdir}/python{sys.version_info.major}.{sys.version_info.minor}"
    packages = list(_packages())
    own = Path(__file__).parent
    return (
        Bind(_executable(), interpreter()),
        Bind(standard_library, inside),
        *packages,
        Bind(own / "inside", f"{RUNTIME}/taskworker/sandbox/inside"),
        Bind(own / "frames.py", f"{RUNTIME}/taskworker/sandbox/frames.py"),
        *_libraries([_executable(), *_standard_extensions(standard_library), *_extensions(packages), *_of_wheels()]),
    )


def directories() -> list[str]:
    """List the directories inside that something is bound in, those around others first."""
    targets = (*(bind.target for bind in binds()), *DEVICES)
    around = {str(parent) for target in targets for parent in PurePosixPath(target).parents}
    return sorted(around - {"/"})


def hidden() -> Iterator[str]:
    """Name the directories inside that something else of this machine would be seen in."""
    standard_library = Path(sysconfig.get_path("platstdlib", vars={"platbase": sys.base_prefix}))
    inside = f"{PYTHON}/{sys.platlibdir}/python{sys.version_info.major}.{sys.version_info.minor}"
    for name in ("site-packages", "dist-packages"):
        if (standard_library / name).is_dir():
            yield f"{inside}/{name}"


def require_readable() -> None:
    """Check that users other than this process's may read what is bound.

    Raises:
        SandboxUnavailable: they may not; the text says what to do.
    """
    for bind in binds():
        mode = bind.source.stat().st_mode
        wanted = stat.S_IROTH | stat.S_IXOTH if stat.S_ISDIR(mode) else stat.S_IROTH
        if mode & wanted != wanted:
            raise SandboxUnavailable(
                f"the sandboxes of a worker run as root have user ids of their own, which cannot read {bind.source}: "
                f"chmod -R o+rX {bind.source}"
            )


def _executable() -> Path:
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    own: str = getattr(sys, "_base_executable", sys.executable)
    for candidate in (Path(sys.base_prefix) / "bin" / name, Path(own)):
        if candidate.exists():
            return candidate.resolve()
    raise SandboxUnavailable(f"no interpreter is to be found below {sys.base_prefix}")


def _packages() -> Iterator[Bind]:
    for name in PACKAGE_NAMES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise SandboxUnavailable(f"functions need the package {name}: pip install pydantic cloudpickle tzdata")
        origin = Path(spec.origin)
        source = origin.parent if origin.name == "__init__.py" else origin
        yield Bind(source, f"{PACKAGES}/{source.name}")


def _standard_extensions(standard_library: Path) -> Iterator[Path]:
    for path in standard_library.glob("lib-dynload/*.so"):
        if path.name.partition(".")[0] not in _WITHOUT_LIBRARIES:
            yield path


def _extensions(packages: list[Bind]) -> Iterator[Path]:
    for package in packages:
        if package.source.is_dir():
            yield from package.source.glob("*.so")


def _of_wheels() -> Iterator[Path]:
    """Libraries that compiled packages take for granted (PEP 600), as far as this machine has them."""
    known = {bind.source.parent for bind in _libraries([_executable()])}
    for name in _WHEEL_LIBRARIES:
        found = (directory / name for directory in (*sorted(known), *_LIBRARY_DIRECTORIES))
        yield from itertools.islice((path for path in found if path.exists()), 1)


def _libraries(objects: list[Path]) -> Iterator[Bind]:
    """Find the shared libraries of ``objects`` as the loader does; it itself stays where programs name it."""
    ldd = shutil.which("ldd")
    if ldd is None:
        raise SandboxUnavailable("functions need ldd, which comes with the C library, to find shared libraries")
    said = subprocess.run(
        [ldd, *map(str, objects)], capture_output=True, text=True, timeout=_LDD_TIMEOUT_S, check=False
    ).stdout
    named = {str(path) for path in objects if path.name in _WHEEL_LIBRARIES}  # which ldd does not name itself
    for path in sorted(named.union(_LIBRARY.findall(said))):
        name = Path(path).name
        yield Bind(Path(path).resolve(), path if name.startswith("ld-") else f"{LIBRARIES}/{name}")
