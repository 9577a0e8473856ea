"""Makes files durable, many at once."""

from __future__ import annotations

import ctypes
import os


def flush_file_system(descriptor: int) -> None:
    """Flush all that was written to the file system of an open file: syncfs(2), or sync(2) where there is none.

    One call for thousands of files takes a fraction of the time that flushing each of them would.

    Raises:
        OSError: something could not be written.
    """
    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if syncfs is None:
        os.sync()
    elif syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
