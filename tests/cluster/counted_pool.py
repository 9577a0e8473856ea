"""``taskworker`` that counts the bytes which its connections to workers' volumes carry. It audits nothing meanwhile.

The sum is in the first 8 bytes of the file that the environment's ``COUNTED_BYTES`` names.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from collections.abc import Sequence
from pathlib import Path

from storage.limits import BytesLike
from taskworker.pool.background import auditing
from taskworker.transport.wire.streams import SocketStream

COUNTED = "COUNTED_BYTES"
_COUNT = struct.Struct("<Q")


def counted(path: Path) -> int:
    """The bytes counted so far."""
    (count,) = _COUNT.unpack(path.read_bytes()[: _COUNT.size])
    return int(count)


def count_streams(path: Path) -> None:
    """Count what all streams of this process carry from now on."""
    path.write_bytes(bytes(_COUNT.size))
    with path.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), _COUNT.size)
    lock = threading.Lock()
    receive, send = SocketStream.receive, SocketStream.send

    def add(count: int) -> None:
        with lock:
            _COUNT.pack_into(memory, 0, _COUNT.unpack_from(memory, 0)[0] + count)

    def counted_receive(self: SocketStream, buffers: Sequence[memoryview], *, wait: bool) -> int | None:
        count = receive(self, buffers, wait=wait)
        add(count or 0)
        return count

    def counted_send(self: SocketStream, buffers: Sequence[BytesLike], *, wait: bool, more: bool = False) -> int:
        count = send(self, buffers, wait=wait, more=more)
        add(count)
        return count

    SocketStream.receive = counted_receive  # type: ignore[method-assign]
    SocketStream.send = counted_send  # type: ignore[method-assign]


if __name__ == "__main__":
    count_streams(Path(os.environ[COUNTED]))
    auditing.AUDIT_BYTES_PER_S = 0
    from taskworker.cli import main

    main()
