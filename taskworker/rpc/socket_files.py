"""Socket files that only their owner can connect to, from the first moment on.

gRPC binds a socket with the mode that the umask leaves. So it does that in a directory that nobody else can enter, and
the socket is moved to its place once it is private.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from storage.system.private_paths import FILE_MODE
from taskworker.errors import StorageUnavailable

_ADDRESS_BYTES_MAX = 107  # sun_path of Linux, without the final zero byte


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[str]:
    """Yield the path to bind a socket at, which is moved to ``path`` if the block succeeds.

    Raises:
        StorageUnavailable: another server answers at ``path``, or something else is there.
        OSError: the directory cannot be written.
    """
    _require_free(path)
    directory = Path(tempfile.mkdtemp(prefix=".", dir=path.parent))
    try:
        inner = directory / "s"
        if len(os.fsencode(inner)) > _ADDRESS_BYTES_MAX:
            # Kept open: when its server ends, gRPC looks at the path again.
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
            yield f"/proc/self/fd/{descriptor}/s"
        else:
            yield str(inner)
        inner.chmod(FILE_MODE)
        inner.replace(path)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _require_free(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise StorageUnavailable(f"cannot listen on unix:{path}: something else is there, and is left as it is")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return  # left by a process that was killed
        except OSError as error:
            raise StorageUnavailable(f"cannot listen on unix:{path}: {error}") from error
    raise StorageUnavailable(
        f"cannot listen on unix:{path}: another server is running there; stop it, or choose another address"
    )
