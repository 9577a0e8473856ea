"""The read-only root directory of sandboxes: the interpreter, its libraries, a few packages, and ``inside``.

It contains nothing else of this machine. All files are copies at paths that only exist in sandboxes, and compiled
modules name these paths. There are two trees, one with the interpreter and one with TaskWorker's own code; workers
share them through `tree_cache`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import logging
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from taskworker.sandbox import bytecode
from taskworker.sandbox.errors import SandboxUnavailable
from taskworker.sandbox.inside.base import UID
from taskworker.sandbox.inside.init import BUNDLES, CODE, DEVICES, SCRATCH
from taskworker.sandbox.tree_cache import Recipe, Source, Tree, TreeCache

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
    "tzdata",  # read by zoneinfo, as the machine's own time zones are not in the root
)
OWN_DIRECTORY = ".root"
"""Below a worker's directory of bundles: the trees of a worker that cannot share any."""
SYSTEM_CACHE = Path("/var/cache")
_STANDARD_LIBRARY = f"{PYTHON}/{sys.platlibdir}/python{sys.version_info.major}.{sys.version_info.minor}"
_LEFT_OUT = frozenset(
    [
        "site-packages",
        "dist-packages",
        "__pycache__",
        "test",
        "tests",
        "idle_test",
        "idlelib",
        "tkinter",
        "turtledemo",
        "ensurepip",
    ]
)
"""Directories of the standard library that are left out: other packages, tests, user interfaces and installers."""
_CONFIG = re.compile(r"config-\d")
"""Also left out: files for building an interpreter."""
_EXTENSIONS_LEFT_OUT = re.compile(
    r"(_tkinter|readline|_curses|_curses_panel|_dbm|_gdbm|nis|_crypt|spwd|_test.*|_ctypes_test|_xxtestfuzz|xx.*)\."
)
"""Extension modules that are left out: for terminals, windows and accounts, which sandboxes lack, and for tests."""
_BUILD_FACTS = "_sysconfigdata"
"""Begin of the name of a module whose text names directories of this machine, which are replaced."""
_LOCALES = Path("/usr/lib/locale")
"""Where the C library looks for locales by default."""
_LOCALE_NAMES = ("C.utf8", "C.UTF-8")
_USER = "sandbox"
_TEXTS = {
    "etc/passwd": f"{_USER}:x:{UID}:{UID}::{SCRATCH}:/nonexistent\n".encode(),
    "etc/group": f"{_USER}:x:{UID}:\n".encode(),
    "etc/nsswitch.conf": b"passwd: files\ngroup: files\n",
    **{device.lstrip("/"): b"" for device in DEVICES},  # mount points of the devices
}
_LIBRARY = re.compile(r"(?:=>\s+|^\s*)(/\S+)\s+\(0x", re.MULTILINE)
_WHEEL_LIBRARIES = ("libstdc++.so.6", "libgcc_s.so.1", "libz.so.1", "libatomic.so.1")
_LIBRARY_DIRECTORIES = (Path("/usr/lib64"), Path("/usr/lib"), Path("/lib64"), Path("/lib"))
_LDD_TIMEOUT_S = 60
_log = logging.getLogger(__name__)


class RuntimeRoot:
    """The trees of a root directory, in use until it is closed.

    Args:
        top: the tree for the root directory.
        runtime: the tree of TaskWorker's own code, for `RUNTIME`.
    """

    def __init__(self, top: Tree, runtime: Tree) -> None:
        self._trees = top, runtime
        self.top = top.path
        self.runtime = runtime.path

    def close(self) -> None:
        """Stop using the trees, so that they may be removed."""
        for tree in self._trees:
            tree.close()


def take(bundles: Path) -> RuntimeRoot:
    """Return the root; make it if it does not exist, which takes a few seconds.

    Args:
        bundles: this worker's directory of bundles, in which the trees are made if they cannot be shared.

    Raises:
        SandboxUnavailable: the root cannot be made; the text says why.
    """
    recipes = _root(), _runtime()
    for place in _shared():
        try:
            return _taken(TreeCache(place), recipes)
        except OSError as error:
            _log.info("the root of the sandboxes is not shared in %s: %s", place, error)
    try:
        return _taken(TreeCache(bundles / OWN_DIRECTORY, trust_parents=True), recipes)
    except OSError as error:
        raise SandboxUnavailable(f"the root directory of the sandboxes could not be made: {error}") from error


def interpreter() -> str:
    """Return the interpreter's path in the sandbox."""
    return f"{PYTHON}/bin/{_executable().name}"


def module_path() -> tuple[str, ...]:
    """Return the first entries of ``sys.path`` in the sandbox, before the standard library."""
    return (RUNTIME, PACKAGES)


def _shared() -> Iterator[Path]:
    """Yield the places where workers of this user may share trees, in the order in which to try them."""
    below = Path("taskworker", "sandbox")
    named = os.environ.get("XDG_CACHE_HOME", "")
    if named.startswith("/"):
        yield named / below
    else:
        with contextlib.suppress(RuntimeError):  # this user has no home directory
            yield Path.home() / ".cache" / below
    if os.geteuid() == 0:  # sudo may have kept another user's home directory
        yield SYSTEM_CACHE / below


def _taken(cache: TreeCache, recipes: tuple[Recipe, Recipe]) -> RuntimeRoot:
    top = cache.take(recipes[0])
    try:
        return RuntimeRoot(top, cache.take(recipes[1]))
    except BaseException:
        top.close()
        raise


def _root() -> Recipe:
    directories = (BUNDLES, CODE, SCRATCH, RUNTIME)
    return Recipe(
        about=f"{sys.implementation.cache_tag} {importlib.util.MAGIC_NUMBER.hex()} {sys.base_prefix}",
        sources=[
            Source.at(_executable(), _below_top(interpreter())),
            *_below(_standard_library(), _STANDARD_LIBRARY, standard=True),
            *_packages(),
            *_locales(),
        ],
        texts=_TEXTS,
        directories=[_below_top(directory) for directory in directories],
        more=_libraries,
        files_of=_files_of,
    )


def _runtime() -> Recipe:
    own = Path(__file__).parent
    place = f"{RUNTIME}/taskworker/sandbox"
    sources = [
        *_below(own / "inside", f"{place}/inside"),
        Source.at(own / "frames.py", _below_top(f"{place}/frames.py")),
    ]
    return Recipe(
        about=f"{sys.implementation.cache_tag} {importlib.util.MAGIC_NUMBER.hex()}",
        sources=[Source(one.path, _below_runtime(one.target), one.size, one.mtime_ns) for one in sources],
        texts={},
        directories=(),
        more=tuple,
        files_of=functools.partial(_files_of, top=RUNTIME),
    )


def _below_top(target: str) -> str:
    return target.lstrip("/")


def _below_runtime(target: str) -> str:
    return target.removeprefix(f"{_below_top(RUNTIME)}/")


def _files_of(source: Source, content: bytes, top: str = "") -> Iterator[tuple[str, bytes]]:
    """Yield a file as it is and, for a module, its ``.pyc`` for its path in the sandbox."""
    target = PurePosixPath(source.target)
    path, mtime = source.path, source.mtime_ns // 1_000_000_000
    if target.name.startswith(_BUILD_FACTS):
        content = content.replace(os.fsencode(sys.base_prefix), PYTHON.encode())
        mtime = 0
    yield source.target, content
    if target.suffix != ".py":
        return
    if (compiled := bytecode.compiled_for(f"{top}/{target}", content, path, mtime)) is not None:
        yield str(target.parent / "__pycache__" / f"{target.stem}.{sys.implementation.cache_tag}.pyc"), compiled


def _below(directory: Path, target: str, *, standard: bool = False) -> Iterator[Source]:
    """Yield the files of a package; of the standard library, only those that are useful in a sandbox."""
    for place, directories, files in os.walk(directory):
        directories[:] = sorted(one for one in directories if not _is_left_out(one, standard=standard))
        below = os.path.relpath(place, directory)
        for name in sorted(files):
            if standard and _EXTENSIONS_LEFT_OUT.match(name) and name.endswith(".so"):
                continue
            with contextlib.suppress(FileNotFoundError):  # a broken link
                yield Source.at(Path(place, name), _below_top(os.path.normpath(f"{target}/{below}/{name}")))


def _is_left_out(name: str, *, standard: bool) -> bool:
    return name == "__pycache__" or (standard and (name in _LEFT_OUT or _CONFIG.match(name) is not None))


def _standard_library() -> Path:
    return Path(sysconfig.get_path("platstdlib", vars={"platbase": sys.base_prefix}))


def _executable() -> Path:
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    own: str = getattr(sys, "_base_executable", sys.executable)
    for candidate in (Path(sys.base_prefix) / "bin" / name, Path(own)):
        if candidate.exists():
            return candidate.resolve()
    raise SandboxUnavailable(f"no interpreter was found below {sys.base_prefix}")


def _packages() -> Iterator[Source]:
    for name in PACKAGE_NAMES:
        origin = _origin(name)
        package = origin.parent if origin.name == "__init__.py" else origin
        if package.is_dir():
            yield from _below(package, f"{PACKAGES}/{package.name}")
        else:
            yield Source.at(package, _below_top(f"{PACKAGES}/{package.name}"))
        for told in sorted(package.parent.glob(f"{name}-*.dist-info/METADATA")):  # importlib.metadata reads it
            yield Source.at(told, _below_top(f"{PACKAGES}/{told.parent.name}/{told.name}"))


def _origin(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SandboxUnavailable(f"functions need the package {name}: pip install pydantic cloudpickle tzdata")
    return Path(spec.origin)


def _locales() -> Iterator[Source]:
    """Yield the files that ``setlocale`` needs for the locale of sandboxes."""
    for name in _LOCALE_NAMES:
        yield from _below(_LOCALES / name, str(_LOCALES / name))


def _extensions() -> Iterator[Path]:
    for path in _standard_library().glob("lib-dynload/*.so"):
        if not _EXTENSIONS_LEFT_OUT.match(path.name):
            yield path
    for origin in map(_origin, PACKAGE_NAMES):
        if origin.name == "__init__.py":
            yield from origin.parent.glob("*.so")


def _libraries() -> Sequence[Source]:
    found = _libraries_of([_executable(), *_extensions(), *_of_wheels()])
    return list({one.target: one for one in found}.values())


def _of_wheels() -> Iterator[Path]:
    """Yield the libraries on which compiled packages may rely (PEP 600), as far as this machine has them."""
    known = {source.path.parent for source in _libraries_of([_executable()])}
    for name in _WHEEL_LIBRARIES:
        found = (directory / name for directory in (*sorted(known), *_LIBRARY_DIRECTORIES))
        yield from itertools.islice((path for path in found if path.exists()), 1)


def _libraries_of(objects: list[Path]) -> Iterator[Source]:
    """Yield the shared libraries that the loader finds for ``objects``. The loader itself keeps its path."""
    ldd = shutil.which("ldd")
    if ldd is None:
        raise SandboxUnavailable("functions need ldd, which comes with the C library, to find shared libraries")
    said = subprocess.run(
        [ldd, *map(str, objects)], capture_output=True, text=True, timeout=_LDD_TIMEOUT_S, check=False
    ).stdout
    named = {str(path) for path in objects if path.name in _WHEEL_LIBRARIES}  # ldd does not list the objects themselves
    for path in sorted(named.union(_LIBRARY.findall(said))):
        name = Path(path).name
        target = path if name.startswith("ld-") else f"{LIBRARIES}/{name}"
        yield Source.at(Path(path).resolve(), _below_top(target))
