"""Bundles: a function's code and its dependencies in one file; and the cache of unpacked bundles on a worker.

A bundle is an uncompressed tar archive, so that the store can deduplicate what two versions share::

    function.json     the function's document (FunctionSpec)
    app/...           the user's own code
    dependencies/...  installed packages
    platforms/3.12-x86_64-glibc2.36/...  packages that differ between platforms, in the build for this one

The same contents give the same bytes: entries are sorted and carry no times, owners or modes.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tarfile
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from blake3 import blake3

from storage.errors import FormatError, InvalidArgument
from storage.system.private_paths import make_private_directory
from taskworker.calls.spec import FunctionSpec

APP, DEPENDENCIES, PLATFORMS, DOCUMENT = "app", "dependencies", "platforms", "function.json"
BUNDLE_BYTES_MAX = 256 << 20
"""numpy and pandas are 120 MiB."""
FILES_MAX = 20_000
ARCHIVE_BYTES_MAX = BUNDLE_BYTES_MAX + FILES_MAX * 1536
"""Includes what a tar archive adds to the content of each file: a header and padding."""
DIRECTORIES_MAX = 10_000
DEPTH_MAX = 32
"""Components of a path; paths in installed packages have about ten."""
_DOCUMENT_BYTES_MAX = 1 << 20
_KEPT = 256
_PATH_BYTES_MAX = 1024  # Linux allows 4096, including the directory that the bundle is unpacked into
_NAME_BYTES_MAX = 255
_BLOCK = 512
_END = bytes(_BLOCK)
_EXTENSION_BYTES_MAX = 4 * _BLOCK  # size of a header that only holds a long path


@dataclass(frozen=True, slots=True)
class PackedPackage:
    """A package in a bundle.

    Attributes:
        package: ``name==version``.
        platform: tag of the platform that it is for; empty: all platforms.
        files: how many files it has.
        size: bytes of these files.
    """

    package: str
    platform: str
    files: int
    size: int


@dataclass(frozen=True, slots=True)
class PackedFunction:
    """A bundle, its document, the size of each file by path, and the packages that its dependency files belong to."""

    spec: FunctionSpec
    bundle: bytes
    files: Mapping[str, int]
    packages: tuple[PackedPackage, ...] = ()


def packed(spec: FunctionSpec, files: Mapping[str, bytes]) -> PackedFunction:
    """Pack a function into a bundle.

    Args:
        spec: describes the function.
        files: contents by path, below ``app/``, ``dependencies/`` or ``platforms/TAG/``.

    Raises:
        InvalidArgument: too large, or too many files.
    """
    size = sum(map(len, files.values()))
    if size > BUNDLE_BYTES_MAX or len(files) >= FILES_MAX:
        raise InvalidArgument(
            f"function {spec.name!r} and its dependencies are {len(files):,} files of {size / (1 << 20):.1f} MiB; "
            f"at most {FILES_MAX:,} files and {BUNDLE_BYTES_MAX >> 20} MiB are allowed: leave out what it does not use"
        )
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, content in sorted({DOCUMENT: spec.to_json(), **files}.items()):
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    return PackedFunction(spec, archive.getvalue(), {path: len(content) for path, content in sorted(files.items())})


def key_of(bundle: bytes) -> str:
    """The bundle's key: its BLAKE3 hash in hex."""
    return blake3(bundle).hexdigest()


def spec_of(bundle: bytes) -> FunctionSpec:
    """The document of a bundle; checks the whole bundle.

    Raises:
        FormatError: it is not a bundle.
        InvalidArgument: its document asks for something out of bounds.
    """
    documents = [bytes(content) for path, content in _entries(bundle) if path == PurePosixPath(DOCUMENT)]
    if not documents:
        raise FormatError(f"this is not a function's bundle: it has no {DOCUMENT}")
    if len(documents[0]) > _DOCUMENT_BYTES_MAX:
        raise FormatError(f"this is not a function's bundle: its {DOCUMENT} has {len(documents[0]):,} bytes")
    return FunctionSpec.from_json(documents[0])


def own_modules_of(bundle: bytes) -> dict[PurePosixPath, memoryview] | None:
    """The sources of the function's own modules, by their paths in `APP`; None if the bundle also has packages.

    Raises:
        FormatError: it is not a bundle.
    """
    modules = {}
    for path, content in _entries(bundle):
        if path.parts[0] in (DEPENDENCIES, PLATFORMS):
            return None
        if path.suffix == ".py":
            modules[path.relative_to(APP)] = content
    return modules


def _entries(bundle: bytes) -> Iterator[tuple[PurePosixPath, memoryview]]:
    """Path and content of each file. Bundles come from untrusted sources, so only regular files are accepted."""
    _require_bounded(bundle)
    taken, contents = _Paths(), memoryview(bundle)
    try:
        with tarfile.open(fileobj=io.BytesIO(bundle), mode="r:") as tar:
            for entry in tar:
                path = PurePosixPath(entry.name)
                plain = entry.isfile() and not entry.issparse() and not entry.pax_headers.keys() - {"path"}
                if not plain or not taken.take(path):
                    raise FormatError(f"this is not a function's bundle: {entry.name[:200]!r} does not belong in one")
                yield path, contents[entry.offset_data : entry.offset_data + entry.size]
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise FormatError(f"this is not a function's bundle: {error}") from None


def _require_bounded(bundle: bytes) -> None:
    """Check the sizes in all headers before any memory is allocated for them.

    Raises:
        FormatError: there are too many entries, an entry is too large, or one is neither a regular file nor the
            header of a long path.
    """
    if len(bundle) > ARCHIVE_BYTES_MAX:
        raise FormatError(f"the bundle has {len(bundle):,} bytes, which is above the limit")
    at = entries = total = extension = 0
    while at + _BLOCK <= len(bundle) and bundle[at : at + _BLOCK] != _END:  # the end, as tarfile recognizes it
        kind, size = bundle[at + 156 : at + 157], _size_in(bundle, at)
        if kind not in (b"0", b"\0", b"x") or (kind == b"x" and (extension or size > _EXTENSION_BYTES_MAX)):
            raise FormatError(f"this is not a function's bundle: an entry of kind {kind!r} does not belong in one")
        extension = kind == b"x"
        if not extension:
            entries, total = entries + 1, total + size
        if entries > FILES_MAX or total > BUNDLE_BYTES_MAX + _DOCUMENT_BYTES_MAX:
            raise FormatError(
                f"the bundle has more than {FILES_MAX:,} files, or {BUNDLE_BYTES_MAX >> 20} MiB in them: leave some out"
            )
        at += _BLOCK + -(-size // _BLOCK) * _BLOCK
        if at > len(bundle):
            raise FormatError("this is not a function's bundle: it is cut off")


def _size_in(bundle: bytes, at: int) -> int:
    """The size in a header, in octal digits; the other encodings are for sizes larger than any bundle."""
    digits = bundle[at + 124 : at + 136].strip(b"\0 ")
    if not digits or digits.strip(b"01234567"):
        raise FormatError("this is not a function's bundle: it has an entry without a size")
    return int(digits, 8)


class _Paths:
    """Checks that all files of a bundle can be created below one directory, on any file system."""

    def __init__(self) -> None:
        self._files: set[PurePosixPath] = set()
        self._directories: set[PurePosixPath] = set()

    def take(self, path: PurePosixPath) -> bool:
        """Add a path; False if it cannot be created beside those added before."""
        if len(path.parts) > DEPTH_MAX or not _is_below(path) or not _can_be_made(path):
            return False
        above = path.parents
        if path in self._files or path in self._directories or not self._files.isdisjoint(above):
            return False
        self._files.add(path)
        self._directories.update(above)
        return len(self._directories) <= DIRECTORIES_MAX


def _is_below(path: PurePosixPath) -> bool:
    inside = len(path.parts) > 1 and path.parts[0] in (APP, DEPENDENCIES, PLATFORMS)
    return (inside or path == PurePosixPath(DOCUMENT)) and ".." not in path.parts and "\0" not in str(path)


def _can_be_made(path: PurePosixPath) -> bool:
    try:
        encoded = str(path).encode()
    except UnicodeEncodeError:
        return False
    return len(encoded) <= _PATH_BYTES_MAX and all(len(name) <= _NAME_BYTES_MAX for name in encoded.split(b"/"))


class BundleCache:
    """Unpacked bundles in a directory, each under its key; the least recently used are evicted. Thread-safe.

    Args:
        directory: created if absent; bundles that an earlier process left half unpacked are removed.
        kept: how many bundles to keep; more stay if more are in use.
        in_use: gives the keys of bundles that must not be evicted.
    """

    def __init__(
        self, directory: Path, *, kept: int = _KEPT, in_use: Callable[[], Collection[str]] = frozenset
    ) -> None:
        self.directory = directory
        self._in_use = in_use
        self._prefix = f"{directory}{os.sep}"
        self._kept = kept
        self._lock = threading.Lock()
        make_private_directory(directory)
        for leftover in directory.glob(".*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def find(self, key: str) -> Path | None:
        """The directory of the unpacked bundle; None if it is not here."""
        return self.directory / key if self.keep(key) else None

    def keep(self, key: str) -> bool:
        """Mark a bundle as just used, so that it is evicted later; False if it is not here."""
        try:
            os.utime(f"{self._prefix}{key}")
        except OSError:
            return False
        return True

    def add(self, bundle: bytes) -> Path:
        """Unpack a bundle, and return its directory.

        Raises:
            FormatError: it is not a bundle.
            OSError: writing to the disk failed.
        """
        key = key_of(bundle)
        found = self.find(key)
        if found is None:
            partial = self._unpack(bundle)  # outside the lock, so that other threads need not wait
            with self._lock:
                found = self._put(key, partial)
                self._make_room(key)
        return found

    def _unpack(self, bundle: bytes) -> Path:
        entries = list(_entries(bundle))  # check all of them before creating the first
        partial = Path(tempfile.mkdtemp(prefix=".", dir=self.directory))
        try:
            for path, content in entries:
                target = partial / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            for made in (partial, *partial.rglob("*")):  # independent of the umask: sandboxes may run as another user
                made.chmod(0o755 if made.is_dir() else 0o644)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return partial

    def _put(self, key: str, partial: Path) -> Path:
        """Rename the unpacked directory to its key, so that no reader sees half a bundle."""
        found = self.find(key)
        if found is not None:  # another thread was faster
            shutil.rmtree(partial, ignore_errors=True)
            return found
        return partial.rename(self.directory / key)

    def _make_room(self, added: str) -> None:
        found = [path for path in self.directory.iterdir() if not path.name.startswith(".")]
        if len(found) <= self._kept:
            return
        in_use = {added, *self._in_use()}
        by_age = sorted((path for path in found if path.name not in in_use), key=_used_at)
        for path in by_age[: len(found) - self._kept]:
            with contextlib.suppress(OSError):
                path.rename(self.directory / f".{path.name}")
                shutil.rmtree(self.directory / f".{path.name}")


def _used_at(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0  # another thread or process removed it
