"""Where a worker says that it is reached."""

from __future__ import annotations

import socket

from taskworker.errors import StorageUnavailable


def announced(address: str, pool_address: str) -> str:
    """Return the address to tell the pool: in place of all addresses, the one from which the pool is reached.

    Args:
        address: where the worker listens.
        pool_address: where the pool is.

    Raises:
        StorageUnavailable: the pool cannot be reached from there.
    """
    host, _, port = address.rpartition(":")
    if host not in ("0.0.0.0", "[::]", ""):
        return address
    pool_host, _, pool_port = pool_address.rpartition(":")
    family = socket.AF_INET if host == "0.0.0.0" else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:  # connecting it sends nothing
            probe.connect((pool_host.removeprefix("[").removesuffix("]"), int(pool_port)))
            own = probe.getsockname()[0]
    except OSError as error:
        raise StorageUnavailable(f"the pool at {pool_host} cannot be reached from {address}: {error}") from None
    return f"{own}:{port}" if family == socket.AF_INET else f"[{own}]:{port}"
